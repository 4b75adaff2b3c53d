"""The jax engine: trains and refines a sampler for a batched target. Knows nothing of NumPyro."""
