"""How well do the diagnostics predict the true error? ``python -m benchmarks.calibration``.

Reads the fits that ``benchmarks.hostile`` has made of random posteriors with exact draws, in both frameworks, and writes
``benchmarks/results/calibration.md``, ``.csv`` and the picture ``docs/images/calibration.png``: for each number in
`diagnostics()` the area under its receiver-operating curve, hits and false alarms of the status, and the threshold that catches
most bad fits for at most 5 % false alarms.

A fit is bad where an error of its draws passes twice a bar of ``benchmarks.posteriordb.bars`` beyond what chance explains (0.2 sd
in a mean, 14 % in an sd, 0.3 sd in a quantile), good where all are within the bars; those in between are off, and count as
neither.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.posteriordb.bars import upper_limit
from benchmarks.table import Row

RESULTS = Path(__file__).resolve().parent / "results"
PICTURE = RESULTS.parents[1] / "docs" / "images" / "calibration.png"
SOURCES = ("hostile_numpyro.json", "hostile_pyro.json")
FALSE_ALARMS = 0.05
QUALITIES = ("good", "off", "bad")


def _surely(interval: list[float | None]) -> float:
    """Smallest size of an effect that its interval allows; 0 where nothing is known."""
    low, high = (0.0 if v is None else v for v in interval)
    return max(low, -high, 0.0)


# What each number says of the refined draws; larger means worse.
PREDICTORS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "drift (lower limit)": lambda f: _surely(f["drift_refined"]["interval"]),
    "drift (rms)": lambda f: f["drift_refined"]["rms"],
    "gap (lower limit)": lambda f: _surely(f["drift_refined"]["gap_interval"]),
    "raw gap (lower limit)": lambda f: _surely(f["drift_raw"]["gap_interval"]),
    "raw drift (worst)": lambda f: f["drift_raw"]["worst"],
    "memory": lambda f: f["drift_refined"]["memory"],
    "divergences": lambda f: f["divergence_rate"],
    "stuck beyond acceptance": lambda f: f["stuck"] - f["expected_stuck"],
    "1 - acceptance": lambda f: 1 - f["acceptance"],
}


def fits() -> list[Row]:
    """Rows with their diagnostics, one for each fit."""
    return [
        row
        for name in SOURCES
        for row in json.loads((RESULTS / name).read_text()).values()
        if row.get("facts")
    ]


def scores(
    rows: list[Row], predictor: Callable[[dict[str, Any]], float | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Values and whether each fit is bad, without fits that are off or without a value."""
    pairs = []
    for row in rows:
        value = predictor(row["facts"])
        if row["quality"] != "off" and value is not None:
            pairs.append((float(np.nan_to_num(value, nan=1e9)), row["quality"] == "bad"))
    values, bad = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(values), np.array(bad, bool)


def area(values: np.ndarray, bad: np.ndarray) -> float | None:
    """Area under the receiver-operating curve: the chance that a bad fit has the larger value."""
    if bad.all() or not bad.any():
        return None
    return float(
        (values[bad][:, None] > values[~bad]).mean() + 0.5 * (values[bad][:, None] == values[~bad]).mean()
    )


def threshold(values: np.ndarray, bad: np.ndarray) -> tuple[float, float]:
    """The lowest limit that at most 5 % of the good fits pass, and the share of the bad ones that pass it."""
    limit = float(np.quantile(values[~bad], 1 - FALSE_ALARMS, method="higher"))
    return limit, float((values[bad] > limit).mean())


def main() -> None:
    """Print and write the tables, and draw the curves."""
    rows = fits()
    lines = [
        f"{len(rows)} fits: " + ", ".join(f"{sum(r['quality'] == q for r in rows)} {q}" for q in QUALITIES),
        "",
    ]
    lines += ["| status | good | off | bad |", "|---|---|---|---|"]
    for status in ("converged", "suspect", "failed"):
        counts = [sum(r["status"] == status and r["quality"] == q for r in rows) for q in QUALITIES]
        lines.append(f"| {status} | " + " | ".join(map(str, counts)) + " |")
    calm = [r for r in rows if r["status"] == "converged"]
    missed = [r for r in calm if r["quality"] == "bad"]
    rate = upper_limit(len(missed), len(calm))
    names = "".join(f"; {r['name']} in {r['backend']}" for r in missed)
    lines += [
        "",
        f"Of {len(calm)} fits called converged {len(missed)} are bad (upper 95 % limit of the rate {rate:.1%}){names}.",
        "",
        "| number | fits | area under the curve | limit at 5 % false alarms | bad fits above it |",
        "|---|---|---|---|---|",
    ]
    table = []
    for name, predictor in PREDICTORS.items():
        values, bad = scores(rows, predictor)
        found = area(values, bad) if len(values) else None
        if found is None:
            lines.append(f"| {name} | {len(values)} | – | – | – |")
            continue
        limit, hits = threshold(values, bad)
        lines.append(f"| {name} | {len(values)} | {found:.2f} | {limit:.3f} | {hits:.0%} |")
        table.append({"number": name, "fits": len(values), "area": found, "limit": limit, "hits": hits})
    alarms = sorted({a for r in rows for a in r["alarms"]})
    lines += ["", "| alarm | good | off | bad |", "|---|---|---|---|"]
    for alarm in alarms:
        counts = [sum(alarm in r["alarms"] and r["quality"] == q for r in rows) for q in QUALITIES]
        lines.append(f"| {alarm} | " + " | ".join(map(str, counts)) + " |")
    print("\n".join(lines))
    (RESULTS / "calibration.md").write_text("\n".join(lines) + "\n")
    with open(RESULTS / "calibration.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["number", "fits", "area", "limit", "hits"])
        writer.writeheader()
        writer.writerows(table)
    if table:
        draw(rows)


def draw(rows: list[Row]) -> None:
    """Receiver-operating curves of the most telling numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    curves = [(area(*scores(rows, p)) or 0.0, n, p) for n, p in PREDICTORS.items()]
    for found, name, predictor in sorted(curves, key=lambda c: -c[0])[:7]:
        values, bad = scores(rows, predictor)
        order = np.argsort(-values, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)  # ties go together
        hits, alarms = (np.cumsum(mask[order])[ends] / mask.sum() for mask in (bad, ~bad))
        axes.plot([0, *alarms], [0, *hits], label=f"{name} ({found:.2f})")
    flagged = np.array([r["status"] != "converged" for r in rows if r["quality"] != "off"])
    bad = np.array([r["quality"] == "bad" for r in rows if r["quality"] != "off"])
    axes.plot(flagged[~bad].mean(), flagged[bad].mean(), "k*", markersize=14, label="the status")
    axes.set(xlabel="good fits flagged", ylabel="bad fits flagged", xlim=(-0.02, 1), ylim=(0, 1.02))
    axes.set_title("Do the diagnostics tell bad fits from good ones?\n(area under each curve in brackets)")
    axes.legend(loc="lower right", fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
