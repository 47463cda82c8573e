"""Attacks: what an adversary can still learn from exactly what it sees."""
