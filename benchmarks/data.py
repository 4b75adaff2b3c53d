"""The one place where benchmark data are read.

Folders: ``PYRO_DFT_DATA`` (else ``../shared/data`` beside the repository) and ``PYRO_DFT_POSTERIORDB``
(else ``../shared/posteriordb``). The small real data sets that ship with scikit-learn need no folder. Every
function returns float64 or integer NumPy arrays; what was cut or standardised stands in its docstring.
"""

from __future__ import annotations

import csv
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

# What to fetch, and where from, when a file is not there.
SOURCES = {
    "blr/german_credit.npz": "UCI 'statlog german credit', file german.data-numeric, as X (1000, 24) and "
    "y (1 = bad credit); OpenML's credit-g is another coding",
    "pyro_datasets/EfronMorrisBB.txt": "github.com/pyro-ppl/datasets, EfronMorrisBB.txt",
    "pyro_datasets/LynxHare.txt": "github.com/pyro-ppl/datasets, LynxHare.txt",
    "pyro_datasets/rugged_data.csv": "github.com/pyro-ppl/datasets, rugged_data.csv",
    "covertype.npz": "sklearn.datasets.fetch_covtype() saved as X (n, 54) and y7 (classes 1..7)",
    "mnist.npz": "x_train uint8 (60000, 28, 28), y_train, x_test (10000, 28, 28), y_test; sklearn.datasets."
    "fetch_openml('mnist_784') has the same images, the first 60,000 for training",
}


def data_path(name: str) -> Path:
    """Path of a data file below the data folder.

    Raises:
        FileNotFoundError: the file is missing; the message says what it holds and where it comes from.
    """
    folder = Path(os.environ.get("PYRO_DFT_DATA", ROOT.parent / "shared" / "data"))
    path = folder / name
    if not path.exists():
        source = SOURCES.get(name, "see benchmarks/data.py")
        raise FileNotFoundError(f"{path} is missing. Put there: {source}. PYRO_DFT_DATA sets the folder.")
    return path


def posteriordb_path(name: str) -> Path:
    """Path of a posteriordb file (``data/<data>.json.zip`` or ``draws/<posterior>.npz``).

    Raises:
        FileNotFoundError: the file is missing; the message names the upstream repository.
    """
    folder = Path(os.environ.get("PYRO_DFT_POSTERIORDB", ROOT.parent / "shared" / "posteriordb"))
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing. It comes from github.com/stan-dev/posteriordb; "
            "PYRO_DFT_POSTERIORDB sets the folder."
        )
    return path


def posteriordb_data(name: str) -> dict[str, Any]:
    """The JSON dict of a posteriordb data set."""
    with zipfile.ZipFile(posteriordb_path(f"data/{name}.json.zip")) as z:
        return json.loads(z.read(z.namelist()[0]))


def posteriordb_draws(name: str) -> tuple[np.ndarray, list[str]]:
    """Reference draws (chains, draws, d), float64, and their column names."""
    with np.load(posteriordb_path(f"draws/{name}.npz")) as f:
        return f["draws"].astype(np.float64), [str(s) for s in f["names"]]


def standardise(x: np.ndarray) -> np.ndarray:
    """Columns to mean 0 and (population) sd 1."""
    x = np.asarray(x, dtype=np.float64)
    return (x - x.mean(0)) / x.std(0)


def with_intercept(x: np.ndarray) -> np.ndarray:
    """A column of ones in front."""
    return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def breast_cancer() -> dict[str, np.ndarray]:
    """scikit-learn's breast cancer data: X (569, 31) standardised with intercept, y (569,)."""
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    return {"x": with_intercept(standardise(raw.data)), "y": raw.target.astype(np.float64)}


def german_credit() -> dict[str, np.ndarray]:
    """German credit, numeric coding: X (1000, 25) standardised with intercept, y (1000,) 1 = bad credit."""
    with np.load(data_path("blr/german_credit.npz")) as f:
        return {"x": with_intercept(standardise(f["X"])), "y": f["y"].astype(np.float64)}


def eight_schools() -> dict[str, np.ndarray]:
    """Effects y (8,) and known standard errors sigma (8,)."""
    d = posteriordb_data("eight_schools")
    return {"y": np.asarray(d["y"], dtype=np.float64), "sigma": np.asarray(d["sigma"], dtype=np.float64)}


def baseball() -> dict[str, np.ndarray]:
    """Efron and Morris: at-bats (18,) and hits (18,) of the first 45 at-bats of 1970."""
    with open(data_path("pyro_datasets/EfronMorrisBB.txt"), encoding="utf-8") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    return {
        "at_bats": np.asarray([r["At-Bats"] for r in rows], dtype=np.float64),
        "hits": np.asarray([r["Hits"] for r in rows], dtype=np.float64),
    }


def lynx(n: int = 50) -> dict[str, np.ndarray]:
    """Standardised log lynx pelts of the first ``n`` years from 1845; t in years from the first one.

    Cut to 50 of 91 years: a Cholesky factor of that size keeps one gradient near a millisecond.
    """
    table = np.loadtxt(data_path("pyro_datasets/LynxHare.txt"))[:n]
    return {"t": table[:, 0] - table[0, 0], "y": standardise(np.log(table[:, 2]))}


def gauss_mix() -> dict[str, np.ndarray]:
    """All rows of posteriordb low_dim_gauss_mix: y (1000,)."""
    return {"y": np.asarray(posteriordb_data("low_dim_gauss_mix")["y"], dtype=np.float64)}


def ark() -> dict[str, np.ndarray]:
    """The arK data of posteriordb on a lag matrix: lags (195, 5), column k is lag k + 1; y (195,)."""
    d = posteriordb_data("arK")
    y, k = np.asarray(d["y"], dtype=np.float64), int(d["K"])
    lags = np.stack([y[k - 1 - j : len(y) - 1 - j] for j in range(k)], axis=1)
    return {"lags": lags, "y": y[k:]}


def iris() -> dict[str, np.ndarray]:
    """The four measurements of the 50 versicolor irises, standardised: x (50, 4)."""
    from sklearn.datasets import load_iris

    raw = load_iris()
    return {"x": standardise(raw.data[raw.target == 1])}


CONTINENTS = ("africa", "asia", "europe", "oceania", "north_america", "south_america")


def rugged() -> dict[str, np.ndarray]:
    """Terrain ruggedness and log GDP of 2000, both standardised, and the continent (0..5): 170 countries.

    Countries without a GDP figure are left out, as everybody does with this data set.
    """
    with open(data_path("pyro_datasets/rugged_data.csv"), encoding="latin-1") as f:
        rows = [r for r in csv.DictReader(f) if r["rgdppc_2000"] and r["rugged"]]
    group = [[int(r[f"cont_{c}"]) for c in CONTINENTS].index(1) for r in rows]
    return {
        "x": standardise(np.asarray([float(r["rugged"]) for r in rows])),
        "y": standardise(np.log([float(r["rgdppc_2000"]) for r in rows])),
        "group": np.asarray(group, dtype=np.int64),
    }


def covertype_counts(n: int = 100) -> dict[str, np.ndarray]:
    """Cover types by wilderness area: counts (4, 3) of spruce/fir, lodgepole pine and all others.

    The first ``n`` plots of each of the four areas in file order (of 4,789 to 41,823), so that the areas
    share strength; with all plots the posterior is a near-Gaussian spike.
    """
    with np.load(data_path("covertype.npz")) as f:
        area, cover = f["X"][:, 10:14].argmax(1), f["y7"]
    counts = np.zeros((4, 3))
    for k in range(4):
        kind = np.minimum(cover[np.flatnonzero(area == k)[:n]], 3)
        counts[k] = np.bincount(kind - 1, minlength=3)
    return {"counts": counts}


def covertype(sample: bool = False) -> dict[str, np.ndarray]:
    """Forest cover: X (n, 54) in raw units, y (n,) 1 = lodgepole pine (class 2), and which set it is.

    Columns 0 to 9 are numbers, 10 to 13 the wilderness area and 14 to 53 the soil type, one-hot. All 581,012 rows come from
    scikit-learn, which downloads them once; where that cannot be, ``covertype.npz``, a stratified 16 % of them.

    Args:
        sample: Take ``covertype.npz`` in any case.

    Returns:
        ``x`` float64, ``y`` float64, ``source`` a sentence.

    Raises:
        FileNotFoundError: neither can be had.
    """
    if not sample:
        from sklearn.datasets import fetch_covtype

        try:
            full = fetch_covtype(n_retries=0)
        except OSError:  # no network, or no folder to write to
            pass
        else:
            source = np.asarray(f"all {len(full.target):,} rows (sklearn.datasets.fetch_covtype)")
            return {"x": full.data.astype(float), "y": (full.target == 2).astype(float), "source": source}
    with np.load(data_path("covertype.npz")) as f:
        x, y = f["X"].astype(float), (f["y7"] == 2).astype(float)
    return {
        "x": x,
        "y": y,
        "source": np.asarray(f"covertype.npz, {len(y):,} rows: a 16 % sample of Covertype"),
    }


def linnerud() -> dict[str, np.ndarray]:
    """Linnerud's exercises: x (20, 3) weight, waist, pulse, standardised; counts (20, 3).

    The counts are chin-ups, sit-ups and jumps.
    """
    from sklearn.datasets import load_linnerud

    raw = load_linnerud()
    return {"x": standardise(raw.target), "counts": raw.data.astype(np.float64)}


def diabetes() -> dict[str, np.ndarray]:
    """scikit-learn's diabetes data: x (442, 10) and y (442,), standardised (so no intercept)."""
    from sklearn.datasets import load_diabetes

    raw = load_diabetes()
    return {"x": standardise(raw.data), "y": standardise(raw.target)}


def mnist(size: int = 28) -> dict[str, np.ndarray]:
    """MNIST digits: images x_train (60000, size, size) and x_test (10000, size, size), float32 in [0, 1], and labels.

    Read from ``mnist.npz`` where the data folder has it, else from OpenML through scikit-learn.

    Args:
        size: 28, or 14 for means over 2 x 2 pixels.

    Raises:
        FileNotFoundError: there is neither the file nor a network; the message says where the data come from.
        ValueError: another size.
    """
    if size not in (14, 28):
        raise ValueError(f"size={size}: MNIST is read with 28 x 28 pixels or as their 2 x 2 means, 14 x 14")
    try:
        with np.load(data_path("mnist.npz")) as f:
            raw = {name: f[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except FileNotFoundError as missing:
        raw = _openml_mnist(missing)
    out = {}
    for part in ("train", "test"):
        x = raw[f"x_{part}"].astype(np.float32) / np.float32(255.0)
        out[f"x_{part}"] = x if size == 28 else x.reshape(-1, 14, 2, 14, 2).mean((2, 4))
        out[f"y_{part}"] = raw[f"y_{part}"].astype(np.int64)
    return out


def _openml_mnist(missing: FileNotFoundError) -> dict[str, np.ndarray]:
    """The same arrays from OpenML; raises ``missing`` where that cannot be reached."""
    from sklearn.datasets import fetch_openml

    try:
        x, y = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    except OSError as unreachable:
        raise missing from unreachable
    x = x.astype(np.uint8).reshape(-1, 28, 28)
    return {"x_train": x[:60000], "y_train": y[:60000], "x_test": x[60000:], "y_test": y[60000:]}
