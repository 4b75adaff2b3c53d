"""What a model consists of: one run of it, read site by site, and checked before anything is trained."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dft import messages
from pyro_dft.errors import FidelityWarning, ModelError, SettingsError, warn
from pyro_dft.models import validity
from pyro_dft.models.options import MODEL_ERRORS, takes
from pyro_dft.settings import check_count

from .evaluation import VmapEnumMessenger, full_index, marked_range, patched
from .families import unwrap
from .transforms import bijection

_ATTEMPTS = 20  # runs from random points before a failure of linear algebra is the model's


@dataclass
class Structure:
    """The parts of a model, from one run over its full data.

    Attributes:
        trace: The run itself, with log-probabilities; discrete sites enumerated.
        latent: Names of the continuous latent sites, sorted.
        observed: Names of the sites that carry data, in the order of the model.
        deterministic: Names of ``pyro.deterministic`` sites and of sites that a reparametrisation made so,
            without those that depend on enumerated sites and so have no single value.
        discrete: Names of the enumerated latent sites.
        subsampled: Plate -> (size, subsample size), for plates with ``subsample_size`` < size.
        indices: Plate -> index of all its rows.
        max_plate_nesting: Number of batch dimensions that plates may use.
        model: The model, wrapped for enumeration if it has discrete sites.
        validated: Whether torch checks values against supports, as the user has left it.
    """

    trace: Any
    latent: list[str] = field(default_factory=list)
    observed: list[str] = field(default_factory=list)
    deterministic: list[str] = field(default_factory=list)
    discrete: list[str] = field(default_factory=list)
    subsampled: dict[str, tuple[int, int]] = field(default_factory=dict)
    indices: dict[str, Tensor] = field(default_factory=dict)
    max_plate_nesting: int = 0
    model: Callable[..., Any] = lambda: None
    validated: bool = True


def uniform_value(site: Mapping[str, Any], radius: float = 2.0) -> Tensor:
    """A value whose unconstrained coordinates are uniform on (-radius, radius).

    Discrete sites draw from the prior. Unlike with Pyro's ``init_to_uniform``, improper priors can start too.
    """
    fn = site["fn"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # only dtype and shape matter here
            sample = fn.sample().detach()
    except NotImplementedError:
        sample = torch.zeros(fn.batch_shape + fn.event_shape)
    try:
        transform = bijection(fn.support)
    except NotImplementedError:
        return sample
    x = torch.rand(transform.inverse_shape(sample.shape), dtype=sample.dtype, device=sample.device)
    value: Any = transform(x * (2 * radius) - radius)
    value._pyro_custom_init = False  # nobody chose it: a reparametrisation may replace it without a warning
    return value


def inspect_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    max_plate_nesting: int | None = None,
) -> Structure:
    """Runs the model over its full data and sorts its sites.

    Args:
        model: Callable with Pyro primitives.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        max_plate_nesting: Number of batch dimensions reserved for plates; needed only to override the guess.

    Raises:
        ModelError: The model cannot be run or used; the message names the site or argument.
    """
    if max_plate_nesting is not None:
        check_count("max_plate_nesting", max_plate_nesting, 0, SettingsError)
    if not callable(model):
        raise ModelError(f"model must be a callable with Pyro primitives, got {type(model).__name__}")
    subsampled: dict[str, tuple[int, int]] = {}
    validated = bool(torch.distributions.Distribution._validate_args)
    with patched(), full_index(subsampled):
        trace = _run(model, args, kwargs)
        nesting = _plate_nesting(trace) if max_plate_nesting is None else max_plate_nesting
        runnable = model
        if any(_is_enumerable(site) for _, site in _latents(trace)):
            runnable = VmapEnumMessenger(first_available_dim=-1 - nesting)(config_enumerate(model))
            trace = _run(runnable, args, kwargs)
        structure = Structure(trace, subsampled=subsampled, max_plate_nesting=nesting, model=runnable)
        structure.validated = validated
        _sort_sites(structure)
        _check_latents(structure)
        _drop_multiple_values(structure, model, args, kwargs)
        _compute_log_probs(structure, args, kwargs)
    _check_observed(structure)
    _warn_of_frozen_subsamples(structure)
    return structure


def _run(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One run from a random point, with the site named at which the model fails."""
    recorder = poutine.trace(InitMessenger(uniform_value)(model))
    try:
        for attempt in reversed(range(_ATTEMPTS)):
            try:
                recorder(*args, **kwargs)
                break
            except torch.linalg.LinAlgError:  # a point outside of the support need not be the model's fault
                if not attempt:
                    raise
    except ModelError:
        raise
    except MODEL_ERRORS as error:
        if isinstance(error, TypeError) and not takes(model, (args, kwargs)):
            raise
        done = [name for name, site in recorder.trace.nodes.items() if site["type"] == "sample"]
        reason = failure(error, model, args, kwargs, recorder.trace)
        raise messages.model_failed(done[-1] if done else None, reason) from error
    return recorder.trace


def failure(
    error: Exception, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], trace: Any
) -> str:
    """An error in words, with a hint on arguments that do not fit the latent sites."""
    message = str(error).split("\nTrace Shapes:")[0].strip()
    hint = mismatched_arguments(model, args, kwargs, trace)
    return f"{type(error).__name__}: {message}{hint or _not_tensors(model, args, kwargs)}"


def _not_tensors(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A hint that names arguments that hold numbers, and are no tensors."""
    odd = [
        f"{name} ({type(value).__name__})"
        for name, value in _named_arguments(model, args, kwargs).items()
        if isinstance(value, np.ndarray | list) and not any(True for _ in _tensors({name: value}))
    ]
    return f". These arguments are no tensors: {', '.join(odd)}" if odd else ""


def _latents(trace: Any) -> Iterator[tuple[str, Any]]:
    for name, site in trace.iter_stochastic_nodes():
        if not isinstance(site["fn"], _Subsample):
            yield name, site


def _is_enumerable(site: Mapping[str, Any]) -> bool:
    return bool(getattr(site["fn"], "has_enumerate_support", False))


def _plate_nesting(trace: Any) -> int:
    frames = [f for s in trace.nodes.values() if s["type"] == "sample" for f in s["cond_indep_stack"]]
    return -min((frame.dim for frame in frames if frame.vectorized), default=0)


def _sort_sites(structure: Structure) -> None:
    for name, site in structure.trace.nodes.items():
        if site["type"] != "sample":
            continue
        if isinstance(site["fn"], _Subsample):
            structure.indices[name] = marked_range(site["fn"].size, site["fn"].device)
        elif site["is_observed"]:
            if isinstance(unwrap(site["fn"]), dist.Delta):
                structure.deterministic.append(name)
            elif not isinstance(unwrap(site["fn"]), dist.Unit):
                structure.observed.append(name)
        elif _is_enumerable(site):
            structure.discrete.append(name)
        else:
            structure.latent.append(name)
    structure.latent.sort()


def _drop_multiple_values(
    structure: Structure, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Compares deterministic sites with a run at the same latent values in which discrete sites are drawn."""
    if not structure.discrete or not structure.deterministic:
        return
    nodes = structure.trace.nodes
    drawn = _run(
        poutine.condition(model, {name: nodes[name]["value"] for name in structure.latent}), args, kwargs
    )

    def same(name: str) -> bool:
        a, b = nodes[name]["value"], drawn.nodes[name]["value"]
        return a.shape == b.shape and torch.allclose(a, b, equal_nan=True)

    structure.deterministic = [name for name in structure.deterministic if name in drawn.nodes and same(name)]


def _check_latents(structure: Structure) -> None:
    if not structure.latent and not structure.discrete:
        raise messages.no_latent_sites()
    if not structure.latent:
        raise messages.only_discrete_sites(structure.discrete)
    for name in structure.latent:
        site = structure.trace.nodes[name]
        for frame in site["cond_indep_stack"]:
            if frame.name in structure.subsampled:
                raise messages.inside_subsampled_plate(name, frame.name, *structure.subsampled[frame.name])
        fn = site["fn"]
        try:
            bijection(fn.support)
        except NotImplementedError:
            raise messages.unusable_support(name, fn.support, unwrap(fn), fn.support.is_discrete) from None


def _compute_log_probs(structure: Structure, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Fills in the log-probabilities one site at a time, so that a failure has a name."""
    for name, site in structure.trace.nodes.items():
        if site["type"] != "sample":
            continue
        try:
            structure.trace.compute_log_prob(lambda other, _, name=name: other == name)
        except MODEL_ERRORS as error:
            shape = tuple(getattr(site["value"], "shape", ()))
            plates = [(frame.name, frame.size) for frame in site["cond_indep_stack"]]
            reason = failure(error, structure.model, args, kwargs, structure.trace)
            raise messages.cannot_score(
                name, plates, site["fn"], shape, site["is_observed"], reason
            ) from error


def _check_observed(structure: Structure) -> None:
    for name in structure.observed:
        site = structure.trace.nodes[name]
        value = site["value"]
        if not isinstance(value, Tensor):
            raise messages.no_array(name, "observed data", "a tensor", value)
        if value.is_complex():
            raise messages.no_array(name, "observed data", "real numbers", value)
        nan = torch.isnan(value) if torch.is_floating_point(value) else torch.zeros((), dtype=torch.bool)
        if bool(nan.any()) and bool(torch.isnan(site["log_prob"]).any()):
            raise messages.nan_in_data(name, int(nan.sum()), value.numel())
        # Where the density is not finite, the search for starting points names the site.
        if structure.validated and bool(site["log_prob"].isfinite().all()):
            _check_support(name, site)
        _check_broadcast(name, site)


def _check_support(name: str, site: Mapping[str, Any]) -> None:
    """Data that no value of the latent sites allows; supports that move with these are looked at after the fit."""
    support = site["fn"].support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if any(isinstance(getattr(support, side, None), Tensor) for side in ("lower_bound", "upper_bound")):
        return
    bad = validity.outside(site["value"], support)
    wrong = 0 if bad is None else int(validity.unmasked(bad, site["fn"], site["mask"]).sum())
    if wrong:
        raise messages.outside_support(name, wrong, site["value"].numel(), support, unwrap(site["fn"]))


def _warn_of_frozen_subsamples(structure: Structure) -> None:
    nodes = structure.trace.nodes
    frames = {
        f.name: f for site in nodes.values() if site["type"] == "sample" for f in site["cond_indep_stack"]
    }
    for name, frame in frames.items():
        if name not in nodes and frame.full_size is not None and frame.size < frame.full_size:
            warn(
                f"plate '{name}' was made outside of the model, so it keeps one subsample of {frame.size} of "
                f"{frame.full_size} rows for good: make it inside of the model",
                FidelityWarning,
            )


def _check_broadcast(name: str, site: Mapping[str, Any]) -> None:
    """A column of data in a plate of rows broadcasts to a square, which nobody means."""
    value, fn = site["value"], site["fn"]
    data_shape, fn_shape = value.shape[: value.dim() - fn.event_dim], fn.batch_shape
    plates = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}

    def unexpected(dim: int) -> bool:
        """Whether the data have rows in a dimension that neither a plate nor the distribution has."""
        return dim not in plates and data_shape[dim] > 1 and (len(fn_shape) < -dim or fn_shape[dim] == 1)

    if not any(unexpected(dim) for dim in range(-len(data_shape), 0)):
        return
    for dim, frame in plates.items():
        if len(data_shape) >= -dim and data_shape[dim] == 1 and frame.size > 1:
            terms = tuple(site["log_prob"].shape)
            raise messages.would_broadcast(name, tuple(value.shape), frame.name, frame.size, dim, terms)


def data_sizes(structure: Structure) -> tuple[int, int, int]:
    """How much a run reads: (rows of the full data, rows of a minibatch, elements of all its tensors)."""
    size = subsample = 1
    elements = 0
    for site in structure.trace.nodes.values():
        if site["type"] != "sample":
            continue
        rows = batch = 1
        for frame in site["cond_indep_stack"]:
            full, part = structure.subsampled.get(frame.name, (1, 1))
            rows, batch = rows * full, batch * part
        size, subsample = max(size, rows), max(subsample, batch)
        if isinstance(site["value"], Tensor):
            elements += site["value"].numel() + site["log_prob"].numel()
    return size, subsample, max(1, elements)


def describe_non_finite(trace: Any, observed: list[str]) -> str | None:
    """The sites of a run whose log-probability is not finite, in words; None if there are none to blame."""
    bad = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not bool(site["log_prob"].isfinite().all()):
            bad[name] = (int((~site["log_prob"].isfinite()).sum()), site["log_prob"].numel())
    nan = [name for name in observed if bool(trace.nodes[name]["value"].isnan().any())]
    return messages.not_finite(bad, nan)


def mismatched_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], trace: Any = None
) -> str:
    """A hint that names the tensor arguments whose dtype or device differs from the latent sites.

    Returns:
        "" where all agree, else a sentence to append to an error message.
    """
    reference = None
    for _, site in _latents(trace) if trace is not None else ():
        if isinstance(site["value"], Tensor) and site["value"].is_floating_point():
            reference = site["value"]
            break
    dtype = torch.get_default_dtype() if reference is None else reference.dtype
    device = torch.empty(()).device if reference is None else reference.device
    odd = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')} on {tensor.device})"
        for name, tensor in _tensors(_named_arguments(model, args, kwargs))
        if (tensor.is_floating_point() and tensor.dtype != dtype) or tensor.device != device
    ]
    if not odd:
        return ""
    kind = str(dtype).removeprefix("torch.")
    return f". The latent sites are {kind} on {device}, but these arguments are not: {', '.join(odd)}"


def _named_arguments(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        target = model.forward if isinstance(model, torch.nn.Module) else model
        return dict(inspect.signature(target).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {f"argument {i}": value for i, value in enumerate(args)} | kwargs


def _tensors(values: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors({f"{name}[{key!r}]": item for key, item in value.items()})
        elif isinstance(value, (list, tuple)):
            yield from _tensors({f"{name}[{i}]": item for i, item in enumerate(value)})
