"""The table of alarms: what makes each sound, and what two of them together make of a fit."""

from __future__ import annotations

import warnings

import pytest
from backends import BACKENDS

from pyro_dft import FidelityWarning
from pyro_dft.experimental import Experimental
from pyro_dft.judging import alarms
from pyro_dft.judging.verdict import judge

QUIET = {
    "worst": 0.02, "moment": "mean", "coordinate": "x", "flagged": False, "gap": 0.0, "gap_moment": "mean",
    "gap_coordinate": "x", "gap_flagged": False, "draws": 4000, "resolution": 0.02, "memory": 0.1, "slowest": "x",
}  # fmt: skip
LEFT = {"error": 0.0, "raw": 0.5, "memory": 0.1, "coordinate": "x", "moment": "5 % point"}


def facts(served=(), left=0.0, **others):
    """A fit with nothing wrong but what is given."""
    return {
        "refine_steps": 4, "drift_raw": dict(QUIET), "drift_refined": {**QUIET, **dict(served)},
        "left": {**LEFT, "error": left}, "unsettled": False, "acceptance": 0.8, "spread": 1.0, "widest": "x", "noise": 0.0,
        "r_hat": None, "r_hat_limit": None, "optima": None, "modes": None, "preconditioned": True, "divergence_rate": 0.0,
        "careful_divergence_rate": 0.0,
        "drift_careful": None,
        "stuck": 0.0, "expected_stuck": 0.0, **others,
    }  # fmt: skip


ENOUGH = {"shortfall": 0.5, "shortfall_error": 0.1, "shortfall_limit": 3.0}
MISSING = {"count": 2, "missing": [1], "weights": [0.6, 0.4], "shares": [1.0, 0.0], **ENOUGH}
SHORT = {**MISSING, "count": 1, "missing": [], "shortfall": 9.0}
SOUNDING = {
    "acceptance": facts(acceptance=0.2),
    "drift": facts({"flagged": True}),
    "gap": facts({"gap_flagged": True}),
    "noise": facts(noise=1.0),
    "improper": facts(spread=1e10),
    "r_hat": facts(r_hat=1.1, r_hat_limit=1.01),
    "missing mode": facts(optima=MISSING),
    "wrong mode": facts(optima=SHORT),
    "raw gap": facts(left=0.09),
    "blind": facts({"memory": 0.99}),
    "unsettled": facts(unsettled=True),
    "few draws": facts({"resolution": 0.2, "draws": 40}),
    "mode weights": facts(modes={"k_hat": 0.9, "errors": [0.01, 0.01], "weights": [0.5, 0.5]}),
    "no search": facts(preconditioned=False),
    "divergences": facts(careful_divergence_rate=0.2),
    "cut": facts(cut="max_gradients"),
    "stuck": facts(stuck=0.3),
    "small steps": facts(drift_careful={**QUIET, "proved": 0.2, "flagged": True}),
    "invalid parameters": facts(invalid={"parameters": {"y": 0.5}, "data": {}}),
    "data outside": facts(invalid={"parameters": {}, "data": {"y": 1.0}}),
}


def test_few_divergences_are_enough_where_chains_have_made_their_steps_small():
    few = {"careful_divergence_rate": 0.001}
    chains = {"chains": 64, "transitions": 64, "leapfrog_steps": 8, "ess": 2000.0}
    assert judge(facts(**few, ensemble=chains))["alarms"] == ["divergences"]
    assert judge(facts(**few, ensemble=chains))["status"] == "suspect"
    assert judge(facts(**few, ensemble=None))["status"] == "converged"
    assert judge(facts(careful_divergence_rate=0.0002, ensemble=chains))["status"] == "converged"


@pytest.mark.parametrize(
    ("k_hat", "outside", "weight", "doubtful"),
    [(0.6, 0.15, 0.5, True), (0.6, 0.05, 0.5, False), (0.3, 0.5, 0.5, False), (0.6, 0.15, 0.99, False)],
)
def test_weights_of_modes_say_little_where_draws_are_far_from_all_of_them(k_hat, outside, weight, doubtful):
    modes = {"k_hat": k_hat, "errors": [0.01, 0.01], "weights": [weight, 1 - weight]}
    optima = {"count": 2, "missing": [], "outside": outside, **ENOUGH}
    report = judge(facts(modes=modes, optima=optima))
    assert report["alarms"] == ["mode weights"] * doubtful
    assert ("15% of the draws are far from all of them" in "".join(report["warnings"])) == doubtful


def test_divergences_advise_what_has_not_been_done():
    assert "Try a non-centred" in judge(facts(careful_divergence_rate=0.02))["warnings"][0]
    (said,) = judge(facts(careful_divergence_rate=0.02, coordinates=["u", "v"]))["warnings"]
    assert "Non-centred already: u, v." in said


def test_every_alarm_is_tried():
    assert set(SOUNDING) == {alarm.name for alarm in alarms.ALARMS}
    assert judge(facts())["status"] == "converged"
    assert judge(facts())["alarms"] == []


@pytest.mark.parametrize("name", SOUNDING)
def test_one_sign_makes_the_status_of_its_alarm(name):
    report = judge(SOUNDING[name])
    assert report["alarms"] == [name]
    assert report["status"] == next(alarm.severity for alarm in alarms.ALARMS if alarm.name == name)
    assert len(report["warnings"]) == 1
    assert report["warnings"][0].endswith((".", "rest"))


def test_an_error_with_no_repair_is_failed():
    """Either sign alone is suspect; a slight error with no repair stays suspect."""
    assert judge(facts(left=0.2))["status"] == "suspect"
    for sign in ({"unsettled": True}, {"careful_divergence_rate": 0.02}, {"stuck": 0.3}):
        assert judge(facts(**sign))["status"] == "suspect"
        assert judge(facts(left=0.09, **sign))["status"] == "suspect"
        report = judge(facts(left=0.2, **sign))
        assert report["status"] == "failed"
        assert len(report["alarms"]) == 2
    assert judge(facts(unsettled=True, careful_divergence_rate=0.02))["status"] == "suspect"


def test_the_worse_alarm_speaks_and_comes_first():
    both = facts(
        {"flagged": True, "gap_flagged": True, "resolution": 0.2},
        left=0.3,
        unsettled=True,
        careful_divergence_rate=0.1,
    )
    assert judge(both)["alarms"] == ["drift", "divergences"]
    assert judge(facts(careful_divergence_rate=0.1, spread=1e10))["alarms"] == ["improper", "divergences"]
    assert judge(facts({"memory": 0.99, "resolution": 0.5}, unsettled=True))["alarms"] == ["blind"]


def test_raw_draws_are_judged_by_their_own_test():
    raw = facts(refine_steps=0, left=0.5, unsettled=True)
    assert judge(raw)["status"] == "converged"
    raw["drift_raw"]["flagged"] = True
    assert judge(raw)["alarms"] == ["drift"]


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_few_draws_of_an_exact_fit_cannot_tell(backend):
    """20 independent coordinates, the sampler exact: with 40 draws nothing can be said, with 1,000 all is well."""

    def status(draws, seed):
        start = {"x": backend.array([0.0] * 20)}
        dft = backend.dft(
            None, potential_fn=lambda z: 0.5 * (z["x"] ** 2).sum(), initial_params=start, num_draws=draws, seed=seed,
            train="never", modes="never", restarts=2, experimental=Experimental(precondition_steps=120),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FidelityWarning)
            backend.run(dft)
        report = dft.diagnostics()
        assert "ksd" not in report
        return report["status"], report["alarms"]

    assert status(40, 0) == ("suspect", ["few draws"])
    assert status(1000, 1) == ("converged", [])
