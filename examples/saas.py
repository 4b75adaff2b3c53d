"""A Gaussian process with the SAAS prior in Pyro, against NumPyro's NUTS: ``python examples/saas.py``.

Few of many inputs matter: each has an inverse squared length scale with a half-Cauchy prior, whose scale has one too (Eriksson
and Jankowiak, "High-Dimensional Bayesian Optimization with Sparse Axis-Aligned Subspaces", UAI 2021). BoTorch and Ax hand such a
model to NUTS. The data are values of a function of the first two of `--inputs` inputs, with noise.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

JITTER = 1e-6


def data(points: int, inputs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in the unit cube, and standardised values of Branin's function of the first two inputs with noise of sd 0.1."""
    rng = np.random.default_rng(seed)
    x = rng.random((points, inputs))
    a, b = 15.0 * x[:, 0] - 5.0, 15.0 * x[:, 1]
    value = (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(
        a
    )
    return x, (value - value.mean()) / value.std() + 0.1 * rng.normal(size=points)


def in_pyro(x: Any, y: Any) -> None:
    """The model; `y` is observed through the Cholesky factor of its covariance."""
    import pyro
    import pyro.distributions as dist
    import torch

    outputscale = pyro.sample("outputscale", dist.Gamma(2.0, 0.15))
    noise = pyro.sample("noise", dist.Gamma(0.9, 10.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    tausq = pyro.sample("tausq", dist.HalfCauchy(0.1))
    relative = pyro.sample("relative", dist.HalfCauchy(torch.ones(x.shape[1])).to_event(1))
    scaled = x * (tausq * relative).sqrt()
    distance = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)
    covariance = outputscale * torch.exp(-0.5 * distance) + (noise + JITTER) * torch.eye(len(y))
    factor = torch.linalg.cholesky(covariance)
    pyro.sample("y", dist.MultivariateNormal(mean.expand(len(y)), scale_tril=factor), obs=y)


def in_numpyro(x: Any, y: Any) -> None:
    """The same for NUTS."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    outputscale = numpyro.sample("outputscale", dist.Gamma(2.0, 0.15))
    noise = numpyro.sample("noise", dist.Gamma(0.9, 10.0))
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    tausq = numpyro.sample("tausq", dist.HalfCauchy(0.1))
    relative = numpyro.sample("relative", dist.HalfCauchy(jnp.ones(x.shape[1])).to_event(1))
    scaled = x * jnp.sqrt(tausq * relative)
    distance = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)
    covariance = outputscale * jnp.exp(-0.5 * distance) + (noise + JITTER) * jnp.eye(len(y))
    factor = jnp.linalg.cholesky(covariance)
    numpyro.sample("y", dist.MultivariateNormal(jnp.full(len(y), mean), scale_tril=factor), obs=y)


def by_dft(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Draws of a fit in Pyro, in double precision, and what it says of itself."""
    import torch

    from pyro_dft import DFT

    torch.set_default_dtype(torch.float64)
    dft = DFT(in_pyro, seed=seed)
    dft.run(torch.tensor(x), torch.tensor(y))
    report = dft.diagnostics()
    said = ", ".join([report["status"], *report["alarms"]])
    return {name: value.numpy() for name, value in dft.get_samples().items()}, said


def by_nuts(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Draws of four chains of NumPyro's NUTS, in double precision, and how many divergences there were."""
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS

    numpyro.enable_x64()
    mcmc = MCMC(
        NUTS(in_numpyro),
        num_warmup=500,
        num_samples=1000,
        num_chains=4,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), x, y)
    divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    return {
        name: np.asarray(value) for name, value in mcmc.get_samples().items()
    }, f"{divergences} divergences"


def logs(draws: dict[str, np.ndarray]) -> np.ndarray:
    """All coordinates, positive ones as logarithms, (draws, d): half-Cauchy tails have no moments."""
    parts = [
        draws[name].reshape(len(draws[name]), -1) for name in ("outputscale", "noise", "tausq", "relative")
    ]
    return np.concatenate([np.log(part) for part in parts] + [draws["mean"][:, None]], axis=1)


def main() -> None:
    """Both, with CPU seconds and the worst differences of medians and of 5 % to 95 % ranges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=12)
    parser.add_argument("--points", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    x, y = data(given.points, given.inputs, given.seed)
    found = {}
    for name, fit in (("DFT", by_dft), ("NUTS", by_nuts)):
        start = time.process_time()
        draws, said = fit(x, y, given.seed)
        found[name] = logs(draws)
        print(f"{name:4}  {time.process_time() - start:5.0f} CPU s  {said}")
        relevant = np.median(draws["tausq"][:, None] * draws["relative"], axis=0)
        print(f"      median inverse squared lengths: {np.round(relevant, 3)}")
    quantiles = {name: np.quantile(values, (0.05, 0.5, 0.95), axis=0) for name, values in found.items()}
    ranges = {name: q[2] - q[0] for name, q in quantiles.items()}
    moved = np.abs(quantiles["DFT"][1] - quantiles["NUTS"][1]) / ranges["NUTS"]
    ratios = ranges["DFT"] / ranges["NUTS"]
    print(f"worst difference of a median: {moved.max():.3f} of the 90 % range")
    print(f"ratios of 90 % ranges: {ratios.min():.2f} to {ratios.max():.2f}")


if __name__ == "__main__":
    main()
