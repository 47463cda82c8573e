"""Keystreams, secret sharing and keys; every primitive comes from ``cryptography``."""
