"""One round, from an update to a decoded sum, and a run made of rounds."""
