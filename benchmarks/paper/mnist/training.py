"""Adam with a cosine rate and a moving average of the weights, in a loop that resumes after being killed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WARMUP = 200
CLIP = 1.0


def rate_factor(iteration: int, iterations: int) -> float:
    """Of the learning rate: up over the first 200 iterations (or a tenth), then a cosine down to a hundredth."""
    warmup = min(WARMUP, max(iterations // 10, 1))
    cosine = 0.505 + 0.495 * math.cos(math.pi * iteration / iterations)
    return min((iteration + 1) / warmup, 1.0) * cosine


def run(
    module: nn.Module, loss: Callable[[int, torch.Generator], Tensor], path: Path, iterations: int, rate: float,
    *, seed: int = 0, decay: float = 0.999, every: int = 500, betas: tuple[float, float] = (0.9, 0.95),
) -> float:  # fmt: skip
    """Trains ``module`` in place and leaves the moving average of its weights in it.

    Every iteration has a random generator of its own (seed and number), so a run that was killed and goes on ends
    with the same weights as one that was not.

    Args:
        module: What is trained.
        loss: Of iteration and generator.
        path: Checkpoint: weights, their average, Adam's moments, iteration, seconds so far and the average loss.
        iterations: Steps in all; a finished checkpoint is only read.
        rate: Largest learning rate.
        seed: Of the generators.
        decay: Of the average; it starts as the plain mean.
        every: Iterations between checkpoints and printed lines.
        betas: Adam's.

    Returns:
        Wall seconds of the training, those before a resume included.
    """
    average = copy.deepcopy(module)
    optimiser = torch.optim.Adam(module.parameters(), lr=rate, betas=betas)
    start, before, mean = 0, 0.0, math.nan
    if path.exists():
        start, before, mean = _load(path, module, average, optimiser)
    began = time.perf_counter()
    for iteration in range(start, iterations):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + iteration)
        for group in optimiser.param_groups:
            group["lr"] = rate * rate_factor(iteration, iterations)
        value = loss(iteration, generator)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimiser.step()
        keep = min(decay, (iteration + 1) / (iteration + 10))
        with torch.no_grad():
            for a, b in zip(average.parameters(), module.parameters(), strict=True):
                a.lerp_(b, 1 - keep)
        mean = value.item() if math.isnan(mean) else 0.99 * mean + 0.01 * value.item()
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is not finite at iteration {iteration} ({path.stem})")
        if (iteration + 1) % every == 0 or iteration + 1 == iterations:
            seconds = before + time.perf_counter() - began
            _save(path, module, average, optimiser, iteration + 1, seconds, mean)
            print(
                f"{path.stem}: {iteration + 1} of {iterations}, loss {mean:.4f}, {seconds:.0f} s", flush=True
            )
    with torch.no_grad():  # buffers stay as the training left them
        for a, b in zip(average.parameters(), module.parameters(), strict=True):
            b.copy_(a)
    return before + time.perf_counter() - began


def _save(
    path: Path, module: nn.Module, average: nn.Module, optimiser: torch.optim.Adam, iteration: int,
    seconds: float, mean: float,
) -> None:  # fmt: skip
    state = {f"module.{k}": v for k, v in module.state_dict().items()}
    state |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for i, p in enumerate(module.parameters()):
        state |= {f"adam.{i}.{k}": v for k, v in optimiser.state[p].items()}
    meta = {"iteration": str(iteration), "seconds": repr(seconds), "mean": repr(mean)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, part, meta)
    part.replace(path)  # a kill while writing leaves the old file


def _load(
    path: Path, module: nn.Module, average: nn.Module, optimiser: torch.optim.Adam
) -> tuple[int, float, float]:
    from safetensors import safe_open

    state = load_file(path)
    with safe_open(path, "pt") as f:
        meta = f.metadata()
    for name, target in (("module.", module), ("average.", average)):
        target.load_state_dict({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})
    for i, p in enumerate(module.parameters()):
        names = ("step", "exp_avg", "exp_avg_sq")
        if f"adam.{i}.step" in state:  # a weight that the loss does not depend on has no moments
            optimiser.state[p] = {k: state[f"adam.{i}.{k}"] for k in names}
    return int(meta["iteration"]), float(meta["seconds"]), float(meta["mean"])


def weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, whether its training has ended or not."""
    return {k.removeprefix("average."): v for k, v in load_file(path).items() if k.startswith("average.")}
