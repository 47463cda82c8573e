"""The ledger and what can be recomputed from it, without torch."""
