"""The posteriordb models as a NumPyro user writes them.

Scales are standard deviations. A flat prior is an ``ImproperUniform`` on the constrained support, so it is
flat in sigma and not in log sigma. Site names are those of the reference draws; where the reference holds a
quantity that is computed from the sampled ones, it is a deterministic site of that name.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

# The same two models stand in the other benchmark.
from benchmarks.models.numpyro_models import eight_schools_centered, eight_schools_noncentered  # noqa: F401

# Runge-Kutta steps between neighbouring observation times. Against much finer steps the log densities of
# reference draws move by less than 1e-6 (lynxes; the margin is for the faster orbits that a sampler meets on
# its way) and by 0.001 sd, 0.03 at most (doses; there a gradient costs as much as its steps).
LYNX_STEPS = 40
DOSE_STEPS = 10

# Logarithms of trajectories are cut here: a coarse step at a stiff point may end below zero.
SMALLEST = 1e-10

# On the diagonal of the Gaussian process kernel. It needs float64: the smallest eigenvalues are of this size.
JITTER = 1e-10


def flat_regression(x: Array, y: Array) -> None:
    """Linear regression, flat in the coefficients and in the residual sd."""
    beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real, (), (x.shape[1],)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def half_cauchy_regression(x: Array, y: Array) -> None:
    """Linear regression, flat in the coefficients, half-Cauchy residual sd."""
    beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real, (), (x.shape[1],)))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def blr(x: Array, y: Array) -> None:
    """Linear regression with proper priors and no intercept."""
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[1]), 10.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def diamonds(x: Array, y: Array) -> None:
    """Log price on 24 centred columns; the intercept is that of the centred design."""
    b = numpyro.sample("b", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(intercept + x @ b, sigma), obs=y)


def autoregression(lags: Array, y: Array) -> None:
    """AR(5) on its lag matrix, conditional on the first five values."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(lags.shape[1]), 10.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", len(y)):
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def arma(y: Array) -> None:
    """ARMA(1, 1); before the series the value is its mean and the error zero."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = numpyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = numpyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    y = jnp.asarray(y)

    def step(error: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        before, now = pair
        mean = mu + phi * before + theta * error
        return now - mean, mean

    first = mu + phi * mu
    _, later = lax.scan(step, y[0] - first, (y[:-1], y[1:]))
    with numpyro.plate("time", len(y)):
        mean = jnp.concatenate([first[None], later])
        # For |theta| > 1 the recursion overflows: a density of zero, and no error of the arguments.
        numpyro.sample("y", dist.Normal(mean, sigma, validate_args=False), obs=y)


def gp_pois_regr(x: Array, k: Array) -> None:
    """Poisson counts with a Gaussian process as log rate, in standardised coordinates."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(len(x)), 1.0).to_event(1))
    x = jnp.asarray(x)
    gap = (x[:, None] - x) / rho
    kernel = alpha**2 * jnp.exp(-0.5 * gap**2) + JITTER * jnp.eye(len(x))
    f = numpyro.deterministic("f", jnp.linalg.cholesky(kernel) @ z)
    with numpyro.plate("data", len(x)):
        numpyro.sample("k", dist.Poisson(jnp.exp(f)), obs=k)


def runge_kutta(
    slope: Callable[[Array, Array], Array], state: Array, start: float, times: Array, steps: int
) -> Array:
    """States at ``times`` of the equation ``state' = slope(state, t)``, by the classical fourth-order rule.

    Args:
        slope: Right side.
        state: State at ``start``.
        start: First time.
        times: Increasing times after it.
        steps: Equal steps in every interval between two of the times.
    """
    times = jnp.asarray(times, state.dtype)
    starts = jnp.concatenate([jnp.full(1, start, times.dtype), times[:-1]])

    def interval(state: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        begin, end = ends
        h = (end - begin) / steps

        def step(state: Array, i: Array) -> tuple[Array, None]:
            t = begin + i * h
            k1 = slope(state, t)
            k2 = slope(state + 0.5 * h * k1, t + 0.5 * h)
            k3 = slope(state + 0.5 * h * k2, t + 0.5 * h)
            k4 = slope(state + h * k3, t + h)
            return state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        state, _ = lax.scan(step, state, jnp.arange(steps, dtype=times.dtype))
        return state, state

    return lax.scan(interval, state, (starts, times))[1]


def lotka_volterra(times: Array, y_init: Array, y: Array) -> None:
    """Hares and lynxes: pelts of both, log-normal around the orbit of the predator-prey equations."""
    mean = jnp.array([1.0, 0.05, 1.0, 0.05])
    spread = jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(mean, spread, low=0.0).to_event(1))
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.full(2, jnp.log(10.0)), 1.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(jnp.full(2, -1.0), 1.0).to_event(1))

    def slope(z: Array, _: Array) -> Array:
        prey, predator = z
        return jnp.stack([(theta[0] - theta[1] * predator) * prey, (theta[3] * prey - theta[2]) * predator])

    z = runge_kutta(slope, z_init, 0.0, times, LYNX_STEPS)
    numpyro.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma).to_event(1), obs=y_init)
    with numpyro.plate("years", len(y)):
        centre = jnp.log(jnp.maximum(z, SMALLEST))
        numpyro.sample("y", dist.LogNormal(centre, sigma).to_event(1), obs=y)


def one_compartment(times: Array, dose: float, volume: float, concentration: Array) -> None:
    """First-order absorption of a dose and Michaelis-Menten elimination, from an empty compartment."""
    k_a = numpyro.sample("k_a", dist.HalfCauchy(1.0))
    k_m = numpyro.sample("K_m", dist.HalfCauchy(1.0))
    v_m = numpyro.sample("V_m", dist.HalfCauchy(1.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(1.0))

    def slope(c: Array, t: Array) -> Array:
        c = jnp.maximum(c, 0.0)  # keeps the denominator positive where a coarse step ends below zero
        return jnp.exp(-k_a * t) * dose * k_a / volume - v_m / volume * c / (k_m + c)

    c = runge_kutta(slope, jnp.zeros_like(k_a), 0.0, times, DOSE_STEPS)
    with numpyro.plate("data", len(concentration)):
        centre = jnp.log(jnp.maximum(c, SMALLEST))
        numpyro.sample("C_hat", dist.LogNormal(centre, sigma), obs=concentration)


def gauss_mix(y: Array) -> None:
    """Two Gaussians with ordered means, the component of each point summed out."""
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(jnp.full(2, 2.0)).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1.0 - theta]))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def forward(transition: Array, emission: Array) -> Array:
    """Log likelihood of a hidden Markov model whose first state has unit weights.

    Args:
        transition: Log probabilities, rows are the state that is left.
        emission: Log densities (time, state).
    """

    def step(weight: Array, now: Array) -> tuple[Array, None]:
        return now + logsumexp(weight[:, None] + transition, axis=0), None

    last, _ = lax.scan(step, emission[0], emission[1:])
    return logsumexp(last)


def hmm_example(y: Array) -> None:
    """Two hidden states that emit unit Gaussians."""
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum(-1))
    emission = dist.Normal(mu, 1.0).log_prob(jnp.asarray(y)[:, None])
    numpyro.factor("y", forward(jnp.log(jnp.stack([theta1, theta2])), emission))


def hmm_drive(u: Array, v: Array, alpha: Array) -> None:
    """Two hidden states of a basketball drive that emit exponential inverse speeds and hoop distances."""
    alpha = jnp.asarray(alpha)
    theta1 = numpyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(alpha[1]))
    rates = []
    for name in ("phi", "lambda"):
        rate = numpyro.sample(name, dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
        numpyro.factor(f"{name}_prior", dist.Normal(jnp.array([0.0, 3.0]), 1.0).log_prob(rate).sum(-1))
        rates.append(rate)
    emission = dist.Exponential(rates[0]).log_prob(jnp.asarray(u)[:, None])
    emission += dist.Exponential(rates[1]).log_prob(jnp.asarray(v)[:, None])
    numpyro.factor("uv", forward(jnp.log(jnp.stack([theta1, theta2])), emission))
