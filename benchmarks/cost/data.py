"""Data of the cost models, each simulated with a fixed seed; the S&P 500 returns are real where their file is at hand.

Every function returns the positional arguments of a model as NumPy arrays and Python numbers.
"""

from __future__ import annotations

import csv
from typing import Any

import numpy as np

from benchmarks.data import data_path

Arguments = tuple[Any, ...]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _flips(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    return (rng.uniform(size=logits.shape) < _sigmoid(logits)).astype(np.float32)


def groups(rows: int, number: int) -> Arguments:
    """Number of groups, group of each row (rows,), predictor (rows,), outcome 0 or 1 (rows,)."""
    rng = np.random.default_rng(0)
    group, intercept, x = rng.integers(0, number, rows), 0.7 * rng.normal(size=number), rng.normal(size=rows)
    y = _flips(rng, 0.3 + intercept[group] + 0.5 * x)
    return number, group, x.astype(np.float32), y


def item_response(persons: int, items: int) -> Arguments:
    """Answers 0 or 1 (persons, items)."""
    rng = np.random.default_rng(0)
    ability, difficulty = rng.normal(size=persons), rng.normal(size=items)
    return (_flips(rng, ability[:, None] - difficulty),)


def logistic(rows: int, d: int) -> Arguments:
    """Predictors (rows, d) with norms near one, outcome (rows,)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, d)) / np.sqrt(d)
    return x.astype(np.float32), _flips(rng, x @ (2.0 * rng.normal(size=d)))


def returns() -> Arguments:
    """Daily returns of the S&P 500 in percent (2,517); where the file is missing, as many from the model itself."""
    try:
        path = data_path("pyro_datasets/SP500.csv")
    except FileNotFoundError:
        return (simulated_returns(),)
    with open(path, encoding="utf-8") as f:
        return (np.asarray([float(row["VALUE"]) for row in csv.DictReader(f)], np.float32),)


def simulated_returns(days: int = 2_517) -> np.ndarray:
    """Returns (days,) from the stochastic volatility model: a log scale that walks at random, Student's t around zero."""
    rng = np.random.default_rng(0)
    log_scale = np.cumsum(rng.normal(0.0, 0.05, days))
    return (rng.standard_t(10.0, days) * np.exp(log_scale)).astype(np.float32)


def random_walk(series: int, steps: int) -> Arguments:
    """Observed series (series, steps), each a walk of its own step size with noise of one size."""
    rng = np.random.default_rng(0)
    step = np.exp(rng.normal(-1.0, 0.4, series))
    walk = np.cumsum(step[:, None] * rng.normal(size=(series, steps)), axis=1)
    return ((walk + 0.5 * rng.normal(size=walk.shape)).astype(np.float32),)


def counts_on_a_line(points: int) -> Arguments:
    """Places (points,) from 0 to 10 and counts (points,) whose log rate is smooth."""
    rng = np.random.default_rng(0)
    x = np.linspace(0.0, 10.0, points)
    return x.astype(np.float32), rng.poisson(np.exp(0.5 + np.sin(x) + 0.3 * np.cos(2.7 * x))).astype(
        np.float32
    )


def wave(rows: int) -> Arguments:
    """Places (rows,) and a sine with noise (rows,)."""
    rng = np.random.default_rng(15)
    x = rng.uniform(-2.0, 2.0, rows).astype(np.float32)
    return x, (np.sin(2 * x) + 0.2 * rng.normal(size=rows)).astype(np.float32)


def ratings(persons: int, items: int) -> Arguments:
    """Which ratings there are (persons, items), three in five, and their values, of rank two."""
    rng = np.random.default_rng(14)
    u, v = rng.normal(size=(persons, 2)), rng.normal(size=(items, 2))
    there = rng.random((persons, items)) < 0.6
    values = u @ v.T + 0.3 * rng.normal(size=(persons, items))
    return there, np.where(there, values, 0.0).astype(np.float32)


def bump(rows: int) -> Arguments:
    """Places (rows,) and a curve (rows,) whose noise begins with its bump."""
    rng = np.random.default_rng(8)
    x = np.sort(rng.uniform(-1.5, 1.5, rows))
    y = 2 * np.sin(3 * x) * np.exp(-(x**2)) + rng.normal(size=rows) * (0.1 + 0.5 * (x > -0.3))
    return x.astype(np.float32), y.astype(np.float32)


def regression(rows: int) -> Arguments:
    """Predictor (rows,) and response (rows,)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(rows, np.float32)
    return x, np.float32(0.4) + np.float32(0.7) * x + np.float32(1.3) * rng.standard_normal(rows, np.float32)


def flips(rows: int) -> Arguments:
    """Outcomes 0 or 1 of three coins (rows, 3)."""
    rng = np.random.default_rng(0)
    return ((rng.uniform(size=(rows, 3)) < np.array([0.2, 0.4, 0.8])).astype(np.float32),)


def _chain(
    rng: np.random.Generator, steps: int, move: np.ndarray, emit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """States and words (steps,) of a hidden Markov chain that starts in state 0."""
    state, states, words = 0, [], []
    for t in range(steps):
        state = rng.choice(len(move), p=move[state]) if t else state
        states.append(state)
        words.append(rng.choice(emit.shape[1], p=emit[state]))
    return np.asarray(states), np.asarray(words)


def hmm(labelled: int, unlabelled: int) -> Arguments:
    """States and words of the labelled part, words of the rest; 3 states, 10 words, sparse emissions."""
    rng = np.random.default_rng(0)
    move, emit = rng.dirichlet(np.ones(3), 3), rng.dirichlet(np.full(10, 0.1), 3)
    states, words = _chain(rng, labelled + unlabelled, move, emit)
    return states[:labelled], words[:labelled], words[labelled:]


def short_chains(labelled: int, chains: int, steps: int) -> Arguments:
    """States and words of one labelled chain, words (chains, steps) of chains without states; 3 states, 5 words."""
    rng = np.random.default_rng(1)
    move = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.25, 0.7]])
    emit = rng.dirichlet(np.full(5, 0.7), 3)
    states, words = _chain(rng, labelled, move, emit)
    return states, words, np.stack([_chain(rng, steps, move, emit)[1] for _ in range(chains)])


def imputation(rows: int, missing: int) -> Arguments:
    """A table such as the Titanic's: a number with holes that hangs on a title, five categories, an outcome.

    Returns:
        The number (rows,), zero where it is missing; places of the holes (missing,); title (rows,) of 5; categories
        (rows, 5) of 3, 2, 2, 3 and 3; outcome (rows,).
    """
    rng = np.random.default_rng(0)
    title = rng.integers(0, 5, rows)
    categories = np.stack([rng.integers(0, k, rows) for k in (3, 2, 2, 3, 3)], axis=1)
    age = rng.normal(0.3 * title, 1.0)
    outcome = _flips(rng, 0.5 * age - 0.4 * categories[:, 0])
    holes = np.sort(rng.choice(rows, missing, replace=False))
    age[holes] = 0.0
    return age.astype(np.float32), holes, title, categories, outcome


def captures() -> Arguments:
    """Capture histories 0 or 1 (294, 7) and sex (294,), of the size of the dippers' of Lebreton and others (1992).

    Every animal is caught at least once: survival .58 (.53 for one sex), recapture .9.
    """
    rng = np.random.default_rng(0)
    animals, times = 294, 7
    sex = rng.integers(0, 2, animals)
    first = rng.integers(0, times - 1, animals)
    seen = np.zeros((animals, times), np.float32)
    for i in range(animals):
        seen[i, first[i]] = 1.0
        for t in range(first[i] + 1, times):
            if rng.uniform() > 0.58 - 0.05 * sex[i]:
                break
            seen[i, t] = rng.uniform() < 0.9
    return seen, sex.astype(np.float32)


def predators(years: int) -> Arguments:
    """Times (years,) from 1, both populations at time 0 (2,) and at the times (years, 2), with log-normal noise."""
    rng = np.random.default_rng(0)
    z, h = np.array([30.0, 4.0]), 0.01

    def slope(z: np.ndarray) -> np.ndarray:
        return np.array([(0.55 - 0.028 * z[1]) * z[0], (0.024 * z[0] - 0.8) * z[1]])

    path = [z]
    for _ in range(years):
        for _ in range(round(1 / h)):
            middle = z + h / 2 * slope(z)
            z = z + h * slope(middle)
        path.append(z)
    noisy = np.stack(path) * np.exp(0.25 * rng.normal(size=(years + 1, 2)))
    return np.arange(1.0, years + 1.0), noisy[0], noisy[1:]


def curve(points: int) -> Arguments:
    """Places (points,) in [-1, 1] and noisy values (points,) of a smooth curve."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1.0, 1.0, points)
    y = x + 0.2 * x**3 + 0.5 * (0.5 + x) ** 2 * np.sin(4.0 * x)
    y = (y - y.mean()) / y.std() + 0.3 * rng.normal(size=points)
    return x.astype(np.float32), y.astype(np.float32)


def two_humps(points: int) -> Arguments:
    """Numbers (points,), two fifths around -2 and the rest around 2."""
    rng = np.random.default_rng(0)
    second = rng.uniform(size=points) < 0.6
    return (np.where(second, rng.normal(2.0, 0.8, points), rng.normal(-2.0, 0.8, points)).astype(np.float32),)


def outbreak(days: int, population: int) -> Arguments:
    """Reported cases (days,) of an SIR outbreak with one half of all infections reported, and the population."""
    rng = np.random.default_rng(3)
    susceptible, infected, reported = population - 20, 20, []
    for _ in range(days):
        new = rng.binomial(susceptible, 1.0 - np.exp(-0.6 * infected / population))
        recovered = rng.binomial(infected, 0.25)
        susceptible, infected = susceptible - new, infected + new - recovered
        reported.append(rng.binomial(new, 0.5))
    return np.asarray(reported, np.float32), float(population)


def level(steps: int) -> Arguments:
    """A series (steps,) whose level walks."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(0.0, 0.3, steps))
    return ((1.0 + walk + rng.normal(0.0, 0.5, steps)).astype(np.float32),)
