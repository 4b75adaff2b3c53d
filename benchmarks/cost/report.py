"""The table of costs: columns, what hangs on other rows, and the counts against the targets."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks import table
from benchmarks.cost.accuracy import B2_LIMIT, gradients_to_b2
from benchmarks.posteriordb import bars

COLUMNS: table.Columns = (
    ("model", "model", "{}"),
    ("d", "d", "{}"),
    ("method", "method", "{}"),
    ("worst b2", "worst_b2", "{:.1e}"),
    ("worst mean", "worst_mean", "{:.3f}"),
    ("sd min", "sd_low", "{:.2f}"),
    ("sd max", "sd_high", "{:.2f}"),
    ("worst q", "worst_quantile", "{:.3f}"),
    ("gradients", "gradients", "{:.1e}"),
    ("of NUTS'", "gradient_ratio", "{:.2f}"),
    (f"to b2 < {B2_LIMIT:g}", "gradients_to_b2", "{:.1e}"),
    ("CPU s", "seconds", "{:.1f}"),
    ("without compiling", "running", "{:.1f}"),
    ("s / NUTS s", "ratio", "{:.2f}"),
    ("peak MB", "peak_mb", "{:.0f}"),
    ("in the bar", "bar", "{}"),
    ("its own diagnostics", "said", "{}"),
)
RIVALS = ("nutpie", "mams", "chees", "meads", "laps")


def complete(rows: Sequence[table.Row]) -> list[table.Row]:
    """Rows with what hangs on NUTS' row of the same model, on the bars, and on the running estimates."""
    base = {r["model"]: r.get("gradients") for r in rows if r["method"] == "nuts"}
    out = []
    for row in bars.judged(rows):
        theirs, ours = base.get(row["model"]), row.get("gradients")
        ratio = ours / theirs if ours and theirs and row["method"] != "nuts" else None
        out.append(row | {"gradient_ratio": ratio, "gradients_to_b2": gradients_to_b2(row)})
        if row.get("worst_b2") is None:
            out[-1]["bar"] = None
    return out


def summary(rows: Sequence[table.Row]) -> list[str]:
    """The counts, one sentence each.

    Args:
        rows: From `complete`.
    """
    out = []
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        known = [r for r in mine if r.get("worst_b2") is not None]
        good = sum(r["passes"] for r in known)
        sharp = sum(r["worst_b2"] < B2_LIMIT for r in known)
        unfinished = [r["model"] for r in mine if r.get("seconds") is None]
        out.append(
            f"{method}: {good} of {len(known)} within the bar, {sharp} with worst b2 < {B2_LIMIT:g}; not finished: "
            f"{', '.join(unfinished) or 'none'}"
        )
        if method == "nuts":
            continue
        for group in dict.fromkeys(r["group"] for r in mine):
            members = [r for r in mine if r["group"] == group]
            parts = [_ratios(members, f, w) for f, w in (("gradient_ratio", "gradients"), ("ratio", "CPU"))]
            if any(parts):
                out.append(f"{method}, {group}, over NUTS: {'; '.join(p for p in parts if p)}")
    best = [
        _against_best(rows, f, w) for f, w in (("gradients_to_b2", "gradients to b2"), ("seconds", "CPU s"))
    ]
    return out + [sentence for sentence in best if sentence]


def _ratios(rows: Sequence[table.Row], field: str, words: str) -> str:
    values = [r[field] for r in rows if r.get(field) is not None]
    if not values:
        return ""
    return (
        f"{words} median {median(values):.2f}, {min(values):.2f} to {max(values):.2f} ({len(values)} models)"
    )


def _against_best(rows: Sequence[table.Row], field: str, words: str) -> str:
    """Ours over the smallest of the rivals that reach the accuracy on the same model."""
    ratios = []
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = {r["method"]: r for r in rows if r["model"] == model}
        ours = mine.get("dft", {}).get(field)
        others = [
            mine[m][field]
            for m in RIVALS
            if m in mine and mine[m].get(field) and (mine[m].get("worst_b2") or 1.0) < B2_LIMIT
        ]
        if ours and others:
            ratios.append(ours / min(others))
    if not ratios:
        return ""
    ahead = sum(r < 1 for r in ratios)
    return f"dft over the best of {', '.join(RIVALS)} ({words}): median {median(ratios):.2f}, ahead on {ahead} of {len(ratios)}"


def line(row: dict[str, Any]) -> str:
    """One printed row."""
    return table.line(row, COLUMNS[3:])
