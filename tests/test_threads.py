"""Several threads at once: fits and draws take turns, and torch is as it was for everybody else."""

from __future__ import annotations

import sys
import threading
import time
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from backends import BACKENDS, Y
from quick import known_mean_posterior

from pyro_dft.experimental import Experimental
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.pyro.batching import map_rows
from pyro_dft.pyro.evaluation import patched

pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]
WAIT = 120  # seconds; a thread that is still there has met a deadlock


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _often():
    """Threads change as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(*tasks):
    """Runs them in threads of their own; their results, or the first of their errors."""
    results, errors = [None] * len(tasks), []

    def run(i):
        try:
            results[i] = tasks[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return results


def global_state():
    distribution = torch.distributions.Distribution
    return {
        "cholesky": (torch.linalg.cholesky, torch.cholesky, torch.Tensor.cholesky),
        "torch": (distribution._validate_args, distribution._validate_sample),
        "pyro": (pyro.distributions.is_validation_enabled(), pyro.poutine.is_validation_enabled()),
        "filters": list(warnings.filters),
        "stack": len(pyro.poutine.runtime._PYRO_STACK),
    }


def test_threads_that_come_and_go_leave_torch_as_it_was():
    before = global_state()

    def enter():
        for _ in range(100):
            with patched():
                pass

    together(enter, enter, enter)
    assert global_state() == before


def test_torch_is_as_it_was_for_other_threads():
    """While one thread evaluates a model, another one factors, validates and differentiates as ever."""
    indefinite, concentration = -torch.eye(2), torch.tensor([1.0, 2.0, 3.0], requires_grad=True)

    def other():
        for factor in (torch.linalg.cholesky, torch.cholesky, torch.Tensor.cholesky):
            with pytest.raises(torch.linalg.LinAlgError):
                factor(indefinite)
        torch.testing.assert_close(torch.linalg.cholesky(torch.eye(2), upper=True), torch.eye(2))
        with pytest.raises(ValueError, match="scale"):
            dist.Normal(0.0, -1.0)
        with pytest.raises(ValueError, match="support"):
            torch.distributions.Exponential(1.0).log_prob(torch.tensor(-1.0))
        drawn = torch.distributions.Dirichlet(concentration).rsample()
        assert drawn.square().sum().requires_grad

    def row(values):
        together(other)
        assert torch.linalg.cholesky(indefinite).isnan().any()
        return {"x": values["x"] + 0 * dist.Normal(0.0, -1.0).scale}

    with patched():
        assert torch.linalg.cholesky(indefinite).isnan().any()
        map_rows(row, {"x": torch.zeros(1)}, chunk=1)


def test_fits_at_once_are_right_and_the_same_as_alone(backend):
    """Three models whose sites have other names, each with data of its own."""
    ppl = backend.ppl

    def model(i):
        def own(y):
            mu = ppl.sample(f"mu{i}", ppl.distributions.Normal(0.0, 10.0))
            with ppl.plate(f"data{i}", len(y)):
                ppl.sample(f"y{i}", ppl.distributions.Normal(mu, 1.0), obs=y)

        return own

    def fit(i):
        dft = backend.DFT(model(i), disable_progbar=True, train="never", restarts=1,
                          experimental=Experimental(precondition_steps=40), refine_steps=2, num_draws=200, seed=2)  # fmt: skip
        backend.fitted(dft, Y + 5 * i)
        return dft.parts.backend.arrays.numpy(dft.get_samples()[f"mu{i}"])

    before = global_state()
    found = together(*(lambda i=i: fit(i) for i in range(3)))
    assert global_state() == before
    for i, draws in enumerate(found):
        mean, sd = known_mean_posterior(Y + 5 * i)
        # Of 200 draws; five standard errors.
        assert abs(draws.mean() - mean) < 5 * sd / np.sqrt(200)
        assert abs(np.log(draws.std() / sd)) < 5 / np.sqrt(2 * 200)
        np.testing.assert_array_equal(draws, fit(i))


def test_draws_at_once_are_new_and_right(backend):
    dft = backend.fitted(backend.dft(), Y)
    parts = together(*(lambda: dft.parts.backend.arrays.numpy(dft.get_samples(100)["mu"]) for _ in range(3)))
    draws = np.concatenate(parts)
    assert len(np.unique(draws)) > 290
    mean, sd = known_mean_posterior(Y)
    assert abs(draws.mean() - mean) < 5 * sd / np.sqrt(300)
    assert abs(np.log(draws.std() / sd)) < 5 / np.sqrt(2 * 300)


def test_draws_asked_for_during_a_fit_wait_for_it(backend):
    dft, begun = backend.dft(), threading.Event()

    def callback(progress, draw):
        begun.set()
        time.sleep(0.001)

    dft.callback = callback

    def fit():
        backend.run(dft, backend.array(Y))

    def draw():
        assert begun.wait(WAIT)
        found = dft.get_samples()["mu"]
        assert dft.parts.training.trainer.done  # nothing of a fit that is half made
        return dft.parts.backend.arrays.numpy(found)

    drawn = together(fit, draw)[1]
    np.testing.assert_array_equal(drawn, dft.parts.backend.arrays.numpy(dft.get_samples()["mu"]))


def test_a_forked_process_does_not_wait_for_threads_that_it_has_not():
    import os

    inside, leave = threading.Event(), threading.Event()

    def hold():
        with exclusive():
            inside.set()
            leave.wait(WAIT)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert inside.wait(WAIT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        with patched():
            os._exit(7 if torch.linalg.cholesky(-torch.eye(2)).isnan().any() else 8)
    ended, deadline = (0, 0), time.monotonic() + 20
    while ended[0] == 0 and time.monotonic() < deadline:
        ended = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    leave.set()
    thread.join(WAIT)
    assert ended[0] == child
    assert os.waitstatus_to_exitcode(ended[1]) == 7
