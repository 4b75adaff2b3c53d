"""The ten two-dimensional densities of the paper's Tables 1 and 2, for jax and for torch, with exact draws.

The paper's own formulas are known for the donut only, and that at second hand; the others are the customary ones of
this literature. Each is stated in `Toy.formula`, which the pages print.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.geometry import densities, draws
from benchmarks.geometry.target import Target
from benchmarks.geometry.targets import TARGETS as GEOMETRY
from benchmarks.paper import planar

SCALES = np.array([1.0, 0.1])
CENTRES = np.array([[-2.0, 0.0], [2.0, 0.0]])
WALL_TEXT = "wall(z1) = (max(|z1| - 4, 0) / 0.2)^2 / 2"
W1, W2, W3 = "sin(pi z1 / 2)", "3 exp(-((z1 - 1) / 0.6)^2 / 2)", "3 / (1 + exp(-(z1 - 1) / 0.3))"


@dataclass(frozen=True)
class Toy:
    """One density in the plane.

    Attributes:
        target: jax potential and exact draws.
        torch: The same potential of one point (2,), in torch.
        formula: The potential U in words; the density is proportional to exp(-U).
        window: ((left, right), (bottom, top)) of the picture.
    """

    target: Target
    torch: Callable[[Any], Any]
    formula: str
    window: tuple[tuple[float, float], tuple[float, float]]

    @property
    def name(self) -> str:
        """Key on the command line."""
        return self.target.name

    def potential(self, x: Any) -> Any:
        """U of one point (2,), in jax."""
        assert self.target.potential is not None
        return self.target.potential(x, *self.target.parameters)

    def scores(self, draws: np.ndarray) -> np.ndarray:
        """Gradients of the log density, (..., 2) -> (..., 2)."""
        import jax

        flat = jnp.asarray(draws.reshape(-1, 2), jnp.float32)
        found = -np.asarray(jax.vmap(jax.grad(self.potential))(flat), np.float64)
        return found.reshape(draws.shape)

    def bare(self, backend: str = "numpyro") -> dict[str, Any]:
        """Arguments of `DFT`: the bare potential, and the origin to start from.

        Args:
            backend: "numpyro" or "pyro".
        """
        if backend == "numpyro":
            given = self.target.bare()
            assert given is not None
            return given
        import torch

        return {"potential_fn": lambda v: self.torch(v["x"]), "initial_params": {"x": torch.zeros(2)}}


# In torch; those that are plain arithmetic are shared.


def _gaussian(x: Any) -> Any:
    import torch

    return 0.5 * (x / torch.tensor(SCALES, dtype=x.dtype)).square().sum()


def _mixture(x: Any) -> Any:
    import torch

    squares = (x - torch.tensor(CENTRES, dtype=x.dtype)).square().sum(-1)
    return math.log(2) - torch.logsumexp(-0.5 * squares, 0)


def _donut(x: Any) -> Any:
    import torch

    return (torch.sqrt(x.square().sum()) - densities.RADIUS).square() / densities.VARIANCE


def _squiggle(x: Any) -> Any:
    from benchmarks.flags import posteriors

    return posteriors.squiggle().problem["potential_fn"]({"x": x})


def _funnel(x: Any) -> Any:
    from benchmarks.flags import posteriors

    return posteriors.funnel(2).problem["potential_fn"]({"x": x})


def _torch_planar(potential: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    def call(x: Any) -> Any:
        import torch

        return potential(x, torch)

    return call


def _planar(index: int, what: str, formula: str, bottom: float, top: float) -> Toy:
    potential, draws = getattr(planar, f"u{index}"), getattr(planar, f"u{index}_draws")
    target = Target(f"planar{index}", what, 2, draws, partial(potential, m=jnp))
    return Toy(
        target, _torch_planar(potential), f"{formula} + wall(z1), {WALL_TEXT}", ((-5, 5), (bottom, top))
    )


def _ridges(sd_1: str, shift: str, sd_2: str) -> str:
    up = f"exp(-((z2 - {W1}) / {sd_1})^2 / 2)"
    return f"-log({up} + exp(-((z2 - {W1} + {shift}) / {sd_2})^2 / 2))"


TOYS: dict[str, Toy] = {
    t.name: t
    for t in (
        Toy(
            Target(
                "gaussian", "unequal scales", 2, draws.gaussian(np.diag(SCALES)), densities.gaussian,
                parameters=(np.diag(1 / SCALES),),
            ),
            _gaussian, "x1^2 / 2 + (x2 / 0.1)^2 / 2", ((-3.2, 3.2), (-0.6, 0.6)),
        ),
        Toy(
            Target(
                "mixture", "two modes", 2, draws.mixture(CENTRES, np.array([0.5, 0.5]), 1.0),
                densities.mixture, parameters=(CENTRES, np.log([0.5, 0.5]), np.array(1.0)),
            ),
            _mixture, "-log(exp(-|x - m|^2 / 2) + exp(-|x + m|^2 / 2)), m = (2, 0)", ((-5.2, 5.2), (-3.5, 3.5)),
        ),
        Toy(GEOMETRY["donut"], _donut, "(|x| - 2.6)^2 / 0.033", ((-3.4, 3.4), (-3.4, 3.4))),
        Toy(
            GEOMETRY["rosenbrock"], densities.rosenbrock, "((1 - x1)^2 + 100 (x2 - x1^2)^2) / 20",
            ((-9, 11), (-6, 80)),
        ),
        Toy(
            Target(
                "funnel", "neck and mouth", 2, draws.funnel(2), densities.funnel,
                features=densities.funnel_features, feature_names=("v", "asinh x2"),
            ),
            _funnel, "x1^2 / 18 + x1 / 2 + x2^2 exp(-x1) / 2: x1 ~ N(0, 3^2), x2 ~ N(0, exp(x1))", ((-10, 10), (-20, 20)),
        ),
        Toy(
            GEOMETRY["squiggle"], _squiggle, "x1^2 / 10 + (x2 + sin(2 x1))^2 / 0.5", ((-7, 7), (-3.2, 3.2)),
        ),
        _planar(
            1, "two arcs",
            "((|z| - 2) / 0.4)^2 / 2 - log(exp(-((z1 - 2) / 0.6)^2 / 2) + exp(-((z1 + 2) / 0.6)^2 / 2))", -3, 3,
        ),
        _planar(2, "a wave", f"((z2 - {W1}) / 0.4)^2 / 2", -3, 3),
        _planar(3, "a wave in two that joins", _ridges("0.35", W2, "0.35"), -4.5, 3),
        _planar(4, "a wave in two that parts", _ridges("0.4", W3, "0.35"), -6, 3),
    )
}  # fmt: skip
