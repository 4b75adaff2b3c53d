"""One-step samplers of an energy-based model of MNIST: ``python -m benchmarks.paper mnist [--quick] [--size 14|28]``.

Parts, each kept when it is done and resumed where it was killed: the classifier whose features FID is taken on,
the energy, its correction at the lowest noise levels, the gate (does the energy hold data at temperature 1?), annealed
Langevin with 50 to 200 steps, and the one-step samplers, trained through `pyro_dft.DFT` from the energy alone.
``--methods`` names those to train; methods that are neither named nor finished are missing from the page.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import data
from benchmarks.paper import page
from benchmarks.paper.mnist import correction, features, onestep, report, rivals
from benchmarks.paper.mnist import energy as energies
from benchmarks.paper.mnist.cells import cell, key
from benchmarks.paper.mnist.plan import Plan, plan

Data = dict[str, Tensor]


def main(arguments: list[str]) -> None:
    """Runs what is missing and writes the page.

    Args:
        arguments: Of the command line, behind ``mnist``.
    """
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper mnist", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks and few images; no result")
    parser.add_argument("--size", type=int, choices=(14, 28), default=14, help="pixels on a side")
    parser.add_argument(
        "--methods", nargs="+", choices=tuple(onestep.METHODS), default=tuple(onestep.METHODS)
    )
    parser.add_argument(
        "--trainings", type=int, default=2, help="trainings of DFT-NS and KL-NS (default 2; at most that)"
    )
    options = parser.parse_args(arguments)
    setup = plan(options.size, options.quick)
    folder = page.CACHE / "mnist" / f"{options.size}{'-quick' if options.quick else ''}"
    results = run(setup, folder, options.methods, options.trainings)
    command = f"python -m benchmarks.paper mnist --size {options.size}{' --quick' if options.quick else ''}"
    if options.trainings != 2:
        command += f" --trainings {options.trainings}"
    seeds = (setup.classifier.seed, setup.energy.seed, setup.correction.seed, onestep.SEED)
    stem = page.folder(options.quick) / f"mnist{options.size}"
    report.write(results, stem, notes(setup, bool(results["repeats"])) + page.provenance(command, seeds))
    print(f"written: {stem}.md")


def images(setup: Plan) -> Data:
    """Flat images (n, d) in [0, 1] and labels, cut to the plan's counts; both parts of MNIST are in random order."""
    raw = data.mnist(setup.size)
    counts = {"train": setup.train, "test": setup.test}
    out = {f"x_{k}": torch.from_numpy(raw[f"x_{k}"][:n].reshape(n, -1).copy()) for k, n in counts.items()}
    return out | {f"y_{k}": torch.from_numpy(raw[f"y_{k}"][:n].copy()) for k, n in counts.items()}


def run(
    setup: Plan, folder: Path, methods: tuple[str, ...] | list[str], trainings: int = 1
) -> dict[str, Any]:
    """All parts; see `benchmarks.paper.mnist.report.write` for what comes back."""
    digits = images(setup)
    train, test = digits["x_train"], digits["x_test"]
    path = folder / f"classifier-{key(setup.to_json('classifier'))}.safetensors"
    classifier = features.fit(setup.classifier, train, digits["y_train"], path)
    fid = features.Fid(classifier, test)
    path = folder / f"energy-{key(setup.to_json('energy'))}.safetensors"
    matched = energies.fit(setup.energy, train, path)
    path = folder / f"correction-{key(setup.to_json('energy', 'correction'))}.safetensors"
    energy = correction.fit(setup.correction, matched, train, path)

    known = ("classifier", "energy", "correction")
    counts = setup.to_json("classifier", "count", "curve", "tune", "gate_count")
    results: dict[str, Any] = {
        "plan": setup.to_json(*setup.__dataclass_fields__),
        "accuracy": features.accuracy(classifier, test, digits["y_test"]),
        "floors": cell(folder, "floors", counts, lambda: rivals.floors(setup, fid, train, test)),
    }
    print(f"classifier: {100 * results['accuracy']:.2f} % of test images right", flush=True)
    settings = setup.to_json(*known, "gate_count", "gate_steps", "gate_share")
    results["gate"] = []
    for seed in setup.gate_seeds:
        make = partial(rivals.gate, setup, energy, fid, train, seed)
        results["gate"].append(cell(folder, f"gate{seed}", settings | {"seed": seed}, make))
    results["langevin"] = {}
    for steps in setup.steps:
        settings = setup.to_json(*known, "count", "sets", "tune", "shares", "starts") | {"langevin": steps}
        make = partial(rivals.annealed, setup, energy, fid, steps)
        results["langevin"][steps] = cell(folder, f"langevin{steps}", settings, make)
    # What the correction does to its rival, and to the gate.
    bare = correction.Corrected(matched, None)
    results["bare"] = {}
    for steps in setup.steps[-1:]:
        settings = setup.to_json("classifier", "energy", "count", "sets", "tune", "shares", "starts")
        make = partial(rivals.annealed, setup, bare, fid, steps)
        results["bare"][steps] = cell(folder, f"bare{steps}", settings | {"langevin": steps}, make)
    settings = setup.to_json("classifier", "energy", "gate_count", "gate_steps", "gate_share")
    make = partial(rivals.gate, setup, bare, fid, train, setup.gate_seeds[0])
    results["bare_gate"] = cell(folder, "bare-gate", settings | {"seed": setup.gate_seeds[0]}, make)
    results["samplers"] = onestep.run(setup, folder, energy, fid, methods)
    results["repeats"] = onestep.repeats(setup, folder, energy, fid, trainings)
    return results


def notes(setup: Plan, repeated: bool) -> list[str]:
    """How it was made, in sentences; whether some methods were trained twice."""
    trainings = "of which a line with a seed is another one" if repeated else "of which there is one each"
    e, c = setup.energy, setup.correction
    out = [
        f"energy: residual convolutions ({', '.join(map(str, e.widths))} channels) with a quadratic head, trained by multi-scale "
        f"denoising score matching: {e.iterations:,} iterations of {e.batch} images, noise levels {e.smallest} to {e.largest} "
        f"(log-uniform), temperature 1 at {e.reference}; the moving average of the weights is used",
        f"correction of the energy: {c.width} hidden units on the features before its head, added in full up to "
        f"noise {c.full * e.reference:.2g} and not at all from {c.cut * e.reference:.2g} on, where the energy is that of score "
        f"matching; trained by persistent contrastive divergence, {c.iterations:,} iterations of {c.moves} steps (a = {c.share}) "
        f"of {c.batch} of {c.chains} chains, {c.lowest:.0%} of them at temperature 1 and {c.walking:.0%} coming "
        "down to it. Gate, Langevin and one-step samplers all use the sum",
        f"one-step samplers: {setup.start_steps:,} generator steps of KL from a random start, which all have in common, and "
        f"{setup.end_steps} of each one's own objective, at the same rates; one score step a generator step, {2 * setup.latents} "
        f"draws a step, at all noise levels at once; from the energy alone, without data; the generator's weights are a moving "
        f"average (`averaging={setup.averaging}`). An image is g(z): one forward pass of "
        "the generator, with no noise added (`DFT.get_samples` adds that of the lowest level) and no denoising step; the lines "
        "with a denoising step are x - s0^2 grad E(x) at x = g(z), one evaluation of the energy more, as Langevin has at its end",
        f"FID of the one-step samplers is the mean over five sets of images, that of Langevin over {setup.sets}; the standard "
        f"errors are over these sets, and not over trainings, {trainings}",
        "costs: seconds of one thread on a machine with other work; those of the one-step samplers are the least of five calls "
        "for 1,000 images",
    ]
    if setup.size != 28:
        out.append("28 x 28 pixels (`--size 28`, the same code) have not been run")
    return out
