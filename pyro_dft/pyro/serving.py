"""Draws of a `DFT` in the form in which `pyro.infer.MCMC` takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_dft import messages
from pyro_dft.interface.arguments import other_numbers
from pyro_dft.interface.blocks import new_blocks
from pyro_dft.interface.mcmc_run import Part
from pyro_dft.interface.result import Result

if TYPE_CHECKING:
    from pyro_dft.pyro.dft import DFT

# New draws are made in blocks of this many, and served one by one.
BLOCK = 1000


class Still:
    """What stands in for a sampler where there is no continuous latent number: the one point that there is.

    Pyro's own setup makes it, so that a model runs, or is refused, as under NUTS.

    Args:
        model: The model, or None.
        args: Its arguments.
        kwargs: Its keyword arguments.
        potential_fn: In place of a model.
        options: `transforms` and `max_plate_nesting`, as of NUTS.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None,
        **options: Any,
    ):
        self.potential_fn, self._start, self._transforms = potential_fn, {}, options.get("transforms") or {}
        if model is not None:
            found = initialize_model(model, args, kwargs, **options)
            self._start, self.potential_fn, self._transforms = found[:3]

    def transforms(self) -> dict[str, Transform]:
        """Site name -> transform from constrained to unconstrained values."""
        return dict(self._transforms)

    def start(self) -> dict[str, Tensor]:
        """The point: sites without numbers."""
        return {name: value.clone() for name, value in self._start.items()}


class Served:
    """One chain of a `DFT`: unconstrained values in the model's own coordinates.

    Sites whose support depends on other sites have no transform that holds for all draws: MCMC gets their
    constrained values, and no transform.

    Args:
        dft: A `DFT` that is fitted, or whose training has begun.
        chain: Which of its samplers to serve.
        kept: Which of the draws that the fit keeps are served before new ones; None where none are.
    """

    def __init__(self, dft: DFT, chain: int, *, kept: Part | None):
        self.dft, self.chain = dft, chain
        self.training, self.backend = dft.parts.training, dft.parts.backend
        self._part, self._draws = kept, self._all()

    @property
    def result(self) -> Result:
        """What the training left."""
        return self.training.trained()

    def transforms(self) -> dict[str, Transform]:
        """Site name -> transform from constrained to unconstrained values."""
        own = self.backend.posteriors[0]
        return {name: own.transforms[name] for name in own.transforms.keys() - own.dynamic_sites}

    def potential(self, params: Mapping[str, Tensor]) -> Tensor:
        """The potential in the model's own unconstrained coordinates, of values by site."""
        own = self.backend.posteriors[0]
        parts = [torch.as_tensor(params[name]).reshape(-1) for name in own.layout.names]
        with self.backend.session():
            return own.potential(torch.cat(parts).to(own.device, own.dtype))

    def start(self) -> dict[str, Tensor]:
        """The first starting point; where there is no training, the first kept draw."""
        result, backend = self.training.result, self.backend
        if result is None:
            point = backend.problems[0].starts[0, :1]
        else:
            used = backend.posteriors[result.fit.problem]
            first = 0 if self._part is None else self._part.rows(result.kept.shape[1]).start
            point = used.original_coordinates(result.kept[self.chain, first : first + 1])
        # Copies here and below: a hook of MCMC may change what it is given.
        return {name: value[0].clone() for name, value in self._values(point).items()}

    def next(self) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        """One more draw, refined as by default, and what is known of the transitions on its way."""
        return next(self._draws)

    def _all(self) -> Iterator[tuple[dict[str, Tensor], Mapping[str, Any]]]:
        backend, result, chain = self.backend, self.result, slice(self.chain, self.chain + 1)
        blocks: Iterator[tuple[Any, Mapping[str, Any]]] = iter([])
        if self._part is not None:
            rows = self._part.rows(result.kept.shape[1])
            own = {name: value[chain, rows] for name, value in result.statistics().items()}
            blocks = iter([(result.kept[chain, rows], own)])
        while True:
            # The training may have been completed since: a file or a copy needs its networks.
            result = self.result
            with backend.session():
                block = next(blocks, None)
                if block is None:
                    blocks = new_blocks(
                        backend, result.fit, BLOCK, result.making, rng=backend.rng, chains=chain
                    )
                    block = next(blocks)
                values = self._values(
                    backend.posteriors[result.fit.problem].original_coordinates(block[0][0])
                )
            statistics = {name: value[0] for name, value in block[1].items()}
            for i in range(len(statistics["diverging"])):
                yield (
                    {name: value[i].clone() for name, value in values.items()},
                    {name: value[i] for name, value in statistics.items()},
                )

    def _values(self, original: Tensor) -> dict[str, Tensor]:
        """Points (n, d) of the model's own coordinates -> site name -> (n, *shape)."""
        own = self.backend.posteriors[0]
        values = own.layout.unflatten(original)
        if own.dynamic_sites:
            constrained = own.constrain(original, include_deterministic=False)
            values |= {name: constrained[name] for name in own.dynamic_sites}
        return values

    def check_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Checks that the model with these arguments is what the sampler was trained for.

        Raises:
            ModelError: an array of numbers or the potential differs.
        """
        training, backend = self.training, self.backend
        if other_numbers(training.arguments, (args, kwargs), backend.arrays.to_numpy):
            raise messages.other_data(True)
        with backend.session():
            other = backend.posteriors_of(args, kwargs)[0]
            if not backend.is_alike(other, training.trained(), training.arguments, (args, kwargs)):
                raise messages.other_data(True)
