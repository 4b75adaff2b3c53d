"""``python -m benchmarks.paper logistic [--quick] [--backend numpyro|pyro]``: run what is missing, write page and figure.

Every (method, seed) is a cell below ``benchmarks/.cache/paper/logistic``; a killed command goes on with the next one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.paper import page
from benchmarks.paper.logistic import course, figures, methods, problem, report
from benchmarks.paper.logistic.course import Run
from benchmarks.paper.logistic.methods import Line


def function(line: Line) -> course.Method:
    """The function that runs a line."""
    from benchmarks.paper.logistic import mcmc, rivals, samplers

    for module in (mcmc, rivals, samplers):
        if hasattr(module, line.function):
            return getattr(module, line.function)
    raise ValueError(f"no method {line.function!r}")


def collect(
    lines: list[Line],
    split: problem.Split,
    seeds: int,
    folder: Path,
    fresh: bool = False,
    finished: bool = False,
) -> dict[str, list[Run]]:
    """All runs by key, seed by seed over all methods, so that an early end leaves complete seeds.

    Args:
        lines: What to run.
        split: The data.
        seeds: Seeds for each line, at most.
        folder: Of the cells.
        fresh: Whether to run finished cells again.
        finished: Whether to take finished cells only, and run nothing.
    """
    runs: dict[str, list[Run]] = {line.key: [] for line in lines}
    made: dict[tuple[str, int, str], Run] = {}
    for seed in range(seeds):
        for line in lines:
            there = course.exists(folder, line.key, seed, line.settings, split)
            if seed >= line.seeds or (finished and not there):
                continue
            twin = (line.function, seed, repr(line.settings))
            if twin not in made:  # in the quick version the reference is NUTS itself
                made[twin] = course.run(folder, line.key, function(line), seed, line.settings, split, fresh)
            run = made[twin]
            runs[line.key].append(run)
            score = report.score(run, split.y_test)
            print(
                f"{line.label}, seed {seed}: accuracy {score.accuracy:.4f}, log likelihood {score.log_likelihood:.4f}, "
                f"{run.wall[-1]:.0f} s",
                flush=True,
            )
    return runs


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.paper logistic", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small version, in under a minute")
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each method, at most")
    parser.add_argument("--rows", type=int, default=methods.TRAIN_ROWS, help="training rows; 0 for all")
    parser.add_argument(
        "--sample", action="store_true", help="take covertype.npz even where there is a network"
    )
    parser.add_argument(
        "--methods", default="", help="comma-separated keys: run these only, and write no page"
    )
    parser.add_argument("--fresh", action="store_true", help="run finished cells again")
    parser.add_argument("--page", action="store_true", help="run nothing; write the page from finished cells")
    options = parser.parse_args(arguments)
    lines = methods.lines(options.backend, options.quick)
    if options.quick:
        split = problem.load(True, 2000, 1000)
        options.seeds = 1
    else:
        split = problem.load(options.sample, options.rows or None)
    wanted = options.methods.split(",") if options.methods else [line.key for line in lines]
    unknown = sorted(set(wanted) - {line.key for line in lines})
    if unknown:
        raise SystemExit(f"unknown methods {unknown}; known: {', '.join(line.key for line in lines)}")
    folder = page.folder(options.quick) / "cells" if options.quick else page.CACHE / "logistic"
    some = [line for line in lines if line.key in wanted]
    runs = collect(some, split, options.seeds, folder, options.fresh, options.page)
    if not options.methods:
        lines = [line for line in lines if runs[line.key]]
        given = ["logistic", *(sys.argv[1:] if arguments is None else arguments)]
        command = "python -m benchmarks.paper " + " ".join(word for word in given if word != "--page")
        stem = page.folder(options.quick) / "logistic"
        if options.backend == "pyro":
            stem = stem.with_name(f"{stem.name}_pyro")
        if options.rows != methods.TRAIN_ROWS:
            stem = stem.with_name(f"{stem.name}_{options.rows or 'all'}")
        write(lines, runs, split, stem, command)


def write(
    lines: list[Line], runs: Mapping[str, list[Run]], split: problem.Split, stem: Path, command: str
) -> None:
    """Table, CSV, figure and page.

    Args:
        lines: Those that have runs.
        runs: By key.
        split: The data.
        stem: Path without suffix.
        command: What makes it all.
    """
    nuts = report.score(runs["nuts"][0], split.y_test)
    groups = {line.label: runs[line.key] for line in lines if line.curve}
    picture = stem.with_suffix(".png")
    figures.draw(picture, groups, split.y_test, nuts)
    found = report.musts(lines, runs, split)
    most = max(len(seeds) for seeds in runs.values())
    notes = [*report.about(split, lines, runs), *found, *page.provenance(command, range(most))]
    caption = "Test accuracy and log likelihood, mean and sd over seeds, against wall time and data passes"
    pyro = " (Pyro)" if any(line.key.startswith("pyro-") for line in lines) else ""
    page.write(
        stem,
        f"Bayesian logistic regression on Covertype{pyro}",
        report.rows(lines, runs, split),
        report.COLUMNS,
        notes,
        [(picture.name, caption)],
    )
    print("\n".join(found))
    print(f"wrote {stem}.md")
