"""One training of five samplers at once, without the choice that `DFT.run` makes at the end; and its errors."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.metrics import sliced_wasserstein2
from benchmarks.objectives.targets import Subject
from benchmarks.objectives.variants import BASE, Stage, Variant
from benchmarks.references import QUANTILES, Reference
from pyro_dft.engine_jax.engine import ENGINE
from pyro_dft.engine_jax.refine import refine, tune_step_size, whitening
from pyro_dft.engine_jax.sampler import Sampler
from pyro_dft.engine_jax.step import Plan
from pyro_dft.engine_jax.train import NetworkTrainer
from pyro_dft.experimental import grouped
from pyro_dft.recipe.measure import compare
from pyro_dft.recipe.selection import SELECTION_DRAWS, SELECTION_STEPS
from pyro_dft.settings import Settings

DRAWS = 40_000
# Settings that a "kl" stage does not read: trainings that differ only in these share it.
AFTER_KL = ("distance", "final_batch_factor", "dft_learning_rate", "dft_fraction")
# Of the fit that gives the Gaussians: nothing is measured there.
BRIEF = {"train": "never", "modes": "never", "refine_steps": 1, "max_refine_steps": 1, "num_draws": 10}


@dataclass
class Trained:
    """A state of five samplers.

    Attributes:
        network: Holds the state.
        generator_steps: For each sampler.
        gradients: Gradient evaluations of the potential, for each sampler (a Hessian-vector product counts as two).
        seconds: CPU seconds for each sampler, without compiling.
        before: The samplers as they were before the "dft" stage; None where there was none.
        before_key: What these depend on.
    """

    network: NetworkTrainer
    generator_steps: int = 0
    gradients: float = 0.0
    seconds: float = 0.0
    before: Sampler | None = None
    before_key: str = ""


@dataclass
class Bench:
    """A posterior with the Gaussians of `seeds` independent fits.

    Args:
        subject: The posterior.
        seeds: How many samplers are trained at once.
        first: Another number gives other seeds.
    """

    subject: Subject
    seeds: int = 5
    first: int = 0
    reference: Reference = field(init=False)
    _warm: dict[str, Trained] = field(default_factory=dict)
    _before: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import jax

        dft, args = self.subject.dft(num_chains=self.seeds, **grouped(BRIEF))
        dft.run(jax.random.key(self.first), *args)
        self.fitted, self.problem = dft.parts.fit.sampler, dft.parts.backend.problems[dft.parts.fit.problem]
        self.posterior = dft.parts.posterior
        self.reference = self.subject.reference()

    def train(self, variant: Variant) -> Trained:
        """All stages of a variant."""
        settings = Settings(**grouped({**BASE, **variant.settings}))
        shared = {k: v for k, v in variant.settings.items() if k not in AFTER_KL}
        now: Trained | None = None
        done: list[Stage] = []
        key = ""
        for stage in variant.stages:
            done.append(stage)
            last, key = key, json.dumps([shared, [s.__dict__ for s in done]], sort_keys=True)
            if stage.phase == "kl" and key in self._warm:
                now = self._again(self._warm[key], settings)
                continue
            if now is None:
                network = NetworkTrainer(
                    self.problem.target, self.fitted, settings, np.random.default_rng([self.first, 77])
                )
                now = Trained(network)
            if stage.phase == "dft":
                now.before, now.before_key = now.network.sampler(), last
            self._stage(now, stage)
            if stage.phase == "kl":
                self._warm[key] = self._again(now, settings)
        assert now is not None
        return now

    def _again(self, trained: Trained, settings: Settings) -> Trained:
        """A copy that goes on with other settings."""
        network = copy.copy(trained.network)
        network.rng, network.plan = copy.deepcopy(trained.network.rng), Plan.of(settings)
        network.hyper = type(network.hyper).of(settings)
        return replace(trained, network=network)

    def _stage(self, trained: Trained, stage: Stage) -> None:
        network, target, plan = trained.network, self.problem.target, trained.network.plan
        own, hyper = dict(stage.settings), network.hyper
        network.plan = replace(plan, **{k: v for k, v in own.items() if k in Plan.__dataclass_fields__})
        network.hyper = hyper._replace(**{k: np.float32(v) for k, v in own.items() if k in hyper._fields})
        state, rng = network.state, copy.deepcopy(network.rng)
        network.advance(stage.phase, stage.first, stage.length, 1)  # compiles
        network.state, network.rng = state, rng
        gradients, start = target.gradient_evaluations, time.process_time()
        made = 0
        while made < stage.count:
            made += len(
                network.advance(stage.phase, stage.first + made, stage.length, min(50, stage.count - made))
            )
        np.asarray(network.state.gap)  # waits for the last step
        trained.seconds += (time.process_time() - start) / self.seeds
        trained.gradients += (target.gradient_evaluations - gradients) / self.seeds
        trained.generator_steps += stage.count
        network.plan, network.hyper = plan, hyper

    def movement(self, sampler: Sampler) -> np.ndarray:
        """How far a short refinement moves the draws of each sampler: what the run-time choice compares."""
        rng = np.random.default_rng(11)
        before = sampler.draw(SELECTION_DRAWS, rng)
        scale, target = whitening(before, sampler.scale), self.problem.target
        step = tune_step_size(target, before, scale, leapfrog_steps=5, rng=rng)
        after = refine(target, before, scale, step, steps=SELECTION_STEPS, leapfrog_steps=5, rng=rng).draws
        return np.array(
            [d.rms for d in compare(ENGINE, before, after, self.problem.original)[1:]][-self.seeds :]
        )

    def errors(self, sampler: Sampler) -> dict[str, list[float]]:
        """Errors of raw draws of each sampler; the same latent points for every sampler."""
        draws = sampler.draw(DRAWS, np.random.default_rng(12))
        found = [
            errors(self.subject.seen(self.posterior.constrain(np.asarray(x))), self.reference) for x in draws
        ]
        return {k: [one[k] for one in found] for k in found[0]}

    def row(self, variant: Variant) -> dict[str, Any]:
        """Costs and errors of a variant, errors as lists over seeds."""
        if not variant.stages:
            return self._measured(self.fitted) | {"steps": 0, "gradients": 0.0, "seconds": 0.0}
        trained = self.train(variant)
        sampler = trained.network.sampler()
        row = self._measured(sampler) | {
            "steps": trained.generator_steps,
            "gradients": trained.gradients,
            "seconds": trained.seconds,
            "gap": trained.network.smoothed_gap().tolist(),
            "sigma": sampler.noise.mean((1, 2)).tolist(),
        }
        if trained.before is not None:
            if trained.before_key not in self._before:
                self._before[trained.before_key] = self._measured(trained.before)
            before = self._before[trained.before_key]
            kept = np.array(row["movement"]) < np.array(before["movement"])
            row |= {"before": before, "kept": kept.tolist()}
        return row

    def _measured(self, sampler: Sampler) -> dict[str, Any]:
        return self.errors(sampler) | {"movement": self.movement(sampler).tolist()}


def errors(draws: np.ndarray, reference: Reference) -> dict[str, float]:
    """Averages over coordinates, in posterior sds; draws that are not finite are left out.

    Returns:
        `mean` of |mean error|, `sd` of |log sd ratio|, `quantile` of the error at 5, 50 and 95 %, the same for the worst
        coordinate, and `sw2` between whitened draws.
    """
    x = draws[np.isfinite(draws).all(1)]
    mean = np.abs(x.mean(0) - reference.mean) / reference.sd
    sd = np.abs(np.log(x.std(0) / reference.sd))
    quantile = np.abs(np.quantile(x, QUANTILES, axis=0) - reference.quantiles) / reference.sd
    return {
        "mean": float(mean.mean()),
        "sd": float(sd.mean()),
        "quantile": float(quantile.mean()),
        "sw2": sliced_wasserstein2(x, reference.draws, reference.covariance),
        "worst_mean": float(mean.max()),
        "worst_sd": float(sd.max()),
        "worst_quantile": float(quantile.max()),
    }
