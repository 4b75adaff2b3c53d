"""Is it right? Movement under exact transitions, R-hat, optima, the verdict in words."""
