"""The 36 posteriors by name: data to model arguments, and the coordinates in which errors are measured."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import data

Arguments = tuple[np.ndarray | float, ...]
Sites = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Posterior:
    """One posterior of posteriordb.

    Attributes:
        name: Upstream's name, ``<data>-<model>``.
        function: Name of the model function in ``numpyro_models`` (and ``pyro_models``).
        prepare: JSON dict of the data -> positional arguments of the model.
        sites: Site and kind in the order of the reference columns. Kinds: ``real``, ``positive``, ``unit``,
            ``simplex2``, ``ordered``, ``positive_ordered``. Some are deterministic sites of the model.
        pyro: Whether ``pyro_models`` has the function as well.
        float64: The model fails in single precision.
    """

    name: str
    function: str
    prepare: Callable[[dict[str, Any]], Arguments]
    sites: Sites
    pyro: bool
    float64: bool = False

    @property
    def data(self) -> str:
        """Name of the data set."""
        return self.name.split("-")[0]

    def reference_name(self) -> str:
        """Name of the file of reference draws: upstream has one for both forms of the eight schools."""
        return self.name.replace("schools_centered", "schools_noncentered")

    def arguments(self) -> Arguments:
        """The model's positional arguments, read from the data file."""
        return self.prepare(data.posteriordb_data(self.data))


# Data to arguments


def _column(d: dict[str, Any], key: str) -> np.ndarray:
    return np.asarray(d[key], dtype=np.float64)


def _is(codes: np.ndarray, *values: int) -> list[np.ndarray]:
    """An indicator per value."""
    return [(codes == v).astype(np.float64) for v in values]


def _regression(response: str, columns: Callable[..., list[np.ndarray]], scale=None):
    """A ``prepare`` of a regression with an intercept.

    Args:
        response: Field of the response.
        columns: Takes a function that reads a field; returns the columns after the constant.
        scale: Applied to the response.
    """

    def prepare(d: dict[str, Any]) -> Arguments:
        y = _column(d, response)
        x = columns(functools.partial(_column, d))
        return np.stack([np.ones_like(y), *x], axis=1), y if scale is None else scale(y)

    return prepare


def _interaction(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    return [a, b, a * b]


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean()


def _two_sd(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / (2 * x.std(ddof=1))


def _log_area(get) -> np.ndarray:
    return np.log(get("diam1") * get("diam2"))


def _log_volume(get) -> np.ndarray:
    return _log_area(get) + np.log(get("canopy_height"))


_SIZES = ("diam1", "diam2", "canopy_height", "total_height", "density")


def _nes(get) -> list[np.ndarray]:
    age = _is(get("age_discrete"), 2, 3, 4)
    return [get("real_ideo"), get("race_adj"), *age, get("educ1"), get("gender"), get("income")]


def _diamonds(d: dict[str, Any]) -> Arguments:
    """The design without its constant column, centred."""
    x = _column(d, "X")[:, 1:]
    return x - x.mean(0), _column(d, "Y")


def _ark(d: dict[str, Any]) -> Arguments:
    """Column k of the lag matrix is lag k + 1."""
    y, k = _column(d, "y"), int(d["K"])
    return np.stack([y[k - 1 - j : len(y) - 1 - j] for j in range(k)], axis=1), y[k:]


def _fields(*keys: str) -> Callable[[dict[str, Any]], Arguments]:
    """A ``prepare`` that hands over fields as float arrays, scalars as floats."""

    def prepare(d: dict[str, Any]) -> Arguments:
        return tuple(_column(d, k) if isinstance(d[k], list) else float(d[k]) for k in keys)

    return prepare


# The table

_BETA: Sites = (("beta", "real"), ("sigma", "positive"))
_THETAS: Sites = (("theta1", "simplex2"), ("theta2", "simplex2"))
_EIGHT: Sites = (("theta", "real"), ("mu", "real"), ("tau", "positive"))

# Regressions with flat coefficients: name, prepare.
_FLAT = {
    "earnings-earn_height": _regression("earn", lambda get: [get("height")]),
    "earnings-log10earn_height": _regression("earn", lambda get: [get("height")], np.log10),
    "earnings-logearn_height": _regression("earn", lambda get: [get("height")], np.log),
    "earnings-logearn_height_male": _regression("earn", lambda get: [get("height"), get("male")], np.log),
    "earnings-logearn_interaction": _regression(
        "earn", lambda get: _interaction(get("height"), get("male")), np.log
    ),
    "kidiq_with_mom_work-kidscore_interaction_c": _regression(
        "kid_score", lambda get: _interaction(_centred(get("mom_hs")), _centred(get("mom_iq")))
    ),
    "kidiq_with_mom_work-kidscore_interaction_z": _regression(
        "kid_score", lambda get: _interaction(_two_sd(get("mom_hs")), _two_sd(get("mom_iq")))
    ),
    "kidiq_with_mom_work-kidscore_mom_work": _regression(
        "kid_score", lambda get: _is(get("mom_work"), 2, 3, 4)
    ),
    "mesquite-mesquite": _regression("weight", lambda get: [*map(get, _SIZES), get("group")]),
    "mesquite-logmesquite": _regression(
        "weight", lambda get: [*(np.log(get(k)) for k in _SIZES), get("group")], np.log
    ),
    "mesquite-logmesquite_logvolume": _regression("weight", lambda get: [_log_volume(get)], np.log),
    "mesquite-logmesquite_logva": _regression(
        "weight", lambda get: [_log_volume(get), _log_area(get), get("group")], np.log
    ),
    "mesquite-logmesquite_logvas": _regression(
        "weight",
        lambda get: [
            _log_volume(get),
            _log_area(get),
            np.log(get("diam1") / get("diam2")),
            np.log(get("total_height")),
            np.log(get("density")),
            get("group"),
        ],
        np.log,
    ),
    **{
        f"nes{year}-nes": _regression("partyid7", _nes) for year in (1972, 1976, 1980, 1984, 1988, 1992, 2000)
    },
}

_HALF_CAUCHY = {
    "kidiq-kidscore_momhs": _regression("kid_score", lambda get: [get("mom_hs")]),
    "kidiq-kidscore_momiq": _regression("kid_score", lambda get: [get("mom_iq")]),
    "kidiq-kidscore_momhsiq": _regression("kid_score", lambda get: [get("mom_hs"), get("mom_iq")]),
    "kidiq-kidscore_interaction": _regression(
        "kid_score", lambda get: _interaction(get("mom_hs"), get("mom_iq"))
    ),
}

POSTERIORS: dict[str, Posterior] = {
    p.name: p
    for p in (
        *(Posterior(k, "flat_regression", v, _BETA, True) for k, v in _FLAT.items()),
        *(Posterior(k, "half_cauchy_regression", v, _BETA, True) for k, v in _HALF_CAUCHY.items()),
        Posterior("sblrc-blr", "blr", _fields("X", "y"), _BETA, True),
        Posterior(
            "diamonds-diamonds",
            "diamonds",
            _diamonds,
            (("b", "real"), ("Intercept", "real"), ("sigma", "positive")),
            True,
        ),
        Posterior("arK-arK", "autoregression", _ark, (("alpha", "real"), *_BETA), True),
        Posterior(
            "arma-arma11",
            "arma",
            _fields("y"),
            (("mu", "real"), ("phi", "real"), ("theta", "real"), ("sigma", "positive")),
            True,
        ),
        *(
            Posterior(f"eight_schools-{form}", form, _fields("y", "sigma"), _EIGHT, True)
            for form in ("eight_schools_centered", "eight_schools_noncentered")
        ),
        Posterior(
            "gp_pois_regr-gp_pois_regr",
            "gp_pois_regr",
            _fields("x", "k"),
            (("rho", "positive"), ("alpha", "positive"), ("f", "real")),
            True,
            float64=True,
        ),
        Posterior(
            "hudson_lynx_hare-lotka_volterra",
            "lotka_volterra",
            _fields("ts", "y_init", "y"),
            (("theta", "positive"), ("z_init", "positive"), ("sigma", "positive")),
            False,
        ),
        Posterior(
            "one_comp_mm_elim_abs-one_comp_mm_elim_abs",
            "one_compartment",
            _fields("times", "D", "V", "C_hat"),
            (("k_a", "positive"), ("K_m", "positive"), ("V_m", "positive"), ("sigma", "positive")),
            False,
        ),
        Posterior(
            "low_dim_gauss_mix-low_dim_gauss_mix",
            "gauss_mix",
            _fields("y"),
            (("mu", "ordered"), ("sigma", "positive"), ("theta", "unit")),
            True,
        ),
        Posterior(
            "hmm_example-hmm_example",
            "hmm_example",
            _fields("y"),
            (*_THETAS, ("mu", "positive_ordered")),
            True,
        ),
        Posterior(
            "bball_drive_event_0-hmm_drive_0",
            "hmm_drive",
            _fields("u", "v", "alpha"),
            (*_THETAS, ("phi", "positive_ordered"), ("lambda", "positive_ordered")),
            True,
        ),
    )
}


# Coordinates


def _logs(site: str, x: np.ndarray, smallest: np.ndarray | float) -> np.ndarray:
    """Logarithms of ``x``, with zeros (single precision rounds to the boundary) moved to ``smallest``.

    Raises:
        ValueError: a value is negative, so no rounding explains it.
    """
    outside = x < 0
    if outside.any():
        raise ValueError(f"{site}: {int(outside.sum())} values are outside of the support")
    zero = x == 0
    if zero.any():
        warnings.warn(
            f"{site}: {int(zero.sum())} of {zero.size} values lie on the boundary of the support and were moved "
            "inside by the spacing of their floating point type",
            RuntimeWarning,
            stacklevel=4,
        )
    return np.log(np.where(zero, smallest, x))


def _to_reals(site: str, kind: str, value: np.ndarray) -> np.ndarray:
    """Coordinates (n, k) of one site's values (n, *shape). NaN stays NaN."""
    value = np.asarray(value)
    limits = np.finfo(value.dtype if value.dtype.kind == "f" else np.float64)
    x = value.reshape(len(value), -1).astype(np.float64)
    if kind == "real":
        return x
    if kind == "positive":
        return _logs(site, x, limits.tiny)
    if kind == "unit":
        return _logs(site, x, limits.tiny) - _logs(site, 1.0 - x, limits.epsneg)
    if x.shape[1] != 2:
        raise ValueError(f"{site}: {kind} needs two columns, not {x.shape[1]}")
    if kind == "simplex2":
        # From both columns: the smaller one holds more digits than one minus the larger.
        return _logs(site, x[:, :1], limits.tiny) - _logs(site, x[:, 1:], limits.tiny)
    spacing = np.maximum(limits.epsneg * np.abs(x[:, :1]), limits.tiny)
    gap = _logs(site, x[:, 1:] - x[:, :1], spacing)
    if kind == "ordered":
        return np.concatenate([x[:, :1], gap], axis=1)
    if kind == "positive_ordered":
        return np.concatenate([_logs(site, x[:, :1], limits.tiny), gap], axis=1)
    raise ValueError(f"{site}: unknown kind {kind}")


def unconstrain(posterior: Posterior, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Coordinates (n, k), float64, of constrained draws {site: (n, *shape)} of all ``posterior.sites``.

    Positive values become logarithms, the unit interval and the 2-simplex one logit, ordered pairs the first
    value (its logarithm if positive) and the logarithm of the gap. Values that were rounded to the boundary
    move inside by the spacing of their type, with a RuntimeWarning.
    """
    columns = [_to_reals(site, kind, values[site]) for site, kind in posterior.sites]
    return np.concatenate(columns, axis=1)


@functools.cache
def _reference_columns(posterior_file: str) -> tuple[str, ...]:
    return tuple(data.posteriordb_draws(posterior_file)[1])


def reference_columns(posterior: Posterior) -> dict[str, list[int]]:
    """Columns of the reference draws of each site, in the order of ``posterior.sites``."""
    columns: dict[str, list[int]] = {}
    for i, name in enumerate(_reference_columns(posterior.reference_name())):
        columns.setdefault(re.sub(r"\[\d+\]$", "", name), []).append(i)
    if list(columns) != [site for site, _ in posterior.sites]:
        raise ValueError(f"{posterior.name}: the reference draws hold {list(columns)}")
    return columns


def coordinate_names(posterior: Posterior) -> list[str]:
    """Names of the columns of :func:`unconstrain`; indices count from 1, as in the reference draws."""
    all_names = _reference_columns(posterior.reference_name())
    columns, result = reference_columns(posterior), []
    for site, kind in posterior.sites:
        names = [all_names[i] for i in columns[site]]
        if kind == "real":
            result += names
        elif kind == "positive":
            result += [f"log {n}" for n in names]
        elif kind in ("unit", "simplex2"):
            result.append(f"logit {names[0]}")
        else:
            first = names[0] if kind == "ordered" else f"log {names[0]}"
            result += [first, f"log({names[1]}-{names[0]})"]
    return result


def reference_values(posterior: Posterior) -> dict[str, np.ndarray]:
    """Constrained reference draws by site: (chains, draws) for scalars, (chains, draws, n) for vectors."""
    draws, names = data.posteriordb_draws(posterior.reference_name())
    return {
        site: draws[..., c] if names[c[0]].endswith("]") else draws[..., c[0]]
        for site, c in reference_columns(posterior).items()
    }


def reference_draws(posterior: Posterior) -> np.ndarray:
    """Reference draws (chains, draws, k), float64, in the coordinates of :func:`unconstrain`."""
    values = reference_values(posterior)
    chains, draws = next(iter(values.values())).shape[:2]
    merged = {site: v.reshape(chains * draws, *v.shape[2:]) for site, v in values.items()}
    return unconstrain(posterior, merged).reshape(chains, draws, -1)


# Models


def numpyro_model(posterior: Posterior) -> tuple[Callable[..., None], Arguments]:
    """The NumPyro model and its arguments as NumPy arrays."""
    from benchmarks.posteriordb import numpyro_models

    return getattr(numpyro_models, posterior.function), posterior.arguments()


def pyro_model(posterior: Posterior) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """The Pyro model and its arguments as tensors in torch's default dtype (scalars stay floats).

    Raises:
        ValueError: the posterior has no Pyro twin.
    """
    if not posterior.pyro:
        raise ValueError(f"{posterior.name} has no Pyro model")
    import torch

    from benchmarks.posteriordb import pyro_models

    dtype = torch.get_default_dtype()
    args = tuple(
        torch.tensor(a, dtype=dtype) if isinstance(a, np.ndarray) else a for a in posterior.arguments()
    )
    return getattr(pyro_models, posterior.function), args
