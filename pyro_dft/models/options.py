"""Checks of the constructors' options that need no run of the model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyro_dft.errors import ModelError, SettingsError

# Errors of a model that is wrong, or whose data do not fit: reported with the last site before them. Others pass as they are.
MODEL_ERRORS = (
    ValueError, RuntimeError, IndexError, TypeError, AssertionError, AttributeError, ArithmeticError,
)  # fmt: skip


def spelt_as_numpyro(options: dict[str, Any], initial_params: Any, disable_progbar: Any) -> tuple[Any, Any]:
    """Takes `init_params` and `progress_bar`, NumPyro's names, out of options, for `initial_params` and `disable_progbar`.

    Raises:
        SettingsError: both names of one are given, or the bar is neither on nor off.
    """
    for theirs, ours, given in (
        ("init_params", "initial_params", initial_params is not None),
        ("progress_bar", "disable_progbar", disable_progbar is not False),
    ):
        if theirs in options and given:
            raise SettingsError(f"{theirs} is another name of {ours}: give one of them")
    initial_params = options.pop("init_params", initial_params)
    bar = options.pop("progress_bar", None)
    if bar is None:
        return initial_params, disable_progbar
    if not isinstance(bar, bool):
        raise SettingsError(f"progress_bar={bar!r}: expected True or False")
    return initial_params, not bar


def check_options(
    *,
    model: Any,
    potential_fn: Any,
    initial_params: Any,
    transforms: Any,
    init_strategy: Any,
    checkpoint: Any,
    callback: Any,
    disable_progbar: Any,
) -> None:
    """Checks what needs neither the data nor a run of the model.

    Raises:
        ModelError: there is not exactly one of model and potential, or something that describes it is of the wrong kind.
        SettingsError: another option is of the wrong kind.
    """
    if (model is None) == (potential_fn is None):
        raise ModelError("give either a model or potential_fn, and not both")
    if initial_params is not None:
        _check_names("initial_params", initial_params)
    if potential_fn is not None and not initial_params:
        raise ModelError(
            "potential_fn needs initial_params: a dict of unconstrained values, for names and shapes"
        )
    if model is not None:
        _check_model(model)
    if transforms is not None:
        _check_names("transforms", transforms)
    if init_strategy is not None and not callable(init_strategy):
        raise ModelError(f"init_strategy must be callable, got {type(init_strategy).__name__}")
    if callback is not None and not callable(callback):
        raise SettingsError(f"callback must be callable, got {type(callback).__name__}")
    if checkpoint is not None and not (isinstance(checkpoint, str | os.PathLike) and os.fspath(checkpoint)):
        raise SettingsError(f"checkpoint={checkpoint!r}: expected the path of a file")
    if not isinstance(disable_progbar, bool):
        raise SettingsError(f"disable_progbar={disable_progbar!r}: expected True or False")


def _check_model(model: Any) -> None:
    if not callable(model):
        raise ModelError(f"model must be callable, got {type(model).__name__}")
    if inspect.isclass(model):
        raise ModelError(f"model is the class {model.__name__}: give an instance of it, or a function")
    if inspect.iscoroutinefunction(model) or inspect.isgeneratorfunction(model):
        kind = "generator" if inspect.isgeneratorfunction(model) else "coroutine"
        raise ModelError(f"model is a {kind} function: a call does not run its sample statements")


def _check_names(option: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise ModelError(f"{option} must be a dict by site name, got {type(values).__name__}")
    wrong = [name for name in values if not isinstance(name, str)]
    if wrong:
        raise ModelError(f"{option} must be a dict by site name, got the name {wrong[0]!r}")


def check_known(transforms: Mapping[str, Any], sites: Collection[str]) -> None:
    """Checks that transforms are of latent sites.

    Raises:
        ModelError: one of them is not.
    """
    if unknown := sorted(set(transforms) - set(sites)):
        raise ModelError(f"transforms names {unknown}, but the latent sites are {list(sites)}")


def check_potential(
    potential_fn: Any, initial_params: Mapping[str, Any], transforms: Mapping[str, Any], array: str
) -> None:
    """Checks what describes a bare potential, but for the values; `array` is what the framework calls one.

    Raises:
        ModelError: something is of the wrong kind, or missing.
    """
    if not callable(potential_fn):
        raise ModelError(f"potential_fn must be callable, got {type(potential_fn).__name__}")
    if not initial_params:
        raise ModelError(f"initial_params must hold at least one unconstrained {array}")
    if unknown := sorted(set(transforms) - set(initial_params)):
        raise ModelError(f"transforms has names {unknown} that initial_params lacks")
    check_transforms(transforms)


def check_transforms(transforms: Mapping[str, Any]) -> None:
    """Checks that transforms can be called and inverted.

    Raises:
        ModelError: one of them is something else.
    """
    for name, transform in transforms.items():
        if not callable(transform) or not hasattr(transform, "inv"):
            raise ModelError(
                f"transforms['{name}'] must be a transform from constrained to unconstrained values, with its inverse as "
                f".inv, got {type(transform).__name__}"
            )


def takes(model: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Whether a model can be called with these arguments."""
    try:
        inspect.signature(getattr(model, "forward", model)).bind(*arguments[0], **arguments[1])
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True
