"""DFT-NS, KL-NS and Fisher-NS through the public interface: as one `run`, and step by step for the curves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.paper.logistic.course import Course
from benchmarks.paper.logistic.judge import CURVE_DRAWS
from pyro_dft.experimental import grouped
from pyro_dft.recipe.constants import DIFFERENTIATED

# Final draws, raw and refined.
DRAWS = 1000
# Iterations between two marks on a curve.
STRIDE = 75


def _facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a fit said of itself."""
    kept = (
        "status",
        "warnings",
        "objective",
        "refine_steps",
        "coordinates",
        "gradient_evaluations",
        "data_rows",
        "acceptance",
        "phase_seconds",
    )
    facts = {name: report[name] for name in kept if name in report}
    for name in ("drift_raw", "drift_refined"):
        drift = report.get(name)
        if isinstance(drift, Mapping):
            facts[name] = {
                key: float(v) for key, v in drift.items() if isinstance(v, int | float | np.number)
            }
    return facts


def _arrays(samples: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(samples["alpha"]), np.asarray(samples["w"])


def _data(split: Any, backend: str) -> tuple[Any, Any]:
    if backend == "pyro":
        import torch

        return torch.tensor(split.x), torch.tensor(split.y)
    import jax
    import jax.numpy as jnp

    jax.clear_caches()  # compilation is part of the cost
    return jnp.asarray(split.x), jnp.asarray(split.y)


def whole(course: Course, seed: int, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict]:
    """`run` and raw draws, then refined ones.

    Marks: raw draws of the sampler as it stands, by `callback`; raw draws at the end of `run`, and refined ones.

    Settings: ``backend``, ``batch`` (rows of a minibatch, None for all) and ``options`` of `DFT`.
    """
    data, rows = _data(course.split, settings["backend"]), course.split.rows
    course.start()
    dft: Any = None

    def passes() -> float:
        # Without minibatches each evaluation reads all rows.
        cost = dft.parts.backend.evaluations()
        return cost["data_rows"] / rows if settings["batch"] else float(cost["gradient_evaluations"])

    def look(_: Any, draw: Callable[[int], Mapping[str, Any]]) -> None:
        course.mark(passes(), lambda: draw(CURVE_DRAWS)["w"])

    options = {"disable_progbar": True, "callback": look, "callback_every": STRIDE, **settings["options"]}
    batch = {"batch": settings["batch"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict is in the notes
        if settings["backend"] == "pyro":
            from pyro_dft import DFT

            dft = DFT(_pyro_model(), seed=seed, **grouped(options))
            dft.run(*data, **batch)
        else:
            import jax

            from pyro_dft.numpyro import DFT as NumPyroDFT

            dft = NumPyroDFT(_numpyro_model(), **grouped(options))
            dft.run(jax.random.key(seed), *data, **batch)
        raw = _arrays(dft.get_samples(DRAWS, refine_steps=0))
        course.keep(*raw)
        course.mark(passes(), raw[1], thin=False)
        refined = _arrays(dft.get_samples(DRAWS))
        course.mark(passes(), refined[1], thin=False)
    return *refined, _facts(dft.diagnostics())


def stepwise(course: Course, seed: int, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict]:
    """NumPyro's pure functions, with marks on the way; the final draws are raw, or refined where ``adopt`` is set.

    Settings as for `whole`, and ``adopt``: whether the trained state is measured and refined as well.
    """
    import jax

    from pyro_dft.numpyro import DFT

    x, y = _data(course.split, "numpyro")
    course.start()
    dft = DFT(_numpyro_model(), disable_progbar=True, **grouped(settings["options"]))
    key, batch = jax.random.key(seed), settings["batch"]
    plan = dft.settings
    first = plan.experimental.precondition_steps
    state = dft.init(key, x, y, batch=batch)
    total = first + plan.num_steps
    share = (batch or course.split.rows) / course.split.rows
    passes = 0.0
    for i in range(1, total + 1):
        state, loss = dft.update(state, x, y, batch=batch)
        passes += share * _evaluations(plan, i, course.split.x.shape[1] + 1, batch is not None)
        if i % STRIDE == 0 and i < total:
            jax.block_until_ready(loss)
            course.mark(passes, lambda now=state: dft.draw(key, now, CURVE_DRAWS, x, y, batch=batch)["w"][0])
    raw = {name: np.asarray(v)[0] for name, v in dft.draw(key, state, DRAWS, x, y, batch=batch).items()}
    alpha, w = _arrays(raw)
    course.keep(alpha, w)
    course.mark(passes, w, thin=False)
    notes: dict[str, Any] = {}
    if settings.get("adopt"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dft.adopt(state, x, y, batch=batch)
            alpha, w = _arrays(dft.get_samples(DRAWS))
        course.mark(np.nan, w, thin=False)
        notes = _facts(dft.diagnostics())
    return alpha, w, notes


def _evaluations(plan: Any, step: int, dim: int, minibatch: bool) -> int:
    """Evaluations of the score that a step costs, as the library counts them: a Hessian-vector product is two."""
    own = plan.experimental
    if step <= own.precondition_steps:
        return plan.restarts * 2 * max(32, 2 * dim)
    last = step > own.precondition_steps + plan.num_steps * (1 - own.dft_fraction)
    phase = "dft" if plan.objective == "auto" and last else plan.phase
    two = 2 if minibatch else 1
    differentiated = min(DIFFERENTIATED.get(phase, 0), two)
    return 2 * plan.batch_size * (two + 2 * differentiated)


def _numpyro_model() -> Any:
    from benchmarks.paper.logistic.models import numpyro_model

    return numpyro_model


def _pyro_model() -> Any:
    from benchmarks.paper.logistic.models import pyro_model

    return pyro_model
