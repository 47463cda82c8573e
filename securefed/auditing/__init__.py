"""Attacks tried on real rounds, and epsilon measured against its bound."""
