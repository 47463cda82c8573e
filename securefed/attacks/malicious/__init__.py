"""What a server that writes the model, the lists and the cohorts can gain by it."""
