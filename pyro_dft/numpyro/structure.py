"""What a model consists of: one run of it, read site by site, and checked before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.util
from numpyro.handlers import seed, substitute
from numpyro.handlers import trace as record_trace

from pyro_dft import messages
from pyro_dft.engine_jax.sharding import count_nan
from pyro_dft.errors import ModelError, first_line
from pyro_dft.models import circular
from pyro_dft.models.options import MODEL_ERRORS, check_transforms, takes
from pyro_dft.models.supports import support_name
from pyro_dft.numpyro.families import unwrap
from pyro_dft.numpyro.noncentering import movable
from pyro_dft.numpyro.placement import Default, Plates
from pyro_dft.numpyro.transforms import APART, Wrapped, angle_of, biject_to
from pyro_dft.numpyro.trees import is_traced


@dataclass
class Frame:
    """A plate around a site: its name, its dimension (negative) and its size."""

    name: str
    dim: int
    size: int


@dataclass
class Site:
    """A site of the model, without its values.

    Attributes:
        name: Name.
        shape: Shape of its value.
        event_dim: Dimensions of one event.
        frames: Plates around it.
        dtype: Dtype of its value.
        value: Observed data, where they are known without running anything.
        unconstrained_shape: Of a latent site.
        transform: From unconstrained to constrained values of a latent site; as at the first run.
        support: Name of its support.
        movable: Whether it has non-centred coordinates.
        angle: "angle" on a circular support, "improper" where it is flat on the real line, else "".
        drawn: Shape of a draw of its distribution; None inside of `scan`, which draws items of a sequence.
    """

    name: str
    shape: tuple[int, ...]
    event_dim: int
    frames: list[Frame]
    dtype: Any
    value: Any = None
    unconstrained_shape: tuple[int, ...] = ()
    transform: Any = None
    support: str = ""
    movable: bool = False
    angle: str = ""
    drawn: tuple[int, ...] | None = None


@dataclass
class Structure:
    """The parts of a model, from one run over its full data.

    Attributes:
        latent: Continuous latent sites, in sorted order.
        observed: Sites that carry data, in the order of the model.
        deterministic: `numpyro.deterministic` sites.
        discrete: Names of the latent sites that are summed out.
        params: Names of `numpyro.param` and mutable sites.
        subsampled: Plate -> (size, subsample size), for plates with ``subsample_size`` < size.
        max_plate_nesting: Number of batch dimensions that plates use.
        data_size: Rows of the subsampled plates, 1 without any.
        minibatch_size: Rows of a minibatch.
        elements: Numbers that one run makes.
    """

    latent: dict[str, Site] = field(default_factory=dict)
    observed: dict[str, Site] = field(default_factory=dict)
    deterministic: dict[str, Site] = field(default_factory=dict)
    discrete: list[str] = field(default_factory=list)
    params: list[str] = field(default_factory=list)
    subsampled: dict[str, tuple[int, int]] = field(default_factory=dict)
    max_plate_nesting: int = 0
    data_size: int = 1
    minibatch_size: int = 1
    elements: int = 1


def uniform_value(site: Any) -> Any:
    """A value whose unconstrained coordinates are uniform on (-2, 2), for `substitute`."""
    if site["type"] != "sample" or site["is_observed"] or site["value"] is not None:
        return None
    if isinstance(site["fn"], dist.Delta) or site["fn"].support.is_discrete:
        return None
    try:
        transform = biject_to(site["fn"].support)
    except NotImplementedError:
        return None
    shape = transform.inverse_shape(site["fn"].shape())
    shape = tuple(site["kwargs"].get("sample_shape") or ()) + tuple(shape)
    key = site["kwargs"].get("rng_key")
    return transform(jax.random.uniform(key, shape, minval=-2.0, maxval=2.0))


def inspect_model(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], given: Mapping[str, Any]
) -> Structure:
    """Runs the model over its full data, without computing anything, and sorts its sites.

    Args:
        model: Callable with NumPyro primitives.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        given: Name -> transform from constrained to unconstrained values that the user chose.

    Raises:
        ModelError: The model cannot be run or used; the message names the site or argument.
    """
    if not callable(model):
        raise ModelError(f"model must be a callable with NumPyro primitives, got {type(model).__name__}")
    structure = Structure()

    def run(key: Any) -> tuple[()]:
        inner = seed(Plates(model, record=structure.subsampled), key)
        recorder = record_trace(substitute(inner, substitute_fn=uniform_value))
        sites: Any = {}
        try:
            with Default():
                sites = recorder.get_trace(*args, **kwargs)
        except ModelError:
            raise
        except MODEL_ERRORS as error:
            if isinstance(error, TypeError) and not takes(model, (args, kwargs)):
                raise
            done = [name for name, site in recorder.trace.items() if site["type"] == "sample"]
            raise messages.model_failed(done[-1] if done else None, first_line(error)) from error
        _sort_sites(structure, sites, given)
        _check_log_probs(sites)
        if not structure.discrete:
            _warn_of_missing_plates(sites)
        return ()

    jax.eval_shape(run, jax.random.key(0))
    _check_latents(structure)
    return structure


def _warn_of_missing_plates(sites: Any) -> None:
    """NumPyro's own warning, as under its kernels; versions without the check say nothing."""
    check = getattr(numpyro.util, "_validate_model", None)
    arrays = {name: site for name, site in sites.items() if not isinstance(site["value"], list | tuple)}
    if check is not None:
        check(arrays, plate_warning="loose")


def _sort_sites(structure: Structure, sites: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    latent = {}
    for name, site in sites.items():
        if site["type"] in ("param", "mutable"):
            structure.params.append(name)
        elif site["type"] == "deterministic":
            structure.deterministic[name] = _site(name, site)
        elif site["type"] == "sample":
            _count_rows(structure, site)
            structure.elements += 2 * int(np.size(site["value"]))
            if site["is_observed"]:
                if not isinstance(unwrap(site["fn"]), dist.Unit):
                    structure.observed[name] = _site(name, site)
            elif isinstance(unwrap(site["fn"]), dist.Delta):
                raise ModelError(
                    f"latent site '{name}' has a delta distribution: use numpyro.deterministic to add its value"
                )
            elif site["fn"].support.is_discrete:
                if not site["fn"].has_enumerate_support:
                    fn = site["fn"]
                    raise messages.unusable_support(name, fn.support, unwrap(fn), discrete=True)
                structure.discrete.append(name)
            else:
                latent[name] = _latent(name, site, given)
    structure.latent = {name: latent[name] for name in sorted(latent)}


def _site(name: str, site: Mapping[str, Any]) -> Site:
    value = site["value"]
    frames = []
    for frame in site["cond_indep_stack"]:
        if frame.dim is not None:
            frames.append(Frame(frame.name, int(frame.dim), int(frame.size)))
    event_dim = len(site["fn"].event_shape) if site["type"] == "sample" else 0
    known = None if is_traced(value) else value
    if not hasattr(value, "dtype"):  # Python's numbers are taken as jax takes them
        value = jnp.result_type(value) if np.isscalar(value) else np.asarray(value)
    dtype = np.dtype(value.dtype if hasattr(value, "dtype") else value)
    return Site(name, tuple(np.shape(value)), event_dim, frames, dtype, known)


def _latent(name: str, site: Mapping[str, Any], given: Mapping[str, Any]) -> Site:
    found, fn = _site(name, site), site["fn"]
    if name in given:
        check_transforms({name: given[name]})
    try:
        transform = given[name].inv if name in given else biject_to(fn.support)
        found.unconstrained_shape = tuple(transform.inverse_shape(found.shape))
    except (NotImplementedError, KeyError):
        raise messages.unusable_support(name, fn.support, unwrap(fn), discrete=False) from None
    found.transform = transform
    found.support = circular.NAME if isinstance(transform, Wrapped) else support_name(fn.support, APART)
    found.value = None
    as_drawn = tuple(fn.shape()) == found.shape
    scanned = "_scan_current_index" in site["infer"]
    found.drawn = tuple(fn.shape()) if as_drawn and not scanned else None
    found.movable = name not in given and as_drawn and movable(fn, found.unconstrained_shape)
    if name not in given and as_drawn and not scanned:
        found.angle = angle_of(fn)
    return found


def _count_rows(structure: Structure, site: Mapping[str, Any]) -> None:
    rows = batch = 1
    for frame in site["cond_indep_stack"]:
        full, part = structure.subsampled.get(frame.name, (1, 1))
        rows, batch = rows * full, batch * part
    structure.data_size = max(structure.data_size, rows)
    structure.minibatch_size = max(structure.minibatch_size, batch)
    for frame in site["cond_indep_stack"]:
        if frame.dim is not None:
            structure.max_plate_nesting = max(structure.max_plate_nesting, -frame.dim)


def _check_latents(structure: Structure) -> None:
    if not structure.latent and not structure.discrete:
        raise messages.no_latent_sites()
    if not structure.latent:
        raise messages.only_discrete_sites(structure.discrete)
    for name, site in structure.latent.items():
        for frame in site.frames:
            if frame.name in structure.subsampled:
                raise messages.inside_subsampled_plate(name, frame.name, *structure.subsampled[frame.name])
    if not sum(math.prod(site.unconstrained_shape) for site in structure.latent.values()):
        raise messages.no_coordinates(list(structure.latent))


def _check_log_probs(sites: Mapping[str, Any]) -> None:
    """Computes the log-probabilities one site at a time, so that a failure has a name."""
    for name, site in sites.items():
        if site["type"] != "sample":
            continue
        fn, value = site["fn"], site["value"]
        if site["is_observed"]:
            _check_nan(name, fn, value)
        try:
            log_prob = fn.log_prob(value)
        except MODEL_ERRORS as error:
            plates = [(frame.name, frame.size) for frame in site["cond_indep_stack"]]
            shape = tuple(np.shape(value))
            raise messages.cannot_score(
                name, plates, fn, shape, site["is_observed"], first_line(error)
            ) from error
        if site["is_observed"]:
            _check_broadcast(name, site, log_prob)


def _check_nan(name: str, fn: Any, value: Any) -> None:
    if is_traced(value) or isinstance(fn, dist.MaskedDistribution):
        return
    data = value if isinstance(value, jax.Array) else np.asarray(value)
    if jnp.issubdtype(data.dtype, jnp.complexfloating):
        raise messages.no_array(name, "observed data", "real numbers", data)
    if jnp.issubdtype(data.dtype, jnp.floating) and (count := count_nan(data)):
        raise messages.nan_in_data(name, count, data.size)


def _check_broadcast(name: str, site: Mapping[str, Any], log_prob: Any) -> None:
    """A column of data in a plate of rows broadcasts to a square, which nobody means."""
    shape, event_dim = tuple(np.shape(site["value"])), len(site["fn"].event_shape)
    data_shape = shape[: len(shape) - event_dim]
    for frame in site["cond_indep_stack"]:
        dim = frame.dim
        if dim is None or len(data_shape) < -dim or data_shape[dim] != 1 or frame.size == 1:
            continue
        if math.prod(jnp.shape(log_prob)) > math.prod(data_shape) and math.prod(data_shape) > 1:
            terms = tuple(jnp.shape(log_prob))
            raise messages.would_broadcast(name, shape, frame.name, frame.size, dim, terms)


def enumerated(model: Callable[..., Any], structure: Structure) -> tuple[Callable[..., Any], Any]:
    """The model with its discrete sites enumerated, and funsor's `log_density`, which sums them out.

    Raises:
        ModelError: funsor is not installed.
    """
    try:
        from numpyro.contrib.funsor import config_enumerate, enum
        from numpyro.contrib.funsor import log_density as enumerated_density
    except ImportError as error:
        raise ModelError(
            f"the discrete sites {structure.discrete} are summed out by funsor: pip install funsor"
        ) from error
    return enum(config_enumerate(model), -structure.max_plate_nesting - 1), enumerated_density


def param_values(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """Initial values of `numpyro.param` and mutable sites, as NumPyro's NUTS takes them."""

    def values() -> dict[str, Any]:
        sites = record_trace(seed(Plates(model), jax.random.key(0))).get_trace(*args, **kwargs)
        return {name: sites[name]["value"] for name in names}

    return jax.jit(values)()
