"""Bad fits are flagged and good ones are not: the truths of the benchmark, its labels, some quick fits."""

import numpy as np
import pytest
import torch

from benchmarks.flags import posteriors, table
from benchmarks.flags.__main__ import main
from benchmarks.flags.cases import CASES, four_modes, near_modes, two_modes
from benchmarks.flags.judge import errors, make_row
from pyro_dft.judging.drift import drift
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.pyro.potential import PotentialProblem

QUICK = {"num_draws": 2000}


def row(name, **overrides):
    return make_row(CASES[name], seed=0, draws=2000, **{**QUICK, **overrides})


TRUTHS = {c.posterior: c.posterior for c in CASES.values()}.values()


class TestTruths:
    @pytest.mark.parametrize("build", TRUTHS, ids=lambda b: b.__name__.strip("<>"))
    def test_draws_satisfy_the_stein_identities_of_the_potential(self, build):
        """E[s_i] = 0 and E[s_i x_i] = -1 for the score s of the density that the draws come from."""
        posterior = build()
        if posterior.draw is None:
            assert build in (posteriors.flat, posteriors.separable, posteriors.noisy)
            return
        n = 20_000
        x = torch.tensor(posterior.draw(np.random.default_rng(1), n), dtype=torch.float32)
        p = posterior.problem
        if "model" in p:
            problem = PyroProblem(p["model"], posterior.args, {})
        else:
            problem = PotentialProblem(p["potential_fn"], p["initial_params"])
        with problem.context():
            score = -torch.func.vmap(torch.func.grad(problem.potential))(x).double()
        for products in (score, score * (x - x.mean(0)) + 1):
            error = products.std(0) / n**0.5
            # Some 250 comparisons in all.
            assert (products.mean(0).abs() < 5 * error).all()

    def test_errors_of_exact_draws_are_small_and_of_others_are_not(self):
        rng = np.random.default_rng(2)
        for build in (posteriors.banana, posteriors.funnel, posteriors.donut, posteriors.cauchy, four_modes):
            posterior = build()
            draws = posterior.draw(rng, 10_000)
            assert errors(draws, posterior)["fit"] == "good"
            assert errors(2 * draws, posterior)["fit"] == "bad"
        one_mode = near_modes().draw(rng, 10_000)
        one_mode = one_mode[one_mode[:, 0] > 0]
        assert errors(one_mode, near_modes())["missing_modes"] == 1
        assert errors(np.full((100, 2), np.nan), two_modes())["fit"] == "bad"
        shifted = posteriors.squiggle().draw(rng, 10_000) + 0.15 * np.sqrt([5.0, 0.75])
        assert errors(shifted, posteriors.squiggle())["fit"] == "between"


class TestGap:
    """The drift test's extrapolation, on autoregressions whose stationary distribution is N(0, 1)."""

    @staticmethod
    def pair(rng, memory, mean=0.0, sd=1.0, n=4000, d=3):
        before = mean + sd * rng.normal(size=(n, d))
        return before, memory * before + np.sqrt(1 - memory**2) * rng.normal(size=(n, d))

    @pytest.mark.parametrize("memory", [0.0, 0.7, 0.95])
    def test_finds_the_error_that_few_steps_hardly_change(self, memory):
        moved = drift(*self.pair(np.random.default_rng(3), memory, mean=-0.5))
        assert np.all(np.abs(moved.gap[0] - 0.5) < 4 * moved.gap_se[0])
        assert np.all(np.abs(moved.memory[0] - memory) < 4 / np.sqrt(4000))
        assert moved.gap_lower > 0.1
        if memory == 0.95:
            assert moved.worst < 0.1

    @pytest.mark.parametrize("memory", [0.0, 0.7])
    def test_modes_that_are_far_apart_do_not_count_as_memory(self, memory):
        """Two modes 40 sds apart, each off by half an sd of its own, so that one fortieth of the whole sd shows."""
        rng = np.random.default_rng(7)
        before, after = self.pair(rng, memory, mean=-0.5, d=2)
        modes = rng.integers(2, size=len(before))
        before, after = (x + np.array([-20.0, 20.0])[modes, None] for x in (before, after))
        within, blind = drift(before, after, modes), drift(before, after)
        gap, error = within.gap[0] * after.std(0, ddof=1), within.gap_se[0] * after.std(0, ddof=1)
        assert np.all(np.abs(gap - 0.5) < 4 * error)
        assert np.all(error < 0.1)
        assert np.all(np.abs(within.memory[0] - memory) < 4 / np.sqrt(4000))
        assert np.all(blind.memory[0] > 0.99)

    @pytest.mark.parametrize("memory", [0.0, 0.8])
    def test_standard_errors_are_calibrated(self, memory):
        rng = np.random.default_rng(4)
        z = []
        for _ in range(200):
            moved = drift(*self.pair(rng, memory, mean=0.3, n=1000, d=1))
            z.append((moved.gap[:1] + 0.3) / moved.gap_se[:1])
        means = np.array(z)[:, 0, 0]
        # Four standard errors of a mean and of a standard deviation of 200 z-values.
        assert abs(means.mean()) < 4 / np.sqrt(200)
        assert abs(means.std() - 1) < 4 / np.sqrt(400)

    def test_limits_hold_together_and_see_a_wrong_scale(self):
        rng = np.random.default_rng(5)
        outside = 0
        for _ in range(200):
            moved = drift(*self.pair(rng, 0.5, n=500, d=10))
            outside += np.maximum(moved.gap_low, -moved.gap_high).max() > 0
        assert outside <= 10 + 4 * np.sqrt(10)  # 5 % of 200, and four standard errors
        moved = drift(*self.pair(rng, 0.8, sd=0.5))
        assert np.all(moved.gap[1] > 0.2)
        assert np.all(moved.gap_low < moved.gap)
        assert np.all(moved.gap < moved.gap_high)
        assert moved.gap_lower > 0.1

    def test_steps_that_move_nothing_say_nothing(self):
        x = np.random.default_rng(6).normal(size=(100, 2))
        still = drift(x, x + 1e-9 * x[::-1])
        assert still.gap_lower == -np.inf
        assert still.resolution == np.inf


class TestFits:
    def test_good_fit_is_not_flagged_and_is_not_run_twice(self, tmp_path, capsys):
        main(["--cases", "overlapping"], tmp_path / "flags")
        first = capsys.readouterr().out
        main(["--cases", "overlapping"], tmp_path / "flags")
        assert "overlapping: good, converged" in first
        assert "overlapping: good" not in capsys.readouterr().out
        assert "| overlapping | good |" in (tmp_path / "flags.md").read_text()
        assert (tmp_path / "flags.csv").read_text().startswith("case,")

    def test_gaussian_draws_of_a_banana_drift(self):
        found = row("banana-gaussian-raw")
        assert found["fit"] == "bad"
        assert found["status"] == "failed"
        assert "drift" in found["alarms"]

    def test_mode_that_another_restart_found(self):
        found = row("two-modes")
        assert found["missing_modes"] == 1
        assert "missing mode" in found["alarms"]

    def test_chains_in_different_modes(self):
        found = row("two-modes-chains", train="never")
        assert found["r_hat"] > 1.01
        assert "r_hat" in found["alarms"]

    def test_slow_ring_is_seen_by_its_gap_alone(self):
        found = row("donut", train="never", refine_steps=8)
        assert found["fit"] == "bad"
        assert found["status"] != "converged"

    @pytest.mark.parametrize("name", ["few-steps", "ctrl-c"])
    def test_training_that_stopped_early(self, name):
        found = row(name)
        assert found["fit"] == "bad"
        assert found["status"] == "failed"

    def test_flat_direction(self):
        assert row("flat", train="never")["status"] == "failed"


def test_summary_counts_hits_and_false_alarms():
    rows = [
        {"case": "a", "fit": "bad", "status": "failed"},
        {"case": "b", "fit": "bad", "status": "converged"},
        {"case": "c", "fit": "good", "status": "suspect"},
        {"case": "d", "fit": "between", "status": "converged"},
    ]
    lines = table.summary(rows)
    assert lines[0] == "bad fits that are flagged: 1 of 2; missed: b"
    assert lines[1] == "good fits that are flagged: 1 of 1: c"
    assert lines[2] == "neither good nor bad: 1, flagged: none"
    assert len(lines) == 3
