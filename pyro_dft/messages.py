"""What is wrong with a model or a network, in the same words for both frameworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_dft import links
from pyro_dft.errors import ModelError, NotFittedError, SettingsError

Shape = tuple[int, ...]


def model_failed(last: str | None, reason: str) -> ModelError:
    """The model raised an error; `last` is the last site before that."""
    where = f"after site '{last}'" if last is not None else "before its first site"
    return ModelError(f"the model failed {where}: {reason}")


def _empty(text: str) -> ModelError:
    error = ModelError(text)
    error.nothing_to_infer = True
    return error


def no_latent_sites() -> ModelError:
    """There is nothing random in the model."""
    return _empty("the model has no latent sites: there is nothing to infer")


def only_discrete_sites(sites: Sequence[str]) -> ModelError:
    """Everything that is random would be summed out."""
    return _empty(
        f"the model has only discrete latent sites {list(sites)}: they can be summed out, but at least one continuous site "
        "must remain"
    )


def no_coordinates(sites: Sequence[str]) -> ModelError:
    """All latent sites are empty."""
    return _empty(f"latent sites {list(sites)} have no coordinates: there is nothing to infer")


def inside_subsampled_plate(site: str, plate: str, size: int, subsample_size: int) -> ModelError:
    """A latent site has other values in each minibatch."""
    return ModelError(
        f"latent site '{site}' is inside the subsampled plate '{plate}' (subsample_size={subsample_size} of {size}): its "
        "values would differ from minibatch to minibatch. Move the site out of the plate, sum it out analytically, or drop "
        "subsample_size"
    )


def unusable_support(site: str, support: Any, distribution: Any, discrete: bool) -> ModelError:
    """A latent site can neither be transformed nor enumerated."""
    kind = "cannot be enumerated" if discrete else "has no transform to unconstrained space"
    return ModelError(
        f"latent site '{site}' has support {support} ({type(distribution).__name__}), which {kind}: reparametrise the site "
        "(infer.reparam) or sum it out"
    )


def cannot_score(
    site: str, plates: Sequence[tuple[str, int]], fn: Any, shape: Shape, observed: bool, reason: str
) -> ModelError:
    """The log-probability of a site cannot be computed."""
    within = " and ".join(f"'{name}' of size {size}" for name, size in plates)
    return ModelError(
        f"site '{site}'{' inside plate ' if within else ''}{within} with distribution of batch_shape "
        f"{tuple(fn.batch_shape)} and event_shape {tuple(fn.event_shape)} cannot score its "
        f"{'observed data' if observed else 'value'} of shape {shape}: {reason}"
    )


def no_array(site: str, what: str, wanted: str, value: Any) -> ModelError:
    """A value that a model gives to a site is no array."""
    return ModelError(f"{what} of site '{site}' must be {wanted}, got {type(value).__name__}")


def changing_shape(site: str, now: Shape, first: Shape) -> ModelError:
    """A latent site is not the same in each run."""
    return ModelError(
        f"latent site '{site}' has shape {now} in this run of the model and had {first} in the first one: give the model "
        "the same sites in every run"
    )


def comes_and_goes(site: str) -> ModelError:
    """A latent site is not there in each run."""
    return ModelError(
        f"latent site '{site}' exists only in some runs, or only for some values of the other sites: give the model "
        "the same sites in every run"
    )


def too_coarse(dtype: Any) -> ModelError:
    """Half precision."""
    return ModelError(f"the latent sites are {dtype}, too coarse for a posterior: use float32 or float64")


def no_number(option: str, value: Any, kind: str = "") -> ModelError:
    """A potential returns something that is no real number."""
    return ModelError(f"{option} must return a scalar, got {kind or type(value).__name__}")


def no_gradient(option: str) -> ModelError:
    """A potential cannot be differentiated."""
    return ModelError(
        f"{option} returns a number that does not depend on its argument by operations with a gradient: is it detached, "
        "rounded, or made by NumPy?"
    )


def potential_failed(option: str, reason: str) -> ModelError:
    """A potential raises."""
    return ModelError(f"{option} failed at initial_params: {reason}")


def model_raised(reason: str, evaluations: int) -> ModelError:
    """A model that has worked before raises in the middle of a fit."""
    return ModelError(f"the model failed after {evaluations} evaluations: {reason}")


def point_by_point(reason: str, seconds: float) -> str:
    """A potential is not evaluated for many points at once."""
    return (
        f"the potential is evaluated point by point, and not for many points at once: {reason}. One gradient takes "
        f"{seconds * 1e3:.2g} ms, so 10,000 of them {seconds * 1e4:.0f} s; batched, they would take some fifty times less. "
        f"What can be batched: {links.page('errors', 'performancewarning')}"
    )


def where(phase: str, step: int, total: int) -> str:
    """The point of a training at which something was raised."""
    doing = "while the sampler was measured" if phase == "done" else f"in phase '{phase}'"
    return f"raised {doing}, after {step} of {total} iterations of the training"


def noisy(first: float, second: float) -> ModelError:
    """A potential is random."""
    return ModelError(
        f"two evaluations of the potential at one point differ ({first:.6g} and {second:.6g}): the model draws random "
        "numbers outside of pyro.sample, and has no posterior"
    )


def timed_together() -> SettingsError:
    """A limit of time, where several processes fit together."""
    return SettingsError(
        "max_seconds: processes that share one fit have to end it at the same step, and their clocks differ; give max_gradients"
    )


def seeded_apart(what: str) -> ModelError:
    """Processes that fit together began with other random numbers."""
    return ModelError(
        f"the processes that share these data have different {what}: give the same to all of them, so that they take the same "
        "steps"
    )


def process_lost(reason: str) -> str:
    """A process that shares a fit does not answer."""
    line = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return (
        "another process that shares this fit has ended, or has not answered within the time limit of the process group: this "
        f"one ends too ({line})"
    )


def process_failed(ranks: Sequence[int]) -> str:
    """Processes that share a fit raised an error."""
    return f"process {', '.join(map(str, ranks))} could not evaluate its rows: this one ends too; the reason is said there"


def processes_apart() -> str:
    """Processes that share a fit are no longer at the same points."""
    return (
        "the processes that share this fit are at different points: they must run the same program, with the same settings and "
        "versions, on processors that round alike"
    )


def cannot_share(why: str) -> ModelError:
    """A model whose rows several processes cannot share."""
    return ModelError(
        f"process_group: the rows of this model cannot be shared by processes, as {why}. What they share are rows of observed "
        "sites whose latent sites are the same for all rows"
    )


def same_rows(size: int) -> str:
    """All processes have the same data."""
    return (
        f"each of the {size} processes has the same data: rows are counted {size} times, and the posterior is too narrow. Give "
        "each process its own rows"
    )


def not_copied() -> TypeError:
    """A sampler that shares its rows with other processes."""
    return TypeError("a DFT with process_group cannot be copied: save() it, and load() it in each process")


def nan_in_data(site: str, count: int, total: int) -> ModelError:
    """Observed data hold NaN that no mask covers."""
    return ModelError(
        f"observed data of site '{site}' holds {count} NaN of {total} values: remove them, or mask them (obs_mask=... of the "
        "sample statement) with any finite number in their place"
    )


def outside_support(site: str, count: int, total: int, support: Any, distribution: Any) -> ModelError:
    """Data that their distribution cannot make."""
    return ModelError(
        f"observed data of site '{site}' has {count} of {total} values outside of the support {support} of "
        f"{type(distribution).__name__}"
    )


def invalid_parameters(shares: Mapping[str, float]) -> str:
    """Parameters of distributions out of their range, at a share of the draws."""
    named = ", ".join(f"{name} (at {share:.0%} of the draws)" for name, share in shares.items())
    return (
        f"distributions get parameters that they do not allow, and no draw there means anything: {named}. Bound what they are "
        "computed from, or look with pyro.enable_validation() or numpyro.enable_validation()."
    )


def data_outside(shares: Mapping[str, float]) -> str:
    """Data out of the support of their distributions, at a share of the draws."""
    named = ", ".join(f"{name} (at {share:.0%} of the draws)" for name, share in shares.items())
    return f"observed data are outside of the support of their distributions, whose density means nothing there: {named}."


def would_broadcast(site: str, shape: Shape, plate: str, size: int, dim: int, terms: Shape) -> ModelError:
    """A column of data in a plate of rows makes a square, which nobody means."""
    return ModelError(
        f"observed data of site '{site}' has shape {shape} inside plate '{plate}' of size {size} (dim {dim}): it would be "
        f"broadcast to {terms} terms. Reshape the data or give the plate the matching dim"
    )


def no_valid_start(points: int, explanation: str) -> ModelError:
    """The potential is finite nowhere."""
    return ModelError(
        f"no valid initial point: the potential or its gradient is not finite at any of {points} points. {explanation}"
    )


def not_finite(sites: dict[str, tuple[int, int]], masked_nan: Sequence[str]) -> str | None:
    """Which sites spoil a point: those with (bad, all) terms, or observed ones with NaN under a mask; None without any."""
    if sites:
        named = ", ".join(f"'{name}' ({bad} of {total} terms)" for name, (bad, total) in sites.items())
        return f"At one of them the log-probability is not finite at: {named}"
    if masked_nan:
        return (
            f"Observed data of {list(masked_nan)} holds NaN under a mask, which spoils the gradient: put any finite number "
            "in its place"
        )
    return None


def no_likelihood(reasons: Mapping[str, str]) -> ModelError:
    """No observed site has a log-likelihood for each datum."""
    named = "; ".join(f"'{name}' {reason}" for name, reason in reasons.items())
    return ModelError(f"no observed site has a pointwise log-likelihood: {named}")


def no_weight(draws: int) -> ModelError:
    """No draw has a density under the model."""
    return ModelError(
        f"the posterior density is zero or not finite at all {draws} draws: nothing can be weighed. See diagnostics()"
    )


def unreliable_weights(k_hat: float, threshold: float, ess: float, draws: int) -> str:
    """The importance weights have too heavy a tail."""
    return (
        f"the importance weights are unreliable: k-hat is {k_hat:.2f}, above {threshold:.2f} (effective sample size "
        f"{ess:.0f} of {draws}): the evidence may be far off, by more than its standard error. The sampler misses part of "
        f"the posterior or its tails: see diagnostics() and {links.page('density')}"
    )


def raw_draws_off(errors: list[str]) -> str:
    """Raw draws are served that are known to be off."""
    return (
        f"raw draws differ from the posterior: {'; '.join(errors)}. Refined draws (refine_steps=None) are held against it; see "
        f"drift_raw and joint in diagnostics(), and {links.page('diagnostics')}"
    )


def no_network(option: str, wanted: str, found: Any) -> SettingsError:
    """A user's network is of the wrong kind."""
    return SettingsError(f"{option} must be {wanted}, got {type(found).__name__}")


def network_fails(option: str, dim: int, error: Exception) -> SettingsError:
    """A user's network raises."""
    text = str(error).splitlines()[0] if str(error) else ""
    return SettingsError(f"{option} fails for two points (2, {dim}): {type(error).__name__}: {text}")


def network_shape(option: str, dim: int, shape: Shape) -> SettingsError:
    """A user's network returns something else than points."""
    return SettingsError(
        f"{option} must map points (2, {dim}) to as many finite numbers, got shape {shape}"
        + (" with numbers that are not finite" if shape == (2, dim) else "")
    )


def nothing_to_train(network: str) -> SettingsError:
    """A network has no weights, or only frozen ones."""
    return SettingsError(f"{network} has no parameters to train: is requires_grad switched off?")


def network_missing(path: Any) -> str:
    """A file holds weights of a network that the reader was not given."""
    return f"{path}: the sampler has a generator of the user's own: give it, load(..., options={{'generator': ...}})"


def no_own_network(option: str, given: bool) -> SettingsError:
    """There is no trained network of the user's to hand out."""
    reason = (
        "the Gaussian alone was kept, or a file was read" if given else f"give one, DFT(..., {option}=...)"
    )
    return SettingsError(f"there is no trained {option} of your own: {reason}")


def other_data(fitted: bool) -> ModelError:
    """A kernel is asked for draws of another posterior than the one that its sampler was trained for."""
    if fitted:
        return ModelError(
            "the fitted DFT was trained on other data, or for another model: use DFTKernel(model)"
        )
    return ModelError(
        "the sampler was trained on other data than these, or for another model: call MCMC.warmup again with the new data, "
        "or set post_warmup_state to None, so that MCMC.run trains anew"
    )


def fitted_for_traced_data() -> NotFittedError:
    """The data cannot be compared with those of the fit."""
    return NotFittedError(
        "a fitted DFT cannot be served where its data are traced, as within jax.jit: they could be any. Give MCMC the data as "
        "they are, or none"
    )


def run_is_traced() -> ModelError:
    """A fit chooses its way by numbers, which there are none of under a transformation."""
    return ModelError(
        "DFT.run was called within jax.jit, jax.vmap or the like: a fit chooses its way by numbers. Call it outside "
        "or train by the pure functions DFT.init, update and fit; many data sets are fitted together by fit_many"
    )


def no_verdict_under_a_trace() -> str:
    """Nothing looks at draws of a sampler that is trained while the data are traced."""
    return (
        "the data are traced, as within jax.jit or jax.vmap: the chain is trained by plan, for one mode, and nothing judges its "
        "draws. For a verdict give MCMC the data as they are, or train by DFT.fit and hand the state to DFT.adopt; see "
        f"{links.page('numpyro')}"
    )


def another_posterior(path: Any, differences: Sequence[str]) -> str:
    """A file is of another model, or of other data."""
    return f"{path}: the potential differs from the saved one: another model, or other data ({'; '.join(differences)})"


def rounded_arguments(names: Sequence[str]) -> str:
    """Data that are not the same to the last bit, and make no difference."""
    return (
        f"arguments {', '.join(map(repr, names))} are not the same, to the last bit, as those of the training; the log "
        "density agrees with the saved one within rounding, so the sampler is taken for them"
    )


def no_checkpoint_folder(path: Any, reason: Exception) -> SettingsError:
    """Nothing can be written where the checkpoint is to be."""
    return SettingsError(f"checkpoint={str(path)!r} cannot be written: {type(reason).__name__}: {reason}")


def checkpoint_not_written(path: Any, reason: Exception) -> str:
    """The training goes on without a checkpoint."""
    return (
        f"{path}: the checkpoint could not be written ({type(reason).__name__}: {reason}); the training goes on, and tries "
        "again later without another warning"
    )


def checkpoint_not_removed(path: Any, reason: Exception) -> str:
    """A checkpoint of a complete training is still there."""
    return (
        f"{path}: the training is complete, but its checkpoint could not be removed ({type(reason).__name__}: {reason}); "
        "remove it, or the next run takes it up"
    )


def enumerated_minibatches() -> str:
    """Discrete sites are summed out, and the data are subsampled (NumPyro)."""
    return (
        "the model sums out discrete sites and subsamples its data: training reads all rows, as minibatches of such a model "
        "are biased"
    )
