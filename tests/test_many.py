"""Many posteriors at once: each is right and says so, whoever else is there, in whichever form its data came."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from backends import BACKENDS

from pyro_dft.errors import FidelityWarning, ModelError, NotFittedError, SettingsError

FAST = {"disable_progbar": True, "num_draws": 500, "seed": 4, "train": "never"}
SETS, ROWS = 24, 5


def stack_of(sets=SETS, rows=ROWS):
    rng = np.random.default_rng(3)
    return rng.normal(rng.normal(0.0, 3.0, (sets, 1)), 1.0, (sets, rows)).astype(np.float32)


def exact(y):
    """Mean and sd of `mu` in the model `known_mean`."""
    precision = 0.01 + len(y)
    return float(y.sum()) / precision, precision**-0.5


def masked_model(backend):
    """The mean of rows of which some are padding."""
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y, mask):
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        with ppl.plate("data", len(y)):
            local = ppl.sample("local", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(mu + 0.0 * local, 1.0).mask(mask), obs=y)

    return model


@pytest.fixture(scope="module", params=BACKENDS, ids=str)
def case(request):
    """Conjugate posteriors, one of which has data that cannot be used."""
    backend, y = request.param, stack_of()
    y[7, 2] = np.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = backend.package.fit_many(backend.models.known_mean, y, **FAST)
    told = [str(w.message) for w in caught if issubclass(w.category, FidelityWarning)]
    return SimpleNamespace(backend=backend, y=y, fits=fits, told=told)


def test_all_good_ones_converge_and_the_bad_one_is_named(case):
    assert case.fits.counts == {"converged": SETS - 1, "suspect": 0, "failed": 1}
    assert list(case.fits.failed()) == [7]
    assert "'y'" in case.fits.failed()[7][0]
    (told,) = case.told
    assert "1 of 24 posteriors" in told
    assert "Posterior 7" in told
    assert "'y'" in told
    with pytest.raises(NotFittedError, match="posterior 7"):
        case.fits.get_samples(7)
    with pytest.raises(IndexError, match="24"):
        case.fits.get_samples(40)


def test_means_sds_and_tails_are_those_of_the_exact_posteriors(case):
    z_mean, z_sd, beyond = [], [], []
    for i in range(SETS):
        if i == 7:
            continue
        draws, (mean, sd) = case.fits.get_samples(i)["mu"].astype(float), exact(case.y[i])
        count = min(len(draws), case.fits.diagnostics(i)["ensemble"]["ess"])
        z = (draws - mean) / sd
        z_mean.append(z.mean() * math.sqrt(count))
        z_sd.append(math.log(z.std()) * math.sqrt(2 * count))
        beyond.append([(z < -1.645).mean(), (z > 1.645).mean()])
    z_mean, z_sd = np.array(z_mean), np.array(z_sd)
    n = len(z_mean)
    # Effective draws are those of the worst feature: sizes are standard normal at most, and at 1e-4 none of them passes this.
    assert np.abs(z_mean).max() < 4.7
    assert np.abs(z_sd).max() < 4.7
    # Their mean squares are chi2_n / n at most, whose sd is sqrt(2 / n); their means have the sd n^-1/2.
    assert np.square(z_mean).mean() < 1 + 3.7 * math.sqrt(2 / n)
    assert np.square(z_sd).mean() < 1 + 3.7 * math.sqrt(2 / n)
    assert abs(z_mean.mean()) < 3.7 * n**-0.5
    assert abs(z_sd.mean()) < 3.7 * n**-0.5
    # Of 23 x 300 effective draws 5 % are beyond each point: the share's sd is .002.
    assert np.abs(np.mean(beyond, 0) - 0.05).max() < 3.7 * math.sqrt(0.05 * 0.95 / (n * 300))


@pytest.mark.filterwarnings("ignore::pyro_dft.errors.FidelityWarning")
def test_a_posterior_does_not_depend_on_the_others(case):
    whole = case.y.copy()
    whole[7, 2], whole[0, 0] = 0.0, np.nan
    fits = case.backend.package.fit_many(case.backend.models.known_mean, whole[:12], **FAST)
    # The same random numbers; a batch of another size may round the last digit in another way.
    for i in (1, 6, 8):
        a, b = (own.get_samples(i)["mu"] for own in (case.fits, fits))
        assert np.median(np.abs(a - b)) < 1e-4
    assert fits.status[7] == "converged"
    assert list(fits.failed()) == [0]


def test_verdict_and_draws_are_those_of_a_run_by_itself(case):
    dft = case.backend.DFT(case.backend.models.known_mean, num_draws=500, disable_progbar=True, seed=1)
    case.backend.run(dft, case.backend.array(case.y[0]))
    draws, own = np.asarray(dft.get_samples()["mu"], float), case.fits.get_samples(0)["mu"].astype(float)
    assert dft.diagnostics()["status"] == case.fits.status[0]
    assert draws.shape == own.shape
    # Two samples of some 300 effective draws each.
    assert abs(draws.mean() - own.mean()) < 4 * own.std() * math.sqrt(2 / 300)
    assert abs(math.log(draws.std() / own.std())) < 4 * math.sqrt(1 / 300)
    assert case.fits.diagnostics(0).keys() == dft.diagnostics().to_json().keys()


def test_results_as_a_table_a_dataset_and_arviz_data(case, tmp_path):
    table = case.fits.summary()
    assert [row["status"] for row in table.rows] == case.fits.status.tolist()
    assert table.rows[7]["alarm"] == "error"
    assert "mu mean" not in table.rows[7]
    assert table.rows[0]["mu mean"] == pytest.approx(float(case.fits.get_samples(0)["mu"].mean()), rel=1e-5)
    assert table.columns == [
        "posterior",
        "status",
        "alarm",
        "ess",
        "gradients",
        "mu mean",
        "mu std",
        "twice mean",
        "twice std",
    ]
    assert "converged" in str(table)
    assert "and 4 more" in str(table)
    table.to_csv(tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == SETS + 1
    whole = case.fits.dataset()
    assert dict(whole.sizes) == {"posterior": SETS, "chain": 1, "draw": 500}
    assert bool(np.isnan(whole["mu"].values[7]).all())
    assert not np.isnan(np.delete(whole["mu"].values, 7, 0)).any()
    assert np.array_equal(whole["twice"].values[3, 0], case.fits.get_samples(3)["twice"])
    one = case.fits.to_inference_data(3)
    assert np.array_equal(one.posterior["mu"].values, case.fits.get_samples(3, group_by_chain=True)["mu"])
    assert {"lp", "diverging", "acceptance_rate", "n_steps"} <= set(one.sample_stats.data_vars)
    assert repr(case.fits) == "<24 posteriors: 23 converged, 0 suspect, 1 failed>"


def test_ragged_data_are_padded_and_the_padding_taken_away(case):
    sets = [case.y[0], case.y[1, :3], case.y[2, :1]]
    fits = case.backend.package.fit_many(masked_model(case.backend), sets, mask="mask", **FAST)
    assert fits.counts["converged"] == 3
    for i, own in enumerate(sets):
        draws, (mean, sd) = fits.get_samples(i), exact(own)
        assert draws["local"].shape == (500, len(own))
        mu = draws["mu"].astype(float)
        assert abs(mu.mean() - mean) < 4 * sd / math.sqrt(250)
        assert abs(math.log(mu.std() / sd)) < 4 / math.sqrt(500)
    assert fits.dataset()["local"].shape == (3, 1, 500, ROWS)


def test_a_model_that_looks_at_its_data_is_fitted_one_by_one(case):
    ppl, dist = case.backend.ppl, case.backend.ppl.distributions

    def model(y, limit):
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        scale = 1.0 if float(y[0]) < limit else 2.0
        with ppl.plate("data", len(y)):
            ppl.sample("y", dist.Normal(mu, scale), obs=y)

    sets = [case.y[0], case.y[1, :4]]
    fits = case.backend.package.fit_many(model, sets, shared={"limit": 1e3}, **FAST)
    assert fits.counts["converged"] == 2
    for i, own in enumerate(sets):
        mean, sd = exact(own)
        assert abs(float(fits.get_samples(i)["mu"].mean()) - mean) < 4 * sd / math.sqrt(250)


@pytest.mark.slow
def test_separate_modes_are_found_in_each_posterior(case):
    ppl, dist = case.backend.ppl, case.backend.ppl.distributions

    def model(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 3.0))
        ppl.sample("y", dist.Normal(mu * mu, 0.5), obs=y)

    fits = case.backend.package.fit_many(model, np.array([4.0, 0.0], np.float32), **FAST)
    assert fits.status.tolist() == ["converged"] * 2
    assert fits.diagnostics(1)["modes"] is None
    assert len(fits.diagnostics(0)["modes"]["weights"]) == 2
    # Both modes have half of the mass; 500 draws.
    assert abs((fits.get_samples(0)["mu"] > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(500)


@pytest.mark.filterwarnings("ignore::pyro_dft.errors.FidelityWarning")
def test_a_hierarchy_takes_the_coordinates_that_suit_each(case):
    rng = np.random.default_rng(0)
    # Groups that do not differ at all, and by much more than the noise of a datum.
    y = np.stack([rng.normal(0.0, sd, 6) for sd in (0.2, 20.0, 0.2)]).astype(np.float32)
    fits = case.backend.package.fit_many(case.backend.models.hierarchy, y, **{**FAST, "seed": 5})
    # Necks of the first kind need non-centred coordinates; with so few groups these are as good for the other.
    assert all(fits.diagnostics(i)["coordinates"] == ["theta"] for i in (0, 2))
    assert "failed" not in fits.status
    for i in range(3):
        draws = fits.get_samples(i)
        assert draws["theta"].shape == (500, 6)
        # theta_j given the others has the mean (mu + tau^2 y_j) / (1 + tau^2), and a variance below 1.
        tau2 = draws["tau"].astype(float) ** 2
        mean = (draws["mu"][:, None] + tau2[:, None] * y[i]) / (1 + tau2[:, None])
        assert np.abs((draws["theta"] - mean).mean(0)).max() < 4 / math.sqrt(80)


def test_what_cannot_be_is_refused(case):
    fit_many, model = case.backend.package.fit_many, case.backend.models.known_mean
    with pytest.raises(ModelError, match="equally many rows"):
        fit_many(model, (case.y[:3], case.y[:2]))
    with pytest.raises(ModelError, match=r"shared=\{"):
        fit_many(model, (case.y[:3], 1.0))
    for nothing in ([], iter([]), case.y[:0]):
        with pytest.raises(ModelError, match="no data sets"):
            fit_many(model, nothing, disable_progbar=True)
    with pytest.raises(SettingsError, match="max_seconds"):
        fit_many(model, case.y, max_seconds=10.0)
    with pytest.raises(SettingsError, match="num_drows"):
        fit_many(model, case.y, num_drows=10)
    with pytest.raises(SettingsError, match="slice_size"):
        fit_many(model, case.y, slice_size=0)


def test_a_model_that_fails_fails_for_all_with_the_reason(case):
    with pytest.warns(FidelityWarning, match="2 of 2"):
        fits = case.backend.package.fit_many(case.backend.models.broken, case.y[:2], **FAST)
    assert fits.counts["failed"] == 2
    assert "after site 'mu'" in fits.failed()[0][0]
