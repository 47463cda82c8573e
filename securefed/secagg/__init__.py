"""Secure aggregation: one interface, several protocols."""
