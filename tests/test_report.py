"""Draws -> ArviZ, on ArviZ 0.x and as a DataTree."""

import json
import math
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

from pyro_dft._version import __version__
from pyro_dft.export.arviz import to_inference_data

C, N, J = 2, 60, 8


@pytest.fixture(scope="module")
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0 at import
        import arviz
    return arviz


def major(arviz):
    return int(arviz.__version__.split(".")[0])


def names(data):
    """Names of the groups of either kind of object."""
    return set(data.children) if hasattr(data, "children") else set(data.groups())


@pytest.fixture
def groups():
    """Every group, as an eight schools fit would give it."""
    rng = np.random.default_rng(1)
    theta, tau = rng.normal(size=(C, N, J)), rng.gamma(2.0, size=(C, N))
    y = rng.normal(size=J)
    return {
        "posterior": {
            "mu": rng.normal(size=(C, N)),
            "tau": tau,
            "theta": theta,
            "L": rng.normal(size=(C, N, 2, 2)),
            "p": rng.dirichlet(np.ones(3), size=(C, N, J)),
        },
        "sample_stats": {"lp": rng.normal(size=(C, N))},
        "log_likelihood": {"y": -0.5 * (theta - y) ** 2 - 0.5 * math.log(2 * math.pi)},
        "posterior_predictive": {"y": rng.normal(size=(C, N, J))},
        "prior": {"mu": rng.normal(size=(1, 30))},
        "prior_predictive": {"y": rng.normal(size=(1, 30, J))},
        "observed_data": {"y": y},
        "constant_data": {"sigma": np.arange(1.0, J + 1)},
        "unconstrained_posterior": {
            "mu": rng.normal(size=(C, N)),
            "tau": np.log(tau),
            "theta": theta,
            "p": rng.normal(size=(C, N, J, 2)),
        },
        "dims": {"theta": ["school"], "y": ["school"], "sigma": ["school"], "p": ["school", "kind"]},
        "coords": {"school": list("ABCDEFGH"), "kind": ["a", "b", "c"]},
        "attrs": {"settings": {"sigma": 0.1, "steps": None}, "fitted": True, "seconds": 2.5, "gone": None},
    }


@pytest.fixture
def data(groups):
    return to_inference_data(**groups)


def check_groups(data, groups):
    """What must hold for an InferenceData and for a DataTree alike."""
    for name in groups.keys() - {"dims", "coords", "attrs"}:
        for variable, expected in groups[name].items():
            np.testing.assert_array_equal(data[name][variable].values, expected)
    assert data["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert data["posterior"]["p"].dims == ("chain", "draw", "school", "kind")
    assert data["posterior"]["L"].dims == ("chain", "draw", "L_dim_0", "L_dim_1")
    assert data["posterior"]["school"].values.tolist() == list("ABCDEFGH")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    assert data["observed_data"]["y"].dims == ("school",)
    assert data["constant_data"]["sigma"].dims == ("school",)
    assert data["prior"]["mu"].dims == ("chain", "draw")
    assert data["unconstrained_posterior"]["theta"].dims == ("chain", "draw", "school")
    assert data["unconstrained_posterior"]["p"].shape == (C, N, J, 2)
    assert data["sample_stats"]["diverging"].dtype == bool
    assert not data["sample_stats"]["diverging"].values.any()
    assert data["sample_stats"]["diverging"].shape == (C, N)
    for attrs in (data.attrs, data["posterior"].attrs):
        assert attrs["inference_library"] == "pyro_dft"
        assert attrs["inference_library_version"] == __version__
        assert attrs["draws"].startswith("independent draws")
        assert json.loads(attrs["settings"]) == {"sigma": 0.1, "steps": None}
        assert attrs["fitted"] == "true"
        assert attrs["seconds"] == 2.5
        assert "gone" not in attrs


class TestInstalledArviz:
    """InferenceData on ArviZ 0.x, DataTree on 1.x."""

    def test_groups_dims_coords_attrs(self, data, groups, arviz):
        assert type(data).__name__ == ("InferenceData" if major(arviz) < 1 else "DataTree")
        check_groups(data, groups)

    def test_posterior_alone(self, arviz):
        data = to_inference_data({"x": np.zeros((1, 5))})
        assert names(data) == {"posterior", "sample_stats"}

    def test_default_coordinates_are_numbered(self, groups, arviz):
        data = to_inference_data({"theta": groups["posterior"]["theta"]}, dims={"theta": ["school"]})
        assert data["posterior"]["school"].values.tolist() == list(range(J))

    def test_summary(self, data, groups, arviz):
        table = arviz.summary(data, var_names=["mu", "theta"])
        assert table.loc["theta[C]", "mean"] == pytest.approx(
            data["posterior"]["theta"][..., 2].values.mean(), abs=1e-3
        )
        assert np.isfinite(table["r_hat"]).all()

    # ArviZ 0.23 calls Matplotlib 3.11 in a deprecated way; that is between the two of them.
    @pytest.mark.filterwarnings("ignore::matplotlib.MatplotlibDeprecationWarning")
    def test_plots(self, data, arviz):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        option = {"divergences": True} if major(arviz) < 1 else {"visuals": {"divergence": True}}
        for plot, options in ((arviz.plot_trace, {}), (arviz.plot_pair, option)):
            plot(data, var_names=["mu", "tau"], **options)
            assert len(pyplot.gcf().axes) >= 1
            pyplot.close("all")

    def test_loo(self, arviz):
        """y_i ~ N(mu, 1) under a flat prior, whose leave-one-out predictions are known."""
        rng = np.random.default_rng(2)
        y = rng.normal(size=J)
        mu = y.mean() + rng.normal(size=(4, 1000)) / math.sqrt(J)
        log_likelihood = -0.5 * (mu[..., None] - y) ** 2 - 0.5 * math.log(2 * math.pi)
        data = to_inference_data({"mu": mu}, log_likelihood={"y": log_likelihood}, observed_data={"y": y})
        result = arviz.loo(data)
        variance = 1.0 + 1.0 / (J - 1)
        error = (y - (y.sum() - y) / (J - 1)) ** 2
        exact = -0.5 * (error / variance + math.log(2 * math.pi * variance)).sum()
        assert result.n_data_points == J
        # Over 20 seeds of mu the estimate has a standard deviation of 0.026.
        assert (result.elpd_loo if major(arviz) < 1 else result.elpd) == pytest.approx(exact, abs=4 * 0.026)

    def test_netcdf_round_trip(self, data, groups, arviz, tmp_path):
        data.to_netcdf(tmp_path / "fit.nc")
        again = arviz.from_netcdf(tmp_path / "fit.nc")
        check_groups(again, groups)

    def test_given_divergences_are_kept(self, arviz):
        diverging = np.array([[True, False, False]])
        data = to_inference_data({"x": np.zeros((1, 3))}, sample_stats={"diverging": diverging})
        np.testing.assert_array_equal(data["sample_stats"]["diverging"].values, diverging)


@pytest.mark.parametrize("version", ["base", "1"])
class TestDataTree:
    @pytest.fixture(autouse=True)
    def as_installed(self, version, monkeypatch):
        """arviz-base alone; and ArviZ 1.x, which is arviz-base with more around it."""
        import arviz_base

        arviz = None
        if version == "1":
            arviz = types.ModuleType("arviz")
            arviz.__version__, arviz.from_dict = "1.3.0", arviz_base.from_dict
        monkeypatch.setitem(sys.modules, "arviz", arviz)

    def test_groups_dims_coords_attrs(self, data, groups):
        import xarray

        assert isinstance(data, xarray.DataTree)
        check_groups(data, groups)

    def test_netcdf_round_trip(self, data, groups, tmp_path):
        import xarray

        data.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
        with xarray.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as again:
            check_groups(again, groups)

    def test_default_coordinates_and_slashes(self):
        tree = to_inference_data({"a/x": np.zeros((1, 5, 3))}, dims={"a/x": ["a/rows"]})
        assert tree["posterior"]["a.x"].dims == ("chain", "draw", "a.rows")
        assert tree["posterior"]["a.rows"].values.tolist() == [0, 1, 2]


class TestNames:
    def test_slashes_become_dots(self, arviz, tmp_path):
        data = to_inference_data(
            {"net/w": np.zeros((1, 5, 3))}, dims={"net/w": ["net/rows"]}, coords={"net/rows": [4, 5, 6]}
        )
        assert data["posterior"]["net.w"].dims == ("chain", "draw", "net.rows")
        data.to_netcdf(tmp_path / "fit.nc")
        assert arviz.from_netcdf(tmp_path / "fit.nc")["posterior"]["net.rows"].values.tolist() == [4, 5, 6]

    def test_names_that_become_one_are_refused(self):
        with pytest.raises(ValueError, match=r"posterior: two sites would be called 'a\.x'"):
            to_inference_data({"a/x": np.zeros((1, 5)), "a.x": np.zeros((1, 5))})

    def test_plates_called_like_arviz_dimensions(self, arviz):
        data = to_inference_data({"x": np.zeros((1, 5, 3))}, dims={"x": ["draw"]}, coords={"draw": [7, 8, 9]})
        assert data["posterior"]["x"].dims == ("chain", "draw", "draw_plate")
        assert data["posterior"]["draw_plate"].values.tolist() == [7, 8, 9]


class TestRefuses:
    def test_empty_posterior(self):
        with pytest.raises(ValueError, match="no sites"):
            to_inference_data({})

    def test_shapes(self):
        with pytest.raises(ValueError, match="posterior: 'b' must have shape"):
            to_inference_data({"a": np.zeros((2, 5)), "b": np.zeros((5, 2))})
        with pytest.raises(ValueError, match="prior: 'a' must have shape"):
            to_inference_data({"a": np.zeros((2, 5))}, prior={"a": np.zeros(5)})

    def test_no_arviz_at_all(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "arviz", None)
        monkeypatch.setitem(sys.modules, "arviz_base", None)
        with pytest.raises(ImportError, match="pip install arviz"):
            to_inference_data({"x": np.zeros((1, 5))})

    def test_a_broken_arviz_is_not_hidden(self, monkeypatch, tmp_path):
        monkeypatch.delitem(sys.modules, "arviz", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "arviz.py").write_text("import a_module_that_arviz_needs")
        with pytest.raises(ModuleNotFoundError, match="a_module_that_arviz_needs"):
            to_inference_data({"x": np.zeros((1, 5))})


def test_attributes_of_many_kinds_survive_netcdf(arviz, tmp_path):
    attrs = {
        "numbers": [1, 2.5],
        "words": ("a", "b"),
        "mixed": [1, "a"],
        "empty": [],
        "flags": [True, False],
        "array": np.arange(3),
        "nested": {"a": [None, {"b": np.float32}]},
        "scalar": np.float32(0.5),
        "flag": np.bool_(False),
    }
    data = to_inference_data({"x": np.zeros((1, 5))}, attrs=attrs)
    data.to_netcdf(tmp_path / "fit.nc")
    kept = arviz.from_netcdf(tmp_path / "fit.nc").attrs
    assert list(kept["numbers"]) == [1, 2.5]
    assert list(kept["words"]) == ["a", "b"]
    assert kept["mixed"] == '[1, "a"]'
    assert kept["empty"] == "[]"
    assert kept["flags"] == "[true, false]"
    assert list(kept["array"]) == [0, 1, 2]
    assert json.loads(kept["nested"])["a"][0] is None
    assert kept["scalar"] == 0.5
    assert kept["flag"] == "false"


def test_first_import_of_arviz_raises_no_warning():
    """In a fresh process, where ArviZ has not been imported yet, with every warning an error."""
    code = (
        "import numpy as np; from pyro_dft.export.arviz import to_inference_data\n"
        "print(type(to_inference_data({'x': np.zeros((1, 5))})).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("InferenceData", "DataTree")
