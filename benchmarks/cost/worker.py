"""One cell of the cost benchmark, run in a process of its own under a limit of CPU seconds.

The parent calls `run_cell`; the child runs `main` through ``python -m benchmarks.cost --here FOLDER``, with the job in
``job.json``, and leaves ``row.json`` and ``summary.npz`` in the same folder.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import nuts
from benchmarks.cost import rivals, truth
from benchmarks.cost.accuracy import Summary
from benchmarks.cost.targets import TARGETS, Target, scaled
from benchmarks.million import peak_bytes as peak_with_parent
from benchmarks.table import Row

ROOT = Path(__file__).resolve().parents[2]
# What defines a cell beside its model and data.
SETTINGS: dict[str, dict[str, Any]] = {"dft": {"seed": 0}, "nuts": nuts.settings(), **rivals.SETTINGS}
ONE_THREAD = {
    "NPROC": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}  # fmt: skip
# A process that ignores the first signal is ended so many CPU seconds later.
GRACE = 30


def run_cell(name: str, method: str, framework: str, folder: Path, limit: int) -> Row:
    """Run one cell in a fresh process; its row, with what became of it where it did not end well.

    Args:
        name: A target, or one of `targets.scaled`.
        method: A key of `SETTINGS`, or "reference".
        framework: "numpyro" or "pyro".
        folder: Where its files are kept.
        limit: CPU seconds after which it is stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("row.json", "summary.npz"):
        (folder / old).unlink(missing_ok=True)
    job = {"name": name, "method": method, "framework": framework, "limit": limit}
    (folder / "job.json").write_text(json.dumps(job))

    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cost", "--here", str(folder)]
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    whole = {"process_seconds": usage.ru_utime + usage.ru_stime}
    if (folder / "row.json").exists():
        return whole | json.loads((folder / "row.json").read_text())
    over = child.returncode == -signal.SIGXCPU or whole["process_seconds"] > limit
    return whole | _ended_badly(child.returncode, f"stopped after {limit} CPU s" if over else "", folder)


def _ended_badly(code: int, said: str, folder: Path) -> Row:
    """The row of a process that left none; without a reason, its last line of output or its exit status is one."""
    if not said:
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
        said = f"ended with {lines[-1] if lines else f'status {code}'}"[:200]
    row = {"said": said, "flagged": True}
    (folder / "row.json").write_text(json.dumps(row))
    return row


def peak_bytes() -> float:
    """Peak resident memory of this program; the system's own count also holds what the parent had when it forked."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return peak_with_parent()
    return 1024.0 * int(status.split("VmHWM:")[1].split()[0])


def yardstick() -> float:
    """CPU seconds of a fixed piece of work: whoever shares the cores makes all CPU seconds longer, these too."""
    start, total = time.process_time(), 0
    for i in range(3_000_000):
        total += i * i % 7
    x = np.random.default_rng(0).normal(size=2_000_000)
    for _ in range(5):
        x = np.sort(np.sin(x))
    return time.process_time() - start + 0.0 * total


def find(name: str) -> Target:
    """A target by its name; sizes of the scaling plot are made from theirs."""
    return TARGETS[name] if name in TARGETS else scaled(name)


def main(folder: Path) -> None:
    """The child's part."""
    job = json.loads((folder / "job.json").read_text())
    # Here and not by the parent, which would have to fork for it: jax's threads do not survive that.
    resource.setrlimit(resource.RLIMIT_CPU, (job["limit"], job["limit"] + GRACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    target, method, framework = find(job["name"]), job["method"], job["framework"]
    if method == "reference":
        made = truth.make(target)
        truth.store(made, truth.path(target))
        (folder / "row.json").write_text(
            json.dumps({"said": truth.words(made), "cpu": made.meta.get("cpu_seconds")})
        )
        return
    from benchmarks.cost import methods  # loads torch

    _one_thread(framework)
    speed = yardstick()
    run = {"dft": methods.dft, "nuts": methods.frameworks_nuts, **rivals.METHODS}[method]
    outcome = run(target, framework, SETTINGS[method])
    peak = peak_bytes()
    Summary.of(outcome.chains, **({"shares": [1.0]} if method in ("dft", "laps") else {})).save(
        folder / "summary.npz"
    )
    row = {
        **outcome.cost.to_json(framework), "gradients": outcome.gradients, "warm_gradients": outcome.warm_gradients,
        "draws": outcome.chains.shape[0] * outcome.chains.shape[1], "said": outcome.said, "flagged": outcome.flagged,
        "peak_mb": peak / 1e6,
        "yardstick": (speed + yardstick()) / 2, **outcome.notes,
    }  # fmt: skip
    (folder / "row.json").write_text(json.dumps(row))


def _one_thread(framework: str) -> None:
    if framework == "pyro":
        import torch

        torch.set_num_threads(1)
