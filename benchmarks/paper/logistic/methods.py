"""Which methods run, with which settings and seeds: the lines of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Rows of a minibatch in the literature, and a larger one.
BATCH, LARGE = 100, 1000
# The rows of the training set that all methods read; 0 for all.
TRAIN_ROWS = 0


@dataclass(frozen=True)
class Line:
    """A method with its settings.

    Attributes:
        key: Name of its cells.
        label: Name in table and figure.
        function: Name of the function, in `mcmc`, `rivals` or `samplers`.
        settings: Its settings.
        seeds: How many seeds it gets in the full run.
        curve: Whether it is drawn.
    """

    key: str
    label: str
    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 5
    curve: bool = True


def lines(backend: str = "numpyro", quick: bool = False) -> list[Line]:
    """All methods, in the order of the table.

    Args:
        backend: "numpyro", or "pyro" for DFT and KL with Pyro; NUTS and the reference are NumPyro's either way.
        quick: Small settings, one seed.
    """
    small: dict[str, Any] = {}
    if quick:
        small = {"num_steps": 30, "precondition_steps": 30, "restarts": 1, "refine_steps": 1, "width": 8,
                 "num_draws": 100, "modes": "never", "reparam": "never"}  # fmt: skip

    def dft(key: str, label: str, batch: int | None, function: str = "whole", **options: Any) -> Line:
        settings: dict[str, Any] = {"batch": batch, "options": {**options, **small}}
        if function == "whole":
            settings["backend"] = backend
        return Line(f"pyro-{key}" if backend == "pyro" else key, label, function, settings)

    warmup, draws = (100, 200) if quick else (500, 1000)
    steps = 300 if quick else None
    nuts = [
        Line("reference", "reference: NUTS, full mass matrix, 3,000 draws", "nuts",
             {"warmup": warmup if quick else 700, "draws": draws if quick else 3000, "dense": True}, 1, False),
        Line("nuts", "NUTS", "nuts", {"warmup": warmup, "draws": draws, "dense": quick}, 1),
    ]  # fmt: skip
    # A network even where the Gaussian is right already: the paper's methods have one.
    network = {"train": "always"}
    own = [
        dft("dft", f"DFT-NS, default recipe, {BATCH} rows", BATCH),
        dft("kl", f"KL-NS, {BATCH} rows", BATCH, objective="kl", **network),
    ]
    if backend == "pyro":
        return [*nuts, *own]
    own += [
        dft("dft-phase", f"DFT-NS, 20 % DFT steps, {BATCH} rows", BATCH, dft_fraction=0.2, **network),
        dft("fisher", f"Fisher-NS, {BATCH} rows", BATCH, objective="fisher-partial", **network),
    ]
    rivals = [
        Line("nuts-dense", "NUTS, full mass matrix", "nuts", {"warmup": warmup, "draws": draws, "dense": True}),
        Line("hmcecs", "HMCECS", "hmcecs", {
            "batch": BATCH, "blocks": 10, "warmup": warmup, "draws": draws, "mode_steps": steps or 10_000,
            "mode_rate": 0.005}),
        Line("svgd", "SVGD", "svgd", {
            "particles": 100, "steps": steps or 3000, "batch": BATCH, "rate": 0.05, "decay": 0.9}),
        Line("sgld", "SGLD", "sgld", {
            "steps": 2000 if quick else 40_000, "batch": BATCH, "rate": 1e-4, "delay": 1000, "power": 0.33}),
        Line("advi", "mean-field VI", "advi", {"steps": steps or 10_000, "batch": BATCH, "rate": 0.02}),
    ]  # fmt: skip
    if quick:
        return [*nuts, *own[:2], *rivals[2:]]
    return [
        *nuts, *own, *rivals,
        dft("dft-large", f"DFT-NS, default recipe, {LARGE} rows", LARGE),
        dft("dft-all", "DFT-NS, default recipe, all rows", None),
        dft("dft-pure", f"DFT-NS by `init` and `update`, {BATCH} rows", BATCH, "stepwise"),
        dft("dft-pure-large", f"DFT-NS by `init` and `update`, {LARGE} rows", LARGE, "stepwise"),
    ]  # fmt: skip
