"""One posterior whose rows two processes share by `torch.distributed`: the same draws in both, and no hang where one is lost."""

import json
import subprocess
import sys
from pathlib import Path

import grouped_fits
import numpy as np
import pytest
from ports import free_port

ROOT = str(Path(grouped_fits.__file__).parent.parent)


def processes(folder, kind, killed=()):
    """What each of two processes says of itself; None of one that is gone. Those in `killed` are, once the others have ended."""
    port = free_port()
    outs = [folder / f"{rank}.json" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, grouped_fits.__file__, str(out), kind, str(rank), "2", port],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    try:
        errors = [own.communicate(timeout=900)[1] for rank, own in enumerate(running) if rank not in killed]
    finally:
        for own in running:
            own.kill()
            own.communicate()
    assert outs[0].exists(), errors
    return [json.loads(out.read_text()) if out.exists() else None for out in outs]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Everything that works, or is refused, in both."""
    return processes(tmp_path_factory.mktemp("group"), "everything")


@pytest.fixture(scope="module")
def alone():
    """The same fit on all rows, in one process."""
    return grouped_fits.fit(grouped_fits.data())


def test_both_processes_have_the_draws_and_the_verdict_of_one(both, alone):
    assert both[0]["fit"] == both[1]["fit"]
    whole = grouped_fits.told(alone)
    assert both[0]["fit"]["status"] == whole["status"] == "converged"
    for name, draws in whole["draws"].items():
        assert np.max(np.abs(np.subtract(both[0]["fit"]["draws"][name], draws)) / np.std(draws, 0)) < 1e-6


def test_the_prior_counts_once_and_rows_are_summed(both, alone):
    at = np.zeros((1, alone.parts.backend.layout.dim))
    whole = {name: pair[0].tolist() for name, pair in alone.parts.backend.terms_at(at).items()}
    assert both[0]["terms"] == both[1]["terms"]
    for name, value in whole.items():
        assert both[0]["terms"][name] == pytest.approx(value, rel=1e-12)


def test_networks_train_alike_in_both(both):
    assert both[0]["network"] == both[1]["network"]
    assert np.isfinite(both[0]["network"]).all()


def test_files_are_recognised_and_copies_refused(both):
    for own in both:
        assert own["loaded"] is True
        assert "cannot be copied" in own["pickled"]


def test_what_cannot_be_shared_is_refused_in_both(both):
    reasons = {
        "row_effects": "site 'effect' has a value for each row of site 'y'",
        "discrete": "discrete sites (kind)",
        "subsampled": "subsamples its rows (rows)",
    }
    for own in both:
        assert own["refused"].keys() == reasons.keys()
        assert all(reason in own["refused"][name] for name, reason in reasons.items())
        assert "give max_gradients" in own["timed"]
        assert "different settings" in own["settings"]
        assert "'y' holds 1 NaN of 400 values" in own["missing"]
        assert "not in MCMC" in own["kernel"]
        assert len(own["same rows"]) == 1
    assert both[0]["missing"].startswith("process 1 of 2: ")


def test_an_error_in_one_process_ends_the_other_at_once(both):
    assert both[1]["failed"] == "the disk is gone"
    assert both[0]["failed"].startswith("process 1 could not evaluate its rows")


@pytest.mark.parametrize("kind", ["dying", "sleeping"])
def test_a_process_that_is_lost_ends_the_other(tmp_path, kind):
    first, second = processes(tmp_path, kind, killed=(1,) if kind == "sleeping" else ())
    assert first["error"].startswith("another process that shares this fit has ended")
    assert second is None
