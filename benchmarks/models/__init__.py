"""The benchmark models: the same densities in Pyro and in NumPyro, and a registry that names them."""
