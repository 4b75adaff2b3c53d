"""The numbers that `pyro_dft.judging.verdict` judges a fit by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_dft.judging import verdict
from pyro_dft.judging.rhat import rhat
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.fit import Fit, Problem
from pyro_dft.recipe.missed import ends
from pyro_dft.settings import Settings


def facts(
    engine: Engine,
    fit: Fit,
    problems: Sequence[Problem],
    *,
    own: Any,
    used: Any,
    served: Any,
    settings: Settings,
    refine_steps: int,
) -> dict[str, Any]:
    """Measured facts of a fit, under the keys of `pyro_dft.judging.verdict.Diagnostics` (those on its cost excepted).

    Args:
        engine: Of the targets.
        fit: The measured fit.
        problems: All targets of the fit.
        own: The posterior in the model's own coordinates, by which coordinates are named.
        used: The posterior in the coordinates that the sampler was trained in.
        served: Kept draws, (C, n, d), in the sampler's coordinates.
        settings: Of the fit.
        refine_steps: HMC transitions that served draws get.
    """
    measured = fit.measurement
    assert measured is not None
    chains, count, dim = served.shape
    names = own.layout.coordinate_names()
    target = problems[fit.problem].target
    flat = served.reshape(-1, dim)
    original = engine.numpy(used.compared_coordinates(flat))
    spread = original.std(0)
    states, worth = original.reshape(chains, count, dim), count
    if measured.ensemble is not None and fit.modes is None:
        # All states of the chains, not only those that are kept, and their number of effective draws.
        states = measured.ensemble.judged.points.reshape(chains, -1, dim)
        worth = max(3, int(measured.ensemble.judged.effective / chains))
    gaps = np.asarray(fit.fisher_gap)
    same = len(set(fit.objective)) == 1
    return {
        "objective": fit.objective[0] if same else list(fit.objective),
        "coordinates": [site.name for site in used.layout.sites if site != own.layout[site.name]],
        "refine_steps": refine_steps,
        "renewed": measured.renewed,
        **verdict.drift_facts(
            measured.drift_raw,
            measured.drift_refined,
            names,
            at_limit=measured.at_limit,
            chains=measured.ensemble is not None,
        ),
        "joint": None if measured.joint is None else float(measured.joint.sure.max()),
        "ensemble": None if measured.ensemble is None else measured.ensemble.entry(),
        "r_hat": float(np.nanmax(rhat(states))) if chains > 1 else None,
        "r_hat_limit": verdict.rhat_limit(chains, worth, dim) if chains > 1 else None,
        "preconditioned": settings.preconditioned,
        "optima": _optima(engine, fit, target, used, flat),
        "cut": fit.cut,
        "surrogate_error": fit.surrogate_error,
        "modes": None if fit.modes is None else fit.modes.entry(),
        "fisher_gap": None if np.isnan(gaps).all() else float(np.nanmean(gaps)),
        "movement": {name: values.tolist() for name, values in fit.movement.items()},
        "acceptance": float(measured.acceptance.min()),
        "divergence_rate": float(measured.divergence_rate),
        "careful_divergence_rate": float(measured.careful_divergence_rate),
        "drift_careful": verdict.careful_entry(measured.drift_careful, names),
        "stuck": float(measured.stuck),
        "noise": float(measured.noise),
        "expected_stuck": float(((1 - measured.acceptance) ** measured.steps).mean()),
        "spread": float(spread.max()),
        "widest": names[int(spread.argmax())],
        "num_draws": chains * count,
        "nonfinite_evaluations": sum(problem.target.nonfinite_evaluations for problem in problems),
        "vectorised": target.vectorised,
    }


def _optima(engine: Engine, fit: Fit, target: Any, used: Any, served: Any) -> dict[str, Any] | None:
    """The optima that restarts of the Gaussian ended at, and how the served draws (n, d) cover them."""
    measured = fit.measurement
    assert measured is not None
    kept = (lambda draws: draws) if fit.modes is None else fit.modes.kept

    def ended(restart: int) -> np.ndarray | None:
        found = ends(engine, target, fit, restart)
        return None if found is None else used.folded(found)

    mean, scale, elbo, error = (
        np.asarray(getattr(fit.optima, name), float) for name in ("mean", "scale", "elbo", "elbo_error")
    )
    return verdict.optima_entry(
        verdict.Restarts(used.folded(mean), scale, elbo, error),
        verdict.Served(
            used.folded(engine.numpy(served)),
            engine.numpy(kept(measured.refined)),
            engine.numpy(kept(measured.log_density)),
        ),
        density=lambda x: engine.numpy(target.evaluate(engine.native(target, x[None]))[0][0]),
        ends=ended,
        passed=() if measured.ensemble is None else measured.ensemble.passed(fit.shares),
    )
