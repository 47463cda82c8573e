"""Gradient inversion: training texts from an update."""
