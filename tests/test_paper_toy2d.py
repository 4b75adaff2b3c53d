"""The paper's experiments in the plane: densities, exact draws, discrepancies, verdicts, and both commands in small."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from daily import daily

from benchmarks.paper import __main__ as command
from benchmarks.paper import neural, page, rivals
from benchmarks.paper.discrepancy import Yardstick, kernel_stein, stein_kernel
from benchmarks.paper.gradients import experiment as gradients
from benchmarks.paper.targets import TOYS
from benchmarks.paper.toy2d import musts
from benchmarks.paper.toy2d.methods import mean_and_error

# Rosenbrock's and the funnel are those of tests/test_geometry.py, and the planar ones differ in their numbers.
DAILY = ("gaussian", "mixture", "donut", "squiggle", "planar1")
ALL = pytest.mark.parametrize(
    "toy", [pytest.param(t, id=n, marks=[] if n in DAILY else pytest.mark.slow) for n, t in TOYS.items()]
)


def grid(toy, n=601):
    """Points (n^2, 2) that hold all but a millionth of the mass, and what one of them stands for.

    The funnel's second coordinate is scaled by the first.
    """
    x = toy.target.exact(20_000, 1)
    if toy.name == "funnel":
        v, t = np.meshgrid(np.linspace(-16, 16, n), np.linspace(-8, 8, n), indexing="ij")
        points = np.stack([v, np.exp(v / 2) * t], -1).reshape(-1, 2)
        return points, np.exp(v / 2).ravel() * (32 / (n - 1)) * (16 / (n - 1))
    if toy.name == "rosenbrock":
        a, t = np.meshgrid(np.linspace(-16, 18, n), np.linspace(-2, 2, n), indexing="ij")
        return np.stack([a, a**2 + t], -1).reshape(-1, 2), np.full(n * n, 34 * 4 / (n - 1) ** 2)
    low, high = x.min(0), x.max(0)
    low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)
    axes = np.meshgrid(*(np.linspace(a, b, n) for a, b in zip(low, high, strict=True)), indexing="ij")
    return np.stack(axes, -1).reshape(-1, 2), np.full(n * n, float(np.prod((high - low) / (n - 1))))


@ALL
def test_jax_and_torch_agree(toy):
    x = np.concatenate([toy.target.exact(50, 1), np.random.default_rng(0).uniform(-3, 3, (50, 2))])
    a = np.asarray(jax.vmap(toy.potential)(jnp.asarray(x, jnp.float32)))
    points = torch.tensor(x, requires_grad=True)
    b = torch.func.vmap(toy.torch)(points)
    np.testing.assert_allclose(a, b.detach(), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(b.sum(), points)
    np.testing.assert_allclose(toy.scores(x), -gradient, rtol=1e-3, atol=1e-3)


@ALL
def test_exact_draws_obey_steins_identities(toy):
    x = toy.target.exact(20_000, 2)
    s = toy.scores(x)
    # E[s] = 0 and E[s_i x_j] = -[i = j], whatever the normalising constant.
    for i in range(2):
        for values, truth in ((s[:, i], 0.0), *((s[:, i] * x[:, j], -float(i == j)) for j in range(2))):
            assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))


@ALL
def test_exact_draws_have_the_masses_of_quadrature(toy):
    """Stein's identities hold for any mixture of separate pieces; masses tell these apart."""
    points, cell = grid(toy)
    weight = np.exp(-np.asarray(jax.vmap(toy.potential)(jnp.asarray(points, jnp.float32)), np.float64)) * cell
    weight /= weight.sum()
    x, n = toy.target.exact(20_000, 4), 20_000
    for axis in range(2):
        # Five bands of equal mass of the draws.
        edges = np.quantile(toy.target.exact(20_000, 5)[:, axis], [0.2, 0.4, 0.6, 0.8])
        mass = np.bincount(np.digitize(points[:, axis], edges), weight, 5)
        share = np.bincount(np.digitize(x[:, axis], edges), minlength=5) / n
        assert np.abs(share - mass).max() < 4 * math.sqrt(0.25 / n) + 2e-3  # the second: the grid's own step


def test_stein_kernel_by_automatic_differentiation():
    toy = TOYS["planar4"]
    x = toy.target.exact(6, 1).astype(np.float32)

    def kernel(a, b):
        return (1 + ((a - b) ** 2).sum()) ** -0.5

    def score(a):
        return -jax.grad(toy.potential)(a)

    def stein(a, b):
        mixed = jnp.trace(jax.jacfwd(jax.grad(kernel, 1), 0)(a, b))
        own = score(a) @ score(b) * kernel(a, b)
        return own + score(a) @ jax.grad(kernel, 1)(a, b) + score(b) @ jax.grad(kernel, 0)(a, b) + mixed

    expected = jax.jit(jax.vmap(lambda a: jax.vmap(lambda b: stein(a, b))(x)))(x)
    found = stein_kernel(x.astype(np.float64), toy.scores(x))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", daily(["gaussian", "mixture", "donut", "squiggle", "planar3"], "gaussian", "mixture")
)
def test_kernel_stein_is_zero_for_exact_draws_only(name):
    toy = TOYS[name]
    x = toy.target.exact(20 * 200, 6).reshape(20, 200, 2)
    exact = np.array([kernel_stein(one, toy.scores(one)).u for one in x])
    assert abs(exact.mean()) < 4 * exact.std(ddof=1) / math.sqrt(20)
    moved = x + 0.5 * x.std((0, 1))
    shifted = np.array([kernel_stein(one, toy.scores(one)).u for one in moved])
    assert shifted.mean() > 10 * exact.std(ddof=1)


def test_v_is_u_and_the_diagonal():
    toy = TOYS["squiggle"]
    x = toy.target.exact(100, 1)
    found, k = kernel_stein(x, toy.scores(x)), stein_kernel(x, toy.scores(x))
    assert found.v == pytest.approx(found.u * 99 / 100 + k.trace() / 100**2, rel=1e-9)
    assert found.v > 0
    x[3] = np.nan
    assert kernel_stein(x, x).v == math.inf


def test_sliced_w2_sees_weights_that_kernel_stein_cannot():
    toy = TOYS["mixture"]
    yardstick = Yardstick.of(toy)
    x = toy.target.exact(500, 1)
    assert yardstick.sliced_w2(x) < 0.15
    one_sided = np.where(x[:, :1] > 0, x, -x)
    assert yardstick.sliced_w2(one_sided) > 0.4
    assert yardstick.sliced_w2(np.full((5, 2), np.inf)) == math.inf


def test_standard_errors():
    rng = np.random.default_rng(0)
    independent = rng.normal(size=(3, 400))
    mean, error = mean_and_error(independent.tolist())
    assert mean == pytest.approx(independent.mean())
    assert error == pytest.approx(1 / math.sqrt(1200), rel=1.5)
    apart = independent + np.array([[0.0], [5.0], [10.0]])
    assert mean_and_error(apart.tolist())[1] == pytest.approx(5 / math.sqrt(3), rel=0.1)
    assert mean_and_error([[1.0, math.inf]]) == (math.inf, math.inf)


def cells(**figures):
    """Rows on the donut: key -> (KSD^2, sliced W2), each with a standard error of .1."""
    return [
        {"density": "donut", "key": k.replace("_", "-"), "ksd_u": a, "sw2": b, "ksd_u_se": 0.1, "sw2_se": 0.1}
        for k, (a, b) in figures.items()
    ]


def test_a_method_beats_svgd_within_two_errors_of_exact_draws():
    rows = cells(
        exact=(0.0, 0.5), svgd_200=(0.6, 0.4), kl_ns=(1.0, 1.0), dft_ns=(0.5, 0.7), default=(2.0, 0.3)
    )
    table = musts.by_cell(rows)
    # KSD below SVGD's; W2 above it, but within two errors (.28) of exact draws.
    assert musts.against_svgd(table, "donut", "dft-ns") == {"ksd_u": True, "sw2": True}
    assert musts.against_svgd(table, "donut", "default") == {"ksd_u": False, "sw2": True}
    assert musts.against_kl(table, "donut", "default") == {"ksd_u": False, "sw2": True}
    floor = {r["method"]: r for r in musts.at_the_floor([r | {"method": r["key"]} for r in rows])}
    assert floor["default"]["both"] == "0 of 1"
    assert floor["default"]["sw2"] == "1 of 1"
    lines = musts.judge(rows)
    assert lines[0].startswith("DFT-NS on donut: pass")
    assert any(line.startswith("default recipe, one step on donut: FAIL") for line in lines)
    assert any("FAIL (within one standard error of KL-NS or better on 0 of 1" in line for line in lines)
    # The longer recipe is judged by the longer KL-NS, and not at all without it.
    long = [*rows, *cells(default_long=(0.9, 0.9))]
    assert not any("5,000 steps, KSD" in line for line in musts.judge(long))
    lines = musts.judge([*long, *cells(kl_ns_long=(0.5, 0.8))])
    assert any(
        "5,000 steps, one step, KSD: FAIL (within one standard error of KL-NS, 5,000" in line
        for line in lines
    )
    assert any("5,000 steps, one step, sliced W2: pass" in line for line in lines)


@pytest.mark.parametrize(
    ("full", "partial", "word"),
    [(1.0, 2.0, "pass: full"), (2.0, 1.0, "FAIL: partial"), (1.0, 1.1, "FAIL: no"), (0.1, 0.1, "pass: both")],
)
def test_verdict_on_gradients(full, partial, word):
    figures = {"ksd_v_full": full, "ksd_v_partial": partial, "ksd_v_exact": 0.05}
    errors = {f"{name}_se": 0.1 for name in figures}
    assert gradients.verdict(figures | errors).startswith(word)


def test_a_runaway_is_not_at_the_floor():
    figures = {"ksd_v_full": 0.1, "ksd_v_partial": 1000.0, "ksd_v_exact": 0.1}
    errors = {"ksd_v_full_se": 0.1, "ksd_v_partial_se": 800.0, "ksd_v_exact_se": 0.1}
    assert gradients.verdict(figures | errors) == "FAIL: no difference"
    assert gradients.verdict(figures | errors | {"ksd_v_partial_se": 400.0}) == "pass: full is lower"


@pytest.mark.slow
def test_rivals_find_a_gaussian():
    toy = TOYS["gaussian"]
    points = rivals.starts(1, 200)
    moved = {
        "langevin": rivals.langevin(toy, points, 0.002, 1500),
        "hmc": rivals.hmc(toy, points, 0.1, 60),
        "svgd": rivals.svgd(toy, points[:, :60], 0.3, (20, 60))[1],
        "nuts": rivals.nuts(toy, 1, 400, (0,))[0],
    }
    for name, x in moved.items():
        ratio = x.reshape(-1, 2).std(0) / [1.0, 0.1]
        # Langevin's own bias is h / (4 sd^2) of the sd, 5 % here; SVGD has not spread out yet.
        assert np.abs(np.log(ratio)).max() < (0.6 if name == "svgd" else 0.25), (name, ratio)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Where quick runs write; both commands share what they train."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "CACHE", folder)
        patch.setattr(page, "RESULTS", folder / "results")
        yield folder / "quick"


@pytest.mark.slow  # fewer methods every day: test_rows_are_added_to_a_table
def test_toy2d_in_small(here, capsys, monkeypatch):
    command.main(["toy2d", "--quick"])
    text = (here / "toy2d.md").read_text()
    assert "DFT-NS on donut" in text
    assert "| exact draws |" in text
    assert "donut: U = (|x| - 2.6)^2 / 0.033" in text
    assert (here / "toy2d.csv").read_text().count("\n") == 8  # SVGD with 500 steps is left out
    asked = ["toy2d", "--quick", "--methods", "exact,dft-ns,langevin,svgd-200"]
    assert (here / "toy2d.png").stat().st_size > 10_000
    # The second time everything is on the disk; what is not can be left out.
    monkeypatch.setattr(neural, "by_steps", None)
    monkeypatch.setattr(rivals, "svgd", None)
    command.main([*asked[:-1], f"{asked[-1]},fisher-ns", "--finished"])
    assert "DFT-NS on donut" in capsys.readouterr().out


def test_rows_are_added_to_a_table(here, capsys):
    command.main(["toy2d", "--quick", "--methods", "exact,svgd-200"])
    before, drawn = (here / "toy2d.csv").read_text().splitlines(), (here / "toy2d.png").read_bytes()
    command.main(["toy2d", "--quick", "--add", "--methods", "langevin"])
    after = (here / "toy2d.csv").read_text().splitlines()
    assert after[:3] == before  # to the last digit
    assert after[3].startswith('donut,"Langevin, 500 steps"')
    assert "to a table that was there: Langevin, 500 steps" in (here / "toy2d.md").read_text()
    assert (here / "toy2d.png").read_bytes() == drawn


@pytest.mark.slow
def test_gradients_in_small(here):
    command.main(["gradients", "--quick"])
    assert not (here.parent / "results").exists()  # what is quick is no result
    assert "full gradient ends lower" in (here / "gradients.md").read_text()
    curve = (here / "gradients_curves.csv").read_text().splitlines()
    assert len(curve) == 1 + 2 * 2 * 3  # gradients, seeds, looks
    first = [line.split(",") for line in curve if line.split(",")[2:4] == ["0", "0"]]
    # Both trainings start from the same sampler and the same noise.
    assert first[0][4:] == first[1][4:]
    assert (here / "gradients.png").stat().st_size > 5_000


def test_the_pyro_door():
    size = neural.Size(seeds=(0,), sets=1, draws=50, overrides=neural.QUICK.overrides)
    made = neural._by_run(TOYS["mixture"], neural.RECIPES["default"], size, "pyro")
    assert made["raw"].shape == made["refined"].shape == (1, 1, 50, 2)
    assert np.isfinite(made["raw"]).all()
    assert made["said"].startswith("1 ")


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match="unknown: nowhere"):
        command.main(["toy2d", "--densities", "nowhere"])
