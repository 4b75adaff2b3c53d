"""Natural-gradient steps of many fits, taken together, are those of each by itself."""

import numpy as np
import pytest

from pyro_dft.many import gaussians
from pyro_dft.many.pool import Pool
from pyro_dft.recipe.gaussian_fit import GaussianFitter

DIM = 3


class Stack:
    """Gaussians of several places and widths, with no density beyond a wall."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.means, self.sds = rng.normal(0.0, 2.0, (4, DIM)), rng.uniform(0.3, 3.0, (4, DIM))
        self.calls = []

    def scores(self, row, x):
        """Log densities (n,) and scores (n, DIM), NaN behind the wall."""
        z = (x - self.means[row]) / self.sds[row]
        behind = z[:, 0] > 2.5
        return np.where(behind, np.nan, -0.5 * (z**2).sum(1)), -z / self.sds[row]


class Target:
    """One of them."""

    dim, dtype, minibatch, data_size, adaptive = DIM, "float64", False, 1, False

    def __init__(self, stack, row):
        self.stack, self.row = stack, row
        self.gradient_evaluations = self.nonfinite_evaluations = 0

    def count(self, evaluations):
        """Adds to the cost."""
        self.gradient_evaluations += evaluations


class Engine:
    """NumPy."""

    @staticmethod
    def host_rng(rng):
        return rng

    @staticmethod
    def native(target, x):
        return np.array(x)

    numpy = staticmethod(np.asarray)

    @staticmethod
    def scores(target, x, rng, *, minibatch):
        value, score = target.stack.scores(target.row, x.reshape(-1, DIM))
        good = np.isfinite(value)
        target.count(len(value))
        target.nonfinite_evaluations += int((~good).sum())
        value, score = np.where(good, value, -np.inf), np.where(good[:, None], score, 0.0)
        return value.reshape(x.shape[:-1]), score.reshape(x.shape)


def fitter_of(kind, stack, row):
    rng = np.random.default_rng(row)
    starts = rng.normal(0.0, 2.0, (1, 3, DIM))
    return kind(Engine, Target(stack, row), starts, np.array([0.1, 1.0, 0.1]), steps=60, rng=rng)


def run(fitter):
    while not fitter.done:
        fitter.advance()
    return fitter


@pytest.fixture(scope="module")
def together():
    """Fits to members of two stacks in a pool, and how many fits each of its calls served."""
    stacks, served = [Stack(0), Stack(1)], []

    def scores(key, payloads):
        stack, kind = key
        assert kind == "scores"
        return [stack.scores(row, x) for row, x in payloads]

    def answer(key, payloads):
        assert key[0] == gaussians.KEY
        served.append(len(payloads))
        return gaussians.answer(key, payloads, scores)

    fits = [
        lambda stack=stack, row=row: run(fitter_of(gaussians.SharedFitter, stack, row))
        for stack in stacks
        for row in range(4)
    ]
    found = dict(Pool(answer, 8).run(fits))
    return stacks, [found[i] for i in range(8)], served


def test_each_fit_is_the_one_by_itself(together):
    stacks, found, served = together
    for i, own in enumerate(found):
        alone = run(fitter_of(GaussianFitter, stacks[i // 4], i % 4))
        assert own.taken == alone.taken
        a, b = own.result(), alone.result()
        for name in ("mean", "scale", "elbo", "elbo_error"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
        assert own.target.gradient_evaluations == alone.target.gradient_evaluations
        assert own.target.nonfinite_evaluations == alone.target.nonfinite_evaluations
    # There were such evaluations, so that the comparison says something.
    assert min(own.target.nonfinite_evaluations for own in found) > 0
    # One request for each step; most are answered with others, of both stacks.
    assert sum(served) == sum(own.taken for own in found)
    assert served[0] == 8


def test_a_step_that_cannot_be_scored_fails_alone(together):
    stacks, _, _ = together

    def scores(key, payloads):
        if any(row == 2 for row, _ in payloads):
            raise ValueError("no such row")
        return [key[0].scores(row, x) for row, x in payloads]

    pool = Pool(lambda key, payloads: gaussians.answer(key, payloads, scores), 8)
    fits = [lambda row=row: run(fitter_of(gaussians.SharedFitter, stacks[0], row)) for row in range(4)]
    found = dict(pool.run(fits))
    assert isinstance(found[2], ValueError)
    assert all(isinstance(found[i], GaussianFitter) for i in (0, 1, 3))
