"""The page, the table and the pictures of the experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.paper import page
from benchmarks.paper.mnist import figures
from benchmarks.paper.mnist.onestep import SETS

COLUMNS: table.Columns = (
    ("method", "method", "{}"),
    ("FID", "fid", "{:.1f}"),
    ("its sd over sets of images", "fid_sd", "{:.1f}"),
    ("network evaluations per image", "evaluations", "{}"),
    ("wall s / 1,000 images", "wall", "{:.3f}"),
    ("CPU s / 1,000 images", "cpu", "{:.3f}"),
    ("Langevin-longest CPU s / these", "times", "{:.0f}"),
    ("rarest digit, share", "rarest", "{:.3f}"),
    ("commonest digit, share", "commonest", "{:.3f}"),
    ("training CPU s", "training", "{:.0f}"),
)


def row(method: str, result: dict[str, Any]) -> table.Row:
    """A line of the table of one method's result."""
    shares = np.asarray(result["digits"]) / sum(result["digits"])
    keep: dict[str, Any] = {
        k: result[k] for k in ("fid", "fid_sd", "evaluations", "wall", "cpu", "training") if k in result
    }
    return {"method": method, **keep, "rarest": float(shares.min()), "commonest": float(shares.max())}


def rows(results: dict[str, Any]) -> list[table.Row]:
    """All lines: real images, annealed Langevin, one-step samplers; cost ratios against the longest Langevin run."""
    count = str(results["plan"]["count"])
    real = {"fid": results["floors"][count], "digits": results["floors"]["digits"]}
    out = [row("real training images (floor)", real)]
    chains = {f"Langevin, {k} steps": v for k, v in results["langevin"].items()}
    denoised = {f"{name} + denoising step": v["denoised"] for name, v in results["samplers"].items()}
    chains |= {f"Langevin, {k} steps, without the correction": v for k, v in results["bare"].items()}
    for seed, found in results["repeats"].items():
        again = {f"{name}, seed {seed}": v for name, v in found.items()}
        denoised |= again | {f"{name} + denoising step": v["denoised"] for name, v in again.items()}
    out += [row(name, result) for name, result in (chains | results["samplers"] | denoised).items()]
    longest = list(results["langevin"].values())[-1]["cpu"]
    return [{**r, "times": longest / r["cpu"]} if "cpu" in r else r for r in out]


def against(mine: table.Row, theirs: table.Row, sets: int) -> str:
    """Words for one FID beside another, with the standard error over sets of images."""
    error = (mine["fid_sd"] ** 2 / len(SETS) + theirs["fid_sd"] ** 2 / sets) ** 0.5
    verdict = "at or below" if mine["fid"] <= theirs["fid"] else "above"
    return f"against {theirs['fid']:.1f} (**{verdict}**; the difference has a standard error of {error:.1f})"


def verdicts(results: dict[str, Any], lines: list[table.Row]) -> list[str]:
    """What was found, against what was asked for, one sentence each."""
    gates, plan, floors = results["gate"], results["plan"], results["floors"]
    count, few = plan["count"], plan["gate_count"]
    *trails, bare = [
        ", ".join(f"{value:.1f} after {steps:,}" for steps, value in g["points"])
        for g in [*gates, results["bare_gate"]]
    ]
    tried = len(plan["shares"]) * len(plan["starts"])
    best = ", ".join(
        f"{k} steps: a = {v['share']}, start at temperature {v['start']:.0f}"
        for k, v in results["langevin"].items()
    )
    out = [
        f"classifier: {100 * results['accuracy']:.2f} % of test images right; FID is taken on its 64 features against "
        f"{plan['test']:,} test images, with {count:,} images a method. It is **not** Inception FID. As many real training "
        f"images have {floors[str(count)]:.1f}, the two halves of the test images {floors['halves']:.2f}, uniform noise "
        f"{floors['noise']:.0f}",
        f"gate of the energy: Langevin at temperature 1 from {few} training images (a = {plan['gate_share']}) has FID "
        f"{trails[0]} steps, where as many real images have {floors[str(few)]:.1f}; last over first {gates[0]['ratio']:.2f}, "
        f"where at most 2 is asked for: **{'passed' if gates[0]['passes'] else 'failed'}**. Digits 0 to 9 among the first: "
        f"{', '.join(map(str, gates[0]['first']))}; the last: {', '.join(map(str, gates[0]['digits']))}",
        *(
            f"the gate from {few} other images with other noise: FID {trail} steps; last over first {g['ratio']:.2f}"
            for g, trail in zip(gates[1:], trails[1:], strict=True)
        ),
        f"the first gate without the correction: FID {bare} steps; last over first {results['bare_gate']['ratio']:.2f}",
        f"annealed Langevin: the best of {tried} settings by the FID of {plan['tune']} images for each number of steps, then new "
        f"images ({best}); one denoising step at the end; an evaluation is a forward and a backward pass of the energy (and of "
        "its correction, where that acts)",
    ]
    chains = [r for r in lines if r["method"].startswith("Langevin")]
    # The longest with the correction, and without it.
    own, bare = chains[len(results["langevin"]) - 1], chains[-1]
    ours = [r for r in lines if r["method"].startswith(tuple(results["samplers"]))]
    for mine in ours:
        beside = [f"{against(mine, r, plan['sets'])} of {r['method']}" for r in (own, bare)]
        out.append(
            f"{mine['method']}: FID {mine['fid']:.1f} {', and '.join(beside)}; {mine['times']:.0f} times cheaper in CPU seconds "
            f"(at least 100 are asked for: **{'met' if mine['times'] >= 100 else 'not met'}**)"
        )
    return out


def write(results: dict[str, Any], stem: Path, notes: list[str]) -> None:
    """Writes ``stem``.md, .csv and the two pictures.

    Args:
        results: plan (JSON), accuracy, floors, gate (for each seed), langevin (by steps), bare (the longest of langevin,
            without the correction) and bare_gate, samplers (by name) and repeats (samplers by seed).
        stem: Path without suffix.
        notes: Further sentences, the provenance last.
    """
    lines = rows(results)
    longest = list(results["langevin"])[-1]
    panels = {
        "training images": results["floors"]["images"],
        f"annealed Langevin, {longest} steps": results["langevin"][longest]["images"],
        f"gate: {results['plan']['gate_steps'][-1]:,} steps at temperature 1 from data": results["gate"][0][
            "images"
        ],
        **{f"{name}, one step": result["images"] for name, result in results["samplers"].items()},
        **{
            f"{name}, one step and a denoising step": result["denoised"]["images"]
            for name, result in list(results["samplers"].items())[:2]
        },
    }
    grid, curve = f"{stem.name}_samples.png", f"{stem.name}_fid.png"
    figures.grids({k: np.asarray(v) for k, v in panels.items()}, stem.with_name(grid))
    figures.curves(
        {name: result["curve"] for name, result in results["samplers"].items()},
        {f"Langevin {k}": results["langevin"][k]["fid"] for k in (list(results["langevin"])[0], longest)}
        | {"real": results["floors"][str(results["plan"]["curve"])]},
        stem.with_name(curve),
    )
    size, each = results["plan"]["size"], results["plan"]["curve"]
    caption = (
        f"FID of one-step images, without a denoising step, while the samplers train ({each:,} images a point, which lifts all "
        f"values a little; Langevin: {results['plan']['count']:,} images). The first {results['plan']['start_steps']:,} steps "
        "are common to all."
    )
    page.write(
        stem,
        f"MNIST, {size} x {size} pixels: one-step samplers of an energy beside annealed Langevin",
        lines,
        COLUMNS,
        verdicts(results, lines) + notes,
        [
            (grid, "Uncurated images of each method."),
            (curve, caption),
        ],
    )
