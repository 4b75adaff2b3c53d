"""`DFTKernel`: the sampler as a kernel of `pyro.infer.MCMC`, the literal one-line swap for NUTS."""

from __future__ import annotations

import math
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_dft.errors import NotFittedError, SettingsError
from pyro_dft.pyro.dft import DFT

# Draws are made in blocks of this many and served one by one.
BLOCK = 1000


class DFTKernel(MCMCKernel):
    """Serves independent draws of a trained sampler to `pyro.infer.MCMC`.

    The warm-up iterations are the training: each of the `warmup_steps` makes its share of the training budget (the number
    of warm-up steps does not change the budget; `warmup_steps=0` trains at the first draw). Each chain trains a sampler of
    its own, exactly once, so R-hat between chains compares independent fits. Draws are refined as `DFT.get_samples` does by
    default.

    Args:
        model: A Pyro model; or a fitted `DFT`, whose draws are then served without training.
        potential_fn: In place of a model, with `initial_params` and `transforms`, as for NUTS.
        **options: As for `DFT` (settings, `init_strategy`, `device`). `num_chains` belongs to `MCMC`.

    Raises:
        SettingsError: `num_chains` is given, or a setting is unknown or out of range.

    Example:
        >>> from pyro.infer import MCMC
        >>> mcmc = MCMC(DFTKernel(model), num_samples=1000, warmup_steps=1000)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Callable[..., Any] | DFT | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        **options: Any,
    ):
        if "num_chains" in options:
            raise SettingsError("num_chains belongs to MCMC: MCMC(DFTKernel(model), num_chains=...)")
        self._fitted: DFT | None = None
        self.model: Callable[..., Any] | None
        if isinstance(model, DFT):
            self._fitted = model
            if options or potential_fn is not None:
                raise SettingsError("a fitted DFT brings its own settings: DFTKernel(dft) takes no others")
            self.model = model.model
        else:
            # Made here so that a wrong setting fails now and not in a worker; each chain makes its own later.
            DFT(model, potential_fn=potential_fn, **options)
            self.model = model
        self._potential_fn, self._options = potential_fn, options
        self._chains_set_up = 0
        self._warmup_steps = 0
        self._calls = 0
        self._initial: dict[str, Tensor] | None = None
        self._dft: DFT | None = None
        self._block: list[Tensor] = []
        self._loss = math.nan
        self.transforms: dict[str, Transform] | None = None

    # What MCMC calls, in its order.

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Prepares one chain for the model's arguments; training comes with the warm-up steps.

        Raises:
            ModelError: the model or its data cannot be used.
        """
        in_worker = multiprocessing.parent_process() is not None
        if in_worker:
            # A forked worker that computes with several threads can hang for good.
            torch.set_num_threads(1)
        self._warmup_steps, self._calls, self._block, self._initial = warmup_steps, 0, [], None
        if self._fitted is not None:
            self._fitted._require_fit()
            self._dft = self._fitted
        else:
            options = dict(self._options)
            if options.get("seed") is not None:
                # With one seed all chains would be copies of each other; MCMC seeds its worker processes apart.
                own = torch.initial_seed() if in_worker else self._chains_set_up
                options["seed"] = (options["seed"] + 7919 * own) % 2**31
            self._dft = DFT(self.model, potential_fn=self._potential_fn, disable_progbar=True, **options)
            self._dft._begin(args, kwargs)
        self._chains_set_up += 1
        self.transforms = self._dft._transforms_of_sites()

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Unconstrained values of the sites: names and shapes of what `sample` returns."""
        if self._initial is None:
            dft = self._ready()
            self._initial = dft._layout().unflatten(dft._origin())
        return self._initial

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        # Every chain starts from its own restarts; MCMC reads names and shapes back.
        self._initial = params

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """A warm-up step trains and returns `params`; after the warm-up each call is one draw (unconstrained)."""
        dft = self._ready()
        self._calls += 1
        if self._calls <= self._warmup_steps:
            if self._fitted is None:
                self._loss = dft._advance(until=self._calls / self._warmup_steps)
            return params
        if not self._block:
            if self._fitted is None:
                self._loss = dft._advance(until=1.0)
            self._block = list(dft._unconstrained_draws(BLOCK).unbind())
        return dft._layout().unflatten(self._block.pop())

    def logging(self) -> OrderedDict[str, str]:
        """Phase of the training and the Fisher gap, for MCMC's progress bar."""
        phase = self._ready()._phase
        return (
            OrderedDict([("phase", phase), ("loss", f"{self._loss:.3g}")])
            if phase != "done"
            else OrderedDict(phase=phase)
        )

    def diagnostics(self) -> dict[str, Any]:
        """`DFT.diagnostics` of this chain's sampler; `divergences` is empty, and there because `az.from_pyro` reads it."""
        return {"divergences": [], "dft": self._ready().diagnostics().to_json()}

    def cleanup(self) -> None:
        """Keeps the sampler: MCMC cleans up twice, before it asks for the transforms."""

    def _ready(self) -> DFT:
        if self._dft is None:
            raise NotFittedError("the kernel is not set up: run it with pyro.infer.MCMC")
        return self._dft

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes and files get the kernel without a training in progress."""
        return {**self.__dict__, "_dft": self._fitted, "_block": [], "_initial": None}
