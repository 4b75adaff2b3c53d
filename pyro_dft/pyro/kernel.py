"""`DFTKernel`: the sampler as a kernel of `pyro.infer.MCMC`, the literal one-line swap for NUTS."""

from __future__ import annotations

import multiprocessing
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer.mcmc.api import MCMC, StreamingMCMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_dft.errors import ModelError, NotFittedError, SettingsError
from pyro_dft.interface import mcmc_verdict
from pyro_dft.interface.mass_matrix import inverse_mass_matrix
from pyro_dft.interface.mcmc_run import Asked, Run, kept_draws
from pyro_dft.interface.nuts_options import refuse, translated
from pyro_dft.pyro.dft import DFT
from pyro_dft.pyro.mcmc_run import tell_kernel
from pyro_dft.pyro.serving import Served, Still

# Chains get seeds this far apart.
SEED_STEP = 7919


class DFTKernel(MCMCKernel):
    """Serves independent draws of a trained sampler to `pyro.infer.MCMC`.

    The warm-up iterations of the first chain are the training: each of the `warmup_steps` makes its share of it. Their number
    does not change its length; `warmup_steps=0` trains at the first draw. One training in each `MCMC.run` serves all chains that
    run one after the other, but for those before which the generator is seeded anew, and chains in worker processes, which train
    one each. The draws that the fit keeps are served first, each once:
    states of an ensemble of exact chains, of which each chain of `MCMC` has others, so that R-hat between them compares chains
    that have run apart. Those of a run are all kept, up to 16,000 (`num_draws` of the settings, where given); behind them new
    draws follow, refined as `DFT.get_samples` does by default.

    Args:
        model: A Pyro model; one without continuous latent sites runs as under NUTS.
            Or a fitted `DFT`, whose sampler is then served without training: chain i gets
            new draws of its sampler i modulo `num_chains`, and `MCMC.run` takes the data that it was trained
            on, or nothing.
        potential_fn: In place of a model, as for NUTS; initial values come from here or from
            `MCMC(initial_params=...)`.
        initial_params: As for `DFT`. Those of `MCMC`, one set for each chain, take their place.
        *positional: As for Pyro's NUTS, or HMC.
        **options: As for `DFT`: settings, `transforms`, `init_strategy`, `max_plate_nesting`, `device`; and those of NUTS and
            HMC, most of which change nothing: docs/migration.md. `num_chains` and `disable_progbar` belong to `MCMC`.

    Raises:
        SettingsError: an option belongs to `MCMC`, or a setting is unknown or out of range.
        ModelError: neither a model nor a potential is given, or both.

    Warns:
        UserWarning: options of NUTS or HMC do not act as they do there.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from pyro_dft import DFTKernel
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> mcmc = MCMC(DFTKernel(model, seed=0), num_samples=1000, warmup_steps=100, disable_progbar=True)
        >>> mcmc.run(torch.tensor([1.0, 2.0, 3.0]))
        >>> mcmc.get_samples()["mu"].shape
        torch.Size([1000])
    """

    def __init__(
        self,
        model: Callable[..., Any] | DFT | None = None,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        *positional: Any,
        initial_params: Mapping[str, Tensor] | None = None,
        **options: Any,
    ):
        self._fitted = model if isinstance(model, DFT) else None
        brought = bool(positional) or potential_fn is not None or initial_params is not None
        of_mcmc = ("disable_progbar", "num_chains", "progress_bar")
        refuse(options, of_mcmc, fitted=self._fitted is not None, brought=brought)
        options, self._mass = translated(
            positional, options, pyro=True, potential=potential_fn is not None, stacklevel=2
        )
        initial_params = options.pop("init_params", initial_params)
        transforms: Mapping[str, Transform] | None = options.pop("transforms", None)
        self.model: Callable[..., Any] | None = model.model if isinstance(model, DFT) else model
        if options.get("process_group") is not None or (
            self._fitted and self._fitted.process_group is not None
        ):
            raise SettingsError("process_group: processes share rows in DFT(...).run(...), and not in MCMC")
        self._options = {"potential_fn": potential_fn, "transforms": transforms, **options}
        self._given = initial_params
        # MCMC takes transforms from here, or else, where there is a model, from `setup`.
        self.transforms: dict[str, Transform] | None = (
            None if potential_fn is None else dict(transforms or {})
        )
        if self._fitted is None:
            # A wrong option must fail here and not in a worker. Initial values may still come from MCMC.
            self._new_dft(initial_params or {"any": torch.zeros(())})
        self._save_params: list[str] | None = None
        self._chains_set_up = 0
        self._warmup_steps = self._calls = 0
        self._divergences: list[int] = []  # draws after the warm-up that a diverging transition led to
        self._accepted: list[float] = []  # acceptance probabilities on the way to these draws
        self._loss: float | None = None
        self._served: Served | Still | None = None
        self._run: Run[DFT] = Run()  # the present one
        self._last: dict[str, Tensor] | None = None

    def _new_dft(self, initial_params: Mapping[str, Tensor] | None, **changed: Any) -> DFT:
        options = {**self._options, **changed, "initial_params": initial_params}
        return DFT(self.model, disable_progbar=True, **options)

    # What MCMC calls, in its order.

    def prepare_run(self, asked: Asked) -> None:
        """What `MCMC.run` is asked for, before it begins.

        Args:
            asked: Chains that share a training, and how many draws of each.
        """
        self._run = Run(asked)

    def run_ended(self) -> None:
        """Chains of another run have another training."""
        self._run = Run()

    @property
    def save_params(self) -> list[str]:
        """Names of the sites that MCMC keeps; unset means all."""
        if self._save_params is None:
            raise AttributeError("save_params")
        return self._save_params

    @save_params.setter
    def save_params(self, names: list[str]) -> None:
        # MCMC reads the sites back in sorted order, whatever order they were asked for in.
        self._save_params = sorted(names)

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Prepares one chain for the model's arguments; training comes with the warm-up steps.

        MCMC calls this once more, with `warmup_steps=0`, in the main process after parallel chains, to learn
        the transforms.

        Raises:
            ModelError: the model or its data cannot be used, or they are not those of the fitted DFT.
        """
        in_worker = multiprocessing.parent_process() is not None
        if in_worker:
            # A forked worker that computes with several threads can hang for good.
            torch.set_num_threads(1)
        # MCMC names its workers by chain.
        name = multiprocessing.current_process().name
        chain = int(name) if in_worker and name.isdigit() else self._chains_set_up
        self._chains_set_up += 1
        self._warmup_steps, self._calls, self._loss = warmup_steps, 0, None
        self._divergences, self._accepted = [], []
        if self.model is None:  # as with NUTS, data that a potential does not read are allowed
            args, kwargs = (), {}
        if self._fitted is None:
            seed = self._options.get("seed")
            # With one seed for all, the chains would be copies of each other.
            own_seed = {} if seed is None else {"seed": seed + SEED_STEP * chain}
            self._served = self._set_up(args, kwargs, own_seed)
        else:
            dft = self._fitted
            dft.parts.training.trained()
            self._served = Served(dft, chain % dft.num_chains, kept=None)
            if args or kwargs:
                self._served.check_data(args, kwargs)
            if in_worker:
                # MCMC seeds its workers apart; and one of its seeds may be that of the training.
                seeds = np.random.SeedSequence([torch.initial_seed(), SEED_STEP])
                dft.parts.backend.set_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        self.transforms, self._last = self._served.transforms(), self._served.start()
        latent = sorted(self._last)
        unknown = sorted(set(self._save_params or ()) - set(latent))
        if unknown:
            raise ModelError(f"save_params names {unknown}, but the latent sites are {latent}")

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: dict[str, int]) -> Served | Still:
        options = {name: self._options.get(name) for name in ("transforms", "max_plate_nesting")}
        potential = self._options["potential_fn"]
        if potential is not None and self._given is not None and not self._given:
            return Still(None, (), {}, potential, **options)
        self._run.seeded(torch.initial_seed())
        part = self._run.next_part()
        if self._run.fit is not None:
            return Served(self._run.fit, 0, kept=part)
        dft = self._new_dft(self._given, **seed)
        try:
            changed = kept_draws(
                self._options, dft.settings, dft.parts.backend, self._run.asked, (args, kwargs)
            )
            dft = self._new_dft(self._given, **seed, **changed) if changed else dft
            dft.parts.training.begin(args, kwargs)
        except ModelError as error:
            if not error.nothing_to_infer or self.model is None:
                raise
            return Still(self.model, args, kwargs, None, **options)
        self._run.share(dft)
        return Served(dft, 0, kept=part)

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Where the chain starts: names and shapes of what `sample` returns."""
        return self._ready().start()

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        self._given = params

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """A warm-up step trains and returns `params`; after the warm-up each call returns one draw."""
        served = self._ready()
        self._calls += 1
        warming = self._calls <= self._warmup_steps
        if isinstance(served, Still):
            return params
        if self._fitted is None and not served.training.trainer.done:
            loss = served.training.advance(until=self._calls / self._warmup_steps if warming else 1.0)
            self._loss = self._loss if loss is None else loss
        if warming:
            return params
        draw, statistics = served.next()
        self._last = draw
        if statistics["diverging"]:
            self._divergences.append(self._calls - self._warmup_steps - 1)
        if "acceptance_rate" in statistics:
            self._accepted.append(float(statistics["acceptance_rate"]))
        return draw

    def logging(self) -> OrderedDict[str, str]:
        """Phase of the training and the loss of `DFT.step`, for MCMC's progress bar."""
        served = self._ready()
        phase = "done" if isinstance(served, Still) else served.training.trainer.phase
        if phase == "done" or self._loss is None:
            return OrderedDict(phase=phase)
        return OrderedDict(phase=phase, loss=f"{self._loss:.3g}")

    def diagnostics(self) -> dict[str, Any]:
        """`DFT.diagnostics` of this chain's sampler, `divergences` and "acceptance rate".

        Divergences are the draws, numbered from 0, on whose way a transition had an energy error over 1000. The rate is the
        mean acceptance probability of the last transitions on the way to the draws; raw draws have none.
        """
        found: dict[str, Any] = {"divergences": list(self._divergences)}
        if self._accepted:
            found["acceptance rate"] = sum(self._accepted) / len(self._accepted)
        served = self._ready()
        if isinstance(served, Still):
            return {**found, "acceptance rate": 1.0}
        return {**found, "dft": served.dft.diagnostics().to_json()}

    # What users of NUTS ask a kernel for.

    @property
    def potential_fn(self) -> Callable[[dict[str, Tensor]], Tensor] | None:
        """The potential of unconstrained values by site; None for a model that is not set up."""
        given = None if self._fitted is not None else self._options["potential_fn"]
        if given is not None or self._served is None:
            return given
        return self._served.potential_fn if isinstance(self._served, Still) else self._served.potential

    @property
    def _potential_energy_last(self) -> Tensor:
        """The potential of the last draw, or of the starting point before the first one."""
        potential, last = self.potential_fn, self._last
        if potential is None or last is None:
            self._ready()
        assert potential is not None
        assert last is not None
        with torch.no_grad():
            return potential(last)

    @property
    def step_size(self) -> float:
        """Leapfrog step of the transitions, in coordinates whitened by their mass matrix; a mean over modes."""
        served = self._trained()
        return float(np.mean(served.backend.arrays.numpy(served.result.measurement.step_size)))

    @property
    def num_steps(self) -> int:
        """Leapfrog steps of a transition."""
        return int(self._trained().result.measurement.leapfrog_steps)

    @property
    def inverse_mass_matrix(self) -> dict[tuple[str, ...], Tensor]:
        """Names of sites -> covariance of the kept draws, unconstrained; variances alone without `full_mass`."""
        served = self._trained()
        result, backend = served.result, served.backend
        with backend.session():
            points = backend.original(result.fit.problem, result.kept)
        blocks = inverse_mass_matrix(points.reshape(-1, points.shape[-1]), backend.layout, self._mass)
        return {names: backend.from_numpy(block.astype(points.dtype)) for names, block in blocks.items()}

    def clear_cache(self) -> None:
        """Does nothing: no draw depends on what the kernel remembers of the last one."""

    def _trained(self) -> Served:
        served = self._ready()
        if isinstance(served, Still):
            raise NotFittedError("there is nothing to infer, and no transition was made")
        if served.training.result is None:
            raise NotFittedError("the sampler is not trained yet: it is during the warm-up")
        return served

    def cleanup(self) -> None:
        """Keeps the sampler: MCMC cleans up twice, before it asks for the transforms."""

    def _ready(self) -> Served | Still:
        if self._served is None:
            raise NotFittedError("the kernel is not set up: run it with pyro.infer.MCMC")
        return self._served

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes and files get the kernel without its training; a fitted DFT goes with it."""
        return {**self.__dict__, "_served": None, "_run": Run(self._run.asked), "_last": None}


def _kernel_of(mcmc: Any) -> DFTKernel | None:
    return mcmc.kernel if isinstance(mcmc.kernel, DFTKernel) else None


def _reports_of(mcmc: Any) -> list[dict[str, Any] | None]:
    return [own.get("dft") for own in mcmc._diagnostics if own is not None]


for _mcmc in (MCMC, StreamingMCMC):
    tell_kernel(_mcmc, _kernel_of)
mcmc_verdict.show_verdict(MCMC, "summary", _kernel_of, _reports_of)
