"""The NumPyro front door: `DFT` for a NumPyro model or a bare potential function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyro_dft import messages
from pyro_dft.engine_jax.custom import TrainedNetwork
from pyro_dft.interface.backend import rows_of
from pyro_dft.interface.dft import Inference
from pyro_dft.interface.mcmc_verdict import verdict_line
from pyro_dft.judging.summary import Summary
from pyro_dft.numpyro.backend import NumPyroBackend
from pyro_dft.numpyro.guide import DrawsGuide
from pyro_dft.numpyro.pure import PureFunctions
from pyro_dft.numpyro.trees import is_traced


class DFT(PureFunctions, Inference):
    """Neural posterior sampler for NumPyro: trains a network that turns noise into posterior draws.

    It is trained by the KL divergence; `objective="dft"` is Denoising Fisher Training (arXiv 2411.01453).

    Args:
        model: A NumPyro model. Discrete sites are summed out; plates with `subsample_size` give minibatches.
        potential_fn: In place of a model: minus the log density of a dict of unconstrained values, as NUTS takes it.
        initial_params: Unconstrained values (one point) to start from, in the first restart of the first chain. With
            `potential_fn` they are required, and give names and shapes.
        transforms: Name -> transform from constrained to unconstrained values, for `potential_fn` or to override those
            of a model.
        smoothed_potential_fn: For `Experimental(noise_mode="levels")`, beside `potential_fn`: called with the dict and a noise
            level sigma, minus the log density of the unconstrained values with noise N(0, sigma^2 I) added, as a diffusion or
            denoising model gives it. Training at many levels finds far modes and their weights.
        generator: A network of your own in place of the default one: anything with methods `init(key, x)` and `apply(params,
            x)`, such as a `flax.linen.Module`, or `pyro_dft.numpyro.Network(init, apply)`. It maps standard normal latent
            points (n, d) to points (n, d), flat and in whitened coordinates (with `Experimental(precondition="never")` in
            those of the posterior), and is the whole map: nothing is added to it but the noise.
        score_network: The same for the score of the sampler's noised draws, (n, d) to (n, d). With `noise_mode="levels"`
            both methods get the noise (n, 1) after x.
        num_chains: Independently initialised and trained samplers, all at once; R-hat compares them.
        init_strategy: Where the search starts, such as `numpyro.infer.init_to_median`; uniform(-2, 2) in
            unconstrained coordinates by default.
        checkpoint: File that the training in progress is written to. A run that was killed goes on from it, with the same
            settings and key, to the same end; the file is removed when the training is complete.
        checkpoint_every: Iterations of the network phases between two writes.
        callback: Called on the way as `callback(progress, draw)`: where the training is (`step` of `total`, `phase`, `loss`), and
            a function that makes raw draws of the sampler as it stands, `draw(num_samples)`, a dict as from `get_samples`.
            It changes nothing in the training; to end that early, raise `KeyboardInterrupt`.
        callback_every: Iterations between two calls, at least; a new phase calls at once.
        disable_progbar: Whether to hide the progress bar.
        settings: A `Settings` object, or give single settings as keywords, such as `num_steps=1000` or `objective="kl"`.
        **overrides: Single settings; see `pyro_dft.numpyro.Settings`.

    Raises:
        SettingsError: a setting is unknown or out of range.
        ModelError: neither a model nor a potential is given, or both.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from pyro_dft.numpyro import DFT
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> dft = DFT(model, disable_progbar=True)
        >>> dft.run(jax.random.key(0), jnp.array([1.0, 2.0, 3.0]))
        >>> dft.get_samples(100)["mu"].shape
        (100,)
        >>> dft.diagnostics()["status"]
        'converged'
    """

    _backend = NumPyroBackend

    def run(self, rng_key: Any, *args: Any, **kwargs: Any) -> None:
        """Trains the sampler for the posterior given the model's arguments, from the start.

        Ctrl-C ends the training early and keeps the sampler trained so far; `diagnostics()` then says how good it is.

        Args:
            rng_key: Random key of everything in the fit, and of the draws taken later.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ModelError: the model or its data cannot be used; the message names the site or argument. Nothing of an
                earlier fit is left then.

        Warns:
            FidelityWarning: a diagnostic says that the fit is doubtful, or the training was interrupted.

        Example:
            >>> dft = DFT(model, disable_progbar=True)
            >>> dft.run(jax.random.key(0), y)
            >>> sorted(dft.get_samples())
            ['mu']
        """
        if is_traced((rng_key, args, kwargs, jnp.zeros(()))):
            raise messages.run_is_traced()
        self.parts.backend.words = key_words(rng_key)
        self.parts.training.run(args, kwargs)

    def get_samples(
        self,
        num_samples: int | bool | None = None,
        group_by_chain: bool = False,
        *,
        refine_steps: int | None = None,
    ) -> dict[str, Any]:
        """Posterior draws of all latent and deterministic sites, constrained, as `MCMC.get_samples`.

        Args:
            num_samples: Draws over all chains, or for each chain with `group_by_chain`. None returns the draws that the fit kept
                (`num_draws` in the settings, refined): the same at each call. A number makes new ones, up to `refine_limit`
                (20,000) refined. True or False is taken for `group_by_chain`, which comes first in NumPyro's MCMC.
            group_by_chain: Whether to keep a leading chain dimension.
            refine_steps: HMC transitions for each new draw; 0 gives raw ones. None takes the number that the fit
                found, or raw draws above `refine_limit`.

        Returns:
            Site name -> array of shape (num_samples, *site), or (num_chains, num_samples, *site).

        Raises:
            NotFittedError: before `run`.
            ValueError: `num_samples` or `refine_steps` is not a positive integer (0 is allowed for the latter).
            MemoryError: there is no room for so many draws.

        Example:
            >>> tuple(dft.get_samples(True)["mu"].shape)
            (1, 4000)
            >>> tuple(dft.get_samples(10)["mu"].shape)  # new ones, refined
            (10,)
        """
        if isinstance(num_samples, bool) and not group_by_chain:
            return super().get_samples(None, num_samples, refine_steps=refine_steps)
        return super().get_samples(num_samples, group_by_chain, refine_steps=refine_steps)

    def print_summary(self, prob: float = 0.9, exclude_deterministic: bool = True) -> None:
        """Prints the table of `summary`, as `MCMC.print_summary`.

        Args:
            prob: Mass of the interval that is shown.
            exclude_deterministic: Whether to leave out sites that the latent ones determine.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> dft.print_summary()  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
                mean  std  median  5.0%  95.0%  n_eff  r_hat  mcse  approx_error
            mu  ...
        """
        table = self.summary_table(prob)
        latent = set(self.parts.backend.layout.names)
        shown = {
            name: own for name, own in table.sites.items() if name in latent or not exclude_deterministic
        }
        print(Summary(shown, table.prob))
        print(verdict_line([self.parts.training.trained().report], "diagnostics()"))

    @property
    def guide(self) -> DrawsGuide:
        """The fit as a guide, for `numpyro.infer.Predictive(model, guide=dft.guide, num_samples=...)`.

        It serves the kept draws at random. It has no density: ELBO and weights cannot be computed from it.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> from numpyro.infer import Predictive
            >>> predict = Predictive(model, guide=dft.guide, num_samples=5)
            >>> tuple(predict(jax.random.key(1), y, observed=False)["y"].shape)
            (5, 3)
        """
        result = self.parts.training.trained()
        posterior = self.parts.backend.posteriors[result.fit.problem]
        return DrawsGuide(posterior.constrain(rows_of(result.kept), include_deterministic=False))

    @property
    def generator(self) -> TrainedNetwork | list[TrainedNetwork]:
        """The trained generator of your own: latent points (n, d) to noise-free draws (n, d), flat.

        They are in the coordinates of the training: whitened ones, or with `Experimental(precondition="never")` those of the
        posterior. A list where there are several chains or modes. Each is called with points, has its `params`, and may be
        given to another `DFT`, to go on with.

        Raises:
            NotFittedError: before the training.
            SettingsError: no generator was given, or the Gaussian alone was kept.

        Example:
            >>> from pyro_dft.numpyro import Network
            >>> shift = Network(lambda key, z: jnp.zeros(1), lambda weights, z: z + weights)
            >>> dft = DFT(model, generator=shift, train="always", num_steps=50)
            >>> dft.run(jax.random.key(0), y)
            >>> dft.generator(jnp.zeros((5, 1))).shape
            (5, 1)
        """
        fit = self.parts.training.trained().fit
        return _trained("generator", fit.sampler.generator, self.parts.options.generator)

    @property
    def score_network(self) -> TrainedNetwork | list[TrainedNetwork]:
        """The trained score network of your own, as `generator`; files do not keep it.

        Raises:
            NotFittedError: before the training.
            SettingsError: none was given, or none was trained.

        Example:
            >>> from pyro_dft.numpyro import Network
            >>> slope = Network(lambda key, x: -jnp.ones(1), lambda weights, x: x * weights)
            >>> dft = DFT(model, score_network=slope, train="always", num_steps=400)
            >>> dft.run(jax.random.key(0), y)
            >>> dft.score_network(jnp.zeros((5, 1))).shape
            (5, 1)
        """
        fit = self.parts.training.trained().fit
        return _trained("score_network", fit.score_network, self.parts.options.score_network)


def _trained(option: str, weights: Any, given: Any) -> TrainedNetwork | list[TrainedNetwork]:
    if weights is None or "own" not in weights:
        raise messages.no_own_network(option, given is not None)
    made = weights["own"].each()
    return made[0] if len(made) == 1 else made


def key_words(rng_key: Any) -> tuple[int, ...]:
    """The words of a random key, new-style or old-style.

    Raises:
        TypeError: it is no single random key.
    """
    typed = hasattr(rng_key, "dtype") and jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    words = np.asarray(jax.random.key_data(rng_key) if typed else rng_key)
    if words.ndim != 1 or words.dtype != np.uint32:
        raise TypeError(
            f"the first argument must be a random key such as jax.random.key(0), got {type(rng_key).__name__}"
            + (f" of shape {words.shape}" if words.ndim else "")
        )
    return tuple(int(word) for word in words)
