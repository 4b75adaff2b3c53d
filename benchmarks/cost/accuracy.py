"""How far draws are from a reference that is kept as moments and quantiles: b^2 and errors in posterior sds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

QUANTILES = (0.05, 0.50, 0.95)
# Where running estimates are looked at, as shares of the draws of each chain.
SHARES = np.geomspace(1 / 128, 1.0, 29)
# The accuracy that LAPS (arXiv 2601.16696) and MAMS (arXiv 2503.01707) are reported at.
B2_LIMIT = 0.01
# Coordinates whose sd is below this share of their size are constants, such as the corner of a Cholesky factor.
CONSTANT = 1e-9


@dataclass(frozen=True)
class Reference:
    """What is known of a posterior, coordinate by coordinate, on the model's own scale.

    Attributes:
        mean: (d,).
        sd: (d,).
        quantiles: (3, d), at 5, 50 and 95 %.
        square_sd: Sd of the squares (d,); their mean is mean^2 + sd^2.
        sites: Names of the sites, in the order of the coordinates.
        meta: How it was made.
    """

    mean: np.ndarray
    sd: np.ndarray
    quantiles: np.ndarray
    square_sd: np.ndarray
    sites: tuple[str, ...]
    meta: dict[str, Any]

    @classmethod
    def of(cls, draws: np.ndarray, sites: Sequence[str], meta: dict[str, Any]) -> Reference:
        """From draws (n, d)."""
        x = np.asarray(draws, np.float64)
        quantiles = np.quantile(x, QUANTILES, axis=0)
        return cls(x.mean(0), x.std(0), quantiles, (x**2).std(0), tuple(sites), meta)


@dataclass(frozen=True)
class Summary:
    """What is kept of a method's draws.

    Attributes:
        shares: Shares of the draws (k,) after which the running estimates were taken, the last one 1.
        means: Running means (k, d).
        squares: Running means of the squares (k, d).
        sd: (d,).
        quantiles: (3, d).
        non_finite: Draws that were left out because a coordinate was not finite.
    """

    shares: np.ndarray
    means: np.ndarray
    squares: np.ndarray
    sd: np.ndarray
    quantiles: np.ndarray
    non_finite: int

    @classmethod
    def of(cls, chains: np.ndarray, shares: np.ndarray = SHARES) -> Summary:
        """From draws (chains, n, d), in the order in which they were made.

        Raises:
            ValueError: fewer than two draws are finite.
        """
        x = np.asarray(chains, np.float64)
        good = np.isfinite(x).all(-1)
        if good.sum() < 2:
            raise ValueError("fewer than two draws are finite")
        x = np.where(good[..., None], x, 0.0)
        ends = np.unique(np.maximum(1, np.round(np.asarray(shares) * x.shape[1]).astype(int)))
        total, square = np.cumsum(x.sum(0), axis=0)[ends - 1], np.cumsum((x**2).sum(0), axis=0)[ends - 1]
        count = np.maximum(np.cumsum(good.sum(0))[ends - 1], 1)[:, None]
        flat = x[good]
        return cls(
            ends / x.shape[1], total / count, square / count, flat.std(0),
            np.quantile(flat, QUANTILES, axis=0), int((~good).sum()),
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """To an npz file."""
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Summary:
        """From an npz file."""
        with np.load(path) as f:
            return cls(
                **{name: f[name] for name in f.files if name != "non_finite"}, non_finite=int(f["non_finite"])
            )


def b2(means: np.ndarray, squares: np.ndarray, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Squared bias over variance of the first and of the second moment, each the worst over the coordinates.

    (E f - E_ref f)^2 / Var_ref f for f = x and f = x^2, as LAPS and MAMS report it. A quarter of 0.01 is what 400
    independent draws give in one coordinate on average; the worst of many coordinates needs some ten times as many.

    Args:
        means: Estimates of the means (..., d).
        squares: Estimates of the means of the squares (..., d).
        reference: The truth.

    Returns:
        Worst of the means and worst of the squares, each (...).
    """
    used = varies(reference)
    first = (means - reference.mean) ** 2 / np.where(used, reference.sd, 1.0) ** 2
    truth = reference.mean**2 + reference.sd**2
    second = (squares - truth) ** 2 / np.where(used, reference.square_sd, 1.0) ** 2
    return first[..., used].max(-1), second[..., used].max(-1)


def varies(reference: Reference) -> np.ndarray:
    """Which coordinates are not constants, (d,) of bool."""
    return reference.sd > CONSTANT * np.maximum(1.0, np.abs(reference.mean))


def share_to(worst: np.ndarray, shares: np.ndarray, limit: float = B2_LIMIT) -> float | None:
    """The smallest share of the draws from which on the worst b^2 stays below a limit; None if it is not at the end."""
    above = np.flatnonzero(~(worst < limit))
    first = int(above[-1]) + 1 if len(above) else 0
    return float(shares[first]) if first < len(shares) else None


def errors(summary: Summary, reference: Reference) -> dict[str, Any]:
    """The part of a row that compares with a reference; sds are the reference's."""
    first, second = b2(summary.means, summary.squares, reference)
    used = varies(reference)
    sd = reference.sd[used]
    mean = np.abs(summary.means[-1] - reference.mean)[used] / sd
    ratio = summary.sd[used] / sd
    quantile = (np.abs(summary.quantiles - reference.quantiles)[:, used] / sd).max(0)
    return {
        "worst_b2": float(max(first[-1], second[-1])),
        "b2_mean": float(first[-1]),
        "b2_square": float(second[-1]),
        "share_to_b2": share_to(np.maximum(first, second), summary.shares),
        "worst_mean": float(mean.max()),
        "sd_low": float(ratio.min()),
        "sd_high": float(ratio.max()),
        "worst_quantile": float(quantile.max()),
        "non_finite": summary.non_finite,
    }


def gradients_to_b2(row: dict[str, Any]) -> float | None:
    """Gradients after which b^2 stayed below the limit: those of the warm-up and a share of the rest."""
    share, total = row.get("share_to_b2"), row.get("gradients")
    if share is None or total is None:
        return None
    before = row.get("warm_gradients") or 0.0
    return float(before + share * (total - before))
