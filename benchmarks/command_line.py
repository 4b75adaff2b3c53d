"""What command lines of benchmarks have in common."""

from __future__ import annotations

import argparse
from collections.abc import Collection


def chosen(parser: argparse.ArgumentParser, names: str, known: Collection[str]) -> list[str]:
    """Names from a list with commas; one that is not known ends the command."""
    found = names.split(",")
    check_known(parser, found, known)
    return found


def check_known(parser: argparse.ArgumentParser, names: Collection[str], known: Collection[str]) -> None:
    """Ends the command where a name is not known."""
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
