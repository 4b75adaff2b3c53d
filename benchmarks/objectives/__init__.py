"""Training objectives against each other, on the same Gaussians and with the same seeds."""
