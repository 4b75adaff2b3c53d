"""The logistic experiment: twin models and unbiased minibatches, split, scores, cells, and the quick run's page."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch
from numpyro.infer.util import log_density
from pyro import poutine

from benchmarks.paper.logistic import (
    course,
    experiment,
    figures,
    judge,
    methods,
    models,
    problem,
    report,
    rivals,
)
from benchmarks.paper.logistic.course import Course, Run
from benchmarks.paper.logistic.judge import Score
from benchmarks.paper.logistic.methods import Line

ROWS, DIM = 600, 55


def made_up(seed: int = 0) -> problem.Split:
    """A split in the shape of Covertype: ten numbers, the rest one-hot in two groups."""
    rng = np.random.default_rng(seed)
    x = np.zeros((ROWS, 54))
    x[:, :10] = rng.normal(3.0, 2.0, (ROWS, 10))
    x[np.arange(ROWS), 10 + rng.integers(4, size=ROWS)] = 1
    x[np.arange(ROWS), 14 + rng.integers(40, size=ROWS)] = 1
    y = rng.random(ROWS) < 1 / (1 + np.exp(3.0 - x[:, 0]))
    order = rng.permutation(ROWS)
    return problem.split(x, y.astype(float), order[:500], order[500:], "made up")


@pytest.fixture
def float64():
    before, x64 = torch.get_default_dtype(), jax.config.jax_enable_x64
    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)
    yield
    torch.set_default_dtype(before)
    jax.config.update("jax_enable_x64", x64)


def pyro_log_density(x, y, alpha, w, batch=None):
    conditioned = poutine.condition(models.pyro_model, {"alpha": alpha, "w": w})
    return poutine.trace(conditioned).get_trace(x, y, batch).log_prob_sum()


def test_pyro_and_numpyro_have_one_density(float64):
    split, rng = made_up(), np.random.default_rng(1)
    x, y = split.x.astype(float), split.y.astype(float)
    jax_log_density = jax.jit(lambda values: log_density(models.numpyro_model, (x, y), {}, values)[0])
    for _ in range(3):
        alpha, w = np.exp(rng.normal()), 0.5 * rng.normal(size=DIM)
        mine = float(pyro_log_density(*map(torch.tensor, (x, y, alpha, w))))
        theirs = jax_log_density({"alpha": jnp.asarray(alpha), "w": jnp.asarray(w)})
        assert mine == pytest.approx(float(theirs), rel=1e-6)
        logits = x @ w
        likelihood = (y * logits - np.logaddexp(0, logits)).sum()
        prior = 0.5 * DIM * np.log(alpha / (2 * np.pi)) - 0.5 * alpha * w @ w + np.log(0.01) - 0.01 * alpha
        assert mine == pytest.approx(prior + likelihood, rel=1e-6)


def unbiased(estimates, exact):
    """Whether a mean of independent estimates (n, d) is within four Monte Carlo standard errors of the exact values."""
    error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    # Without noise (the prior's part) only rounding is left.
    return (np.abs(estimates.mean(0) - exact) <= 4 * error + 1e-9 * np.abs(exact)).all(), error


def test_numpyro_minibatch_gradients_are_unbiased(float64):
    split, rng = made_up(), np.random.default_rng(2)
    x, y = jnp.asarray(split.x, float), jnp.asarray(split.y, float)
    point = {"alpha": jnp.asarray(0.3), "w": jnp.asarray(0.3 * rng.normal(size=DIM))}
    keys = jax.random.split(jax.random.key(0), 1000)
    found = jax.jit(jax.vmap(rivals.minibatch_score(x, y, 50), in_axes=(None, 0)))(point, keys)
    exact = jax.jit(rivals.minibatch_score(x, y, None))(point, jax.random.key(0))
    for name in ("alpha", "w"):
        estimates = np.asarray(found[name]).reshape(len(keys), -1)
        good, error = unbiased(estimates, np.asarray(exact[name]).reshape(-1))
        assert good
        # The minibatches differ: the test can fail.
        assert name == "alpha" or error.max() > 0.1


def test_pyro_minibatch_gradients_are_unbiased(float64):
    split, rng = made_up(), np.random.default_rng(2)
    x, y = torch.tensor(split.x, dtype=torch.float64), torch.tensor(split.y, dtype=torch.float64)
    w = torch.tensor(0.3 * rng.normal(size=DIM), requires_grad=True)
    pyro.set_rng_seed(0)

    def gradient(batch):
        value = pyro_log_density(x, y, torch.tensor(1.3), w, batch)
        return torch.autograd.grad(value, w)[0].numpy()

    estimates = np.stack([gradient(50) for _ in range(400)])
    good, error = unbiased(estimates, gradient(None))
    assert good
    assert error.max() > 0.1


def test_split_scales_by_the_training_rows_and_keeps_them_apart():
    split = made_up()
    assert split.x.shape == (500, DIM)
    assert split.x_test.shape == (100, DIM)
    assert (split.x[:, 0] == 1).all()
    np.testing.assert_allclose(split.x[:, 1:11].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(split.x[:, 1:11].std(0), 1, atol=1e-5)
    assert not np.allclose(split.x_test[:, 1:11].mean(0), 0, atol=1e-3)
    assert set(np.unique(split.x[:, 11:])) == {0.0, 1.0}
    assert split.digest() != made_up(1).digest()


def test_scores_are_those_of_the_textbook():
    y = np.array([1.0, 1.0, 0.0, 0.0])
    score = Score.of(np.array([0.9, 0.4, 0.4, 0.1]), y)
    assert score.accuracy == 0.75
    assert score.log_likelihood == pytest.approx(np.log([0.9, 0.4, 0.6, 0.9]).mean())
    assert score.accuracy_error == pytest.approx(np.sqrt(0.75 * 0.25 / 4))
    assert judge.paired_error(score.correct, score.correct) == 0
    w = np.stack([np.full(3, 2.0), np.zeros(3)])
    p = judge.probability(w, np.array([[1.0, 0, 0], [-1.0, 0, 0]], np.float32))
    np.testing.assert_allclose(
        p, [(1 / (1 + np.exp(-2)) + 0.5) / 2, (1 / (1 + np.exp(2)) + 0.5) / 2], rtol=1e-6
    )


def test_posterior_errors_are_in_sds_of_the_reference():
    reference = np.random.default_rng(0).normal(size=(50_000, 2)) * [1.0, 3.0]
    errors = judge.posterior_errors(reference * [2.0, 0.5] + [0.0, 6.0], reference)
    # 50,000 draws: a mean is known to 0.0045 sds; both samples share their noise but for the factors.
    assert errors["worst_mean"] == pytest.approx(2.0, abs=0.02)
    assert (errors["sd_low"], errors["sd_high"]) == (pytest.approx(0.5), pytest.approx(2.0))


def toy(probabilities, labels, seconds=None):
    k = len(probabilities)
    times = np.arange(1.0, k + 1) if seconds is None else np.asarray(seconds)
    p = np.stack([np.where(labels > 0.5, q, 1 - q) for q in probabilities])
    none = np.zeros((3, 2))
    return Run("toy", 0, times, 2 * times, times, p, none, none, {})


def test_reached_takes_the_first_mark_after_which_nothing_is_worse():
    labels = (np.random.default_rng(0).random(400) < 0.5).astype(float)
    goal = Score.of(np.where(labels > 0.5, np.where(np.arange(400) % 2, 0.9, 0.6), 0.25), labels)
    level = float(np.exp(goal.log_likelihood))
    run = toy([0.5, level + 0.01, 0.5, level + 0.01, level + 0.02], labels)
    assert report.reached(run, labels, goal) == 4.0
    assert report.reached(run, labels, goal, "cpu") == 8.0
    assert report.reached(toy([0.5, 0.5], labels), labels, goal) is None


def test_curves_of_seeds_with_marks_of_their_own_are_averaged_at_equal_costs():
    labels = np.ones(4)
    first, second = toy([0.5, 0.9], labels, [1.0, 3.0]), toy([0.5, 0.7, 0.9], labels, [2.0, 3.0, 4.0])
    cost, mean, sd = figures.curve([first, second], labels, "wall", "log_likelihood")
    np.testing.assert_allclose(cost, [2.0, 3.0, 4.0])
    low, middle, high = np.log([0.5, 0.7, 0.9])
    expected = np.array([[(low + high) / 2, high, high], [low, middle, high]])
    np.testing.assert_allclose(mean, expected.mean(0))
    np.testing.assert_allclose(sd, expected.std(0), atol=1e-12)
    unknown = Run("toy", 0, *[np.full(2, np.nan)] * 3, first.probability, first.draws, first.raw, {})
    assert len(figures.curve([unknown, first], labels, "passes", "accuracy")[0]) == 0


def test_cells_are_kept_and_the_clock_stops_for_predictions(tmp_path):
    split, calls = made_up(), []

    def method(run: Course, seed: int, settings):
        calls.append(seed)
        run.start()
        with run.paused():
            time.sleep(0.2)
        run.mark(1.0, lambda: time.sleep(0.2) or np.zeros((4, DIM)))
        run.mark(2.0, np.zeros((4, DIM)))
        return np.ones(4), np.zeros((4, DIM)), {"said": "hello"}

    first = course.run(tmp_path, "toy", method, 3, {"a": 1}, split)
    again = course.run(tmp_path, "toy", method, 3, {"a": 1}, split)
    assert calls == [3]
    np.testing.assert_array_equal(first.probability, again.probability)
    assert again.notes == {"said": "hello"}
    assert again.draws.shape == (4, DIM + 1)
    assert again.wall[-1] < 0.2
    course.run(tmp_path, "toy", method, 3, {"a": 2}, split)
    course.run(tmp_path, "toy", method, 3, {"a": 1}, split, fresh=True)
    assert calls == [3, 3, 3]


def gaussian_method(run: Course, seed: int, settings):
    """Draws around the truth of `made_up`, nearer to it at the second of two marks."""
    rng = np.random.default_rng(seed)
    run.start()
    truth = np.zeros(DIM)
    truth[1] = 2.0
    for k, spread in enumerate((1.0, settings["spread"])):
        w = truth + spread * rng.normal(size=(100, DIM))
        run.mark(k + 1.0, w)
    return np.exp(rng.normal(size=100)), w, settings["notes"]


def test_the_page_says_what_was_found(tmp_path, monkeypatch):
    def line(key, label, spread, seeds, notes=None, curve=True):
        return Line(key, label, "toy", {"spread": spread, "notes": notes or {}}, seeds, curve)

    lines = [
        line("reference", "reference", 0.05, 1, curve=False),
        line("nuts", "NUTS", 0.05, 1, {"divergences": 3}),
        line("kl", "KL-NS", 0.05, 2, {"status": "suspect"}),
        line("dft", "DFT-NS", 2.0, 2),
    ]
    monkeypatch.setattr(experiment, "function", lambda _: gaussian_method)
    split = made_up()
    assert experiment.collect(lines, split, 2, tmp_path / "cells", finished=True)["kl"] == []
    runs = experiment.collect(lines, split, 2, tmp_path / "cells")
    assert [len(runs[line.key]) for line in lines] == [1, 1, 2, 2]
    experiment.write(lines, runs, split, tmp_path / "logistic", "the command")
    text = (tmp_path / "logistic.md").read_text()
    for piece in ("| NUTS |", "3 divergences", "suspect 2", "the command", "500 training rows", "made up"):
        assert piece in text
    # Weights two units off in every direction predict next to nothing.
    assert "DFT-NS: log likelihood never within NUTS' standard error in 2 of 2 runs" in text
    assert re.search(r"DFT-NS: -0\.\d+ from KL-NS .* not met", text)
    assert re.search(r"DFT-NS: accuracy .* of the difference", text)
    assert (tmp_path / "logistic.png").stat().st_size > 10_000
    assert (tmp_path / "logistic.csv").read_text().count("\n") == 5


def test_every_line_names_a_method():
    for backend in ("numpyro", "pyro"):
        for quick in (False, True):
            lines = methods.lines(backend, quick)
            assert len({line.key for line in lines}) == len(lines)
            assert all(callable(experiment.function(line)) for line in lines)
