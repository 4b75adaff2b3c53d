"""The MNIST experiment: one-step samplers of an energy-based model beside annealed Langevin."""
