"""The picture: rank histograms with their 95 % band, raw against refined draws, and all ECDFs; one row for each cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # a picture file, on machines without a screen too
import matplotlib.pyplot as plt

from benchmarks.sbc.models import MODELS
from benchmarks.sbc.replicates import CELLS, Cell, Record
from benchmarks.sbc.report import Results, rank_array
from benchmarks.sbc.uniformity import DRAWS, GRID, bins, ecdf, ecdf_band, histogram, histogram_band

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5f6368"  # of the colour-blind safe palette of Okabe and Ito
COLOURS = {"raw": ORANGE, "refined": BLUE}


def draw(results: Results, backend: str, output: Path) -> None:
    """Draw the cells of one framework that have both raw and refined draws."""
    cells = [c for c in CELLS if c.backend == backend and c.fit != "simuk" and c.name in results]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(13, 0.9 + 2.3 * len(cells)), layout="constrained")
    figure.suptitle(
        "Simulation-based calibration: ranks of the true value among "
        f"{DRAWS} posterior draws ({ {'numpyro': 'NumPyro', 'pyro': 'Pyro'}[backend] })",
        fontsize=13,
    )
    grid = figure.subplots(len(cells), 5, squeeze=False, width_ratios=[1, 1, 1, 1, 1.35])
    for axes, cell in zip(grid, cells, strict=True):
        _row(axes, cell, results[cell.name])
    for axis in grid[-1, :4]:
        axis.set_xlabel("rank")
    grid[-1, 4].set_xlabel("rank, as a share")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)
    plt.close(figure)


def _row(axes: Sequence[plt.Axes], cell: Cell, records: Sequence[Record]) -> None:
    model, columns = MODELS[cell.model], MODELS[cell.model].names
    ranks = {kind: rank_array(records, kind) for kind in COLOURS}
    count = len(ranks["raw"])
    control = "\ncontrol: Gaussian, no network" if cell.fit == "gaussian" else ""
    for axis, name in zip(axes, model.shown, strict=False):
        _histogram(axis, {kind: r[:, columns.index(name)] for kind, r in ranks.items()})
        axis.set_title(name, loc="left")
    axes[0].set_ylabel(f"{model.title}{control}\nN = {count}")
    _differences(axes[4], ranks)
    axes[4].set_title(f"ECDF less uniform, all {len(columns)}", loc="left")


def _histogram(axis: plt.Axes, ranks: dict[str, np.ndarray]) -> None:
    """Counts of both kinds as outlines, and the band that a whole histogram keeps."""
    count = len(ranks["raw"])
    edges = np.linspace(0, DRAWS + 1, bins(count) + 1)
    low, high = histogram_band(count)
    axis.axhspan(low, high, color="0.9", zorder=0, label="95 % band, for a whole histogram or ECDF")
    axis.axhline(count / bins(count), color=GREY, linewidth=0.8, zorder=1)
    for kind, values in ranks.items():
        fill = kind == "refined"
        axis.stairs(
            histogram(values), edges, color=COLOURS[kind], fill=fill, alpha=0.35 if fill else 1.0, linewidth=1.6,
            label=f"{kind} draws",
        )  # fmt: skip
    axis.set_xticks([0, (DRAWS + 1) // 2, DRAWS + 1])
    axis.set_xlim(0, DRAWS + 1)
    axis.set_ylim(0, max(2.2 * count / bins(count), 1.05 * max(histogram(v).max() for v in ranks.values())))


def _differences(axis: plt.Axes, ranks: dict[str, np.ndarray]) -> None:
    """ECDFs of all coordinates, less that of uniform ranks."""
    low, high = ecdf_band(len(ranks["raw"]))
    axis.fill_between(GRID, low - GRID, high - GRID, color="0.9", zorder=0)
    axis.axhline(0.0, color=GREY, linewidth=0.8, zorder=1)
    for kind, values in ranks.items():
        lines = (ecdf(values.T) / len(values) - GRID).T
        axis.plot(GRID, lines, color=COLOURS[kind], linewidth=1.0, alpha=0.75)
    axis.set_xlim(0, 1)
