import jax
import numpy as np
import pytest
from daily import daily

import benchmarks.geometry.__main__ as command
from benchmarks import cache, methods
from benchmarks.geometry.targets import TARGETS
from benchmarks.objectives import report
from pyro_dft.experimental import grouped
from pyro_dft.numpyro.model import NumPyroProblem


def scores(target, x):
    """Gradients of the potential, (n, d)."""
    if target.potential is not None:
        gradient = jax.grad(lambda row: target.potential(row, *target.parameters))
        return np.asarray(jax.jit(jax.vmap(gradient))(x))
    model, args = target.numpyro()
    return -NumPyroProblem(model, args, {}).target().evaluate(x.astype(np.float32))[1]


# One of each family of densities.
DAILY = (
    "funnel", "funnel_model", "student5", "cauchy", "correlated10", "banana", "donut", "skewed10", "gaussian100",
    "hierarchy102", "three_modes",
)  # fmt: skip


@pytest.mark.parametrize("name", daily(TARGETS, *DAILY))
def test_exact_draws_agree_with_the_potential(name):
    target = TARGETS[name]
    x = target.exact(4000, 5)
    assert x.shape == (4000, target.dim)
    g = scores(target, x).astype(np.float64)
    # Stein's identities: E[dU/dx_i] = 0 and E[x_i dU/dx_i] = 1, whatever the normalising constant.
    for values, truth in ((g, 0.0), (x * g, 1.0)):
        error = values.std(0) / np.sqrt(len(x))
        assert (np.abs(values.mean(0) - truth) / error).max() < 4.5


@pytest.mark.slow  # the same road every day with a cheaper case: tests/test_hostile.py
def test_the_command_writes_a_table_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(methods, "NUM_DRAWS", 500)
    brief = grouped(
        {"train": "never", "precondition_steps": 100, "num_draws": 200, "refine_steps": 1, "restarts": 2}
    )
    monkeypatch.setitem(methods.FITS, "gaussian", brief)
    asked = ["four_modes", "--methods", "reference,gaussian-raw,gaussian-refined"]
    command.main(asked)
    assert (tmp_path / "geometry.csv").read_text().count("\n") == 4
    text = (tmp_path / "geometry.md").read_text()
    assert "worst share error" in text
    assert "0.10 / 0.20 / 0.30 / 0.40" in text
    capsys.readouterr()
    command.main(asked)
    assert "four_modes/gaussian-raw" not in capsys.readouterr().out  # nothing is run twice


def test_rows_compare_quantiles_radii_and_shares_where_means_mean_nothing():
    cauchy, donut, modes = (TARGETS[n] for n in ("cauchy", "donut", "three_modes"))
    row = command.measured(cauchy, cauchy.floor(), cauchy.reference())
    assert row["worst_mean"] is None
    assert row["worst_quantile"] < 0.1
    assert donut.reference().mean.shape == (3,)  # the radius too
    np.testing.assert_allclose(modes.shares(modes.exact(50_000, 3)), [0.2, 0.3, 0.5], atol=0.01)


def test_paired_differences_are_marked_beyond_two_standard_errors():
    base = {"mean": [0.1, 0.2, 0.3]}
    assert report.mark(report.difference({"mean": [0.05, 0.16, 0.24]}, base, "mean")) == "better"
    assert report.mark(report.difference({"mean": [0.2, 0.1, 0.3]}, base, "mean")) == ""
