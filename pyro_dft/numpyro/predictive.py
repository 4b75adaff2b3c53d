"""Data-side quantities of a fitted model: pointwise log-likelihoods and replicated data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from pyro_dft import messages
from pyro_dft.errors import ModelError
from pyro_dft.numpyro.traced import key_words, map_rows, trace

if TYPE_CHECKING:
    from pyro_dft.numpyro.model import NumPyroProblem


class Replicate(Messenger):
    """Draws new data of the shape of the old at the observed sites.

    Args:
        fn: The model.
        names: Names of the observed sites.

    Attributes:
        missed: Those that a run did not pass.
    """

    def __init__(self, fn: Any, names: list[str]) -> None:
        super().__init__(fn)
        self.names = set(names)
        self.missed = set(names)

    def process_message(self, msg: Any) -> None:
        """Turns an observed site into one that is sampled."""
        if msg["type"] != "sample" or msg["name"] not in self.names:
            return
        self.missed.discard(msg["name"])
        fn, shape = msg["fn"], jnp.shape(msg["value"])
        batch = shape[: len(shape) - len(fn.event_shape)]
        # Without a plate a scalar distribution may have scored a whole vector: replicate the vector.
        wanted = jnp.broadcast_shapes(tuple(fn.batch_shape), batch)
        msg["fn"] = fn if wanted == tuple(fn.batch_shape) else fn.expand(wanted)
        msg["is_observed"], msg["value"] = False, None


def without_likelihood(problem: NumPyroProblem) -> dict[str, str]:
    """Observed sites that have no pointwise log-likelihood, with the reason."""
    if not problem.enumerated:
        return {}
    names = problem.structure.discrete
    return dict.fromkeys(problem.structure.observed, f"depends on the discrete sites {names}")


def log_likelihood(problem: NumPyroProblem, samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pointwise log-likelihood; see :meth:`NumPyroProblem.log_likelihood`."""
    reasons = without_likelihood(problem)
    if reasons:
        raise messages.no_likelihood(reasons)
    names = list(problem.structure.observed)
    if not names:
        return {}

    def one(row: dict[str, Any]) -> dict[str, Any]:
        sites = problem.run(row)
        return {name: sites[name]["fn"].log_prob(sites[name]["value"]) for name in names}

    function, arrays = trace(one, _shapes(samples))
    return map_rows(function, arrays, samples, elements=problem.structure.elements)


def _shapes(samples: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(value.shape[1:], value.dtype) for name, value in samples.items()}


def posterior_predictive(
    problem: NumPyroProblem, samples: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Replicated data; see :meth:`NumPyroProblem.posterior_predictive`."""
    names = list(problem.structure.observed)
    if not names:
        return {}

    def one(row: dict[str, Any], words: Any) -> dict[str, Any]:
        sites = _replicated(problem, row, words)
        return {name: sites[name]["value"] for name in names}

    function, arrays = trace(one, _shapes(samples), key_words())
    words = rng.integers(2**32, size=(len(next(iter(samples.values()))), 2), dtype=np.uint32)
    return map_rows(function, arrays, samples, words, elements=problem.structure.elements)


def _replicated(problem: NumPyroProblem, values: dict[str, Any], words: Any) -> dict[str, Any]:
    """Sites of a run with new data."""
    handler = Replicate(None, list(problem.structure.observed))

    def wrap(model: Any) -> Any:
        handler.fn = model
        return handler

    sites = problem.run(values, words, wrap=wrap)
    if handler.missed:
        raise ModelError(
            f"observed sites {sorted(handler.missed)} cannot be replicated where they are: use numpyro.infer.Predictive "
            "with the draws, and a model that takes None as data"
        )
    return sites


def prior_predictive(problem: NumPyroProblem, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws from the prior; see :meth:`NumPyroProblem.prior_predictive`."""
    structure = problem.structure
    observed = list(structure.observed)
    wanted = [*structure.latent, *structure.discrete, *structure.deterministic, *observed]

    def one(words: Any) -> dict[str, Any]:
        sites = _replicated(problem, {}, words)
        return {name: sites[name]["value"] for name in wanted if name in sites}

    try:
        function, arrays = trace(one, key_words())
    except NotImplementedError as error:
        raise ModelError(f"the prior cannot be sampled: {error}") from error
    words = rng.integers(2**32, size=(n, 2), dtype=np.uint32)
    return map_rows(function, arrays, words, elements=structure.elements)


def plate_dims(problem: NumPyroProblem) -> dict[str, list[str]]:
    """Names of the dimensions of every site; see :meth:`NumPyroProblem.plate_dims`."""
    structure = problem.structure
    kept = problem.deterministic_sites()
    sites = structure.latent | {name: structure.deterministic[name] for name in kept} | structure.observed
    named: dict[str, list[str]] = {}
    for name, site in sites.items():
        labels = [f"{name}_dim_{i}" for i in range(len(site.shape))]
        for frame in site.frames:
            position = len(site.shape) - site.event_dim + frame.dim
            if position >= 0 and site.shape[position] == frame.size:
                labels[position] = frame.name
        named[name] = labels
    return named
