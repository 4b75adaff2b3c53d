"""Handing a fit over: ArviZ, pictures."""
