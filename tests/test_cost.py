"""The pure parts of the cost benchmark, and that its models can be run."""

from __future__ import annotations

import json

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
import pytest
import torch
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.infer.util import log_density
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from benchmarks.cost import __main__ as command
from benchmarks.cost import accuracy, exact, report, scaling, targets, truth, worker
from benchmarks.cost.accuracy import Reference, Summary
from benchmarks.cost.counting import counting_nuts

# Compiling takes seconds for each: a few models here, all in `make test-all`.
QUICK = ("rows_1000", "logistic_500", "cjs_1")
DENSITIES = [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in targets.TARGETS]
IN_PYRO = [n for n, t in targets.TARGETS.items() if "pyro" in t.frameworks]


def known(mean, sd) -> Reference:
    """A Gaussian: Var(x^2) = 2 sd^4 + 4 mean^2 sd^2."""
    mean, sd = np.asarray(mean, float), np.asarray(sd, float)
    quantiles = mean + np.multiply.outer([-1.645, 0.0, 1.645], sd)
    return Reference(mean, sd, quantiles, np.sqrt(2 * sd**4 + 4 * mean**2 * sd**2), ("x",), {})


def test_b2_is_squared_bias_over_variance():
    reference = known([0.0, 3.0, 7.0], [1.0, 2.0, 0.0])  # the last one is a constant, and left out
    means = np.array([[0.0, 3.0, 8.0], [0.1, 3.4, 7.0]])
    squares = np.array([[1.0, 13.0, 49.0], [1.2, 13.0, 0.0]])
    first, second = accuracy.b2(means, squares, reference)
    np.testing.assert_allclose(first, [0.0, 0.04])  # (0.4 / 2)^2
    np.testing.assert_allclose(second, [0.0, 0.02])  # 0.2^2 / 2


@pytest.mark.parametrize(
    ("worst", "share"),
    [
        ([0.5, 0.005, 0.02, 0.003], 1.0),
        ([0.5, 0.009, 0.002, 0.003], 0.25),
        ([0.1] * 4, None),
        ([0.001] * 4, 0.1),
    ],
)
def test_share_from_which_on_the_limit_is_kept(worst, share):
    assert accuracy.share_to(np.array(worst), np.array([0.1, 0.25, 0.5, 1.0])) == share


def test_a_nan_does_not_keep_the_limit():
    assert accuracy.share_to(np.array([np.nan]), np.array([1.0])) is None


def test_summary_holds_running_means_over_all_chains():
    chains = np.random.default_rng(0).normal(2.0, 3.0, (3, 40, 2))
    summary = Summary.of(chains, np.array([0.1, 0.5, 1.0]))
    np.testing.assert_allclose(summary.shares, [0.1, 0.5, 1.0])
    for i, n in enumerate((4, 20, 40)):
        np.testing.assert_allclose(summary.means[i], chains[:, :n].mean((0, 1)))
        np.testing.assert_allclose(summary.squares[i], (chains[:, :n] ** 2).mean((0, 1)))
    np.testing.assert_allclose(summary.sd, chains.std((0, 1)))


def test_summary_leaves_out_what_is_not_finite(tmp_path):
    chains = np.random.default_rng(0).normal(size=(2, 10, 3))
    broken = chains.copy()
    broken[1, 9, 0] = np.nan
    Summary.of(broken).save(tmp_path / "s.npz")
    kept = Summary.load(tmp_path / "s.npz")
    assert kept.non_finite == 1
    np.testing.assert_allclose(kept.means[-1], chains.reshape(-1, 3)[:19].mean(0))
    with pytest.raises(ValueError, match="fewer than two"):
        Summary.of(np.full((1, 5, 2), np.inf))


def test_errors_are_in_sds():
    summary = Summary.of(np.random.default_rng(0).normal(size=(1, 100_000, 1)) * 2.0 + 1.0)
    row = accuracy.errors(summary, known([1.4], [2.5]))
    # Monte Carlo sds: of the mean .003 reference sds, of the sd ratio .002, of an outer quantile .007.
    assert row["worst_mean"] == pytest.approx(0.4 / 2.5, abs=0.012)
    assert row["sd_low"] == row["sd_high"] == pytest.approx(0.8, abs=0.008)
    assert row["worst_quantile"] == pytest.approx(0.4 / 2.5 + 1.645 * 0.2, abs=0.03)
    assert row["b2_mean"] == pytest.approx(0.16**2, abs=0.004)
    assert row["share_to_b2"] is None


def test_gradients_to_the_limit_hold_the_warm_up():
    row = {"share_to_b2": 0.25, "gradients": 1000.0, "warm_gradients": 600.0}
    assert accuracy.gradients_to_b2(row) == 700.0
    assert accuracy.gradients_to_b2(row | {"share_to_b2": None}) is None


def test_a_reference_comes_back(tmp_path, monkeypatch):
    draws = np.random.default_rng(0).normal([0.0, 1e3], [1.0, 5.0], (2000, 2))
    made = Reference.of(draws, ["a", "b"], {"draws": 2000})
    monkeypatch.setattr(truth, "FOLDER", tmp_path)
    target = targets.TARGETS["gp"]
    truth.store(made, truth.path(target))
    found = truth.load(target)
    np.testing.assert_allclose(found.mean, made.mean, rtol=1e-6)
    np.testing.assert_allclose(found.square_sd, made.square_sd, rtol=1e-6)
    assert (np.abs(found.quantiles - made.quantiles) / made.sd).max() < 1e-3
    assert (found.sites, found.meta) == (("a", "b"), {"draws": 2000})


def test_exact_draws_of_the_regression():
    """Stein: the mean of every score is zero, and of score times coordinate minus one."""
    x, y = targets.data.regression(40)
    n = 100_000
    draws = exact.regression((x, y), n, np.random.default_rng(0))
    u = np.stack([draws["a"], draws["b"], np.log(draws["sigma"])], axis=1)

    def log_p(u):
        a, b, log_sigma = u
        sigma = jax.numpy.exp(log_sigma)
        prior = -(a**2 + b**2) / 200.0 - sigma**2 / 50.0 + log_sigma
        return prior - 0.5 * (((y - a - b * x) / sigma) ** 2).sum() - len(y) * log_sigma

    score = np.asarray(jax.vmap(jax.grad(log_p))(u), float)
    for values, expected in ((score, 0.0), (score * (u - u.mean(0)), -1.0)):
        error = (values.mean(0) - expected) / (values.std(0) / np.sqrt(n))
        assert (np.abs(error) < 4.0).all()


@pytest.mark.parametrize("name", DENSITIES)
def test_the_log_joint_is_finite_at_a_prior_draw(name):
    model, args = targets.TARGETS[name].numpyro()
    value = jax.jit(lambda key: log_density(handlers.seed(model, key), args, {}, {})[0])
    assert np.isfinite(float(value(jax.random.PRNGKey(1))))


def test_every_model_can_be_traced():
    sizes = {n: sum(t.sites("numpyro").values()) for n, t in targets.TARGETS.items()}
    assert all(size > 0 for size in sizes.values())
    expected = {"groups_5000": 5003, "irt_2000": 2042, "stochastic_volatility": 2519, "hmm": 33, "gmm": 4}
    assert {n: sizes[n] for n in expected} == expected


@pytest.mark.parametrize("name", IN_PYRO)
def test_pyro_models_have_the_same_sites_and_are_finite(name):
    target = targets.TARGETS[name]
    model, args = target.pyro()
    pyro.set_rng_seed(0)
    assert torch.isfinite(poutine.trace(model).get_trace(*args).log_prob_sum())
    assert target.sites("pyro") == target.sites("numpyro")


@pytest.mark.parametrize("name", ["gmm", "flips", "sir", "gp", "local_level"])
def test_both_frameworks_have_the_same_density(name):
    target = targets.TARGETS[name]
    model, args = target.numpyro()
    twin, tensors = target.pyro()
    ours = jax.jit(lambda values: log_density(handlers.seed(model, rng_seed=0), args, {}, values)[0])
    found = []
    for seed in (1, 2):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(twin).get_trace(*tensors)
        # Plates are nodes as well.
        latent = [n for n in trace.stochastic_nodes if not site_is_subsample(trace.nodes[n])]
        values = {n: trace.nodes[n]["value"].numpy() for n in latent}
        assert float(ours(values)) == pytest.approx(float(trace.log_prob_sum()), rel=2e-4)
        found.append(float(ours(values)))
    assert found[0] != found[1]


def test_all_leapfrog_steps_are_counted():
    def model():
        numpyro.sample("x", dist.Normal(np.zeros(3), 1.0).to_event(1))

    mcmc = MCMC(counting_nuts(model), num_warmup=30, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0), extra_fields=("num_steps", "total_steps"))
    extra = mcmc.get_extra_fields()
    np.testing.assert_array_equal(np.diff(extra["total_steps"]), extra["num_steps"][1:])
    assert extra["total_steps"][0] - extra["num_steps"][0] >= 30


def test_a_cell_that_hits_its_limit_says_so(tmp_path):
    row = worker.run_cell("gp", "nuts", "numpyro", tmp_path, limit=1)
    assert row["said"] == "stopped after 1 CPU s"
    assert row["flagged"]
    assert 0.5 < row["process_seconds"] < 5.0
    assert json.loads((tmp_path / "row.json").read_text())["said"] == row["said"]


def test_a_process_that_dies_leaves_its_last_words(tmp_path):
    (tmp_path / "log.txt").write_text("Traceback\nKeyError: 'x'\n")
    assert worker._ended_badly(1, "", tmp_path)["said"] == "ended with KeyError: 'x'"
    (tmp_path / "log.txt").write_text("")
    assert worker._ended_badly(-9, "", tmp_path)["said"] == "ended with status -9"


def test_which_cells_are_done():
    assert not command._done({}, "k", 10)
    assert command._done({"key": "k", "seconds": 1.0, "said": "converged", "limit": 5}, "k", 10)
    stopped = {"key": "k", "said": "stopped after 10 CPU s", "limit": 10}
    assert command._done(stopped, "k", 10)
    assert not command._done(stopped, "k", 11)
    assert not command._done(stopped, "other", 10)


def test_the_command_line():
    assert command.parse(["rows_1000"]).names == ["rows_1000"]
    assert len(command.parse(["rows_"]).names) == 4
    assert command.parse(["--backend", "pyro"]).names == IN_PYRO
    assert command.parse(["--scaling", "--largest", "30"]).names == ["scaled_d_10", "scaled_d_30"]
    for wrong in (["--methods", "nuts,hmc"], ["no_such_model"]):
        with pytest.raises(SystemExit):
            command.parse(wrong)


def test_scaled_targets():
    assert sum(targets.scaled("scaled_d_30").sites("numpyro").values()) == 30
    assert len(targets.scaled("scaled_rows_100").make()[0]) == 100
    with pytest.raises(KeyError):
        targets.scaled("scaled_e_30")


def table_rows():
    row = {"model": "m", "group": "rows", "d": 3, "worst_mean": 0.01, "sd_low": 0.99, "sd_high": 1.01}
    row |= {"worst_quantile": 0.02, "worst_b2": 1e-3, "flagged": False, "said": "", "share_to_b2": 1.0}
    yield row | {"method": "nuts", "gradients": 100.0, "seconds": 10.0, "compile_share": 0.5}
    yield row | {"method": "dft", "gradients": 50.0, "seconds": 2.0, "compile_share": 0.5}
    yield row | {"method": "mams", "gradients": 40.0, "seconds": 4.0, "compile_share": None}
    # Cheaper, but it does not reach the accuracy.
    yield row | {"method": "meads", "gradients": 4.0, "seconds": 0.4, "worst_b2": 0.5, "share_to_b2": None}
    yield {
        "model": "n",
        "group": "rows",
        "d": 3,
        "method": "dft",
        "said": "stopped after 9 CPU s",
        "flagged": True,
    }


def test_the_table_compares_with_nuts_and_with_the_best_of_the_others():
    done = {(r["model"], r["method"]): r for r in report.complete(list(table_rows()))}
    assert done["m", "dft"]["gradient_ratio"] == 0.5
    assert done["m", "dft"]["ratio"] == 0.2
    assert done["m", "nuts"]["running"] == 5.0
    assert done["n", "dft"]["bar"] is None
    said = "\n".join(report.summary(list(done.values())))
    assert "dft: 1 of 1 within the bar, 1 with worst b2 < 0.01; not finished: n" in said
    assert "(gradients to b2): median 1.25, ahead on 0 of 1" in said
    assert "(CPU s): median 0.50, ahead on 1 of 1" in said


def test_the_picture(tmp_path):
    rows = [
        {"model": f"scaled_{kind}_{n}", "method": m, "gradients": 10.0 * n, "seconds": 1.0}
        for kind, n in (("d", 100), ("d", 10), ("rows", 1000))
        for m in ("nuts", "dft")
    ]
    assert scaling.points(rows, "d", "dft", "gradients") == ([10, 100], [100.0, 1000.0])
    scaling.draw(rows, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_a_picture_of_nothing(tmp_path):
    scaling.draw([{"model": "scaled_d_10", "method": "nuts", "said": "stopped"}], tmp_path / "cost.png")
    assert (tmp_path / "cost.png").exists()


def test_returns_are_simulated_where_the_file_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_DFT_DATA", str(tmp_path))
    (found,) = targets.data.returns()
    np.testing.assert_array_equal(found, targets.data.simulated_returns())
    assert found.shape == (2517,)
