"""A small fit in either framework, for tests of files, copies and checkpoints."""

import functools

import numpy as np

from pyro_dft.experimental import grouped

ROWS = (2 + np.random.default_rng(0).normal(size=2000)).astype(np.float32)
# Few steps on one start: nothing here asks for a good fit.
TINY = grouped({"precondition_steps": 20, "restarts": 1, "modes": "never", "num_draws": 100})
FIVE = np.array([1.0, 2.0, 3.0, 2.5, 1.5], np.float32)


def normal(backend, loc=0.0, sd=10.0, noise=1.0):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        mu = ppl.sample("mu", dist.Normal(loc, sd))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Normal(mu, noise), obs=y)

    return model


@functools.cache
def fitted(backend):
    dft = backend.DFT(normal(backend), disable_progbar=True, train="never", refine_steps=2, seed=2, **TINY)
    return backend.fitted(dft, ROWS)


def load(backend, path, model=None, rows=ROWS, **options):
    return backend.DFT.load(
        path, model or normal(backend), backend.array(rows), disable_progbar=True, **options
    )
