"""The curves of the experiment: test accuracy and test log likelihood against wall time and against data passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.paper.logistic.course import Run
from benchmarks.paper.logistic.judge import Score

# Colour and dashes of each method by the key of its cells: the paper's own in warm colours, exact chains in black.
STYLES = {
    "dft": ("#d62728", "-"), "pyro-dft": ("#d62728", "-"), "dft-large": ("#ff7f0e", "-"), "dft-all": ("#8c564b", "-"),
    "dft-phase": ("#e377c2", "-"), "kl": ("#bcbd22", "-"), "pyro-kl": ("#bcbd22", "-"), "fisher": ("#f7b6d2", "-"),
    "dft-pure": ("#d62728", ":"), "dft-pure-large": ("#ff7f0e", ":"), "nuts": ("#111111", "-"),
    "nuts-dense": ("#111111", "--"), "hmcecs": ("#7f7f7f", "-."), "svgd": ("#1f77b4", "--"), "sgld": ("#17becf", "--"),
    "advi": ("#2ca02c", "--"),
}  # fmt: skip
OTHER = ("#9467bd", "-.")
# Below the level of NUTS and above it, in accuracy and in nats.
SPANS = {"accuracy": (0.03, 0.008), "log_likelihood": (0.04, 0.009)}


def curve(
    runs: Sequence[Run], labels: np.ndarray, axis: str, value: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sd over seeds of a score against a cost; between the marks of a run, straight lines.

    Args:
        runs: One for each seed.
        labels: (m,).
        axis: "wall", "cpu" or "passes".
        value: "accuracy" or "log_likelihood".

    Returns:
        Costs, means and sds, (k,) each; marks without a known cost are left out.
    """
    known = [np.isfinite(getattr(run, axis)) for run in runs]
    if not all(k.any() for k in known):
        return np.empty(0), np.empty(0), np.empty(0)
    costs = [getattr(run, axis)[k] for run, k in zip(runs, known, strict=True)]
    scores = [
        np.array([getattr(Score.of(p, labels), value) for p in run.probability[k]])
        for run, k in zip(runs, known, strict=True)
    ]
    if len(runs) == 1:
        return costs[0], scores[0], np.zeros(len(scores[0]))
    # Seeds have marks of their own. All of them are on the way from the last that starts.
    first, last = max(c[0] for c in costs), max(c[-1] for c in costs)
    grid = np.unique(np.concatenate([[first, last], *costs]).clip(first, last))
    values = np.array([np.interp(grid, c, s) for c, s in zip(costs, scores, strict=True)])
    return grid, values.mean(0), values.std(0)


def draw(path: Path, groups: Mapping[str, Sequence[Run]], labels: np.ndarray, reference: Score) -> None:
    """Four panels: accuracy and log likelihood, against seconds and against data passes.

    Args:
        path: The PNG.
        groups: Label of a method -> its runs, in the order of the legend.
        labels: Test labels (m,).
        reference: Of NUTS; the grey band is one standard error over test rows around it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(11, 7.6), sharex="col", sharey="row", layout="constrained")
    rows = (
        ("accuracy", "test accuracy", reference.accuracy, reference.accuracy_error),
        ("log_likelihood", "test log likelihood (nats a row)", reference.log_likelihood, reference.log_likelihood_error),
    )  # fmt: skip
    columns = (
        ("wall", "wall seconds, compilation included"),
        ("passes", "data passes (gradients x rows / N)"),
    )
    for line, (value, name, middle, error) in zip(axes, rows, strict=True):
        for ax, (axis, _) in zip(line, columns, strict=True):
            ax.axhspan(middle - error, middle + error, color="0.85", zorder=0, label="NUTS ± 1 s.e.")
            for label, runs in groups.items():
                x, mean, sd = curve(runs, labels, axis, value)
                if not len(x):
                    continue
                colour, dashes = STYLES.get(runs[0].method, OTHER)
                # Those that leave a few marks only are told by dots.
                dots = {"marker": "o", "ms": 5} if len(x) < 4 else {}
                ax.plot(x, mean, label=label, color=colour, ls=dashes, lw=1.6, **dots)
                ax.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)
            ax.set_xscale("log")
            ax.grid(alpha=0.3)
        line[0].set_ylabel(name)
        line[0].set_ylim(middle - SPANS[value][0], middle + SPANS[value][1])
    for ax, (_, name) in zip(axes[1], columns, strict=True):
        ax.set_xlabel(name)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    fig.savefig(path, dpi=130)
    plt.close(fig)
