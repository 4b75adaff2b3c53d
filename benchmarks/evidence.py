"""Evidence estimates against the truth: ``python -m benchmarks.evidence [--cases a,b] [--framework pyro|numpyro]``.

Fits posteriors whose log evidence is known (conjugate regression, a density with a known constant, or a
one-dimensional integral), by the default settings and with the network trained in any case, and holds
``importance_sampling()`` of each fit against it. Prints a table and writes ``benchmarks/results/evidence.md``.
Finished rows are kept in ``evidence.json`` beside it and are not run again, unless ``--fresh`` asks for it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import chosen
from benchmarks.table import piped, stored

RESULTS = Path(__file__).resolve().parent / "results" / "evidence"
FRAMEWORKS = ("pyro", "numpyro")
FITS: dict[str, dict[str, Any]] = {"default": {}, "always": {"train": "always"}}
DRAWS = 4000
LOG_2PI = math.log(2 * math.pi)
SCHOOLS = (np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18]))

Row = dict[str, Any]


@dataclass(frozen=True)
class Tools:
    """What the posteriors below need of a framework; both have the same names for it."""

    ppl: Any
    dist: Any
    array: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]


def tools(framework: str) -> Tools:
    """The framework, in single precision as its users run it."""
    if framework == "pyro":
        import pyro
        import torch

        torch.set_num_threads(1)
        return Tools(
            pyro,
            pyro.distributions,
            lambda v: torch.as_tensor(np.asarray(v, np.float32)),
            torch.exp,
            torch.log,
        )
    import jax.numpy as jnp
    import numpyro

    return Tools(
        numpyro, numpyro.distributions, lambda v: jnp.asarray(np.asarray(v, np.float32)), jnp.exp, jnp.log
    )


@dataclass(frozen=True)
class Case:
    """A posterior with a known log evidence.

    Attributes:
        what: In a few words.
        dim: Unconstrained coordinates.
        log_evidence: The truth, nats.
        model: Makes a model, or None.
        potential: Makes a potential of one vector x (d,), or None.
        args: Arguments of the model, NumPy.
        options: Of `DFT`.
    """

    what: str
    dim: int
    log_evidence: float
    model: Callable[[Tools], Callable[..., None]] | None = None
    potential: Callable[[Tools], Callable[[Any], Any]] | None = None
    args: tuple[np.ndarray, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def dft(self, framework: str, seed: int, **options: Any) -> tuple[Any, Callable[[], None]]:
        """An untrained sampler, and the call that trains it."""
        t = tools(framework)
        if self.model is not None:
            problem: dict[str, Any] = {"model": self.model(t)}
        else:
            assert self.potential is not None
            potential, start = self.potential(t), {"x": t.array(np.zeros(self.dim))}
            problem = {"potential_fn": lambda values: potential(values["x"]), "initial_params": start}
        args = [t.array(value) for value in self.args]
        options = {"seed": seed, "disable_progbar": True, **self.options, **options}
        if framework == "pyro":
            import torch

            from pyro_dft import DFT

            torch.manual_seed(seed)
            dft = DFT(**problem, **options)
            return dft, lambda: dft.run(*args)
        import jax

        from pyro_dft.numpyro import DFT as NumPyroDFT

        other = NumPyroDFT(**problem, **options)
        return other, lambda: other.run(jax.random.key(seed), *args)


def gaussian_log_density(y: np.ndarray, covariance: np.ndarray) -> float:
    """Log density of N(0, covariance) at y."""
    chol = np.linalg.cholesky(covariance)
    return float(
        -0.5 * (np.linalg.solve(chol, y) ** 2).sum() - np.log(np.diag(chol)).sum() - len(y) / 2 * LOG_2PI
    )


def regression(d: int, n: int = 200) -> Case:
    """Linear regression with known noise 1 and N(0, 1) coefficients: conjugate."""
    rng = np.random.default_rng(d)
    x = (rng.normal(size=(n, d)) + rng.normal(size=(n, 1))).astype(np.float32).astype(float)
    y = (x @ rng.normal(size=d) + rng.normal(size=n)).astype(np.float32).astype(float)

    def model(t: Tools) -> Callable[..., None]:
        def regress(x: Any, y: Any) -> None:
            beta = t.ppl.sample("beta", t.dist.Normal(t.array(np.zeros(d)), 1.0).to_event(1))
            with t.ppl.plate("rows", n):
                t.ppl.sample("y", t.dist.Normal(x @ beta, 1.0), obs=y)

        return regress

    truth = gaussian_log_density(y, np.eye(n) + x @ x.T)
    return Case(f"conjugate regression, {n} rows", d, truth, model=model, args=(x, y))


def schools_evidence() -> float:
    """Eight schools: mu and theta integrated by hand, tau on a grid of its logarithm."""
    y, sigma = SCHOOLS
    log_tau = np.linspace(-15, 12, 20_001)
    tau = np.exp(log_tau)
    prior = np.log(2 / (5 * math.pi)) - np.log1p((tau / 5) ** 2) + log_tau
    covariances = 25 + np.eye(8) * (sigma**2 + tau[:, None, None] ** 2)
    log_p = np.array([gaussian_log_density(y, c) for c in covariances]) + prior
    peak = log_p.max()
    return float(peak + np.log(np.trapezoid(np.exp(log_p - peak), log_tau)))


def schools(centred: bool, **options: Any) -> Case:
    """Rubin's eight schools."""

    def model(t: Tools) -> Callable[..., None]:
        def eight(y: Any, sigma: Any) -> None:
            mu = t.ppl.sample("mu", t.dist.Normal(0.0, 5.0))
            tau = t.ppl.sample("tau", t.dist.HalfCauchy(5.0))
            with t.ppl.plate("schools", 8):
                if centred:
                    theta = t.ppl.sample("theta", t.dist.Normal(mu, tau))
                else:
                    theta = mu + tau * t.ppl.sample("standard", t.dist.Normal(0.0, 1.0))
                t.ppl.sample("y", t.dist.Normal(theta, sigma), obs=y)

        return eight

    what = "eight schools, centred and kept so" if centred else "eight schools, non-centred"
    return Case(what, 10, schools_evidence(), model=model, args=SCHOOLS, options=options)


def banana(d: int, bend: float = 0.5, spread: float = 2.0) -> Case:
    """A bent Gaussian: the bend keeps the volume."""

    def potential(t: Tools) -> Callable[[Any], Any]:
        def u(x: Any) -> Any:
            z = x[0] / spread
            return 0.5 * (z**2 + (x[1] - bend * spread * (z**2 - 1)) ** 2 + (x[2:] ** 2).sum())

        return u

    return Case("banana", d, d / 2 * LOG_2PI + math.log(spread), potential=potential)


def funnel(d: int) -> Case:
    """Neal's funnel; nothing non-centres a bare potential."""

    def potential(t: Tools) -> Callable[[Any], Any]:
        def u(x: Any) -> Any:
            return x[0] ** 2 / 18 + 0.5 * ((x[1:] ** 2).sum() * t.exp(-x[0]) + (d - 1) * x[0])

        return u

    return Case("Neal's funnel", d, d / 2 * LOG_2PI + math.log(3), potential=potential)


def mixture(**options: Any) -> Case:
    """Three separate Gaussians of sd 0.7 in the plane."""
    centres, weights = np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]]), np.array([0.5, 0.3, 0.2])

    def potential(t: Tools) -> Callable[[Any], Any]:
        c, log_w = t.array(centres), t.array(np.log(weights))

        def u(x: Any) -> Any:
            terms = log_w - 0.5 * (((x - c) / 0.7) ** 2).sum(-1)
            peak = terms.max()
            return -peak - t.log(t.exp(terms - peak).sum())

        return u

    what = "three separate modes" + (f", {options['num_chains']} chains" if options else "")
    return Case(what, 2, LOG_2PI + 2 * math.log(0.7), potential=potential, options=options)


CASES = {
    "regression5": regression(5),
    "regression20": regression(20),
    "regression50": regression(50),
    "schools": schools(False),
    "schools-centred": schools(True, reparam="never"),
    "banana5": banana(5),
    "banana20": banana(20),
    "funnel5": funnel(5),
    "mixture": mixture(),
    "mixture-chains": mixture(num_chains=4),
}


def make_row(name: str, fit: str, framework: str, seed: int) -> Row:
    """One fit and its estimate."""
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the row
        dft, train = case.dft(framework, seed, **FITS[fit])
        start = time.process_time()
        train()
        trained = time.process_time()
        result = dft.importance_sampling(DRAWS)
        done = time.process_time()
    report = dft.diagnostics()
    objective = report["objective"]
    return {
        "posterior": case.what,
        "d": case.dim,
        "framework": framework,
        "settings": fit,
        "sampler": objective if isinstance(objective, str) else "+".join(sorted(set(objective))),
        "status": report["status"],
        "truth": case.log_evidence,
        "estimate": result.log_evidence,
        "error": result.log_evidence - case.log_evidence,
        "stated": result.log_evidence_error,
        "k_hat": result.k_hat,
        "reliable": result.reliable,
        "ess_share": result.ess / DRAWS,
        "fit_seconds": trained - start,
        "weigh_seconds": done - trained,
        "seed": seed,
    }


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    columns = {
        "posterior": "{}", "d": "{}", "framework": "{}", "settings": "{}", "sampler": "{}", "status": "{}",
        "truth": "{:.3f}", "estimate": "{:.3f}", "error": "{:+.3f}", "stated": "{:.3f}", "k_hat": "{:.2f}",
        "reliable": "{}", "ess_share": "{:.0%}", "fit_seconds": "{:.1f}", "weigh_seconds": "{:.1f}",
    }  # fmt: skip
    heads = {
        "truth": "log evidence", "stated": "standard error", "k_hat": "k-hat", "ess_share": "ESS share",
        "fit_seconds": "fit, CPU s", "weigh_seconds": "weights, CPU s", "status": "fit is",
    }  # fmt: skip
    lines = [[heads.get(name, name) for name in columns]]
    for row in rows:
        cells = {**row, "reliable": "yes" if row["reliable"] else "no"}
        lines.append([shown.format(cells[name]) for name, shown in columns.items()])
    return piped(lines)


def summary(rows: list[Row]) -> str:
    """What the table comes to, in words."""
    trusted = [r for r in rows if r["reliable"]]
    far = [r for r in trusted if abs(r["error"]) > 3 * r["stated"]]
    named = (
        ", ".join(f"{r['posterior']} ({r['d']}, {r['framework']}, {r['settings']})" for r in far) or "none"
    )
    return (
        f"{DRAWS} raw draws each, single precision. k-hat calls {len(trusted)} of {len(rows)} reliable; of these, "
        f"further from the truth than three standard errors: {len(far)}: {named}."
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated, default all")
    parser.add_argument("--framework", default=",".join(FRAMEWORKS), help="comma-separated, default both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="run rows again that are in the results")
    options = parser.parse_args(arguments)
    options.cases = chosen(parser, options.cases, CASES)
    options.framework = chosen(parser, options.framework, FRAMEWORKS)
    return options


def main(arguments: list[str] | None = None, results: Path = RESULTS) -> None:
    """Run what is asked for and print the table."""
    options = parse(arguments)
    store = results.with_suffix(".json")
    rows: dict[str, Row] = stored(store)
    keys = [(c, fit, framework) for framework in FRAMEWORKS for c in CASES for fit in FITS]
    for name, fit, framework in keys:
        key = f"{name} {fit} {framework}"
        wanted = name in options.cases and framework in options.framework
        if wanted and (options.fresh or rows.get(key, {}).get("seed") != options.seed):
            rows[key] = make_row(name, fit, framework, options.seed)
            store.parent.mkdir(exist_ok=True)
            store.write_text(json.dumps(rows, indent=1))
            print(f"{key}: {rows[key]['error']:+.3f}", flush=True)
    everything = [rows[key] for key in map(" ".join, keys) if key in rows]
    text = f"{markdown(everything)}\n\n{summary(everything)}\n"
    results.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
