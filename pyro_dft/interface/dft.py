"""The public interface, written once for both frameworks: train, draw, summarise, diagnose, save, hand over.

A `DFT` holds its parts and passes their work on. A front door (`pyro_dft.pyro.dft`) brings its
`pyro_dft.interface.backend.Backend`: how a model becomes a target.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from pyro_dft.errors import SettingsError
from pyro_dft.evidence.importance import ImportanceResult
from pyro_dft.interface import nuts_options
from pyro_dft.interface.arguments import copied
from pyro_dft.interface.backend import Backend
from pyro_dft.interface.copying import Copying
from pyro_dft.interface.options import Option, Options
from pyro_dft.interface.parts import Parts
from pyro_dft.interface.reporting import Reporting
from pyro_dft.models.options import check_options, spelt_as_numpyro
from pyro_dft.settings import Settings, check_count, check_names


class Inference(Reporting, Copying):
    """Base of the `DFT` classes; see `pyro_dft.DFT`.

    Attributes:
        parts: The objects that do the work, see `pyro_dft.interface.parts.Parts`.
    """

    _backend: type[Backend]  # the front door

    model = Option()
    potential_fn = Option()
    initial_params = Option()
    transforms = Option()
    smoothed_potential_fn = Option()
    num_chains = Option()
    init_strategy = Option()
    checkpoint = Option()
    checkpoint_every = Option()
    callback = Option()
    callback_every = Option()
    disable_progbar = Option()
    settings = Option()

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Any]], Any] | None = None,
        initial_params: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Any] | None = None,
        smoothed_potential_fn: Callable[[dict[str, Any], Any], Any] | None = None,
        generator: Any = None,
        score_network: Any = None,
        num_chains: int = 1,
        init_strategy: Callable[..., Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        callback: Callable[[Any, Callable[[int], dict[str, Any]]], None] | None = None,
        callback_every: int = 50,
        disable_progbar: bool = False,
        settings: Settings | None = None,
        **overrides: Any,
    ):
        initial_params, disable_progbar = spelt_as_numpyro(overrides, initial_params, disable_progbar)
        check_options(
            model=model, potential_fn=potential_fn, initial_params=initial_params, transforms=transforms,
            init_strategy=init_strategy, checkpoint=checkpoint, callback=callback, disable_progbar=disable_progbar,
        )  # fmt: skip
        check_count("num_chains", num_chains, 1, SettingsError)
        for name, every in (("checkpoint_every", checkpoint_every), ("callback_every", callback_every)):
            check_count(name, every, 1, SettingsError)
        foreign = sorted(nuts_options.NAMES & overrides.keys())
        if foreign:
            raise SettingsError(f"{', '.join(foreign)}: an option of NUTS that means nothing here; drop it")
        # A misspelt option of either constructor is named too.
        options = {**inspect.signature(Inference).parameters, **inspect.signature(type(self)).parameters}
        check_names(overrides, options)
        if settings is not None and overrides:
            raise SettingsError(
                f"give either settings or single ones ({', '.join(sorted(overrides))}), not both"
            )
        settings = settings or Settings.from_kwargs(**overrides)
        settings.check_use()
        levels = settings.experimental.noise_mode == "levels"
        if levels != (smoothed_potential_fn is not None) or (levels and potential_fn is None):
            raise SettingsError(
                'noise_mode="levels" and smoothed_potential_fn, beside potential_fn, need each other'
            )
        if checkpoint is not None and self._backend.needs_seed and settings.seed is None:
            raise SettingsError(
                "checkpoint: give a seed as well, by which a later run goes on with the same training"
            )
        given = Options(
            settings, model, potential_fn, copied(initial_params, self._backend.arrays.copied), dict(transforms or {}),
            smoothed_potential_fn, generator, score_network, int(num_chains), init_strategy, checkpoint,
            checkpoint_every, callback, callback_every, disable_progbar,
        )  # fmt: skip
        self.parts = Parts.of(self._backend(given))

    # Training

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Trains the sampler for the posterior given the model's arguments, from the start.

        Ctrl-C ends the training early and keeps the sampler trained so far; `diagnostics()` then says how
        good it is.

        Args:
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ModelError: the model or its data cannot be used; the message names the site or argument. Nothing
                of an earlier fit is left then.
            SettingsError: the checkpoint's folder is missing or cannot be written to.

        Warns:
            RuntimeWarning: a checkpoint could not be written; the training goes on.
            FidelityWarning: a diagnostic says that the fit is doubtful, or the training was interrupted.

        Example:
            >>> dft = DFT(model, seed=0, disable_progbar=True)
            >>> dft.run(y)
            >>> sorted(dft.get_samples())
            ['mu']
        """
        self.parts.training.run(args, kwargs)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One training iteration on the given arguments, as `SVI.step`, for users who write their own loop.

        The first call sets the training up (also the first one after `run` or `load`). Later calls may bring other data,
        such as minibatches scaled by the model: each iteration sees the arguments of its own call. The learning rates
        follow the plan of the settings; once the planned iterations are made, further calls leave the sampler as it is.

        Draws may be taken after any number of steps, and training goes on after that. Refinement and diagnostics use the
        arguments of the last call: end a loop over minibatches with a step on the full data. (With
        `pyro.plate(..., subsample_size=...)` in the model, `run` draws the minibatches itself, and the DFT phase gets the
        two independent ones that its loss needs.)

        Returns:
            The Fisher gap J(s_q) - J(s_phi) on fresh draws; minus the evidence bound while the Gaussian is
            fitted.

        Raises:
            ModelError: as for `run`. Data that cannot be used leave the training as it was before the call.

        Example:
            >>> dft = DFT(model, seed=0, train="never")
            >>> losses = [dft.step(y) for _ in range(50)]
            >>> losses[-1] < losses[0]
            True
        """
        return self.parts.training.step(args, kwargs)

    @property
    def progress(self) -> Any:
        """Where the training is: `step` of `total` iterations, the `phase` and the `loss` of the last one; None before it.

        Fewer iterations than `total` are made where a phase ends early.

        Example:
            >>> dft.progress.step == dft.diagnostics()["iterations"]
            True
        """
        trainer = self.parts.training.trainer
        return trainer.history[-1] if trainer is not None and trainer.history else None

    # Draws

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False, *, refine_steps: int | None = None
    ) -> dict[str, Any]:
        """Posterior draws of all latent and deterministic sites, constrained, as `MCMC.get_samples`.

        Args:
            num_samples: Draws over all chains, or for each chain with `group_by_chain`. None returns the
                draws that the fit kept (`num_draws` in the settings, refined): the same at each call. A
                number gives new draws.
            group_by_chain: Whether to keep the chains apart.
            refine_steps: HMC transitions for each draw of the one-step sampler; 0 gives its raw draws. None takes
                what was found necessary, from kept draws where those of the sampler would need many (`renewed`
                in `diagnostics()`), and raw draws above `refine_limit` of them.

        Returns:
            Site name -> array of shape (num_samples, *site), or (num_chains, num_samples, *site).

        Raises:
            NotFittedError: before `run`.
            ValueError: `num_samples` or `refine_steps` is not a positive integer (0 is allowed for the
                latter).
            MemoryError: there is no room for so many draws.

        Example:
            >>> tuple(dft.get_samples()["mu"].shape)  # the kept draws
            (4000,)
            >>> tuple(dft.get_samples(10)["mu"].shape)  # new ones, refined
            (10,)
            >>> tuple(dft.get_samples(10, group_by_chain=True, refine_steps=0)["mu"].shape)
            (1, 10)
        """
        if num_samples is not None:
            check_count("num_samples", num_samples, 1)
        if refine_steps is not None:
            check_count("refine_steps", refine_steps, 0)
        return self.parts.drawing.samples(num_samples, group_by_chain, refine_steps)

    def importance_sampling(self, num_samples: int = 4000) -> ImportanceResult:
        """New draws with importance weights: the evidence, PSIS k-hat, and draws that the weights correct.

        The draws are raw ones of the sampler, and for a tenth of them of wide Student-t densities; refinement has no
        density. The full data are read once for each draw. See docs/density.md for method, cost and limits.

        Args:
            num_samples: Draws over all chains, at least 100.

        Returns:
            Weighted draws, `log_evidence` with its standard error, `k_hat`, `ess`; `resample()` gives draws without
            weights.

        Raises:
            NotFittedError: before `run`.
            ValueError: `num_samples` is not an integer of at least 100.
            ModelError: the posterior density is zero at all draws.

        Warns:
            FidelityWarning: k-hat says that the weights cannot be trusted.

        Example:
            >>> result = dft.importance_sampling(1000)
            >>> result.reliable
            True
            >>> exact = -6.63  # log p(y) in closed form
            >>> bool(abs(result.log_evidence - exact) < 0.05)
            True
        """
        check_count("num_samples", num_samples, 100)
        return self.parts.drawing.weighted(num_samples)
