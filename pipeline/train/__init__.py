"""Chips, losses, the training loop, evaluation. Knows no run."""
