"""The fits: good ones that should pass, and bad ones that were spoiled on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.flags import posteriors as p
from benchmarks.flags.posteriors import Posterior


@dataclass(frozen=True)
class Case:
    """One fit. Whether it is good or bad is decided by its errors, not by what it was made for.

    Attributes:
        name: Key on the command line.
        made: "good" or "bad": what it was made for.
        what: What was done, for the table.
        posterior: Builds what is fitted.
        settings: Arguments of `DFT` beside the problem.
        interrupt: Ctrl-C is pressed at this call of the potential.
        steps: Number of `step()` calls in place of `run()`.
    """

    name: str
    made: str
    what: str
    posterior: Callable[[], Posterior]
    settings: dict[str, Any] = field(default_factory=dict)
    interrupt: int | None = None
    steps: int | None = None


RAW = {"refine_steps": 0}
HASTY = {"num_steps": 5, "train": "always", **RAW}
BRIEF = {"num_steps": 200, "train": "always", **RAW}
ONE_MODE = {"modes": "never"}
TINY = {"num_steps": 200, "width": 4, "train": "always"}


def two_modes(weight: float = 0.3) -> Posterior:
    """Modes 11 standard deviations apart."""
    return p.mixture([[-4.0, 0.0], [4.0, 0.0]], [weight, 1 - weight])


def four_modes() -> Posterior:
    """Unequal modes at the corners of a square."""
    return p.mixture([[-3.0, -3.0], [-3.0, 3.0], [3.0, -3.0], [3.0, 3.0]], [0.1, 0.2, 0.3, 0.4])


def near_modes() -> Posterior:
    """Modes five sds apart: one network can cover both, but no transition passes between them."""
    return p.mixture([[-1.8, 0.0], [1.8, 0.0]], [0.3, 0.7])


def overlapping() -> Posterior:
    """Two components so near that they make one skewed mode."""
    return p.mixture([[-0.8, 0.0], [0.8, 0.5]], [0.3, 0.7], apart=False)


def wide() -> Posterior:
    """Many coordinates, so many chances of a false alarm."""
    return p.gaussian(30)


def noncentred() -> Posterior:
    """Eight schools as their non-centred form."""
    return p.hierarchy(centred=False)


def twenty_groups() -> Posterior:
    """Twenty groups with weak data: a long neck in the scale."""
    return p.hierarchy(p.TWENTY)


def bare_twenty_groups() -> Posterior:
    """The same as a bare centred potential."""
    return p.bare_hierarchy(p.TWENTY)


CASES: dict[str, Case] = {
    c.name: c
    for c in (
        Case("gaussian", "good", "sds from 0.01 to 100", p.gaussian),
        Case("gaussian-raw", "good", "the same, raw draws", p.gaussian, RAW),
        Case("wide-raw", "good", "30 coordinates, network always, raw", wide, {"train": "always", **RAW}),
        Case("logistic", "good", "regression, 200 rows", p.logistic),
        Case("logistic-raw", "good", "the same, network always, raw", p.logistic, {"train": "always", **RAW}),
        Case("logistic-chains", "good", "the same, 4 chains", p.logistic, {"num_chains": 4}),
        Case("logistic-minibatch", "good", "the same, 50 rows at a time", lambda: p.logistic(50)),
        Case("poisson", "good", "regression, 60 rows", p.poisson),
        Case("banana", "good", "bare potential", p.banana),
        Case("banana-raw", "good", "the same, raw draws", p.banana, RAW),
        Case("banana-chains", "good", "the same, 4 chains", p.banana, {"num_chains": 4}),
        Case("banana-strong", "good", "bent twice as much", lambda: p.banana(bend=1.0)),
        Case("squiggle", "good", "bare potential", p.squiggle),
        Case("schools-centred", "good", "eight schools, centred model", p.hierarchy),
        Case("schools-noncentred", "good", "eight schools, non-centred model", noncentred),
        Case("schools-kl", "good", "the same, objective kl", noncentred, {"objective": "kl"}),
        Case("twenty-groups", "good", "twenty groups, weak data, centred model", twenty_groups),
        Case("student", "good", "Student-t(5), 5 coordinates", p.student),
        Case("simplex", "good", "Dirichlet posterior", p.simplex),
        Case("correlation", "good", "LKJ prior, 3 x 3", p.correlation),
        Case("ordered", "good", "ordered cut points", p.ordered),
        Case("overlapping", "good", "two components in one mode", overlapping),
        Case("donut", "good", "thin ring, refined", p.donut),
        Case("banana-hasty", "bad", "5 steps, raw", p.banana, HASTY),
        Case("squiggle-hasty", "bad", "5 steps, raw", p.squiggle, HASTY),
        Case("banana-gaussian-raw", "bad", "no network, raw", p.banana, {"train": "never", **RAW}),
        Case("banana-gaussian", "bad", "no network, refined", p.banana, {"train": "never"}),
        Case(
            "banana-gaussian-1", "bad", "no network, 1 transition", p.banana,
            {"train": "never", "refine_steps": 1},
        ),
        Case("student-gaussian-raw", "bad", "no network, raw", p.student, {"train": "never", **RAW}),
        Case("donut-raw", "bad", "thin ring, raw", p.donut, RAW),
        Case("funnel-tiny-raw", "bad", "width 4, 200 steps, raw", p.funnel, {**TINY, **RAW}),
        Case("funnel-tiny", "bad", "width 4, 200 steps, refined", p.funnel, TINY),
        Case("funnel", "bad", "default settings", p.funnel),
        Case(
            "schools-tiny-raw", "bad", "centred, width 4, 200 steps, raw", p.hierarchy,
            {**TINY, **RAW, "reparam": "never"},
        ),
        Case(
            "schools-tiny", "bad", "centred, width 4, 200 steps, refined", p.hierarchy,
            {**TINY, "reparam": "never"},
        ),
        Case("schools-bare", "bad", "centred bare potential, default settings", p.bare_hierarchy),
        Case("twenty-groups-bare", "bad", "centred bare potential, default settings", bare_twenty_groups),
        Case(
            "banana-partial", "bad", "objective fisher-partial, 200 steps, raw", p.banana,
            {**BRIEF, "objective": "fisher-partial"},
        ),
        Case(
            "banana-paper", "bad", "objective dft-paper, 200 steps, raw", p.banana,
            {**BRIEF, "objective": "dft-paper"},
        ),
        Case("two-modes", "bad", "weights .3 and .7, one chain, one mode each", two_modes, ONE_MODE),
        Case("near-modes", "bad", "weights .3 and .7, 5 sds apart, one mode each", near_modes, ONE_MODE),
        Case(
            "two-modes-chains", "bad", "weights .5 and .5, 4 chains, 1 restart each", lambda: two_modes(0.5),
            {"num_chains": 4, "restarts": 1, **ONE_MODE},
        ),
        Case("four-modes", "bad", "weights .1 to .4, one mode each", four_modes, ONE_MODE),
        Case("cauchy", "bad", "Cauchy, 3 coordinates, default settings", p.cauchy),
        Case("cauchy-raw", "bad", "the same, raw", p.cauchy, RAW),
        Case("flat", "bad", "improper: a flat direction", p.flat),
        Case("separable", "bad", "improper: separable data, no prior", p.separable),
        Case("ctrl-c", "bad", "Ctrl-C early, raw", p.banana, {**RAW, "compile": "never"}, interrupt=40),
        Case("few-steps", "bad", "step() 3 times, raw", p.banana, RAW, steps=3),
        Case(
            "wild-rates", "bad", "learning rates of 1, raw", p.banana,
            {**BRIEF, "learning_rate": 1.0, "score_learning_rate": 1.0},
        ),
        Case(
            "noisy", "bad", "potential with random numbers of its own", p.noisy,
            {"num_steps": 20, "precondition_steps": 20, "num_draws": 200, "restarts": 1},
        ),
    )
}  # fmt: skip
