"""Pictures and reports, rendered from what a run recorded."""
