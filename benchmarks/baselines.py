"""``python -m benchmarks.baselines [--models a,b]``: run Pyro's NUTS baselines only (resumable, one thread)."""

from __future__ import annotations

import argparse
import warnings

import torch

from benchmarks import cache, nuts
from benchmarks.models.registry import BENCHMARKS


def main() -> None:
    """Run what is missing and print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(BENCHMARKS))
    names = parser.parse_args().models.split(",")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in names:
        benchmark = BENCHMARKS[name]
        _, cost = nuts.run(benchmark, cache.cell(benchmark, "nuts", nuts.settings()))
        print(name, cost, flush=True)


if __name__ == "__main__":
    main()
