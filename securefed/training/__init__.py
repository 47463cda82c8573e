"""Models, data and local training."""
