"""A million raw constrained draws of the 31-parameter logistic posterior: ``python -m benchmarks.million``.

Prints wall seconds (two threads) and peak memory of a fresh process; targets: under 3 seconds and under 2 GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch


def peak_gigabytes() -> float:
    """Peak resident memory of this process; ru_maxrss is in kilobytes on Linux and in bytes on macOS."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    """Fit, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from benchmarks.models.registry import BENCHMARKS
    from pyro_dft import DFT

    model, args = BENCHMARKS["breast_cancer"].pyro()
    # A network is trained in any case, so that the draws go through one.
    dft = DFT(model, seed=0, train="always")
    dft.run(*args)
    before = peak_gigabytes()
    for attempt in range(3):
        start = time.perf_counter()
        draws = dft.get_samples(options.draws, refine_steps=0)
        seconds = time.perf_counter() - start
        shapes = {k: tuple(v.shape) for k, v in draws.items()}
        print(f"{attempt}: {options.draws} draws in {seconds:.2f} s, {shapes}", flush=True)
        del draws
    print(f"peak memory {peak_gigabytes():.2f} GB (before drawing: {before:.2f} GB)")


if __name__ == "__main__":
    main()
