"""The pictures: grids of images side by side, and FID against training iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

GREY = "#777777"


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")  # a picture file, on machines without a screen too
    import matplotlib.pyplot as plt

    return plt


def mosaic(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """One picture of flat images (n, d) in [0, 1], row by row, with white lines between them."""
    size = math.isqrt(images.shape[1])
    rows = -(-len(images) // columns)
    out = np.ones((rows * (size + gap) - gap, columns * (size + gap) - gap))
    for i, image in enumerate(np.clip(images, 0, 1)):
        top, left = (i // columns) * (size + gap), (i % columns) * (size + gap)
        out[top : top + size, left : left + size] = image.reshape(size, size)
    return out


def grids(panels: Mapping[str, np.ndarray], path: Path, columns: int = 8, across: int = 4) -> None:
    """A grid of images for each panel (title -> images (n, d)), all of one scale of grey."""
    plt = _pyplot()
    across = min(across, len(panels))
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(3.4 * across, 3.75 * down), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, images) in zip(axes.flat, panels.items(), strict=False):
        axis.imshow(mosaic(images, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def curves(lines: Mapping[str, Sequence[tuple[int, float]]], levels: Mapping[str, float], path: Path) -> None:
    """FID on a log scale against training iteration, with level lines for rivals.

    Args:
        lines: Method -> (iteration, FID) points.
        levels: Rival or floor -> FID, drawn as dashed lines with their name at the right edge.
        path: Picture file.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for name, points in lines.items():
        axis.plot(*zip(*points, strict=True), label=name, linewidth=1.5)
    for name, value in levels.items():
        axis.axhline(value, color=GREY, linestyle="--", linewidth=0.8)
        axis.annotate(
            name, (1.0, value), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=8, color=GREY,
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_xlabel("generator step")
    axis.set_ylabel("FID on the classifier's features")
    if lines:
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
