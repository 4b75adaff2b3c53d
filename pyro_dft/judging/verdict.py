"""From measured numbers to a verdict: what `diagnostics()` returns, and the words that a fit warns with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from pyro_dft import links
from pyro_dft.judging import alarms
from pyro_dft.judging.drift import MOMENTS, Drift
from pyro_dft.judging.drift import drift as paired_drift
from pyro_dft.judging.optima import ModeCoverage, distinct_optima, mode_coverage, shortfall, triangular
from pyro_dft.judging.remains import left_over
from pyro_dft.judging.symmetry import is_copy

# With independent draws within chains, R-hat of 1.01 is a spread between chain means of 0.14 sd. See `rhat_limit`.
RHAT_LIMIT = 1.01
# An optimum that is expected to hold this share of the posterior, and holds less than a tenth of it, is missed.
MODE_LIMIT = 0.01
# An optimum is no mode of its own where a smaller share than this of the points that started there stays, and the others come as
# near as this to the mean of the draws (sds, in each coordinate).
STAYED, NEAR = 0.1, 3.0
# Draws whose log density and spread show that they fall short of the evidence by so many nats (plus as many for each coordinate)
# have missed nearly all of the posterior.
SHORTFALL_LIMIT, SHORTFALL_BY_DIMENSION = 3.0, 0.01
# Where the memory of draws is above this, their transitions were too few, whoever chose the number.
UNSETTLED_MEMORY = 0.7
WORDS = tuple("log sd" if moment == "sd" else moment for moment in MOMENTS)


class Diagnostics(dict[str, Any]):
    """Numbers that say how good a fit is. A dict; `print` it for a readable page.

    Keys:
        status: "converged", "suspect" or "failed".
        warnings: What is wrong, in words, with what to try.
        alarms: The same in short: names of the tests that fired, in the order of `warnings`.
        objective: What the returned sampler ended with: "gaussian", "kl", "dft", ... (one for each chain where they differ).
        coordinates: Sites that were non-centred for training; empty for the model's own coordinates.
        refine_steps: HMC transitions that new draws get by default.
        renewed: Whether these start at kept draws, as transitions from draws of the sampler would cost more, or leave an error.
        drift_raw, drift_refined: The drift test: how far the raw draws are from the ensemble's states, and the first half of
            these from the second. Without an ensemble: how far transitions of exact HMC move the raw draws, and as many again the
            refined ones; the surest effect over coordinates on means, log sds, 5 % and 95 % points (`worst`, in sds, with
            its 95 % interval, coordinate and moment), the root mean square effect on means and log sds, and whether one is
            flagged (`pyro_dft.judging.drift.LIMITS`). `gap` is where these transitions would lead in the end, given how slowly
            they forget where a draw started (`pyro_dft.judging.drift.Drift`): the surest gap over coordinates, in sds, with an
            interval that holds for all of them together, and whether it is flagged. `memory` is how much of where a draw started
            the transitions leave, the largest over coordinates (`slowest` is the one); `resolution` the largest standard
            error of a mean's gap: errors of that size are not seen; `draws` the number of draws that were compared.
        joint: By how many nats, for each coordinate, the mean log density of raw draws is surely off, the largest over
            chains, which shows errors that no coordinate does (`pyro_dft.judging.joint`). None without an ensemble.
        left: What refinement is expected to leave of the raw draws' error (`error`, in sds): their gap (`raw`) times what
            the refined draws remember over as many transitions, where that is largest.
        unsettled: Whether the ensemble's budget ended before its two halves agreed. Where `refine_steps` is given, or the model
            subsamples its data: whether the search for it ended at `max_refine_steps` before the draws were at rest, or the
            transitions leave most of where a draw started.
        ensemble: Of the chains whose states are served: their number (`chains`), `transitions` of each that were kept,
            `leapfrog_steps` of a transition, and the effective number of draws (`ess`), the smallest over coordinates, their
            squares and their tails. None where draws are refined one by one.
        r_hat, r_hat_limit: Largest R-hat between chains over all coordinates, and what it is held against: 1.01, or
            more where there are few draws; None with one chain.
        preconditioned: Whether a Gaussian was fitted first, whose restarts look for separate modes.
        optima: Distinct optima that the restarts of all chains ended at: evidence bounds, weights exp(bound), the share of
            the served draws at each, those that are `missing`, those that are exact `copies` of served ones (exchanged labels,
            flipped signs), those that transitions `left` for where the draws are, which are no modes of their own; the share of
            the draws `outside` of all; `shortfall`, nats of evidence by which the draws provably fall short of the best bound
            (`pyro_dft.judging.optima.shortfall`), with its standard error and limit.
        modes: Weights of separate modes, each with a sampler of its own, from importance sampling, with their standard errors
            and the tail index `k_hat` of the importance weights; None where there is one mode.
        fisher_gap: Last estimate of the Fisher divergence in whitened coordinates, J(s_q) - J(s_phi), mean over chains (None
            without a network).
        movement: How far a short refinement moved each candidate's draws (rms, sds), or how far they are from the ensemble's
            states, in each coordinate and jointly; for each chain.
        acceptance, divergence_rate, stuck: Of the refinement's transitions the mean acceptance probability, the share that
            diverged, and the share of draws that never moved; `expected_stuck` is the share that the acceptance explains.
        careful_divergence_rate, drift_careful: What is left of `divergence_rate` with leapfrog steps of a quarter of the size,
            measured on some of the draws where it is above .1 %, and the drift test of these; `proved` is the part of the drift
            that chance does not explain.
        surrogate_error: How wrong the surrogate was that the networks were trained on: the median error of its scores at draws of
            the generator late in the training, that it had not seen, over the median size of the scores. None without one.
        cut: The limit that ended the fit before its time ("max_gradients" or "max_seconds"), or None.
        noise: By how much the log density varies between evaluations at the same points (nats).
        invalid: Names of `parameters` of distributions that were out of their range, and of `data` that were outside of the
            support of theirs, with the share of the draws where they were. Both are empty for a valid model.
        spread, widest: The largest standard deviation of an unconstrained coordinate, and which one has it.
        num_draws: Number of draws that the tests were made on.
        vectorised: Whether the potential was evaluated for a batch of points at once.
        gradient_evaluations, nonfinite_evaluations: Of the model's potential.
        data_rows: Rows of data that those read, of minibatches and of the full data; None where the model subsamples nothing.
        iterations, seconds, cpu_seconds, phase_seconds: Cost of the fit.
        phase_gradients: Gradient evaluations by phase of the fit; those of draws since then are in `gradient_evaluations` only.

    Example:
        >>> report = dft.diagnostics()
        >>> print(report)  # doctest: +ELLIPSIS
        status: converged
        alarms: []
        ...
    """

    def __str__(self) -> str:
        lines = [f"status: {self['status']}"]
        lines += [f"  ! {line}" for line in self["warnings"]]
        for key, value in self.items():
            if key in ("status", "warnings"):
                continue
            if isinstance(value, dict):
                value = ", ".join(f"{k} {alarms.short(v)}" for k, v in value.items())
            lines.append(f"{key}: {alarms.short(value)}")
        lines.append(f"What each line means: {links.page('diagnostics')}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same with plain numbers only; not-a-number becomes None.

        Example:
            >>> import json
            >>> json.loads(json.dumps(dft.diagnostics().to_json()))["status"]
            'converged'
        """
        return json.loads(json.dumps(_plain(self)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def drift_entry(drift: Drift, names: list[str]) -> dict[str, Any]:
    """A drift test as plain numbers."""
    row, column = drift.surest
    worst, error = abs(float(drift.effects[row, column])), float(drift.standard_errors[row, column])
    gap = drift.surest_gap
    return {
        "worst": worst,
        "interval": [worst - 1.96 * error, worst + 1.96 * error],
        "coordinate": names[column],
        "moment": WORDS[row],
        "rms": drift.rms,
        "flagged": drift.flagged(),
        "gap": float(drift.gap[gap]),
        "gap_interval": [float(drift.gap_low[gap]), float(drift.gap_high[gap])],
        "gap_coordinate": names[gap[1]],
        "gap_moment": WORDS[gap[0]],
        "gap_flagged": drift.gap_flagged,
        "draws": drift.n,
        "resolution": drift.resolution,
        "memory": float(drift.memory[0].max()),
        "slowest": names[int(drift.memory[0].argmax())],
    }


def careful_entry(drift: Drift | None, names: list[str]) -> dict[str, Any] | None:
    """A drift test with smaller steps as plain numbers, with what it proves beyond chance (sds)."""
    return None if drift is None else {**drift_entry(drift, names), "proved": drift.worst_lower}


def left_entry(raw: Drift, refined: Drift, names: list[str], *, chains: bool) -> dict[str, Any]:
    """What refinement is expected to leave of the raw draws' largest error, as plain numbers; see `left_over`."""
    size, error = left_over(raw, refined, chains=chains)
    row, column = np.unravel_index(int(error.argmax()), error.shape)
    return {
        "error": float(error[row, column]),
        "raw": float(size[row, column]),
        "memory": float(refined.memory[row, column]),
        "coordinate": names[column],
        "moment": WORDS[row],
    }


def drift_facts(
    raw: Drift, refined: Drift, names: list[str], *, at_limit: bool, chains: bool
) -> dict[str, Any]:
    """The facts that come from the drift tests.

    Args:
        raw: Drift from raw draws to refined ones.
        refined: Drift of these over as many transitions again.
        names: Of the coordinates.
        at_limit: Whether no more transitions were allowed.
        chains: Whether the second is from the first half of an ensemble's last window to the second half.
    """
    remembers = refined.sure_memory > UNSETTLED_MEMORY
    return {
        "drift_raw": drift_entry(raw, names),
        "drift_refined": drift_entry(refined, names),
        "left": left_entry(raw, refined, names, chains=chains),
        "unsettled": remembers or ((at_limit or chains) and refined.restless),
    }


@dataclass(frozen=True)
class Restarts:
    """The Gaussians that R restarts ended at.

    Attributes:
        means: (R, d).
        scales: Any square roots of the covariances, (R, d, d).
        elbos: Evidence bounds, (R,), up to d/2 log(2 pi e) and the constant of the log density.
        errors: Standard errors of `elbos`, (R,); infinite where they are no bounds of this posterior.
    """

    means: np.ndarray
    scales: np.ndarray
    elbos: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class Served:
    """Draws that are served, in the coordinates of the Gaussians.

    Attributes:
        draws: As they are served, (n, d).
        refined: After their refinement, (..., d).
        log_density: At `refined`, (...).
    """

    draws: np.ndarray
    refined: np.ndarray
    log_density: np.ndarray


def optima_entry(
    restarts: Restarts,
    served: Served,
    density: Callable[[np.ndarray], np.ndarray],
    ends: Callable[[int], np.ndarray | None],
    passed: Collection[int] = (),
) -> dict[str, Any] | None:
    """Distinct optima of all restarts, and which of them the served draws cover; None without restarts.

    Args:
        restarts: The Gaussians.
        served: The draws.
        density: The log density at points (n, d), to tell missed modes from copies of others.
        ends: Index of a restart -> where draws of its Gaussian end after some of the transitions that refine draws, (m, d); None
            where they were not moved.
        passed: Restarts at whose optima chains started that are known to pass between all of these.
    """
    means, elbos, draws = restarts.means, restarts.elbos, served.draws
    if not np.isfinite(elbos).any() or not np.isfinite(draws).all():
        return None
    tril = triangular(restarts.scales)
    found = distinct_optima(means, tril, elbos)
    keep = found.relevant(MODE_LIMIT)
    picked = found.indices[keep]
    coverage = mode_coverage(draws, means[picked], tril[picked], found.weight[keep])
    dim = draws.shape[1]
    bounds = np.where(np.isfinite(elbos), elbos - 3 * restarts.errors, -np.inf)
    bound = float(bounds.max()) + 0.5 * dim * math.log(2 * math.pi * math.e)
    short, short_error = shortfall(served.refined.reshape(-1, dim), served.log_density.reshape(-1), bound)
    missing, held = coverage.missing(MODE_LIMIT), coverage.fraction >= 0.1 * coverage.expected
    copies = [
        int(i)
        for i in missing
        if any(is_copy(means[j], tril[j], means[picked[i]], tril[picked[i]], density) for j in picked[held])
    ]
    rest = [int(i) for i in missing if i not in copies]
    gone = [
        i
        for i in rest
        if not set(passed).isdisjoint(found.members[keep[i]])
        or _left(i, ends(int(picked[i])), draws, coverage, means[picked], tril[picked])
    ]
    return {
        "count": len(keep),
        "elbos": found.elbo[keep].tolist(),
        "weights": (found.weight[keep] / found.weight[keep].sum()).tolist(),
        "shares": coverage.fraction.tolist(),
        "missing": [i for i in rest if i not in gone],
        "copies": copies,
        "left": gone,
        "outside": coverage.outside,
        "shortfall": short,
        "shortfall_error": short_error,
        "shortfall_limit": SHORTFALL_LIMIT + SHORTFALL_BY_DIMENSION * dim,
        "failed_restarts": len(found.failed),
    }


def _left(
    optimum: int,
    ends: np.ndarray | None,
    draws: np.ndarray,
    coverage: ModeCoverage,
    means: np.ndarray,
    factors: np.ndarray,
) -> bool:
    """Whether the points that started at an optimum, and ended at `ends` (m, d), have left it for where the draws are."""
    if ends is None or not np.isfinite(ends).all():
        return False
    away = np.abs(ends.mean(0) - draws.mean(0)) > NEAR * draws.std(0)
    stayed = mode_coverage(ends, means, factors, coverage.expected).fraction[optimum]
    return bool(stayed < STAYED) and not away.any()


def approximation_error(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Estimated error of a site's mean in sds: drift under refinement and spread between samplers, noise subtracted.

    Args:
        before: (C, n, *site) draws.
        after: (C, n, *site) the same draws after further transitions.

    Returns:
        Array of the site's shape; zero where neither surely exceeds its Monte Carlo noise, so that a site without
        error shows none in any of its elements in about 9 of 10 fits.
    """
    c, n = after.shape[:2]
    flat_after = after.reshape(c * n, -1).astype(float)
    flat_before = before.reshape(c * n, -1).astype(float)
    moved = paired_drift(flat_before, flat_after)
    # Two tests for each of m elements, at 5 % for all m together (Bonferroni).
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, flat_after.shape[1]))
    squared = np.maximum(0.0, moved.mean_shift**2 - moved.mean_se**2)
    squared = np.where(np.abs(moved.mean_shift) > z * moved.mean_se, squared, 0.0)
    if c > 1:
        chains = flat_after.reshape(c, n, -1)
        within = chains.var(axis=1, ddof=1).mean(axis=0)
        between = chains.mean(axis=1).var(axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.where(within > 0, between / within, 0.0)
        surely = n * spread > _largest_ratio(c - 1, c * (n - 1), max(1, flat_after.shape[1]))
        # The pooled mean of c samplers has a c-th of their spread.
        squared = squared + np.where(surely, spread - 1 / n, 0.0) / c
    return np.sqrt(squared).reshape(after.shape[2:])


def rhat_limit(chains: int, draws: int, coordinates: int) -> float:
    """What R-hat may not pass: 1.01, or more where so few draws of one posterior would pass it by chance.

    Args:
        chains: C, at least two.
        draws: Independent draws of each chain, n.
        coordinates: Of which the largest R-hat is looked at; each has two, of its location and of its spread.
    """
    # R-hat^2 is 1 + (F - 1) / n, with F the mean square between chains over that within.
    ratio = _largest_ratio(chains - 1, chains * (draws - 1), 2 * coordinates)
    return max(RHAT_LIMIT, math.sqrt(1 + (ratio - 1) / draws))


def _largest_ratio(between: int, within: int, count: int) -> float:
    """What the largest of `count` F-distributed ratios passes in 5 % of cases at most (Paulson 1942).

    Args:
        between: Degrees of freedom of the numerator.
        within: Degrees of freedom of the denominator.
        count: Ratios.
    """
    a, b, z = 2 / (9 * between), 2 / (9 * within), NormalDist().inv_cdf(1 - 0.05 / count)
    scale = (1 - b) ** 2 - z**2 * b
    if scale <= 0:  # too few draws to say anything
        return math.inf
    root = math.sqrt(a * (1 - b) ** 2 + b * (1 - a) ** 2 - z**2 * a * b)
    return (((1 - a) * (1 - b) + z * root) / scale) ** 3


def judge(facts: dict[str, Any]) -> Diagnostics:
    """Adds `status`, `warnings` and `alarms` to measured facts (the keys of `Diagnostics`)."""
    found = sorted(alarms.sounding(facts), key=lambda alarm: alarm.severity)  # "failed" comes first
    return Diagnostics(
        {
            "status": alarms.status(found, facts),
            "warnings": [alarm.words(facts) for alarm in found],
            "alarms": [alarm.name for alarm in found],
            **facts,
        }
    )
