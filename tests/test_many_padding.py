"""Rows of padding: how many there are, and latent variables of them that hang on nothing."""

import math
import warnings

import numpy as np
import pytest
from backends import BACKENDS

from pyro_dft.errors import FidelityWarning
from pyro_dft.many import fitting
from pyro_dft.many.data import padded
from pyro_dft.many.padding import sizes_of
from pyro_dft.many.record import Record

OWN, ROWS, OTHERS = 3, 6, 6
Y = np.array([1.0, -2.0, 4.0], np.float32)


def hierarchy(backend):
    """A hierarchy with a scale and a location of each row, and a plate that is as long as the padded data by chance."""
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y, mask):
        mu, tau = ppl.sample("mu", dist.Normal(0.0, 5.0)), ppl.sample("tau", dist.HalfNormal(5.0))
        with ppl.plate("other", OTHERS):
            ppl.sample("effect", dist.Normal(mu, tau))
        with ppl.plate("row", len(y)):
            sd = ppl.sample("sd", dist.Gamma(3.0, 2.0 + tau))
            theta = ppl.sample("theta", dist.StudentT(4.0, mu, tau))
            ppl.sample("plain", dist.Normal(0.0, 2.0))
            ppl.sample("vector", dist.Normal(backend.array([0.0, 1.0]) + mu, 1.0).to_event(1))
            ppl.sample("y", dist.Normal(theta, sd).mask(mask), obs=y)

    return model


def two_lengths(backend, y=Y, rows=ROWS):
    """The front door, and data with padding of two lengths."""
    front = fitting.door(backend.name)
    return front, *(front.native(padded([((y,), {})], "mask", n)[0][0]) for n in (rows, rows + 1))


def log_density(backend, model, arguments, values):
    """Of the model at values of its latent sites, in their own space."""
    if backend.name == "numpyro":
        from numpyro.infer.util import log_density as found

        return float(found(model, *arguments, values)[0])
    import pyro.poutine as poutine

    with poutine.condition(data={name: backend.array(value) for name, value in values.items()}):
        return float(poutine.trace(model).get_trace(*arguments[0], **arguments[1]).log_prob_sum())


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_rows_of_padding_hang_on_nothing_and_the_others_keep_their_density(backend):
    model = hierarchy(backend)
    front, own, longer = two_lengths(backend)
    rows = front.rows(model, own, longer, "mask")
    assert rows.plates == {"row"}
    assert rows.moved == {"sd": ("rate",), "theta": ("loc", "scale"), "vector": ("loc",)}
    whole, rng = front.freed(model, rows, "mask"), np.random.default_rng(0)
    short = front.native(((Y,), {"mask": np.ones(OWN, bool)}))

    for _ in range(2):
        values = {
            "mu": rng.normal(), "tau": rng.gamma(2.0), "effect": rng.normal(size=OTHERS), "sd": rng.gamma(3.0, size=ROWS),
            "theta": rng.normal(size=ROWS), "plain": rng.normal(size=ROWS), "vector": rng.normal(size=(ROWS, 2)),
        }  # fmt: skip
        values = {name: np.asarray(value, np.float32) for name, value in values.items()}
        of_data = {
            name: value[:OWN] if name in ("sd", "theta", "plain", "vector") else value
            for name, value in values.items()
        }
        sd, theta, plain, vector = (values[name][OWN:] for name in ("sd", "theta", "plain", "vector"))
        normal = -0.5 * math.log(2 * math.pi)
        # Gamma(3, 1), Student-t with four degrees of freedom, N(0, 2), N(0, 1).
        padding = (2 * np.log(sd) - sd - math.log(2)).sum()
        padding += (math.log(3 / 8) - 2.5 * np.log1p(theta**2 / 4)).sum()
        padding += (normal - math.log(2) - plain**2 / 8).sum() + (normal - vector**2 / 2).sum()
        expected = log_density(backend, model, short, of_data) + padding
        assert log_density(backend, whole, own, values) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_rows_that_cannot_be_told_are_left_alone(backend):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y, mask):
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        with ppl.plate("row", ROWS):
            theta = ppl.sample("theta", dist.Normal(mu, 1.0))
        ppl.sample("y", dist.Normal(theta[0], 1.0), obs=y[0])

    front, own, longer = two_lengths(backend)
    assert front.rows(model, own, longer, "mask").plates == set()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_posteriors_of_ragged_hierarchies_are_those_of_their_own_rows(backend):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y, mask):
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        with ppl.plate("other", ROWS):
            ppl.sample("effect", dist.Normal(0.0, 1.0))
        with ppl.plate("row", len(y)):
            theta = ppl.sample("theta", dist.Normal(mu, 2.0))
            ppl.sample("y", dist.Normal(theta, 1.0).mask(mask), obs=y)

    sets = [Y, np.array([3.0], np.float32), np.arange(6, dtype=np.float32)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FidelityWarning)
        fits = backend.package.fit_many(
            model, sets, mask="mask", num_draws=500, seed=4, train="never", disable_progbar=True
        )
    for i, y in enumerate(sets):
        # y_j ~ N(mu, 5) without theta; theta_j given y_j and mu is 4/5 of the way from mu to y_j.
        precision = 0.01 + len(y) / 5
        mean, sd = y.sum() / 5 / precision, precision**-0.5
        draws, count = fits.get_samples(i), fits.diagnostics(i)["ensemble"]["ess"]
        assert draws["theta"].shape == (500, len(y))
        assert draws["effect"].shape == (500, ROWS)
        mu = (draws["mu"].astype(float) - mean) / sd
        # Standard normal sizes at most; at 1e-4 none of these six passes the limit.
        assert abs(mu.mean()) * math.sqrt(count) < 4.3
        assert abs(math.log(mu.std())) * math.sqrt(2 * count) < 4.3
        assert abs((mu < -1.645).mean() - 0.05) < 4.3 * math.sqrt(0.05 * 0.95 / count)
        spread = math.sqrt(0.8 + 0.04 * sd**2)
        z = (draws["theta"] - 0.8 * y - 0.2 * mean) / spread
        assert np.abs(z.mean(0)).max() * math.sqrt(count) < 4.5
        assert np.abs(np.log(z.std(0))).max() * math.sqrt(2 * count) < 4.5


def test_data_sets_are_padded_to_few_sizes(monkeypatch):
    monkeypatch.setattr("pyro_dft.many.padding.LEAST_SETS", 3)
    monkeypatch.setattr("pyro_dft.many.padding.LADDER", 1.5)
    assert sizes_of([4, 7, 2]) == [7]
    assert sizes_of([10, 10, 10, 4, 4, 4]) == [4, 10]
    assert sizes_of([10, 9, 8, 7, 4, 4, 3]) == [4, 10]
    # Two that are left are not worth a size of their own, and equal ones stay together.
    assert sizes_of([10, 10, 10, 4, 4]) == [10]
    assert sizes_of([10, 5, 5, 5, 5, 2, 2, 2]) == [2, 10]
    assert sizes_of([0, 0, 0]) == [1]


def test_only_the_plates_of_the_rows_are_cut():
    def record():
        shape = {"theta": (1, 5, 4), "effect": (1, 5, 4), "free": (1, 5, 4)}
        samples = {name: np.zeros(size) for name, size in shape.items()}
        dims = {"theta": ["row"], "effect": ["other"], "free": ["free_dim_0"]}
        return Record(0, "converged", [], [], samples=samples, dims=dims)

    known, unknown = record(), record()
    known.cut(2, 4, frozenset({"row"}))
    assert {name: value.shape[2] for name, value in known.samples.items()} == {
        "theta": 2,
        "effect": 4,
        "free": 4,
    }
    unknown.cut(2, 4)
    assert {name: value.shape[2] for name, value in unknown.samples.items()} == {
        "theta": 2,
        "effect": 2,
        "free": 4,
    }
