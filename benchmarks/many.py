"""What many posteriors cost, and whether each is right: ``python -m benchmarks.many [logistic|schools|conjugate|kills|nuts]``.

- logistic: 1,000 logistic regressions (500 x 10) by `fit_many`, after a first slice that compiles;
- schools: 1,000 hierarchies of 5 to 30 groups, padded to 30 with a mask;
- conjugate: 2,000 means with known posteriors: are the z-scores of means and sds what they should be, is a posterior that says
  `converged` ever wrong?
- kills: 10,000 such means into a folder, by a process that is killed twice at random and started again: is each there once, and
  is it what a process that nobody disturbs gives?
- nuts: NumPyro's NUTS, 4 x (1000 + 1000), on some of the regressions, one after the other, compiled once.

CPU seconds are of this process and, with ``--workers``, of its workers. Each part is added to ``benchmarks/results/many.jsonl``.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from pyro_dft.errors import FidelityWarning
from pyro_dft.many.fitting import fit_slice
from pyro_dft.many.padding import sizes_of
from pyro_dft.many.results import load_many
from pyro_dft.many.run import DEFAULTS
from pyro_dft.settings import Settings

RESULTS = Path(__file__).resolve().parent / "results" / "many.jsonl"
COUNTS = {"logistic": 1000, "schools": 1000, "conjugate": 2000, "kills": 10_000, "nuts": 20}
ROWS, COLUMNS = 500, 10
GROUPS = (5, 30)


def _ppl(backend: str) -> Any:
    if backend == "numpyro":
        import numpyro as ppl
    else:
        import pyro as ppl
    return ppl


def logistic(x: Any, y: Any, *, backend: str) -> None:
    """A logistic regression."""
    ppl = _ppl(backend)
    dist = ppl.distributions
    w = ppl.sample("w", dist.Normal(0.0, 2.0).expand([x.shape[-1]]).to_event(1))
    with ppl.plate("row", len(y)):
        ppl.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def schools(y: Any, error: Any, mask: Any, *, backend: str) -> None:
    """Eight schools, and other numbers of them, centred as they are written."""
    ppl = _ppl(backend)
    dist = ppl.distributions
    mu, tau = ppl.sample("mu", dist.Normal(0.0, 5.0)), ppl.sample("tau", dist.HalfNormal(5.0))
    with ppl.plate("school", len(y)):
        theta = ppl.sample("theta", dist.Normal(mu, tau))
        ppl.sample("y", dist.Normal(theta, error).mask(mask), obs=y)


def conjugate(y: Any, *, backend: str) -> None:
    """A mean with a posterior in closed form."""
    ppl = _ppl(backend)
    dist = ppl.distributions
    mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
    with ppl.plate("row", len(y)):
        ppl.sample("y", dist.Normal(mu, 1.0), obs=y)


MODELS = {"logistic": logistic, "schools": schools, "conjugate": conjugate}


def data_of(name: str, count: int, seed: int = 0) -> Any:
    """Data sets, as `fit_many` takes them."""
    rng = np.random.default_rng(seed)
    if name == "conjugate":
        return rng.normal(rng.normal(0.0, 10.0, (count, 1)), 1.0, (count, 8)).astype(np.float32)
    if name == "schools":
        out = []
        for n in rng.integers(GROUPS[0], GROUPS[1] + 1, count):
            error = rng.uniform(3.0, 10.0, n)
            theta = rng.normal(rng.normal(0.0, 5.0), abs(rng.normal(0.0, 5.0)), n)
            out.append((rng.normal(theta, error).astype(np.float32), error.astype(np.float32)))
        return out
    x = rng.normal(size=(count, ROWS, COLUMNS)).astype(np.float32)
    w = rng.normal(size=(count, COLUMNS, 1))
    y = rng.random((count, ROWS)) < 1 / (1 + np.exp(-(x @ w)[..., 0]))
    return x, y.astype(np.float32)


def _door(backend: str) -> Any:
    """`fit_many` of a front door."""
    if backend == "numpyro":
        from pyro_dft.numpyro import fit_many
    else:
        from pyro_dft import fit_many
    return fit_many


def cpu_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(own.ru_utime + own.ru_stime for own in both)


def fitted(name: str, options: argparse.Namespace) -> tuple[Any, dict[str, Any], Any]:
    """Fits, what they cost after a slice that compiles, and the data."""
    fit_many = _door(options.backend)
    model = functools.partial(MODELS[name], backend=options.backend)
    data, how = data_of(name, options.count), {"disable_progbar": True}
    if name == "schools":
        how["mask"] = "mask"
    small = options.slice_size
    first = data[:small] if not isinstance(data, tuple) else tuple(part[:small] for part in data)
    pool = None
    if options.workers > 1:
        pool = ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn"))
    start = time.perf_counter(), cpu_seconds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FidelityWarning)
        if name == "schools" and pool is None:  # padded as they will be, so that nothing is compiled again
            settings = Settings.from_kwargs(**DEFAULTS)
            sets, sizes = [(i, (own, {})) for i, own in enumerate(first)], sizes_of([len(y) for y, _ in data])
            fit_slice(
                options.backend,
                model,
                sets,
                {"settings": settings, "num_chains": 1},
                seed=0,
                mask="mask",
                sizes=sizes,
            )
        else:
            fit_many(model, first, executor=pool, slice_size=max(1, small // options.workers), **how)
        compiled = time.perf_counter(), cpu_seconds()
        fits = fit_many(model, data, executor=pool, slice_size=small, folder=options.folder, **how)
    wall = time.perf_counter() - compiled[0]
    if pool is not None:
        pool.shutdown()
    cost = {
        "compile, CPU s": None if pool else compiled[1] - start[1],
        "CPU s": cpu_seconds() - (start[1] if pool else compiled[1]),
        "wall s": wall,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    return fits, cost, data


def calibration(fits: Any, y: np.ndarray) -> dict[str, Any]:
    """z-scores of means and of log sds of the conjugate posteriors, and how many that converged are off by a quarter of an sd."""
    precision = 0.01 + y.shape[1]
    z, s, wrong = [], [], 0
    for record in fits.records():
        i = record.row
        if record.status != "converged":
            continue
        draws = (record.samples["mu"][0].astype(float) - float(y[i].sum()) / precision) * precision**0.5
        count = min(len(draws), record.report["ensemble"]["ess"])
        z.append(draws.mean() * math.sqrt(count))
        s.append(math.log(draws.std()) * math.sqrt(2 * count))
        wrong += abs(draws.mean()) > 0.25 or abs(math.log(draws.std())) > 0.25
    return {
        "converged": len(z), "converged and wrong": wrong, "mean of z (mean)": float(np.mean(z)),
        "sd of z (mean)": float(np.std(z)), "sd of z (sd)": float(np.std(s)), "KS p of z (mean)": _uniform(z),
        "largest |z|": float(np.abs(z).max()),
    }  # fmt: skip


def by_quadrature(y: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Means, sds, 5 % and 95 % points (4, 2) of mu and log tau of a hierarchy: without theta y ~ N(mu, tau^2 + error^2)."""
    mu, log_tau = np.linspace(-30.0, 30.0, 601)[:, None], np.linspace(-9.0, 4.5, 541)
    tau = np.exp(log_tau)
    log_p = -0.5 * (mu / 5) ** 2 - 0.5 * (tau / 5) ** 2 + log_tau
    for own, sd in zip(y.astype(float), error.astype(float), strict=True):
        variance = tau**2 + sd**2
        log_p = log_p - 0.5 * (own - mu) ** 2 / variance - 0.5 * np.log(variance)
    p = np.exp(log_p - log_p.max())
    out = []
    for x, weight in ((mu[:, 0], p.sum(1)), (log_tau, p.sum(0))):
        weight = weight / weight.sum()
        mean, middles = x @ weight, x + 0.5 * (x[1] - x[0])
        points = np.interp([0.05, 0.95], np.cumsum(weight), middles)
        out.append((mean, math.sqrt(np.square(x - mean) @ weight), *points))
    return np.array(out).T


def against_quadrature(fits: Any, data: list[Any]) -> dict[str, Any]:
    """Hierarchies that converged: errors of means in sds, and what share of the draws is beyond points that 5 % should be beyond.

    Those are wrong whose mean is a quarter of an sd off, or that have less than 1.5 % or more than 10 % beyond such a point.
    """
    off, beyond, wrong = [], [], []
    for record in fits.records():
        if record.status != "converged":
            continue
        mean, sd, low, high = by_quadrature(*data[record.row])
        draws = np.stack([record.samples["mu"][0], np.log(record.samples["tau"][0])], 1).astype(float)
        off.append((draws.mean(0) - mean) / sd)
        beyond.append(np.concatenate([(draws < low).mean(0), (draws > high).mean(0)]))
        if np.abs(off[-1]).max() > 0.25 or beyond[-1].min() < 0.015 or beyond[-1].max() > 0.1:
            wrong.append(record.row)
    return {
        "converged and wrong": wrong, "largest error of a mean, sd": float(np.abs(off).max()),
        "below 5 % and above 95 % points (mu, log tau)": np.mean(beyond, 0).reshape(2, 2).round(4).tolist(),
    }  # fmt: skip


def _uniform(z: list[float]) -> float:
    """P of the Kolmogorov-Smirnov test that standard normal numbers are what they say (its asymptotic distribution)."""
    u = np.sort([NormalDist().cdf(value) for value in z])
    n, rank = len(u), np.arange(len(u))
    distance = max((u - rank / n).max(), ((rank + 1) / n - u).max())
    x = distance * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    return float(min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))))


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Posteriors in a folder, by a process that is killed twice, against some slices by one that is not."""
    folder = Path(options.folder or tempfile.mkdtemp(prefix="kills-"))
    command = [
        sys.executable, "-m", "benchmarks.many", "conjugate", "--backend", options.backend, "--count", str(options.count),
        "--slice-size", str(options.slice_size), "--folder", str(folder),
    ]  # fmt: skip
    slices, start, when = -(-options.count // options.slice_size), cpu_seconds(), []
    for low, high in ((0.1, 0.4), (0.5, 0.9)):
        child = subprocess.Popen(command)
        enough, wait = random.uniform(low, high) * slices, random.uniform(0.0, 5.0)
        while child.poll() is None and len(list(folder.glob("slice-*.safetensors"))) < enough:
            time.sleep(0.2)
        time.sleep(wait)  # somewhere in a slice
        child.kill()
        child.wait()
        when.append(len(list(folder.glob("slice-*.safetensors"))))
    subprocess.run(command, check=True)
    cost = cpu_seconds() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    fits, data = load_many(folder), data_of("conjugate", options.count)
    every = -(-slices // 2)
    part = (random.randrange(every) + 1, every)
    door = _door(options.backend)
    model = functools.partial(conjugate, backend=options.backend)
    calm = door(model, data, slice_size=options.slice_size, part=part, disable_progbar=True)
    off = 0.0
    for own in calm.records():
        assert own.status == fits.diagnostics(own.row)["status"], own.row
        off = max(off, float(np.abs(own.samples["mu"][0] - fits.get_samples(own.row)["mu"]).max()))
    return fits.counts | {
        "killed at slice": when, "CPU s": cost, "CPU s each": cost / options.count, "peak GB": peak,
        "lost": options.count - len(set(fits.indices)), "twice": len(fits) - len(set(fits.indices)),
        "compared": len(calm), "largest difference": off,
    } | calibration(fits, data)  # fmt: skip


def nuts(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds for each regression of NumPyro's NUTS, compiled once, and how many effective draws it gives."""
    import jax
    from arviz import ess
    from numpyro.infer import MCMC, NUTS

    data = data_of("logistic", options.count)
    kernel = NUTS(functools.partial(logistic, backend="numpyro"))
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=1000, num_chains=4, chain_method="sequential", progress_bar=False,
                jit_model_args=True)  # fmt: skip
    mcmc.run(jax.random.key(0), data[0][0], data[1][0])
    start, wall, effective = cpu_seconds(), time.perf_counter(), []
    for i in range(options.count):
        mcmc.run(jax.random.key(i), data[0][i], data[1][i])
        effective.append(float(ess(np.asarray(mcmc.get_samples(True)["w"]).transpose(2, 0, 1)[0])))
    return {
        "CPU s each": (cpu_seconds() - start) / options.count, "wall s each": (time.perf_counter() - wall) / options.count,
        "ess": float(np.median(effective)),
    }  # fmt: skip


def main() -> None:
    """Runs one part, prints it and adds it to the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=list(COUNTS))
    parser.add_argument("--backend", choices=["numpyro", "pyro"], default="numpyro")
    parser.add_argument("--count", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slice-size", type=int, default=100)
    parser.add_argument("--folder", help="where draws go; memory by default")
    parser.add_argument("--keep", action="store_true", help="add the line to the results")
    options = parser.parse_args()
    options.count = options.count or COUNTS[options.what]
    line: dict[str, Any] = {
        "what": options.what,
        "backend": options.backend,
        "posteriors": options.count,
        "workers": options.workers,
    }
    if options.what in ("nuts", "kills"):
        line |= {"nuts": nuts, "kills": kills}[options.what](options)
    else:
        fits, cost, data = fitted(options.what, options)
        line |= fits.counts | cost | {"CPU s each": cost["CPU s"] / options.count}
        records = list(fits.records()) if options.count <= 2000 else []
        effective = [(record.report.get("ensemble") or {}).get("ess") for record in records]
        line["ess"] = float(np.median([own for own in effective if own])) if records else None
        if options.what == "conjugate":
            line |= calibration(fits, data)
        if options.what == "schools":
            line |= against_quadrature(fits, data)
    text = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})
    print(text)
    if options.keep:
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")


if __name__ == "__main__":
    main()
