"""The benchmark that runs the frameworks' own tests with the kernel swapped, on a suite of two tests."""

from __future__ import annotations

import json

import pytest

from benchmarks.suites import __main__ as suites
from benchmarks.suites.reasons import not_applicable

TESTS = """
import jax
from numpyro.infer import MCMC, NUTS, SA

def test_swapped():
    assert NUTS.__module__.startswith("pyro_dft")
    mcmc = MCMC(NUTS(lambda: None, target_accept_prob=0.9), num_warmup=1, num_samples=2, progress_bar=False)
    mcmc.run(jax.random.key(0))
    assert mcmc.get_samples() == {"x": "which is wrong"}

def test_without():
    pass

def test_SA_alone():
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(suites, "RESULTS", tmp_path / "results")
    path = tmp_path / "theirs" / suites.TESTS["numpyro"][0]
    path.parent.mkdir(parents=True)
    path.write_text(TESTS)
    return tmp_path / "theirs"


@pytest.mark.slow
def test_every_test_gets_an_outcome_and_a_reason(folder, tmp_path, capsys):
    assert suites.main([str(folder)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "passes: 0, does not apply: 2, skipped by itself: 0, over the limit: 0, fails: 1"
    kept = [json.loads(path.read_text()) for path in (tmp_path / "cache" / "numpyro").iterdir()]
    rows = {row["test"].split("::")[1]: (row["outcome"], row["reason"]) for row in kept}
    assert rows["test_without"] == ("does not apply", "neither NUTS nor HMC is in it")
    outcome, reason = rows["test_swapped"]
    assert outcome == "fails"
    assert "which is wrong" in reason
    table = (tmp_path / "results" / "suites_numpyro.md").read_text()
    assert "test_SA_alone | does not apply | 0 | another kernel |" in table
    assert "3 of 3 tests have an outcome" in table
    assert "| fails | 1 |" in table


def test_outcomes_of_an_earlier_state_are_counted():
    rows = [
        {"test": "a", "outcome": "passes", "reason": "", "seconds": 1.0, "code": "now"},
        {"test": "b", "outcome": "fails", "reason": "", "seconds": 1.0, "code": "before"},
        {"test": "c", "outcome": "does not apply", "reason": "another kernel", "seconds": 0.0},
    ]
    assert "3 of 4 tests have an outcome. 1 are of an earlier state" in suites.table(
        rows, "numpyro", 4, "now"
    )
    assert "3 of 4 tests have an outcome.\n" in suites.table([rows[0]] * 3, "numpyro", 4, "now")


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(SystemExit, match="holds neither"):
        suites.backend_of(tmp_path)


def test_reasons_name_no_more_than_they_mean():
    assert not_applicable("numpyro", "test_mcmc.py::test_beta_bernoulli_x64[SA]") == "another kernel"
    assert not_applicable("numpyro", "test_mcmc.py::test_beta_bernoulli_x64[DFTKernel0]") == ""
    assert not_applicable("numpyro", "test_mcmc.py::test_diverging[True-DFTKernel1]") == ""
    assert not_applicable("numpyro", "test_mcmc.py::test_reuse_mcmc_run[100-False]") == ""
    assert not_applicable("pyro", "test_nuts.py::test_structured_mass") == ""
