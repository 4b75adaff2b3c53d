"""What a file says about a trained sampler, checked before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyro_dft import messages
from pyro_dft.errors import StorageError, reading
from pyro_dft.interface import storage
from pyro_dft.judging.verdict import Diagnostics
from pyro_dft.layout import Layout
from pyro_dft.recipe.chains import STATISTICS
from pyro_dft.recipe.constants import FULL_RANK_LIMIT
from pyro_dft.recipe.fit import Restored
from pyro_dft.recipe.history import part
from pyro_dft.recipe.modes import Modes
from pyro_dft.recipe.shapes import Shapes, generator_shapes
from pyro_dft.roots import MOST_DIRECTIONS
from pyro_dft.settings import Settings

# What a file holds of the measurement, beside the sampler.
MEASURED = ("raw", "halfway", "refined", "scale", "step_size", "diverged")


def check_sampler(
    path: Any,
    arrays: dict[str, np.ndarray],
    header: dict[str, Any],
    layouts: Sequence[Layout],
    num_chains: int,
    settings: Settings,
    own_shapes: Callable[[int, int], Shapes | None],
) -> Restored:
    """Checks everything that defines the sampler, by names, shapes and types alone.

    Args:
        path: The file, for the message.
        arrays: Its arrays, without the check points and the model's arguments.
        header: Its header.
        layouts: Of the sets of coordinates that the model has.
        num_chains: Chains C.
        settings: Settings of the fit.
        own_shapes: Shapes of the arrays of a user's generator, given (samplers, dim); None where the user brings none.

    Raises:
        StorageError: they do not fit each other, or this model.
    """
    with reading(path):
        steps, layout = _count(header, "measured_steps"), header["sampler_layout"]
        most = max(settings.experimental.max_refine_steps, settings.refine_steps or 0)
        # Files of early versions have none.
        leapfrogs = (
            _count(header, "measured_leapfrogs")
            if "measured_leapfrogs" in header
            else settings.fixed_leapfrog_steps
        )
        gradients = _count(header, "measured_gradients_each") if "measured_gradients_each" in header else 0
        renewed = header.get("measured_renewed", False) is True
        objective = [str(name) for name in header["objective"]]
        if steps > most:
            raise ValueError(f"measured_steps is {steps}, above {most}")
    known = [own.to_json() for own in layouts]
    if layout not in known:
        raise StorageError(f"{path}: the sampler was trained in coordinates that this model does not have")
    index = known.index(layout)
    dim, modes = layouts[index].dim, Modes.from_arrays(path, arrays, num_chains)
    chains = num_chains * (1 if modes is None else modes.count)
    raw = arrays.get("measured.raw", np.empty(0))
    count = raw.shape[1] if raw.ndim == 3 else 0
    expected: Shapes = {
        "mean": (chains, dim),
        **{name: _scale_shape(arrays, name, chains, dim) for name in ("scale", "measured.scale")},
        "measured.step_size": (chains,),
        **{f"measured.{name}": (chains, count, dim) for name in ("raw", "halfway", "refined")},
        **({} if modes is None else modes.shapes()),
    }
    expected["measured.diverged"] = (chains, count)
    known_of_draws = [f"measured.{name}" for name in STATISTICS if f"measured.{name}" in arrays]
    expected |= dict.fromkeys(known_of_draws, (chains, count))
    # Files of early versions have none.
    arrays = {"measured.diverged": np.zeros((chains, count), bool)} | arrays
    generator = [name for name in arrays if name.startswith("generator.")]
    if generator:
        expected |= _generator(path, generator, chains, dim, settings, own_shapes)
    storage.check_tensors(path, arrays, expected)
    kinds = {"measured.diverged": "b"}
    numbers = [k for k in expected if arrays[k].dtype.kind != kinds.get(k, "f") and k not in generator]
    if numbers or len(objective) != chains or not count:
        raise StorageError(f"{path}: its arrays do not make a sampler ({', '.join(numbers) or 'objective'})")
    return Restored(
        index, steps, renewed, leapfrogs, gradients, objective, modes,
        {name: value for name, value in arrays.items() if not name.startswith(("measured.", "modes."))},
        part(arrays, "measured."),
    )  # fmt: skip


def _scale_shape(arrays: dict[str, np.ndarray], name: str, chains: int, dim: int) -> tuple[int, ...]:
    """Expected shape of a square root: a matrix, or standard deviations with or without directions, see `pyro_dft.roots`."""
    found = arrays.get(name)
    if found is None:
        return chains, dim, dim
    if found.ndim == 2:
        return chains, dim
    directions = dim > FULL_RANK_LIMIT and 1 < found.shape[-1] <= MOST_DIRECTIONS + 1
    return chains, dim, found.shape[-1] if directions else dim


def _generator(
    path: Any,
    names: list[str],
    chains: int,
    dim: int,
    settings: Settings,
    own_shapes: Callable[[int, int], Shapes | None],
) -> Shapes:
    own = own_shapes(chains, dim)
    if own is not None:
        return own
    if any(name.startswith(("generator.nets.", "generator.own.")) for name in names):
        raise StorageError(messages.network_missing(path))
    if settings.depth > len(names):  # each layer has two: a header must not ask for more than the file holds
        raise StorageError(f"{path}: its network has {len(names)} arrays, too few for depth={settings.depth}")
    shapes = generator_shapes(chains, dim, settings.width, settings.depth)
    return {f"generator.{name}": shape for name, shape in shapes.items()}


def read_settings(path: Any, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> tuple[Settings, int]:
    """Settings and number of chains of a file.

    Raises:
        StorageError: they cannot be read, or the file does not hold samplers for so many chains.
    """
    with reading(path):
        given = dict(header["settings"])
        if given.get("objective") == "dft" and str(header.get("version")).startswith("0.1."):
            given["objective"] = "auto"  # as version 0.1 called it
        settings, chains = Settings.from_json(given).without_idle(), _count(header, "num_chains")
        samplers = arrays["mean"].shape[0] if arrays["mean"].size else 0
        if not 1 <= chains <= samplers:
            raise ValueError(f"num_chains is {chains}, with {samplers} samplers")
    return settings, chains


def read_report(path: Any, header: dict[str, Any]) -> Diagnostics:
    """The diagnostics of a file.

    Raises:
        StorageError: they cannot be read.
    """
    with reading(path):
        report = Diagnostics(header["diagnostics"])
        alarms = report.get("alarms", [])  # early versions have none
        words = [report["status"], *report["warnings"], *alarms]
        seconds = float(report["seconds"]), float(report["cpu_seconds"])
        lists = isinstance(report["warnings"], list) and isinstance(alarms, list)
        fine = lists and all(isinstance(word, str) for word in words) and all(map(math.isfinite, seconds))
        if not fine or report["status"] not in ("converged", "suspect", "failed"):
            raise ValueError("the diagnostics are not in the expected form")
        _count(report, "refine_steps")
    return report


def _count(values: dict[str, Any], name: str) -> int:
    value = values[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r:.40}, not a number of them")
    return value
