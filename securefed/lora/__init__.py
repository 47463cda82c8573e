"""Low-rank adapters: built, flattened, saved."""
