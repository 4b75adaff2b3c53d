"""Posteriors of hard geometry whose exact draws are known by construction."""
