"""NumPyro models as functions of one flat point, against NumPyro's own potential."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from daily import daily
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ExpTransform
from numpyro.handlers import mask, reparam
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import initialize_model, potential_energy

from pyro_dft.errors import ModelError, PerformanceWarning
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.numpyro.potential import PotentialProblem
from pyro_dft.numpyro.traced import map_rows, trace

rng = np.random.default_rng(0)
EFFECT = np.array([28.0, 8, -3, 7, -1, 1, 18, 12], np.float32)
ERROR = np.array([15.0, 10, 16, 11, 9, 11, 10, 18], np.float32)
Y = rng.normal(size=20).astype(np.float32)
X = rng.normal(size=(20, 3)).astype(np.float32)
BITS = (rng.random(20) < 0.5).astype(np.float32)


def eight_schools(effect, error):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(effect)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("effect", dist.Normal(theta, error), obs=effect)


def noncentered_by_hand(effect, error):
    with reparam(config={"theta": LocScaleReparam(0)}):
        eight_schools(effect, error)


def logistic(x, y):
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    with numpyro.plate("row", len(y)):
        p = numpyro.deterministic("p", jax.nn.sigmoid(x @ beta))
        numpyro.sample("y", dist.Bernoulli(probs=p), obs=y)


def many_supports(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    factor = numpyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scale = numpyro.sample("scale", dist.LogNormal(jnp.zeros(3), 0.5).to_event(1))
    share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    cut = numpyro.sample("cut", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("cut_prior", -0.5 * (cut**2).sum())
    with numpyro.plate("row", len(y)):
        numpyro.sample(
            "y", dist.MultivariateNormal(weights + share, scale_tril=scale[:, None] * factor), obs=y
        )


def dynamic(y):
    top = numpyro.sample("top", dist.LogNormal(0.0, 1.0))
    low = numpyro.sample("low", dist.Uniform(0.0, top))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(low, 1.0), obs=y)


def mixture(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("component", 2):
        loc = numpyro.sample("loc", dist.Normal(0.0, 3.0))
    numpyro.deterministic("gap", loc[1] - loc[0])
    with numpyro.plate("row", len(y)):
        k = numpyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.deterministic("own", loc[k])
        numpyro.sample("y", dist.Normal(loc[k], 1.0), obs=y)


def state_space(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def transition(before, value):
        z = numpyro.sample("z", dist.Normal(before, scale))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=value)
        return z, None

    scan(transition, 0.0, jnp.asarray(y))


def masked(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)), mask(mask=jnp.arange(len(y)) < 5):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def subsampled(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("row", len(y), subsample_size=6) as index:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def with_param(y):
    shift = numpyro.param("shift", jnp.array(0.5))
    mu = numpyro.sample("mu", dist.Normal(shift, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


MODELS = {
    "eight_schools": (eight_schools, (EFFECT, ERROR)),
    "noncentered_by_hand": (noncentered_by_hand, (EFFECT, ERROR)),
    "logistic": (logistic, (X, BITS)),
    "many_supports": (many_supports, (X,)),
    "dynamic": (dynamic, (Y,)),
    "mixture": (mixture, (Y,)),
    "state_space": (state_space, (Y[:6],)),
    "masked": (masked, (Y,)),
    "with_param": (with_param, (Y,)),
}


# Supports of all kinds every day in tests/test_density.py, whose evidence of a prior is one only if they agree.
DAILY = sorted(set(MODELS) - {"many_supports", "logistic"})


@pytest.fixture(params=daily(sorted(MODELS), *DAILY), scope="module")
def case(request):
    model, args = MODELS[request.param]
    problem = NumPyroProblem(model, args)
    x = problem.initial_points(4, problem.target(), np.random.default_rng(1))
    return model, args, problem, x


def test_potential_is_numpyros_own(case):
    model, args, problem, x = case
    info = initialize_model(jax.random.key(0), model, model_args=args)
    values = jax.jit(jax.vmap(lambda row: info.potential_fn(problem.layout.unflatten(row))))(jnp.asarray(x))
    found = -problem.target().evaluate(x)[0]
    assert np.allclose(found, np.array(values), rtol=1e-4, atol=1e-3)


def test_constrain_and_unconstrain_are_inverse(case):
    _, _, problem, x = case
    samples = problem.constrain(x)
    assert set(problem.layout.names) <= set(samples)
    for site in problem.layout.sites:
        assert samples[site.name].shape == (4, *site.constrained_shape)
    assert np.allclose(problem.unconstrain(samples), x, atol=1e-3)


def test_replicated_data_and_likelihoods_have_the_shapes_of_the_data(case):
    _, _, problem, x = case
    samples = problem.constrain(x)
    observed = problem.observed()
    replicated = problem.posterior_predictive(samples, np.random.default_rng(0))
    assert {k: v.shape for k, v in replicated.items()} == {k: (4, *v.shape) for k, v in observed.items()}
    assert all(len(np.unique(v, axis=0)) > 1 for v in replicated.values())
    assert set(problem.plate_dims()) >= set(problem.layout.names) | set(observed)
    if problem.enumerated:
        with pytest.raises(ModelError, match="depends on the discrete sites"):
            problem.log_likelihood(samples)
        return
    pointwise = problem.log_likelihood(samples)
    assert set(pointwise) == set(observed)


def test_flat_order_and_transform_names():
    problem = NumPyroProblem(many_supports, (X,))
    names = {site.name: site.transform for site in problem.layout.sites}
    assert names == {
        "cut": "ordered_vector", "factor": "corr_cholesky", "scale": "positive", "share": "unit_interval",
        "weights": "simplex",
    }  # fmt: skip
    assert list(names) == sorted(names)


def test_non_centred_coordinates_have_the_same_posterior():
    problem = NumPyroProblem(eight_schools, (EFFECT, ERROR))
    assert problem.noncentering_candidates() == ("theta",)
    other = problem.noncentered(("theta",))
    x = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    original = other.original_coordinates(x)
    samples = other.constrain(x)
    mu, tau = samples["mu"][:, None], samples["tau"][:, None]
    assert np.allclose(samples["theta"], mu + tau * x[:, 2:], rtol=1e-5, atol=1e-5)
    # The same posterior: densities differ by the log Jacobian, 8 log tau.
    one, two = problem.target().evaluate(original)[0], other.target().evaluate(x)[0]
    assert np.allclose(two - one, 8 * np.log(tau[:, 0]), rtol=1e-4, atol=1e-3)
    assert np.allclose(other.unconstrain(samples), x, atol=1e-3)
    with pytest.raises(ModelError, match="cannot be non-centred"):
        problem.noncentered(("mu",))


def test_sites_that_depend_on_discrete_ones_are_left_out():
    problem = NumPyroProblem(mixture, (Y,))
    assert problem.deterministic_sites() == ["gap"]


def test_mask_gives_zero_likelihood():
    problem = NumPyroProblem(masked, (Y,))
    pointwise = problem.log_likelihood({"mu": np.zeros(3, np.float32)})["y"]
    assert (pointwise[:, 5:] == 0).all()
    assert (pointwise[:, :5] != 0).all()


def test_minibatch_potential_is_unbiased():
    y = (np.arange(20) / 5).astype(np.float32)
    problem = NumPyroProblem(subsampled, (y,))
    assert problem.minibatch
    assert (problem.data_size, problem.minibatch_size) == (20, 6)

    def full(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    x = jnp.array([0.7])
    exact = potential_energy(full, (y,), {}, {"mu": x[0]})
    assert np.isclose(problem.potential(x, problem.data), exact, rtol=1e-5)
    words = np.random.default_rng(0).integers(2**32, size=(4000, 2), dtype=np.uint32)
    gradient = jax.jit(
        jax.vmap(jax.grad(problem.minibatch_potential), in_axes=(None, None, 0))
    )(x, problem.data, words)[:, 0]  # fmt: skip
    expected = jax.grad(problem.potential)(x, problem.data)[0]
    assert abs(gradient.mean() - expected) < 5 * gradient.std() / 4000**0.5
    assert gradient.std() > 0


def test_minibatches_of_a_model_with_discrete_sites_are_refused_with_a_warning():
    def model(y):
        loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with numpyro.plate("row", len(y), subsample_size=5) as index:
            k = numpyro.sample(
                "k", dist.Categorical(probs=jnp.array([0.5, 0.5])), infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Normal(loc[k], 1.0), obs=jnp.asarray(y)[index])

    with pytest.warns(PerformanceWarning, match="reads all rows"):
        problem = NumPyroProblem(model, (Y,))
    assert not problem.minibatch


def test_equal_operations_share_a_program_and_data_are_never_mixed_up():
    one, two = NumPyroProblem(logistic, (X, BITS)), NumPyroProblem(logistic, (X + 1, BITS))
    assert one.potential == two.potential
    assert hash(one.potential) == hash(two.potential)
    shorter = NumPyroProblem(logistic, (X[:10], BITS[:10]))
    assert one.potential != shorter.potential
    scale = {"value": 1.0}

    def closure(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, scale["value"]))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    first = NumPyroProblem(closure, (Y,))
    scale["value"] = 2.0
    second = NumPyroProblem(closure, (Y,))
    assert first.potential != second.potential


def test_literal_numbers_tell_traces_apart():
    shape = jax.ShapeDtypeStruct((), np.float32)
    one, _ = trace(lambda x: x * 0.1234567, shape)
    two, _ = trace(lambda x: x * 0.12345671, shape)
    assert one != two


def test_map_rows_in_blocks():
    function, arrays = trace(lambda x: {"y": 2 * x}, jax.ShapeDtypeStruct((3,), np.float32))
    x = rng.normal(size=(100, 3)).astype(np.float32)
    assert np.array_equal(map_rows(function, arrays, x, elements=2**20)["y"], 2 * x)


def test_given_transforms():
    transforms = {"mu": ExpTransform().inv}

    def model():
        numpyro.sample("mu", dist.LogNormal(0.0, 1.0))

    own, given = NumPyroProblem(model), NumPyroProblem(model, transforms=transforms)
    x = np.array([[0.3], [-1.0]], np.float32)
    assert np.allclose(own.target().evaluate(x)[0], given.target().evaluate(x)[0], atol=1e-5)
    with pytest.raises(ModelError, match="transforms names"):
        NumPyroProblem(model, transforms={"nu": ExpTransform().inv})


@pytest.mark.parametrize(
    ("model", "args", "words"),
    [
        (lambda: None, (), "no latent sites"),
        (lambda: numpyro.sample("k", dist.Bernoulli(0.5)), (), "only discrete latent sites"),
        (lambda: numpyro.sample("n", dist.Poisson(3.0)), (), "cannot be enumerated"),
        (lambda: numpyro.sample("d", dist.Delta(0.0)), (), "delta distribution"),
        (
            lambda y: numpyro.sample("mu", dist.Normal(0, 1)) + y @ y[:-1],
            (Y,),
            "the model failed after site 'mu'",
        ),
        (
            lambda y: numpyro.sample(
                "y", dist.Normal(numpyro.sample("mu", dist.Normal(jnp.zeros(3), 1)), 1), obs=y
            ),
            (Y,),
            "site 'y'",
        ),
    ],
)
def test_errors_name_the_cause(model, args, words):
    with pytest.raises(ModelError, match=words):
        NumPyroProblem(model, args)


def test_latent_site_in_a_subsampled_plate_is_refused():
    def model(y):
        with numpyro.plate("row", len(y), subsample_size=5) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.asarray(y)[index])

    with pytest.raises(ModelError, match="inside the subsampled plate 'row'"):
        NumPyroProblem(model, (Y,))


def test_data_that_would_broadcast_to_a_square_are_refused():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match="broadcast"):
        NumPyroProblem(model, (Y[:, None],))


def test_no_finite_starting_point_says_where():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.factor("bad", jnp.log(-1 - jnp.arange(2) * mu**2))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match="site 'y' holds 1 NaN of 2 values"):
        NumPyroProblem(model, (np.array([1.0, np.nan], np.float32),))
    problem = NumPyroProblem(model, (Y,))
    with pytest.raises(ModelError, match=r"not finite at: 'bad' \(2 of 2 terms\)"):
        problem.initial_points(2, problem.target(), np.random.default_rng(0), max_tries=2)


def test_init_strategy():
    problem = NumPyroProblem(eight_schools, (EFFECT, ERROR))
    strategy = numpyro.infer.init_to_value(values={"mu": 3.0, "tau": 2.0, "theta": jnp.ones(8)})
    x = problem.initial_points(3, problem.target(), np.random.default_rng(0), init_strategy=strategy)
    assert np.allclose(x, np.r_[3.0, np.log(2.0), np.ones(8)], atol=1e-5)


def test_prior_predictive():
    problem = NumPyroProblem(eight_schools, (EFFECT, ERROR))
    drawn = problem.prior_predictive(2000, np.random.default_rng(0))
    assert {k: v.shape for k, v in drawn.items()} == {
        "mu": (2000,), "tau": (2000,), "theta": (2000, 8), "effect": (2000, 8)
    }  # fmt: skip
    # mu ~ Normal(0, 5): standard errors 5 / sqrt(2000) of the mean and 5 / sqrt(4000) of the sd.
    assert abs(drawn["mu"].mean()) < 5 * 5 / 2000**0.5
    assert abs(drawn["mu"].std() - 5) < 5 * 5 / 4000**0.5


def test_bare_potential():
    def potential(z):
        return 0.5 * (z["b"] ** 2).sum() + jnp.exp(z["a"]) - z["a"]

    start = {"b": jnp.ones(2), "a": jnp.zeros(())}
    problem = PotentialProblem(potential, start, {"a": ExpTransform().inv})
    assert problem.layout.names == ("a", "b")
    assert [site.transform for site in problem.layout.sites] == ["positive", "real"]
    x = np.array([[0.5, 1.0, 2.0]], np.float32)
    assert np.isclose(-problem.target().evaluate(x)[0][0], 0.5 * 5 + np.exp(0.5) - 0.5)
    samples = problem.constrain(x)
    assert np.isclose(samples["a"][0], np.exp(0.5))
    assert np.allclose(problem.unconstrain(samples), x, atol=1e-5)
    with pytest.raises(ModelError, match="needs a NumPyro model"):
        problem.log_likelihood(samples)
    with pytest.raises(ModelError, match="must return a scalar"):
        PotentialProblem(lambda z: z["b"], start)
    with pytest.raises(ModelError, match="floating point"):
        PotentialProblem(potential, {"a": 1})


def test_models_in_float64():
    with jax.enable_x64(True):
        problem = NumPyroProblem(eight_schools, (EFFECT.astype(float), ERROR.astype(float)))
        assert problem.dtype == np.float64
        x = np.random.default_rng(0).normal(size=(3, 10))
        expected = [
            potential_energy(eight_schools, problem.args, {}, problem.layout.unflatten(jnp.asarray(row)))
            for row in x
        ]
        assert np.allclose(-problem.target().evaluate(x)[0], np.array(expected), rtol=1e-12)
