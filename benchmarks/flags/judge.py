"""One fit: its true errors, whether that makes it good or bad, and what its diagnostics say."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.flags.cases import Case
from benchmarks.flags.posteriors import Posterior
from benchmarks.metrics import unconstrained
from pyro_dft import DFT
from pyro_dft.experimental import grouped

DRAWS, TRUE_DRAWS = 10_000, 100_000
# A fit is good when all errors are within the first limits, bad when one passes the second; sds.
GOOD_MEAN, GOOD_RATIO = 0.1, 1.1
BAD_MEAN, BAD_RATIO = 0.2, 1.25
# A mode is missing when it holds less than this share of what it should.
MISSING = 0.1

Row = dict[str, Any]


def fit(case: Case, posterior: Posterior, seed: int) -> DFT:
    """Fits as the case says, through the public interface."""
    problem = dict(posterior.problem)
    if case.interrupt is not None:
        problem["potential_fn"] = _interrupted(problem["potential_fn"], case.interrupt)
    options = {"seed": seed, "disable_progbar": True, **case.settings}
    dft = DFT(**problem, **grouped(options))
    if case.steps is None:
        dft.run(*posterior.args)
    for _ in range(case.steps or 0):
        dft.step(*posterior.args)
    return dft


def _interrupted(potential: Callable[[Any], Any], at: int) -> Callable[[Any], Any]:
    calls = 0

    def wrapped(values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return potential(values)

    return wrapped


def errors(draws: np.ndarray, posterior: Posterior, seed: int = 0) -> Row:
    """Worst errors of draws (n, d) against the truth, in its sds, and what that makes the fit."""
    keep = np.isfinite(draws).all(1)
    if posterior.draw is None or keep.mean() < 0.9:
        return {"fit": "bad"}
    truth = posterior.draw(np.random.default_rng(seed), TRUE_DRAWS)
    missing = _missing_modes(draws[keep], truth, posterior.centres)
    features = posterior.features or (lambda x: x)
    x, y = features(draws[keep]), features(truth)
    qx, qy = (np.quantile(v, [0.05, 0.5, 0.95], axis=0) for v in (x, y))
    if posterior.quantiles_only:
        location, ratio = qx[1] - qy[1], (qx[2] - qx[0]) / (qy[2] - qy[0])
        sd = np.subtract(*np.quantile(y, [0.84, 0.16], axis=0)) / 2
    else:
        location, ratio, sd = x.mean(0) - y.mean(0), x.std(0) / y.std(0), y.std(0)
    row: Row = {
        "worst_mean": float(np.abs(location / sd).max()),
        "sd_low": float(ratio.min()),
        "sd_high": float(ratio.max()),
        "worst_quantile": float((np.abs(qx - qy) / sd).max()),
        "missing_modes": missing,
    }
    spread = max(row["sd_high"], 1 / max(row["sd_low"], 1e-300))
    if row["worst_mean"] > BAD_MEAN or spread > BAD_RATIO or missing:
        row["fit"] = "bad"
    elif row["worst_mean"] <= GOOD_MEAN and spread <= GOOD_RATIO:
        row["fit"] = "good"
    else:
        row["fit"] = "between"
    return row


def _missing_modes(draws: np.ndarray, truth: np.ndarray, centres: np.ndarray | None) -> int:
    if centres is None:
        return 0

    def shares(x: np.ndarray) -> np.ndarray:
        nearest = ((x[:, None] - centres) ** 2).sum(-1).argmin(1)
        return np.bincount(nearest, minlength=len(centres)) / len(x)

    return int((shares(draws) < MISSING * shares(truth)).sum())


def make_row(case: Case, seed: int = 0, draws: int = DRAWS, **overrides: Any) -> Row:
    """Fits a case and returns its row of the table; `overrides` replace its settings."""
    case = replace(case, settings={**case.settings, **overrides})
    posterior = case.posterior()
    torch.manual_seed(seed)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the fit warns of is in its row
        dft = fit(case, posterior, seed)
        served = unconstrained(dft, draws // dft.num_chains)
    said = dft.diagnostics().to_json()
    raw, refined, optima = said["drift_raw"], said["drift_refined"], said["optima"] or {}
    one_objective = isinstance(said["objective"], str)
    return {
        "case": case.name,
        "made": case.made,
        "what": case.what,
        "seed": seed,
        **errors(served, posterior),
        "status": said["status"],
        "alarms": ", ".join(said["alarms"]),
        "drift_raw": raw["worst"],
        "drift_refined": refined["worst"],
        "gap_raw": _surest(raw["gap_interval"]),
        "gap_refined": _surest(refined["gap_interval"]),
        "r_hat": said["r_hat"],
        "optima": optima.get("count"),
        "divergences": said["divergence_rate"],
        "stuck": said["stuck"],
        "acceptance": said["acceptance"],
        "left": said["left"]["error"],
        "objective": said["objective"] if one_objective else "+".join(sorted(set(said["objective"]))),
        "refine_steps": said["refine_steps"],
        "gradients": float(said["gradient_evaluations"]),
        "seconds": time.process_time() - start,
    }


def _surest(interval: list[float | None]) -> float | None:
    """Smallest size of an effect that its interval allows."""
    low, high = interval
    return None if low is None or high is None else max(low, -high, 0.0)
