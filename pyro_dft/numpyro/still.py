"""A state for models without continuous latent numbers: NumPyro's own setup runs them, or refuses them, as under NUTS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer.util import initialize_model

from pyro_dft.numpyro.fields import AdaptState
from pyro_dft.numpyro.serving import DFTState


def _model_info(model: Callable[..., Any], key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return initialize_model(
        key, model, dynamic_args=True, model_args=args, model_kwargs=kwargs, validate_grad=False
    )


def still_state(
    model: Callable[..., Any], keys: Any, single: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DFTState:
    """The state of one chain, or of as many as there are keys.

    Args:
        model: The model.
        keys: A random key, or a batch of them.
        single: Whether it is one.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
    """
    info = _model_info(model, keys if single else keys[0], args, kwargs).param_info
    lead = () if single else (keys.shape[0],)
    z, energy = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (*lead, *jnp.shape(x))), (info.z, info.potential_energy)
    )
    zero, one = jnp.zeros(lead), jnp.ones(lead)
    none = jnp.zeros(lead, jnp.int32)
    return DFTState(
        jnp.zeros((), jnp.int32), z, energy, jnp.zeros(lead, bool), keys, z, energy, none, one, one, zero,
        AdaptState(one, {}, {}, {}),
    )  # fmt: skip


def postprocess(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Any], Any]:
    """The point -> values of the sites, deterministic ones included."""
    return _model_info(model, jax.random.key(0), args, kwargs).postprocess_fn(*args, **kwargs)
