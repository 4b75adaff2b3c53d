"""Discrete sites that are summed out: minibatches, pointwise likelihoods and draws of such models."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro.infer.discrete import _sample_posterior_from_trace
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dft.errors import ModelError

Ordinal = frozenset[str]


def _unscaled(site: Any) -> Tensor:
    """Packed log-probability of a site with its mask and without its scale."""
    parts = site["packed"]
    return packed.scale_and_mask(parts["unscaled_log_prob"], mask=parts["mask"])


def _subsampling(site: Any) -> float:
    """The scale N / n of a site from the subsampled plates around it."""
    factors = (f.full_size / f.size for f in site["cond_indep_stack"] if f.full_size is not None and f.size)
    return math.prod(factors, start=1.0)


def _sample_sites(trace: Any) -> list[tuple[str, Any]]:
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample)
    ]


def minibatch_log_density(trace: Any, enum_dims: set[str], ordering: dict[str, Ordinal]) -> Tensor:
    """Log density of a run on a minibatch, discrete sites summed out.

    The scale N / n of a subsampled plate must multiply the *sum over* the discrete sites,
    log sum_k p(k) p(y | k), and not the terms inside of it (as in Pyro's ``TraceEnum_ELBO``). Scales of the model's own,
    by ``poutine.scale``, stay inside, where the potential on the full data has them.

    Args:
        trace: Run of the enumerated model.
        enum_dims: Symbols of the enumerated dimensions.
        ordering: Name of a site -> symbols of its plates.

    Raises:
        ModelError: Discrete sites connect terms with different scales, so that no unbiased estimate exists.
    """
    trace.compute_log_prob()
    trace.pack_tensors()
    total: Tensor | float = 0.0
    factors: OrderedDict[Ordinal, list[Tensor]] = OrderedDict()
    scales: dict[str, float] = {}
    for name, site in _sample_sites(trace):
        if enum_dims.isdisjoint(site["packed"]["log_prob"]._pyro_dims):
            total = total + site["log_prob_sum"]
            continue
        scales[name] = _subsampling(site)
        term = site["packed"]["log_prob"]
        inner = term / scales[name]
        inner._pyro_dims = term._pyro_dims
        factors.setdefault(ordering[name], []).append(inner)
    if len(set(scales.values())) > 1:
        raise ModelError(
            f"discrete sites connect terms with different scales {scales}: such a model cannot be "
            "subsampled. Put the discrete sites inside the subsampled plate or drop subsample_size"
        )
    with shared_intermediates() as cache:
        marginal = contract_to_tensor(factors, enum_dims, cache=cache)
    return total + marginal * next(iter(scales.values()))


def likelihood_plan(
    trace: Any, observed: list[str], enum_dims: set[str], ordering: dict[str, Ordinal]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Which observed sites have a pointwise log-likelihood with the discrete sites summed out.

    Where all discrete sites that a datum depends on live in the same plates as the datum, and belong to no
    other datum, they can be summed out for each datum on its own. Elsewhere (a hidden Markov chain, a global
    discrete site) the data are dependent given the continuous sites, and no pointwise likelihood exists.

    Returns:
        Name of an observed site -> names of all sites that take part (just itself where no discrete site
        does), and name of an observed site -> the reason why it has none.
    """
    dims = {name: enum_dims & set(s["packed"]["log_prob"]._pyro_dims) for name, s in _sample_sites(trace)}
    plan: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for name in observed:
        if not dims[name]:
            plan[name] = [name]
            continue
        component, symbols, size = {name}, set(dims[name]), 0
        while len(component) > size:
            size = len(component)
            component |= {other for other, theirs in dims.items() if theirs & symbols}
            symbols |= set().union(*(dims[other] for other in component))
        others = sorted(component.intersection(observed) - {name})
        outside = sorted(other for other in component if ordering[other] != ordering[name])
        if others:
            reasons[name] = f"shares discrete sites with {others}"
        elif outside:
            reasons[name] = f"depends on sites {outside} with other plates through discrete sites"
        else:
            plan[name] = [other for other in dims if other in component]
    return plan, reasons


def pointwise(trace: Any, name: str, sites: list[str], enum_dims: set[str], ordinal: Ordinal) -> Tensor:
    """Log-likelihood of each datum of one observed site, discrete sites of its plan summed out."""
    site = trace.nodes[name]
    terms = OrderedDict([(ordinal, [_unscaled(trace.nodes[other]) for other in sites])])
    with shared_intermediates() as cache:
        marginal = contract_to_tensor(terms, enum_dims, target_ordinal=ordinal, cache=cache)
    value = packed.unpack(marginal, trace.symbol_to_dim)
    batch = site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
    return value.expand(torch.broadcast_shapes(value.shape, batch))


def run_at_sampled_sites(model: Callable[..., Any], trace: Any, args: Any, kwargs: Any) -> None:
    """Runs a model with its discrete sites drawn from their posterior given the values in an enumerated run.

    Args:
        model: The model to run, with discrete sites marked by ``config_enumerate``.
        trace: Enumerated run that the posterior of the discrete sites is taken from.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
    """
    trace.compute_log_prob()
    trace.pack_tensors()
    _sample_posterior_from_trace(model, trace, 1, False, *args, **kwargs)
