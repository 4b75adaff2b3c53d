"""Other samplers on a NumPyro model's potential: blackjax' MAMS, ChEES, MEADS and LAPS, and nutpie where it is installed.

All start from uniform points in (-2, 2) of each unconstrained coordinate, as NumPyro does, and have their library's
defaults beside `SETTINGS`. Draws of all but LAPS are thinned, which costs running estimates a little.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cost.methods import Method, Outcome
from benchmarks.cost.targets import Target
from benchmarks.costs import timed

SETTINGS: dict[str, dict[str, Any]] = {
    "nutpie": {"chains": 4, "warmup": 1000, "draws": 1000, "seed": 0},
    "mams": {"chains": 4, "steps": 10_000, "thin": 10, "accept": 0.9, "seed": 0},
    "chees": {
        "chains": 64,
        "warmup": 500,
        "draws": 250,
        "thin": 1,
        "step_size": 0.1,
        "rate": 0.05,
        "seed": 0,
    },
    "meads": {"chains": 128, "warmup": 1000, "draws": 100, "thin": 10, "seed": 0},
    "laps": {"chains": 4096, "first": 500, "second": 300, "seed": 0},
}
NUTPIE_MISSING = "nutpie is not installed; pip install nutpie, best into an environment of its own"


def missing(method: str) -> str | None:
    """Why a method cannot be run here, None where it can."""
    package = "nutpie" if method == "nutpie" else "blackjax"
    if importlib.util.find_spec(package) is not None:
        return None
    return NUTPIE_MISSING if package == "nutpie" else "blackjax is not installed; pip install blackjax"


@dataclass(frozen=True)
class Potential:
    """A NumPyro model as a log density of one flat vector.

    Attributes:
        log_density: Of a vector (d,).
        d: Unconstrained coordinates.
        constrain: Vectors (n, d) to draws {site: (n, *shape)}.
    """

    log_density: Callable[[Any], Any]
    d: int
    constrain: Callable[[Any], dict[str, np.ndarray]]


def potential(target: Target, seed: int) -> Potential:
    """The potential that NumPyro's own kernels see."""
    import jax
    from jax.flatten_util import ravel_pytree
    from numpyro.infer.util import initialize_model

    model, args = target.numpyro()
    info = initialize_model(jax.random.key(seed), model, model_args=args)
    origin, unravel = ravel_pytree(info.param_info.z)
    back = jax.jit(jax.vmap(lambda u: info.postprocess_fn(unravel(u))))
    return Potential(
        lambda u: -info.potential_fn(unravel(u)),
        len(origin),
        lambda u: {k: np.asarray(v) for k, v in back(u).items()},
    )


def _starts(key: Any, chains: int, d: int) -> Any:
    import jax

    return jax.random.uniform(key, (chains, d), minval=-2.0, maxval=2.0)


# Flat draws (chains, n, d), gradients in all and of the warm-up, what the method says.
Result = tuple[Any, float, float | None, str]


def _method(sample: Callable[[Potential, Any, Mapping[str, Any]], Result]) -> Method:
    def run(target: Target, framework: str, settings: Mapping[str, Any]) -> Outcome:
        import jax

        if framework != "numpyro":
            raise ValueError("only NumPyro models have a potential that blackjax and nutpie can run")
        key = jax.random.key(settings["seed"])

        def work() -> tuple[np.ndarray, Result]:
            found = potential(target, settings["seed"])
            result = sample(found, key, settings)
            chains, n, d = result[0].shape
            flat = target.flat(found.constrain(result[0].reshape(-1, d)))
            return flat.reshape(chains, n, -1), result

        (chains, (_, total, warm, said)), cost = timed(work)
        return Outcome(chains, cost, total, warm_gradients=warm, said=said)

    return run


def _transitions(step: Callable[[Any, Any], tuple[Any, Any]], thin: int) -> Callable[[Any, Any], Any]:
    """A scan body of `thin` transitions; collects the position after them and the sum of what `step` gives."""
    import jax

    def body(state: Any, key: Any) -> tuple[Any, Any]:
        state, costs = jax.lax.scan(step, state, jax.random.split(key, thin))
        return state, (state.position, costs.sum())

    return body


def mams(found: Potential, key: Any, settings: Mapping[str, Any]) -> Result:
    """Adjusted microcanonical sampling: chains one after the other, each tuned by itself, random lengths."""
    import jax
    from blackjax import adjusted_mclmc_find_L_and_step_size
    from blackjax.mcmc import adjusted_mclmc_dynamic as mclmc

    lengths = mclmc.make_random_trajectory_length_fn(True)
    transition = mclmc.build_kernel(integration_steps_fn=lengths)
    steps, thin = settings["steps"], settings["thin"]

    def kernel(rng_key: Any, state: Any, **options: Any) -> Any:
        return transition(rng_key=rng_key, state=state, **options)

    def chain(key: Any) -> Any:
        start, first, tune, draw = jax.random.split(key, 4)
        state = mclmc.init(_starts(start, 1, found.d)[0], found.log_density, first)
        state, tuned, used = adjusted_mclmc_find_L_and_step_size(
            kernel, found.log_density, steps, state, tune, target=settings["accept"]
        )

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            state, info = transition(
                key, state, found.log_density, tuned.step_size, inverse_mass_matrix=tuned.inverse_mass_matrix,
                integration_steps_params=(tuned.L / tuned.step_size,),
            )  # fmt: skip
            return state, info.num_integration_steps

        _, (draws, costs) = jax.lax.scan(
            _transitions(step, thin), state, jax.random.split(draw, steps // thin)
        )
        return draws, costs.sum(), used

    # Two gradients in each of McLachlan's steps; tuning is counted in steps as well.
    draws, costs, used = jax.jit(lambda keys: jax.lax.map(chain, keys))(
        jax.random.split(key, settings["chains"])
    )
    warm = 2.0 * float(np.sum(used))
    return draws, warm + 2.0 * float(costs.sum()), warm, f"{settings['chains']} chains"


def chees(found: Potential, key: Any, settings: Mapping[str, Any]) -> Result:
    """Jittered HMC of many chains, its length adapted by ChEES; scales from the ensemble (the library's option)."""
    import jax
    import optax
    from blackjax import chees_adaptation, dynamic_hmc

    chains, thin = settings["chains"], settings["thin"]
    start, tune, draw = jax.random.split(key, 3)
    warmup = chees_adaptation(
        found.log_density, chains, mass_matrix_estimation="diagonal",
        adaptation_info_fn=lambda state, info, adaptation: info.num_integration_steps.sum(),
    )  # fmt: skip

    def all_of_it(start: Any, tune: Any, draw: Any) -> Any:
        (states, parameters), used = warmup.run(
            tune, _starts(start, chains, found.d), settings["step_size"], optax.adam(settings["rate"]),
            settings["warmup"], max_sampling_steps=settings["draws"] * thin,
        )  # fmt: skip
        kernel = dynamic_hmc(found.log_density, **parameters).step

        def step(states: Any, key: Any) -> tuple[Any, Any]:
            states, info = jax.vmap(kernel)(jax.random.split(key, chains), states)
            return states, info.num_integration_steps.sum()

        keys = jax.random.split(draw, settings["draws"])
        _, (draws, costs) = jax.lax.scan(_transitions(step, thin), states, keys)
        return draws, costs.sum(), used.sum()

    draws, costs, used = jax.jit(all_of_it)(start, tune, draw)
    return draws.swapaxes(0, 1), float(used) + float(costs), float(used), f"{chains} chains"


def meads(found: Potential, key: Any, settings: Mapping[str, Any]) -> Result:
    """Generalised HMC of many chains, one gradient a step, tuned by the ensemble in folds."""
    import jax
    from blackjax import ghmc, meads_adaptation

    chains, thin = settings["chains"], settings["thin"]
    start, tune, draw = jax.random.split(key, 3)
    warmup = meads_adaptation(found.log_density, chains, adaptation_info_fn=lambda *_: None)

    def all_of_it(start: Any, tune: Any, draw: Any) -> Any:
        (states, parameters), _ = warmup.run(tune, _starts(start, chains, found.d), settings["warmup"])
        kernel = ghmc(found.log_density, **parameters).step

        def step(states: Any, key: Any) -> tuple[Any, Any]:
            states, _ = jax.vmap(kernel)(jax.random.split(key, chains), states)
            return states, jax.numpy.asarray(chains)

        keys = jax.random.split(draw, settings["draws"])
        return jax.lax.scan(_transitions(step, thin), states, keys)[1][0]

    draws = jax.jit(all_of_it)(start, tune, draw)
    warm = float(chains * settings["warmup"])
    return draws.swapaxes(0, 1), warm + float(chains * settings["draws"] * thin), warm, f"{chains} chains"


def laps(found: Potential, key: Any, settings: Mapping[str, Any]) -> Result:
    """Late-adjusted parallel sampling: thousands of short chains, of which the last states are kept."""
    import jax
    from blackjax.adaptation.laps import laps as sampler

    chains, second = settings["chains"], settings["second"]
    info, per_step, _, state = sampler(
        found.log_density, lambda key: _starts(key, 1, found.d)[0], found.d, settings["first"], second, chains,
        jax.sharding.Mesh(jax.devices()[:1], "chains"), key,
    )  # fmt: skip
    first = len(jax.tree.leaves(info["phase_1"])[0])
    transitions = len(jax.tree.leaves(info["phase_2"])[0])
    # One gradient in a step of the first phase; 15 steps (the default) in a transition of the second.
    used = chains * (1 + first + transitions * 15 * per_step)
    return state.position[:, None], float(used), None, f"{chains} chains, {first} + {transitions} iterations"


def nutpie(found: Potential, key: Any, settings: Mapping[str, Any]) -> Result:
    """Its NUTS with a low-rank metric, chains one after the other; gradients are counted as they are asked for."""
    import jax
    import nutpie as library
    from nutpie.compiled_pyfunc import from_pyfunc

    both = jax.jit(jax.value_and_grad(found.log_density))
    count = [0]

    def log_density(u: np.ndarray, **_: Any) -> tuple[float, np.ndarray]:
        count[0] += 1
        value, gradient = both(u)
        return float(value), np.asarray(gradient, np.float64)

    compiled = from_pyfunc(
        found.d, lambda: log_density, lambda *_: lambda u, **__: {"u": np.asarray(u, np.float64)},
        [np.dtype("float64")], [(found.d,)], ["u"],
        make_initial_point_fn=lambda seed: np.asarray(_starts(jax.random.fold_in(key, seed % 2**31), 1, found.d)[0], float),
    )  # fmt: skip
    trace = library.sample(
        compiled, draws=settings["draws"], tune=settings["warmup"], chains=settings["chains"], cores=1,
        seed=settings["seed"], progress_bar=False, low_rank_modified_mass_matrix=True, save_warmup=False,
    )  # fmt: skip
    stats = trace.sample_stats
    divergences = int(stats["diverging"].sum())
    total = float(count[0])
    warm = max(0.0, total - float(stats["n_steps"].sum()))
    return np.asarray(trace.posterior["u"]), total, warm, f"{divergences} divergences"


METHODS: dict[str, Method] = {
    name: _method(sample)
    for name, sample in (
        ("nutpie", nutpie),
        ("mams", mams),
        ("chees", chees),
        ("meads", meads),
        ("laps", laps),
    )
}
