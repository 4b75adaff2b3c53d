"""Fits over rows on several devices, in processes of their own: `python sharded_fits.py OUT devices|process K PORT`."""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pyro_dft.engine_jax.target import _evaluate_block
from pyro_dft.errors import ModelError, SettingsError
from pyro_dft.numpyro import DFT
from pyro_dft.numpyro.model import NumPyroProblem

ROWS, COLUMNS, POINTS = 2000, 3, 16
OPTIONS = {"num_draws": 300, "train": "never", "modes": "never", "disable_progbar": True}


def data():
    """A regression with a group for each row."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLUMNS))
    return x, x @ [1.0, -0.5, 0.2] + rng.normal(size=ROWS)


def regression(x, y, width):
    """Its likelihood sums over a plate of rows."""
    w = numpyro.sample("w", dist.Normal(0.0, width).expand([COLUMNS]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ w, noise), obs=y)


def subsampled(x, y, width):
    """The same by minibatches."""
    w = numpyro.sample("w", dist.Normal(0.0, width).expand([COLUMNS]).to_event(1))
    with numpyro.plate("rows", len(y), subsample_size=50) as i:
        numpyro.sample("y", dist.Normal(x[i] @ w, 1.0), obs=y[i])


def placed(mesh, spec):
    """The data on a mesh; each process gives what its devices hold."""
    return tuple(
        jax.make_array_from_callback(a.shape, NamedSharding(mesh, spec), lambda index, a=a: a[index])
        for a in data()
    )


def fit(rows, model=regression, key=0, **options):
    """Draws, verdict and cost of one fit."""
    dft = DFT(model, **{**OPTIONS, **options})
    dft.run(jax.random.key(key), *rows, jnp.asarray(2.0))
    return dft


def told(dft):
    """What is compared."""
    draws = {name: np.asarray(value).tolist() for name, value in dft.get_samples().items()}
    report = dft.diagnostics()
    return {"draws": draws, "status": report["status"], "gradients": report["gradient_evaluations"]}


def program(rows, model=regression):
    """What an evaluation of `POINTS` points sends, and what of the data each device gets."""
    target = NumPyroProblem(model, (*rows, jnp.asarray(2.0))).target()
    words = np.zeros(2, np.uint32) if target.minibatch else None
    points = np.zeros((POINTS, target.dim))
    compiled = _evaluate_block.lower(target.spec, points, target.data, words).compile()
    return {"text": compiled.as_text(), "bytes": compiled.memory_analysis().argument_size_in_bytes}


def on_devices():
    """Four devices of one process."""
    devices = np.array(jax.devices())
    rows = PartitionSpec("rows")
    one, four = data(), placed(Mesh(devices, ("rows",)), rows)
    copies = placed(Mesh(devices[:3], ("chains",)), PartitionSpec())
    # A mesh as jax makes it now, whose axes are explicit, and which is in force.
    mesh = jax.make_mesh((2, 2), ("chains", "rows"))
    both = placed(mesh, rows)
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else contextlib.nullcontext():
        whole = {"both": fit(both)}
    whole = {
        "one": fit(one),
        "rows": fit(four),
        "copies": fit(copies),
        "minibatches": fit(four, subsampled),
    } | whole
    fits = {name: told(dft) for name, dft in whole.items()}  # before anything more is evaluated
    idata = whole["rows"].to_inference_data()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fit.safetensors")
        whole["rows"].save(path)
        loaded = DFT.load(path, regression, *one, np.asarray(2.0))
    return {
        **fits, "loaded": told(loaded), "likelihood": float(idata.log_likelihood["y"].sum()),
        "programs": {
            "one": program(one), "rows": program(four), "both": program(both), "minibatches": program(four, subsampled)
        },
        "split": [tuple(shard.data.shape) for shard in four[0].addressable_shards],
    }  # fmt: skip


def _error(make, kind):
    try:
        make()
    except kind as error:
        return str(error)
    return ""


def in_processes(rank, port):
    """One device of each of two processes."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    rows = placed(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
    own = fit(rows)
    missing = np.full(ROWS // 2, 0.0 if rank else np.nan)
    bad = jax.make_array_from_process_local_data(rows[1].sharding, missing)
    return told(own) | {
        "own rows": [shard.data.shape[0] for shard in rows[0].addressable_shards],
        "likelihood": float(own.to_inference_data().log_likelihood["y"].sum()),
        "apart": _error(lambda: fit(rows, key=rank), ModelError),
        "timed": _error(lambda: fit(rows, max_seconds=100.0), SettingsError),
        "missing": _error(lambda: fit((rows[0], bad)), ModelError),
    }


if __name__ == "__main__":
    out, kind, *rest = sys.argv[1:]
    found = on_devices() if kind == "devices" else in_processes(int(rest[0]), int(rest[1]))
    Path(out).write_text(json.dumps(found))
