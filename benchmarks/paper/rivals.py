"""The paper's rivals on a bare potential: SVGD, Langevin, HMC and NUTS, with NumPyro's and Pyro's own where they have them.

SVGD, Langevin and HMC move points that all start uniformly on (-2, 2)^2, NumPyro's own way to start; where they are after
their last step is the set of draws. One step size serves all densities; `RATES` says which were tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paper.targets import Toy

RADIUS = 2.0
LEAPFROGS = 5
NUTS_CHAINS, NUTS_WARMUP = 4, 1000
# The step sizes that `tuning` tries: SVGD's is Adagrad's rate; Langevin's h is that of x - h grad U + sqrt(2 h) noise; HMC's is
# the leapfrog step.
RATES = {
    "svgd": (0.05, 0.1, 0.3, 1.0),
    "langevin": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "hmc": (0.01, 0.03, 0.1, 0.3),
}


def starts(sets: int, n: int, seed: int = 0) -> np.ndarray:
    """Starting points (sets, n, 2)."""
    return np.random.default_rng([31, seed]).uniform(-RADIUS, RADIUS, (sets, n, 2)).astype(np.float32)


def svgd(toy: Toy, points: np.ndarray, rate: float, steps: tuple[int, ...]) -> list[np.ndarray]:
    """Pyro's SVGD with its RBF kernel and the optimiser of the SVGD paper, Adagrad; each set of points by itself.

    NumPyro's has been tried: it sorts all pairs of particles at every step, and 500 particles take minutes.

    Args:
        toy: The density.
        points: Starting points (sets, n, 2).
        rate: Of Adagrad.
        steps: Ascending; draws are handed out after each of them.

    Returns:
        Draws (sets, n, 2) for each number of steps.
    """
    import pyro
    import pyro.optim
    import torch
    from pyro.infer import SVGD, RBFSteinKernel

    potential = torch.func.vmap(toy.torch)
    adagrad = pyro.optim.PyroOptim(torch.optim.Adagrad, {"lr": rate})

    def model() -> None:
        # SVGD asks for a proper site; its density is taken off again.
        x = pyro.sample("x", pyro.distributions.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("target", 0.5 * x.square().sum(-1) + math.log(2 * math.pi) - potential(x))

    found: list[list[np.ndarray]] = [[] for _ in steps]
    for own in points:
        pyro.clear_param_store()
        pyro.param("svgd_particles", torch.tensor(own).reshape(-1))
        # One bandwidth for all coordinates of a particle, as in the paper of SVGD.
        stein = SVGD(model, RBFSteinKernel(), adagrad, len(own), max_plate_nesting=0, mode="multivariate")
        done = 0
        for kept, total in zip(found, steps, strict=True):
            while done < total:
                stein.step()
                done += 1
            kept.append(pyro.param("svgd_particles").detach().numpy().reshape(own.shape).copy())
    pyro.clear_param_store()
    return [np.stack(one) for one in found]


def langevin(toy: Toy, points: np.ndarray, rate: float, steps: int, seed: int = 0) -> np.ndarray:
    """Unadjusted Langevin: every point is a chain of its own; (sets, n, 2) -> (sets, n, 2)."""
    gradient = jax.vmap(jax.grad(toy.potential))

    @jax.jit
    def run(x: Any, h: Any) -> Any:
        def move(i: Any, x: Any) -> Any:
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), x.shape)
            return x - h * gradient(x) + jnp.sqrt(2 * h) * noise

        return jax.lax.fori_loop(0, steps, move, x)

    return np.asarray(run(jnp.asarray(points.reshape(-1, 2)), rate)).reshape(points.shape)


def hmc(toy: Toy, points: np.ndarray, rate: float, steps: int, seed: int = 0) -> np.ndarray:
    """NumPyro's HMC, `steps` transitions of five leapfrog steps without adaptation; every point is a chain of its own."""
    from numpyro.infer import HMC, MCMC

    kernel = HMC(
        potential_fn=lambda x: toy.potential(x),
        step_size=rate,
        num_steps=LEAPFROGS,
        trajectory_length=None,
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    chains = points.shape[0] * points.shape[1]
    mcmc = MCMC(
        kernel, num_warmup=steps - 1, num_samples=1, num_chains=chains, chain_method="vectorized", progress_bar=False
    )  # fmt: skip
    mcmc.run(jax.random.key(seed), init_params=jnp.asarray(points.reshape(-1, 2)))
    return np.asarray(mcmc.get_samples()).reshape(points.shape)


def nuts(toy: Toy, sets: int, n: int, seeds: tuple[int, ...]) -> np.ndarray:
    """NumPyro's NUTS as it comes, four chains of 1,000 warm-up steps; sets are taken evenly from all of its draws.

    Returns:
        Draws (seeds, sets, n, 2).
    """
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(
        NUTS(potential_fn=lambda x: toy.potential(x)), num_warmup=NUTS_WARMUP, num_samples=-(-sets * n // NUTS_CHAINS),
        num_chains=NUTS_CHAINS, chain_method="sequential", progress_bar=False,
    )  # fmt: skip
    found = []
    for seed in seeds:
        first = jnp.asarray(starts(1, NUTS_CHAINS, 100 + seed)[0])
        mcmc.run(jax.random.key(seed), init_params=first)
        draws = np.asarray(mcmc.get_samples())[: sets * n]
        found.append(np.stack([draws[i::sets] for i in range(sets)]))
    return np.stack(found)


RIVALS: dict[str, Callable[..., Any]] = {"svgd": svgd, "langevin": langevin, "hmc": hmc, "nuts": nuts}
