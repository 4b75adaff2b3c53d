"""Rings, shells and bananas, products of these, turned and stretched at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.hostile.arrays import Array
from benchmarks.hostile.grids import inverse_cdf
from benchmarks.hostile.posterior import Draw, Posterior, linear_map, moved

RING_DIMS = (2, 3, 6)
RING_STYLES = ("ring", "shell", "ring and bananas")
BANANA_DIMS = (2, 4, 8)
BANANA_STYLES = ("bananas", "waves")


def make_ring(rng: np.random.Generator, d: int, style: str) -> Posterior:
    """A ring (two coordinates) or shell (more), times bananas or Gaussians; styles: see `RING_STYLES`."""
    on = min(d, 2 if style.startswith("ring") else int(rng.integers(3, 5)))
    radius, width = 1.0, 1 / rng.uniform(3.0, 15.0)
    p = _bends(rng, d, "bananas" if style == "ring and bananas" else "straight", on)
    p |= {
        "on": (np.arange(d) < on).astype(float),
        "guard": np.zeros(1),
        "radius": np.array(radius),
        "width": np.array(width),
    }
    words = f"{style}, {on}-D, radius over width {radius / width:.1f}"
    return _placed(rng, words, d, p)


def make_bananas(rng: np.random.Generator, d: int, style: str) -> Posterior:
    """Pairs of coordinates, the second bent by the first; styles: see `BANANA_STYLES`."""
    p = _bends(rng, d, style, 0)
    p |= {"on": np.zeros(d), "guard": np.ones(1), "radius": np.array(1.0), "width": np.array(1.0)}
    most = (p["wave"] if style == "waves" else p["square"]).max()
    return _placed(rng, f"{style} of up to {most:.1f}", d, p)


def _bends(rng: np.random.Generator, d: int, style: str, first: int) -> dict[str, Array]:
    """How far coordinate i is bent by the one before, for every other coordinate from `first` on."""
    bent = np.array([i > first and (i - first) % 2 == 1 for i in range(d)], float)
    square = np.where(style == "straight", 0.0, rng.uniform(0.2, 2.0, d) * bent)
    wave = np.where(style == "waves", rng.uniform(0.5, 2.0, d) * bent, 0.0)
    square = np.where(style == "waves", 0.2 * square, square)
    return {
        "before": np.eye(d, k=-1),
        "square": square,
        "wave": wave,
        "frequency": rng.uniform(1.0, 2.5, d),
    }


def _placed(rng: np.random.Generator, words: str, d: int, p: dict[str, Array]) -> Posterior:
    condition = 10 ** rng.uniform(0, 3)
    factor, centre = linear_map(rng, d, condition, True), rng.normal(size=d)
    return moved(f"{words}, condition {condition:.0f}", _draws(p, d), potential, p, factor, centre)


def _bend(m: Any, t: Any, p: Mapping[str, Any]) -> Any:
    before = t @ p["before"].T
    return p["square"] * (before * before - 1) + p["wave"] * m.sin(p["frequency"] * before)


def potential(m: Any, t: Any, p: Mapping[str, Any]) -> Any:
    """N(radius, width^2) of the distance from the origin of the coordinates that are on the shell, N(bend, 1) of the others."""
    free = (1 - p["on"]) * (t - _bend(m, t, p))
    # Without a shell the distance is that of nothing: the guard keeps its gradient finite, and it is not counted.
    distance = m.sqrt((p["on"] * t * t).sum(-1) + p["guard"][0])
    shell = (1 - p["guard"][0]) * ((distance - p["radius"][0]) / p["width"][0]) ** 2
    return 0.5 * ((free * free).sum(-1) + shell)


def _draws(p: Mapping[str, Array], d: int) -> Draw:
    on = int(p["on"].sum())

    def draw(rng: np.random.Generator, n: int) -> Array:
        t = rng.normal(size=(n, d))
        if on:
            direction = t[:, :on] / np.linalg.norm(t[:, :on], axis=1, keepdims=True)
            t[:, :on] = direction * _radii(rng, n, on, float(p["radius"]), float(p["width"]))[:, None]
        for i in range(on, d):
            t[:, i] += _bend(np, t, p)[:, i]
        return t

    return draw


def _radii(rng: np.random.Generator, n: int, on: int, radius: float, width: float) -> Array:
    """The distance from the origin has density r^(on - 1) exp(-((r - radius) / width)^2 / 2): a grid inverts its integral."""
    r = np.linspace(max(0.0, radius - 9 * width), radius + 9 * width, 40_001)[1:]
    log_density = (on - 1) * np.log(r) - 0.5 * ((r - radius) / width) ** 2
    return inverse_cdf(rng, n, r, log_density)
