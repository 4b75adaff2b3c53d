"""The summary table of posterior draws that users of Pyro and NumPyro know, with the errors of its means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_dft.judging.rhat import ess, rhat

Array = NDArray[np.floating[Any]]

_NAMED_IN_NOTE = 8  # elements that a note lists before it says "and so many more"


@dataclass(frozen=True)
class Summary:
    """Statistics of posterior draws; print it to see the table.

    Attributes:
        sites: statistics by site, then by name; each an array of the site's shape. The names are "mean",
            "std", "median", the two ends of the interval (such as "5.0%" and "95.0%"), "n_eff", "r_hat",
            "mcse" and, where it is known, "approx_error" (the only one in units of the site's sd).
        prob: mass of the interval.

    Example:
        >>> table = dft.summary_table()
        >>> table.sites["mu"]["mean"].shape
        ()
    """

    sites: dict[str, dict[str, Array]]
    prob: float

    @property
    def rows(self) -> dict[str, dict[str, float]]:
        """Statistics by element ("beta[0]", "L[0,1]", or the site's name for a scalar), then by name.

        Example:
            >>> list(dft.summary_table().rows)
            ['mu']
        """
        rows = {}
        for site, statistics in self.sites.items():
            for index in np.ndindex(next(iter(statistics.values())).shape):
                name = f"{site}[{','.join(map(str, index))}]" if index else site
                rows[name] = {key: float(value[index]) for key, value in statistics.items()}
        return rows

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Statistics by site, then by name, as nested lists of plain numbers (for JSON or a data frame).

        Example:
            >>> type(dft.summary_table().to_dict()["mu"]["mean"])
            <class 'float'>
        """
        return {
            site: {key: value.tolist() for key, value in statistics.items()}
            for site, statistics in self.sites.items()
        }

    def __str__(self) -> str:
        rows = self.rows
        if not rows:
            return "(no sites)"
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        cells = [["", *columns]] + [[name, *_format_row(row, columns)] for name, row in rows.items()]
        minimum = [10] + [9] * len(columns)
        widths = [
            max(least, *map(len, column))
            for least, column in zip(minimum, zip(*cells, strict=True), strict=True)
        ]
        lines = [" ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells]
        return "\n".join(["", *lines, "", *self._notes(rows)])

    def _notes(self, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
        low, high = interval_names(self.prob)
        notes = [
            f"{low}, {high}: narrowest interval with {self.prob:.0%} of the draws, as in Pyro and NumPyro."
        ]
        if any("approx_error" in row for row in rows.values()):
            notes.append("approx_error: estimated error of the mean through the approximation, in sds.")
        coarse = [
            name for name, row in rows.items() if row.get("approx_error", 0.0) * row["std"] > row["mcse"]
        ]
        if coarse:
            listed = ", ".join(coarse[:_NAMED_IN_NOTE])
            more = f" and {len(coarse) - _NAMED_IN_NOTE} more" if len(coarse) > _NAMED_IN_NOTE else ""
            notes.append(
                f"approx_error exceeds mcse for {listed}{more}: more draws will not improve these means, "
                "a longer or refined fit may."
            )
        return notes


def summary_table(
    posterior: Mapping[str, ArrayLike],
    approx_error: Mapping[str, ArrayLike] | None = None,
    *,
    prob: float = 0.9,
) -> Summary:
    """Summarise draws site by site.

    Mean, sd, median and the narrowest interval ("highest posterior density") are those of
    ``pyro.infer.mcmc.util.summary``; ``n_eff`` (bulk) and ``r_hat`` are rank-normalised (Vehtari et al. 2021)
    and do not split chains; "mcse" is the Monte Carlo standard error of the mean. Draws of a trained sampler
    are independent, so ``n_eff`` near to the number of draws and ``r_hat`` near to 1 say nothing of a bias
    that all chains share. That is what `approx_error` is for.

    Args:
        posterior: draws by site, each of shape (C, n, *site).
        approx_error: an estimate of the error of each mean, in posterior sds, by site, of the site's shape
            (or broadcast to it); sites may be left out.
        prob: mass of the interval, between 0 and 1.

    Returns:
        :class:`Summary`. ``r_hat`` is NaN (shown as "n/a") for one chain, and so are ``n_eff`` and ``r_hat``
        of an element that is constant up to rounding and all statistics of one with a draw that is not
        finite.

    Raises:
        ValueError: `prob` out of range, a site without chain and draw dimensions or without draws, or an
            `approx_error` for an unknown site or of a wrong shape.
    """
    if not 0.0 < prob < 1.0:
        raise ValueError(f"prob must lie between 0 and 1, got {prob}")
    errors = approx_error or {}
    unknown = sorted(errors.keys() - posterior.keys())
    if unknown:
        raise ValueError(f"approx_error for sites that are not in posterior: {', '.join(unknown)}")
    sites = {}
    for name, value in posterior.items():
        draws = np.asarray(value)
        if draws.ndim < 2 or draws.shape[0] == 0 or draws.shape[1] == 0:
            raise ValueError(f"site {name!r} must have shape (chains, draws, ...), got {draws.shape}")
        sites[name] = _statistics(draws, prob)
        if approx_error is not None:
            shape = draws.shape[2:]
            try:
                error = np.broadcast_to(np.asarray(errors.get(name, np.nan), dtype=np.float64), shape)
            except ValueError:
                raise ValueError(
                    f"approx_error of {name!r} has shape {np.shape(errors[name])}, not {shape}"
                ) from None
            sites[name]["approx_error"] = error.copy()
    return Summary(sites=sites, prob=prob)


def interval_names(prob: float) -> tuple[str, str]:
    """Column names of the interval's ends, as Pyro and NumPyro write them: "5.0%" and "95.0%" for 0.9."""
    return f"{50 * (1 - prob):.1f}%", f"{50 * (1 + prob):.1f}%"


def _statistics(draws: NDArray[Any], prob: float) -> dict[str, Array]:
    """Statistics of draws (C, n, *site), each of shape (*site)."""
    resolution = np.finfo(draws.dtype).eps if draws.dtype.kind == "f" else 0.0
    x = draws.astype(np.float64)
    finite = np.isfinite(x).all(axis=(0, 1))
    x = np.where(finite, x, 0.0)
    flat = x.reshape(-1, *x.shape[2:])
    # A unit diagonal that comes out of a square root varies by rounding; its R-hat would be noise.
    spread = flat.max(axis=0) - flat.min(axis=0)
    constant = spread <= 8.0 * resolution * np.abs(flat).max(axis=0)
    varying = np.where(constant, 0.0, x)
    std = np.where(constant, 0.0, flat.std(axis=0, ddof=min(1, len(flat) - 1)))
    low, high = _narrowest_interval(flat, prob)
    values = {
        "mean": flat.mean(axis=0),
        "std": std,
        "median": np.median(flat, axis=0),
        **dict(zip(interval_names(prob), (low, high), strict=True)),
        "n_eff": ess(varying),
        "r_hat": rhat(varying),
        "mcse": np.where(constant, 0.0, std / np.sqrt(ess(varying, kind="mean"))),
    }
    return {name: np.where(finite, value, np.nan) for name, value in values.items()}


def _narrowest_interval(flat: Array, prob: float) -> tuple[Array, Array]:
    """Ends of the narrowest interval with mass `prob` along axis 0, as ``pyro.ops.stats.hpdi``."""
    ordered = np.sort(flat, axis=0)
    width = int(prob * len(flat))
    start = (ordered[width:] - ordered[: len(flat) - width]).argmin(axis=0)[None]
    low = np.take_along_axis(ordered, start, axis=0)[0]
    return low, np.take_along_axis(ordered, start + width, axis=0)[0]


def _format_row(row: Mapping[str, float], columns: list[str]) -> list[str]:
    """Two significant digits of the sd decide how many decimals a row shows, two at least as in Pyro."""
    std = row["std"]
    decimals = max(2, 1 - int(np.floor(np.log10(std)))) if np.isfinite(std) and std > 0 else 2
    cells = []
    for column in columns:
        value = row.get(column, np.nan)
        if np.isnan(value):
            cells.append("n/a")
        elif column in ("mcse", "approx_error"):
            cells.append(f"{value:.2g}")
        elif column in ("n_eff", "r_hat"):
            cells.append(f"{value:.2f}")
        else:
            cells.append(f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.3g}")
    return cells
