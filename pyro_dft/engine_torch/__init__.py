"""The torch engine: trains and refines a sampler for a batched target. Knows nothing of Pyro."""
