"""The paper's rivals on minibatches: SVGD and SGLD (BlackJAX), doubly stochastic mean-field VI (NumPyro)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.handlers import seed as seeded
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.infer.util import potential_energy
from numpyro.optim import Adam

from benchmarks.paper.logistic.course import Course
from benchmarks.paper.logistic.mcmc import MARKS
from benchmarks.paper.logistic.models import numpyro_model

DRAWS = 1000


def minibatch_score(
    x: jax.Array, y: jax.Array, batch: int
) -> Callable[[dict[str, jax.Array], jax.Array], Any]:
    """Gradient of the log posterior at unconstrained values, from the minibatch that a key draws: unbiased."""

    def log_density(point: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        return -potential_energy(seeded(numpyro_model, key), (x, y), {"batch": batch}, point)

    return jax.grad(log_density)


def starts(key: jax.Array, count: int, dim: int) -> dict[str, jax.Array]:
    """Unconstrained values as NumPyro's NUTS starts from: uniform in (-2, 2)."""
    a, b = jax.random.split(key)
    return {
        "alpha": jax.random.uniform(a, (count,), minval=-2.0, maxval=2.0),
        "w": jax.random.uniform(b, (count, dim), minval=-2.0, maxval=2.0),
    }


def _chunks(steps: int) -> list[int]:
    size = max(1, steps // MARKS)
    return [min(size, steps - first) for first in range(0, steps, size)]


def svgd(course: Course, seed: int, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Stein variational gradient descent, RBF kernel with the median heuristic, as Liu and Wang (2016) ran it.

    Settings: ``particles``, ``steps``, ``rate`` and ``decay`` of RMSProp, ``batch``: one minibatch for all particles.
    """
    course.start()
    split, batch = course.split, settings["batch"]
    score = minibatch_score(jnp.asarray(split.x), jnp.asarray(split.y), batch)
    key = jax.random.key(seed)
    particles = starts(jax.random.fold_in(key, 0), settings["particles"], split.x.shape[1])
    optimizer = optax.rmsprop(settings["rate"], decay=settings["decay"])
    method = blackjax.svgd(lambda point, minibatch: score(point, minibatch), optimizer)
    state = method.init(particles)

    def chunk(now: Any, keys: jax.Array) -> Any:
        return jax.lax.scan(lambda s, k: (method.step(s, minibatch=k), None), now, keys)[0]

    go = jax.jit(chunk)
    done = 0
    for count in _chunks(settings["steps"]):
        state = go(state, jax.random.split(jax.random.fold_in(key, 1 + done), count))
        jax.block_until_ready(state.particles)
        done += count
        course.mark(done * settings["particles"] * batch / split.rows, state.particles["w"])
    return np.exp(np.asarray(state.particles["alpha"])), np.asarray(state.particles["w"]), {}


def sgld(course: Course, seed: int, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011), one chain; the later half of it is kept, thinned.

    Settings: ``steps``, ``batch``, and the step sizes ``rate`` (1 + t / ``delay``)^-``power``.
    """
    course.start()
    split, batch = course.split, settings["batch"]
    score = minibatch_score(jnp.asarray(split.x), jnp.asarray(split.y), batch)
    key = jax.random.key(seed)
    method = blackjax.sgld(score)
    point = jax.tree.map(lambda a: a[0], starts(jax.random.fold_in(key, 0), 1, split.x.shape[1]))
    every = max(1, settings["steps"] // (2 * DRAWS))

    def chunk(first: Any, start: jax.Array, keys: jax.Array) -> tuple[Any, Any]:
        def one(now: Any, given: Any) -> tuple[Any, None]:
            t, k = given
            rate = settings["rate"] * (1 + t / settings["delay"]) ** -settings["power"]
            minibatch, noise = jax.random.split(k)
            return method.step(noise, now, minibatch, rate), None

        def thinned(now: Any, given: Any) -> tuple[Any, Any]:
            now = jax.lax.scan(one, now, given)[0]
            return now, now

        times = start + jnp.arange(len(keys))
        shaped = times.reshape(-1, every), keys.reshape(-1, every)
        return jax.lax.scan(thinned, first, shaped)

    go = jax.jit(chunk)
    kept: list[dict[str, np.ndarray]] = []
    w = alpha = np.empty(0)
    done, size = 0, every * max(1, 2 * DRAWS // MARKS)
    while done < settings["steps"]:
        point, path = go(point, jnp.asarray(done), jax.random.split(jax.random.fold_in(key, 1 + done), size))
        kept.append({name: np.asarray(value) for name, value in path.items()})
        done += size
        w = np.concatenate([k["w"] for k in kept])
        alpha = np.exp(np.concatenate([k["alpha"] for k in kept]))
        course.mark(done * batch / split.rows, w[len(w) // 2 :])
    return alpha[len(alpha) // 2 :], w[len(w) // 2 :], {}


def advi(course: Course, seed: int, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Doubly stochastic variational inference (Titsias and Lazaro-Gredilla 2014): SVI with AutoNormal and Adam.

    Settings: ``steps``, ``batch``, ``rate``: of Adam, falling to a hundredth by a cosine.
    """
    course.start()
    split, steps = course.split, settings["steps"]
    data = jnp.asarray(split.x), jnp.asarray(split.y)
    guide = autoguide.AutoNormal(numpyro_model)
    rate = optax.cosine_decay_schedule(settings["rate"], steps, alpha=0.01)
    svi = SVI(numpyro_model, guide, Adam(rate), Trace_ELBO())
    key = jax.random.key(seed)
    state = svi.init(key, *data, batch=settings["batch"])

    def chunk(now: Any, count: Any, x: jax.Array, y: jax.Array) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, s: svi.update(s, x, y, batch=settings["batch"])[0], now)

    go = jax.jit(chunk)
    done, draws = 0, {}
    for count in _chunks(steps):
        state = jax.block_until_ready(go(state, count, *data))
        done += count
        params = svi.get_params(state)
        draws = guide.sample_posterior(jax.random.fold_in(key, done), params, sample_shape=(DRAWS,))
        course.mark(done * settings["batch"] / split.rows, draws["w"])
    return np.asarray(draws["alpha"]), np.asarray(draws["w"]), {}
