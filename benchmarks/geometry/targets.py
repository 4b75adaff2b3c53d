"""The targets by name."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.flags.posteriors import EIGHT, hierarchy_draws
from benchmarks.geometry import densities as p
from benchmarks.geometry import draws
from benchmarks.geometry.target import Target
from benchmarks.models import numpyro_models

HUNDRED = (3.0 * np.random.default_rng(5).normal(size=100), np.full(100, 6.0))
HIERARCHY = (("mu", "real"), ("tau", "positive"), ("theta", "real"))
HIERARCHY_NAMES = ("mu", "log tau", *(f"theta[{i}]" for i in range(8)))
FUNNEL_NAMES = ("v", *(f"asinh x[{i}]" for i in range(9)))


def funnel_model() -> None:
    """Neal's funnel as sample statements, which can be non-centred."""
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([9]).to_event(1))


def _gaussian(name: str, kind: str, factor: np.ndarray) -> Target:
    inverse = np.linalg.inv(factor)
    return Target(name, kind, len(factor), draws.gaussian(factor), p.gaussian, parameters=(inverse,))


def _student(name: str, kind: str, d: int, degrees: float, **options: Any) -> Target:
    draw = draws.student(d, degrees)
    return Target(name, kind, d, draw, p.student, parameters=(np.array(degrees),), **options)


def _skewed(d: int) -> Target:
    factor = p.autoregressive(d, 0.7)
    inverse = np.linalg.inv(factor)
    return Target(
        f"skewed{d}",
        "skewed, correlated",
        d,
        draws.log_gamma(factor),
        p.log_gamma,
        parameters=(inverse,),
    )


def _mild(d: int, shape: float) -> Target:
    factor = p.autoregressive(d, 0.7)
    return Target(
        f"mild{d}",
        "a little skewed, correlated",
        d,
        draws.mildly_skewed(factor, shape),
        p.mildly_skewed,
        parameters=(np.linalg.inv(factor), np.array(shape)),
    )


def _mixture(name: str, centres: np.ndarray, weights: list[float], sd: float) -> Target:
    w = np.array(weights)
    return Target(
        name,
        "separate modes",
        centres.shape[1],
        draws.mixture(centres, w, sd),
        p.mixture,
        parameters=(centres, np.log(w), np.array(sd)),
        components=p.mixture_components(centres, w, sd),
    )


def _banana(d: int) -> Target:
    parameters = (np.array(0.5), np.array(2.0))
    return Target("banana", "curved", d, draws.banana(d, 0.5, 2.0), p.banana, parameters=parameters)


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target(
            "funnel", "funnel, bare potential", 10, draws.funnel(10), p.funnel,
            features=p.funnel_features, feature_names=FUNNEL_NAMES,
        ),
        Target(
            "funnel_model", "the same as a model", 10, draws.funnel(10), model=funnel_model,
            sites=(("v", "real"), ("x", "real")), features=p.funnel_features, feature_names=FUNNEL_NAMES,
        ),
        Target(
            "schools", "eight schools centred, bare potential", 10, hierarchy_draws(*EIGHT, True),
            p.centred_hierarchy, parameters=EIGHT, feature_names=HIERARCHY_NAMES,
        ),
        Target(
            "schools_model", "the same as a model", 10, hierarchy_draws(*EIGHT, True),
            model=numpyro_models.eight_schools_centered, parameters=EIGHT, sites=HIERARCHY, feature_names=HIERARCHY_NAMES,
        ),
        _student("student5", "heavy tails, 5 d.f.", 5, 5.0),
        _student("student3", "heavy tails, 3 d.f.", 5, 3.0),
        _student("cauchy", "no moments", 3, 1.0, moments=False),
        _gaussian("correlated10", "condition number 1e6", p.rotated(10, 1e6)),
        _gaussian("correlated50", "condition number 1e6", p.rotated(50, 1e6)),
        _gaussian("scales", "sds from 1e-3 to 1e3", p.badly_scaled(10)),
        _banana(5),
        Target("rosenbrock", "curved, narrow", 2, draws.rosenbrock, p.rosenbrock),
        Target("double_bend", "bent twice", 2, draws.double_bend, p.double_bend),
        Target("squiggle", "bent many times", 2, draws.squiggle, p.squiggle),
        Target(
            "donut", "thin ring", 2, draws.donut, p.donut,
            features=lambda x: np.column_stack([x, np.linalg.norm(x, axis=1)]), feature_names=("x[0]", "x[1]", "radius"),
        ),
        _skewed(10),
        _gaussian("gaussian100", "100 dimensions", p.rotated(100, 1e2)),
        _gaussian("gaussian200", "200 dimensions", p.rotated(200, 1e2)),
        _mild(50, 10.0),
        _skewed(50),
        _skewed(100),
        Target(
            "hierarchy102", "100 groups, non-centred", 102, hierarchy_draws(*HUNDRED, False),
            model=numpyro_models.eight_schools_noncentered, parameters=HUNDRED,
            sites=(("mu", "real"), ("tau", "positive"), ("theta_trans", "real")),
        ),
        _mixture("three_modes", p.triangle(8, 6.0), [0.2, 0.3, 0.5], 1.0),
        _mixture("four_modes", 3.0 * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]), [0.1, 0.2, 0.3, 0.4], 0.7),
        Target(
            "two_bananas", "separate skewed modes", 2, draws.two_bananas, p.two_bananas,
            components=p.two_bananas_components,
        ),
    )
}  # fmt: skip
