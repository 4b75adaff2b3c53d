"""The alarms of a fit, in one table: what makes each sound, how bad that is, and the words for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pyro_dft import messages
from pyro_dft.judging.divergences import too_many
from pyro_dft.judging.drift import LIMITS
from pyro_dft.judging.joint import LIMIT as JOINT_LIMIT

Facts = Mapping[str, Any]

# An expected error of the refined draws above the first figure (sds) makes a fit suspect; above the second it makes the fit
# failed where another alarm says that transitions do not repair the draws.
LEFT_LIMITS = (0.08, 0.1)
# Where the standard error of a mean's gap is above this (sds), errors of several tenths of an sd would not be seen. Chains that
# started far apart say by their effective number of draws how large errors are.
RESOLUTION_LIMIT = 0.15
# With fewer effective draws of the chains their own statistics mean little (Vehtari et al., Rank-normalization, folding, and
# localization, 2021, ask for a hundred for each of four chains; features here are more than means).
LEAST_ESS = 100
# Where the memory of draws is above the first figure, the drift test cannot see errors. Below the second, transitions pass
# between all parts of the posterior: there are no separate modes.
BLIND_MEMORY = 0.975
CONNECTED_MEMORY = 0.85
# Largest tail index and standard error with which weights of modes, estimated by importance sampling, are trusted. Where larger
# shares of the draws than the last figure are in no mode's Gaussian, by which the weights are estimated, and in other modes than
# the heaviest, the tail index must leave them a finite variance: chains of a mixture with many labellings had gone on to modes
# that nobody had found.
MODE_KHAT, FINITE_KHAT = 0.7, 0.5
MODE_ERROR = 0.03
MODE_OUTSIDE = 0.1
# Share of diverging transitions with small steps, see `pyro_dft.recipe.measure.carefully`. With the usual steps, curved
# posteriors whose draws are good diverge more often than this too, as they do with NUTS.
DIVERGENCE_LIMIT = 0.015
# Share of the divergences from which on they are said to be those of a density that is not finite.
MOSTLY = 0.9
# A share of divergences that curvature does not explain.
LOST_LIMIT = 0.1
# A fit is suspect where small steps surely move its draws by more than this (sds).
CAREFUL_LIMIT = 0.05
STUCK_LIMIT = 0.1
# Restarts that disagree about the shape of one mode count only where this share of transitions diverges too (a horseshoe's
# necks).
NARROW_DIVERGENCES = 0.01
# A model whose log density varies by more than this (nats) between evaluations at one point has no posterior.
NOISE_LIMIT = 0.1
ACCEPTANCE_LIMIT = 0.4
# Standard deviations beyond this are a sign of an improper posterior rather than of units.
SPREAD_LIMIT = 1e9

_ADVICE = "Try a larger num_steps or width, more refine_steps, or a reparametrised model."


@dataclass(frozen=True)
class Alarm:
    """One row of the table.

    Attributes:
        name: Short name, as in `diagnostics()["alarms"]`; `docs/diagnostics.md` has a section for each.
        severity: What the alarm makes of a fit by itself.
        condition: Facts (the keys of `pyro_dft.judging.verdict.Diagnostics`) -> whether it sounds.
        words: Facts -> what is wrong and what to try.
        unless: Alarms that say the same and more: this one does not sound where one of them does.
        wrong: Facts -> whether the alarm is strong evidence that the draws were wrong before they were refined.
        unrepaired: Whether it says that refinement does not repair such draws. A fit with both is failed.
    """

    name: str
    severity: Literal["failed", "suspect"]
    condition: Callable[[Facts], bool]
    words: Callable[[Facts], str]
    unless: tuple[str, ...] = ()
    wrong: Callable[[Facts], bool] = lambda facts: False
    unrepaired: bool = False


def served(facts: Facts) -> Facts:
    """The drift test of the draws that are served by default."""
    return facts["drift_raw" if facts["refine_steps"] == 0 else "drift_refined"]


def _kind(facts: Facts) -> str:
    return "raw" if facts["refine_steps"] == 0 else "refined"


def _limit(moment: str) -> float:
    return float(LIMITS[-1 if moment.endswith("point") else 0, 0])


def _unaccepted(facts: Facts) -> bool:
    return not math.isfinite(served(facts)["worst"]) or facts["acceptance"] < ACCEPTANCE_LIMIT


def _drifts(facts: Facts) -> str:
    own = served(facts)
    return (
        f"the {_kind(facts)} draws still move under exact transitions: {own['moment']} of {own['coordinate']} by "
        f"{own['worst']:.2f} sd (limit {_limit(own['moment'])}). {_ADVICE}"
    )


def _creeps(facts: Facts) -> str:
    own = served(facts)
    return (
        f"the {_kind(facts)} draws move slowly but far under exact transitions: {own['gap_moment']} of "
        f"{own['gap_coordinate']} is off by about {abs(own['gap']):.2f} sd (limit {_limit(own['gap_moment'])}). {_ADVICE}"
    )


def _leaves(facts: Facts) -> str:
    left = facts["left"]
    return (
        f"before their refinement the draws were off by about {left['raw']:.2f} sd in {left['moment']} of "
        f"{left['coordinate']}, and about {left['error']:.2f} sd of that may be left: transitions leave and enter some part of "
        f"the posterior slowly (a neck or tail). {_ADVICE}"
    )


def _steps(facts: Facts, limit: float) -> bool:
    careful = facts.get("drift_careful")
    return careful is not None and careful["proved"] > limit


def _against_necks(facts: Facts) -> str:
    done = facts.get("coordinates")
    if not done:
        return "Try a non-centred parametrisation."
    return f"Non-centred already: {', '.join(done)}. Try priors that keep scales away from zero, or a reparametrised model."


def _small_steps(facts: Facts) -> str:
    careful = facts["drift_careful"]
    return (
        f"some refining transitions diverged ({facts['divergence_rate']:.1%}), and with smaller steps the draws move: "
        f"{careful['moment']} of {careful['coordinate']} by {careful['worst']:.2f} sd. They enter a part of the posterior that "
        f"the usual steps leave out (a neck, a sharp bend). {_against_necks(facts)}"
    )


def _unsettled(facts: Facts) -> str:
    if facts.get("ensemble"):
        return (
            f"the chains still move, or remember where they started, after {facts['ensemble']['transitions']} transitions, and "
            "no more were made: an error could be left that they repair slowly. Try a larger num_draws, or a reparametrised "
            "model."
        )
    return (
        f"the draws still move, or remember where they started, after {facts['refine_steps']} transitions, and no more "
        f"were made: an error could be left that they repair slowly. Try refine_steps={2 * facts['refine_steps']}, a larger "
        "num_steps, or a reparametrised model."
    )


def _blinded(facts: Facts) -> str:
    own = served(facts)
    return (
        f"exact transitions hardly move {own['slowest']}: an error of its mean of {2 * own['resolution']:.1f} sd "
        "would not be seen. There may be several modes whose weights are not known; compare chains (num_chains=4)."
    )


def _few(facts: Facts) -> bool:
    ensemble = facts.get("ensemble")
    if ensemble is None:
        return bool(served(facts)["resolution"] > RESOLUTION_LIMIT)
    return bool(ensemble["ess"] < LEAST_ESS)


def _too_few(facts: Facts) -> str:
    own = served(facts)
    if facts.get("ensemble"):
        return (
            f"the draws are worth {facts['ensemble']['ess']:.0f} independent ones in some coordinate, its square or its tails: "
            "too few to judge. Try a larger num_draws, or a reparametrised model."
        )
    return (
        f"too few draws to judge: with {own['draws']} of them an error of {2 * own['resolution']:.1f} sd in the mean of some "
        "coordinate would not be seen. Try a larger num_draws, or a larger full_data_budget where the model subsamples."
    )


def _diverges(facts: Facts) -> bool:
    share, ensemble = facts["careful_divergence_rate"], facts.get("ensemble")
    if ensemble is None:
        return bool(share > DIVERGENCE_LIMIT)
    return too_many(share, ensemble["chains"] * ensemble["transitions"])


def _diverging(facts: Facts) -> str:
    rate = f"{facts['careful_divergence_rate']:.2%} of the"
    if (facts.get("ensemble") or {}).get("nonfinite", 0.0) > MOSTLY * facts["careful_divergence_rate"]:
        return (
            f"{rate} chains' transitions lead where the log density is not finite, with small steps too: draws leave out what "
            "is there. Where it cannot be computed (a Cholesky factor, an overflow), use float64 or a larger jitter; where the "
            "density ends in an edge, the draws are as they should be."
        )
    return (
        f"{rate} refining transitions diverged, with small steps too: parts of the posterior are much narrower than the rest (a "
        f"funnel?) and may be missed. {_against_necks(facts)}"
    )


def _lost_modes(facts: Facts) -> str:
    optima = facts["optima"]
    lost = sum(optima["weights"][i] for i in optima["missing"])
    return (
        f"restarts found {optima['count']} separate optima, and the draws miss {len(optima['missing'])} of them (about "
        f"{lost:.0%} of the posterior). Reparametrise, or sample the modes apart."
    )


def _falls_short(facts: Facts) -> bool:
    optima = facts["optima"]
    return bool(optima) and optima["shortfall"] - 3 * optima["shortfall_error"] > optima["shortfall_limit"]


def _wrong_mode(facts: Facts) -> str:
    short_by = facts["optima"]["shortfall"]
    return (
        f"a restart found a part of the posterior with more evidence than the draws account for, by {short_by:.3g} nats: they "
        f"hold at most a share of {math.exp(-short_by):.1g} of the posterior. Try more restarts, initial_params nearer to the "
        "posterior, or a reparametrised model."
    )


def _outside(facts: Facts) -> float:
    return float((facts["optima"] or {}).get("outside", 0.0))


def _doubtful_modes(facts: Facts) -> bool:
    modes = facts.get("modes")
    if modes is None:
        return False
    several = 1 - np.max(modes["weights"]) > MODE_OUTSIDE
    largest = FINITE_KHAT if several and _outside(facts) > MODE_OUTSIDE else MODE_KHAT
    return not (modes["k_hat"] <= largest and max(modes["errors"]) <= MODE_ERROR)


def _mode_weights(facts: Facts) -> str:
    modes, outside = facts["modes"], _outside(facts)
    others = f", and {outside:.0%} of the draws are far from all of them" if outside > MODE_OUTSIDE else ""
    return (
        f"there are {len(modes['weights'])} separate modes, and their weights {short(modes['weights'])} are doubtful: "
        f"importance weights with k-hat {modes['k_hat']:.2f}, standard errors up to {max(modes['errors']):.2f}{others}."
    )


def _uneven_shares(facts: Facts) -> bool:
    optima = facts["optima"]
    if facts.get("modes") or not optima or optima["missing"] or optima["count"] < 2:
        return False
    narrow = facts["divergence_rate"] > NARROW_DIVERGENCES
    apart = served(facts)["memory"] > CONNECTED_MEMORY or narrow
    return apart and bool(max(abs(np.subtract(optima["weights"], optima["shares"]))) > 0.1)


def _shares(facts: Facts) -> str:
    optima = facts["optima"]
    return (
        f"restarts ended at {optima['count']} optima with weights {short(optima['weights'])}, and the draws visit them "
        f"with shares {short(optima['shares'])}: where these are separate modes, their weights are doubtful."
    )


ALARMS: tuple[Alarm, ...] = (
    Alarm(
        "acceptance", "failed", _unaccepted,
        lambda f: "exact transitions from the draws are hardly ever accepted "
        f"(acceptance {f['acceptance']:.2f}): the draws are far from the posterior. Check the model for improper or "
        "extremely narrow directions; try float64, an init_strategy, or more restarts.",
    ),
    Alarm("drift", "failed", lambda f: served(f)["flagged"], _drifts, unless=("acceptance",)),
    Alarm("gap", "failed", lambda f: served(f)["gap_flagged"], _creeps, unless=("acceptance", "drift")),
    Alarm(
        "noise", "failed", lambda f: f.get("noise", 0.0) > NOISE_LIMIT,
        lambda f: f"the log density differs from one evaluation to the next (by {f['noise']:.2g} at one point): does the model "
        "draw random numbers outside of sample statements? Such a model has no posterior.",
    ),
    Alarm(
        "invalid parameters", "failed", lambda f: bool(f.get("invalid", {}).get("parameters")),
        lambda f: messages.invalid_parameters(f["invalid"]["parameters"]),
    ),
    Alarm(
        "improper", "failed", lambda f: f["spread"] > SPREAD_LIMIT,
        lambda f: f"the posterior is improper or nearly so: {f['widest']} has a standard deviation of {f['spread']:.1e}. "
        "Give it a proper prior.",
    ),
    Alarm(
        "r_hat", "failed", lambda f: f["r_hat"] is not None and not f["r_hat"] <= f["r_hat_limit"],
        lambda f: f"chains disagree (R-hat {f['r_hat']:.3f}): independently trained samplers found different posteriors. "
        "There may be several modes; try a larger num_steps or more restarts.",
    ),
    Alarm("missing mode", "failed", lambda f: bool(f["optima"] and f["optima"]["missing"]), _lost_modes),
    Alarm("wrong mode", "failed", _falls_short, _wrong_mode),
    Alarm(
        "cut", "suspect", lambda f: f.get("cut") is not None,
        lambda f: f"the fit ended at its {f['cut']} before it was complete. What else is said here is of what there is; allow it "
        "more, or take it as a first look.",
    ),
    Alarm(
        "data outside", "suspect", lambda f: bool(f.get("invalid", {}).get("data")),
        lambda f: messages.data_outside(f["invalid"]["data"]),
    ),
    Alarm(
        "raw gap", "suspect", lambda f: f["refine_steps"] > 0 and f["left"]["error"] > LEFT_LIMITS[0], _leaves,
        unless=("acceptance", "drift", "gap"), wrong=lambda f: f["left"]["error"] > LEFT_LIMITS[1],
    ),
    Alarm("blind", "suspect", lambda f: served(f)["memory"] > BLIND_MEMORY, _blinded, unrepaired=True),
    Alarm(
        "unsettled", "suspect", lambda f: f["refine_steps"] > 0 and f["unsettled"], _unsettled,
        unless=("acceptance", "drift", "gap", "blind"), unrepaired=True,
    ),
    Alarm(
        "few draws", "suspect", _few, _too_few,
        unless=("acceptance", "drift", "gap", "blind"),
    ),
    Alarm("mode weights", "suspect", _doubtful_modes, _mode_weights),
    Alarm("mode weights", "suspect", _uneven_shares, _shares, unless=("mode weights",)),
    Alarm(
        "no search", "suspect", lambda f: not f.get("preconditioned", True),
        lambda f: 'nothing looked for separate modes, as no Gaussian was fitted first (Experimental(precondition="never"), or '
        'objective "dft-paper"): modes that the draws miss, and wrong weights of those they have, would not be seen. Compare '
        "chains (num_chains=4), or a fit with the default settings.",
    ),
    Alarm(
        "small steps", "failed", lambda f: _steps(f, 0.0) and f["drift_careful"]["flagged"], _small_steps,
        unless=("acceptance", "drift", "gap"),
    ),
    Alarm(
        "small steps", "suspect", lambda f: _steps(f, CAREFUL_LIMIT), _small_steps,
        unless=("acceptance", "drift", "gap", "small steps"), wrong=lambda f: True, unrepaired=False,
    ),
    Alarm(
        "divergences", "failed", lambda f: f["careful_divergence_rate"] > LOST_LIMIT,
        lambda f: f"{f['careful_divergence_rate']:.0%} of the transitions diverged, with small steps too: the density cannot be "
        "computed where much of the posterior is, or changes by jumps. Try float64, or a reparametrised model.",
    ),
    Alarm(
        "divergences", "suspect", _diverges,
        _diverging,
        unless=("divergences",), unrepaired=True,
    ),
    Alarm(
        "stuck", "suspect", lambda f: f["stuck"] > f["expected_stuck"] + STUCK_LIMIT,
        lambda f: f"{f['stuck']:.1%} of the draws never moved while being refined: they sit in regions much narrower than "
        "the rest.",
        unrepaired=True,
    ),
)  # fmt: skip


def sounding(facts: Facts) -> list[Alarm]:
    """The alarms that sound, in the order of the table."""
    fired: list[Alarm] = []
    for alarm in ALARMS:
        names = {other.name for other in fired}
        if not names.intersection(alarm.unless) and alarm.condition(facts):
            fired.append(alarm)
    return fired


def status(fired: list[Alarm], facts: Facts) -> str:
    """The status that follows from the alarms that sound: "failed", "suspect" or "converged"."""
    if any(alarm.severity == "failed" for alarm in fired):
        return "failed"
    if any(alarm.wrong(facts) for alarm in fired) and any(alarm.unrepaired for alarm in fired):
        return "failed"
    return "suspect" if fired else "converged"


def raw_draws(facts: Facts) -> str | None:
    """What is wrong with raw draws of a fit that is judged by refined ones, in words; None where nothing is known to be."""
    raw, joint = facts["drift_raw"], facts.get("joint")
    found = []
    if raw["flagged"]:
        found.append(
            f"{raw['moment']} of {raw['coordinate']} by {raw['worst']:.2f} sd (limit {_limit(raw['moment']):g})"
        )
    if joint is not None and joint > JOINT_LIMIT:
        found.append(
            "jointly, which no coordinate shows: log densities by at least "
            f"{joint:.2f} nats for each coordinate (limit {JOINT_LIMIT:g})"
        )
    return messages.raw_draws_off(found) if found else None


def short(value: Any) -> str:
    """A number or a list of numbers in a few figures."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(short(v) for v in value) + "]"
    return str(value)
