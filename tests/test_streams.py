"""Every stream of random numbers is used once: in the engine on jax each key, in that on torch each state of a generator."""

from __future__ import annotations

import hashlib
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS, ROWS, Y
from torch.overrides import TorchFunctionMode

from pyro_dft.engine_jax import random
from pyro_dft.experimental import grouped

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:the fit is", "ignore:the data are traced", "ignore:the importance weights are unreliable"
    ),
    pytest.mark.usefixtures("brief_surrogate"),
]

PYRO, NUMPYRO = BACKENDS
# All phases, a few steps of each. Without a DFT phase no two candidates are compared, which is done on the same numbers.
SMALL = {
    "train": "always", "precondition_steps": 12, "restarts": 2, "num_steps": 6, "width": 4, "depth": 1, "batch_size": 8,
    "num_draws": 30, "leapfrog_steps": 2,
}  # fmt: skip


@pytest.fixture
def keys(monkeypatch):
    """Words of each key that numbers were drawn from, at run time, within compiled loops too."""
    seen = []
    plain = random.bits

    def recorded(stream, count):
        jax.debug.callback(lambda words: seen.append(tuple(np.asarray(words).tolist())), stream)
        return plain(stream, count)

    jax.clear_caches()  # what was compiled before does not record
    monkeypatch.setattr(random, "bits", recorded)
    yield seen
    jax.clear_caches()  # and what was compiled here would go on recording


def used_once(seen, least):
    jax.effects_barrier()
    assert len(seen) > least
    again = {key: count for key, count in Counter(seen).items() if count > 1}
    assert not again, f"{len(again)} of {len(seen)} streams are used more than once"


def test_keys_of_a_training_under_a_trace_and_of_blocks_after_it(keys):
    """Training, refinement until nothing moves, and three blocks of new draws, in one compiled program."""
    kernel = NUMPYRO.DFTKernel(
        NUMPYRO.models.hierarchy, **grouped(SMALL | {"max_refine_steps": 4, "dft_fraction": 0.5})
    )

    @jax.jit
    def draws(key, y):
        state = kernel.init(key, 0, None, (y,), {})
        step = lambda now, _: ((new := kernel.sample(now, (y,), {})), new.z["mu"])  # noqa: E731
        return jax.lax.scan(step, state, None, length=100)[1]

    mu = draws(jax.random.key(3), jnp.asarray(Y))
    assert len(np.unique(mu)) > 80  # a draw may stay where it is
    # Starts, two networks, 12 + 6 iterations, at least two refinements with their tuning, three blocks.
    used_once(keys, 60)


def test_keys_of_a_run_and_of_its_draws(keys):
    """With minibatches, draws for a callback, and new draws twice."""
    looks = []
    dft = NUMPYRO.dft("minibatched", **grouped(SMALL), callback=lambda _, draw: looks.append(draw(9)))
    NUMPYRO.fitted(dft, ROWS)
    dft.get_samples(20)
    dft.get_samples(20, refine_steps=0)
    assert looks
    used_once(keys, 20)


class States(TorchFunctionMode):
    """States of the generators that numbers are drawn from.

    Not of `randperm`, which picks the rows of a minibatch: the control variate reads the same rows at the mean on purpose.
    """

    DRAW = frozenset(
        (
            "rand", "randn", "randint", "normal", "bernoulli", "multinomial", "rand_like", "randn_like",
            "randint_like", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "log_normal_",
            "geometric_",
        )
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in self.DRAW:
            generator = kwargs.get("generator") or torch.default_generator
            with torch._C._DisableFuncTorch():  # within a vmap a state would be a batched tensor
                self.seen.append(hashlib.sha1(generator.get_state().numpy().tobytes()).hexdigest())
        return function(*args, **kwargs)


@pytest.mark.parametrize("model", ["hierarchy", "minibatched"])
def test_states_of_torchs_generators(model):
    looks = []
    options = grouped(SMALL | {"compile": "never", "seed": 4})
    dft = PYRO.dft(model, **options, callback=lambda _, draw: looks.append(draw(9)))
    with States() as states:
        PYRO.fitted(dft, Y if model == "hierarchy" else ROWS)
        dft.get_samples(20)
        dft.get_samples(20, refine_steps=0)
        dft.importance_sampling(100)
    assert looks
    used_once(states.seen, 60)
