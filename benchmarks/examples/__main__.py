"""Do the frameworks' own examples run with the kernel swapped? ``python -m benchmarks.examples FOLDER``.

FOLDER holds a copy of NumPyro's or Pyro's repository; nothing of theirs is kept here. Each example runs in a process of its own
under a limit of CPU seconds, once with NUTS or HMC as it stands and once with `DFTKernel` under their names. Finished ones are
kept, and a table goes to benchmarks/results. Nothing is downloaded: see benchmarks/examples/data.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cache import code_hash
from benchmarks.examples.catalogue import EXAMPLES, Example
from benchmarks.examples.compare import FINE, STOPPED, row, table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = HERE.parent / ".cache" / "examples"
RESULTS = HERE.parent / "results"
MARKS = {"numpyro": "numpyro/infer/mcmc.py", "pyro": "pyro/infer/mcmc/api.py"}
KERNELS = ("nuts", "dft")


def backend_of(folder: Path) -> str:
    """Whose repository a folder holds.

    Raises:
        SystemExit: nobody's.
    """
    for backend, name in MARKS.items():
        if (folder / name).is_file():
            return backend
    raise SystemExit(f"{folder} holds neither {' nor '.join(MARKS.values())}")


def run(folder: Path, backend: str, example: Example, kernel: str, limit: int) -> dict[str, Any]:
    """What came of one example with one kernel."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "row.json"
        asked = {
            "folder": str(folder), "backend": backend, "example": dataclasses.asdict(example), "kernel": kernel,
            "target": str(target),
        }  # fmt: skip
        paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        done = subprocess.run(
            [sys.executable, "-c", "from benchmarks.examples.worker import main; main()", json.dumps(asked)],
            cwd=scratch, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
        )  # fmt: skip
        found = json.loads(target.read_text()) if target.is_file() else None
    if found is None:
        found = {"error": f"{STOPPED} {limit} CPU s, or killed", "calls": [], "seconds": float(limit)}
    return {**found, "code": code_hash(), "printed": done.stdout[-20_000:]}


def cell(backend: str, example: Example, kernel: str) -> Path:
    """File of a finished run."""
    plain = "".join(c if c.isalnum() else "_" for c in example.name)
    return CACHE / backend / f"{plain}.{kernel}.json"


def finished(backend: str, example: Example, kernel: str) -> dict[str, Any] | None:
    """What came of an earlier run, if there was one."""
    path = cell(backend, example, kernel)
    return json.loads(path.read_text()) if path.is_file() else None


def main(arguments: list[str] | None = None) -> int:
    """Runs what was asked for; 1 where a swapped example ends with an error that NUTS does not have."""
    parser = argparse.ArgumentParser(prog="benchmarks.examples", description=__doc__)
    parser.add_argument("folder", type=Path, help="a copy of NumPyro's or Pyro's repository")
    parser.add_argument("--only", default="", help="examples whose path and options hold this")
    parser.add_argument("--limit", type=int, default=600, help="CPU seconds for each run")
    parser.add_argument("--kernel", choices=KERNELS, help="one of the two alone")
    parser.add_argument("--fresh", action="store_true", help="run finished ones again")
    parser.add_argument("--table", action="store_true", help="write the table of what is finished")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    backend = backend_of(folder)
    for example in EXAMPLES[backend]:
        if given.table or given.only not in example.name:
            continue
        for kernel in [given.kernel] if given.kernel else KERNELS:
            path = cell(backend, example, kernel)
            if path.is_file() and not given.fresh:
                continue
            found = run(folder, backend, example, kernel, given.limit)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
            print(f"{kernel:4} {found['seconds']:6.0f} s  {example.name}  {found['error']}", flush=True)
    rows = [
        row(example.name, example.note, *(finished(backend, example, kernel) for kernel in KERNELS))
        for example in EXAMPLES[backend]
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"examples_{backend}.md").write_text(table(rows, backend, code_hash()))
    wrong = sum(one["outcome"] == "error" for one in rows)
    print(f"{sum(one['outcome'] in FINE for one in rows)} unchanged, {wrong} with an error")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
