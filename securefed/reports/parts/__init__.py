"""The parts of a report, each from the facts that it is about."""
