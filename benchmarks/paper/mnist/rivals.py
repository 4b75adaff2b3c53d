"""What the one-step samplers are held against: real images, the gate of the energy, annealed Langevin."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.mnist import langevin
from benchmarks.paper.mnist.correction import Corrected
from benchmarks.paper.mnist.features import Classifier, Fid
from benchmarks.paper.mnist.plan import Plan

SHOWN = 64


def shown(images: Tensor) -> list[list[float]]:
    """The first 64 images as numbers of three decimals, for the pictures."""
    return [[round(v, 3) for v in image] for image in images[:SHOWN].clamp(0, 1).tolist()]


def digits(classifier: Classifier, images: Tensor) -> list[int]:
    """How many images (n, d) the classifier takes for each digit."""
    with torch.no_grad():
        guess = torch.cat([classifier(x).argmax(1) for x in images.split(500)])
    return torch.bincount(guess, minlength=10).tolist()


def seconds(make: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, and the wall and CPU seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = make()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def floors(plan: Plan, fid: Fid, train: Tensor, test: Tensor) -> dict[str, Any]:
    """FID of real training images against the test images, for every count in use, and of two halves of test images.

    Each is the mean over up to five sets that share no image.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(2))
    out: dict[str, Any] = {"halves": Fid(fid.classifier, test[::2])(test[1::2])}
    for n in sorted({plan.count, plan.curve, plan.tune, plan.gate_count}):
        sets = order[: 5 * n].split(n)
        values = [fid(train[rows]) for rows in sets if len(rows) == n]
        out[str(n)] = sum(values) / len(values)
    noise = torch.rand(plan.count, train.shape[1], generator=torch.Generator().manual_seed(3))
    rows = order[: plan.count]
    return {
        **out, "noise": fid(noise), "digits": digits(fid.classifier, train[rows]), "images": shown(train[rows]),
    }  # fmt: skip


def gate(plan: Plan, energy: Corrected, fid: Fid, train: Tensor, seed: int) -> dict[str, Any]:
    """FID along Langevin at temperature 1 from data: does the energy hold them?"""
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: plan.gate_count]
    points, counts, images = [], [], torch.empty(0)
    chain = langevin.relax(energy, train[rows], list(plan.gate_steps), plan.gate_share, seed)
    for count, images in chain:
        points.append([count, fid(images)])
        counts.append(digits(fid.classifier, images))
        print(f"gate: {count} steps at temperature 1, FID {points[-1][1]:.2f}", flush=True)
    ratio = points[-1][1] / points[0][1]
    return {
        "seed": seed, "points": points, "ratio": ratio, "passes": ratio <= 2,
        "first": counts[0], "digits": counts[-1], "images": shown(images),
    }  # fmt: skip


def annealed(plan: Plan, energy: Corrected, fid: Fid, steps: int) -> dict[str, Any]:
    """Annealed Langevin with so many steps, at the best step size and start temperature of the grid.

    Returns:
        The grid with the FID of ``plan.tune`` images each, the best one's FID on sets of ``plan.count`` new images (mean, and
        standard deviation over the sets), its cost for 1,000 images and its images.
    """
    grid = []
    for share in plan.shares:
        for start in plan.starts:
            schedule = langevin.Schedule(steps, share, start)
            images = langevin.anneal(energy, energy.mean, plan.tune, schedule, seed=5)
            grid.append({"share": share, "start": start, "fid": fid(images)})
    best = min(grid, key=lambda row: row["fid"])
    schedule = langevin.Schedule(steps, best["share"], best["start"])
    values, wall, cpu, images = [], 0.0, 0.0, torch.empty(0)
    for seed in range(6, 6 + plan.sets):
        make = partial(langevin.anneal, energy, energy.mean, plan.count, schedule, seed)
        images, *spent = seconds(make)
        values.append(fid(images))
        wall, cpu = wall + spent[0] / plan.sets, cpu + spent[1] / plan.sets
        print(
            f"Langevin, {steps} steps: a = {best['share']}, start {best['start']}, FID {values[-1]:.2f}",
            flush=True,
        )
    return {
        "grid": grid, "share": best["share"], "start": best["start"], "fid": mean(values),
        "fid_sd": stdev(values), "evaluations": steps + 1,
        "wall": wall * 1000 / plan.count, "cpu": cpu * 1000 / plan.count,
        "digits": digits(fid.classifier, images), "images": shown(images),
    }  # fmt: skip
