"""One posterior over shared rows, against a model of its cost: ``python -m benchmarks scale``.

A logistic regression, with NumPyro on 1, 2 and 4 devices of one process (forced on the CPU), and with Pyro in 1 and 2 processes.
Each case is a fresh process, or as many as it needs. Measured: CPU seconds of one evaluation of 64 points, in all; bytes
of rows on each device; bytes that an evaluation gives back from other devices; and whole fits: gradients, CPU seconds, verdict.
Predicted from the case with one device: the same CPU seconds in all, rows shared out, and 1 + d numbers for each point.
Writes ``benchmarks/results/scale.json`` and ``.md``.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "results"
ROWS, COLUMNS, POINTS, REPEATS, ITEM = 20_000, 10, 64, 20, 4
CASES = [("numpyro", 1), ("numpyro", 2), ("numpyro", 4), ("pyro", 1), ("pyro", 2)]
SETTINGS: dict[str, Any] = {"num_draws": 1000, "train": "never", "disable_progbar": True}


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictors and outcomes of a logistic regression, in single precision."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, COLUMNS)).astype(np.float32)
    chance = 1 / (1 + np.exp(-x @ rng.normal(size=COLUMNS)))
    return x, (rng.uniform(size=rows) < chance).astype(np.float32)


def clocked(evaluate: Any) -> float:
    """CPU seconds of one call, over all threads, after two that compile."""
    for _ in range(2):
        evaluate()
    start = time.process_time()
    for _ in range(REPEATS):
        evaluate()
    return (time.process_time() - start) / REPEATS


def in_numpyro(devices: int, rows: int) -> dict[str, Any]:
    """One case with NumPyro; this process has so many devices."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from benchmarks.scale.traffic import collectives
    from pyro_dft.engine_jax.target import _evaluate_block
    from pyro_dft.numpyro import DFT
    from pyro_dft.numpyro.model import NumPyroProblem

    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 2.0).expand([COLUMNS]).to_event(1))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    mesh = Mesh(np.array(jax.devices()), ("rows",))
    place = NamedSharding(mesh, PartitionSpec("rows"))
    x, y = (jax.device_put(array, place) for array in data(rows))
    target = NumPyroProblem(model, (x, y)).target()
    points = np.random.default_rng(1).normal(size=(POINTS, COLUMNS)).astype(np.float32)
    program = _evaluate_block.lower(target.spec, points, target.data, None).compile()
    # The text of a program has the body of its loop over chunks of points once.
    rounds = -(-POINTS // target.spec.at_once(target.spec.size))
    each = clocked(lambda: program(points, target.data, None)[0].block_until_ready())
    start = time.process_time()
    dft = DFT(model, **SETTINGS)
    dft.run(jax.random.key(0), x, y)
    seconds, report = time.process_time() - start, dft.diagnostics()
    sent = rounds * sum(collectives(program.as_text()).values())
    held = sum(max(shard.data.nbytes for shard in array.addressable_shards) for array in (x, y))
    return {
        "each": each, "seconds": seconds, "gradients": report["gradient_evaluations"], "status": report["status"],
        "row_bytes": held, "sent": sent, "mean": np.asarray(dft.get_samples()["w"]).mean(0).tolist(),
    }  # fmt: skip


def in_pyro(rank: int, size: int, port: str, rows: int) -> dict[str, Any]:
    """One process of a case with Pyro."""
    import pyro
    import pyro.distributions as dist
    import torch
    import torch.distributed as group

    from pyro_dft import DFT

    def model(x: Any, y: Any) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 2.0).expand([COLUMNS]).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    torch.set_num_threads(1)
    group.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=size, rank=rank)
    sent: list[int] = []
    original = group.all_reduce

    def counted(message: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(message.numel() * message.element_size())
        return original(message, *args, **kwargs)

    group.all_reduce = counted
    x, y = (torch.as_tensor(np.array_split(array, size)[rank]) for array in data(rows))
    dft = DFT(model, seed=0, process_group=group.group.WORLD, **SETTINGS)
    start = time.process_time()
    dft.run(x, y)
    seconds, report = time.process_time() - start, dft.diagnostics()
    target = dft.parts.backend.problems[0].target
    points = torch.as_tensor(np.random.default_rng(1).normal(size=(POINTS, COLUMNS)), dtype=torch.float32)
    each = clocked(lambda: target.evaluate(points))
    found = {
        "each": each, "seconds": seconds, "gradients": report["gradient_evaluations"], "status": report["status"],
        "row_bytes": x.nbytes + y.nbytes, "sent": sent[-1], "mean": dft.get_samples()["w"].mean(0).tolist(),
    }  # fmt: skip
    group.barrier()
    group.destroy_process_group()
    return found


def case(framework: str, devices: int, rows: int) -> dict[str, Any]:
    """Starts the processes of a case, and puts together what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = f"--xla_force_host_platform_device_count={devices}"
    count = devices if framework == "pyro" else 1
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale", "worker", framework, str(rank), str(devices), port, str(rows)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "XLA_FLAGS": flags},
        )
        for rank in range(count)
    ]  # fmt: skip
    texts = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{framework} on {devices} failed")
    parts = [json.loads(text.strip().splitlines()[-1]) for text in texts]
    summed = {name: sum(part[name] for part in parts) for name in ("each", "seconds")}
    widest = {"row_bytes": max(part["row_bytes"] for part in parts)}
    return {**parts[0], **summed, **widest, "framework": framework, "devices": devices, "rows": rows}


def predicted(one: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """What the model of the cost says of a case, from that with one device of the same framework."""
    devices, marks = found["devices"], found["devices"] if found["framework"] == "pyro" else 0
    alone = devices == 1 and found["framework"] == "numpyro"  # where there is nobody to send to
    sent = 0 if alone else ITEM * (POINTS * (1 + COLUMNS) + marks)
    return {
        "each": one["each"],
        "row_bytes": ITEM * -(-found["rows"] // devices) * (COLUMNS + 1),
        "sent": sent,
    }


def table(cases: list[dict[str, Any]]) -> str:
    """Predicted against measured, in Markdown."""
    ones = {found["framework"]: found for found in cases if found["devices"] == 1}
    lines = [
        f"Logistic regression, {cases[0]['rows']:,} rows x {COLUMNS}, evaluations of {POINTS} points. Predicted / measured; CPU "
        "seconds are over all devices or processes.",
        "",
        "| | devices | CPU ms of an evaluation | row bytes on a device | bytes summed in an evaluation | fit: gradients "
        "| fit: CPU s | verdict | largest difference of a mean to one device's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in cases:
        one = ones[found["framework"]]
        guess = predicted(one, found)
        apart = float(np.abs(np.subtract(found["mean"], one["mean"])).max())
        lines.append(
            f"| {found['framework']} | {found['devices']} | {1e3 * guess['each']:.1f} / {1e3 * found['each']:.1f} "
            f"| {guess['row_bytes']:,.0f} / {found['row_bytes']:,} | {guess['sent']:,.0f} / {found['sent']:,} "
            f"| {found['gradients']:,} | {found['seconds']:.1f} | {found['status']} | {apart:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures all cases, or is one process of one."""
    if sys.argv[1:2] == ["worker"]:
        framework, rank, devices, port, rows = sys.argv[2:]
        warnings.simplefilter("ignore")
        if framework == "numpyro":
            found = in_numpyro(int(devices), int(rows))
        else:
            found = in_pyro(int(rank), int(devices), port, int(rows))
        print(json.dumps(found), flush=True)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    cases = [case(framework, devices, given.rows) for framework, devices in CASES]
    (given.output / "scale.json").write_text(json.dumps(cases, indent=1) + "\n")
    (given.output / "scale.md").write_text(table(cases))
    print(table(cases))


if __name__ == "__main__":
    main()
