"""The jax engine by itself: targets, noise, the Gaussian, training, refinement, pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from daily import daily
from jax.experimental.ode import odeint

from pyro_dft.engine_jax import chains, functional, objectives, random, refine, step, train
from pyro_dft.engine_jax import target as target_module
from pyro_dft.engine_jax.cost import uses_lapack
from pyro_dft.engine_jax.engine import ENGINE
from pyro_dft.engine_jax.sampler import Sampler
from pyro_dft.engine_jax.target import Target, whitened_score_differentiable
from pyro_dft.errors import ModelError
from pyro_dft.experimental import grouped
from pyro_dft.recipe.constants import FULL_RANK_LIMIT, MIN_SIGMA
from pyro_dft.recipe.fit import Problem
from pyro_dft.recipe.gaussian_fit import GaussianFitter
from pyro_dft.recipe.trainer import Trainer
from pyro_dft.settings import Settings

COVARIANCE = np.array([[1.0, 0.6], [0.6, 2.0]])
MEAN = np.array([1.0, -2.0])


def small(**changes):
    """Settings of a brief fit, those of experiments beside the others."""
    brief = {
        "num_steps": 60,
        "dft_fraction": 0.2,
        "precondition_steps": 40,
        "restarts": 2,
        "width": 8,
        "depth": 1,
    }
    return Settings(**grouped(brief | {"batch_size": 16, "num_draws": 400, "refine_steps": 2} | changes))


def gaussian(x, data):
    mean, precision = data
    return 0.5 * (x - mean) @ precision @ (x - mean)


def gaussian_target(**options):
    data = (MEAN.astype(np.float32), np.linalg.inv(COVARIANCE).astype(np.float32))
    return Target(gaussian, 2, data=data, **options)


def banana(x, data):
    return 0.5 * x[0] ** 2 + 0.5 * (x[1] - x[0] ** 2) ** 2 / 0.25 + jnp.cos(x[1])


def trained(settings, chains=1):
    rng = np.random.default_rng(0)
    starts = rng.uniform(-2, 2, (chains, settings.restarts, 2)).astype(np.float32)
    trainer = Trainer(ENGINE, [Problem(gaussian_target(), starts)], settings, rng)
    while not trainer.done:
        trainer.step()
    return trainer, trainer.finish()


# Random numbers


def test_philox_gives_the_published_numbers():
    # Known answers of Random123 for philox2x32 with 10 rounds: counter (low, high), key -> result.
    known = [
        ((0x00000000, 0x00000000), 0x00000000, (0xFF1DAE59, 0x6CD10DF2)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ]
    for counter, key, expected in known:
        words = tuple(jnp.asarray([word], jnp.uint32) for word in counter)
        found = random.philox(words, jnp.uint32(key))
        assert (int(found[0][0]), int(found[1][0])) == expected


def test_normal_numbers_are_normal_and_streams_differ():
    stream = jnp.array([1, 2], jnp.uint32)
    x = np.asarray(random.normal(stream, (200_000,), np.float32), float)
    # Standard errors of mean, variance and fourth moment: 1, sqrt(2), sqrt(96), each over sqrt(n); 5 of them.
    for power, expected, error in ((1, 0, 1.0), (2, 1, 2**0.5), (4, 3, 96**0.5)):
        assert abs((x**power).mean() - expected) < 5 * error / len(x) ** 0.5
    assert np.isfinite(x).all()
    y = np.asarray(random.normal(random.fold(stream, 0), (200_000,), np.float32), float)
    assert abs((x * y).mean()) < 5 / len(x) ** 0.5
    assert len({tuple(row) for row in np.asarray(random.split(stream, 1000)).tolist()}) == 1000


def test_uniform_numbers_never_touch_the_ends():
    stream = jnp.array([3, 4], jnp.uint32)
    x = random.uniform(stream, (1_000_000,), np.float32)
    assert float(x.min()) > 0
    assert float(x.max()) < 1
    with jax.enable_x64(True):
        y = random.uniform(stream, (1000,), np.float64)
        assert y.dtype == np.float64
        assert abs(float(y.mean()) - 0.5) < 5 * 12**-0.5 / 1000**0.5


def test_words_come_from_both_kinds_of_keys():
    old, new = jax.random.PRNGKey(7), jax.random.key(7)
    assert np.array_equal(random.words(old), random.words(new))
    assert random.words(jax.random.key(7, impl="rbg")).shape == (2,)


# Targets


def test_evaluate_gives_density_and_score_for_any_number_of_points():
    target = gaussian_target()
    x = np.random.default_rng(0).normal(size=(3, 700, 2)).astype(np.float32)
    log_density, score = target.evaluate(x)
    centred = x - MEAN
    precision = np.linalg.inv(COVARIANCE)
    assert np.allclose(
        log_density, -0.5 * np.einsum("...i,ij,...j", centred, precision, centred), rtol=1e-4, atol=1e-5
    )
    assert np.allclose(score, -centred @ precision, atol=1e-5)
    assert target.gradient_evaluations == 2100


def test_scores_by_themselves_are_those_beside_the_density():
    """And zero where they are not finite: only the first point is inside."""
    target = Target(lambda x, data: 0.5 * (x**2).sum() + jnp.sqrt(x[0]), 2)
    x = jnp.asarray([[1.0, 2.0], [-1.0, 0.5]])
    np.testing.assert_array_equal(target.spec.score(x, ()), target.spec.evaluate(x, ())[1])
    np.testing.assert_allclose(target.spec.score(x, ()), [[-1.5, -2.0], [0.0, 0.0]], rtol=1e-6)


def test_trajectories_of_many_data_evaluate_the_density_at_their_ends_alone():
    """Its sum over the data, which no score needs, is not in the loop over the steps."""
    data = np.arange(20_000, dtype=np.float32)

    def potential(x, y):
        return (x[0] + jnp.log1p(jnp.exp(x[1] * y))).sum()

    position = refine.Position(jnp.zeros((1, 4, 2)), jnp.zeros((1, 4)), jnp.zeros((1, 4, 2)))
    noise = refine.transition_noise(random.words(np.zeros(2, np.uint32)), (1, 4, 2), jnp.float32)

    def compiled(y):
        target = Target(potential, 2, data=y)
        scale, step = jnp.ones((1, 2)), jnp.ones(1)
        moved = jax.jit(lambda at, n: refine.transition(target.spec, y, at, scale, step, noise, n))
        text = moved.lower(position, 5).compile().as_text()
        return target.spec.brief, text.count(" log-plus-one("), text.count(" exponential(")

    brief, sums, scores = compiled(data[:100])
    assert brief
    more = compiled(data)
    assert not more[0]
    # The program has a second copy of the score, and none of the sum.
    assert more[1] == sums
    assert more[2] > scores


def test_points_that_are_not_finite_do_not_spoil_others():
    target = Target(lambda x, _: jnp.where(x[0] > 0, -jnp.log(x[0]) + x[0], jnp.nan), 1)
    log_density, score = target.evaluate(np.array([[1.0], [-1.0], [2.0]], np.float32))
    assert np.isfinite(log_density).tolist() == [True, False, True]
    assert log_density[1] == -np.inf
    assert score[1] == 0
    assert target.nonfinite_evaluations == 1


def test_much_data_is_read_by_a_few_points_at_a_time():
    """Blocks that do not divide the batch, their last one filled up, give each point its own density and score."""
    rows = np.random.default_rng(0).normal(size=(2**16, 2)).astype(np.float32)
    target = Target(lambda x, data: ((data - x) ** 2).sum(1).mean(), 2, data=rows)
    assert target.spec.size.at_once(True) < 21
    points = np.random.default_rng(1).normal(size=(21, 2)).astype(np.float32)
    blocked = jax.jit(lambda x: target.spec._rows(x, rows, None))
    value, gradient = blocked(jnp.asarray(points))
    spread = rows.astype(float).var(0).sum()
    shifts = points - rows.astype(float).mean(0)
    np.testing.assert_allclose(value, (shifts**2).sum(1) + spread, rtol=1e-4)
    np.testing.assert_allclose(gradient, 2 * shifts, rtol=1e-3, atol=1e-4)
    assert gaussian_target().spec.size.at_once(True) > 1000


def test_potential_that_is_no_scalar_is_refused():
    with pytest.raises(ModelError, match="must return a scalar"):
        Target(lambda x, _: x, 2)


def test_hessian_vector_products_by_differences_agree_with_exact_ones():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        mean, scale = jnp.zeros((1, 2)), jnp.asarray(rng.normal(size=(1, 2, 2)) + 2 * np.eye(2))
        u, v = jnp.asarray(rng.normal(size=(1, 5, 2))), jnp.asarray(rng.normal(size=(1, 5, 2)))
        products = []
        for hvp in ("exact", "difference"):
            spec = Target(banana, 2, dtype=np.float64, hvp=hvp).spec

            def paired(u, spec=spec):
                return (whitened_score_differentiable(spec, u, mean, scale, (), None)[0] * v).sum()

            products.append(np.asarray(jax.jit(jax.grad(paired))(u)))
    assert np.allclose(*products, rtol=1e-6, atol=1e-6)


def test_difference_products_are_chosen_for_lapack_on_a_cpu():
    def with_cholesky(x, _):
        factor = jnp.linalg.cholesky(jnp.eye(2) * jnp.exp(x[0]))
        return 0.5 * (x @ x) + jnp.log(factor[0, 0])

    point = jax.ShapeDtypeStruct((2,), np.float32)
    assert uses_lapack(with_cholesky, point, ())
    assert uses_lapack(jax.jit(with_cholesky), point, ())
    assert not uses_lapack(banana, point, ())
    assert Target(with_cholesky, 2).spec.differences == (jax.default_backend() == "cpu")
    assert not Target(banana, 2).spec.differences


def test_only_solvers_that_choose_their_own_steps_are_adaptive():
    """Far out they take many times as many: the mode search looks at fewer points there."""

    def solved(x, _):
        return odeint(lambda y, t, rate: -jnp.exp(rate) * y, jnp.array(1.0), jnp.array([0.0, 1.0]), x[0])[-1]

    def in_fixed_steps(x, _):
        return jax.lax.scan(lambda y, _: (y - 0.01 * jnp.exp(x[0]) * y, None), 1.0, None, length=100)[0]

    assert Target(solved, 1).adaptive
    assert not Target(in_fixed_steps, 1).adaptive
    assert not Target(banana, 2).adaptive


# The Gaussian


def test_gaussian_fit_finds_a_gaussian():
    rng = np.random.default_rng(0)
    starts = rng.uniform(-2, 2, (1, 2, 2))
    fitter = GaussianFitter(ENGINE, gaussian_target(), starts, np.array([0.1, 1.0]), steps=60, rng=rng)
    while not fitter.done:
        fitter.advance()
    found = fitter.result()
    for mean, scale in zip(found.mean, found.scale, strict=True):
        # For a Gaussian target every estimate of the curvature is exact: only averaging noise of the mean is left.
        assert np.allclose(mean, MEAN, atol=0.05)
        assert np.allclose(scale @ scale.T, COVARIANCE, rtol=0.1, atol=0.1)
    exact = 0.5 * np.log(np.linalg.det(COVARIANCE)) - 1.0
    assert np.allclose(found.elbo, exact, atol=5 * found.elbo_error.max() + 0.01)


def test_wide_problems_fit_scales_only():
    dim = FULL_RANK_LIMIT + 1
    sds = np.linspace(0.5, 2.0, dim).astype(np.float32)
    target = Target(lambda x, sd: 0.5 * jnp.square(x / sd).sum(), dim, data=sds)
    rng = np.random.default_rng(0)
    fitter = GaussianFitter(ENGINE, target, np.ones((1, 1, dim)), np.ones(1), steps=60, rng=rng)
    while not fitter.done:
        fitter.advance()
    found = fitter.result()
    assert found.scale.shape == (1, dim)
    assert np.allclose(found.scale[0], sds, rtol=0.15)


# Refinement


def test_refinement_leaves_the_target_invariant_and_repairs_draws():
    rng = np.random.default_rng(2)
    target, n = gaussian_target(), 4000
    factor = np.linalg.cholesky(COVARIANCE)
    exact = (MEAN + rng.normal(size=(1, n, 2)) @ factor.T).astype(np.float32)
    scale = refine.whitening(exact, factor[None])
    step_size = refine.tune_step_size(target, exact, scale, leapfrog_steps=5, rng=rng)
    options = {"leapfrog_steps": 5, "rng": rng}
    after = refine.refine(target, exact, scale, step_size, steps=5, **options)
    # Standard error of a mean: sd / sqrt(n); of an sd: sd / sqrt(2 n).
    sd = np.sqrt(np.diagonal(COVARIANCE))
    assert (np.abs(after.draws[0].mean(0) - MEAN) < 5 * sd / n**0.5).all()
    assert (np.abs(after.draws[0].std(0) - sd) < 5 * sd / (2 * n) ** 0.5).all()
    assert 0.6 < after.acceptance[0] < 0.95
    assert after.divergence_rate == 0
    shifted = refine.refine(target, exact + np.float32(1), scale, step_size, steps=30, **options)
    assert (np.abs(shifted.draws[0].mean(0) - MEAN) < 5 * sd / n**0.5).all()
    assert np.allclose(shifted.log_density, target.evaluate(shifted.draws)[0], atol=1e-4)


def test_whitening_falls_back_where_there_are_few_draws():
    few = np.random.default_rng(0).normal(size=(1, 7, 2)).astype(np.float32)
    assert np.array_equal(refine.whitening(few, np.eye(2)[None] * 3), np.eye(2, dtype=np.float32)[None] * 3)


# Training


# The others have single steps of theirs compared with the other engine's every day: tests/test_parity.py.
@pytest.mark.parametrize(
    "objective", daily(["auto", "dft", "dft-paper", "kl", "fisher-partial"], "auto", "dft-paper")
)
def test_every_objective_trains(objective):
    share = 0.2 if objective == "auto" else 0.0
    settings = small(dft_fraction=share, objective=objective, train="always")
    trainer, fit = trained(settings)
    phases = {p.phase for p in trainer.history}
    assert phases - {"gaussian"} == ({"kl", "dft"} if objective == "auto" else {objective})
    assert all(np.isfinite(p.loss) for p in trainer.history)
    assert [p.step for p in trainer.history] == list(range(1, len(trainer.history) + 1))
    assert np.isfinite(fit.sampler.draw(100, np.random.default_rng(0))).all()


@pytest.mark.parametrize("mode", ["annealed", "learned"])
def test_noise_modes(mode):
    settings = small(dft_fraction=0.0, objective="kl", train="always", noise_mode=mode, noise_start=0.4)
    _, fit = trained(settings)
    sigma = np.exp(np.asarray(fit.sampler.generator["log_sigma"]))
    if mode == "annealed":
        assert np.allclose(sigma, settings.experimental.noise, rtol=1e-5)
    else:
        assert (sigma != settings.experimental.noise).all()
        assert (sigma >= MIN_SIGMA - 1e-6).all()


def test_gate_stops_at_a_gaussian_that_is_right():
    _, fit = trained(small(train="auto"))
    assert fit.objective == ["gaussian"]
    assert fit.sampler.generator is None


def test_chains_are_independent_of_each_other():
    settings = small(dft_fraction=0.0, objective="kl", train="always")
    target = gaussian_target()
    rng = np.random.default_rng(0)
    sampler = Sampler(
        np.tile(MEAN, (2, 1)).astype(np.float32), np.tile(np.eye(2, dtype=np.float32), (2, 1, 1))
    )
    both = train.NetworkTrainer(target, sampler, settings, rng)
    hyper = both.hyper
    z = jnp.asarray(rng.normal(size=(2, 16, 2)), jnp.float32)
    eps = jnp.asarray(rng.normal(size=(2, 16, 2)), jnp.float32)
    state = both.state

    def loss(weights):
        distance = objectives.Distance("squared", hyper.huber_scale)
        at = step.Whitened(target.data, sampler.mean, sampler.scale, None)
        return step.generator_loss(
            target.spec, "kl", distance, at, weights, state.score, step.Noise(z, eps), None
        )[0][0]

    gradient = jax.jit(jax.grad(loss))(state.generator)
    assert any(float(jnp.abs(value[0]).max()) > 0 for value in gradient.values())
    for value in gradient.values():
        assert float(jnp.abs(value[1]).max()) == 0


def test_a_second_data_set_of_the_same_shape_compiles_nothing():
    settings = small(train="always")
    trained(settings)
    before = [f._cache_size() for f in (target_module._evaluate_block, train._chunk, chains.block)]
    data = ((MEAN + 1).astype(np.float32), np.eye(2, dtype=np.float32))
    rng = np.random.default_rng(5)
    starts = rng.uniform(-2, 2, (1, settings.restarts, 2)).astype(np.float32)
    trainer = Trainer(ENGINE, [Problem(Target(gaussian, 2, data=data), starts)], settings, rng)
    while not trainer.done:
        trainer.step()
    fit = trainer.finish()
    assert [f._cache_size() for f in (target_module._evaluate_block, train._chunk, chains.block)] == before
    assert np.allclose(fit.measurement.refined.mean((0, 1)), MEAN + 1, atol=5 / 400**0.5)


def test_an_interrupt_keeps_what_is_trained():
    settings = small(train="always")
    rng = np.random.default_rng(0)
    starts = rng.uniform(-2, 2, (1, settings.restarts, 2)).astype(np.float32)
    trainer = Trainer(ENGINE, [Problem(gaussian_target(), starts)], settings, rng)
    trainer.step()
    branch = trainer.branch().finish()
    assert branch.objective == ["gaussian"]
    assert branch.measurement is not None
    while not trainer.done:
        trainer.step()
    assert trainer.finish().sampler.generator is not None


def test_sampler_arrays_round_trip():
    _, fit = trained(small(train="always"))
    arrays = fit.sampler.to_arrays()
    assert {k for k in arrays if k.startswith("generator.")} == set(Sampler.generator_shapes(1, 2, 8, 1))
    again = Sampler.from_arrays(arrays)
    z, eps = np.random.default_rng(0).normal(size=(2, 1, 50, 2)).astype(np.float32)
    assert np.array_equal(again.transport(z, eps), fit.sampler.transport(z, eps))
    draws = fit.sampler.draw(1500, np.random.default_rng(0))
    assert draws.shape == (1, 1500, 2)
    assert len(np.unique(draws[0], axis=0)) == 1500


# Pure functions


@pytest.fixture(scope="module")
def pure():
    settings = small()
    target = gaussian_target()
    schedule = functional.Schedule.of(target.spec, settings)
    hyper = train.Hyper.of(settings)
    starts = np.random.default_rng(0).uniform(-2, 2, (1, settings.restarts, 2)).astype(np.float32)

    def fit(words, data):
        first = functional.start(schedule, hyper, jnp.asarray(starts), words)
        last, losses = functional.rest(schedule, hyper, first, data)
        return last, losses, functional.finish(schedule, last, data, random.fold(words, 9), 200)

    return schedule, target, fit


@pytest.mark.slow  # every day through the front door: test_many_data_sets_at_once of tests/test_numpyro_dft.py
def test_pure_fit_under_jit_and_vmap(pure):
    schedule, target, fit = pure
    words = jnp.array([1, 2], jnp.uint32)
    data = jax.tree.map(lambda a: jnp.stack([a, a * 1.5]), target.data)
    together, losses, found = jax.jit(jax.vmap(fit, in_axes=(None, 0)))(words, data)
    assert losses.shape == (2, schedule.total)
    one = jax.jit(fit)
    for i in range(2):
        last, _, _ = one(words, jax.tree.map(lambda a, i=i: a[i], data))
        assert np.allclose(last.mean, together.mean[i], atol=1e-4)
        assert np.allclose(
            last.network.generator["matrix"], together.network.generator["matrix"][i], atol=1e-4
        )
    assert found.refined.shape == (2, 1, 200, 2)
    # 200 draws: a mean has standard error sd / sqrt(200).
    error = np.sqrt(np.diagonal(COVARIANCE)) / 200**0.5
    assert (np.abs(np.asarray(found.refined[0, 0]).mean(0) - MEAN) < 5 * error).all()
