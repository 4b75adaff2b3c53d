"""Importance weights of an implicit sampler: the evidence, PSIS, the reverse kernel."""
