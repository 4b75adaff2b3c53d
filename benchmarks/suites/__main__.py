"""Do the frameworks' own tests of MCMC pass with the kernel swapped? ``python -m benchmarks.suites FOLDER``.

FOLDER holds a copy of NumPyro's or Pyro's repository (or of its tests); nothing of theirs is kept here. Every test runs in a
process of its own under a limit of CPU seconds. Finished tests are kept, and a table of those that pass, do not apply (and
why) or fail is written to benchmarks/results. ``--every 5`` takes each fifth of those that apply, ``--only NAME`` those whose
id holds it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.cache import code_hash
from benchmarks.suites.reasons import not_applicable

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = HERE.parent / ".cache" / "suites"
RESULTS = HERE.parent / "results"
TESTS = {
    "numpyro": ("test/infer/test_mcmc.py",),
    "pyro": tuple(f"tests/infer/mcmc/test_{name}.py" for name in ("mcmc_api", "nuts", "hmc", "valid_models")),
}
OUTCOMES = ("passes", "does not apply", "skipped by itself", "over the limit", "fails")
RUN = ("passes", "over the limit", "fails")  # outcomes that hang on the package's state


def backend_of(folder: Path) -> str:
    """Whose tests are in a folder.

    Raises:
        SystemExit: nobody's.
    """
    for backend, files in TESTS.items():
        if all((folder / name).is_file() for name in files):
            return backend
    raise SystemExit(f"{folder} holds neither {TESTS['numpyro'][0]} nor tests/infer/mcmc of Pyro")


def pytest(folder: Path, backend: str, *arguments: str, limit: int, outcome: Path | None = None) -> Any:
    """Runs pytest with the kernel swapped, in a process of its own, without the suite's settings for warnings."""
    environment = {
        **os.environ, "SUITE_BACKEND": backend, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        **({} if outcome is None else {"SUITE_OUTCOME": str(outcome)}),
    }  # fmt: skip
    environment.pop("CI", None)  # some tests leave themselves out where they see it
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as settings:
        settings.write("[pytest]\n")
        settings.flush()
        call = [
            sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.suites.swap", "-p", "no:cacheprovider", "-c",
            settings.name, "--rootdir", str(folder), *arguments,
        ]  # fmt: skip
        return subprocess.run(
            call, cwd=folder, env=environment, capture_output=True, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
        )  # fmt: skip


def collected(folder: Path, backend: str) -> list[str]:
    """Ids of all tests, with the kernel swapped."""
    done = pytest(folder, backend, "--collect-only", *TESTS[backend], limit=600)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    if not tests:
        raise SystemExit(f"nothing was collected:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return tests


def run(folder: Path, backend: str, test: str, limit: int) -> dict[str, Any]:
    """The row of one test."""
    before = _cpu()
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch) / "outcome.json"
        done = pytest(folder, backend, test, limit=limit, outcome=told)
        found = json.loads(told.read_text()) if told.is_file() else None
    seconds = _cpu() - before
    row = {"test": test, "seconds": round(seconds, 1), "reason": "", "code": code_hash()}
    if found is None:
        over = (
            seconds >= limit - 1 or done.returncode == -signal.SIGXCPU
        )  # the two clocks differ by some per cent
        tail = (done.stdout + done.stderr).strip().splitlines()
        return {
            **row,
            "outcome": "over the limit" if over else "fails",
            "reason": "" if over else (tail or [""])[-1],
        }
    reason = " ".join(str(found["reason"]).split())[:300]
    if found["outcome"] == "skipped":
        return {**row, "outcome": "skipped by itself", "reason": reason}
    if not found["kernels"]:
        return {**row, "outcome": "does not apply", "reason": "neither NUTS nor HMC is in it"}
    return {**row, "outcome": "passes" if found["outcome"] == "passed" else "fails", "reason": reason}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(rows: list[dict[str, Any]], backend: str, total: int, code: str) -> str:
    """All rows as Markdown, with the counts before them; `code` is the present state of the package."""
    counts = Counter(row["outcome"] for row in rows)
    old = sum(row.get("code") != code for row in rows if row["outcome"] in RUN)
    told = f" {old} are of an earlier state of the package." if old else ""
    lines = [
        f"# {backend}'s own tests of MCMC with the kernel swapped", "",
        f"`python -m benchmarks.suites FOLDER`: {len(rows)} of {total} tests have an outcome.{told}", "",
        "| outcome | tests |", "|---|---|", *(f"| {name} | {counts[name]} |" for name in OUTCOMES), "",
        "| test | outcome | CPU s | reason |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in sorted(rows, key=lambda row: (OUTCOMES.index(row["outcome"]), row["test"])):
        test, reason = (str(row[name]).replace("|", "/") for name in ("test", "reason"))
        lines.append(f"| {test} | {row['outcome']} | {row['seconds']:.0f} | {reason} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Runs what was asked for; 1 where a test fails."""
    parser = argparse.ArgumentParser(prog="benchmarks.suites", description=__doc__)
    parser.add_argument("folder", type=Path, help="a copy of NumPyro's or Pyro's repository")
    parser.add_argument("--only", default="", help="tests whose id holds this")
    parser.add_argument("--every", type=int, default=1, help="each so manieth of them")
    parser.add_argument("--limit", type=int, default=120, help="CPU seconds for each test")
    parser.add_argument("--fresh", action="store_true", help="run finished ones again")
    parser.add_argument("--table", action="store_true", help="write the table of what is finished")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    backend = backend_of(folder)
    tests = collected(folder, backend)
    cells = {
        test: CACHE / backend / f"{hashlib.sha256(test.encode()).hexdigest()[:16]}.json" for test in tests
    }
    asked = [test for test in tests if given.only in test]
    apply = [test for test in asked if not not_applicable(backend, test)][:: given.every]
    for test in [] if given.table else apply:
        if cells[test].is_file() and not given.fresh:
            continue
        start = time.perf_counter()
        row = run(folder, backend, test, given.limit)
        cells[test].parent.mkdir(parents=True, exist_ok=True)
        cells[test].write_text(json.dumps(row))
        took = time.perf_counter() - start
        print(f"{row['outcome']:18} {took:5.0f} s  {test}  {row['reason']}", flush=True)
    rows = []
    for test, path in cells.items():
        reason = not_applicable(backend, test)
        if reason:
            rows.append({"test": test, "outcome": "does not apply", "reason": reason, "seconds": 0.0})
        elif path.is_file():
            rows.append(json.loads(path.read_text()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"suites_{backend}.md").write_text(table(rows, backend, len(tests), code_hash()))
    counts = Counter(row["outcome"] for row in rows)
    print(", ".join(f"{name}: {counts[name]}" for name in OUTCOMES))
    return int(counts["fails"] > 0)


if __name__ == "__main__":
    sys.exit(main())
