"""The training of a sampler as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

# Names of phases as they stand in the picture, and their shades.
PHASES = {
    "gaussian": ("Gaussian", "0.93"),
    "kl": ("KL", "#dfe9f3"),
    "dft": ("DFT", "#f6e6d8"),
    "dft-paper": ("DFT", "#f6e6d8"),
    "fisher-partial": ("partial Fisher", "#f3dede"),
}
# Losses within these quantiles fit the axis; the first iterations may be orders of magnitude off.
SHOWN = (0.01, 0.97)
# The line is a running median over this share of the iterations of its panel.
WINDOW = 0.04


def training(history: Sequence[Any], axes: Any = None) -> NDArray[Any]:
    """Loss against iteration, with the phases marked.

    The Gaussian's loss (minus the evidence bound, nats) and the networks' (the Fisher gap) have different units, so each has
    a panel of its own.

    Args:
        history: Objects with `step`, `phase` and `loss`, such as the engine's `Progress`; at least one.
        axes: Matplotlib axes to draw on, as many as there are panels; None makes a figure.

    Returns:
        The axes, one for each panel, (1,) or (2,).

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: `axes` are not as many as the panels.
    """
    gaussian = [p for p in history if p.phase == "gaussian"]
    network = [p for p in history if p.phase != "gaussian"]
    panels = [
        (part, label)
        for part, label in (
            (gaussian, "minus evidence bound (nats)"),
            (network, "Fisher gap on one batch"),
        )
        if part
    ]
    if axes is None:
        axes = _figure(len(panels))
    axes = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(axes) != len(panels):
        raise ValueError(f"axes: this training has {len(panels)} panels, got {len(axes)} axes")
    for ax, (part, label) in zip(axes, panels, strict=True):
        _panel(ax, part, label)
    return axes


def _figure(panels: int) -> Any:
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ImportError("plot_training needs Matplotlib: pip install matplotlib") from error
    return pyplot.subplots(1, panels, figsize=(4.8 * panels, 3.2), layout="constrained")[1]


def _panel(ax: Any, part: Sequence[Any], label: str) -> None:
    steps = np.array([p.step for p in part])
    losses = np.array([p.loss for p in part], float)
    finite = np.isfinite(losses)
    ax.plot(steps[finite], losses[finite], ".", color="C0", alpha=0.3, markersize=2.5)
    window = max(1, round(WINDOW * len(part)))
    if finite.sum() > window > 1:
        middle = sliding_window_view(steps[finite], window).mean(-1)
        ax.plot(middle, np.median(sliding_window_view(losses[finite], window), -1), color="C0")
    if finite.any():
        low, high = np.quantile(losses[finite], SHOWN)
        margin = 0.15 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + 2 * margin)  # room for the names of the phases
    if part[0].phase != "gaussian":
        ax.axhline(0.0, color="0.4", linewidth=0.8)
    for phase, run in groupby(part, key=lambda p: p.phase):
        own = [p.step for p in run]
        name, shade = PHASES.get(phase, (phase, "0.93"))
        ax.axvspan(own[0] - 0.5, own[-1] + 0.5, color=shade, linewidth=0, zorder=0)
        ax.text((own[0] + own[-1]) / 2, 0.97, name, transform=ax.get_xaxis_transform(), ha="center", va="top")
    ax.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
    ax.set(xlabel="iteration", ylabel=label)
