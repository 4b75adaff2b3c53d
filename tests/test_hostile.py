"""Random posteriors with exact draws: the draws match the densities in each framework; the judge; the command."""

import collections
import json

import jax
import numpy as np
import pyro
import pytest
import torch
from numpyro.infer.util import log_density

from benchmarks.hostile import arrays, fits, grids, judge, mixtures, report
from benchmarks.hostile.__main__ import main, parse
from benchmarks.hostile.judge import Truth, compare
from benchmarks.hostile.kinds import KINDS, generate, order
from benchmarks.posteriordb.bars import REFINED
from pyro_dft.experimental import grouped
from pyro_dft.pyro.model import PyroProblem

TINY = grouped(
    {"train": "never", "precondition_steps": 40, "num_draws": 200, "refine_steps": 1, "restarts": 2}
)


@pytest.fixture(autouse=True)
def float64():
    """Double precision in both frameworks, put back afterwards."""
    before, x64 = torch.get_default_dtype(), jax.config.jax_enable_x64
    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)
    yield
    torch.set_default_dtype(before)
    jax.config.update("jax_enable_x64", x64)


def cells(kind):
    """Seeds of a kind that meet each style in each dimension."""
    return range(len(KINDS[kind].styles) * len(KINDS[kind].dims))


def pyro_problem(posterior):
    """A model as the library reads it."""
    options, arguments = posterior.problem("pyro")
    return PyroProblem(options["model"], arguments, {})


def scores(posterior, x):
    """Gradients of the log density at points (n, d)."""
    points = torch.tensor(x)
    if posterior.model is None:  # its density takes many points at once
        points.requires_grad_()
        return -torch.autograd.grad(posterior.bare("pyro")({"x": points}).sum(), points)[0].numpy()
    problem = pyro_problem(posterior)
    with problem.context():
        return -torch.func.vmap(torch.func.grad(problem.potential))(points).numpy()


class TestPosteriors:
    @pytest.mark.parametrize("kind", KINDS)
    def test_exact_draws_satisfy_the_stein_identities_of_the_density(self, kind):
        """E[s] = 0 and E[s_i z_j] = -(i = j) for the score s of whitened coordinates z."""
        n = 4000
        for seed in cells(kind):
            posterior = generate(kind, seed)
            x = posterior.draw(np.random.default_rng(1), n)
            assert x.shape == (n, posterior.dim)
            # Ranks do not need a covariance, which some of the densities lack.
            width = np.subtract(*np.quantile(x, [0.84, 0.16], axis=0)) / 2
            factor = np.linalg.cholesky(np.cov(x.T) + 1e-9 * np.diag(width**2))
            z = np.linalg.solve(factor, (x - np.median(x, 0)).T).T
            s = scores(posterior, x) @ factor
            products = s[:, :, None] * z[:, None] + np.eye(posterior.dim)
            for values in (s, products.reshape(n, -1)):
                error = values.std(0) / np.sqrt(n)
                # 20,000 comparisons in all kinds together.
                assert (np.abs(values.mean(0)) / error).max() < 5.5, (posterior.what, seed)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_frameworks_have_one_density(self, kind):
        for seed in range(len(KINDS[kind].styles)):
            posterior = generate(kind, seed)
            x = posterior.draw(np.random.default_rng(2), 4)
            if posterior.model is None:
                in_numpy = posterior.bare("numpy")({"x": x})
                in_jax = jax.jit(posterior.bare("numpyro"))({"x": x})
                in_torch = posterior.bare("pyro")({"x": torch.tensor(x)})
                np.testing.assert_allclose(in_jax, in_numpy, rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(in_torch, in_numpy, rtol=1e-9, atol=1e-9)
                continue
            values = {
                name: value[0] for name, value in pyro_problem(posterior).constrain(torch.tensor(x)).items()
            }
            (twin, tensors), (model, args) = (
                (options["model"], arguments)
                for options, arguments in map(posterior.problem, ("pyro", "numpyro"))
            )
            conditioned = pyro.condition(twin, data=values)
            in_torch = float(pyro.poutine.trace(conditioned).get_trace(*tensors).log_prob_sum())
            values = {name: value.numpy() for name, value in values.items()}
            in_jax = jax.jit(lambda args, values, model=model: log_density(model, args, {}, values)[0])(
                args, values
            )
            assert float(in_jax) == pytest.approx(in_torch, rel=1e-9)

    def test_components_hold_their_weights(self):
        """Stein's identities hold within each mode, whatever its weight."""
        n = 20_000
        for seed in range(8):
            posterior = generate("mixtures", seed)
            x = posterior.draw(np.random.default_rng(3), n)
            logits = mixtures.components(arrays.namespace("numpy"), x, posterior.parameters)
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            weights = np.exp(posterior.parameters["log_weights"])
            error = np.maximum(shares.std(0), 1e-12) / np.sqrt(n)
            assert (np.abs(shares.mean(0) - weights) / error).max() < 4.5

    def test_a_grid_gives_the_draws_of_its_density(self):
        grid = np.linspace(-8, 8, 2001)
        x = grids.inverse_cdf(np.random.default_rng(4), 100_000, grid, -0.5 * grid**2)
        expected = np.array([-1.6449, -0.6745, 0.0, 0.6745, 1.6449])
        found = np.quantile(x, [0.05, 0.25, 0.5, 0.75, 0.95])
        # The largest standard error is 0.0067, of the outer points.
        np.testing.assert_allclose(found, expected, atol=0.027)

    def test_any_prefix_is_balanced_and_each_cell_is_met(self):
        for count in (5, 40):
            met = collections.Counter(kind for kind, _ in order(count))
            assert max(met.values()) - min(met.values() if count >= len(KINDS) else (1,)) <= 1
        for kind, family in KINDS.items():
            found = {(s % len(family.styles), generate(kind, s).dim) for s in cells(kind)}
            assert found == {(i, d) for i in range(len(family.styles)) for d in family.dims}

    def test_the_same_seed_gives_the_same_posterior(self):
        settings = {"num_draws": 200}
        keys = [fits.key("maps", seed, "pyro", settings) for seed in (3, 3, 19)]
        assert keys[0] == keys[1] != keys[2]
        assert fits.key("maps", 3, "numpyro", settings) != keys[0]
        assert fits.key("maps", 3, "pyro", settings, "another state") != keys[0]


def normal(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


class TestJudge:
    @pytest.mark.parametrize("kind", KINDS)
    def test_exact_draws_are_good(self, kind):
        for seed in range(3):
            posterior = generate(kind, seed)
            truth = Truth(posterior.draw(np.random.default_rng(5), 20_000))
            found = compare(posterior.draw(np.random.default_rng(6), 4000), truth)
            assert found.quality == "good"
            assert np.isfinite(found.error).all()

    def test_noise_covers_all_errors_of_exact_draws_as_often_as_it_says(self):
        truth, trials = Truth(normal(50_000)), 300
        found = [compare(normal(500, seed=i + 1), truth) for i in range(trials)]
        missed = sum((np.abs(c.error) > c.noise).any() for c in found)
        # The statistics are correlated, so that fewer than 5 % is right; four standard errors above it is not.
        assert 0 < missed < judge.CHANCE * trials + 4 * np.sqrt(judge.CHANCE * trials)

    @pytest.mark.parametrize(
        ("shift", "scale", "quality", "where"),
        [
            (0.03, 1.0, "good", None), (0.16, 1.0, "off", "mean of 1"), (0.3, 1.0, "bad", "mean of 1"),
            (0.0, 1.11, "off", "sd of 1"), (0.0, 0.8, "bad", "sd of 1"),
        ],
    )  # fmt: skip
    def test_errors_beyond_the_noise_count(self, shift, scale, quality, where):
        truth, x = Truth(normal(100_000)), normal(16_000, seed=1)
        x[:, 1] = shift + scale * x[:, 1]
        found = compare(x, truth)
        assert found.quality == quality
        assert where is None or found.worst()["where"] == where
        assert REFINED.holds(found.row(net=True)) == (quality == "good")

    def test_a_tail_alone_is_enough(self):
        x = normal(16_000, seed=1)
        low = x[:, 0] < -1.2
        x[low, 0] = -1.2 - 0.4 * (-1.2 - x[low, 0])
        found = compare(x, Truth(normal(100_000)))
        assert found.quality != "good"
        assert found.error[2, 0] > REFINED.quantile + found.noise[2, 0]
        # The mean is off by 0.04 sd, and the other end by noise alone: 0.017 is its standard error.
        assert found.error[0, 0] < REFINED.mean
        assert abs(found.error[4, 0]) < 0.07

    def test_few_draws_leave_it_open(self):
        truth, x = Truth(normal(100_000)), 0.12 + normal(1000, seed=1)
        found = compare(x, truth)
        assert found.quality == "good"
        assert found.undecided
        assert not compare(x + 1.0, truth).undecided

    def test_heavy_tails_are_judged_by_their_points(self):
        def draw(seed, n):
            rng = np.random.default_rng(seed)
            return np.column_stack([rng.standard_t(2, n), rng.normal(size=n)])

        truth, x = Truth(draw(1, 100_000)), draw(2, 16_000)
        assert truth.heavy.tolist() == [True, False]
        assert not Truth(truth.draws**3).gaps.any()  # a tail is no gap, however heavy
        assert truth.unit[0] == pytest.approx(2 * 2.92 / 3.2897, rel=0.02)  # t(2) has its 95 % point at 2.92
        assert compare(x, truth).quality == "good"
        assert compare(1.3 * x, truth).quality == "bad"

    @pytest.mark.parametrize(("weight", "quality"), [(0.51, "good"), (0.65, "bad")])
    def test_a_median_between_modes_says_nothing(self, weight, quality):
        def draw(weight, n, seed):
            rng = np.random.default_rng(seed)
            return np.column_stack([10 * (rng.uniform(size=n) < weight), np.zeros(n)]) + rng.normal(
                size=(n, 2)
            )

        truth = Truth(draw(0.5, 100_000, 1))
        assert truth.gaps.tolist() == [[False, False], [True, False], [False, False]]
        assert compare(draw(weight, 16_000, 2), truth).quality == quality

    def test_a_missing_mode_and_draws_that_are_not_finite_are_bad(self):
        posterior = generate("mixtures", 0)
        truth = Truth(posterior.draw(np.random.default_rng(7), 50_000))
        x = posterior.draw(np.random.default_rng(8), 4000)
        one = mixtures.components(arrays.namespace("numpy"), x, posterior.parameters).argmax(1)
        assert compare(x[one == one[0]], truth).quality == "bad"
        x[5] = np.nan
        assert compare(x, truth).quality == "bad"
        assert compare(np.full_like(x, np.nan), truth).quality == "bad"


def made_up(name, quality, status, alarms=()):
    kind, seed = name.split("-")
    return {
        "name": name, "kind": kind, "seed": int(seed), "d": 3, "what": "made up", "quality": quality, "status": status,
        "alarms": list(alarms), "seconds": 2.0, "gradients": 1e5, "code": "now", "worst_mean": 0.1, "sd_low": 0.9,
        "sd_high": 1.1, "worst_quantile": 0.2, "where": "mean of 0", "bars": 1.2, "sure_bars": 1.1, "judged_by": 4000,
    }  # fmt: skip


def test_counts_and_limits_are_those_of_the_rows(tmp_path):
    rows = [made_up(f"maps-{i}", "good", "converged") for i in range(57)]
    rows += [made_up("maps-57", "bad", "converged"), made_up("maps-58", "off", "converged")]
    rows += [
        made_up("tails-0", "good", "suspect", ["gap"]),
        made_up("tails-1", "bad", "failed", ["gap", "drift"]),
    ]
    rows.append(made_up("rings-0", "raised", "raised") | {"reason": "ModelError: no"})
    every = report.lines(rows)[-1]
    assert (every["fits"], every["converged"], every["silent_off"], every["good"]) == (62, 59, 2, 58)
    # Clopper and Pearson: the rate at which one or none of 59 (of 58) is seen in 5 % of cases.
    assert every["silent_bad"] == "1 of 59 (<= 7.8%)"
    assert every["false"] == "1 of 58 (<= 7.9%)"
    assert every["alarms"] == "gap 2, drift 1"
    text = report.write(rows, "the command", "now", tmp_path / "hostile_pyro")
    assert "1 of 59" in text
    page = (tmp_path / "hostile_pyro.md").read_text()
    assert "| gap | 1 | 0 | 1 |" in page
    bad = page.split("## Converged and off by twice a bar")[1].split("##")[0]
    assert "maps-57" in bad
    assert "maps-58" not in bad
    assert "rings-0 raised ModelError" in page


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_the_command_writes_a_table_and_resumes(backend, tmp_path, capsys):
    asked = ["--backend", backend, "--kinds", "conjugate", "--fits"]
    main([*asked, "1"], tmp_path, TINY)
    first = capsys.readouterr().out
    assert "conjugate-0 (3-D regression, known noise, 6 rows): " in first
    rows = json.loads((tmp_path / f"hostile_{backend}.json").read_text())
    assert rows["conjugate-0"]["judged_by"] in (200, fits.MORE_DRAWS)
    assert np.shape(rows["conjugate-0"]["error"]) == (5, 3)
    assert "| conjugate models | 3 | 1 |" in (tmp_path / f"hostile_{backend}.md").read_text()
    main([*asked, "1"], tmp_path, TINY)
    assert "conjugate-0" not in capsys.readouterr().out  # nothing is made twice
    main(["--backend", backend, "--only", "conjugate-0"], tmp_path, TINY)
    assert "errors in bars" in capsys.readouterr().out


def test_names_that_are_none_are_refused(capsys):
    for wrong in (["--kinds", "maps,cones"], ["--only", "maps"]):
        with pytest.raises(SystemExit):
            parse(wrong)
    assert "cones" in capsys.readouterr().err
