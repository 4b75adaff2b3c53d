"""The choice between the Gaussian and the network: both are moved on equal terms."""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS

from pyro_dft.experimental import Experimental
from pyro_dft.recipe.selection import Selection


def banana(z):
    a = z["a"]
    return 0.125 * a[0] ** 2 + 2 * (a[1] - 0.5 * a[0] ** 2) ** 2


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_same_draws_kernel_steps_and_random_numbers(backend, monkeypatch):
    calls = []
    original = Selection.movement

    def movement(self, name, sampler):
        refine = self.engine.refine

        def recorded(target, draws, scale, step_size, *, steps, leapfrog_steps, rng):
            state = str(rng.get_state().tolist() if backend.name == "pyro" else rng.bit_generator.state)
            calls.append(
                (draws.shape, np.asarray(scale), np.asarray(step_size), steps, leapfrog_steps, state)
            )
            return refine(
                target, draws, scale, step_size, steps=steps, leapfrog_steps=leapfrog_steps, rng=rng
            )

        with monkeypatch.context() as patch:
            patch.setattr(self.engine, "refine", recorded)
            return original(self, name, sampler)

    monkeypatch.setattr(Selection, "movement", movement)
    # The Gaussian's own drift test needs more transitions than the comparison makes.
    dft = backend.potential(banana, train="auto", experimental=Experimental(gate=1e-6), num_steps=20, width=8, depth=1,
                            batch_size=16, refine_steps=4, num_draws=400, num_chains=2)  # fmt: skip
    with pytest.warns(UserWarning, match="the fit"):
        backend.run(dft)
    assert len(calls) == 2
    for one, other in zip(*calls, strict=True):
        assert np.array_equal(one, other)
    movement = dft.diagnostics()["movement"]
    assert set(movement) == {"gaussian", "kl"}
    # The objective is what moved less.
    best = min(movement, key=lambda name: float(np.mean(movement[name])))
    assert dft.diagnostics()["objective"] == best
