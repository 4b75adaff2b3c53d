"""The Pyro front door: `DFT` for a Pyro model or a bare potential function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from pyro_dft import messages
from pyro_dft.engine_torch.custom import CustomGenerator, CustomScore
from pyro_dft.errors import SettingsError
from pyro_dft.interface.dft import Inference
from pyro_dft.interface.options import Option
from pyro_dft.pyro.backend import PyroBackend
from pyro_dft.pyro.guide import DrawsGuide


class DFT(Inference):
    """Neural posterior sampler for Pyro: trains a network that turns noise into posterior draws.

    It is trained by the KL divergence; `objective="dft"` is Denoising Fisher Training (arXiv 2411.01453).

    Args:
        model: A Pyro model. Discrete sites are summed out; plates with `subsample_size` give minibatches.
        potential_fn: In place of a model: minus the log density of a dict of unconstrained values, as NUTS
            takes it.
        initial_params: Unconstrained values (one point) to start from, in the first restart of the first
            chain. With `potential_fn` they are required, and give names and shapes.
        transforms: Name -> transform from constrained to unconstrained values, for `potential_fn` or to
            override those of a model.
        smoothed_potential_fn: For `Experimental(noise_mode="levels")`, beside `potential_fn`: called with the dict and a noise
            level sigma, minus the log density of the unconstrained values with noise N(0, sigma^2 I) added, as a diffusion or
            denoising model gives it. Training at many levels finds far modes and their weights.
        generator: A network of your own in place of the default one: a `torch.nn.Module` (copied), or a function without
            arguments that makes one, for each chain. It maps standard normal latent points (n, d) to points (n, d), flat and
            in whitened coordinates (with `Experimental(precondition="never")` in those of the posterior), and is the whole map:
            nothing is added to it but the noise.
        score_network: The same for the score of the sampler's noised draws, (n, d) to (n, d). With `noise_mode="levels"`
            it is called with the noise (n, 1) as well.
        num_chains: Independently initialised and trained samplers, all at once; R-hat compares them.
        init_strategy: Where the search starts, such as `pyro.infer.autoguide.init_to_median`; uniform(-2, 2)
            in unconstrained coordinates by default.
        checkpoint: File that the training in progress is written to. A run that was killed goes on from it, with the same
            settings and seed, to the same end; the file is removed when the training is complete.
        checkpoint_every: Iterations of the network phases between two writes.
        callback: Called on the way as `callback(progress, draw)`: where the training is (`step` of `total`, `phase`, `loss`), and
            a function that makes raw draws of the sampler as it stands, `draw(num_samples)`, a dict as from `get_samples`.
            It changes nothing in the training; to end that early, raise `KeyboardInterrupt`.
        callback_every: Iterations between two calls, at least; a new phase calls at once.
        max_plate_nesting: Batch dimensions that plates may use, where the guess is wrong for an enumerated
            model.
        device: Default device while the model runs, such as "cuda": priors like `dist.Normal(0.0, 1.0)` are
            made there. The data must be there already. None takes the model as it is.
        process_group: A group of `torch.distributed`, such as `torch.distributed.group.WORLD`: each of its processes runs the
            same program with rows of its own, and all get the same draws of the posterior given all rows (docs/scale.md).
        disable_progbar: Whether to hide the progress bar.
        settings: A `Settings` object, or give single settings as keywords, such as `num_steps=1000` or
            `objective="kl"`.
        **overrides: Single settings; see `pyro_dft.Settings`.

    Raises:
        SettingsError: a setting is unknown or out of range, or the device cannot be used.
        ModelError: neither a model nor a potential is given, or both.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_dft import DFT
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> dft = DFT(model, seed=0, disable_progbar=True)
        >>> dft.run(torch.tensor([1.0, 2.0, 3.0]))
        >>> dft.get_samples(100)["mu"].shape
        torch.Size([100])
        >>> dft.diagnostics()["status"]
        'converged'
    """

    _backend = PyroBackend
    device = Option()
    max_plate_nesting = Option()
    process_group = Option()

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        device: torch.device | str | None = None,
        max_plate_nesting: int | None = None,
        process_group: Any = None,
        **options: Any,
    ):
        super().__init__(model, **options)
        self.device = None if device is None else _usable(device)
        self.max_plate_nesting = max_plate_nesting
        self.process_group = process_group

    @property
    def guide(self) -> DrawsGuide:
        """The fit as a guide, for `pyro.infer.Predictive(model, guide=dft.guide, num_samples=...)`.

        It serves the kept draws at random. It has no density: ELBO and weights cannot be computed from it.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> from pyro.infer import Predictive
            >>> predict = Predictive(model, guide=dft.guide, num_samples=5)
            >>> tuple(predict(y, observed=False)["y"].shape)
            (5, 3)
        """
        result, backend = self.parts.training.trained(), self.parts.backend
        with backend.session():
            draws = backend.arrays.copied(result.kept).flatten(0, 1)
            posterior = backend.posteriors[result.fit.problem]
            return DrawsGuide(posterior.constrain(draws, include_deterministic=False))

    @property
    def generator(self) -> torch.nn.Module | list[torch.nn.Module]:
        """The trained generator of your own: latent points (n, d) to noise-free draws (n, d), flat.

        They are in the coordinates of the training: whitened ones, or with `Experimental(precondition="never")` those of the
        posterior. A list where there are several chains or modes. They are copies, and may be given to another `DFT`, to go
        on with.

        Raises:
            NotFittedError: before the training.
            SettingsError: no generator was given, or the Gaussian alone was kept.

        Example:
            >>> import torch
            >>> straight = torch.nn.Linear(1, 1)
            >>> _ = torch.nn.init.eye_(straight.weight), torch.nn.init.zeros_(straight.bias)
            >>> dft = DFT(model, generator=straight, train="always", num_steps=100, seed=0)
            >>> dft.run(y)
            >>> dft.generator(torch.zeros(5, 1)).shape
            torch.Size([5, 1])
        """
        return self._trained("generator", self.parts.options.generator)

    @property
    def score_network(self) -> torch.nn.Module | list[torch.nn.Module]:
        """The trained score network of your own, as `generator`; files do not keep it.

        Raises:
            NotFittedError: before the training.
            SettingsError: none was given, or none was trained.

        Example:
            >>> import torch
            >>> slope = torch.nn.Linear(1, 1)
            >>> _ = torch.nn.init.constant_(slope.weight, -1.0), torch.nn.init.zeros_(slope.bias)
            >>> dft = DFT(model, score_network=slope, train="always", num_steps=400, seed=0)
            >>> dft.run(y)
            >>> dft.score_network(torch.zeros(5, 1)).shape
            torch.Size([5, 1])
        """
        return self._trained("score_network", self.parts.options.score_network)

    def _trained(self, option: str, given: Any) -> torch.nn.Module | list[torch.nn.Module]:
        training = self.parts.training
        if training.result is None and training.trainer is None:
            training.trained()
        where = training.trainer if training.result is None else training.result.fit
        found = where.networks_so_far[option]
        if not isinstance(found, CustomGenerator | CustomScore):
            raise messages.no_own_network(option, given is not None)
        nets = copy.deepcopy(list(found.nets))
        return nets[0] if len(nets) == 1 else nets


def _usable(device: torch.device | str) -> torch.device:
    """The device with its index.

    Raises:
        SettingsError: there is no such device here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SettingsError(f"device={str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
