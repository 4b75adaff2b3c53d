"""The table of fits: what was wrong, what was said, and how often the two agree."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import Row, aligned, piped

# Column -> how a number is shown.
COLUMNS = {
    "case": "{}", "made": "{}", "what": "{}", "worst_mean": "{:.2f}", "sd_low": "{:.2f}", "sd_high": "{:.2f}",
    "worst_quantile": "{:.2f}", "missing_modes": "{}", "fit": "{}", "status": "{}", "alarms": "{}",
    "drift_raw": "{:.2f}", "drift_refined": "{:.2f}", "gap_raw": "{:.2f}", "gap_refined": "{:.2f}",
    "left": "{:.2f}",
    "r_hat": "{:.3f}", "optima": "{}", "divergences": "{:.3f}", "stuck": "{:.3f}", "acceptance": "{:.2f}",
    "objective": "{}", "refine_steps": "{}", "gradients": "{:.2g}", "seconds": "{:.1f}",
}  # fmt: skip


def flagged(row: Row) -> bool:
    """Whether the fit warned."""
    return bool(row["status"] != "converged")


def _cells(row: Row) -> list[str]:
    def cell(name: str, shown: str) -> str:
        value = row.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        # An estimate of many sds says no more than that it is large.
        if isinstance(value, float) and abs(value) >= 100 and name not in ("gradients", "seconds"):
            return ">99"
        return shown.format(value)

    return [cell(name, shown) for name, shown in COLUMNS.items()]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    return piped([list(COLUMNS), *(_cells(row) for row in rows)])


def plain(rows: Sequence[Row]) -> str:
    """The columns that fit on a screen."""
    names = ["case", "worst_mean", "sd_low", "sd_high", "missing_modes", "fit", "status", "alarms"]
    picked = [list(COLUMNS).index(name) for name in names]
    return aligned([names, *([_cells(row)[i] for i in picked] for row in rows)])


def summary(rows: Sequence[Row]) -> list[str]:
    """Hits, misses and false alarms in words."""

    def names(some: Sequence[Row]) -> str:
        return ", ".join(r["case"] for r in some) or "none"

    bad, good, between = ([r for r in rows if r["fit"] == kind] for kind in ("bad", "good", "between"))
    hits, false = [r for r in bad if flagged(r)], [r for r in good if flagged(r)]
    missed = [r for r in bad if not flagged(r)]
    return [
        f"bad fits that are flagged: {len(hits)} of {len(bad)}; missed: {names(missed)}",
        f"good fits that are flagged: {len(false)} of {len(good)}: {names(false)}",
        f"neither good nor bad: {len(between)}, flagged: {names([r for r in between if flagged(r)])}",
    ]


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes `path`.csv and `path`.md."""
    path.parent.mkdir(exist_ok=True)
    with path.with_suffix(".csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(COLUMNS), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = "\n".join(f"- {line}" for line in summary(rows))
    path.with_suffix(".md").write_text(f"{markdown(rows)}\n\n{lines}\n")
