"""A fit as ArviZ data: draws, what is known of them, and the groups that need the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.errors import ModelError
from pyro_dft.export.arviz import sample_stats, to_inference_data
from pyro_dft.interface.backend import Backend
from pyro_dft.interface.blocks import new_blocks, together
from pyro_dft.interface.result import Making
from pyro_dft.interface.training import Training

# Pointwise log-likelihoods with more numbers than this (draws x data) are computed on request only.
LIKELIHOOD_LIMIT = 1e8


@dataclass(frozen=True)
class Wanted:
    """Groups that need the model, and labels; see `DFT.to_inference_data`."""

    log_likelihood: bool | None
    posterior_predictive: bool
    prior: bool
    constant_data: Mapping[str, Any]
    coords: Mapping[str, Sequence[Any]] | None
    dims: Mapping[str, Sequence[str]]


def inference_data(training: Training, fresh: tuple[int, Making] | None, wanted: Wanted) -> Any:
    """All of `DFT.to_inference_data`.

    Args:
        training: Whose result it is.
        fresh: New draws for each chain, and how they are made; None takes the kept draws.
        wanted: What is asked for.
    """
    report = training.report()
    result, backend = training.trained(), training.backend
    fit, numpy = result.fit, backend.arrays.numpy
    with backend.session():
        if fresh is None:
            flat, statistics = result.kept, result.statistics()
            original = backend.original(fit.problem, flat)
            potential = backend.potential_of_kept(result, original)
        else:
            flat, statistics = together(backend, new_blocks(backend, fit, *fresh, rng=backend.rng))
            original = backend.original(fit.problem, flat)
            potential = backend.potential_at(original)
        samples = backend.constrain(fit.problem, [flat])
        log_density = -potential.astype(np.float64)
        groups = _model_groups(backend, samples, wanted)
    return to_inference_data(
        {name: numpy(value) for name, value in samples.items()},
        sample_stats=sample_stats(log_density, statistics),
        unconstrained_posterior=backend.layout.unflatten(original),
        constant_data={name: numpy(value) for name, value in wanted.constant_data.items()},
        coords=wanted.coords,
        dims={**backend.posteriors[0].plate_dims(), **wanted.dims},
        attrs={
            "backend": backend.framework,
            "settings": backend.options.settings.to_json(),
            "sampling_time": training.seconds,
            **{key: report[key] for key in ("status", "warnings", "objective", "refine_steps")},
        },
        **{group: {name: numpy(value) for name, value in values.items()} for group, values in groups.items()},
    )


def _model_groups(backend: Backend, samples: dict[str, Any], wanted: Wanted) -> dict[str, dict[str, Any]]:
    """ArviZ groups that need the model, for constrained draws (chains, draws, *site)."""
    own = backend.posteriors[0]
    if backend.options.model is None:
        if wanted.log_likelihood or wanted.posterior_predictive or wanted.prior:
            raise ModelError(
                "a bare potential_fn has no likelihood, no replicated data and no prior to report"
            )
        return {}
    chains, draws = next(iter(samples.values())).shape[:2]
    flat = {name: value.reshape((chains * draws, *value.shape[2:])) for name, value in samples.items()}
    observed, with_likelihood = own.observed(), wanted.log_likelihood
    if with_likelihood is None:
        numbers = chains * draws * sum(math.prod(value.shape) for value in observed.values())
        some = own.without_likelihood().keys() != observed.keys()
        with_likelihood = some and numbers <= LIKELIHOOD_LIMIT
    groups = {}
    if with_likelihood:
        groups["log_likelihood"] = own.log_likelihood(flat)
    if wanted.posterior_predictive:
        groups["posterior_predictive"] = backend.replicated(own, flat)
    if wanted.prior:
        drawn = backend.prior(own, chains * draws)
        groups["prior"] = {name: value for name, value in drawn.items() if name not in observed}
        groups["prior_predictive"] = {name: drawn[name] for name in observed}
    shaped = {
        group: {name: value.reshape((chains, draws, *value.shape[1:])) for name, value in values.items()}
        for group, values in groups.items()
    }
    return {"observed_data": observed, **shaped}
