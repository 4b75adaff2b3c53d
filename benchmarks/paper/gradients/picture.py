"""Figure 2: the discrepancy along the training, one panel for each density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.paper.gradients.curves import Curves

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5f6368"  # Okabe and Ito
COLOURS = {"full": BLUE, "partial": ORANGE}
ACROSS = 5


def draw(found: Sequence[Curves], path: Path) -> None:
    """Write the picture: mean over seeds as a line, their range as a band, and the level of exact draws."""
    columns = min(ACROSS, len(found))
    rows = -(-len(found) // columns)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.6 * columns + 0.6, 2.3 * rows + 0.6), layout="constrained", squeeze=False
    )
    for axis in grid.flat[len(found) :]:
        axis.set_axis_off()
    for axis, own in zip(grid.flat, found, strict=False):
        for gradient, colour in COLOURS.items():
            values = own.values[gradient, "ksd_v"]
            low, high = values.min(1), values.max(1)
            axis.fill_between(own.steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(own.steps, values.mean(1), color=colour, label=f"{gradient} gradient")
        axis.axhline(
            np.mean(own.floor["ksd_v"]), color=GREY, linestyle="--", linewidth=1, label="exact draws"
        )
        axis.set_yscale("log")
        axis.set_title(own.density, loc="left")
    for axis in grid[:, 0]:
        axis.set_ylabel("KSD², V-statistic")
    for axis in grid[-1]:
        axis.set_xlabel("training steps")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
