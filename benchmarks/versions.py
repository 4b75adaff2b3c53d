"""Which versions the package works with: ``python -m benchmarks.versions [numpyro] [pyro] [--keep FOLDER]``.

Makes a virtual environment with the oldest versions that ``pyproject.toml`` allows and one with the newest that pip finds,
for each backend, and in each makes a small fit with a network, new draws, and ArviZ data. Prints a table; docs/versions.md
holds what came out. pip downloads what it needs: with Pyro that is a torch of the oldest version, which is large.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BACKENDS = ("numpyro", "pyro")
SHOWN = ("jax", "numpyro", "optax", "torch", "pyro-ppl", "numpy", "arviz", "safetensors", "tqdm")
# What was current when the oldest of the others were: newer ones break those, and are no dependencies of the package.
OF_THEIR_TIME = ("matplotlib==3.8.4", "scipy==1.14.1")
SMALL = {
    "train": "always", "num_steps": 60, "precondition_steps": 60, "num_draws": 400, "restarts": 2, "max_refine_steps": 8,
    "width": 16, "batch_size": 32, "disable_progbar": True,
}  # fmt: skip


def requirements(backend: str, oldest: bool) -> list[str]:
    """What pip is asked for; the oldest are pinned to the bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"][backend]]
    if not oldest:
        return [re.split("[><=]", one)[0] for one in stated]
    return [*(one.replace(">=", "==") for one in stated), *OF_THEIR_TIME]


def fit(backend: str) -> dict[str, Any]:
    """A small fit in this process, and the versions that it ran with."""
    y = [1.0, 2.0, 3.0, 2.5, 1.5]
    ppl: Any
    if backend == "pyro":
        import pyro as ppl
        import torch

        from pyro_dft import DFT

        dft, arguments = DFT(_model(ppl), seed=0, **SMALL), (torch.tensor(y),)
    else:
        import jax
        import numpyro as ppl

        from pyro_dft.numpyro import DFT

        dft, arguments = DFT(_model(ppl), **SMALL), (jax.random.key(0), jax.numpy.array(y))
    dft.run(*arguments)
    dft.get_samples(100)
    found = {"status": dft.diagnostics()["status"], "mean": float(dft.get_samples()["mu"].mean())}
    try:
        dft.to_inference_data()
        found["arviz"] = "yes"
    except Exception as error:
        found["arviz"] = f"{type(error).__name__}: {error}"
    return found


def _model(ppl: Any) -> Any:
    def model(y: Any) -> None:
        mu = ppl.sample("mu", ppl.distributions.Normal(0.0, 10.0))
        tau = ppl.sample("tau", ppl.distributions.HalfNormal(5.0))
        with ppl.plate("data", len(y)):
            ppl.sample("y", ppl.distributions.Normal(mu, tau), obs=y)

    return model


def versions() -> str:
    """Installed versions of what matters, in words."""
    found = []
    for name in SHOWN:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def tried(backend: str, oldest: bool, folder: Path) -> str:
    """One row of the table."""
    which = "oldest" if oldest else "newest"
    place = folder / f"{backend}-{which}"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        asked = requirements(backend, oldest)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *asked], check=True)
    made = subprocess.run(
        [str(python), "-W", "ignore", "-m", "benchmarks.versions", "--here", backend],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        last = made.stderr.strip().splitlines()[-1] if made.stderr.strip() else made.returncode
        return f"| {backend} | {which} | - | - | fails: {last} | - |"
    row = json.loads(made.stdout.splitlines()[-1])
    return f"| {backend} | {which} | {row['python']} | {row['versions']} | {row['status']} | {row['arviz']} |"


def main(arguments: list[str] | None = None) -> None:
    """Every environment in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("backends", nargs="*", help="; ".join(BACKENDS))
    parser.add_argument("--only", choices=("oldest", "newest"), help="one of the two environments")
    parser.add_argument(
        "--keep", type=Path, help="folder for the environments, which are used again from there"
    )
    parser.add_argument("--here", choices=BACKENDS, help="fit in this environment and print the numbers")
    options = parser.parse_args(arguments)
    if options.here:
        found = fit(options.here)
        print(json.dumps({**found, "python": sys.version.split()[0], "versions": versions()}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        print(
            "| backend | which | Python | versions | fit | ArviZ data |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for backend in options.backends or BACKENDS:
            for which in [options.only] if options.only else ["oldest", "newest"]:
                print(tried(backend, which == "oldest", folder), flush=True)


if __name__ == "__main__":
    main()
