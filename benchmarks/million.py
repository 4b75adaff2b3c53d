"""A million: of draws, and of rows. ``python -m benchmarks.million [draws | rows]``.

Draws: a million raw constrained draws of the 31-parameter logistic posterior; wall seconds (two threads) and peak memory of
a fresh process. Targets: under 3 seconds and under 2 GB.

Rows: a regression on a million rows with eleven parameters, fitted with each backend in a process of its own, from the
search for starting points to ArviZ data. Target: the process never holds more than four times the data and 1 GB. Phases are
short: their length decides the time, and not how much is held at once. Writes ``benchmarks/results/million.md`` and
``.json``.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pyro_dft.experimental import grouped

RESULTS = Path(__file__).parent / "results"
COLUMNS = 10
BACKENDS = ("pyro", "numpyro")
# What the process may hold: so many times the data, and so many bytes.
TIMES, MORE = 4, 1e9
# Phases of a fit to many rows.
SHORT = {
    "precondition_steps": 5, "restarts": 1, "num_steps": 4, "batch_size": 32, "num_draws": 20, "max_refine_steps": 1,
    "leapfrog_steps": 1, "modes": "never",
}  # fmt: skip


def peak_bytes() -> float:
    """Peak resident memory of this process; ru_maxrss is in kilobytes on Linux and in bytes on macOS."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def draws(count: int, threads: int) -> None:
    """Fit, draw, print."""
    import torch

    from benchmarks.models.registry import BENCHMARKS
    from pyro_dft import DFT

    torch.set_num_threads(threads)
    model, args = BENCHMARKS["breast_cancer"].pyro()
    # A network is trained in any case, so that the draws go through one.
    dft = DFT(model, seed=0, train="always")
    dft.run(*args)
    before = peak_bytes()
    for attempt in range(3):
        start = time.perf_counter()
        made = dft.get_samples(count, refine_steps=0)
        seconds = time.perf_counter() - start
        shapes = {k: tuple(v.shape) for k, v in made.items()}
        print(f"{attempt}: {count} draws in {seconds:.2f} s, {shapes}", flush=True)
        del made
    print(f"peak memory {peak_bytes() / 1e9:.2f} GB (before drawing: {before / 1e9:.2f} GB)")


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, 10) and responses (rows,), in single precision from the start."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, COLUMNS), np.float32)
    return x, x @ np.linspace(-1, 1, COLUMNS, dtype=np.float32) + rng.standard_normal(rows, np.float32)


def fit(backend: str, rows: int, objective: str) -> dict[str, Any]:
    """One fit in this process: bytes of the data, and the most that the process held until each of its parts had ended."""
    x, y = data(rows)
    peaks = {"data": peak_bytes()}
    dft, run = _regression(backend, x, y, objective)
    peaks["import"] = peak_bytes()
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit is too short to be good
        run()
        peaks["fit"] = peak_bytes()
        dft.get_samples(20)
        dft.to_inference_data()
    peaks["report"] = peak_bytes()
    return {
        "backend": backend, "rows": rows, "objective": objective, "data": x.nbytes + y.nbytes, **peaks,
        "seconds": time.process_time() - start, "evaluations": dft.diagnostics()["gradient_evaluations"],
    }  # fmt: skip


def _regression(backend: str, x: np.ndarray, y: np.ndarray, objective: str) -> tuple[Any, Any]:
    phases = {"objective": "auto", "dft_fraction": 0.5} if objective == "dft" else {"objective": objective}
    settings = grouped({**SHORT, **phases, "train": "always", "disable_progbar": True})
    ppl: Any
    if backend == "pyro":
        import pyro as ppl
        import torch

        from pyro_dft import DFT

        x, y, zeros = torch.from_numpy(x), torch.from_numpy(y), torch.zeros(COLUMNS)
        settings["seed"] = 0
    else:
        import jax
        import jax.numpy as jnp
        import numpyro as ppl

        from pyro_dft.numpyro import DFT

        zeros = jnp.zeros(COLUMNS)

    def model(x: Any, y: Any) -> None:
        dist = ppl.distributions
        slopes = ppl.sample("slopes", dist.Normal(zeros, 1.0).to_event(1))
        scale = ppl.sample("scale", dist.HalfNormal(1.0))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Normal(x @ slopes, scale), obs=y)

    dft = DFT(model, **settings)
    if backend == "pyro":
        return dft, lambda: dft.run(x, y)
    return dft, lambda: dft.run(jax.random.key(0), x, y)


def rows_of(backends: list[str], rows: int, objective: str) -> list[dict[str, Any]]:
    """A fit with each backend, each in a fresh process."""
    found = []
    for backend in backends:
        command = [sys.executable, "-m", "benchmarks.million", "rows", "--here", backend]
        made = subprocess.run(
            [*command, "--rows", str(rows), "--objective", objective],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found.append(judged(json.loads(made.stdout.splitlines()[-1])))
        print(line(found[-1]), flush=True)
    return found


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """With the limit for its data, and whether it kept to that."""
    limit = TIMES * row["data"] + MORE
    return {**row, "limit": limit, "passes": row["report"] <= limit}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    numbers = [f"{row[name] / 1e6:,.0f}" for name in ("data", "import", "fit", "report", "limit")]
    over = f"{(row['report'] - row['import']) / row['data']:.1f}"
    cells = [row["backend"], row["objective"], f"{row['rows']:,}", *numbers, over, f"{row['evaluations']:,}"]
    return "| " + " | ".join([*cells, f"{row['seconds']:.0f}", "yes" if row["passes"] else "NO"]) + " |"


HEAD = """# `python -m benchmarks.million rows`

A regression with 11 parameters on many rows, fitted in a fresh process with short phases, then drawn from and reported.
Most memory that the process has held (resident, MB) once data and packages are there, after the fit, and after draws and
ArviZ data; the limit is four times the data and 1 GB. "Over the data": what fit and report add, in units of the data.

| backend | objective | rows | data | before | fit | report | limit | over the data | evaluations | CPU s | kept |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def write(rows: list[dict[str, Any]], folder: Path = RESULTS) -> None:
    """The table and its numbers."""
    (folder / "million.md").write_text(HEAD + "".join(line(row) + "\n" for row in rows))
    (folder / "million.json").write_text(json.dumps(rows, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Both parts, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", nargs="?", choices=("draws", "rows"))
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--objective", help="of the fit to many rows; kl and dft by default")
    parser.add_argument("--here", choices=BACKENDS, help="fit in this process and print the numbers")
    options = parser.parse_args(arguments)
    if options.here:
        print(json.dumps(fit(options.here, options.rows, options.objective or "kl")))
        return
    if options.part != "draws":
        objectives = [options.objective] if options.objective else ["kl", "dft"]
        found = [row for one in objectives for row in rows_of(list(BACKENDS), options.rows, one)]
        write(found)
    if options.part != "rows":
        draws(options.draws, options.threads)


if __name__ == "__main__":
    main()
