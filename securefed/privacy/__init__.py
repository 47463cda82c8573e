"""Clipping, exact noise and what they guarantee."""
