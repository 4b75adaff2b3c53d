"""Data-side quantities of a fitted model: pointwise log-likelihoods and replicated data."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pyro.poutine as poutine
import torch
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dft import messages
from pyro_dft.errors import ModelError

from .batching import map_rows
from .enumeration import likelihood_plan, pointwise, run_at_sampled_sites
from .evaluation import full_index, patched
from .placement import Place

if TYPE_CHECKING:
    from .model import PyroProblem

_INDEX = "row"


class _Replicate(Messenger):
    """Draws new data of the shape of the old at the observed sites."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = set(names)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.names:
            return
        fn, data = msg["fn"], msg["value"]
        # Without a plate a scalar distribution may have scored a whole vector: replicate the vector.
        shape = torch.broadcast_shapes(fn.batch_shape, data.shape[: data.dim() - fn.event_dim])
        fn = fn if shape == fn.batch_shape else fn.expand(shape)
        if isinstance(fn, HiddenMarkovModel) and fn.duration is None:
            fn = copy.copy(fn)  # a chain of open end: as long as the data
            fn._duration = data.shape[-fn.event_dim]
        msg["fn"] = fn
        msg["is_observed"], msg["value"], msg["done"] = False, None, False


def log_likelihood(problem: PyroProblem, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pointwise log-likelihood; see :meth:`PyroProblem.log_likelihood`."""
    plan, reasons = _plan(problem)
    if reasons and not plan:
        raise messages.no_likelihood(reasons)
    if not plan:
        return {}
    enum_dims, ordering = problem.enum_dims, problem.ordering

    def one(row: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = problem.run_at(row)
        trace.compute_log_prob(lambda name, _: any(name in sites for sites in plan.values()))
        if any(len(sites) > 1 for sites in plan.values()):
            trace.compute_log_prob()
            trace.pack_tensors()
        values = {}
        for name, sites in plan.items():
            if len(sites) > 1:
                values[name] = pointwise(trace, name, sites, enum_dims, ordering[name])
            else:
                site = trace.nodes[name]
                values[name] = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
        return values

    return map_rows(one, samples, chunk=problem.chunk_size(samples))


def without_likelihood(problem: PyroProblem) -> dict[str, str]:
    """Observed sites that have no pointwise log-likelihood, with the reason."""
    return _plan(problem)[1]


def _plan(problem: PyroProblem) -> tuple[dict[str, list[str]], dict[str, str]]:
    structure = problem.structure
    if not problem.enumerated:
        return {name: [name] for name in structure.observed}, {}
    return likelihood_plan(structure.trace, structure.observed, problem.enum_dims, problem.ordering)


def posterior_predictive(problem: PyroProblem, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replicated data; see :meth:`PyroProblem.posterior_predictive`."""
    observed = problem.structure.observed
    if not observed:
        return {}

    def one(row: dict[str, Tensor]) -> dict[str, Tensor]:
        if not problem.enumerated:
            trace = problem.run(Place(row), replicate=_Replicate(observed))
            return {name: trace.nodes[name]["value"] for name in observed}
        values: dict[str, Tensor] = {}

        def replicated(*args: Any, **kwargs: Any) -> None:
            with _Replicate(observed), Place(row):
                run = poutine.trace(config_enumerate(problem.model)).get_trace(*args, **kwargs)
            values.update({name: run.nodes[name]["value"] for name in observed})

        enumerated = problem.run_at(row)
        with full_index():
            run_at_sampled_sites(replicated, enumerated, problem.args, problem.kwargs)
        return values

    return map_rows(one, samples, chunk=problem.chunk_size(samples))


def prior_predictive(problem: PyroProblem, n: int) -> dict[str, Tensor]:
    """Draws from the prior; see :meth:`PyroProblem.prior_predictive`."""
    structure = problem.structure
    wanted = structure.latent + structure.discrete + structure.deterministic + structure.observed

    def one(row: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = problem.run(
            Place({}, complete=False), enumerate_sites=False, replicate=_Replicate(structure.observed)
        )
        return {name: trace.nodes[name]["value"] for name in wanted if name in trace.nodes}

    rows = {_INDEX: torch.arange(n)}
    try:
        with patched():
            return map_rows(one, rows, chunk=problem.chunk_size(rows))
    except NotImplementedError as error:
        raise ModelError(f"the prior cannot be sampled: {error}") from error


def plate_dims(problem: PyroProblem) -> dict[str, list[str]]:
    """Names of the dimensions of every site; see :meth:`PyroProblem.plate_dims`."""
    structure, nodes = problem.structure, problem.structure.trace.nodes
    named: dict[str, list[str]] = {}
    for name in structure.latent + structure.deterministic + structure.observed:
        site = nodes[name]
        value = site["value"]
        # pyro.deterministic calls every dimension an event dimension unless told otherwise.
        event_dim = 0 if name in structure.deterministic else site["fn"].event_dim
        labels = [f"{name}_dim_{i}" for i in range(value.dim())]
        for frame in site["cond_indep_stack"]:
            position = value.dim() - event_dim + frame.dim if frame.vectorized else -1
            if position >= 0 and value.shape[position] == frame.size:
                labels[position] = frame.name
        named[name] = labels
    return named
