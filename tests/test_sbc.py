"""Simulation-based calibration: ranks and tests of known draws, twin models, the command on a replicate or two."""

import json

import numpy as np
import pyro
import pytest
import torch
from daily import daily
from numpyro.infer.util import log_density

from benchmarks.sbc import in_numpyro, in_pyro, picture, replicates, report
from benchmarks.sbc import uniformity as u
from benchmarks.sbc.__main__ import main
from benchmarks.sbc.models import LOG_LIKELIHOOD, MODELS
from benchmarks.sbc.replicates import CELLS, QUICK, Cell

NAMES = ["a", "b", "c", LOG_LIKELIHOOD]


def normal_ranks(draw, replicates=200):
    """Ranks of theta ~ N(0, 1)^3 with y ~ N(theta, 1), and of the log likelihood, given draws by `draw(rng, y)`."""
    rng = np.random.default_rng(0)
    ranks = []
    for _ in range(replicates):
        theta = rng.normal(size=3)
        y = theta + rng.normal(size=3)
        both = np.vstack([draw(rng, y), theta])
        both = np.column_stack([both, -0.5 * np.square(both - y).sum(1)])
        ranks.append(u.rank(both[:-1], both[-1]))
    return np.array(ranks)


def posterior(shift=0.0, ratio=1.0):
    """Draws of N(y / 2, 1 / 2), or of one that is off by so many sds or has an sd that is wrong by a factor."""
    sd = 0.5**0.5
    return lambda rng, y: y / 2 + shift * sd + ratio * sd * rng.normal(size=(u.DRAWS, 3))


class TestUniformity:
    def test_rank_counts_the_draws_below(self):
        draws = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
        np.testing.assert_array_equal(u.rank(draws, np.array([3.0, 0.0])), [2, 0])

    def test_nothing_is_ranked_among_nan(self):
        with pytest.raises(ValueError, match="finite"):
            u.rank(np.array([[np.nan]]), np.zeros(1))

    def test_exact_draws_pass(self):
        verdict = u.judge(normal_ranks(posterior()), NAMES)
        assert verdict.uniform
        assert verdict.outside <= 1
        assert verdict.replicates == 200
        assert verdict.coordinates == 4

    @pytest.mark.parametrize(("shift", "ratio"), [(0.5, 1.0), (-0.5, 1.0), (0.0, 0.6), (0.0, 1.6)], ids=str)
    def test_wrong_draws_fail(self, shift, ratio):
        verdict = u.judge(normal_ranks(posterior(shift, ratio)), NAMES)
        assert not verdict.uniform
        assert verdict.outside >= 3
        if shift:
            assert np.sign(verdict.mean_rank - 0.5) == -np.sign(shift)

    def test_only_the_log_likelihood_tells_prior_from_posterior(self):
        ranks = normal_ranks(lambda rng, y: rng.normal(size=(u.DRAWS, 3)))
        assert u.judge(ranks[:, :3], NAMES[:3]).uniform
        verdict = u.judge(ranks, NAMES)
        assert verdict.worst == LOG_LIKELIHOOD
        assert not verdict.uniform

    def test_false_alarms_are_as_frequent_as_promised(self):
        ranks = np.random.default_rng(1).integers(0, u.RANKS, size=(2000, 100))
        p = u.ecdf_test(ranks)
        assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.02)
        assert np.mean([u.chi_square(r) < 0.05 for r in ranks]) == pytest.approx(0.05, abs=0.02)
        low, high = u.histogram_band(100)
        counts = np.array([u.histogram(r) for r in ranks])
        assert ((counts < low) | (counts > high)).any(1).mean() < 0.06

    def test_the_band_is_where_the_test_turns(self):
        ranks = np.random.default_rng(2).integers(0, u.RANKS, size=(1000, 60))
        low, high = u.ecdf_band(60)
        share = u.ecdf(ranks) / 60
        outside = ((share < low - 1e-9) | (share > high + 1e-9)).any(1)
        np.testing.assert_array_equal(outside, u.ecdf_test(ranks) < 0.05)

    def test_the_band_is_that_of_arviz(self):
        theirs = pytest.importorskip("arviz.stats.ecdf_utils").ecdf_confidence_band
        expected = theirs(100, u.GRID, u.GRID, prob=0.95, method="optimized")
        np.testing.assert_allclose(u.ecdf_band(100), expected, atol=0.0101)  # a replicate, at most

    def test_bins_divide_the_ranks(self):
        assert all(u.RANKS % count == 0 for count in u.BINS)
        assert [u.bins(n) for n in (3, 100, 200, 400)] == [2, 5, 10, 20]

    def test_more_replicates_see_smaller_errors(self):
        few, many = u.detectable(50, 100), u.detectable(400, 100)
        assert 0 < many[0] < few[0] < 1
        assert few[1] < many[1] < 1 < many[2] < few[2]


class TestModels:
    @pytest.mark.parametrize("name", MODELS)
    def test_twins_have_one_density(self, name):
        model = MODELS[name]
        values, y = in_numpyro.simulate(model, 0, 0)
        function, fixed = model.numpyro()
        one = {site: value[0] for site, value in values.items()}
        expected, _ = log_density(function, (*fixed, y), {}, one)
        twin, tensors = model.pyro()
        sites = {site: torch.tensor(value) for site, value in one.items()}
        conditioned = pyro.condition(twin, data=sites)
        trace = pyro.poutine.trace(conditioned).get_trace(*tensors, torch.tensor(y, dtype=torch.float32))
        assert float(trace.log_prob_sum()) == pytest.approx(float(expected), rel=1e-4)
        log_likelihood = trace.nodes["y"]["fn"].log_prob(trace.nodes["y"]["value"]).sum()
        constant = float(log_likelihood) - model.quantities(values, y)[0, -1]
        expected = 0.0 if name == "logistic" else -np.log(model.fixed).sum() - 4 * np.log(2 * np.pi)
        assert constant == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("side", [in_numpyro, in_pyro], ids=["numpyro", "pyro"])
    @pytest.mark.parametrize("name", MODELS)
    def test_replicates_are_reproducible_and_differ(self, name, side):
        model = MODELS[name]
        first, again, other = (model.quantities(*side.simulate(model, 0, i)) for i in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert first.shape == (1, len(model.names))
        assert (first != other).all()


def made_up(count=60, fail=(), suspect=()):
    """Records of eight schools with uniform refined ranks and low raw ones."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        ranks = rng.integers(0, u.RANKS, 11)
        status = "suspect" if i in suspect else "converged"
        ranks = {"raw": (ranks // 2).tolist(), "refined": ranks.tolist()}
        fitted = {"seconds": 1.0, "status": status, "ranks": ranks}
        records.append(
            {"replicate": i, "code": "abc", **({"error": "ValueError: no"} if i in fail else fitted)}
        )
    return records


CELL = Cell("schools_noncentred", "dft", "numpyro")


class TestReport:
    def test_flagged_fits_are_counted_in_and_left_out(self):
        found = report.cell_rows(CELL, made_up(fail=(1,), suspect=(2, 3)))
        assert [(r["method"], r["fits"], r["replicates"]) for r in found] == [
            ("dft-raw", "all", 59), ("dft-raw", "converged", 57),
            ("dft-refined", "all", 59), ("dft-refined", "converged", 57),
        ]  # fmt: skip
        assert [r["uniform"] for r in found] == [False, False, True, True]
        assert {r["flagged"] for r in found} == {0.05}
        assert {r["errors"] for r in found} == {1}

    def test_without_flags_there_is_one_row_for_each_kind(self):
        assert [r["fits"] for r in report.cell_rows(CELL, made_up())] == ["all", "all"]

    def test_files_and_picture(self, tmp_path):
        control = Cell("schools_noncentred", "gaussian", "numpyro")
        results = {CELL.name: made_up(), control.name: made_up(40)}
        table = report.rows(results)
        report.write(table, report.summary(results, table), tmp_path / "sbc")
        assert "dft-raw: 0 of 1 uniform; not: schools_noncentred" in (tmp_path / "sbc.md").read_text()
        assert len((tmp_path / "sbc.csv").read_text().splitlines()) == 1 + len(table)
        picture.draw(results, "numpyro", tmp_path / "sbc.png")
        assert (tmp_path / "sbc.png").stat().st_size > 10_000


class TestCommand:
    @pytest.mark.parametrize("backend", daily(["numpyro", "pyro"], "pyro"))
    def test_one_replicate(self, backend, tmp_path, capsys):
        asked = [
            "--quick",
            "--replicates",
            "1",
            "--models",
            "logistic",
            "--fits",
            "dft",
            "--backend",
            backend,
        ]
        main(asked, tmp_path / "sbc", tmp_path / "sbc.png", tmp_path)
        assert "dft-refined" in capsys.readouterr().out
        assert not (tmp_path / "sbc.json").exists()
        (path,) = tmp_path.rglob("00000.json")
        record = json.loads(path.read_text())
        assert "error" not in record
        for kind in ("raw", "refined"):
            assert len(record["ranks"][kind]) == 6
            assert all(0 <= rank <= u.DRAWS for rank in record["ranks"][kind])
        assert record["ranks"]["raw"] != record["ranks"]["refined"]

    def test_a_killed_command_resumes(self, tmp_path, monkeypatch):
        made = []

        def make(cell, seed, replicate, extra):
            made.append(replicate)
            if replicate == 3 and len(made) < 5:
                raise KeyboardInterrupt
            return made_up()[replicate]

        monkeypatch.setattr(replicates, "make", make)
        asked = ["--replicates", "5", "--models", CELL.model, "--fits", "dft"]
        places = tmp_path / "sbc", tmp_path / "sbc.png", tmp_path
        with pytest.raises(KeyboardInterrupt):
            main(asked, *places)
        main(asked, *places)
        assert made == [0, 1, 2, 3, 3, 4]
        assert (tmp_path / "sbc.png").exists()
        assert [r["replicate"] for r in json.loads((tmp_path / "sbc.json").read_text())[CELL.name]] == [
            0, 1, 2, 3, 4,
        ]  # fmt: skip
        main([*asked, "--table"], *places)
        assert len(made) == 6
        main([*asked, "--fresh"], *places)
        assert made[6:] == [0, 1, 2, 3, 4]

    def test_a_fit_that_raises_is_a_record(self, monkeypatch):
        def fit(*_):
            raise ValueError("no such luck")

        monkeypatch.setattr(in_pyro, "fit", fit)
        record = replicates.make(Cell("logistic", "dft", "pyro"), 0, 0, QUICK)
        assert record == {"replicate": 0, "error": "ValueError: no such luck"}
        assert report.flagged(record)

    def test_keys_follow_the_model_and_the_settings(self):
        keys = {replicates.key(cell, 0, {}) + cell.model for cell in CELLS}
        assert len(keys) == len(CELLS)
        assert replicates.key(CELL, 0, {}) != replicates.key(CELL, 1, {})
        assert replicates.key(CELL, 0, {}) != replicates.key(CELL, 0, QUICK)

    def test_unknown_names_are_refused(self, capsys):
        with pytest.raises(SystemExit):
            main(["--models", "nothing"])
        assert "known: schools_noncentred" in capsys.readouterr().err

    @pytest.mark.slow
    def test_simuk_drives_the_kernel(self):
        pytest.importorskip("simuk")
        record = replicates.make(Cell("logistic", "simuk", "numpyro"), 0, 0, QUICK)
        assert record["status"] in ("converged", "suspect")
        assert len(record["ranks"]["refined"]) == 5
