"""Gradients and CPU seconds against the number of parameters and of rows, ours and NUTS', as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cost.targets import DIMENSIONS, ROWS_SIZES
from benchmarks.table import Row

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "cost_scaling.png"
KINDS = {"d": ("parameters", DIMENSIONS), "rows": ("rows", ROWS_SIZES)}
FIELDS = {"gradients": "gradients", "seconds": "CPU s"}


def names(largest: int) -> list[str]:
    """Targets of the plot up to a size."""
    return [f"scaled_{kind}_{n}" for kind, (_, sizes) in KINDS.items() for n in sizes if n <= largest]


def points(rows: Sequence[Row], kind: str, method: str, field: str) -> tuple[list[int], list[float]]:
    """Sizes in rising order and the values at them, of finished cells only."""
    found = {
        int(r["model"].rsplit("_", 1)[1]): float(r[field])
        for r in rows
        if r["model"].startswith(f"scaled_{kind}_") and r["method"] == method and r.get(field)
    }
    return sorted(found), [found[size] for size in sorted(found)]


def draw(rows: Sequence[Row], file: Path = PICTURE) -> None:
    """Four panels on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained", sharex="col")
    for column, (kind, (words, _)) in enumerate(KINDS.items()):
        for panel, (field, label) in zip(axes[:, column], FIELDS.items(), strict=True):
            for method, style in (("nuts", "s--"), ("dft", "o-")):
                sizes, values = points(rows, kind, method, field)
                panel.plot(
                    sizes, values, style, label={"nuts": "NUTS 4 x (1000 + 1000)", "dft": "DFT"}[method]
                )
            panel.set_ylabel(label)
            if panel.dataLim.width >= 0:  # an empty panel has no logarithmic scale
                panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3)
        axes[-1, column].set_xlabel(words)
    axes[0, 0].set_title("logistic regression in groups, 20 rows each")
    axes[0, 1].set_title("linear regression, 3 parameters")
    axes[0, 0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
