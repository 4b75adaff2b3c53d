"""Whether the models are the posteriors that the reference draws come from.

``python -m benchmarks.posteriordb.check [names]`` needs no sampler. In whitened unconstrained coordinates w
of the model's own latent sites every density p obeys E[grad log p] = 0 and E[w grad log p^T] = -I. A missing
prior term or Jacobian, a factor of two or a swapped column shows at once. Pyro's density is compared with
NumPyro's up to a constant.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import jax
import numpy as np
import numpyro
from numpyro.infer.util import log_density, potential_energy, unconstrain_fn

from benchmarks.posteriordb import numpyro_models
from benchmarks.posteriordb.posteriors import (
    POSTERIORS,
    Posterior,
    numpyro_model,
    pyro_model,
    reference_values,
)

# Consecutive draws whose mean is one sample of the Monte Carlo error: five blocks in each of ten chains.
BLOCKS_PER_CHAIN = 5

# Largest of up to 700 z-scores that chance explains (the degrees of freedom are about 49).
LIMIT = 5.0


def latent_values(posterior: Posterior, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reference values by site as values of the latent sites of the model.

    The reference holds computed quantities in two posteriors, and the latent ones follow from them. Points of
    a simplex are stored to six digits and are made to sum to one: Pyro's hidden Markov model does so itself.
    """
    simplices = {site for site, kind in posterior.sites if kind == "simplex2"}
    values = {k: v / v.sum(-1, keepdims=True) if k in simplices else v for k, v in values.items()}
    if posterior.function == "eight_schools_noncentered":
        theta = values.pop("theta")
        values["theta_trans"] = (theta - values["mu"][..., None]) / values["tau"][..., None]
    elif posterior.function == "gp_pois_regr":
        x = posterior.arguments()[0]
        rho, alpha = values["rho"][..., None, None], values["alpha"][..., None, None]
        gap = (x[:, None] - x) / rho
        kernel = alpha**2 * np.exp(-0.5 * gap**2) + numpyro_models.JITTER * np.eye(len(x))
        values["z"] = np.linalg.solve(np.linalg.cholesky(kernel), values.pop("f")[..., None])[..., 0]
    return values


def gradients(posterior: Posterior, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Unconstrained reference points and gradients of the log density there, (chains, draws, d) both.

    Args:
        posterior: A posterior.
        draws: Consecutive draws of each chain that are used.
    """
    model, args = numpyro_model(posterior)
    values = {k: v[:, :draws] for k, v in latent_values(posterior, reference_values(posterior)).items()}
    chains = len(next(iter(values.values())))
    flat = {k: v.reshape(chains * draws, *v.shape[2:]) for k, v in values.items()}
    points = jax.jit(jax.vmap(lambda v: unconstrain_fn(model, args, {}, v)))(flat)
    slopes = jax.jit(jax.vmap(jax.grad(lambda u: potential_energy(model, args, {}, u))))(points)

    def join(tree: Mapping[str, jax.Array]) -> np.ndarray:
        return np.concatenate([np.asarray(tree[k]).reshape(chains, draws, -1) for k in sorted(tree)], -1)

    return join(points), -join(slopes)


def stein(posterior: Posterior, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """z-scores of both Stein identities, (d,) and (d, d), with errors from means of blocks of draws.

    Args:
        posterior: A posterior.
        draws: Consecutive draws of each chain that are used.
    """
    u, slope = gradients(posterior, draws)
    chains, count, d = u.shape
    scale = np.linalg.cholesky(np.cov(u.reshape(-1, d), rowvar=False).reshape(d, d))
    w = np.linalg.solve(scale, (u - u.mean((0, 1)))[..., None])[..., 0]
    slope = slope @ scale

    def z_scores(terms: np.ndarray) -> np.ndarray:
        length = count // BLOCKS_PER_CHAIN
        blocks = terms[:, : length * BLOCKS_PER_CHAIN].reshape(
            chains * BLOCKS_PER_CHAIN, length, *terms.shape[2:]
        )
        means = blocks.mean(1)
        return means.mean(0) / (means.std(0, ddof=1) / np.sqrt(len(means)))

    return z_scores(slope), z_scores(w[..., :, None] * slope[..., None, :] + np.eye(d))


def twin_gap(posterior: Posterior, points: int = 5) -> float:
    """Largest relative disagreement of Pyro's and NumPyro's log densities over a few reference points.

    One constant is left free: both are compared by their differences from the first point. Run it in double
    precision in both frameworks.
    """
    import pyro
    import torch

    twin, tensors = pyro_model(posterior)
    model, args = numpyro_model(posterior)
    values = latent_values(posterior, {k: v[:1, :points] for k, v in reference_values(posterior).items()})
    density = jax.jit(lambda at: log_density(model, args, {}, at)[0])
    mine, other = [], []
    for i in range(points):
        at = {k: v[0, i] for k, v in values.items()}
        mine.append(float(density(at)))
        # Positive ordered pairs are made of their steps in Pyro.
        at |= {
            f"{k}_steps": np.diff(at[k], prepend=0.0)
            for k, kind in posterior.sites
            if kind == "positive_ordered"
        }
        conditioned = pyro.condition(twin, data={k: torch.tensor(v) for k, v in at.items()})
        other.append(float(pyro.poutine.trace(conditioned).get_trace(*tensors).log_prob_sum()))
    first, second = np.subtract(mine, mine[0]), np.subtract(other, other[0])
    return float(np.abs(first - second).max() / np.abs(first).max())


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="posteriors (default: all)")
    parser.add_argument("--draws", type=int, default=1000, help="of each of the ten chains")
    options = parser.parse_args()
    numpyro.enable_x64()
    torch.set_default_dtype(torch.float64)
    print(f"{'posterior':48s} {'z gradient':>10s} {'z outer':>8s} {'Pyro twin':>10s}")
    bad = []
    for name in options.names or POSTERIORS:
        posterior = POSTERIORS[name]
        first, second = (float(np.abs(z).max()) for z in stein(posterior, options.draws))
        gap = twin_gap(posterior) if posterior.pyro else None
        print(
            f"{name:48s} {first:10.2f} {second:8.2f} {'none' if gap is None else f'{gap:.1e}':>10s}",
            flush=True,
        )
        if not max(first, second) < LIMIT or (gap is not None and not gap < 1e-8):
            bad.append(name)
    if bad:
        raise SystemExit(f"disagree: {', '.join(bad)}")


if __name__ == "__main__":
    main()
