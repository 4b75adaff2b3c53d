"""The experiments of the DFT paper (arXiv 2411.01453), with the methods that it compares with."""
