"""The summary table."""

import json

import numpy as np
import pytest

from pyro_dft.judging.summary import summary_table

COLUMNS = ["mean", "std", "median", "5.0%", "95.0%", "n_eff", "r_hat", "mcse"]


@pytest.fixture
def posterior():
    rng = np.random.default_rng(1)
    chol = np.zeros((4, 500, 2, 2))
    chol[..., 0, 0] = 1.0
    chol[..., 1, 0] = rng.normal(size=(4, 500))
    chol[..., 1, 1] = rng.gamma(3.0, size=(4, 500))
    return {"mu": 3.0 + 2.0 * rng.normal(size=(4, 500)), "beta": rng.normal(size=(4, 500, 3)), "L": chol}


def table_of(summary):
    """Name -> cells of the printed table."""
    lines = str(summary).splitlines()
    start = next(i for i, line in enumerate(lines) if "mean" in line)
    rows = lines[start + 1 : lines.index("", start)]
    return lines[start].split(), {row.split()[0]: row.split()[1:] for row in rows}


def test_rows_and_columns(posterior):
    summary = summary_table(posterior)
    names = ["mu", "beta[0]", "beta[1]", "beta[2]", "L[0,0]", "L[0,1]", "L[1,0]", "L[1,1]"]
    assert list(summary.rows) == names
    assert list(summary.rows["mu"]) == COLUMNS
    columns, cells = table_of(summary)
    assert columns == COLUMNS
    assert list(cells) == names
    assert all(len(row) == len(COLUMNS) for row in cells.values())


def test_statistics_are_those_of_the_draws(posterior):
    row = summary_table(posterior).rows["mu"]
    flat = posterior["mu"].ravel()
    assert row["mean"] == pytest.approx(flat.mean())
    assert row["std"] == pytest.approx(flat.std(ddof=1))
    assert row["median"] == pytest.approx(np.median(flat))
    # The estimated sizes scatter by some 5 % around 2000.
    assert row["n_eff"] == pytest.approx(2000, rel=0.25)
    assert row["r_hat"] == pytest.approx(1.0, abs=0.01)
    assert row["mcse"] == pytest.approx(2.0 / np.sqrt(2000), rel=0.25)


def test_same_numbers_as_pyro(posterior):
    import torch
    from pyro.infer.mcmc.util import summary as pyro_summary

    skewed = np.exp(posterior["beta"])
    expected = pyro_summary({"beta": torch.as_tensor(skewed)}, prob=0.8)["beta"]
    ours = summary_table({"beta": skewed}, prob=0.8).sites["beta"]
    assert list(expected) == [name for name in ours if name != "mcse"]
    for name in ("mean", "std", "10.0%", "90.0%"):
        np.testing.assert_allclose(ours[name], expected[name].numpy(), rtol=1e-10)
    # Pyro takes the lower of the two middle draws; of 2000 they lie within 0.01 of each other here.
    np.testing.assert_allclose(ours["median"], expected["median"].numpy(), atol=0.01)


def test_constants_and_single_chains_are_not_available(posterior):
    _, cells = table_of(summary_table(posterior))
    at = {name: COLUMNS.index(name) for name in COLUMNS}
    for name in ("L[0,0]", "L[0,1]"):
        assert cells[name][at["n_eff"]] == cells[name][at["r_hat"]] == "n/a"
        assert cells[name][at["mcse"]] == "0"
    assert cells["L[0,0]"][at["mean"]] == "1.00"
    _, cells = table_of(summary_table({name: value[:1] for name, value in posterior.items()}))
    assert {row[at["r_hat"]] for row in cells.values()} == {"n/a"}
    assert cells["mu"][at["n_eff"]] != "n/a"


def test_constant_up_to_rounding():
    rng = np.random.default_rng(2)
    x = np.sqrt(1.0 + 1e-7 * rng.normal(size=(2, 100))).astype(np.float32)
    row = summary_table({"one": x}).rows["one"]
    assert np.isnan(row["r_hat"])
    assert row["std"] == 0.0
    # The same spread in float64 is real.
    row = summary_table({"one": x.astype(np.float64) + 1e-8 * rng.normal(size=x.shape)}).rows["one"]
    assert np.isfinite(row["r_hat"])
    assert row["std"] > 0.0


def test_non_finite_draws_concern_their_element_only(posterior):
    broken = posterior["beta"].copy()
    broken[0, 0, 0], broken[1, 2, 1] = np.nan, np.inf
    rows = summary_table({"beta": broken}).rows
    assert all(np.isnan(value) for name in ("beta[0]", "beta[1]") for value in rows[name].values())
    assert all(np.isfinite(value) for value in rows["beta[2]"].values())


def test_integer_draws():
    rows = summary_table({"k": np.random.default_rng(3).poisson(4.0, size=(2, 200))}).rows
    assert rows["k"]["median"] == 4.0
    assert np.isfinite(rows["k"]["r_hat"])


def test_one_draw():
    row = summary_table({"x": np.full((1, 1), 2.0)}).rows["x"]
    assert row["mean"] == row["5.0%"] == row["95.0%"] == 2.0
    assert np.isnan(row["n_eff"])


def test_decimals_follow_the_sd():
    rng = np.random.default_rng(4)
    draws = {f"x{i}": 10.0**-i * (1.0 + rng.normal(size=(1, 100))) for i in (0, 3, 9)}
    _, cells = table_of(summary_table(draws))
    assert len(cells["x0"][1].split(".")[1]) == 2
    assert float(cells["x3"][1]) == pytest.approx(draws["x3"].std(), rel=0.1)
    assert float(cells["x9"][1]) == pytest.approx(draws["x9"].std(), rel=0.1)


class TestApproxError:
    def test_column_and_note(self, posterior):
        summary = summary_table(posterior, {"beta": [0.5, 1e-6, 0.5], "mu": 1e-6})
        assert summary.rows["beta[0]"]["approx_error"] == 0.5
        assert np.isnan(summary.rows["L[1,0]"]["approx_error"])
        columns, cells = table_of(summary)
        assert columns == [*COLUMNS, "approx_error"]
        assert cells["beta[0]"][-1] == "0.5"
        assert cells["L[1,0]"][-1] == "n/a"
        assert "approx_error exceeds mcse for beta[0], beta[2]: more draws" in str(summary)

    def test_it_is_in_sds(self, posterior):
        # mu: sd 2 and 2000 draws make an mcse of 0.045, and the errors here 0.08 and 0.02.
        assert "exceeds mcse for mu" in str(summary_table(posterior, {"mu": 0.04}))
        assert "exceeds" not in str(summary_table(posterior, {"mu": 0.01}))

    def test_no_note_without_cause(self, posterior):
        assert "exceeds" not in str(summary_table(posterior, {"mu": 1e-6}))
        assert "exceeds" not in str(summary_table(posterior))

    def test_long_lists_are_cut(self):
        draws = {"x": np.random.default_rng(5).normal(size=(1, 100, 20))}
        assert "x[7] and 12 more: more draws" in str(summary_table(draws, {"x": 9.0}))

    def test_refuses(self, posterior):
        with pytest.raises(ValueError, match="not in posterior: nu"):
            summary_table(posterior, {"nu": 0.1})
        with pytest.raises(ValueError, match="'beta' has shape"):
            summary_table(posterior, {"beta": [0.1, 0.2]})


def test_to_dict_is_json(posterior):
    plain = json.loads(json.dumps(summary_table(posterior).to_dict()))
    assert np.shape(plain["L"]["mean"]) == (2, 2)
    assert plain["mu"]["mean"] == pytest.approx(posterior["mu"].mean())


def test_wrong_shapes_and_masses_are_refused(posterior):
    with pytest.raises(ValueError, match="prob"):
        summary_table(posterior, prob=1.0)
    with pytest.raises(ValueError, match="'x' must have shape"):
        summary_table({"x": np.zeros(5)})
    with pytest.raises(ValueError, match="'x' must have shape"):
        summary_table({"x": np.zeros((2, 0))})


def test_no_sites():
    assert str(summary_table({})) == "(no sites)"
