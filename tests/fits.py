"""Small fits of the recipe over the torch engine."""

from __future__ import annotations

import torch

from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.experimental import grouped
from pyro_dft.recipe.fit import Problem
from pyro_dft.recipe.trainer import Trainer
from pyro_dft.settings import Settings

SMALL = grouped({"num_steps": 60, "dft_fraction": 0.2, "width": 16, "batch_size": 32, "restarts": 2, "precondition_steps": 60,
         "num_draws": 400, "max_refine_steps": 4})  # fmt: skip


def gaussian(x):
    return 0.5 * (x - 1).square().sum() + 0.4 * (x[0] - 1) * (x[1] - 1)


def banana(x):
    """x_0 standard normal, x_1 normal around x_0^2 with sd 1/2: means 0 and 1, sds 1 and 1.5."""
    return 0.5 * x[0] ** 2 + 2 * (x[1] - x[0] ** 2) ** 2


def starts(chains, restarts, d, dtype, device, seed=3):
    rng = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(chains, restarts, d, generator=rng, dtype=dtype, device=device)


def run(trainer):
    while not trainer.done:
        trainer.step()
    return trainer.finish()


def phases(history):
    """(phase, iterations) in order."""
    found = []
    for progress in history:
        if not found or found[-1][0] != progress.phase:
            found.append([progress.phase, 0])
        found[-1][1] += 1
    return [tuple(f) for f in found]


def draws_of(fit, n=4000, seed=9):
    rng = torch.Generator(device=fit.sampler.mean.device).manual_seed(seed)
    return fit.sampler.draw(n, rng).double().cpu()


def gaussian_draws(fit):
    """What the Gaussian that each chain started from gives, without a network."""
    optimum, home = fit.optima[fit.chosen], fit.sampler.mean.device
    rng = torch.Generator(device=home).manual_seed(2)
    mean, scale = (torch.as_tensor(v, device=home) for v in (optimum.mean, optimum.scale))
    return Sampler(mean, scale).draw(4000, rng).cpu()


def banana_errors(x):
    """Errors of mean, log sd, and of the quantiles of x_1 given by its known distribution, in sds."""
    sd = torch.tensor([1.0, 1.5], dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(400_000, 2, generator=rng, dtype=torch.float64)
    q = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    exact = torch.quantile(z[:, 0] ** 2 + 0.5 * z[:, 1], q)
    return torch.cat([
        (x.mean(0) - torch.tensor([0.0, 1.0], dtype=torch.float64)) / sd,
        (x.std(0) / sd).log(),
        (torch.quantile(x[:, 1], q) - exact) / sd[1],
    ])  # fmt: skip


def trainers(dtype, device):
    """A function that makes a trainer of a potential; settings are the small ones above unless given."""

    def make(potential, *, chains=1, d=2, seed=0, points=None, **settings):
        share = {} if settings.get("objective", "auto") == "auto" else {"dft_fraction": 0.0}
        options = Settings(**grouped({**SMALL, **share, **settings}))
        target = Target(potential, d, dtype=dtype, device=device)
        if points is None:
            points = starts(chains, options.restarts, d, dtype, device)
        rng = torch.Generator(device=device).manual_seed(seed)
        return Trainer(ENGINE, [Problem(target, points)], options, rng)

    return make
