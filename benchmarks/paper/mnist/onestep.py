"""The one-step samplers, trained from the energy alone through the public API: DFT-NS, KL-NS and Fisher-NS.

All begin with the same KL training from a random start, as `pyro_dft`'s own recipe does, and then go on for some hundred
steps with their own objective at the same rates: Theorem 1 of the paper, KL, or the first term of Theorem 1 alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.paper.mnist.cells import cell, key
from benchmarks.paper.mnist.correction import Corrected
from benchmarks.paper.mnist.features import Fid
from benchmarks.paper.mnist.plan import Plan
from benchmarks.paper.mnist.rivals import digits, shown
from benchmarks.paper.mnist.samplers import Generator, ScoreNetwork
from pyro_dft import DFT
from pyro_dft.experimental import Experimental

SEED = 3  # of the first training; those behind it have the next ones
SETS = range(8, 13)  # seeds of the sets of images that FID is averaged over
START = "kl"
METHODS = {"DFT-NS": "dft-paper", "KL-NS": "kl", "Fisher-NS": "fisher-partial"}
PARTS = (
    "classifier", "energy", "correction", "every", "curve", "width", "start_steps", "latents", "rate", "averaging",
)  # fmt: skip
REPEATED = ("DFT-NS", "KL-NS")


def sampler(
    setup: Plan,
    energy: Corrected,
    networks: tuple[nn.Module, nn.Module],
    objective: str,
    start: bool,
    seed: int = SEED,
    **more: Any,
) -> DFT:
    """The library's sampler for this energy, not trained yet.

    Args:
        setup: Steps and rates.
        energy: The model of images; its smoothed potentials train the sampler at all noise levels.
        networks: Generator and score network to begin with.
        objective: Of `pyro_dft.Settings`.
        start: Whether this is the training that all methods begin with.
        seed: Of the draws in training.
        **more: Further arguments of `DFT`.
    """

    def potential(params: dict[str, Tensor]) -> Tensor:
        return energy(params["image"][None], energy.reference)[0]

    def smoothed(params: dict[str, Tensor], sigma: Tensor) -> Tensor:
        return (energy.reference / sigma) ** 2 * energy(params["image"][None], sigma)[0]

    rate, partial = setup.rate if start else setup.end_rate, objective == "fisher-partial"
    return DFT(
        potential_fn=potential,
        smoothed_potential_fn=smoothed,
        initial_params={"image": energy.mean},
        generator=networks[0],
        score_network=networks[1],
        objective="dft" if partial else objective,
        train="always",
        modes="never",
        num_steps=2 * setup.start_steps if start else setup.end_steps,
        batch_size=setup.latents,
        learning_rate=rate,
        refine_steps=0,
        experimental=Experimental(
            partial_gradient=partial,
            precondition="never",
            noise_mode="levels",
            noise=setup.energy.smallest,
            noise_start=setup.energy.largest,
            score_steps=1,
            settle_fraction=0.0,
            dft_learning_rate=rate,
            score_learning_rate=rate if start else setup.rate * 0.3,
            averaging=setup.averaging,
        ),
        seed=seed,
        num_draws=10,
        disable_progbar=True,
        checkpoint_every=setup.every,
        **more,
    )


def draw(generator: nn.Module, count: int, seed: int) -> Tensor:
    """Images (count, d): one forward pass of the generator, and nothing behind it."""
    rng = torch.Generator().manual_seed(seed)
    assert isinstance(generator, Generator)
    d = len(generator.logits)
    with torch.no_grad():
        return torch.cat([generator(z) for z in torch.randn(count, d, generator=rng).split(250)])


def one(network: nn.Module | list[nn.Module]) -> nn.Module:
    """The network of the only chain."""
    assert isinstance(network, nn.Module)
    return network


def train(
    dft: DFT, setup: Plan, fid: Fid, name: str, log: Path, steps: int, first: int = 0
) -> dict[str, Any]:
    """Trains for so many generator steps, or goes on from the checkpoint.

    Args:
        dft: See `sampler`.
        setup: How often FID is taken, on how many images.
        fid: The distance.
        name: Of the method, for the printed lines.
        log: File with the curve and the CPU seconds so far, for a run that was killed.
        steps: Generator steps.
        first: Those before this training.

    Returns:
        The curve (generator step, FID) and the CPU seconds of training and FID.
    """
    curve: list[list[float]] = []
    before, began = 0.0, time.process_time()
    while dft.progress is None or dft.progress.step < steps:
        resumes = dft.progress is None and log.exists()
        dft.step()
        step = dft.progress.step
        if resumes and step > 1:
            known = json.loads(log.read_text())
            curve, before = [point for point in known["curve"] if point[0] < first + step], known["cpu"]
        if step % setup.every == 0 or step == steps:
            curve.append([first + step, fid(draw(one(dft.generator), setup.curve, seed=7))])
            spent = before + time.process_time() - began
            log.write_text(json.dumps({"curve": curve, "cpu": spent}))
            print(f"{name}: step {first + step}, FID {curve[-1][1]:.1f}, {spent:.0f} CPU s", flush=True)
    return {"curve": curve, "cpu": before + time.process_time() - began}


def cost(make: Callable[[int], Tensor], repeats: int = 5) -> tuple[float, float]:
    """Wall and CPU seconds of a function of a seed: the least of some repeats, as for any quick call."""
    found = []
    for seed in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        make(seed)
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(w for w, _ in found), min(c for _, c in found)


def denoised(setup: Plan, energy: Corrected, fid: Fid, generator: Generator) -> dict[str, Any]:
    """One-step images after the denoising step that ends Langevin too: one evaluation of the energy's gradient more.

    FID is the mean over five sets of images, with their standard deviation; "plain" holds that of the images before
    the step.
    """

    def make(count: int, seed: int) -> Tensor:
        return torch.cat(
            [energy.denoise(x, energy.reference) for x in draw(generator, count, seed).split(250)]
        )

    values = [fid(make(setup.count, seed)) for seed in SETS]
    plain = [fid(draw(generator, setup.count, seed)) for seed in SETS]
    images = make(setup.count, SETS[0])
    wall, cpu = cost(partial(make, 1000))
    return {
        "fid": mean(values), "fid_sd": stdev(values), "evaluations": 2, "wall": wall, "cpu": cpu,
        "digits": digits(fid.classifier, images), "images": shown(images),
        "plain": {"fid": mean(plain), "fid_sd": stdev(plain)},
    }  # fmt: skip


def load(setup: Plan, average: Tensor, path: Path, seed: int = SEED) -> tuple[Generator, ScoreNetwork]:
    """New networks, with the weights of a file where there is one."""
    torch.manual_seed(seed)
    nets = Generator(average, setup.width), ScoreNetwork(average, setup.width)
    if path.exists():
        weights = load_file(path)
        for prefix, net in zip(("generator.", "score."), nets, strict=True):
            net.load_state_dict(
                {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            )
    return nets


def save(dft: DFT, path: Path) -> None:
    """Writes the weights of both networks."""
    nets = {"generator": one(dft.generator), "score": one(dft.score_network)}
    state = {f"{name}.{k}": v.contiguous() for name, net in nets.items() for k, v in net.state_dict().items()}
    save_file(state, path)


def run(
    setup: Plan,
    folder: Path,
    energy: Corrected,
    fid: Fid,
    methods: tuple[str, ...] | list[str],
    seed: int = SEED,
) -> dict[str, Any]:
    """The results of those methods that are named, or finished already: name -> result, with the curve from step 0.

    Each has the result of `denoised` within it.
    """
    settings = setup.to_json(*PARTS) | {"seed": seed}
    stem = folder / f"start-{key(settings)}"
    weights = stem.with_suffix(".safetensors")

    def beginning() -> dict[str, Any]:
        nets = load(setup, energy.mean, Path("none"), seed)
        dft = sampler(setup, energy, nets, START, True, seed, checkpoint=stem.with_suffix(".checkpoint"))
        result = train(dft, setup, fid, "KL start", stem.with_suffix(".log"), setup.start_steps)
        save(dft, weights)
        return result

    def ending(name: str, path: Path) -> dict[str, Any]:
        nets, log = load(setup, energy.mean, weights), path.with_suffix(".log")
        dft = sampler(
            setup, energy, nets, METHODS[name], False, seed, checkpoint=path.with_suffix(".checkpoint")
        )
        trained = train(dft, setup, fid, name, log, setup.end_steps, setup.start_steps)
        save(dft, path.with_suffix(".safetensors"))
        images = draw(one(dft.generator), setup.count, seed=8)
        wall, cpu = cost(partial(draw, one(dft.generator), 1000))
        return {
            "curve": trained["curve"], "fid": fid(images), "evaluations": 1, "wall": wall, "cpu": cpu,
            "training": trained["cpu"], "digits": digits(fid.classifier, images), "images": shown(images),
        }  # fmt: skip

    results = {}
    for name, objective in METHODS.items():
        own = settings | setup.to_json("end_steps", "end_rate", "count") | {"objective": objective}
        path = folder / f"{name}-{key(own)}"
        if name in methods or path.with_suffix(".json").exists():
            start = cell(folder, "start", settings, beginning)
            result = cell(folder, name, own, partial(ending, name, path))
            finished, _ = load(setup, energy.mean, path.with_suffix(".safetensors"))
            after = cell(folder, f"{name}-denoised", own, partial(denoised, setup, energy, fid, finished))
            results[name] = result | {
                **after.pop("plain"),
                "denoised": after,
                "curve": start["curve"] + result["curve"],
                "training": start["cpu"] + result["training"],
            }
    return results


def repeats(
    setup: Plan, folder: Path, energy: Corrected, fid: Fid, trainings: int
) -> dict[int, dict[str, Any]]:
    """The same for DFT-NS and KL-NS from further seeds: seed -> results, those finished already included."""
    out = {}
    for number in range(1, setup.trainings):
        methods = REPEATED if number < trainings else ()
        found = run(setup, folder, energy, fid, methods, SEED + number)
        if found:
            out[SEED + number] = found
    return out
