"""The frameworks' own examples and tutorials, from a folder of the user's, with the kernel swapped and with NUTS beside it."""
