"""Training on minibatches ends where the full data would: the noise of small ones does not stay in the result."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS, Y
from daily import daily

from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.target import Target as JaxTarget
from pyro_dft.engine_jax.target import whitened_score
from pyro_dft.engine_torch.target import Target as TorchTarget
from pyro_dft.experimental import grouped
from pyro_dft.recipe.engine import Forms

pytestmark = pytest.mark.filterwarnings("ignore:the fit is")

N, BATCH, D = 5000, 10, 4


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)).astype(np.float32)
    return x, (x @ np.array([1.0, -1.0, 0.5, 0.0]) + rng.normal(size=N)).astype(np.float32)


def posterior():
    """Mean and covariance of the slopes: unit priors, unit noise."""
    x, y = (part.astype(float) for part in data())
    covariance = np.linalg.inv(x.T @ x + np.eye(D))
    return covariance @ x.T @ y, covariance


def regression(backend):
    import numpyro
    import pyro

    ppl = {"pyro": pyro, "numpyro": numpyro}[backend.name]

    def model(x, y):
        slopes = ppl.sample("slopes", ppl.distributions.Normal(backend.array(np.zeros(D)), 1.0).to_event(1))
        with ppl.plate("data", N, subsample_size=BATCH) as rows:
            ppl.sample("y", ppl.distributions.Normal(x[rows] @ slopes, 1.0), obs=y[rows])

    return model


def errors(draws):
    """Errors of means and log sds, in posterior sds."""
    mean, covariance = posterior()
    sd = np.sqrt(np.diag(covariance))
    return np.abs(draws.mean(0) - mean) / sd, np.abs(np.log(draws.std(0) / sd))


@pytest.mark.parametrize("train", daily(["never", "always"], "never"))
def test_fits_to_minibatches_reach_the_posterior_of_all_data(backend, train):
    options = grouped({
        "precondition_steps": 150, "restarts": 2, "num_steps": 400, "reparam": "never", "num_draws": 400,
    })  # fmt: skip
    dft = backend.DFT(regression(backend), disable_progbar=True, seed=0, train=train, **options)
    backend.run(dft, *map(backend.array, data()))
    draws = dft.parts.backend.arrays.numpy(dft.get_samples(20_000, refine_steps=0)["slopes"])
    mean, log_sd = errors(draws)
    # Monte Carlo errors of .007 and .005; the rest is what is left of a minibatch's noise, which for one draw is 22 sds.
    assert mean.max() < 0.15
    assert log_sd.max() < 0.1


@pytest.mark.slow
def test_without_the_full_data_the_noise_stays(backend):
    """The control: a budget for the full data that allows no step leaves the Gaussian where minibatches put it."""
    options = grouped({
        "precondition_steps": 150, "restarts": 1, "reparam": "never", "num_draws": 40, "full_data_budget": 1.0,
    })  # fmt: skip
    dft = backend.DFT(regression(backend), disable_progbar=True, seed=0, train="never", **options)
    backend.run(dft, *map(backend.array, data()))
    mean, _ = errors(dft.parts.backend.arrays.numpy(dft.get_samples(20_000, refine_steps=0)["slopes"]))
    assert mean.max() > 0.15


def test_data_rows_count_minibatches_and_full_data_apart(backend):
    options = grouped(
        {"precondition_steps": 30, "restarts": 1, "reparam": "never", "modes": "never", "num_draws": 40}
    )
    dft = backend.DFT(regression(backend), disable_progbar=True, seed=0, train="never", **options)
    rows = {}

    def look(progress, draw):
        rows.setdefault(progress.step, dft.parts.backend.evaluations())

    dft.callback, dft.callback_every = look, 1
    backend.run(dft, *map(backend.array, data()))
    first, second = (rows[step] for step in sorted(rows)[:2])
    steps = {name: second[name] - first[name] for name in first}
    assert steps["gradient_evaluations"] > 0
    assert steps["data_rows"] == steps["gradient_evaluations"] * BATCH
    last = dft.diagnostics()
    full = (last["data_rows"] - last["gradient_evaluations"] * BATCH) / (N - BATCH)
    assert full == int(full)
    assert 0 < full < last["gradient_evaluations"]
    # A model that subsamples nothing has no such figure.
    plain = backend.fitted(backend.dft(), Y)
    assert plain.diagnostics()["data_rows"] is None


# The control variate

ROWS = np.random.default_rng(1).normal(size=(400, 2)).astype(np.float32)
MEAN = ROWS.mean(0)


def torch_target(curved):
    rows = torch.as_tensor(ROWS)

    def potential(x):
        return 0.5 * ((x - rows) ** 2).sum()

    def minibatch(x):
        some = rows[torch.randint(len(rows), (8,))]
        weight = 1 + torch.randn(()) * curved
        return (
            len(rows) / 8 * 0.5 * ((x - some) ** 2).sum() * weight
            if curved < 1
            else (potential(x) + 50 * torch.randn(()) * ((x - rows.mean(0)) ** 2).sum())
        )

    target = TorchTarget(potential, 2, forms=Forms(minibatch))
    target.probe(torch.zeros(4, 2))
    return target


@pytest.mark.parametrize(("curved", "pays"), [(0.0, True), (1.0, False)])
def test_torch_minibatch_scores_are_anchored_where_that_pays(curved, pays):
    torch.manual_seed(0)
    target = torch_target(curved)
    scale = (torch.eye(2) / 400**0.5)[None]
    mean = torch.as_tensor(MEAN)[None]
    draws = mean[:, None] + torch.randn(1, 64, 2) / 400**0.5
    assert target.anchor(mean, scale, draws) == pays
    if pays:
        full = target.evaluate(draws)[1]
        noisy = target.evaluate(draws, minibatch=True)[1]
        # Here the minibatch enters the score by a constant only, so nothing of its noise is left.
        assert torch.allclose(noisy, full, atol=0.05)
        target.rebind(lambda x: (x**2).sum(), lambda x: (x**2).sum())
        assert torch.allclose(target.evaluate(draws, minibatch=True)[1], -2 * draws)


def jax_target(curved):
    rows = jnp.asarray(ROWS)

    def potential(x, _):
        return 0.5 * ((x - rows) ** 2).sum()

    def minibatch(x, _, key):
        some = rows[(random.uniform(random.fold(key, 0), (8,), jnp.float32) * len(rows)).astype(int)]
        if curved:
            factor = random.normal(random.fold(key, 1), (), jnp.float32)
            return potential(x, _) + 50 * factor * ((x - rows.mean(0)) ** 2).sum()
        return len(rows) / 8 * 0.5 * ((x - some) ** 2).sum()

    return JaxTarget(potential, 2, forms=Forms(minibatch))


@pytest.mark.parametrize(("curved", "pays"), [(False, True), (True, False)])
def test_jax_minibatch_scores_are_anchored_where_that_pays(curved, pays):
    from pyro_dft.engine_jax.sampler import Sampler
    from pyro_dft.engine_jax.train import NetworkTrainer
    from pyro_dft.settings import Settings

    target = jax_target(curved)
    scale = np.eye(2, dtype=np.float32)[None] / np.float32(400**0.5)
    trainer = NetworkTrainer(
        target, Sampler(MEAN[None], scale), Settings(width=4, depth=1), np.random.default_rng(0)
    )
    assert (trainer.anchor is not None) == pays
    u = np.random.default_rng(1).normal(size=(1, 64, 2)).astype(np.float32)
    full, _ = whitened_score(target.spec, u, MEAN[None], scale, target.data, None)
    if pays:
        key = random.words(jax.random.key(0))
        noisy, _ = whitened_score(target.spec, u, MEAN[None], scale, target.data, key, trainer.anchor)
        assert np.allclose(noisy, full, atol=0.05 / 400**0.5)
