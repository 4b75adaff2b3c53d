"""How far the results of DFT vary with the seed: ``python -m benchmarks.posteriordb.seeds [names]``.

Five seeds on five posteriors with the default NumPyro sampler, and a second fit with the first seed, whose draws are
compared with the first fit's bit for bit. Writes ``benchmarks/results/seeds.md`` (mean and range over the seeds) and
``.csv`` (every fit). Finished cells are kept below ``benchmarks/.cache`` and not run again; ``--fresh`` runs all again,
``--table`` only prints.

jax's caches are emptied before the first fit of a posterior and not between its fits: CPU seconds hold whatever a user
pays who fits the same model again in the same process.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import csv
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cache, methods, metrics, table
from benchmarks.costs import timed
from benchmarks.posteriordb import case
from benchmarks.posteriordb.posteriors import POSTERIORS

RESULTS = Path(__file__).resolve().parents[1] / "results"
NAMES = (
    "kidiq-kidscore_interaction",
    "arK-arK",
    "mesquite-logmesquite",
    "eight_schools-eight_schools_centered",
    "low_dim_gauss_mix-low_dim_gauss_mix",
)
SEEDS = range(5)
# Seed and which fit with it; the repeat comes right after the fit that it is compared with.
FITS = ((SEEDS[0], 0), (SEEDS[0], 1), *((seed, 0) for seed in SEEDS[1:]))
KINDS = ("raw", "refined")
COLUMNS: table.Columns = (
    ("posterior", "model", "{}"),
    ("d", "d", "{}"),
    ("draws", "kind", "{}"),
    ("seeds", "seeds", "{}"),
    ("worst mean", "worst_mean", "{0[0]:.3f} ({0[1]:.3f} to {0[2]:.3f})"),
    ("sd min", "sd_low", "{0[0]:.2f} ({0[1]:.2f} to {0[2]:.2f})"),
    ("sd max", "sd_high", "{0[0]:.2f} ({0[1]:.2f} to {0[2]:.2f})"),
    ("worst q", "worst_quantile", "{0[0]:.3f} ({0[1]:.3f} to {0[2]:.3f})"),
    ("CPU s", "seconds", "{0[0]:.1f} ({0[1]:.1f} to {0[2]:.1f})"),
    ("status", "status", "{}"),
    ("same seed, same bits", "same", "{}"),
)
NUMBERS = ("worst_mean", "sd_low", "sd_high", "worst_quantile", "seconds")


def digest(samples: Mapping[str, Any]) -> str:
    """Hash of the bits of draws {site: (n, *shape)}, in the order of the sites' names."""
    h = hashlib.sha256()
    for name in sorted(samples):
        value = np.ascontiguousarray(samples[name])
        h.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return h.hexdigest()


def fit(name: str, seed: int) -> dict[str, table.Row]:
    """One fit with its refined draws and 10,000 raw ones: a row for each kind. A fit that raises keeps its error."""
    import jax

    from pyro_dft.numpyro import DFT

    posterior = POSTERIORS[name]
    one, truth = case.PosteriorCase(posterior), case.reference(posterior)
    model, args = one.numpyro()
    base: table.Row = {"model": name, "d": len(truth.mean), "seed": seed, "code": methods.code_hash()}
    try:
        dft = DFT(model, disable_progbar=True)
        _, fitting = timed(lambda: dft.run(jax.random.key(seed), *args))
        refined, refining = timed(dft.get_samples)
        raw, drawing = timed(lambda: dft.get_samples(methods.NUM_DRAWS, refine_steps=0))
        status, _ = methods.verdict(dft.diagnostics())
    except Exception as error:  # one failing fit must not lose the others
        said = f"{type(error).__name__}: {error}"[:200]
        return {kind: base | {"kind": kind, "status": said} for kind in KINDS}
    return {
        kind: base
        | {"kind": kind, "status": status, "seconds": (fitting + cost).cpu, "digest": digest(samples)}
        | metrics.errors(one.flat(samples), truth).to_dict()
        for kind, samples, cost in (("raw", raw, drawing), ("refined", refined, refining))
    }


def cell_path(name: str, seed: int, repeat: int) -> Path:
    """The file of one fit."""
    settings = {"seed": seed, "repeat": repeat, "draws": methods.NUM_DRAWS}
    return cache.cell(case.PosteriorCase(POSTERIORS[name]), "seeds", settings, "numpyro") / "rows.json"


def spread(rows: Sequence[table.Row], field: str) -> tuple[float, float, float] | None:
    """Mean, smallest and largest value of a field over rows that have it."""
    values = [r[field] for r in rows if r.get(field) is not None]
    return (float(np.mean(values)), min(values), max(values)) if values else None


def merged(rows: Sequence[table.Row]) -> table.Row:
    """One line of the table from the fits (``seed`` and ``repeat``) of one posterior and kind of draws."""
    first = [r for r in rows if not r["repeat"]]
    counts = Counter(r["status"] for r in first)
    hashes = [r.get("digest") for r in rows if r["seed"] == SEEDS[0]]
    same = hashes[0] == hashes[1] if len(hashes) == 2 and all(hashes) else None
    return {
        "model": rows[0]["model"],
        "d": rows[0]["d"],
        "kind": rows[0]["kind"],
        "seeds": len(first),
        "status": ", ".join(f"{n} {status}" for status, n in counts.most_common()),
        "same": same,
        **{field: spread(first, field) for field in NUMBERS},
    }


def notes(rows: Sequence[table.Row]) -> list[str]:
    """What a reader of the table has to know, one sentence each."""
    out = [
        f"seeds {SEEDS[0]} to {SEEDS[-1]}, default settings, {methods.NUM_DRAWS:,} draws: the mean over the seeds and "
        "(smallest to largest)",
        "worst mean error and worst error of the 5, 50 and 95 % quantiles in sds of the reference; sd min and sd max are "
        "the smallest and the largest ratio of sds over the coordinates",
        "CPU seconds from `run` to the draws; jax's caches are emptied before the first fit of a posterior and not "
        "between its fits, so that the largest is the first fit's, which compiles",
        "same seed, same bits: a second fit with the first seed on the same machine gives the same draws bit for bit",
    ]
    codes = {r["code"] for r in rows}
    if len(codes) > 1 or codes - {methods.code_hash()}:
        old = sorted({r["model"] for r in rows if r["code"] != methods.code_hash()})
        out.append(f"made by an earlier state of the package (--fresh runs them again): {', '.join(old)}")
    return out


def collect(names: Sequence[str]) -> list[table.Row]:
    """The rows of all finished fits."""
    rows = []
    for name in names:
        for seed, repeat in FITS:
            path = cell_path(name, seed, repeat)
            if path.exists():
                rows += [r | {"repeat": repeat} for r in json.loads(path.read_text()).values()]
    return rows


def write(rows: Sequence[table.Row], stem: Path) -> str:
    """Write the Markdown of the means and the CSV of the fits; returns the table as text."""
    groups: dict[tuple[str, str], list[table.Row]] = {}
    for r in rows:
        groups.setdefault((r["model"], r["kind"]), []).append(r)
    lines = [merged(group) for group in groups.values()]
    text = "\n".join(f"- {n}" for n in notes(rows))
    stem.with_suffix(".md").write_text(table.markdown(lines, COLUMNS) + "\n" + text + "\n")
    with open(stem.with_suffix(".csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)
    return table.plain(lines, COLUMNS) + "\n" + text


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.posteriordb.seeds", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="of the five posteriors, or parts of their names; default all"
    )
    parser.add_argument("--fresh", action="store_true", help="run cells again although they are there")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args(arguments)
    names = [n for n in NAMES if not options.names or any(part in n for part in options.names)]
    import jax

    methods.prepare_process()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a fit warns of is in its status
        for name in [] if options.table else names:
            jax.clear_caches()
            for seed, repeat in FITS:
                path = cell_path(name, seed, repeat)
                if options.fresh or not path.exists():
                    rows = fit(name, seed)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(rows))
                    print(f"{name} seed {seed}.{repeat}: {rows['refined']['status']}", flush=True)
    rows = collect(NAMES)
    RESULTS.mkdir(exist_ok=True)
    if rows:
        print(write(rows, RESULTS / "seeds"))


if __name__ == "__main__":
    main()
