"""`fit_many` from a command line, for schedulers that start processes.

``python -m pyro_dft.many spec.py --part 3/64 --folder out`` fits every 64th slice, beginning with the third. The file is Python.
It defines ``model`` and ``data`` (as `fit_many` takes them; ``data`` may be a function that returns them), and may define
``framework`` ("pyro" or "numpyro"; by default the one that it imports) and ``options``, keyword arguments of `fit_many`.
A part that was killed goes on from what it has written when it is started again.

``python -m pyro_dft.many merge out`` says whether all slices are there, and writes tables and draws.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import warnings
from typing import Any

from pyro_dft.errors import FidelityWarning, StorageError
from pyro_dft.many.fitting import DOORS
from pyro_dft.many.results import load_many
from pyro_dft.many.run import fit_many


def _part(text: str) -> tuple[int, int]:
    try:
        k, n = (int(word) for word in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected k/n, such as 3/64") from None
    if not 1 <= k <= n:
        raise argparse.ArgumentTypeError(f"{text!r}: expected k/n with k from 1 to n")
    return k, n


def _framework(spec: dict[str, Any]) -> str:
    """What a file says, or which of the frameworks it has loaded."""
    if "framework" in spec:
        found = spec["framework"]
        if found not in DOORS:
            raise SystemExit(f"framework = {found!r}: expected one of {', '.join(DOORS)}")
        return str(found)
    loaded = [name for name in DOORS if name in sys.modules]
    if len(loaded) != 1:
        raise SystemExit('the file must say framework = "pyro" or framework = "numpyro"')
    return loaded[0]


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pyro_dft.many", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("spec", help="Python file that defines model and data")
    parser.add_argument("--folder", required=True, help="where draws and verdicts go")
    parser.add_argument("--part", type=_part, help="k/n: every n-th slice, beginning with the k-th")
    parser.add_argument("--slice-size", type=int, help="data sets of a slice")
    given = parser.parse_args(arguments)
    spec = runpy.run_path(given.spec, run_name="pyro_dft_spec")
    missing = [name for name in ("model", "data") if name not in spec]
    if missing:
        parser.error(f"{given.spec} does not define {' and '.join(missing)}")
    options = {"folder": given.folder, "part": given.part, **spec.get("options", {})}
    if given.slice_size is not None:
        options["slice_size"] = given.slice_size
    data = spec["data"]() if callable(spec["data"]) else spec["data"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FidelityWarning)  # the counts say it
        fits = fit_many(_framework(spec), spec["model"], data, **options)
    print(f"{given.folder}: {fits.counts}")
    return 0


def _merge(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyro_dft.many merge")
    parser.add_argument("folder", help="where the parts have written")
    parser.add_argument("--csv", help="file for the table of all posteriors")
    parser.add_argument("--zarr", help="folder for all draws, as one xarray.Dataset")
    parser.add_argument("--netcdf", help="file for the same")
    given = parser.parse_args(arguments)
    fits = load_many(given.folder)
    missing = fits.missing()
    print(f"{len(fits)} posteriors: {fits.counts}")
    if missing:
        print(f"slices that are missing: {', '.join(map(str, missing))}", file=sys.stderr)
        return 1
    if given.csv:
        fits.summary().to_csv(given.csv)
    if given.zarr:
        fits.dataset().to_zarr(given.zarr)
    if given.netcdf:
        fits.dataset().to_netcdf(given.netcdf)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _merge(given[1:]) if given[:1] == ["merge"] else _run(given)
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
