"""Is a model, with its data, the one that a file was made from?

Two things are kept of a posterior, and compared later. Checksums of the model's arguments say whether the data are the
same to the last bit, also where another framework holds them. The log density at some points says whether the model is:
by site, each summed in double precision, so that the likelihood of a million rows does not drown a prior.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_dft.interface.arguments import Arguments
from pyro_dft.interface.arrays import Arrays

# Draws at which the density is kept. As many further points are so many times as far from the mean: there differences of prior
# or data show more.
CHECK_POINTS, WIDE = 4, 3.0
# Upper limit for the points in a file: no version writes as many.
MOST_POINTS = 64
# Terms agree where they differ by at most so many rounding errors (of the terms, and of the points they are taken at): frameworks
# differ in the order of sums and in formulas for special functions.
ROUNDING = 16.0
# Where only the potential as a whole can be compared, which is summed in the model's own precision, this many times as much is
# allowed for its level.
LEVEL_ROUNDING = 1e3
# Data that are not bit-identical are accepted where densities agree, and differences of this size (nats) would have shown.
RESOLVED = 0.5
# Elements that are hashed at once.
BLOCK = 2**20

# Log density of each site at n points: its sum and the sum of its absolute terms, (n,) each; None where it has none by itself.
Terms = Mapping[str, tuple[np.ndarray, np.ndarray] | None]


@dataclass(frozen=True)
class Portrait:
    """A posterior at some points.

    Attributes:
        points: (n, d), in the model's own unconstrained coordinates.
        values: Potential, (n,).
        sites: Log density by site, (n,); None for a site that has none by itself.
        precision: Relative rounding error of the numbers that these were computed in.
        rounding: By how much the entries of `sites`, and "" for the potential, may be off for rounding, (n,) each.
    """

    points: np.ndarray
    values: np.ndarray
    sites: dict[str, np.ndarray | None] = field(default_factory=dict)
    precision: float = 0.0
    rounding: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        points: np.ndarray,
        potential: Callable[[np.ndarray], np.ndarray],
        terms: Callable[[np.ndarray], Terms],
    ) -> Portrait:
        """The posterior at points (n, d), from its potential (n,) and its log density by site there."""
        sites = {name: None if own is None else own[0] for name, own in terms(points).items()}
        return cls(points, potential(points), sites)

    @classmethod
    def with_rounding(
        cls,
        points: np.ndarray,
        potential: Callable[[np.ndarray], np.ndarray],
        terms: Callable[[np.ndarray], Terms],
        precision: float,
    ) -> Portrait:
        """As `of`, with the rounding errors to expect.

        They are of two kinds: of the terms that are added up, and of the numbers that go in, which show where the points
        are moved by rounding errors of their own.

        Args:
            points: (n, d).
            potential: Potential (n,) at points.
            terms: Log density by site at points.
            precision: Relative rounding error of one number.
        """
        rng = np.random.default_rng(0)
        values, found = potential(points), terms(points)
        sizes = {name: own[1] for name, own in found.items() if own is not None} | {"": abs(values)}
        wobble = {name: np.zeros(len(points)) for name in sizes}
        for _ in range(2):
            signs = rng.choice([-2.0, 2.0], points.shape)
            moved = (points * (1 + precision * signs)).astype(points.dtype)
            beside, own = terms(moved), {"": (values, sizes[""]), **found}
            for name in sizes:
                other = potential(moved) if not name else beside[name][0]  # type: ignore[index]
                wobble[name] = np.maximum(wobble[name], abs(other - own[name][0]))  # type: ignore[index]
        rounding = {
            name: precision * (1 + size) + np.maximum(wobble[name], np.median(wobble[name]))
            for name, size in sizes.items()
        }
        sites = {name: None if own is None else own[0] for name, own in found.items()}
        return cls(points, values, sites, precision, rounding)

    def to_json(self) -> dict[str, list[float] | None]:
        """The sites alone, as plain numbers; what is not finite is left out."""
        return {
            name: None if own is None or not np.isfinite(own).all() else np.asarray(own, float).tolist()
            for name, own in self.sites.items()
        }

    @classmethod
    def read(cls, points: np.ndarray, values: np.ndarray, sites: Any, dim: int) -> Portrait:
        """What a file holds.

        Args:
            points: (n, d).
            values: (n,).
            sites: As `to_json` gave them; None in files of early versions.
            dim: d.

        Raises:
            ValueError: the file does not hold these.
        """
        fine = points.ndim == 2 and points.shape[1] == dim and 0 < len(points) <= MOST_POINTS
        if not fine or values.shape != points.shape[:1] or points.dtype.kind + values.dtype.kind != "ff":
            raise ValueError(f"check.points have shape {points.shape}, check.values {values.shape}")
        read: dict[str, np.ndarray | None] = {}
        for name, own in dict(sites or {}).items():
            read[str(name)] = None if own is None else np.array(own, float)
            if own is not None and np.shape(own) != values.shape:
                raise ValueError(f"the log density of site {name!r} has shape {np.shape(own)}")
        return cls(points, values, read, float(np.finfo(points.dtype).eps))

    @property
    def complete(self) -> bool:
        """Whether each site has a log density of its own: then the potential as a whole need not be compared."""
        return bool(self.sites) and all(own is not None for own in self.sites.values())


def check_points(draws: np.ndarray, potential: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Points (n, d) at which a posterior is kept: some of its draws (m, d), and points around them.

    Args:
        draws: (m, d), in the model's own unconstrained coordinates.
        potential: Potential (n,) at points.
    """
    own = draws[:: max(1, len(draws) // CHECK_POINTS)][:CHECK_POINTS]
    centre = draws.mean(0, dtype=np.float64)
    wide = (centre + WIDE * (own - centre)).astype(draws.dtype)
    return np.concatenate([own, wide[np.isfinite(potential(wide))]])


def differences(before: Portrait, now: Portrait, same_framework: bool) -> tuple[list[str], float]:
    """How two posteriors differ, at the same points.

    Args:
        before: What was kept.
        now: What is there now, with its rounding errors.
        same_framework: Whether both have all the same sites; another framework can have others (one that marginalises).

    Returns:
        What differs, in words, and the smallest difference that would have shown (nats).
    """
    coarser = max(1.0, before.precision / now.precision)
    found: list[str] = []
    resolution = 0.0
    if before.sites and same_framework and before.sites.keys() != now.sites.keys():
        names = sorted(before.sites.keys() ^ now.sites.keys())
        found.append(f"site {', '.join(map(repr, names))} is only in one of them")
    common = [name for name in before.sites if name in now.rounding and before.sites[name] is not None]
    for name in common:
        tolerance = ROUNDING * coarser * now.rounding[name]
        apart = abs(np.subtract(now.sites[name], before.sites[name]))  # type: ignore[arg-type]
        resolution = max(resolution, float(np.median(tolerance)))
        if not (apart <= tolerance).all():
            found.append(f"the log density of site '{name}' by {_most(apart):.3g}")
    level = LEVEL_ROUNDING * max(before.precision, now.precision) * max(1.0, float(abs(before.values).max()))
    changes = now.values - before.values
    if not (abs(changes) <= level).all():
        found.append(f"the potential by {_most(changes):.3g}")
    elif not (before.complete and now.complete and len(common) == len(now.sites)):
        # Constants may differ between frameworks, and do not change the posterior: only differences between points count.
        changes = changes - (0.0 if same_framework else np.median(changes))
        tolerance = 2 * ROUNDING * coarser * now.rounding[""]
        resolution = max(resolution, float(np.median(tolerance)))
        if not (abs(changes) <= tolerance).all():
            found.append(f"the potential, at some of the points, by {_most(changes):.3g}")
    return found, resolution


def _most(changes: np.ndarray) -> float:
    return float(np.nan_to_num(abs(changes), nan=math.inf, posinf=math.inf).max())


def unlike(
    before: Portrait,
    now: Portrait,
    checksums: tuple[Any, list[dict[str, Any]]],
    same_framework: bool = True,
) -> tuple[list[str], list[str]]:
    """How a posterior differs from one that was kept.

    Arguments that are not bit-identical are accepted only where differences of the data would show in the density, and do not.

    Args:
        before: What was kept.
        now: What is there now, at the same points, with its rounding errors.
        checksums: Those of the arguments, before and now; see `changed_arguments`.
        same_framework: Whether the same framework kept it.

    Returns:
        What differs, in words; and names of arguments that differ by rounding only.
    """
    changed = changed_arguments(*checksums)
    found, resolution = differences(before, now, same_framework)
    if found or (changed and resolution > RESOLVED):
        return [f"argument '{name}' is another" for name in changed] + found, []
    return [], changed


# Arguments


def fingerprints(arguments: Arguments, function: Any, arrays: Arrays) -> list[dict[str, Any]]:
    """Checksums of the arguments of a model, in the order of its signature.

    Args:
        arguments: (args, kwargs).
        function: The model.
        arrays: Reads arrays of the framework.

    Returns:
        One entry for each array, number or text, nested ones by themselves: `name`, and what `_fingerprint` says.
    """
    args, kwargs = arguments
    try:
        call = getattr(function, "forward", function)
        bound: dict[str, Any] = dict(inspect.signature(call).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        bound = {str(i): value for i, value in enumerate(args)} | kwargs
    return [
        {"name": name, **_fingerprint(leaf, arrays)}
        for key, value in bound.items()
        for name, leaf in _leaves(key, value)
    ]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name}[{key!r}]", value[key])
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(f"{name}[{i}]", item)
    else:
        yield name, value


def _fingerprint(value: Any, arrays: Arrays) -> dict[str, Any]:
    """Shape and checksums of an array or number; `text` for strings and None; no checksum for anything else."""
    if value is None or isinstance(value, str):
        return {"text": hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()}
    try:
        pieces = arrays.in_pieces(value)
        if pieces is not None:
            return _of_pieces(tuple(value.shape), pieces)
        native = arrays.to_numpy(value)
        if native is None and (isinstance(value, bool | int | float) or hasattr(value, "__array__")):
            native = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # an array of a kind that NumPy does not have
        return {}
    return {} if native is None else _of_pieces(native.shape, [native])


def _of_pieces(shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> dict[str, Any]:
    """Shape and checksums of an array whose pieces follow each other row by row; an empty dict where it does not hold numbers."""
    digests: dict[str, Any] = {}
    for piece in pieces:
        if piece.dtype.kind not in "biuf":
            return {}
        # Forms that both frameworks can have: integers of any width, and floating point numbers rounded to the narrower type.
        whole, wide = piece.dtype.kind in "biu", piece.dtype.itemsize >= 8
        flat = piece.reshape(-1)
        for kind in ["i8", "f8", "f4"] if whole else ["f8", "f4"] if wide else ["f4"]:
            digest = digests.setdefault(kind, hashlib.blake2b(digest_size=16))
            for start in range(0, len(flat), BLOCK):
                digest.update(_plain(flat[start : start + BLOCK], kind))
    return {"shape": list(shape), **{kind: digest.hexdigest() for kind, digest in digests.items()}}


def _plain(values: np.ndarray, kind: str) -> bytes:
    """Values as little-endian numbers of one type, with one form for 0.0 and -0.0, and one for NaN."""
    with np.errstate(over="ignore"):
        block = values.astype(f"<{kind}")
        if kind != "i8":
            block[np.isnan(block)] = math.nan
            block += 0.0
    return block.tobytes()


def changed_arguments(before: Any, now: list[dict[str, Any]]) -> list[str]:
    """Names of the arguments that surely changed; none where that cannot be told.

    Args:
        before: What `fingerprints` gave once; None in files of early versions.
        now: What it gives now.
    """
    if not isinstance(before, list) or len(before) != len(now):
        return []
    return [own["name"] for old, own in zip(before, now, strict=True) if _differ(dict(old), own)]


def _differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    common = [kind for kind in ("text", "i8", "f8", "f4") if kind in old and kind in new]
    if not common:
        return False
    return old.get("shape") != new.get("shape") or old[common[0]] != new[common[0]]
