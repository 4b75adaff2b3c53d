"""From measured numbers to a verdict: what `diagnostics()` returns, and the words that a fit warns with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from pyro_dft import diagnostics, links
from pyro_dft.diagnostics import Drift
from pyro_dft.optima import shortfall, triangular
from pyro_dft.symmetry import is_copy

# Effects in posterior standard deviations whose lower 95 % limit passes this are flagged.
DRIFT_LIMIT = 0.1
# The same for gaps, whose limits hold for all coordinates together.
GAP_LIMIT = 0.1
# Raw draws that were off by so much may leave refined ones behind that are not right yet, although they hardly move any
# more: in necks and tails. The first figure is for refined draws that surely still move, the second for any.
RAW_GAP_LIMITS = (0.12, 0.25)
# Where draws remember more of their start than this, the drift test has seen nothing. Below the second figure
# transitions pass between all parts of the posterior: there are no separate modes.
BLIND_MEMORY = 0.975
CONNECTED_MEMORY = 0.85
# With independent draws within chains, R-hat of 1.01 is a spread between chain means of 0.14 sd. See `rhat_limit`.
RHAT_LIMIT = 1.01
# An optimum that is expected to hold this share of the posterior, and holds less than a tenth of it, is missed.
MODE_LIMIT = 0.01
# Draws whose log density and spread prove that they miss the evidence by so many nats, and as many more for each coordinate,
# have lost what holds nearly all of the posterior.
SHORTFALL_LIMIT, SHORTFALL_BY_DIMENSION = 3.0, 0.01
# Weights of modes are estimates of importance sampling, with this tail and these standard errors at most.
MODE_KHAT = 0.7
MODE_ERROR = 0.03
# Curved posteriors with good draws pass it too, as they make NUTS diverge; a horseshoe with wrong ones passes it barely.
DIVERGENCE_LIMIT = 0.015
STUCK_LIMIT = 0.1
# Restarts that disagree about the shape of one mode mean little, unless transitions diverge there too (a horseshoe's necks).
NARROW_DIVERGENCES = 0.01
# Log densities that vary by more than this (nats) from one evaluation to the next make no posterior.
NOISE_LIMIT = 0.1
ACCEPTANCE_LIMIT = 0.4
# Standard deviations beyond this are a sign of an improper posterior rather than of units.
SPREAD_LIMIT = 1e9


class Diagnostics(dict[str, Any]):
    """Numbers that say how good a fit is. A dict; `print` it for a readable page.

    Keys:
        status: "converged", "suspect" or "failed".
        warnings: What is wrong, in words, with what to try.
        alarms: The same in short: names of the tests that fired, in the order of `warnings`.
        objective: What the returned sampler ended with: "gaussian", "kl", "dft", ... (one for each chain where they differ).
        coordinates: Sites that were non-centred for training; empty for the model's own coordinates.
        refine_steps: HMC transitions that served draws get by default.
        drift_raw, drift_refined: The drift test: how far transitions of exact HMC move the raw draws, and as many again the
            refined ones; `worst` effect over coordinates on means and log sds, in sds, with its 95 % interval, where it is,
            the root mean square effect, and whether it is flagged (lower limit above 0.1). `gap` is where these transitions
            would lead in the end, given how slowly they forget where a draw started (`pyro_dft.diagnostics.Drift`): the
            surest gap over coordinates, in sds, with an interval that holds for all of them together, and whether it is flagged
            (lower limit above 0.1). `memory` is how much of where a draw started the transitions leave, at most over coordinates
            (`slowest` is the one); `resolution` the largest standard error of a mean's gap: errors of its size are not seen.
        r_hat, r_hat_limit: Largest R-hat between chains over all coordinates, and what it is held against: 1.01, or
            more where there are few draws; None with one chain.
        ksd: Kernel Stein discrepancy (IMQ) of the served draws in whitened coordinates, with its p-value.
        preconditioned: Whether a Gaussian was fitted first, whose restarts look for separate modes.
        optima: Distinct optima that the restarts of all chains ended at: evidence bounds, weights exp(bound), the share of
            the served draws at each, those that are `missing`, those that are exact `copies` of served ones (exchanged labels,
            flipped signs), the share of the draws `outside` of all; `shortfall`, nats of evidence by which the draws provably
            fall short of the best bound (`pyro_dft.optima.shortfall`), with its standard error and limit.
        modes: Weights of separate modes, each with a sampler of its own, from importance sampling, with their standard errors
            and the tail index `k_hat` of the importance weights; None where there is one mode.
        fisher_gap: Last estimate of the Fisher divergence in whitened coordinates, J(s_q) - J(s_phi), mean over chains (None
            without a network).
        movement: How far a short refinement moved each candidate's draws (rms, sds), for each chain.
        acceptance, divergence_rate, stuck: Of the refinement's transitions; `expected_stuck` is what the acceptance explains.
        noise: By how much the log density varies between evaluations at the same points (nats).
        spread, widest: The largest standard deviation of an unconstrained coordinate, and which one has it.
        num_draws: Draws the tests were made on.
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
                value = ", ".join(f"{k} {_short(v)}" for k, v in value.items())
            lines.append(f"{key}: {_short(value)}")
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


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    return str(value)


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
    effect = np.abs(drift.effects)
    i = int(effect.max(0).argmax())
    row = int(effect[:, i].argmax())
    error = float(drift.standard_errors[row, i])
    low, high = drift.gap_limits
    surest = np.unravel_index(int(np.maximum(low, -high).argmax()), low.shape)
    return {
        "worst": drift.worst,
        "interval": [drift.worst - 1.96 * error, drift.worst + 1.96 * error],
        "coordinate": names[i],
        "moment": "mean" if row == 0 else "log sd",
        "rms": drift.rms,
        "flagged": drift.flagged(DRIFT_LIMIT),
        "gap": float(drift.gap[surest]),
        "gap_interval": [float(low[surest]), float(high[surest])],
        "gap_coordinate": names[surest[1]],
        "gap_moment": "mean" if surest[0] == 0 else "log sd",
        "gap_flagged": drift.gap_lower > GAP_LIMIT,
        "resolution": drift.resolution,
        "memory": float(drift.memory[0].max()),
        "slowest": names[int(drift.memory[0].argmax())],
    }


def ksd_entry(draws: np.ndarray, scores: np.ndarray, seed: int) -> dict[str, Any] | None:
    """Kernel Stein discrepancy of whitened draws (n, d) with the scores there; None where something is not finite."""
    if len(draws) < 2 or not (np.isfinite(draws).all() and np.isfinite(scores).all()):
        return None
    found = diagnostics.ksd(draws, scores, seed=seed)
    return {
        "statistic_u": found.statistic_u,
        "statistic_v": found.statistic_v,
        "p_value": found.p_value,
        "null_quantile_95": found.null_quantile_95,
    }


def optima_entry(
    means: np.ndarray,
    scales: np.ndarray,
    elbos: np.ndarray,
    draws: np.ndarray,
    *,
    errors: np.ndarray,
    refined: np.ndarray,
    log_density: np.ndarray,
    density: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any] | None:
    """Distinct optima of all restarts, and which of them the draws (n, d) cover; None without restarts.

    Args:
        means: (R, d).
        scales: (R, d, d), any square roots of the covariances.
        elbos: (R,), up to d/2 log(2 pi e) and the constant of the log density.
        draws: Served draws in the same coordinates.
        errors: Standard errors of `elbos`; infinite where they are no bounds of this posterior.
        refined: Draws (..., d) after their refinement.
        log_density: At `refined`, (...).
        density: The log density at points (n, d), to tell missed modes from copies of others.
    """
    if not np.isfinite(elbos).any() or not np.isfinite(draws).all():
        return None
    tril = triangular(scales)
    found = diagnostics.distinct_optima(means, tril, elbos)
    keep = found.relevant(MODE_LIMIT)
    picked = found.indices[keep]
    coverage = diagnostics.mode_coverage(draws, means[picked], tril[picked], found.weight[keep])
    dim = draws.shape[1]
    bounds = np.where(np.isfinite(elbos), elbos - 3 * errors, -np.inf)
    bound = float(bounds.max()) + 0.5 * dim * math.log(2 * math.pi * math.e)
    short, short_error = shortfall(refined.reshape(-1, dim), log_density.reshape(-1), bound)
    missing, held = coverage.missing(MODE_LIMIT), coverage.fraction >= 0.1 * coverage.expected
    copies = [
        int(i)
        for i in missing
        if any(is_copy(means[j], tril[j], means[picked[i]], tril[picked[i]], density) for j in picked[held])
    ]
    return {
        "count": len(keep),
        "elbos": found.elbo[keep].tolist(),
        "weights": (found.weight[keep] / found.weight[keep].sum()).tolist(),
        "shares": coverage.fraction.tolist(),
        "missing": [int(i) for i in missing if i not in copies],
        "copies": copies,
        "outside": coverage.outside,
        "shortfall": short,
        "shortfall_error": short_error,
        "shortfall_limit": SHORTFALL_LIMIT + SHORTFALL_BY_DIMENSION * dim,
        "failed_restarts": len(found.failed),
    }


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
    moved = diagnostics.drift(flat_before, flat_after)
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
    failed: dict[str, str] = {}
    suspect: dict[str, str] = {}
    raw = facts["drift_raw"]
    served = raw if facts["refine_steps"] == 0 else facts["drift_refined"]
    kind = "raw" if facts["refine_steps"] == 0 else "refined"
    advice = "Try a larger num_steps or width, more refine_steps, or a reparametrised model."
    if not math.isfinite(served["worst"]) or facts["acceptance"] < ACCEPTANCE_LIMIT:
        failed["acceptance"] = (
            "exact transitions from the draws are hardly ever accepted "
            f"(acceptance {facts['acceptance']:.2f}): the draws are far from the posterior. Check the model for improper or "
            "extremely narrow directions; try float64, an init_strategy, or more restarts."
        )
    elif served["flagged"]:
        failed["drift"] = (
            f"the {kind} draws still move under exact transitions: {served['moment']} of {served['coordinate']} by "
            f"{served['worst']:.2f} sd (limit {DRIFT_LIMIT}). {advice}"
        )
    elif served["gap_flagged"]:
        failed["gap"] = (
            f"the {kind} draws move slowly but far under exact transitions: {served['gap_moment']} of "
            f"{served['gap_coordinate']} is off by about {abs(served['gap']):.2f} sd (limit {GAP_LIMIT}). {advice}"
        )
    elif _surely(raw["gap_interval"]) > RAW_GAP_LIMITS[int(_surely(served["gap_interval"]) <= 0)]:
        suspect["raw gap"] = (
            f"before their refinement the draws were off by about {abs(raw['gap']):.2f} sd in {raw['gap_moment']} of "
            f"{raw['gap_coordinate']}: where the posterior has a neck or tail that transitions enter slowly, some of that is "
            f"still there. {advice}"
        )
    if served["memory"] > BLIND_MEMORY:
        suspect["blind"] = (
            f"exact transitions hardly move {served['slowest']}: an error of its mean of {2 * served['resolution']:.1f} sd "
            "would not be seen. There may be several modes whose weights are not known; compare chains (num_chains=4)."
        )
    if facts.get("noise", 0.0) > NOISE_LIMIT:
        failed["noise"] = (
            f"the log density differs from one evaluation to the next (by {facts['noise']:.2g} at one point): does the model "
            "draw random numbers outside of sample statements? Such a model has no posterior."
        )
    if facts["spread"] > SPREAD_LIMIT:
        failed["improper"] = (
            f"the posterior is improper or nearly so: {facts['widest']} has a standard deviation of {facts['spread']:.1e}. "
            "Give it a proper prior."
        )
    if facts["r_hat"] is not None and not facts["r_hat"] <= facts["r_hat_limit"]:
        failed["r_hat"] = (
            f"chains disagree (R-hat {facts['r_hat']:.3f}): independently trained samplers found different posteriors. "
            "There may be several modes; try a larger num_steps or more restarts."
        )
    optima = facts["optima"]
    if optima and optima["missing"]:
        lost = sum(optima["weights"][i] for i in optima["missing"])
        failed["missing mode"] = (
            f"restarts found {optima['count']} separate optima, and the draws miss {len(optima['missing'])} of them (about "
            f"{lost:.0%} of the posterior). Reparametrise, or sample the modes apart."
        )
    if optima and optima["shortfall"] - 3 * optima["shortfall_error"] > optima["shortfall_limit"]:
        failed["wrong mode"] = (
            f"a restart found a part of the posterior with more evidence than the draws account for, by "
            f"{optima['shortfall']:.3g} nats: they hold at most a share of {math.exp(-optima['shortfall']):.1g} of the "
            "posterior. Try more restarts, initial_params nearer to the posterior, or a reparametrised model."
        )
    modes = facts.get("modes")
    if modes and not (modes["k_hat"] <= MODE_KHAT and max(modes["errors"]) <= MODE_ERROR):
        suspect["mode weights"] = (
            f"there are {len(modes['weights'])} separate modes, and their weights {_short(modes['weights'])} are doubtful: "
            f"importance weights with k-hat {modes['k_hat']:.2f}, standard errors up to {max(modes['errors']):.2f}."
        )
    elif (
        not modes
        and optima
        and not optima["missing"]
        and optima["count"] > 1
        and (served["memory"] > CONNECTED_MEMORY or facts["divergence_rate"] > NARROW_DIVERGENCES)
        and max(abs(np.subtract(optima["weights"], optima["shares"]))) > 0.1
    ):
        suspect["mode weights"] = (
            f"restarts ended at {optima['count']} optima with weights {_short(optima['weights'])}, and the draws visit them "
            f"with shares {_short(optima['shares'])}: where these are separate modes, their weights are doubtful."
        )
    if not facts.get("preconditioned", True):
        suspect["no search"] = (
            'nothing looked for separate modes, as there was no preconditioner (precondition="never", or objective '
            '"dft-paper"): modes that the draws miss, and wrong weights of those they have, would not be seen. Compare '
            "chains (num_chains=4), or a fit with the default settings."
        )
    if facts["divergence_rate"] > DIVERGENCE_LIMIT:
        suspect["divergences"] = (
            f"{facts['divergence_rate']:.1%} of the refining transitions diverged: parts of the posterior are much narrower "
            "than the rest (a funnel?) and may be missed. Try a non-centred parametrisation."
        )
    if facts["stuck"] > facts["expected_stuck"] + STUCK_LIMIT:
        suspect["stuck"] = (
            f"{facts['stuck']:.1%} of the draws never moved while being refined: they sit in regions much narrower than the rest."
        )
    status = "failed" if failed else "suspect" if suspect else "converged"
    warnings = [*failed.values(), *suspect.values()]
    return Diagnostics({"status": status, "warnings": warnings, "alarms": [*failed, *suspect], **facts})


def _surely(interval: list[float]) -> float:
    """Smallest size of an effect that its interval allows, below zero where the interval holds zero."""
    return max(interval[0], -interval[1])
