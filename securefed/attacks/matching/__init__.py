"""Gradient inversion by optimisation: texts whose gradient matches the observed one."""
