"""Ten densities in the plane (Figure 1, Tables 1 and 2 of the paper)."""
