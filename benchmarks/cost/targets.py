"""The posteriors of the cost benchmark: their data, their models in either framework, and what is known of the answer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cost import data, exact

BOTH = ("numpyro", "pyro")
HIGH, ROWS, DEAR, BENT = "high dimension", "rows", "expensive", "joined modes and bends"


@dataclass(frozen=True)
class Target:
    """One posterior; has what `benchmarks.models.case.Case` asks for.

    Attributes:
        name: Key on the command line.
        group: Which block of the table it belongs to.
        model: Name of its function in ``numpyro_models`` and ``pyro_models``.
        make: Its data.
        frameworks: Those that it is written for.
        exact: Independent draws {site: (n, *shape)} from data, number and generator, where they can be had.
        reference: Warm-up and draws of each of the four long chains that make the reference where there is no `exact`.
        source: Where its data come from.
    """

    name: str
    group: str
    model: str
    make: Callable[[], data.Arguments]
    frameworks: tuple[str, ...] = ("numpyro",)
    exact: Callable[[data.Arguments, int, np.random.Generator], dict[str, np.ndarray]] | None = None
    reference: tuple[int, int] = (2_000, 10_000)
    source: str = "simulated"

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The model's positional arguments as NumPy arrays."""
        return tuple(np.asarray(a) for a in self.make())

    def numpyro(self, reference: bool = False) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The NumPyro model and its arguments."""
        import jax.numpy as jnp

        function = getattr(importlib.import_module("benchmarks.cost.numpyro_models"), self.model)
        return function, tuple(jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in self.make())

    def pyro(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The Pyro model and its arguments."""
        import torch

        def tensor(a: Any) -> Any:
            if not isinstance(a, np.ndarray):
                return a
            t = torch.as_tensor(a)
            return t.to(torch.get_default_dtype()) if t.is_floating_point() else t

        function = getattr(importlib.import_module("benchmarks.cost.pyro_models"), self.model)
        return function, tuple(tensor(a) for a in self.make())

    def sites(self, framework: str) -> dict[str, int]:
        """Continuous latent sites in sorted order, and how many unconstrained coordinates each has."""
        model, args = self.numpyro() if framework == "numpyro" else self.pyro()
        return (_numpyro_sites if framework == "numpyro" else _pyro_sites)(model, args)

    def flat(self, samples: Mapping[str, Any], framework: str = "numpyro") -> np.ndarray:
        """Draws (n, D) on the model's own scale, float64: its sites in sorted order, each raveled."""
        columns = []
        for name in self.sites(framework):
            value = np.asarray(samples[name], dtype=np.float64)
            columns.append(value.reshape(len(value), -1))
        return np.concatenate(columns, axis=1)


def _numpyro_sites(model: Callable[..., None], args: tuple[Any, ...]) -> dict[str, int]:
    import jax
    from numpyro import handlers
    from numpyro.distributions import biject_to

    found = {}

    def look(key: Any) -> Any:
        trace = handlers.trace(handlers.seed(model, key)).get_trace(*args)
        for name, site in sorted(trace.items()):
            if site["type"] == "sample" and not site["is_observed"] and not site["fn"].support.is_discrete:
                shape = biject_to(site["fn"].support).inverse_shape(site["fn"].shape())
                found[name] = int(np.prod(shape))
        return key

    jax.eval_shape(look, jax.random.PRNGKey(0))  # shapes alone: nothing is compiled
    return found


def _pyro_sites(model: Callable[..., None], args: tuple[Any, ...]) -> dict[str, int]:
    from pyro import poutine
    from pyro.poutine.util import site_is_subsample
    from torch.distributions import biject_to

    found = {}
    for name, site in sorted(poutine.trace(model).get_trace(*args).nodes.items()):
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        if not site["fn"].support.is_discrete:
            shape = biject_to(site["fn"].support).inverse_shape(site["fn"].shape())
            found[name] = int(np.prod(shape))
    return found


def groups_of(rows: int, number: int, group: str = HIGH, name: str = "") -> Target:
    """Logistic regression with so many groups: number + 3 parameters."""
    long = (2_000, 10_000) if number <= 500 else (1_000, 2_500)
    return Target(
        name or f"groups_{number}", group, "groups", partial(data.groups, rows, number), reference=long
    )


def regression_of(rows: int, group: str = ROWS, name: str = "") -> Target:
    """Linear regression with 3 parameters on so many rows; the answer is known exactly."""
    make = partial(data.regression, rows)
    return Target(name or f"rows_{rows}", group, "regression", make, exact=exact.regression)


def _all() -> tuple[Target, ...]:
    high = partial(Target, group=HIGH)
    dear = partial(Target, group=DEAR)
    captures = [
        dear(f"cjs_{i}", model=f"cjs_{i}", make=data.captures, frameworks=BOTH, reference=(2_000, 5_000))
        for i in range(1, 6)
    ]
    return (
        groups_of(2_000, 100),
        groups_of(5_000, 500),
        groups_of(50_000, 5_000),
        high("irt_200", model="item_response", make=partial(data.item_response, 200, 40)),
        high("irt_2000", model="item_response", make=partial(data.item_response, 2_000, 40), reference=(1_000, 2_500)),
        high("logistic_500", model="logistic", make=partial(data.logistic, 2_000, 500), reference=(1_000, 5_000)),
        high(
            "stochastic_volatility", model="stochastic_volatility", make=data.returns, reference=(1_000, 2_500),
            source="S&P 500 from 2006 on (github.com/pyro-ppl/datasets), or simulated from the model without the file",
        ),
        high("random_walk", model="random_walk", make=partial(data.random_walk, 20, 50), reference=(1_000, 5_000)),
        high("gp_latent", model="gp_latent", make=partial(data.counts_on_a_line, 200), reference=(1_000, 2_500)),
        *(regression_of(rows) for rows in (1_000, 10_000, 100_000, 1_000_000)),
        Target("network", BENT, "network", partial(data.wave, 100)),
        Target("factors", BENT, "factors", partial(data.ratings, 20, 15)),
        Target("noise_curve", BENT, "noise_curve", partial(data.bump, 133)),
        Target("flips", ROWS, "flips", partial(data.flips, 1_000), BOTH, exact.flips),
        dear("hmm", model="hmm", make=partial(data.hmm, 100, 500), reference=(1_000, 5_000)),
        dear("hmm_enumerated", model="hmm_enumerated", make=partial(data.short_chains, 60, 20, 10), frameworks=BOTH),
        dear("imputation", model="imputation", make=partial(data.imputation, 891, 177)),
        *captures,
        dear("lotka_volterra", model="lotka_volterra", make=partial(data.predators, 20), reference=(1_000, 5_000)),
        dear("gp", model="gp", make=partial(data.curve, 50), frameworks=BOTH),
        dear("gmm", model="gmm", make=partial(data.two_humps, 200), frameworks=BOTH),
        dear("sir", model="sir", make=partial(data.outbreak, 12, 1_000), frameworks=BOTH),
        dear("local_level", model="local_level", make=partial(data.level, 100), frameworks=BOTH),
    )  # fmt: skip


TARGETS = {target.name: target for target in _all()}

# Sizes of the scaling plot: parameters of the regression in groups (20 rows each), rows of the one with 3 parameters.
DIMENSIONS = (10, 30, 100, 300, 1_000, 3_000, 10_000)
ROWS_SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)


def scaled(name: str) -> Target:
    """A target of the scaling plot, ``scaled_d_300`` or ``scaled_rows_1000``.

    Raises:
        KeyError: another name.
    """
    kind, _, size = name.removeprefix("scaled_").partition("_")
    if not (name.startswith("scaled_") and kind in ("d", "rows") and size.isdigit()):
        raise KeyError(name)
    if kind == "d":
        return groups_of(20 * (int(size) - 3), int(size) - 3, "scaling", name)
    return regression_of(int(size), "scaling", name)
