"""Rows of `benchmarks.geometry` to text, Markdown and CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from benchmarks import table
from benchmarks.geometry.targets import TARGETS
from benchmarks.posteriordb import bars
from benchmarks.table import Row

FAMILIES: dict[str, tuple[str, ...]] = {
    "Funnels": ("funnel", "funnel_model", "schools", "schools_model"),
    "Heavy tails": ("student5", "student3", "cauchy"),
    "Strong correlation and bad scales": ("correlated10", "correlated50", "scales"),
    "Curves, a ring, skewness": ("banana", "rosenbrock", "double_bend", "squiggle", "donut", "skewed10"),
    "Fifty to two hundred dimensions": (
        "mild50",
        "skewed50",
        "gaussian100",
        "skewed100",
        "hierarchy102",
        "gaussian200",
    ),
    "Separate modes with unequal weights": ("three_modes", "four_modes", "two_bananas"),
}
COLUMNS: table.Columns = (
    ("posterior", "model", "{}"),
    ("d", "d", "{}"),
    ("method", "method", "{}"),
    ("worst mean", "worst_mean", "{:.3f}"),
    ("avg mean", "average_mean", "{:.3f}"),
    ("sd min", "sd_low", "{:.2f}"),
    ("sd max", "sd_high", "{:.2f}"),
    ("worst q", "worst_quantile", "{:.3f}"),
    ("avg q", "average_quantile", "{:.3f}"),
    ("SW2", "sliced_w2", "{:.3f}"),
    ("gradients", "gradients", "{:.1e}"),
    ("CPU s", "seconds", "{:.1f}"),
    ("without compiling", "running", "{:.1f}"),
    ("s / NUTS s", "ratio", "{:.2f}"),
    ("in the bar", "bar", "{}"),
    ("its own diagnostics", "said", "{}"),
)
MODES: table.Columns = (
    *COLUMNS[:-2],
    ("shares of the modes", "shares", "{}"),
    ("worst share error", "share_error", "{:.3f}"),
    *COLUMNS[-2:],
)
SHARE_LIMIT = 0.05


def judged(rows: Sequence[Row]) -> list[Row]:
    """Rows with the columns that need other rows; without moments the quantiles alone decide."""
    out = []
    for row in bars.judged(rows):
        if not TARGETS[row["model"]].moments and row.get("worst_quantile") is not None:
            passes = bool(row["worst_quantile"] <= bars.REFINED.quantile)
            row |= {"passes": passes, "excused": False, "bar": "yes" if passes else "no"}
        out.append(row)
    return out


def line(row: Row) -> str:
    """One printed row."""
    cells = (f"{h}={table.text(row, f, form)}" for h, f, form in MODES[3:] if row.get(f) is not None)
    return f"{row['model']}/{row['method']}: {'  '.join(cells)}"


def summary(rows: Sequence[Row]) -> list[str]:
    """The counts, one sentence each.

    Args:
        rows: From `judged`.
    """
    out = bars.summary([r for r in rows if TARGETS[r["model"]].moments])
    for r in rows:
        if r["method"] not in ("dft-raw", "dft-refined"):
            continue
        said = f"said {r['said']}"
        if not TARGETS[r["model"]].moments and r.get("worst_quantile") is not None:
            out.append(f"{r['model']}, {r['method']}: worst quantile error {r['worst_quantile']:.2f}, {said}")
        if r.get("share_error") is not None:
            word = "within" if r["share_error"] <= SHARE_LIMIT else "not within"
            out.append(f"{r['model']}, {r['method']}: shares {word} {SHARE_LIMIT} of the truth, {said}")
    return out


def write(rows: Sequence[Row], notes: Sequence[str], stem: Path) -> None:
    """Writes ``stem``.md, a table for each family, and ``stem``.csv.

    Args:
        rows: From `judged`.
        notes: From `summary`, and others.
        stem: Path without a suffix.
    """
    parts = [
        "Errors of 10,000 draws against exact ones, in posterior sds. `reference`: other exact draws, the floor. Funnels are "
        "compared in v and in inverse hyperbolic sines of the other coordinates, the ring in its radius as well; of the Cauchy "
        "distribution only quantiles exist, in units of the sd of a normal distribution of the same width.",
        "\n".join(f"- {note}" for note in notes),
    ]
    for heading, names in FAMILIES.items():
        mine = [r for r in rows if r["model"] in names]
        if mine:
            kinds = "; ".join(
                f"`{n}`: {TARGETS[n].kind}" for n in names if any(r["model"] == n for r in mine)
            )
            columns = MODES if any(TARGETS[n].components for n in names) else COLUMNS
            parts.append(f"## {heading}\n\n{kinds}.\n\n{table.markdown(mine, columns).rstrip()}")
    stem.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    flat = [{k: v for k, v in r.items() if k != "facts"} for r in rows]
    with open(stem.with_suffix(".csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(k for r in flat for k in r)))
        writer.writeheader()
        writer.writerows(flat)
