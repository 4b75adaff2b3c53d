"""The frameworks' own tests of MCMC, from a folder of the user's, with the kernel swapped."""
