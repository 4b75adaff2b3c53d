"""How good are the sampler's draws? An ensemble of exact chains that starts from them answers; its states are served."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pyro_dft.recipe.ensemble import Ensemble
from pyro_dft.recipe.measure import Measurement, noise_between
from pyro_dft.recipe.particles import Particles
from pyro_dft.recipe.window import Window
from pyro_dft.settings import Settings

# Differences of a log density between two evaluations of no more than so many units in its last place are those of rounding.
ROUNDING = 4.0


def by_chains(settings: Settings, target: Any) -> bool:
    """Whether an ensemble is run: unless the number of transitions is given, or the model subsamples its data."""
    return settings.refine_steps is None and settings.objective != "dft-paper" and not target.minibatch


def measure_by_chains(particles: Particles) -> Measurement:
    """Runs an ensemble that has begun to its end, and compares new draws of its sampler with its states.

    How many transitions new draws need is left open (zero), until the sampler that is served is chosen: see `with_steps`.
    """
    subject = particles.subject
    ensemble = Ensemble(particles, *particles.run())
    each = max(10, subject.draws // subject.sampler.chains)
    refined, halfway, log_density, diverged, statistics = ensemble.kept(each)
    raw = subject.sampler.draw(each, subject.rng)
    window, drifts = ensemble.window, ensemble.against(raw)
    return Measurement(
        0, raw, halfway, refined, log_density, drifts[0],
        ensemble.judged.drifts[0], drifts[1:], window.scale, window.step_size, window.acceptance, window.diverged,
        window.stuck, diverged, window.leapfrog_steps, careful_divergence_rate=window.diverged, ensemble=ensemble,
        joint=ensemble.jointly(raw),
        statistics=statistics, gradients_each=round(window.gradients_each), noise=_noise(particles, window),
    )  # fmt: skip


def _noise(particles: Particles, window: Window) -> float:
    """Noise of the log density (nats), from a second evaluation of half of the last states.

    They are a batch of another size: what is traced for one size has the random numbers of one call for good.
    """
    engine, target, few = particles.engine, particles.target, particles.count // 2
    if engine.FREEZES_NOISE or particles.budget.left < few * window.x.shape[0]:
        return 0.0
    first, (again, _) = window.log_density[:, :few, -1], target.evaluate(window.x[:, :few, -1])
    found, level = noise_between(engine, first, again), np.abs(engine.numpy(first)).max()
    rounding = np.finfo(str(first.dtype).removeprefix("torch.")).eps * level
    return found if found > ROUNDING * rounding else 0.0


def measured_again(measurement: Measurement, sampler: Any, rng: Any) -> Measurement:
    """Measures another sampler against an ensemble that has run; its `steps` are left open as well."""
    ensemble = measurement.ensemble
    assert ensemble is not None
    raw = sampler.draw(measurement.raw.shape[1], rng)
    first, *each = ensemble.against(raw)
    joint = ensemble.jointly(raw)
    return replace(
        measurement, steps=0, renewed=False, raw=raw, drift_raw=first, drift_raw_by_chain=each, joint=joint
    )


def with_steps(measurement: Measurement, settings: Settings) -> Measurement:
    """The same, and how many transitions of the ensemble's kernel new draws need."""
    ensemble, joint = measurement.ensemble, measurement.joint
    if ensemble is None or joint is None:
        return measurement
    most = settings.experimental.max_refine_steps
    steps, renewed = ensemble.transitions(measurement.drift_raw, joint, measurement.raw, most)
    return replace(measurement, steps=steps, renewed=renewed)
