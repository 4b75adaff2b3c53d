"""The neural samplers of the paper on a bare potential in the plane: recipes, training with draws on the way, and storage.

All three of the paper's objectives have the same networks, noise, batches, steps and random numbers, and no preconditioner:
they start from a unit Gaussian at the origin. One setting of each recipe serves all densities.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper import page
from benchmarks.paper.targets import Toy
from pyro_dft.experimental import grouped

# What the paper's objectives share. The paper does not say what it used.
SHARED: dict[str, Any] = {
    "precondition": "never", "num_steps": 3000, "width": 64, "settle_fraction": 0.0, "restarts": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A way to train a one-step sampler.

    Attributes:
        label: In tables.
        preconditioner: Whether it works in the coordinates of a Gaussian fit.
        settings: Of `DFT`.
        refined: Whether refined draws are shown beside the raw ones; such recipes are trained by `run`, one fit for each
            seed, and the others by the pure functions, all seeds at once.
    """

    label: str
    preconditioner: bool
    settings: Mapping[str, Any]
    refined: bool = False


RECIPES: dict[str, Recipe] = {
    "dft-ns": Recipe("DFT-NS", False, {**SHARED, "objective": "dft-paper", "dft_learning_rate": 3e-4}),
    "kl-ns": Recipe("KL-NS", False, {**SHARED, "objective": "kl", "learning_rate": 3e-3}),
    "fisher-ns": Recipe(
        "Fisher-NS", False, {**SHARED, "objective": "fisher-partial", "dft_learning_rate": 3e-4}
    ),
    "kl-ns-long": Recipe(
        "KL-NS, 5,000 steps", False, {**SHARED, "objective": "kl", "learning_rate": 3e-3, "num_steps": 5000}
    ),
    "default": Recipe("DFT, default recipe", True, {}, refined=True),
    "default-long": Recipe("DFT, default recipe, 5,000 steps", True, {"num_steps": 5000}, refined=True),
    "kl-then-dft": Recipe("KL, then DFT", True, {"dft_fraction": 0.2}),
}


@dataclass(frozen=True)
class Size:
    """How much is made.

    Attributes:
        seeds: Of the trainings.
        sets: Sets of draws from each trained sampler.
        draws: In each set.
        every: Steps between two looks at a training.
        curve_draws: Draws for each look and seed.
        overrides: Settings that a quick run lowers.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    sets: int = 10
    draws: int = 500
    every: int = 250
    curve_draws: int = 500
    overrides: tuple[tuple[str, Any], ...] = ()

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's settings, lowered for a quick run."""
        return {**recipe.settings, **dict(self.overrides)}


QUICK = Size(
    seeds=(0, 1), sets=2, draws=100, every=50, curve_draws=100,
    overrides=(
        ("num_steps", 100), ("width", 16), ("batch_size", 32), ("precondition_steps", 50), ("num_draws", 100),
        ("max_refine_steps", 4), ("restarts", 1), ("modes", "never"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        raw: One-step draws (seeds, sets, draws, 2).
        refined: Refined draws of the same shape, or empty.
        steps: Steps (T,) after which draws were taken on the way, or empty.
        curve: These draws, (T, seeds, draws, 2).
        gap: Fisher gap J(s_q) - J(s_phi) since the look before, mean over steps and seeds, (T,).
        seconds: CPU seconds for each seed, compilation included.
        said: What the fits say of themselves.
    """

    raw: np.ndarray
    refined: np.ndarray
    steps: np.ndarray
    curve: np.ndarray
    gap: np.ndarray
    seconds: float
    said: str

    def save(self, path: Path) -> None:
        """Write to an .npz file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        arrays = {k: getattr(self, k) for k in ("raw", "refined", "steps", "curve", "gap")}
        np.savez_compressed(part, **arrays, seconds=self.seconds, said=self.said)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Trained:
        """Read it again."""
        with np.load(path) as f:
            arrays = {k: f[k] for k in ("raw", "refined", "steps", "curve", "gap")}
            return cls(**arrays, seconds=float(f["seconds"]), said=str(f["said"]))


def cell(kind: str, name: str, settings: Mapping[str, Any]) -> Path:
    """Folder of one finished piece of work; another one for every change of its settings."""
    text = json.dumps(dict(settings), sort_keys=True, default=str)
    return page.CACHE / "plane" / name / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def folder(toy: Toy, name: str, size: Size, backend: str) -> Path:
    """Where a training is kept."""
    what = {"formula": toy.formula, "settings": size.settings(RECIPES[name]), "size": size.__dict__}
    return cell(f"{name}-{backend}", toy.name, what)


def trained(toy: Toy, name: str, size: Size, backend: str = "numpyro", fresh: bool = False) -> Trained:
    """The training of one recipe on one density, from the disk where it is there.

    Args:
        toy: The density.
        name: A key of `RECIPES`.
        size: How much is made.
        backend: "numpyro", or "pyro" (no draws on the way).
        fresh: Train again, whatever is on the disk.
    """
    where = folder(toy, name, size, backend)
    if fresh:
        shutil.rmtree(where, ignore_errors=True)
    path = where / "trained.npz"
    if not path.exists():
        recipe = RECIPES[name]
        start = time.process_time()
        by_run = backend == "pyro" or recipe.refined
        made = _by_run(toy, recipe, size, backend) if by_run else by_steps(toy, recipe, size)
        seconds = (time.process_time() - start) / len(size.seeds)
        Trained(**made, seconds=seconds).save(path)
    return Trained.load(path)


def by_steps(toy: Toy, recipe: Recipe, size: Size) -> dict[str, Any]:
    """All seeds at once, by `init` and `update`, with draws on the way."""
    import jax

    from pyro_dft.numpyro import DFT, Settings

    settings = size.settings(recipe)
    dft = DFT(**toy.bare(), num_chains=len(size.seeds), disable_progbar=True, **grouped(settings))
    # The seeds are chains of one program: independent samplers whose randomness comes from one key.
    state = dft.init(jax.random.key(size.seeds[0]))
    advance = jax.jit(lambda s: jax.lax.scan(lambda now, _: dft.update(now), s, None, length=size.every))
    look = jax.jit(lambda key, s: dft.draw(key, s, size.curve_draws)["x"])
    given = Settings(**grouped(settings))
    # The Gaussian comes first where there is one.
    total = given.num_steps + (given.experimental.precondition_steps if given.preconditioned else 0)
    steps, curve, gap = [0], [look(jax.random.key(1), state)], [np.nan]
    for done in range(size.every, total + 1, size.every):
        state, losses = advance(state)
        steps.append(done)
        curve.append(look(jax.random.key(1), state))
        gap.append(float(losses.mean()))
    raw = dft.draw(jax.random.key(2), state, size.sets * size.draws)["x"]
    shape = (len(size.seeds), size.sets, size.draws, 2)
    return {
        "raw": np.asarray(raw).reshape(shape), "refined": np.empty(0), "steps": np.array(steps),
        "curve": np.stack([np.asarray(c) for c in curve]), "gap": np.array(gap), "said": "-",
    }  # fmt: skip


def _by_run(toy: Toy, recipe: Recipe, size: Size, backend: str) -> dict[str, Any]:
    """One fit after the other, by `run`."""
    raw, refined, said = [], [], []
    settings, shape = size.settings(recipe), (size.sets, size.draws, 2)
    dft: Any = None
    for seed in size.seeds:
        if backend == "numpyro":
            import jax

            from pyro_dft.numpyro import DFT

            dft = dft or DFT(**toy.bare(), disable_progbar=True, **grouped(settings))
            arguments: tuple[Any, ...] = (jax.random.key(seed),)
        else:
            from pyro_dft import DFT as PyroDFT

            dft = PyroDFT(**toy.bare("pyro"), disable_progbar=True, seed=seed, **grouped(settings))
            arguments = ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the status says the same, and is kept
            dft.run(*arguments)
        n = size.sets * size.draws
        raw.append(np.asarray(dft.get_samples(n, refine_steps=0)["x"]).reshape(shape))
        if recipe.refined:
            refined.append(np.asarray(dft.get_samples(n)["x"]).reshape(shape))
        said.append(str(dft.diagnostics()["status"]))
    none = np.empty(0)
    counts = ", ".join(f"{said.count(word)} {word}" for word in dict.fromkeys(said))
    return {
        "raw": np.stack(raw), "refined": np.stack(refined) if refined else none, "steps": none, "curve": none,
        "gap": none, "said": counts,
    }  # fmt: skip


def measured(path: Path, make: Any, fresh: bool = False) -> Any:
    """JSON from a file, made first if it is not there."""
    if fresh or not path.exists():
        value = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return json.loads(path.read_text())


def names(text: str | None, known: Sequence[str], usual: Sequence[str] | None = None) -> list[str]:
    """Names from a list with commas; where there is none, the usual ones, or all that are known."""
    chosen = text.split(",") if text else list(usual or known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen
