"""Records to rows: the printed table, the Markdown and CSV files, and what may be read from them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.sbc.models import MODELS
from benchmarks.sbc.replicates import CELLS, Cell, Record
from benchmarks.sbc.uniformity import DRAWS, LEVEL, bins, detectable, judge
from benchmarks.table import Columns, Row, markdown

Results = Mapping[str, Sequence[Record]]

# (heading, field, format); a missing value is printed as a dash.
COLUMNS: Columns = (
    ("model", "model", "{}"),
    ("backend", "backend", "{}"),
    ("method", "method", "{}"),
    ("fits", "fits", "{}"),
    ("N", "replicates", "{}"),
    ("smallest p (chi-square)", "chi_square", "{:.2g}"),
    ("smallest p (ECDF)", "ecdf", "{:.2g}"),
    ("worst coordinate", "worst", "{}"),
    ("its mean rank", "mean_rank", "{:.2f}"),
    ("outside the band", "outside", "{}"),
    ("of", "coordinates", "{}"),
    ("p, Bonferroni", "adjusted", "{:.2g}"),
    ("uniform", "uniform", "{}"),
    ("flagged", "flagged", "{:.1%}"),
    ("errors", "errors", "{}"),
    ("CPU s per fit", "seconds", "{:.2f}"),
)


def rank_array(records: Sequence[Record], kind: str, converged_only: bool = False) -> np.ndarray:
    """Ranks (replicates, coordinates) of raw or refined draws; fits that raised have none."""
    some = [r["ranks"][kind] for r in records if "ranks" in r and not (converged_only and flagged(r))]
    return np.array(some, int)


def flagged(record: Record) -> bool:
    """Whether the fit warned or raised."""
    return record.get("status") != "converged"


def kinds(records: Sequence[Record]) -> list[str]:
    """The kinds of draws that a cell has."""
    return next((list(r["ranks"]) for r in records if "ranks" in r), [])


def cell_rows(cell: Cell, records: Sequence[Record]) -> list[Row]:
    """Rows of raw and of refined draws: with all fits, and without the flagged ones where there are any.

    Leaving flagged fits out keeps the ranks uniform: a flag depends on the data and on random numbers of the fit, never on
    the truth.
    """
    alarms = [flagged(r) for r in records]
    rows = []
    for kind in kinds(records):
        for only in (False, True):
            ranks = rank_array(records, kind, only)
            if not len(ranks) or (only and not any(alarms)):
                continue
            verdict = judge(ranks, MODELS[cell.model].names)
            rows.append(
                {
                    "model": cell.model,
                    "backend": cell.backend,
                    "method": f"{cell.fit}-{kind}",
                    "fits": "converged" if only else "all",
                    **vars(verdict),
                    "uniform": verdict.uniform,
                    "flagged": float(np.mean(alarms)),
                    "errors": sum("error" in r for r in records),
                    "seconds": median(r["seconds"] for r in records if "seconds" in r),
                }
            )
    return rows


def rows(results: Results) -> list[Row]:
    """Rows of all cells that there are records of."""
    return [row for cell in CELLS if cell.name in results for row in cell_rows(cell, results[cell.name])]


def summary(results: Results, table: Sequence[Row]) -> list[str]:
    """What was tested, how much it can see, and what came out, one sentence each."""
    out = [
        f"each replicate draws parameters from the prior and data given them, fits, and ranks the truth among {DRAWS} draws; "
        f'the log likelihood is ranked too (not by simuk, which runs `DFTKernel` inside NumPyro\'s `MCMC`)',
        "the chi-square test has one bin for each 20 replicates, at most 20; the band is the simultaneous 95 % band of the ECDF, "
        "which one coordinate in twenty leaves by chance",
        f'"uniform": the smallest p-value of both tests and all coordinates, after Bonferroni, is at least {LEVEL}; one row in '
        "twenty, or fewer, fails by chance",
        "rows are not independent: raw and refined draws share a fit, the two fits of a model share all data, and both "
        "forms of the schools share most random numbers of theirs",
        "a flag is about the draws that are served by default, the refined ones",
        "the scale of the schools has a HalfNormal(5) prior: HalfCauchy(5) would make one in thirty data sets with a scale "
        "above 100",
    ]  # fmt: skip
    for count in sorted({len(records) for records in results.values()}):
        if count >= 20:
            shift, low, high = detectable(count)
            out.append(
                f"{count} replicates ({bins(count)} bins) show, for one coordinate in four cases out of five, a mean that "
                f"is off by {shift:.2f} posterior sds, or an sd ratio of {low:.2f} or {high:.2f}; smaller errors pass"
            )
    every = [r for r in table if r["fits"] == "all"]
    for fit in dict.fromkeys(r["method"] for r in every):
        mine = [r for r in every if r["method"] == fit]
        failed = [f"{r['model']} ({r['backend']}: {r['worst']})" for r in mine if not r["uniform"]]
        out.append(
            f"{fit}: {len(mine) - len(failed)} of {len(mine)} uniform; not: {', '.join(failed) or 'none'}"
        )
    return out


def write(table: Sequence[Row], summary: Sequence[str], stem: Path) -> None:
    """Writes ``stem``.md and ``stem``.csv."""
    lines = "\n".join(f"- {s}" for s in summary)
    titles = "\n".join(f"- {m.name}: {m.title}, {len(m.fixed)} rows of data" for m in MODELS.values())
    stem.with_suffix(".md").write_text(f"{markdown(table, COLUMNS)}\n{lines}\n{titles}\n")
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, [name for _, name, _ in COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
