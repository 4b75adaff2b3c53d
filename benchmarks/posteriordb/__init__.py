"""The posteriors of posteriordb with reference draws: models in NumPyro and Pyro, coordinates and checks."""
