"""One random posterior: what is fitted in either framework, and its exact draws."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.hostile.arrays import Array, namespace

Draw = Callable[[np.random.Generator, int], Array]
# U(m, x, parameters): minus the log density up to a constant of points x (..., d), with the functions `m` of a framework.
Potential = Callable[[Any, Any, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Posterior:
    """What is fitted, and what the right answer is.

    Attributes:
        what: In words, for the table.
        dim: Number of unconstrained coordinates.
        draw: (rng, n) -> exact unconstrained draws (n, dim), sites in sorted order.
        potential: Of a bare density; None where there is a model.
        parameters: Arrays that the potential reads.
        model: Name of a function in `models`; None where there is a potential.
        arguments: Arrays that the model takes.
    """

    what: str
    dim: int
    draw: Draw
    potential: Potential | None = None
    parameters: Mapping[str, Array] = field(default_factory=dict)
    model: str | None = None
    arguments: tuple[Array, ...] = ()

    def problem(self, framework: str) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Constructor arguments of `DFT`, and the arguments of its `run`.

        Args:
            framework: "numpyro" or "pyro".
        """
        m = namespace(framework)
        if self.model is not None:
            from benchmarks.hostile import models

            ppl = importlib.import_module(framework)
            arguments = tuple(m.array(a) for a in self.arguments)
            return {"model": models.build(self.model, ppl)}, arguments
        start = {"x": m.array(np.zeros(self.dim))}
        return {"potential_fn": self.bare(framework), "initial_params": start}, ()

    def bare(self, framework: str) -> Callable[[Mapping[str, Any]], Any]:
        """The potential of {"x": (..., dim)} in a framework."""
        potential, m = self.potential, namespace(framework)
        assert potential is not None
        # An array even of a single number, so that jax keeps it as data and posteriors of one shape share a program.
        parameters = {name: m.array(np.atleast_1d(value)) for name, value in self.parameters.items()}
        return lambda values: potential(m, values["x"], parameters)


def linear_map(rng: np.random.Generator, d: int, condition: float, rotate: bool) -> Array:
    """A random matrix (d, d) of this condition number.

    Args:
        rng: Random numbers.
        d: Rows and columns.
        condition: Largest over smallest of its singular values, whose geometric mean is one.
        rotate: Whether to turn its axes; else it is diagonal.
    """
    sizes = condition ** rng.permutation(np.linspace(-0.5, 0.5, d)) if d > 1 else np.ones(1)
    if not rotate:
        return np.diag(sizes)
    return rotation(rng, d) @ np.diag(sizes) @ rotation(rng, d)


def rotation(rng: np.random.Generator, d: int) -> Array:
    """A random orthogonal matrix (d, d)."""
    q, r = np.linalg.qr(rng.normal(size=(d, d)))
    return q * np.sign(np.diag(r))


def moved(what: str, draw: Draw, potential: Potential, parameters: Mapping[str, Array], factor: Array,
          centre: Array) -> Posterior:  # fmt: skip
    """The density of centre + factor t, where t has a potential and exact draws of its own.

    Args:
        what: In words.
        draw: Exact draws of t.
        potential: Of t.
        parameters: Arrays that the potential of t reads.
        factor: (d, d), invertible.
        centre: (d,).
    """
    inverse = np.linalg.inv(factor)

    def outer(m: Any, x: Any, p: Mapping[str, Any]) -> Any:
        return potential(m, (x - p["centre"]) @ p["inverse_t"], p)

    def draws(rng: np.random.Generator, n: int) -> Array:
        return centre + draw(rng, n) @ factor.T

    everything = {**parameters, "centre": centre, "inverse_t": inverse.T}
    return Posterior(what, len(centre), draws, outer, everything)
