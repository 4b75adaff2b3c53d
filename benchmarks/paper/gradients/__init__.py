"""The full and the partial gradient of the Fisher divergence (Figure 2 of the paper)."""
