"""Where the experiments write: tables and figures with the command, seeds, versions and machine on them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cache, table

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
CACHE = cache.FOLDER / "paper"
PACKAGES = ("pyro-ppl", "torch", "numpyro", "jax", "numpy")


def folder(quick: bool) -> Path:
    """Where results go: what ``--quick`` makes is no result."""
    path = CACHE / "quick" if quick else RESULTS
    path.mkdir(parents=True, exist_ok=True)
    return path


def provenance(command: str, seeds: Sequence[int]) -> list[str]:
    """The lines that say how a result was made."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [
        f"made by `{command}`; seeds {', '.join(map(str, seeds))}",
        f"pyro_dft {importlib.metadata.version('pyro-dft')}, {versions}, Python {platform.python_version()}",
        f"machine: {processor()}, {os.cpu_count()} cores, no GPU used, {platform.system()}",
    ]


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(
    stem: Path, title: str, rows: Sequence[table.Row], columns: table.Columns, notes: Sequence[str],
    figures: Sequence[tuple[str, str]] = (),
    tables: Sequence[tuple[str, Sequence[table.Row], table.Columns]] = (),
) -> None:  # fmt: skip
    """Write ``stem``.md and ``stem``.csv.

    Args:
        stem: Path without suffix.
        title: Heading of the page.
        rows: One for each line of the table.
        columns: (heading, field, format) of the Markdown table; the CSV holds all fields.
        notes: Sentences below the table: what was found, then the `provenance`.
        figures: (file name in the same folder, caption).
        tables: (heading, rows, columns) of shorter tables that are shown above the notes; the long one goes to the end then.
    """
    table.write(rows, [], stem, columns)
    pictures = "".join(f"![{caption}]({name})\n\n{caption}\n\n" for name, caption in figures)
    points = "\n".join(f"- {note}" for note in notes) + "\n"
    body = f"{table.markdown(rows, columns)}\n{points}"
    if tables:
        short = "".join(f"## {heading}\n\n{table.markdown(own, form)}\n" for heading, own, form in tables)
        body = f"{short}## Notes\n\n{points}\n## All figures\n\n{table.markdown(rows, columns)}"
    stem.with_suffix(".md").write_text(f"# {title}\n\n{pictures}{body}", encoding="utf-8")
