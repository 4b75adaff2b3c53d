"""Figure 1: draws over the contours of every density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.paper.targets import TOYS, Toy

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#5f6368"  # Okabe and Ito
SHOWN = {
    "dft-ns": ("DFT-NS\none step", BLUE),
    "default": ("default recipe\none step", GREEN),
    "svgd-200": ("SVGD\n200 steps", ORANGE),
}
ACROSS, GRID = 5, 400
# Density levels below the top, in nats: about one, two and three standard deviations of a Gaussian.
LEVELS = (-4.5, -2.0, -0.5)


def log_density(toy: Toy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """On a grid, less its largest value there, (len(y), len(x))."""
    import jax
    import jax.numpy as jnp

    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
    values = -np.asarray(jax.vmap(toy.potential)(jnp.asarray(points)), np.float64)
    return (values - values.max()).reshape(len(y), len(x))


def draw(draws: Mapping[tuple[str, str], np.ndarray], densities: Sequence[str], path: Path) -> None:
    """Write the picture.

    Args:
        draws: (density, method) -> draws (n, 2) to show; panels without any are left out.
        densities: In order.
        path: Of the file.
    """
    shown = [k for k in SHOWN if any((d, k) in draws for d in densities)]
    blocks = [densities[i : i + ACROSS] for i in range(0, len(densities), ACROSS)]
    rows, columns = len(blocks) * len(shown), min(ACROSS, len(densities))
    plt.rcParams.update({"font.size": 9})
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.35 * columns + 0.8, 2.0 * rows + 0.4), layout="constrained", squeeze=False
    )
    for axis in grid.flat:
        axis.set_axis_off()
    for block, names in enumerate(blocks):
        for column, name in enumerate(names):
            for i, key in enumerate(shown):
                axis = grid[block * len(shown) + i, column]
                if (name, key) in draws:
                    _panel(axis, TOYS[name], draws[name, key], SHOWN[key][1])
                if i == 0:
                    axis.set_title(name)
                if column == 0:
                    axis.set_ylabel(SHOWN[key][0], color=SHOWN[key][1])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: plt.Axes, toy: Toy, points: np.ndarray, colour: str) -> None:
    (left, right), (bottom, top) = toy.window
    x, y = np.linspace(left, right, GRID), np.linspace(bottom, top, GRID)
    axis.set_axis_on()
    axis.contour(x, y, log_density(toy, x, y), levels=LEVELS, colors=GREY, linewidths=0.7, linestyles="solid")
    axis.scatter(points[:, 0], points[:, 1], s=3, color=colour, alpha=0.6, linewidths=0)
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
