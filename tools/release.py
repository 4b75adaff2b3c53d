"""Builds wheel and source distribution, and checks them as a user meets them: ``python tools/release.py``.

``python -m build`` makes the source distribution from the repository and the wheel from that. The files of both are compared with
those of the repository; version, changelog and citation must say the same; and each backend's wheel is installed into a fresh
environment, in which the README's first example of that framework is run from an empty folder. ``--notes`` prints what the tag
says instead.

Everything is done with pip and the standard library, in a temporary folder; only ``dist/`` stays.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = {"numpyro": ("With NumPyro", "torch"), "pyro": ("First example", "jax")}
# What the source distribution must hold beside the package.
BESIDE = (
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "CITATION.cff",
    "Makefile",
    "constraints.txt",
    "pyproject.toml",
)


def version() -> str:
    """The package's version."""
    text = (ROOT / "pyro_dft" / "_version.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "(.+)"', text)[1]  # type: ignore[index]


def notes(of: str) -> str:
    """The changelog's section on a version: what the tag and the release page say.

    Raises:
        SystemExit: there is no such section.
    """
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## \[{re.escape(of)}\][^\n]*\n(.*?)(?=^## \[|\Z)", text, re.M | re.S)
    if found is None:
        raise SystemExit(f"CHANGELOG.md has no section [{of}]")
    return found[1].strip()


def disagreements() -> list[str]:
    """Where version, changelog and citation file say different things; empty where they agree."""
    here, wrong = version(), []
    if not re.fullmatch(r"\d+\.\d+\.\d+", here):
        wrong.append(f"the version is {here}: a release has three numbers")
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    if cited is None or cited[1] != here:
        wrong.append(f"CITATION.cff does not say version: {here}")
    first = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    if first is None or first[1] != here:
        wrong.append(f"CHANGELOG.md does not begin with [{here}]")
    return wrong


def modules(names: list[str], prefix: str) -> set[str]:
    """Files of the package in a list of paths."""
    kept = {name.removeprefix(prefix) for name in names if name.startswith(f"{prefix}pyro_dft/")}
    return {name for name in kept if name.endswith((".py", "py.typed"))}


def contents(sdist: Path, wheel: Path) -> list[str]:
    """What is missing from, or does not belong into, the two files; empty where all is right."""
    wrong = []
    tracked = [str(path.relative_to(ROOT)) for path in (ROOT / "pyro_dft").rglob("*") if path.is_file()]
    wanted = modules(tracked, "")
    with tarfile.open(sdist) as archive:
        inside = archive.getnames()
    root = f"pyro_dft-{version()}/"
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
        metadata = archive.read(f"pyro_dft-{version()}.dist-info/METADATA").decode()
    for kind, found in (("sdist", modules(inside, root)), ("wheel", modules(packed, ""))):
        wrong += [f"the {kind} lacks {name}" for name in sorted(wanted - found)]
        wrong += [f"the {kind} holds {name}, which is not there" for name in sorted(found - wanted)]
    wrong += [f"the sdist lacks {name}" for name in BESIDE if root + name not in inside]
    folders = ("tests/", "benchmarks/", "docs/", "examples/", "tools/")
    wrong += [
        f"the sdist lacks {name}" for name in folders if not any(i.startswith(root + name) for i in inside)
    ]
    outside = [name for name in packed if not name.startswith(("pyro_dft/", "pyro_dft-"))]
    wrong += [f"the wheel would install {name}" for name in outside]
    if f"Version: {version()}" not in metadata or "License-Expression: Apache-2.0" not in metadata:
        wrong.append("the wheel's metadata lack version or licence")
    return wrong


def example(heading: str) -> str:
    """The first whole program of a section of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)^## ", text, re.M | re.S)[1]  # type: ignore[index]
    blocks = re.findall(r"```python\n(.*?)```", section, re.S)
    return next(block for block in blocks if "def model" in block)


def fresh(folder: Path, python: str | None = None) -> Path:
    """A new environment; returns its Python."""
    if python is None:
        venv.create(folder, with_pip=True)
    else:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def build(scratch: Path) -> tuple[Path, Path]:
    """Source distribution and wheel, in `dist/`."""
    python = fresh(scratch / "builder")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "build"], check=True)
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    subprocess.run(
        [python, "-m", "build", "--outdir", str(dist), str(ROOT)], check=True, stdout=subprocess.DEVNULL
    )
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def first_contact(scratch: Path, wheel: Path, backend: str, python: str | None) -> list[str]:
    """Installs the wheel for one backend and runs the README's example; what went wrong."""
    heading, other = BACKENDS[backend]
    own = fresh(scratch / backend, python)
    subprocess.run([own, "-m", "pip", "install", "--quiet", f"{wheel}[{backend}]"], check=True)
    code = example(heading) + (
        "\nimport json, sys\nprint(json.dumps({'status': dft.diagnostics()['status'], 'file': sys.modules['pyro_dft'].__file__,"
        f" 'other': {other!r} in sys.modules}}))\n"
    )
    empty = scratch / f"{backend}-empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [own, "-c", code], cwd=empty, env=environment | {"CI": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        return [f"{backend}: the README's example fails: {done.stderr.strip().splitlines()[-1]}"]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    wrong = [] if told["status"] == "converged" else [f"{backend}: the README's example is {told['status']}"]
    if not Path(told["file"]).is_relative_to(scratch):
        wrong.append(f"{backend}: {told['file']} was imported, and not what was installed")
    if told["other"]:
        wrong.append(f"{backend}: {other} was loaded")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Builds and checks; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--notes", action="store_true", help="print what the changelog says of this version")
    parser.add_argument(
        "--backends", nargs="*", choices=list(BACKENDS), default=list(BACKENDS),
        help="whose wheel is installed and tried; none: build and compare files only",
    )  # fmt: skip
    parser.add_argument("--python", help="Python that the wheel is tried with; this one otherwise")
    given = parser.parse_args(arguments)
    if given.notes:
        print(notes(version()))
        return 0
    wrong = disagreements()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary).resolve()
        sdist, wheel = build(scratch)
        wrong += contents(sdist, wheel)
        for backend in given.backends:
            found = first_contact(scratch, wheel, backend, given.python)
            print(f"{backend}: " + ("as it should be" if not found else "; ".join(found)), flush=True)
            wrong += found
    print("\n".join(wrong) if wrong else f"{sdist.name} and {wheel.name} are as they should be, in dist/")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
