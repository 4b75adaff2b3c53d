"""A hierarchy whose scale may be near zero, in its own coordinates a funnel: the neck is not missed without a word.

The exact posterior of the scale is known by quadrature: group effects integrate out.
"""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS

# Seven groups whose standard errors are as large as what they differ by.
Y = np.array([1.2, -3.1, 4.5, 0.3, -6.2, 2.8, 7.4], np.float32)
ERROR = np.array([5.0, 4.0, 6.0, 3.5, 7.0, 4.5, 6.5], np.float32)


def model(ppl):
    def schools(y, error):
        mu = ppl.sample("mu", ppl.distributions.Normal(0.0, 5.0))
        tau = ppl.sample("tau", ppl.distributions.HalfNormal(5.0))
        with ppl.plate("school", len(Y)):
            theta = ppl.sample("theta", ppl.distributions.Normal(mu, tau))
            ppl.sample("y", ppl.distributions.Normal(theta, error), obs=y)

    return schools


def exact(levels):
    """Quantiles of tau."""
    log_tau, mu = np.linspace(-9, np.log(40), 4000)[:, None], np.linspace(-25, 25, 401)
    tau = np.exp(log_tau)
    log_p = log_tau - 0.5 * (tau / 5) ** 2 - 0.5 * (mu / 5) ** 2
    for y, error in zip(Y, ERROR, strict=True):
        variance = tau**2 + error**2
        log_p = log_p - 0.5 * np.log(variance) - 0.5 * (y - mu) ** 2 / variance
    below = np.cumsum(np.exp(log_p - log_p.max()).sum(1))
    return np.exp(log_tau[np.searchsorted(below / below[-1], levels), 0])


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def fitted(backend, **options):
    dft = backend.DFT(model(backend.ppl), train="never", seed=0, disable_progbar=True, **options)
    backend.run(dft, backend.array(Y), backend.array(ERROR))
    found = dft.diagnostics()
    return found, np.asarray(dft.get_samples()["tau"], float)


def right(found, tau):
    """Whether the shares of draws below exact quantiles are right, by five standard errors of as many effective draws."""
    levels = np.array([0.02, 0.05, 0.25, 0.5, 0.95])
    shares = (tau[:, None] < exact(levels)).mean(0)
    return bool(
        (np.abs(shares - levels) < 5 * np.sqrt(levels * (1 - levels) / found["ensemble"]["ess"])).all()
    )


@pytest.mark.filterwarnings("ignore:the fit is")
def test_the_scale_is_right_down_to_the_neck(backend):
    found, tau = fitted(backend)
    assert found["coordinates"] == ["theta"]
    assert found["status"] == "converged"
    assert right(found, tau)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the fit is")
def test_in_the_own_coordinates_a_neck_is_served_or_said_to_be_missed(backend):
    found, tau = fitted(backend, reparam="never", num_draws=1000)
    assert found["status"] != "converged" or right(found, tau)
