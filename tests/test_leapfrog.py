"""A transition of either engine is the textbook's leapfrog in whitened coordinates, for each kind of root."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pyro_dft import roots
from pyro_dft.engine_jax import refine as jax_refine
from pyro_dft.engine_jax import target as jax_target
from pyro_dft.engine_jax.target import Target as JaxTarget
from pyro_dft.engine_torch.refine import Kernel
from pyro_dft.engine_torch.target import Target as TorchTarget

D, N, STEPS, STEP = 6, 40, 5, 0.3
RNG = np.random.default_rng(0)
PRECISION = np.linalg.inv(np.cov(RNG.normal(size=(D, 3 * D))))
UNIT = np.linalg.qr(RNG.normal(size=(D, 2)))[0]
ROOTS = {
    "sds": np.exp(RNG.normal(size=D)),
    "matrix": np.linalg.cholesky(np.linalg.inv(PRECISION)),
    "directions": np.concatenate([np.exp(RNG.normal(size=(D, 1))), UNIT * [0.2, 3.0]], 1),
}


def torch_transition(root, x):
    """Noise, and what the transition makes of it."""
    precision = torch.as_tensor(PRECISION)
    target = TorchTarget(lambda z: 0.5 * z @ precision @ z, D, dtype=torch.float64)
    position = torch.as_tensor(x)[None]
    kernel = Kernel(
        target, (position, *target.evaluate(position)), torch.as_tensor(root)[None], STEPS, torch.Generator().manual_seed(1)
    )  # fmt: skip
    rng = torch.Generator().manual_seed(1)
    like = {"generator": rng, "dtype": torch.float64}
    noise = torch.rand((1, N), **like), torch.randn((1, N, D), **like), torch.rand((1, N), **like)
    found = kernel.transition(torch.tensor([STEP], dtype=torch.float64))
    return noise, (kernel.x, *found, kernel.kinetic)


def jax_transition(root, x):
    """The same."""
    precision = jnp.asarray(PRECISION)
    target = JaxTarget(lambda z, data: 0.5 * z @ precision @ z, D, dtype=jnp.float32)
    x = np.asarray(x, np.float32)[None]
    position = jax_refine.Position(x, *target.evaluate(x))
    noise = RNG.uniform(size=(1, N)), RNG.normal(size=(1, N, D)), RNG.uniform(size=(1, N))
    noise = tuple(np.asarray(part, np.float32) for part in noise)
    root = jnp.asarray(root, jnp.float32)[None]
    reached, *found = jax_refine.transition(
        target.spec, target.data, position, root, jnp.asarray([STEP], jnp.float32), noise, STEPS
    )
    return noise, (reached.x, *found)


def jax_transition_of_many_data(root, x):
    """The same, without log densities on the way, as where they are sums over many data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax_target, "SMALL_ELEMENTS", 0)
        return jax_transition(root, x)


ENGINES = {
    "torch": (torch_transition, 1e-9), "jax": (jax_transition, 1e-4),
    "jax, many data": (jax_transition_of_many_data, 1e-4),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ROOTS)
def test_a_transition_is_the_textbooks(kind, engine):
    transition, tolerance = ENGINES[engine]
    root = ROOTS[kind]
    x = np.random.default_rng(2).normal(size=(N, D)) @ np.linalg.cholesky(np.linalg.inv(PRECISION)).T
    noise, found = transition(root, x)
    stretch, momentum, uniform = (np.asarray(part, float)[0] for part in noise)
    # The root as a matrix: its columns are what it makes of the unit vectors.
    matrix = roots.coloured(root[None], np.eye(D)[None])[0].T
    eps = STEP * (0.7 + 0.5 * stretch)[:, None]
    y, p = x, momentum
    for _ in range(STEPS):
        p = p - 0.5 * eps * (y @ PRECISION @ matrix)
        y = y + eps * (p @ matrix.T)
        p = p - 0.5 * eps * (y @ PRECISION @ matrix)
    before, after = (0.5 * (q**2).sum(1) for q in (momentum, p))
    energies = [0.5 * np.einsum("ni,ij,nj->n", z, PRECISION, z) for z in (x, y)]
    error = (energies[1] + after) - (energies[0] + before)
    probability = np.exp(np.minimum(-error, 0.0))
    take = uniform < probability
    sure = np.abs(uniform - probability) > tolerance
    assert error.std() > 0.01  # else the momenta say nothing
    reached, moved, probable, off, kinetic = (np.asarray(part)[0] for part in found)
    np.testing.assert_allclose(off, error, rtol=tolerance, atol=tolerance * (1 + np.abs(error).max()))
    np.testing.assert_allclose(probable, probability, atol=2 * tolerance * (1 + np.abs(error).max()))
    assert (moved == take)[sure].all()
    np.testing.assert_allclose(reached[sure], np.where(take[:, None], y, x)[sure], atol=10 * tolerance)
    np.testing.assert_allclose(
        kinetic[sure], np.where(take, after, before)[sure], rtol=tolerance, atol=10 * tolerance
    )
