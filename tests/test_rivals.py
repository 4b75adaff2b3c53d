"""The commands on other methods and on seeds: rows, cells and tables from methods that cost nothing."""

import json

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from benchmarks import table
from benchmarks.posteriordb import bars, rivals, seeds
from benchmarks.references import QUANTILES, Reference

pytestmark = pytest.mark.usefixtures("compiled_programs_stay")

DRAWS = np.random.default_rng(0).normal(size=(4000, 1))


def gaussian():
    numpyro.sample("x", dist.Normal(0.0, 1.0))


class Small:
    """A case whose posterior is a unit Gaussian."""

    name = "small"

    def numpyro(self):
        return gaussian, ()

    def flat(self, samples):
        return np.asarray(samples["x"]).reshape(-1, 1)


def truth():
    none = np.empty((0, 1))
    return Reference(
        names=["x"],
        mean=DRAWS.mean(0),
        sd=DRAWS.std(0),
        quantiles=np.quantile(DRAWS, QUANTILES, axis=0),
        covariance=np.atleast_2d(np.cov(DRAWS.T)),
        draws=DRAWS,
        floor=none,
        rhat=none,
        ess=none,
        meta={},
    )


def exact(model, args, settings):
    return {"x": DRAWS[:, 0] + settings["shift"]}, "fine"


def raising(model, args, settings):
    raise RuntimeError("no start")


def infinite(model, args, settings):
    return {"x": np.full(10, np.nan)}, "loss nan"


@pytest.mark.slow
def test_errors_of_a_method_are_those_of_its_draws():
    row = rivals.measure(Small(), truth(), exact, {"shift": 0.5}, "fake")
    assert row["method"] == "fake"
    assert row["draws"] == 4000
    assert row["worst_mean"] == pytest.approx(0.5 / DRAWS.std(), rel=1e-6)
    assert row["sd_low"] == pytest.approx(1.0, rel=1e-6)
    assert row["seconds"] >= 0


@pytest.mark.parametrize(
    ("method", "words"), [(raising, "RuntimeError: no start"), (infinite, "no finite draws")]
)
def test_a_method_that_fails_has_a_row_without_errors(method, words):
    row = rivals.measure(Small(), truth(), method, {}, "fake")
    assert words in row["said"]
    assert "worst_mean" not in row
    assert bars.judged([row])[0]["bar"] == "no"
    assert " - " in table.markdown([row], rivals.COLUMNS)


@pytest.mark.slow
def test_a_guide_on_one_dimension_has_finite_errors():
    settings = {"steps": 20, "lr": 1e-2, "draws": 200, "seed": 0}
    run = rivals.METHODS["AutoMultivariateNormal"]
    row = rivals.measure(Small(), truth(), run, settings, "AutoMultivariateNormal")
    assert row["draws"] == 200
    assert np.isfinite([row["worst_mean"], row["sd_low"], row["sd_high"], row["sliced_w2"]]).all()
    assert row["said"].startswith("loss ")


def test_a_cell_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"method": "fake", "seconds": float(len(made))}

    assert rivals.kept(tmp_path / "cell", make) == {"method": "fake", "seconds": 1.0}
    assert rivals.kept(tmp_path / "cell", make)["seconds"] == 1.0
    assert rivals.kept(tmp_path / "cell", make, fresh=True)["seconds"] == 2.0


def test_rows_of_the_package_are_read_where_they_are(tmp_path):
    store = tmp_path / "rows.json"
    assert rivals.our_rows("a", store) == []
    store.write_text(
        json.dumps({"a/dft-raw": {"method": "dft-raw", "facts": {}}, "b/nuts": {"method": "nuts"}})
    )
    assert rivals.our_rows("a", store) == [{"method": "dft-raw", "draws": rivals.NUM_DRAWS}]


def test_every_method_has_settings_and_is_described():
    assert set(rivals.METHODS) == set(rivals.SETTINGS)
    assert all(any(method.split(" (")[0] in note for note in rivals.notes()) for method in rivals.METHODS)


def test_equal_bits_have_equal_digests():
    draws = {"x": DRAWS, "y": DRAWS[:, 0]}
    assert seeds.digest(draws) == seeds.digest(dict(reversed(draws.items())))
    assert seeds.digest(draws) != seeds.digest({**draws, "x": np.nextafter(DRAWS, 9.0)})
    assert seeds.digest({"x": DRAWS}) != seeds.digest({"x": DRAWS.astype(np.float32)})


def row_of(seed, repeat, error, bits="a", kind="raw"):
    numbers = dict.fromkeys(seeds.NUMBERS, 1.0) | {"worst_mean": error}
    base = {"model": "m", "d": 1, "kind": kind, "seed": seed, "repeat": repeat, "status": "converged"}
    return base | {"code": "0", "digest": bits} | numbers


def test_seeds_are_merged_to_mean_and_range_without_the_repeat(tmp_path):
    rows = [row_of(0, 0, 0.1), row_of(0, 1, 0.9), row_of(1, 0, 0.3)]
    merged = seeds.merged(rows)
    assert merged["worst_mean"] == pytest.approx((0.2, 0.1, 0.3))
    assert merged["seeds"] == 2
    assert merged["status"] == "2 converged"
    assert merged["same"] is True
    assert seeds.merged([row_of(0, 0, 0.1), row_of(0, 1, 0.1, "b")])["same"] is False
    assert seeds.merged([row_of(0, 0, 0.1)])["same"] is None
    text = seeds.write(rows, tmp_path / "seeds")
    assert "0.200 (0.100 to 0.300)" in text
    assert "earlier state" in text
    assert len((tmp_path / "seeds.csv").read_text().splitlines()) == 4
