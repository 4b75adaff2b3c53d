"""The benchmark: twin models share one density; flat coordinates, metrics, counts, cache keys, table."""

import dataclasses
import json

import jax
import numpy as np
import pyro
import pytest
import torch
from daily import daily
from numpyro.infer.util import log_density
from pyro.infer.mcmc.util import initialize_model

from benchmarks import cache, metrics, nuts, references, table
from benchmarks.flat import coordinate_names, to_flat
from benchmarks.models.registry import BENCHMARKS, Benchmark

pytestmark = pytest.mark.usefixtures("compiled_programs_stay")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(9, 3)), RNG.normal(size=9)
COUNTS = RNG.multinomial(20, np.ones(3) / 3, size=4).astype(float)

# Small made-up arrays in the shapes of the real data, so that the tests need no data folder.
SMALL = {
    "logistic": {"x": X, "y": (Y > 0).astype(float)},
    "eight_schools_centered": {"y": Y, "sigma": np.exp(0.3 * Y)},
    "eight_schools_noncentered": {"y": Y, "sigma": np.exp(0.3 * Y)},
    "baseball": {"at_bats": np.full(4, 20.0), "hits": COUNTS[:, 0]},
    "gaussian_process": {"t": np.arange(9.0), "y": Y},
    "enumerated_mixture": {"y": Y},
    "lkj_covariance": {"x": X},
    "varying_slopes": {"x": X[:, 0], "y": Y, "group": np.arange(9) % 6},
    "dirichlet_multinomial": {"counts": COUNTS},
    "autoregression": {"lags": X, "y": Y},
    "negative_binomial": {"x": X[:4], "counts": COUNTS},
    "horseshoe": {"x": X, "y": Y},
}


def small(function: str) -> Benchmark:
    """A benchmark of this function on the made-up arrays."""
    return Benchmark(function, "test", function, lambda: SMALL[function])


@pytest.fixture
def float64():
    """Double precision in both frameworks, put back afterwards."""
    before, x64 = torch.get_default_dtype(), jax.config.jax_enable_x64
    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)
    yield
    torch.set_default_dtype(before)
    jax.config.update("jax_enable_x64", x64)


def test_every_registered_function_is_covered():
    assert {b.function for b in BENCHMARKS.values()} == set(SMALL)
    assert len(BENCHMARKS) >= 12


# Of each kind of site and likelihood one.
DAILY = (
    "logistic", "eight_schools_noncentered", "enumerated_mixture", "lkj_covariance", "varying_slopes",
    "dirichlet_multinomial", "horseshoe",
)  # fmt: skip


@pytest.mark.parametrize("function", daily(SMALL, *DAILY))
def test_pyro_and_numpyro_densities_are_the_same(function, float64):
    benchmark = small(function)
    model, args = benchmark.pyro()
    twin, arrays = benchmark.numpyro()
    generator = torch.Generator().manual_seed(1)
    theirs = jax.jit(lambda values: log_density(twin, arrays, {}, values)[0])
    gaps, flat = [], []
    pyro.set_rng_seed(0)
    start, potential, transforms, _ = initialize_model(model, args)
    for _ in range(4):
        u = {k: 0.7 * torch.randn(v.shape, generator=generator) for k, v in start.items()}
        x = {k: transforms[k].inv(v) for k, v in u.items()}
        jacobian = sum(transforms[k].inv.log_abs_det_jacobian(u[k], x[k]).sum() for k in u)
        other = theirs({k: np.asarray(v) for k, v in x.items()})
        gaps.append(-float(potential(u)) - float(jacobian) - float(other))
        back = to_flat(benchmark, {k: v.unsqueeze(0) for k, v in x.items()})[0]
        flat.append(np.abs(back - torch.cat([u[k].ravel() for k in sorted(u)]).numpy()).max())
    assert np.ptp(gaps) < 1e-5
    assert max(flat) < 1e-8
    names = coordinate_names(benchmark, {k: v.unsqueeze(0) for k, v in x.items()})
    assert len(set(names)) == sum(v.numel() for v in start.values())


def gaussian_reference(d: int, seed: int) -> references.Reference:
    """A reference of a standard normal with exact moments."""
    rng = np.random.default_rng(seed)
    return references.Reference(
        names=[f"x[{i}]" for i in range(d)],
        mean=np.zeros(d),
        sd=np.ones(d),
        quantiles=np.outer([-1.6448536, 0.0, 1.6448536], np.ones(d)),
        covariance=np.eye(d),
        draws=rng.normal(size=(4000, d)),
        floor=rng.normal(size=(10_000, d)),
        rhat=np.ones(d),
        ess=np.full(d, 1e4),
        meta={},
    )


def test_metrics_see_a_shift_and_a_scale():
    ref = gaussian_reference(3, 0)
    floor = metrics.errors(ref.floor, ref)
    # 10,000 draws: 0.01 for a mean, 0.0071 for a log sd, 0.021 for an outer quantile; five of each.
    assert floor.worst_mean < 0.05
    assert 0.965 < floor.sd_low <= floor.sd_high < 1.035
    assert floor.worst_quantile < 0.11
    moved = metrics.errors(ref.floor * np.array([1.0, 1.5, 1.0]) + np.array([0.0, 0.0, 0.5]), ref)
    assert moved.worst_coordinate == "x[2]"
    assert moved.worst_sd_coordinate == "x[1]"
    assert moved.worst_mean == pytest.approx(0.5, abs=0.05)
    assert moved.sd_high == pytest.approx(1.5, rel=0.035)
    assert moved.sliced_w2 > 3 * floor.sliced_w2


def test_metrics_count_what_is_not_finite():
    ref = gaussian_reference(2, 1)
    draws = ref.floor.copy()
    draws[:7, 1] = np.nan
    result = metrics.errors(draws, ref)
    assert result.non_finite == 7
    assert np.isfinite(result.worst_mean)


@pytest.mark.parametrize(
    ("framework", "function"),
    daily([("pyro", "run_chain"), ("numpyro", "run_numpyro")], ("pyro", "run_chain")),
)
def test_gradients_are_counted_and_the_counter_is_taken_off(framework, function, monkeypatch, tmp_path):
    monkeypatch.setattr(nuts, "CHAINS", 1)
    monkeypatch.setattr(nuts, "WARMUP", 8)
    monkeypatch.setattr(nuts, "DRAWS", 4)
    original = pyro.ops.integrator.potential_grad
    draws, cost = nuts.run(small("eight_schools_noncentered"), tmp_path, framework)
    assert draws.shape == (1, 4, 11)
    assert cost["gradients"] > (12 if framework == "pyro" else 4)  # NumPyro's are those after warm-up
    assert pyro.ops.integrator.potential_grad is original
    monkeypatch.setattr(nuts, function, lambda *_: pytest.fail("a second call must not sample"))
    again, same = nuts.run(small("eight_schools_noncentered"), tmp_path, framework)
    np.testing.assert_array_equal(again, draws)
    assert same == cost


def test_cache_key_follows_model_data_and_settings():
    one = small("logistic")
    other = dataclasses.replace(one, load=lambda: {"x": X + 1.0, "y": SMALL["logistic"]["y"]})
    key = cache.cell(one, "dft", {"seed": 0})
    assert key == cache.cell(one, "dft", {"seed": 0})
    assert key != cache.cell(one, "dft", {"seed": 1})
    assert key != cache.cell(other, "dft", {"seed": 0})
    assert cache.model_hash(one) != cache.model_hash(dataclasses.replace(one, function="horseshoe"))


def test_missing_reference_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(references, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="--make-references --models ark"):
        references.load("ark")


def test_stored_references_have_converged():
    for name in BENCHMARKS:
        ref = references.load(name)
        assert ref.rhat.max() < 1.01, name
        assert ref.ess.min() > 5_000, name
        assert ref.floor.shape == (10_000, len(ref.names))


def test_table_counts_against_the_targets(tmp_path):
    good = {"worst_mean": 0.02, "sd_low": 0.97, "sd_high": 1.01, "flagged": False, "said": "ok"}
    bad = good | {"sd_low": 0.7}
    rows = table.complete(
        [
            {"model": "breast_cancer", "method": "nuts", "seconds": 100.0, **good},
            {"model": "breast_cancer", "method": "dft-refined", "seconds": 5.0, **good},
            {"model": "ark", "method": "nuts", "seconds": 100.0, **good},
            {"model": "ark", "method": "dft-refined", "seconds": 30.0, **bad},
            {"model": "mixture", "method": "dft-refined", "flagged": True, "said": "ModelError: x"},
        ]
    )
    assert [r["passes"] for r in rows] == [True, True, True, False, False]
    assert rows[1]["ratio"] == pytest.approx(0.05)
    summary = "\n".join(table.summarise(rows))
    assert "dft-refined: 1 of 3 models" in summary
    assert "not flagged: ark" in summary
    assert "median over 2 models: 0.175" in summary
    assert table.brief(rows).splitlines()[2].startswith("| breast_cancer (")
    table.write(rows, ["one line"], tmp_path / "swap")
    assert "| ark |" in (tmp_path / "swap.md").read_text()
    assert (tmp_path / "swap.csv").read_text().count("\n") == 6


class PriorDFT:
    """Stands in for ``DFT`` where only the benchmark's own road is tested: serves draws of the prior."""

    def __init__(self, model, seed, disable_progbar, train="auto"):
        self.model, self.train, self.evaluations = model, train, 0

    def run(self, *args):
        if self.train == "never":
            raise ValueError("no Gaussian here")
        self.args, self.evaluations = args, 100

    def get_samples(self, n=10_000, refine_steps=None):
        self.evaluations += 0 if refine_steps == 0 else n
        with pyro.plate("draws", n, dim=-2):
            trace = pyro.poutine.trace(self.model).get_trace(*self.args)
        return {k: trace.nodes[k]["value"].reshape(n, *SITES[k]) for k in SITES}

    def diagnostics(self):
        return {"status": "converged", "warnings": [], "gradient_evaluations": self.evaluations}


SITES = {"mu": (), "tau": (), "theta": (9,)}


def test_command_runs_caches_and_prints(monkeypatch, tmp_path, capsys):
    import pyro_dft
    from benchmarks import swap

    name = "eight_schools_centered"
    ref = gaussian_reference(11, 2)
    monkeypatch.setattr(pyro_dft, "DFT", PriorDFT, raising=False)
    monkeypatch.setattr(swap, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(references, "load", lambda model: ref)
    monkeypatch.setitem(BENCHMARKS, name, small(name))
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    command = ["--models", name, "--methods", "reference,dft-raw,dft-refined,gaussian-refined"]
    try:
        swap.main(command)
        first = capsys.readouterr().out
        swap.main([*command, "--table"])
        second = capsys.readouterr().out
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    rows = json.loads((tmp_path / "results" / "swap_pyro.json").read_text())
    assert rows[f"{name}/dft-raw"]["gradients"] == 100
    assert rows[f"{name}/dft-refined"]["gradients"] == 10_100
    assert rows[f"{name}/dft-refined"]["code"] == rows[f"{name}/dft-raw"]["code"]
    assert rows[f"{name}/gaussian-refined"]["said"] == "ValueError: no Gaussian here"
    assert rows[f"{name}/reference"]["worst_mean"] < 0.06  # 5.9 standard errors of 0.01
    assert f"{name}/dft-raw: " in first
    assert f"{name}/dft-raw: " not in second  # nothing was run again
    assert "dft-refined: 0 of 1 models" in second
    assert (tmp_path / "results" / "swap_pyro.csv").exists()


def test_unknown_names_are_refused(capsys):
    from benchmarks import swap

    with pytest.raises(SystemExit):
        swap.parse(["--models", "nosuch"])
    assert "nosuch" in capsys.readouterr().err


def test_the_mixture_with_its_components_is_the_same_density():
    from benchmarks.models import numpyro_models
    from pyro_dft.numpyro.model import NumPyroProblem

    values = []
    for function in (numpyro_models.enumerated_mixture, numpyro_models.mixture_of_components):
        problem = NumPyroProblem(function, (Y.astype(np.float32),))
        x = np.random.default_rng(2).normal(size=(6, problem.dim)).astype(np.float32)
        values.append(problem.target().evaluate(x)[0])
    # One flat order; float32 sums of nine terms.
    assert np.ptp(values[0] - values[1]) < 1e-4
