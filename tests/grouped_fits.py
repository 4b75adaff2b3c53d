"""Fits in one process of a group: `python grouped_fits.py OUT KIND RANK SIZE PORT`."""

import datetime
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.distributed as group

from pyro_dft import DFT, DFTKernel
from pyro_dft.errors import ModelError, SettingsError
from pyro_dft.experimental import grouped

ROWS, COLUMNS = 900, 3
OPTIONS = {"num_draws": 300, "seed": 0, "modes": "never", "reparam": "never", "disable_progbar": True}
DOUBLE = torch.float64


def data():
    """A regression with a group of rows for each of four intercepts."""
    rng = np.random.default_rng(0)
    x, place = rng.normal(size=(ROWS, COLUMNS)), np.arange(ROWS) % 4
    y = x @ [1.0, -0.5, 0.2] + rng.normal(size=4)[place] + rng.normal(size=ROWS)
    return torch.as_tensor(x), torch.as_tensor(place), torch.as_tensor(y)


def regression(x, place, y):
    """What is the same for all rows counts once: the intercepts, and a factor; the rows are summed."""
    zero, one = torch.zeros((), dtype=DOUBLE), torch.ones((), dtype=DOUBLE)
    w = pyro.sample("w", dist.Normal(zero, 2 * one).expand([COLUMNS]).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(2 * one))
    with pyro.plate("groups", 4):
        a = pyro.sample("a", dist.Normal(zero, spread))
    pyro.factor("penalty", -0.5 * w[0].square())
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ w + a[place], one), obs=y)


def row_effects(x, place, y):
    """A latent value for each row."""
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(pyro.sample("effect", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def discrete(x, place, y):
    """A discrete value for each row."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + pyro.sample("kind", dist.Bernoulli(0.5)), 1.0), obs=y)


def subsampled(x, place, y):
    """Minibatches."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample_size=10) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def picky(x, place, y):
    """Raises on the rows of the second process, after some evaluations."""
    regression(x, place, y)
    picky.calls += 1
    if picky.calls > 20 and group.get_rank():
        raise OSError("the disk is gone")


picky.calls = 0


def dying(x, place, y):
    """Ends the second process in the middle of a fit."""
    regression(x, place, y)
    dying.calls += 1
    if dying.calls > 20 and group.get_rank():
        os._exit(9)


dying.calls = 0


def told(dft):
    """What is compared."""
    report = dft.diagnostics()
    draws = {name: value.tolist() for name, value in dft.get_samples().items()}
    return {
        "draws": draws, "more": dft.get_samples(50)["w"].tolist(), "status": report["status"],
        "gradients": report["gradient_evaluations"],
    }  # fmt: skip


def fit(rows, model=regression, **options):
    """One fit."""
    dft = DFT(model, **{**OPTIONS, **options})
    dft.run(*rows)
    return dft


def error(make, kind=ModelError):
    """What it raises."""
    try:
        make()
    except kind as raised:
        return str(raised)
    return ""


def everything(own, out):
    """Fits, files, networks, and what is refused."""
    world, path = group.group.WORLD, str(Path(out).with_suffix(f".{group.get_rank()}.safetensors"))
    whole = fit(own, process_group=world)
    found = {"fit": told(whole)}
    whole.save(path)
    again = DFT.load(path, regression, *own, options={"process_group": world}, seed=1)
    found["loaded"] = again.get_samples()["w"].tolist() == whole.get_samples()["w"].tolist()
    found["pickled"] = error(lambda: whole.__getstate__(), TypeError)
    short = grouped(
        {"train": "always", "num_steps": 6, "precondition_steps": 5, "num_draws": 20, "batch_size": 8}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dft = fit(own, process_group=world, objective="dft-paper", **short)
    found["network"] = dft.get_samples()["w"].tolist()
    found["terms"] = {
        k: v[0].tolist() for k, v in whole.parts.backend.terms_at(np.zeros((1, COLUMNS + 5))).items()
    }
    found["refused"] = {
        model.__name__: error(lambda model=model: fit(own, model, process_group=world))
        for model in (row_effects, discrete, subsampled)
    }
    found["timed"] = error(lambda: fit(own, process_group=world, max_seconds=9.0), SettingsError)
    settings = error(lambda: fit(own, process_group=world, num_draws=100 + group.get_rank()))
    missing = own[2].clone()
    if group.get_rank():
        missing[0] = torch.nan
    found |= {"settings": settings, "missing": error(lambda: fit((*own[:2], missing), process_group=world))}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tuple(part[:50] for part in data()), process_group=world, max_gradients=1)
    kernel = error(lambda: DFTKernel(regression, process_group=world), SettingsError)
    failed = error(lambda: fit(own, picky, process_group=world), OSError)
    found |= {"kernel": kernel, "failed": failed}
    return found | {"same rows": [str(w.message) for w in caught if "rows are counted" in str(w.message)]}


def main():
    """Joins the group and does what is asked for."""
    out, kind, rank, size, port = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=4 if kind == "sleeping" else 120)
    group.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timeout=limit, world_size=size, rank=rank)
    # Not the same number of rows for each.
    cuts = [0, 500, ROWS]
    own = tuple(part[cuts[rank] : cuts[rank + 1]] for part in data())
    if kind == "everything":
        found = everything(own, out)
    elif kind == "sleeping" and rank:
        time.sleep(300)  # until it is killed
        found = {}
    else:
        model = {"dying": dying, "sleeping": regression}[kind]
        found = {"error": error(lambda: fit(own, model, process_group=group.group.WORLD), ConnectionError)}
    Path(out).write_text(json.dumps(found))
    os._exit(0)  # without a farewell to processes that are gone


if __name__ == "__main__":
    main()
