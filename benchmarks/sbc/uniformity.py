"""Ranks, and whether they are uniform: the chi-square test and the simultaneous band of the ECDF.

The band is that of Säilynoja, Bürkner and Vehtari (Graphical test for discrete uniformity and its applications in
goodness-of-fit evaluation and multiple sample comparison, 2022). ArviZ has it too, in a place and with a signature that
change from version to version, and without the p-value that a correction for many coordinates needs; the two
bands are compared in ``tests/test_sbc.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

# Posterior draws for each replicate, so that there are 200 ranks, which many numbers of bins divide.
DRAWS = 199
RANKS = DRAWS + 1
# Twenty replicates for each bin (Talts et al. 2018), or fewer bins.
BINS, EACH = (20, 10, 5, 4, 2), 20
LEVEL = 0.05
# Of the null distribution; the smallest p-value of the ECDF test is about one in this many.
SIMULATIONS = 20_000


def rank(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many of the draws (n, k) are below the truth (k,): 0 to n, uniform where the draws are exact."""
    if not (np.isfinite(draws).all() and np.isfinite(truth).all()):
        raise ValueError("draws or truth are not finite: their ranks mean nothing")
    return (draws < truth).sum(0)


def bins(replicates: int) -> int:
    """Bins of a histogram of so many ranks."""
    return next((b for b in BINS if replicates >= EACH * b), BINS[-1])


def histogram(ranks: np.ndarray) -> np.ndarray:
    """Counts of ranks (n,) in bins of equal width."""
    count = bins(len(ranks))
    return np.bincount(ranks * count // RANKS, minlength=count)


def histogram_band(replicates: int) -> tuple[int, int]:
    """Limits that all counts of a histogram keep with 95 % probability or more (Bonferroni over the bins)."""
    count = bins(replicates)
    low, high = stats.binom.interval(1 - LEVEL / count, replicates, 1 / count)
    return int(low), int(high)


def chi_square(ranks: np.ndarray) -> float:
    """The p-value of the chi-square test of the histogram."""
    return float(stats.chisquare(histogram(ranks)).pvalue)


GRID = np.arange(1, RANKS + 1) / RANKS  # where the ECDF is looked at: every rank


def ecdf(ranks: np.ndarray) -> np.ndarray:
    """Counts of ranks (..., n) that are at most 0, 1, ..., shape (..., RANKS)."""
    sorted_ranks = np.sort(ranks, -1)
    at = np.arange(RANKS)
    flat = [np.searchsorted(row, at, side="right") for row in sorted_ranks.reshape(-1, ranks.shape[-1])]
    return np.reshape(flat, (*ranks.shape[:-1], RANKS))


@lru_cache
def _tails(replicates: int) -> np.ndarray:
    """Two-sided tail probability of each count at each point of the grid, (RANKS, replicates + 1)."""
    counts = np.arange(replicates + 1)
    below = stats.binom.cdf(counts, replicates, GRID[:, None])
    above = stats.binom.sf(counts - 1, replicates, GRID[:, None])
    return 2 * np.minimum(below, above)


def _worst_tail(counts: np.ndarray) -> np.ndarray:
    """The smallest tail probability along ECDFs given as counts (..., RANKS)."""
    return _tails(int(counts[..., -1].max()))[np.arange(RANKS), counts].min(-1)


@lru_cache
def _null(replicates: int) -> np.ndarray:
    """Smallest tail probabilities of uniform ranks, sorted."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(replicates, np.full(RANKS, 1 / RANKS), size=SIMULATIONS).cumsum(-1)
    return np.sort(_worst_tail(counts))


def ecdf_test(ranks: np.ndarray) -> np.ndarray:
    """The p-values of ranks (..., n): below 0.05 exactly where the ECDF leaves its 95 % band."""
    null = _null(ranks.shape[-1])
    # The null distribution is discrete: rounding must not decide between equal numbers.
    worst = _worst_tail(ecdf(ranks)) * (1 + 1e-9)
    return (1 + np.searchsorted(null, worst, side="right")) / (1 + SIMULATIONS)


def ecdf_band(replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limit (RANKS,) of the ECDF, which keeps both everywhere with 95 % probability."""
    null = _null(replicates)
    inside = _tails(replicates) >= np.quantile(null, LEVEL, method="higher") * (1 - 1e-9)
    return inside.argmax(-1) / replicates, 1 - inside[:, ::-1].argmax(-1) / replicates


@dataclass(frozen=True)
class Verdict:
    """What the ranks of one method say, all coordinates together.

    Attributes:
        replicates: How many ranks each coordinate has.
        coordinates: How many there are, test quantities included.
        chi_square: The smallest p-value of the chi-square test.
        ecdf: The smallest p-value of the ECDF test.
        worst: The coordinate with the smaller of the two.
        mean_rank: Its mean rank as a share of the largest; 0.5 where draws are neither too high nor too low.
        outside: How many ECDFs leave their 95 % band; one in twenty does by chance.
        adjusted: The smallest p-value after Bonferroni over both tests and all coordinates.
    """

    replicates: int
    coordinates: int
    chi_square: float
    ecdf: float
    worst: str
    mean_rank: float
    outside: int
    adjusted: float

    @property
    def uniform(self) -> bool:
        """Whether nothing speaks against calibration."""
        return self.adjusted >= LEVEL


def judge(ranks: np.ndarray, names: list[str]) -> Verdict:
    """Test ranks (replicates, coordinates)."""
    count, coordinates = ranks.shape
    chi = np.array([chi_square(column) for column in ranks.T])
    band = ecdf_test(ranks.T)
    worst = int(np.minimum(chi, band).argmin())
    return Verdict(
        replicates=count,
        coordinates=coordinates,
        chi_square=float(chi.min()),
        ecdf=float(band.min()),
        worst=names[worst],
        mean_rank=float(ranks[:, worst].mean() / DRAWS),
        outside=int((band < LEVEL).sum()),
        adjusted=float(min(1.0, 2 * coordinates * min(chi.min(), band.min()))),
    )


def detectable(replicates: int, repeats: int = 500) -> tuple[float, float, float]:
    """What the ECDF test of one coordinate sees in four cases out of five.

    Normal draws are given a wrong mean or a wrong sd.

    Returns:
        The smallest such shift of the mean in posterior sds, the sd ratio below one, and the one above.
    """
    rng = np.random.default_rng(0)
    z = rng.normal(size=(repeats, replicates))

    def seen(shift: float, ratio: float) -> bool:
        ranks = rng.binomial(DRAWS, stats.norm.cdf((z - shift) / ratio))
        return bool((ecdf_test(ranks) < LEVEL).mean() >= 0.8)

    steps = np.arange(1, 40) * 0.05
    shift = next((s for s in steps if seen(s, 1.0)), np.inf)
    low = next((1 - s for s in steps[:19] if seen(0.0, 1 - s)), 0.0)
    high = next((1 + s for s in steps if seen(0.0, 1 + s)), np.inf)
    return float(shift), float(low), float(high)
