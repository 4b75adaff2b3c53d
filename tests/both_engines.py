"""The same target for both engines, and how their numbers are compared."""

import jax.numpy as jnp
import numpy as np
import torch

from pyro_dft.engine_torch import train as torch_train
from pyro_dft.engine_torch.sampler import Sampler as TorchSampler
from pyro_dft.engine_torch.target import Target as TorchTarget
from pyro_dft.experimental import grouped
from pyro_dft.settings import Settings

C, B, D = 2, 12, 3


SETTINGS = {
    "width": 7,
    "depth": 2,
    "batch_size": B,
    "final_batch_factor": 1,
    "score_steps": 1,
    "compile": "never",
}


TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def torch_potential(x):
    return 0.5 * x[0] ** 2 + 2 * (x[1] - x[0] ** 2) ** 2 + torch.cos(x[2]) + 0.25 * x[2] ** 4


def torch_target():
    return TorchTarget(torch_potential, D, dtype=torch.float64, trace=False)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(a, b):
    a = a.detach().numpy() if isinstance(a, torch.Tensor) else np.asarray(a)
    b = b.detach().numpy() if isinstance(b, torch.Tensor) else np.asarray(b)
    return a.shape == b.shape and np.allclose(a, b, **TOLERANCE)


def torch_trainer(phase, distance="squared", averaging=0.0):
    objective = "auto" if phase in ("kl", "dft") else phase
    settings = Settings(
        **grouped({**SETTINGS, "objective": objective, "distance": distance, "averaging": averaging})
    )
    scale = numbers(C, D, D, seed=3) * 0.3 + np.eye(D)
    sampler = TorchSampler(torch.as_tensor(numbers(C, D, seed=4)), torch.as_tensor(scale))
    rng = torch.Generator().manual_seed(0)
    trainer = torch_train.NetworkTrainer(torch_target(), sampler, settings, rng)
    with torch.no_grad():  # weights away from the special start
        for k, p in enumerate([*trainer.generator.parameters(), *trainer.score_network.parameters()]):
            p.add_(0.1 * torch.as_tensor(numbers(*p.shape, seed=10 + k)))
    return trainer, settings


def weights_of(module):
    return {k: jnp.asarray(v.detach().numpy()) for k, v in module.state_dict().items()}
