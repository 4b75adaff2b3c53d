"""Data of which some rows are missing (`obs_mask`): latent values of observed rows get a density, and change nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backends import BACKENDS
from scipy import stats
from test_scaled_sites import Coordinates

DATA, OBSERVED = np.array([0.7, 0.2], np.float32), np.array([True, False])
LOC, SCALE = 0.3, 1.5
# Coordinates of a value, from its own ones u: the value and the log Jacobian.
REAL = lambda tau, u: (u, 0.0)  # noqa: E731
POSITIVE = lambda tau, u: (np.exp(u), u)  # noqa: E731
FAMILIES = {
    "Normal": (lambda dist, tau: dist.Normal(LOC, tau), lambda tau: stats.norm(LOC, tau), REAL),
    "LogNormal": (
        lambda dist, tau: dist.LogNormal(LOC, tau), lambda tau: stats.lognorm(s=tau, scale=np.exp(LOC)), POSITIVE,
    ),
    "Exponential": (
        lambda dist, tau: dist.Exponential(1 / tau), lambda tau: stats.expon(scale=tau), POSITIVE,
    ),
    "Uniform": (
        lambda dist, tau: dist.Uniform(0.0, tau), lambda tau: stats.uniform(0, tau),
        lambda tau, u: (tau * stats.logistic.cdf(u), np.log(tau) + stats.logistic.logpdf(u)),
    ),
}  # fmt: skip
NODES = np.linspace(-12, 12, 49)


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def flags(backend, mask):
    return torch.as_tensor(mask) if backend.name == "pyro" else mask


def model_of(backend, family):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        tau = ppl.sample("tau", dist.HalfNormal(SCALE))
        with ppl.plate("row", 2):
            ppl.sample("y", FAMILIES[family][0](dist, tau), obs=y, obs_mask=flags(backend, OBSERVED))

    return model


def coordinates(backend, family):
    return Coordinates.of(backend, model_of(backend, family), DATA)


def without_observed_latent(own, log_tau, u):
    """Log density of log tau and of the coordinate of the missing value, the latent of the observed row integrated out."""
    values = [own.log_density(np.array([log_tau, free, u], np.float32)) for free in NODES]
    return np.logaddexp.reduce(values) + np.log(NODES[1] - NODES[0])


def stated(family, tau, value):
    """What the model says of tau, the observed row and the missing value."""
    fn = FAMILIES[family][1](tau)
    return stats.halfnorm(scale=SCALE).logpdf(tau) + np.log(tau) + fn.logpdf(DATA[0]) + fn.logpdf(value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_density_of_everything_else_is_the_one_that_the_model_states(backend, family):
    own = coordinates(backend, family)
    assert own.problem.layout.names == ("tau", "y_unobserved")
    for log_tau, u in ((0.4, -0.6), (-0.2, 0.9)):
        tau = np.exp(log_tau)
        value, log_jacobian = FAMILIES[family][2](tau, u)
        expected = stated(family, tau, value) + log_jacobian
        assert without_observed_latent(own, log_tau, u) == pytest.approx(expected, abs=1e-3)
    if family not in ("Normal", "LogNormal"):
        return
    moved = own.noncentered()
    assert moved.problem.noncentering_candidates() == ("y_unobserved",)
    for log_tau, u in ((0.4, -0.6), (-0.2, 0.9)):
        tau = np.exp(log_tau)
        value, log_jacobian = FAMILIES[family][2](tau, LOC + tau * u)
        expected = stated(family, tau, value) + log_jacobian + np.log(tau)
        assert without_observed_latent(moved, log_tau, u) == pytest.approx(expected, abs=1e-3)


# Conjugate: p ~ Gamma(3, 3), mu ~ Normal(0, 1 / sqrt(p)), rows ~ Normal(mu, 1 / sqrt(p)), nine of twelve observed.
ROWS = np.random.default_rng(0).normal(1.0, 1.2, 12).astype(np.float32)
SEEN = np.arange(12) % 4 != 1


def test_missing_rows_are_predicted_and_the_others_are_the_data(backend):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        p = ppl.sample("p", dist.Gamma(3.0, 3.0))
        mu = ppl.sample("mu", dist.Normal(0.0, p**-0.5))
        with ppl.plate("row", len(y)):
            ppl.sample("y", dist.Normal(mu, p**-0.5), obs=y, obs_mask=flags(backend, SEEN))

    dft = backend.DFT(model, num_draws=4000, restarts=6, seed=0, disable_progbar=True)
    backend.run(dft, backend.array(ROWS))
    report = dft.diagnostics()
    assert report["status"] == "converged"
    draws = {name: np.asarray(value, float) for name, value in dft.get_samples().items()}
    n, y = SEEN.sum(), ROWS[SEEN].astype(float)
    shape, rate = 3 + n / 2, 3 + 0.5 * (np.square(y).sum() - y.sum() ** 2 / (n + 1))
    # Four standard errors of as many effective draws as there are at least.
    ess = report["ensemble"]["ess"]
    gamma = stats.gamma(shape, scale=1 / rate)
    mean, sd = y.sum() / (n + 1), (rate / shape) ** 0.5
    student = stats.t(2 * shape, mean, sd / (n + 1) ** 0.5)
    missing = stats.t(2 * shape, mean, sd * (1 + 1 / (n + 1)) ** 0.5)
    for x, exact in ((draws["p"], gamma), (draws["mu"], student), (draws["y_unobserved"][:, 1], missing)):
        assert abs(x.mean() - exact.mean()) < 4 * exact.std() / ess**0.5
        assert x.std() == pytest.approx(exact.std(), rel=4 / (ess / 2) ** 0.5)
        for q in (0.05, 0.95):
            assert (x < exact.ppf(q)).mean() == pytest.approx(q, abs=4 * (q * (1 - q) / ess) ** 0.5)
    assert (draws["y"][:, SEEN] == ROWS[SEEN]).all()
    assert (draws["y"][:, ~SEEN] == draws["y_unobserved"][:, ~SEEN]).all()
