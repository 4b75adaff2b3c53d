"""Rows of `benchmarks.objectives` to Markdown and CSV: means over seeds, and paired differences from KL."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.objectives.variants import PAIRS, VARIANTS
from benchmarks.table import piped

Row = dict[str, Any]
# Field, heading, digits.
COLUMNS = (
    ("mean", "mean error", 3),
    ("sd", "sd error", 3),
    ("quantile", "quantile error", 3),
    ("sw2", "SW2", 3),
    ("movement", "movement", 3),
)
COMPARED = ("mean", "sd", "quantile", "sw2", "movement")
MARK = 2.0


def mean_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    x = np.asarray(values, float)
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")


def difference(row: Row, base: Row, name: str) -> tuple[float, float]:
    """Paired difference from another row of the same target, seed by seed: mean and standard error."""
    return mean_se(np.asarray(row[name]) - np.asarray(base[name]))


def mark(change: tuple[float, float]) -> str:
    """The word "better" or "worse" where the difference is beyond two standard errors."""
    if not np.isfinite(change[0]) or abs(change[0]) <= MARK * change[1]:
        return ""
    return "better" if change[0] < 0 else "worse"


def line(row: Row) -> str:
    """One printed row."""
    parts = [f"{h}={mean_se(row[f])[0]:.{d}f}" for f, h, d in COLUMNS]
    return f"{row['target']}/{row['variant']}: {'  '.join(parts)}  CPU s={row['seconds']:.2f}"


def _cell(row: Row, name: str, digits: int) -> str:
    m, se = mean_se(row[name])
    return f"{m:.{digits}f} ± {se:.{digits}f}"


def _change(row: Row, base: Row, name: str, digits: int) -> str:
    change = difference(row, base, name)
    word = mark(change)
    text = f"{change[0]:+.{digits}f} ± {change[1]:.{digits}f}"
    return f"**{text}** {word}" if word else text


def table(rows: Sequence[Row]) -> str:
    """The rows of one target."""
    base = next((r for r in rows if r["variant"] == "kl"), None)
    head = [
        "variant",
        *(h for _, h, _ in COLUMNS),
        "Fisher gap",
        "sigma",
        "steps",
        "gradients",
        "CPU s",
        "kept",
    ]
    lines = [head]
    for r in rows:
        cells = [f"{r['variant']}: {r['what']}", *(_cell(r, f, d) for f, _, d in COLUMNS)]
        cells += [_cell(r, "gap", 3), f"{np.mean(r['sigma']):.2f}"] if "gap" in r else ["–", "–"]
        cells += [str(r["steps"]), f"{r['gradients']:.1e}", f"{r['seconds']:.1f}"]
        cells.append(f"{sum(r['kept'])} of {len(r['kept'])}" if "kept" in r else "–")
        lines.append(cells)
    if base is None:
        return piped(lines)
    differences = [["difference from kl", *(h for _, h, _ in COLUMNS), "CPU s / kl"]]
    for r in rows:
        if r is base:
            continue
        cells = [r["variant"], *(_change(r, base, f, d) for f, _, d in COLUMNS)]
        differences.append([*cells, f"{r['seconds'] / base['seconds']:.2f}"])
    return f"{piped(lines)}\n\n{piped(differences)}"


def counts(rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> str:
    """For each pair of variants: on how many targets the first is better or worse, beyond two standard errors."""
    by = {(r["target"], r["variant"]): r for r in rows}
    head = ["variant", "against", "targets", *(h for _, h, _ in COLUMNS), "ratio of CPU s"]
    lines = [head]
    for one, other in pairs:
        both = [(r, by[t, other]) for (t, v), r in by.items() if v == one and (t, other) in by]
        if not both:
            continue
        cells = [one, other, str(len(both))]
        for name in COMPARED:
            words = [mark(difference(a, b, name)) for a, b in both]
            cells.append(f"{words.count('better')} better, {words.count('worse')} worse")
        cost = np.median([a["seconds"] / b["seconds"] for a, b in both])
        lines.append([*cells, f"{cost:.2f}"])
    return piped(lines)


def each_pair(rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> str:
    """The differences of each pair on each target."""
    by = {(r["target"], r["variant"]): r for r in rows}
    head = ["target", "variant", "against", *(h for _, h, _ in COLUMNS), "ratio of CPU s"]
    lines = [head]
    for target in dict.fromkeys(r["target"] for r in rows):
        for one, other in pairs:
            if (target, one) not in by or (target, other) not in by:
                continue
            a, b = by[target, one], by[target, other]
            cells = [target, one, other, *(_change(a, b, f, d) for f, _, d in COLUMNS)]
            lines.append([*cells, f"{a['seconds'] / b['seconds']:.2f}"])
    return piped(lines)


def write(rows: Sequence[Row], stem: Path) -> str:
    """Writes ``stem``.md and ``stem``.csv; returns the Markdown."""
    seeds = len(rows[0]["mean"]) if rows else 0
    parts = [
        f"Raw one-step draws, averages over coordinates in posterior sds (sd error: |log ratio|), mean ± standard error over "
        f"{seeds} seeds. Costs are for one sampler, without compilation and without the Gaussian. Kept: seeds in which the "
        "run-time measurement keeps the DFT phase. Better and worse: a paired difference beyond two standard errors, which "
        f"chance alone gives in about {_chance(seeds):.0%} of the cells.",
        "## Against KL alone, over all targets\n\n"
        + counts(rows, [(v, "kl") for v in VARIANTS if v != "kl"]),
        "## DFT against KL with the same stages\n\n" + counts(rows, PAIRS) + "\n\n" + each_pair(rows, PAIRS),
    ]
    for name in dict.fromkeys(r["target"] for r in rows):
        mine = [r for r in rows if r["target"] == name]
        parts.append(f"## {name} ({mine[0]['family']}, d = {mine[0]['d']})\n\n" + table(mine))
    text = "\n\n".join(parts) + "\n"
    stem.with_suffix(".md").write_text(text)
    with open(stem.with_suffix(".csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        names = [n for n, _, _ in COLUMNS] + ["gap", "sigma"]
        writer.writerow(["target", "variant", "seed", *names, "kept", "steps", "gradients", "seconds"])
        for r in rows:
            for i in range(seeds):
                values = [r[n][i] if n in r else "" for n in names]
                kept = r["kept"][i] if "kept" in r else ""
                costs = [r["steps"], r["gradients"], r["seconds"]]
                writer.writerow([r["target"], r["variant"], i, *values, kept, *costs])
    return text


def _chance(seeds: int) -> float:
    from scipy.stats import t

    return float(2 * t.sf(MARK, max(seeds - 1, 1)))
