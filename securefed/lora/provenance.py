"""The file beside an adapter that says what it was trained on.  Needs no torch."""

PROVENANCE_FILE = "securefed_adapter.json"
"""JSON: ``base_model``, ``base_fingerprint``, ``sharing`` and ``state_sha256`` (``state_hash``)."""
