"""Which versions the package works with: ``python -m benchmarks.versions [numpyro] [pyro] [--keep FOLDER]``.

Makes an environment with the oldest versions that ``pyproject.toml`` allows and one with the newest that pip finds, for each
backend, and in each makes a small fit with a network, new draws, and ArviZ data, which are written into a file and read again,
and over which ``arviz_stats.diagnose`` goes where it is installed. ``--python`` names another Python, for which packages are
installed into a folder (it need not be able to make virtual environments). Rows are kept in benchmarks/results/versions.json,
and the table of all is put into docs/versions.md. pip downloads what it needs: with Pyro that is a torch of the oldest
version, which is large.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
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
KEPT = ROOT / "benchmarks" / "results" / "versions.json"
PAGE = ROOT / "docs" / "versions.md"
MARKS = tuple(f"<!-- table of versions: {word} -->\n" for word in ("begin", "end"))
COLUMNS = {
    "backend": "backend", "which": "which", "python": "Python", "versions": "versions", "status": "fit",
    "arviz": "ArviZ data", "diagnose": "`arviz_stats.diagnose`",
}  # fmt: skip
SHOWN = (
    "jax",
    "numpyro",
    "optax",
    "torch",
    "pyro-ppl",
    "numpy",
    "arviz",
    "arviz-stats",
    "safetensors",
    "tqdm",
)
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
    from pyro_dft.experimental import grouped

    ppl: Any
    if backend == "pyro":
        import pyro as ppl
        import torch

        from pyro_dft import DFT

        dft, arguments = DFT(_model(ppl), seed=0, **grouped(SMALL)), (torch.tensor(y),)
    else:
        import jax
        import numpyro as ppl

        from pyro_dft.numpyro import DFT

        dft, arguments = DFT(_model(ppl), **grouped(SMALL)), (jax.random.key(0), jax.numpy.array(y))
    dft.run(*arguments)
    dft.get_samples(100)
    found = {"status": dft.diagnostics()["status"], "mean": float(dft.get_samples()["mu"].mean())}
    try:
        import xarray

        data = dft.to_inference_data()
        with tempfile.TemporaryDirectory() as folder:
            data.to_netcdf(str(Path(folder) / "fit.nc"))
            with xarray.open_dataset(Path(folder) / "fit.nc", group="posterior") as again:
                again.load()
        found["arviz"] = type(data).__name__
    except Exception as error:
        return found | {"arviz": f"{type(error).__name__}: {error}", "diagnose": "-"}
    return found | {"diagnose": diagnosed(data)}


def diagnosed(data: Any) -> str:
    """What `arviz_stats.diagnose` says of a fit's data, in a word or two; a dash without it."""
    try:
        from arviz_stats import diagnose
    except ImportError:
        return "-"
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        problems = diagnose(data)
    skipped = "skip" in told.getvalue().lower()
    return ("problems" if problems else "no problems") + (", something skipped" if skipped else "")


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


def prepared(place: Path, python: str | None, asked: list[str]) -> tuple[list[str], dict[str, str]]:
    """An environment with what is asked for; how to start its Python, and the variables that it needs.

    Args:
        place: Folder of the environment, which is used again where it is there.
        python: Another Python, whose packages lie in a folder beside it; None: a virtual environment of this one.
        asked: Requirements; where they are others than those that an environment was made with, it is completed.
    """
    own, site, known = place / "bin" / "python", place / "site", place / "asked.json"
    fresh = known.is_file() and json.loads(known.read_text()) == asked
    if python is None:
        if not own.exists():
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        call, install = [str(own)], []
        paths = [str(ROOT)]
    else:
        call, install = [python], ["--target", str(site), "--upgrade"]
        paths = [str(site), str(ROOT)]
    if not fresh:
        subprocess.run([*call, "-m", "pip", "install", "--quiet", *install, *asked], check=True)
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(asked))
    return call, {"PYTHONPATH": os.pathsep.join(paths)}


def tried(backend: str, which: str, folder: Path, python: str | None) -> dict[str, str]:
    """One row of the table."""
    name = f"{backend}-{which}" + ("" if python is None else f"-{version_of(python)}")
    call, variables = prepared(folder / name, python, requirements(backend, which == "oldest"))
    made = subprocess.run(
        [*call, "-W", "ignore", "-m", "benchmarks.versions", "--here", backend],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True,
    )  # fmt: skip
    row = {"backend": backend, "which": which}
    if made.returncode:
        last = made.stderr.strip().splitlines()[-1] if made.stderr.strip() else made.returncode
        shown = version_of(python or sys.executable)
        return row | {
            "python": shown,
            "status": f"fails: {last}",
            "versions": "-",
            "arviz": "-",
            "diagnose": "-",
        }
    return row | json.loads(made.stdout.splitlines()[-1])


def version_of(python: str) -> str:
    """Version of a Python, such as 3.13.5."""
    call = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()


def keep(row: dict[str, str], kept: Path = KEPT) -> list[dict[str, str]]:
    """Puts a row in the place of the one of the same backend, kind and Python; returns all, in the table's order."""
    rows = json.loads(kept.read_text()) if kept.exists() else []

    def key(one: dict[str, str]) -> tuple[int, bool, list[int]]:
        minor = [int(number) for number in one["python"].split(".")[:2]]
        return BACKENDS.index(one["backend"]), one["which"] != "oldest", minor

    rows = sorted([one for one in rows if key(one) != key(row)] + [row], key=key)
    kept.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def into_page(rows: list[dict[str, str]], page: Path = PAGE) -> None:
    """Puts the table between the marks of docs/versions.md."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows]
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(before + MARKS[0] + "\n".join(lines) + "\n" + MARKS[1] + after, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Every environment in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("backends", nargs="*", help="; ".join(BACKENDS))
    parser.add_argument("--only", choices=("oldest", "newest"), help="one of the two environments")
    parser.add_argument("--python", help="another Python than this one")
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
        folder = (options.keep or Path(temporary)).resolve()
        for backend in options.backends or BACKENDS:
            for which in [options.only] if options.only else ["oldest", "newest"]:
                row = tried(backend, which, folder, options.python)
                print(" | ".join(str(row[name]) for name in COLUMNS), flush=True)
                into_page(keep(row))


if __name__ == "__main__":
    main()
