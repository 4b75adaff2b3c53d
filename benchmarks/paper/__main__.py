"""One experiment of the paper: ``python -m benchmarks.paper toy2d | gradients | logistic | mnist [--quick]``.

Each writes a table (CSV and Markdown) and a figure under ``docs/results/``. Finished cells are kept below
``benchmarks/.cache/paper`` and not run again. ``--quick`` runs a small version in under a minute, and writes to
``benchmarks/.cache/paper/quick`` in place of ``docs/results``.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import importlib
import sys

EXPERIMENTS = ("toy2d", "gradients", "logistic", "mnist")


def main(arguments: list[str] | None = None) -> None:
    """Hands the command line over to the experiment that it names first."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name not in EXPERIMENTS:
        raise SystemExit(f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    importlib.import_module(f"benchmarks.paper.{name}.experiment").main(arguments[1:])


if __name__ == "__main__":
    main()
