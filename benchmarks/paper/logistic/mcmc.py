"""NumPyro's NUTS on all training rows, the yardstick, and HMCECS, which reads subsamples of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import HMCECS, NUTS, SVI, Trace_ELBO, autoguide
from numpyro.optim import Adam

from benchmarks.paper.logistic.course import Course
from benchmarks.paper.logistic.models import numpyro_model

# A curve has about as many points as this.
MARKS = 20


def nuts(course: Course, seed: int, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict]:
    """One chain, iteration by iteration, so that warm-up is on the curve too.

    Settings: ``warmup``, ``draws``, ``dense`` (a full mass matrix; NumPyro's default is a diagonal one). A data pass is one
    gradient. On the way, predictions average over the later half of the iterations so far; in the end over all draws.
    """
    course.start()
    data = jnp.asarray(course.split.x), jnp.asarray(course.split.y)
    kernel = NUTS(numpyro_model, dense_mass=bool(settings["dense"]))
    warmup, total = settings["warmup"], settings["warmup"] + settings["draws"]
    state = kernel.init(jax.random.key(seed), warmup, None, data, {})
    step = jax.jit(lambda now, *args: kernel.sample(now, args, {}))
    log_alpha, w = np.empty(total), np.empty((total, course.split.x.shape[1]), np.float32)
    gradients, divergences, after_warmup = 0, 0, 0
    for i in range(total):
        state = step(state, *data)
        z = state.z
        log_alpha[i], w[i] = float(z["alpha"]), np.asarray(z["w"])
        gradients += int(state.num_steps)
        if i >= warmup:
            divergences += int(state.diverging)
            after_warmup += int(state.num_steps)
        if (i + 1) % max(1, total // MARKS) == 0 and i + 1 < total:
            course.mark(gradients, w[(i + 1) // 2 : i + 1])
    course.mark(gradients, w[warmup:], thin=False)
    notes = {"gradients": gradients, "gradients_after_warmup": after_warmup, "divergences": divergences}
    return np.exp(log_alpha[warmup:]), w[warmup:], notes


def mode(course: Course, seed: int, settings: Mapping[str, Any]) -> tuple[dict[str, jax.Array], float]:
    """A point near the mode, by SVI with AutoDelta on minibatches, and its data passes."""
    guide = autoguide.AutoDelta(numpyro_model)
    svi = SVI(numpyro_model, guide, Adam(settings["mode_rate"]), Trace_ELBO())
    split = course.split
    data = jnp.asarray(split.x), jnp.asarray(split.y)
    result = svi.run(
        jax.random.key(seed), settings["mode_steps"], *data, batch=settings["batch"], progress_bar=False
    )
    return guide.median(result.params), settings["mode_steps"] * settings["batch"] / split.rows


def hmcecs(course: Course, seed: int, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Energy-conserving subsampling (Dang et al. 2019) with NUTS and a full mass matrix inside.

    Settings: ``batch`` rows of a subsample in ``blocks`` blocks, ``warmup``, ``draws``, ``mode_steps`` and ``mode_rate`` of
    the search for the point around which the control variate (a second-order Taylor expansion) is made. Data passes: those
    of the search, three for the expansion, and those of the subsamples.
    """
    course.start()
    split = course.split
    data = jnp.asarray(split.x), jnp.asarray(split.y)
    point, passes = mode(course, seed, settings)
    passes += 3.0
    proxy = HMCECS.taylor_proxy(point, degree=2)
    kernel = HMCECS(NUTS(numpyro_model, dense_mass=True), num_blocks=settings["blocks"], proxy=proxy)
    warmup, total = settings["warmup"], settings["warmup"] + settings["draws"]
    options = {"batch": settings["batch"]}
    state = kernel.init(jax.random.key(seed + 1), warmup, None, data, options)
    step = jax.jit(lambda now: kernel.sample(now, data, options))
    log_alpha, w, divergences = np.empty(total), np.empty((total, split.x.shape[1]), np.float32), 0
    for i in range(total):
        state = step(state)
        log_alpha[i], w[i] = float(state.z["alpha"]), np.asarray(state.z["w"])
        passes += int(state.hmc_state.num_steps) * settings["batch"] / split.rows
        divergences += int(state.hmc_state.diverging) if i >= warmup else 0
        if (i + 1) % max(1, total // MARKS) == 0 and i + 1 < total:
            course.mark(passes, w[(i + 1) // 2 : i + 1])
    course.mark(passes, w[warmup:], thin=False)
    notes = {"divergences": divergences, "acceptance": float(state.accept_prob)}
    return np.exp(log_alpha[warmup:]), w[warmup:], notes
