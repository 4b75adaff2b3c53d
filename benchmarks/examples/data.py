"""Data of the examples, none of which download anything here: real ones where they are at hand, else made at the real size.

`PYRO_DFT_DATA` names the folder of the real ones, as for all benchmarks.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.data import data_path

Arrays = dict[str, tuple[Any, ...]]


def baseball() -> Arrays:
    """Efron and Morris' eighteen players: (at-bats, hits) of the first weeks and of the season, and names."""
    with data_path("pyro_datasets/EfronMorrisBB.txt").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = [f"{row['FirstName']} {row['LastName']}" for row in rows]
    early = np.array([[int(row["At-Bats"]), int(row["Hits"])] for row in rows])
    season = np.array([[int(row["SeasonAt-Bats"]), int(row["SeasonHits"])] for row in rows])
    return {"train": (early, names), "test": (season, names)}


def lynxhare() -> Arrays:
    """Years, and pelts of hares and lynxes."""
    rows = np.loadtxt(data_path("pyro_datasets/LynxHare.txt"))
    return {"train": (rows[:, 0].astype(int), rows[:, 1:])}


def ucbadmit() -> Arrays:
    """Admissions to the six largest departments of Berkeley in 1973 (Bickel, Hammel and O'Connell, Science 187, 1975)."""
    applied = np.array([[825, 108], [560, 25], [325, 593], [417, 375], [191, 393], [373, 341]])
    admitted = np.array([[512, 89], [353, 17], [120, 202], [138, 131], [53, 94], [22, 24]])
    department = np.repeat(np.arange(6), 2)
    male = np.tile([True, False], 6)
    return {"train": (department, male, applied.ravel(), admitted.ravel())}


def dipper_vole() -> Arrays:
    """Capture histories of 294 dippers in seven years, and of 171 voles in six months, made by chance; and a sex."""
    rng = np.random.default_rng(0)

    def histories(animals: int, times: int, survival: float, caught: float) -> np.ndarray:
        first = rng.integers(0, times, animals)
        first[0] = 0
        alive = np.ones(animals, bool)
        seen = np.zeros((animals, times), int)
        for t in range(times):
            alive &= (t <= first) | (rng.random(animals) < survival)
            seen[:, t] = np.where(t == first, 1, (t > first) & alive & (rng.random(animals) < caught))
        return seen

    return {
        "dipper": (histories(294, 7, 0.56, 0.9), rng.integers(0, 2, 294)),
        "vole": (histories(171, 6, 0.9, 0.9),),
    }


def jsb_chorales() -> Arrays:
    """229 sequences of up to 129 chords over 51 of 88 notes, from a hidden Markov chain of 16 states."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(25, 130, 229)
    follows = rng.dirichlet(np.full(16, 0.3), 16)
    sounds = np.where(np.arange(88) < 51, rng.beta(0.3, 3.0, (16, 88)), 0.0)
    notes = np.zeros((229, 129, 88), int)
    for row, length in zip(notes, lengths, strict=True):
        state = 0
        for t in range(length):
            row[t] = rng.random(88) < sounds[state]
            state = rng.choice(16, p=follows[state])
    return {"train": (lengths, notes)}


def nine_mers() -> Arrays:
    """1000 pairs of angles for each amino acid, from three clusters."""
    rng = np.random.default_rng(0)
    centres = np.array([[-1.1, -0.7], [-1.4, 2.4], [1.0, 0.6]])
    angles = centres[rng.choice(3, 1000, p=[0.5, 0.4, 0.1])] + 0.25 * rng.normal(size=(1000, 2))
    angles = (angles + np.pi) % (2 * np.pi) - np.pi
    return {letter: tuple(angles) for letter in "ACDEFGHIKLMNPQRSTVWY"}


def mortality() -> Arrays:
    """Deaths and population by 19 ages, 113 areas in 7 regions, and 14 years, made by chance."""
    rng = np.random.default_rng(0)
    ages, areas, regions, years = 19, 113, 7, 14
    region = np.sort(np.concatenate([np.arange(regions), rng.integers(0, regions, areas - regions)]))
    age, area, year = (x.ravel() for x in np.meshgrid(np.arange(ages), np.arange(areas), np.arange(years)))
    population = rng.poisson(1500, age.shape) + 50
    by_area = rng.normal(0, 0.1, areas) + rng.normal(0, 0.1, regions)[region]
    logit = np.linspace(-8, -2, ages)[age] + by_area[area] - 0.02 * year
    deaths = rng.binomial(population, 1 / (1 + np.exp(-logit)))
    return {"train": (age, region[area], area, year, deaths, population)}


# By the name that NumPyro's `load_dataset` knows them by.
NUMPYRO: dict[str, Callable[[], Arrays]] = {
    "baseball": baseball,
    "lynxhare": lynxhare,
    "ucbadmit": ucbadmit,
    "dipper_vole": dipper_vole,
    "jsb_chorales": jsb_chorales,
    "9mers": nine_mers,
    "mortality": mortality,
}


def waffle_divorce() -> Any:
    """Marriage rates, median ages and divorce rates with their errors of fifty states, made by chance."""
    import pandas

    rng = np.random.default_rng(0)
    age = rng.normal(26.0, 1.2, 50)
    marriage = 20.0 - 1.8 * (age - 26.0) + rng.normal(0, 2.5, 50)
    divorce = 9.7 - 1.0 * (age - 26.0) + rng.normal(0, 1.4, 50)
    return pandas.DataFrame(
        {
            "Location": [f"state {i}" for i in range(50)], "Loc": [f"{i:02}" for i in range(50)],
            "Population": rng.lognormal(1.3, 1.0, 50),
            "MedianAgeMarriage": age, "Marriage": marriage, "Marriage SE": rng.uniform(0.4, 3.0, 50),
            "Divorce": divorce, "Divorce SE": rng.uniform(0.3, 2.5, 50), "WaffleHouses": rng.poisson(30, 50),
            "South": rng.integers(0, 2, 50),
        }
    )  # fmt: skip


def credit() -> tuple[Any, Any]:
    """1000 applicants with 13 kinds and 7 numbers, and which of two classes they are in, made by chance."""
    import pandas

    rng = np.random.default_rng(0)
    kinds = [4, 5, 10, 5, 5, 4, 3, 4, 3, 3, 4, 2, 2]
    table = {
        f"kind {i}": np.array([f"A{k}" for k in rng.integers(0, n, 1000)], object)
        for i, n in enumerate(kinds)
    }
    table |= {f"number {i}": rng.lognormal(1.0, 0.7, 1000) for i in range(7)}
    score = np.log(table["number 0"]) + 0.3 * rng.normal(size=1000)
    # Words are Python objects, as pandas held them before its third version.
    frame = pandas.DataFrame(
        {name: pandas.Series(values, dtype=values.dtype) for name, values in table.items()}
    )
    return frame, pandas.DataFrame({"class": np.where(score < 1.3, 1, 2)})


def fish() -> Any:
    """250 groups of visitors, and how many fish they caught; two in five did not try. Made by chance."""
    import pandas

    rng = np.random.default_rng(0)
    persons = rng.integers(1, 5, 250)
    child = rng.integers(0, persons)
    camper, livebait = rng.integers(0, 2, 250), (rng.random(250) < 0.86).astype(int)
    rate = np.exp(-1.8 + 0.9 * persons - 1.3 * child + 0.8 * camper + 0.6 * livebait)
    count = np.where(rng.random(250) < 0.4, 0, rng.poisson(rate))
    columns = {
        "nofish": 0,
        "livebait": livebait,
        "camper": camper,
        "persons": persons,
        "child": child,
        "count": count,
    }
    return pandas.DataFrame(columns).astype(float)


# By the end of an address that an example gives to pandas.
FRAMES: dict[str, Callable[[], Any]] = {"WaffleDivorce.csv": waffle_divorce, "fish.dta": fish}
