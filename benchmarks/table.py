"""Rows to text: the printed table, the Markdown and CSV files, and the counts against the targets."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]

MEAN_LIMIT, SD_LOW, SD_HIGH = 0.10, 0.90, 1.10

# (heading, field, format); a missing value is printed as a dash.
Columns = tuple[tuple[str, str, str], ...]
COLUMNS: Columns = (
    ("model", "model", "{}"),
    ("d", "d", "{}"),
    ("method", "method", "{}"),
    ("worst mean", "worst_mean", "{:.3f}"),
    ("avg mean", "average_mean", "{:.3f}"),
    ("sd min", "sd_low", "{:.2f}"),
    ("sd max", "sd_high", "{:.2f}"),
    ("worst q", "worst_quantile", "{:.3f}"),
    ("avg q", "average_quantile", "{:.3f}"),
    ("SW2", "sliced_w2", "{:.3f}"),
    ("gradients", "gradients", "{:.2e}"),
    ("CPU s", "seconds", "{:.1f}"),
    ("10k more s", "more_seconds", "{:.2f}"),
    ("s / NUTS s", "ratio", "{:.3f}"),
    ("pass", "passes", "{}"),
    ("its own diagnostics", "said", "{}"),
)


def stored(path: Path) -> dict[str, Any]:
    """The rows that are on file, by their labels."""
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, rows: dict[str, Any]) -> None:
    """Puts rows on file, by their labels."""
    path.write_text(json.dumps(rows, indent=1, sort_keys=True))


def text(row: Row, name: str, form: str) -> str:
    """One cell as text."""
    value = row.get(name)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return form.format(value)


def passes(row: Row) -> bool | None:
    """Whether the errors are inside the accuracy target; None for a row without errors."""
    if row.get("worst_mean") is None:
        return None if row["method"] == "reference" else False
    return bool(row["worst_mean"] <= MEAN_LIMIT and row["sd_low"] >= SD_LOW and row["sd_high"] <= SD_HIGH)


def complete(rows: Sequence[Row]) -> list[Row]:
    """Rows with the columns that depend on other rows: pass and the ratio to NUTS of the same model."""
    base = {r["model"]: r["seconds"] for r in rows if r["method"] == "nuts" and r.get("seconds")}
    out = []
    for r in rows:
        cost = r.get("seconds")
        ratio = cost / base[r["model"]] if cost and r["model"] in base and r["method"] != "nuts" else None
        out.append({**r, "passes": passes(r), "ratio": ratio})
    return out


def line(row: Row, columns: Columns = COLUMNS[3:]) -> str:
    """One printed row."""
    return "  ".join(f"{h}={text(row, f, form)}" for h, f, form in columns if row.get(f) is not None)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Lines of cells, in columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def piped(cells: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of them headings, as Markdown."""
    head, *body = ("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in cells)
    return "\n".join([head, "|---" * len(cells[0]) + "|", *body])


def _cells(rows: Sequence[Row], columns: Columns) -> list[list[str]]:
    return [[h for h, _, _ in columns], *([text(r, f, form) for _, f, form in columns] for r in rows)]


def plain(rows: Sequence[Row], columns: Columns = COLUMNS) -> str:
    """An aligned table for a terminal."""
    return aligned(_cells(rows, columns))


def markdown(rows: Sequence[Row], columns: Columns = COLUMNS) -> str:
    """The same as Markdown."""
    return piped(_cells(rows, columns)) + "\n"


HEADINGS = {
    "nuts": "NUTS 4 x (1000 + 1000)", "dft-refined": "DFT, refined", "dft-raw": "DFT, one step",
    "gaussian-refined": "Gaussian, refined",
}  # fmt: skip


def brief(rows: Sequence[Row], shown: Sequence[str] = tuple(HEADINGS)) -> str:
    """One line for each model, with worst mean errors and ranges of sd ratios.

    Args:
        rows: From `complete`.
        shown: Methods, NUTS and the refined draws first.
    """
    by = {(r["model"], r["method"]): r for r in rows}
    headings = [
        "model (parameters)",
        *(HEADINGS[name] for name in shown),
        "CPU s NUTS",
        "CPU s DFT",
        "status",
    ]
    lines = [headings]
    for model, d in dict.fromkeys((r["model"], r.get("d", "–")) for r in rows):
        cells = [f"{model} ({d})"]
        for method in shown:
            r = by.get((model, method), {})
            known = r.get("worst_mean") is not None
            cells.append(f"{r['worst_mean']:.2f}, {r['sd_low']:.2f}–{r['sd_high']:.2f}" if known else "–")
        for method in shown[:2]:
            cost = by.get((model, method), {}).get("seconds")
            cells.append("–" if cost is None else f"{cost:.0f}")
        cells.append(by.get((model, "dft-refined"), {}).get("said", "–"))
        lines.append(cells)
    return piped(lines)


def into_readme(rows: Sequence[Row], readme: Path) -> None:
    """Puts the table of NUTS and refined draws between the marks in the README."""
    begin, end = (f"<!-- table against NUTS: {word} -->\n" for word in ("begin", "end"))
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    if not after:
        raise ValueError(f"{readme} lacks the marks {begin.strip()} and {end.strip()}")
    table = brief(rows, ("nuts", "dft-refined"))
    readme.write_text(f"{before}{begin}{table}\n{end}{after}", encoding="utf-8")


def write(rows: Sequence[Row], summary: Sequence[str], stem: Path, columns: Columns = COLUMNS) -> None:
    """Write ``stem``.md and ``stem``.csv."""
    stem.with_suffix(".md").write_text(
        markdown(rows, columns) + "\n" + "\n".join(f"- {s}" for s in summary) + "\n"
    )
    names = list(dict.fromkeys(k for r in rows for k in r))
    with open(stem.with_suffix(".csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, names)
        writer.writeheader()
        writer.writerows(rows)


def summarise(rows: Sequence[Row], share: float = 0.1, median_share: float | None = 0.2) -> list[str]:
    """The counts against the targets, one sentence each; says so where rows are missing.

    Args:
        rows: From `complete`.
        share: Of NUTS' seconds that a logistic regression may take.
        median_share: The same for the median over models; None where there is no target.
    """
    by = {(r["model"], r["method"]): r for r in rows}
    out = []
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method and r["passes"] is not None]
        good = sum(r["passes"] for r in mine)
        out.append(
            f"{method}: {good} of {len(mine)} models within worst mean error {MEAN_LIMIT:.2f} sd "
            f"and sd ratios {SD_LOW:.2f} to {SD_HIGH:.2f}"
        )
    refined = [r for r in rows if r["method"] == "dft-refined"]
    missed = [r["model"] for r in refined if not r["passes"] and not r["flagged"]]
    alarms = [r["model"] for r in refined if r["passes"] and r["flagged"]]
    if refined:
        out.append(f"dft-refined: outside the target and not flagged: {', '.join(missed) or 'none'}")
        out.append(f"dft-refined: inside the target and flagged: {', '.join(alarms) or 'none'}")
    for model in ("breast_cancer", "german_credit"):
        row = by.get((model, "dft-refined"), {})
        if row.get("ratio") is not None:
            out.append(
                f"{model}: dft-refined takes {row['ratio']:.3f} of NUTS' CPU seconds (target {share:.3f})"
            )
    ratios = [r["ratio"] for r in refined if r["ratio"] is not None]
    if ratios:
        goal = "no target" if median_share is None else f"target {median_share:.3f}"
        out.append(f"median over {len(ratios)} models: {median(ratios):.3f} of NUTS' CPU seconds ({goal})")
    return out
