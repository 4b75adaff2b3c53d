"""The cost models as a NumPyro user writes them, once and plainly; `benchmarks.cost.targets` gives them their data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.contrib.control_flow import scan

# An ODE: predator and prey, as in the other benchmark.
from benchmarks.posteriordb.numpyro_models import lotka_volterra  # noqa: F401

# On the diagonal of a latent process' kernel; large enough for single precision.
JITTER = 1e-4


def groups(number: int, group: Array, x: Array, y: Array) -> None:
    """Logistic regression with one intercept for each group."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", number):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Bernoulli(logits=a[group] + beta * x), obs=y)


def item_response(y: Array) -> None:
    """Rasch model: abilities of persons, difficulties of items."""
    persons, items = y.shape
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    centre = numpyro.sample("centre", dist.Normal(0.0, 2.0))
    with numpyro.plate("persons", persons):
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
    with numpyro.plate("items", items):
        difficulty = numpyro.sample("difficulty", dist.Normal(centre, spread))
    numpyro.sample("y", dist.Bernoulli(logits=ability[:, None] - difficulty), obs=y)


def logistic(x: Array, y: Array) -> None:
    """Logistic regression on many predictors."""
    w = numpyro.sample("w", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def stochastic_volatility(returns: Array) -> None:
    """Log scale of daily returns walks at random; the step size has an exponential prior."""
    step_size = numpyro.sample("step_size", dist.Exponential(50.0))
    s = numpyro.sample("s", dist.GaussianRandomWalk(scale=step_size, num_steps=len(returns)))
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    numpyro.sample("r", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=returns)


def random_walk(y: Array) -> None:
    """Walks whose step sizes come from one population, seen with noise."""
    series, steps = y.shape
    centre = numpyro.sample("centre", dist.Normal(-1.0, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("series", series):
        log_step = numpyro.sample("log_step", dist.Normal(centre, spread))
        walk = numpyro.sample("walk", dist.GaussianRandomWalk(scale=jnp.exp(log_step), num_steps=steps))
        numpyro.sample("y", dist.Normal(walk, noise).to_event(1), obs=y)


def gp_latent(x: Array, y: Array) -> None:
    """Counts whose log rate is a Gaussian process, non-centred by hand."""
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 0.5))
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    kernel = jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + JITTER * jnp.eye(len(x))
    log_rate = mean + amplitude * (jnp.linalg.cholesky(kernel) @ z)
    numpyro.sample("y", dist.Poisson(jnp.exp(log_rate)), obs=y)


def network(x: Array, y: Array) -> None:
    """A network with eight hidden units, whose signs and places change nothing."""
    first, bias, last = (
        numpyro.sample(name, dist.Normal(0.0, 1.0).expand([8]).to_event(1))
        for name in ("first", "bias", "last")
    )
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    curve = jnp.tanh(x[:, None] * first + bias) @ last
    numpyro.sample("y", dist.Normal(curve, noise).to_event(1), obs=y)


def factors(there: Array, values: Array) -> None:
    """A matrix of rank two, some of whose entries are seen: turns and signs of its factors change nothing."""
    persons, items = values.shape
    u = numpyro.sample("u", dist.Normal(0.0, 1.0).expand([persons, 2]).to_event(2))
    v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([items, 2]).to_event(2))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    numpyro.sample("values", dist.Normal(u @ v.T, noise).mask(there).to_event(2), obs=values)


def noise_curve(x: Array, y: Array) -> None:
    """A curve and the log of its noise, two Gaussian processes by twenty basis functions each (as brms has it)."""
    edge, count = 2.2, 20
    frequency = jnp.arange(1, count + 1) * jnp.pi / (2 * edge)
    basis = jnp.sin(frequency * (x[:, None] + edge)) / edge**0.5
    terms = []
    for name in ("curve", "noise"):
        length = numpyro.sample(f"{name}_length", dist.InverseGamma(3.0, 1.0))
        amplitude = numpyro.sample(f"{name}_amplitude", dist.HalfNormal(2.0))
        offset = numpyro.sample(f"{name}_offset", dist.Normal(0.0, 2.0))
        z = numpyro.sample(f"{name}_z", dist.Normal(0.0, 1.0).expand([count]).to_event(1))
        weight = (
            amplitude * jnp.sqrt(jnp.sqrt(2 * jnp.pi) * length) * jnp.exp(-0.25 * (length * frequency) ** 2)
        )
        terms.append(offset + basis @ (weight * z))
    numpyro.sample("y", dist.Normal(terms[0], jnp.exp(terms[1])).to_event(1), obs=y)


def regression(x: Array, y: Array) -> None:
    """Linear regression with an intercept, a slope and a scale."""
    a = numpyro.sample("a", dist.Normal(0.0, 10.0))
    b = numpyro.sample("b", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(a + b * x, sigma), obs=y)


def flips(y: Array) -> None:
    """Three coins, each with its own bias."""
    with numpyro.plate("coins", y.shape[1]):
        q = numpyro.sample("q", dist.Beta(1.0, 1.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Bernoulli(q), obs=y)


def hmm(states: Array, words: Array, rest: Array) -> None:
    """A hidden Markov model, part of its states known, the rest summed out by the forward algorithm."""
    move = numpyro.sample("move", dist.Dirichlet(jnp.ones((3, 3))).to_event(1))
    emit = numpyro.sample("emit", dist.Dirichlet(jnp.full((3, 10), 0.1)).to_event(1))
    numpyro.sample("states", dist.Categorical(move[states[:-1]]), obs=states[1:])
    numpyro.sample("words", dist.Categorical(emit[states]), obs=words)
    log_move, log_emit = jnp.log(move), jnp.log(emit)

    def forward(log_prob: Array, word: Array) -> tuple[Array, None]:
        return logsumexp(log_prob[:, None] + log_move + log_emit[:, word], axis=0), None

    log_prob, _ = lax.scan(forward, log_emit[:, rest[0]], rest[1:])
    numpyro.factor("rest", logsumexp(log_prob))


def hmm_enumerated(states: Array, words: Array, chains: Array) -> None:
    """The same with many short chains, whose states are enumerated."""
    move = numpyro.sample("move", dist.Dirichlet(jnp.ones((3, 3))).to_event(1))
    emit = numpyro.sample("emit", dist.Dirichlet(jnp.ones((3, 5))).to_event(1))
    numpyro.sample("states", dist.Categorical(move[states[:-1]]).to_event(1), obs=states[1:])
    numpyro.sample("words", dist.Categorical(emit[states]).to_event(1), obs=words)

    def step(state: Array, word: Array) -> tuple[Array, None]:
        with numpyro.plate("chains", len(chains), dim=-1):
            state = numpyro.sample("state", dist.Categorical(move[state]), infer={"enumerate": "parallel"})
            numpyro.sample("word", dist.Categorical(emit[state]), obs=word)
        return state, None

    scan(step, jnp.zeros(len(chains), jnp.int32), chains.T)


def imputation(age: Array, holes: Array, title: Array, categories: Array, outcome: Array) -> None:
    """Logistic regression on tables of categories and on a number whose missing values are sampled too."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0).expand([5]).to_event(1))
    missing = numpyro.sample("missing", dist.Normal(mu[title[holes]], sigma[title[holes]]).mask(False))
    age = jnp.asarray(age).at[holes].set(missing)
    numpyro.sample("age", dist.Normal(mu[title], sigma[title]), obs=age)
    logits = (
        numpyro.sample("intercept", dist.Normal(0.0, 1.0))
        + numpyro.sample("b_age", dist.Normal(0.0, 1.0)) * age
    )
    logits += numpyro.sample("b_title", dist.Normal(0.0, 1.0).expand([5]).to_event(1))[title]
    for i in range(categories.shape[1]):
        table = numpyro.sample(f"b_{i}", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        logits += table[categories[:, i]]
    numpyro.sample("outcome", dist.Bernoulli(logits=logits), obs=outcome)


def _capture(seen: Array, survival: Array, recapture: Array) -> None:
    """Cormack-Jolly-Seber: alive or not, enumerated; survival (times - 1, animals) or (times - 1, 1)."""

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        caught_before, alive = carry
        y, phi = now
        with numpyro.plate("animals", len(seen), dim=-1), handlers.mask(mask=caught_before):
            p_alive = jnp.where(caught_before, phi * alive, 1.0)
            alive = numpyro.sample(
                "z", dist.Bernoulli(dist.util.clamp_probs(p_alive)), infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Bernoulli(dist.util.clamp_probs(recapture * alive)), obs=y)
        return (caught_before | y.astype(bool), alive), None

    start = (seen[:, 0].astype(bool), jnp.ones(len(seen), jnp.int32))
    scan(step, start, (seen[:, 1:].T, survival))


def cjs_1(seen: Array, sex: Array) -> None:
    """One survival probability and one of recapture."""
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    _capture(seen, jnp.broadcast_to(phi, (seen.shape[1] - 1, 1)), rho)


def cjs_2(seen: Array, sex: Array) -> None:
    """Survival of its own for each time."""
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0).expand([seen.shape[1] - 1]).to_event(1))
    _capture(seen, phi[:, None], rho)


def cjs_3(seen: Array, sex: Array) -> None:
    """Survival varies at random over times, centred."""
    mean = numpyro.sample("phi_mean", dist.Uniform(0.0, 1.0))
    sigma = numpyro.sample("phi_sigma", dist.Uniform(0.0, 10.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    centre = jnp.log(mean) - jnp.log1p(-mean)
    logits = numpyro.sample("phi_logit", dist.Normal(centre, sigma).expand([seen.shape[1] - 1]).to_event(1))
    _capture(seen, jax.nn.sigmoid(logits)[:, None], rho)


def cjs_4(seen: Array, sex: Array) -> None:
    """Survival of its own for each sex."""
    male = numpyro.sample("phi_male", dist.Uniform(0.0, 1.0))
    female = numpyro.sample("phi_female", dist.Uniform(0.0, 1.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    phi = sex * male + (1.0 - sex) * female
    _capture(seen, jnp.broadcast_to(phi, (seen.shape[1] - 1, len(sex))), rho)


def cjs_5(seen: Array, sex: Array) -> None:
    """Effects of time and sex on the logits of survival, with vague priors."""
    beta = numpyro.sample("phi_beta", dist.Normal(0.0, 10.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
    gamma = numpyro.sample("phi_gamma", dist.Normal(0.0, 10.0).expand([seen.shape[1] - 1]).to_event(1))
    _capture(seen, jax.nn.sigmoid(gamma[:, None] + beta * sex), rho)


def gp(x: Array, y: Array) -> None:
    """Gaussian process regression, the process integrated out; priors on the three parameters of the kernel."""
    variance = numpyro.sample("variance", dist.LogNormal(0.0, 1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    kernel = variance * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise + 1e-5) * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=kernel), obs=y)


def gmm(y: Array) -> None:
    """Two Gaussians, the second above the first; the component of each point is enumerated."""
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(2, 0.5)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    low = numpyro.sample("low", dist.Normal(-2.0, 1.0))
    gap = numpyro.sample("gap", dist.LogNormal(1.0, 0.5))
    locs = jnp.stack([low, low + gap])
    with numpyro.plate("data", len(y)):
        which = numpyro.sample("which", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(locs[which], scale), obs=y)


def sir(reported: Array, population: float) -> None:
    """A stochastic SIR epidemic in days; transitions are relaxed to logit-normals with binomial spread."""
    rate = numpyro.sample("rate", dist.LogNormal(-0.5, 0.5))
    recovery = numpyro.sample("recovery", dist.Beta(2.0, 6.0))
    rho = numpyro.sample("rho", dist.Beta(10.0, 10.0))
    days = len(reported)
    infect = numpyro.sample("infect", dist.Normal(0.0, 1.0).expand([days]).to_event(1))
    recover = numpyro.sample("recover", dist.Normal(0.0, 1.0).expand([days]).to_event(1))

    def moved(count: Array, p: Array, noise: Array) -> Array:
        spread = 1.0 / jnp.sqrt(count * p * (1.0 - p) + 1.0)
        return count * jax.nn.sigmoid(jnp.log(p) - jnp.log1p(-p) + spread * noise)

    s, i = population - 20.0, 20.0
    for t in range(days):
        new = moved(s, -jnp.expm1(-rate * i / population), infect[t])
        gone = moved(i, recovery, recover[t])
        s, i = s - new, i + new - gone
        numpyro.sample(f"reported_{t}", dist.Poisson(rho * new), obs=reported[t])


def local_level(y: Array) -> None:
    """A forecaster's series: a level that walks, a bias and noise."""
    bias = numpyro.sample("bias", dist.Normal(0.0, 10.0))
    drift_scale = numpyro.sample("drift_scale", dist.LogNormal(-1.0, 1.0))
    noise_scale = numpyro.sample("noise_scale", dist.LogNormal(-1.0, 1.0))
    with numpyro.plate("time", len(y)):
        drift = numpyro.sample("drift", dist.Normal(0.0, drift_scale))
    numpyro.sample("y", dist.Normal(bias + jnp.cumsum(drift), noise_scale).to_event(1), obs=y)
