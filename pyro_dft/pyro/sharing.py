"""A Pyro model whose rows several processes share: what is summed over them, and whether they agree."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_dft import messages
from pyro_dft.engine_torch.together import Together
from pyro_dft.errors import FidelityWarning, ModelError, first_line, warn
from pyro_dft.interface.recognition import Terms
from pyro_dft.settings import Settings

from .families import unwrap

if TYPE_CHECKING:
    from .model import PyroProblem

T = TypeVar("T")


def summed_sites(problem: PyroProblem) -> frozenset[str]:
    """Sites of which each process has its own rows: observed ones, and factors inside of plates. All others count once.

    Raises:
        ModelError: the rows of the model cannot be shared.
    """
    structure = problem.structure
    if problem.enumerated:
        raise messages.cannot_share(f"discrete sites ({', '.join(structure.discrete)}) are summed out")
    if problem.minibatch:
        raise messages.cannot_share(f"it subsamples its rows ({', '.join(structure.subsampled)})")
    plates = {name: _plates(structure.trace.nodes[name]) for name in (*structure.latent, *structure.observed)}
    for name in structure.observed:
        for latent in structure.latent:
            if plates[name] and plates[name] <= plates[latent]:
                raise messages.cannot_share(f"site '{latent}' has a value for each row of site '{name}'")
    factors = {
        name
        for name, site in structure.trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and isinstance(unwrap(site["fn"]), dist.Unit)
    }
    return frozenset(structure.observed) | {n for n in factors if _plates(structure.trace.nodes[n])}


def _plates(site: Any) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"]}


def agreed(together: Together, settings: Settings, make: Callable[[], T]) -> T:
    """What `make` gives, a posterior, once all processes have made theirs and they go together.

    Args:
        together: The processes.
        settings: Of this one.
        make: Reads the model with this process's rows.

    Raises:
        ModelError: some process cannot read its model, or has other latent sites or settings.
        Exception: what `make` raised here.
    """
    made: Any = None
    failure: Exception | None = None
    try:
        made = make()
        said = (settings.to_json(), made.layout.to_json(), sorted(made.summed), _checksums(made))
    except Exception as error:  # the others wait
        failure, said = error, None
    found = together.gather((None if failure is None else first_line(failure), said))
    if failure is not None:
        raise failure
    errors = {rank: reason for rank, (reason, _) in enumerate(found) if reason is not None}
    if errors:
        rank, reason = next(iter(errors.items()))
        raise ModelError(f"process {rank} of {together.size}: {reason}")
    parts = zip(*(own for _, own in found), strict=True)
    for what, own in zip(("settings", "latent sites", "observed sites", ""), parts, strict=True):
        apart = any(each != own[0] for each in own)
        if what and apart:
            raise messages.seeded_apart(what)
        if not what and not apart and together.size > 1 and own[0]:
            warn(messages.same_rows(together.size), FidelityWarning)
    return made


def _checksums(problem: Any) -> list[int]:
    """Of the data: what is observed, and the tensors that the model is given."""
    nodes = problem.structure.trace.nodes
    tensors = [nodes[name]["value"] for name in problem.structure.observed]
    tensors += [leaf for leaf in tree_leaves((problem.args, problem.kwargs)) if isinstance(leaf, Tensor)]
    arrays = [tensor.detach().cpu().contiguous() for tensor in tensors if tensor.numel() > 1]
    return [zlib.crc32(array.reshape(-1).view(torch.uint8).numpy().tobytes()) for array in arrays]


def added_terms(together: Together, terms: Terms, summed: frozenset[str]) -> Terms:
    """Log densities of sites (and their sizes) at some points, where each process has those of its rows."""
    own = {name: pair for name, pair in terms.items() if name in summed}
    every = together.gather(own)
    added: dict[str, Any] = dict(terms)
    for name in own:
        pairs = [each[name] for each in every]
        if all(pair is not None for pair in pairs):
            added[name] = tuple(np.sum(part, axis=0) for part in zip(*pairs, strict=True))
    return added


def worst(together: Together, shares: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Shares by kind and name, the largest of all processes."""
    found: dict[str, dict[str, float]] = {kind: {} for kind in shares}
    for own in together.gather(shares):
        for kind, named in own.items():
            for name, share in named.items():
                found[kind][name] = max(share, found[kind].get(name, 0.0))
    return found


def joint_fingerprints(together: Together, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checksums of arguments, where each process has its rows of them: of all together, in the order of ranks."""
    every = together.gather(own)
    if any([entry.keys() for entry in each] != [entry.keys() for entry in own] for each in every):
        return []
    joint = []
    for entries in zip(*every, strict=True):
        entry: dict[str, Any] = {"name": entries[0]["name"]}
        for key in entries[0].keys() - {"name"}:
            values = [each[key] for each in entries]
            text = "|".join(map(str, values)).encode()
            entry[key] = values if key == "shape" else hashlib.blake2b(text, digest_size=16).hexdigest()
        joint.append(entry)
    return joint
