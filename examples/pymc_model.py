"""A PyMC model, sampled in the place of `pm.sample`: ``python examples/pymc_model.py``.

`pm.sample` has no door for samplers of others, but PyMC makes a function in jax of any model with continuous variables, and a
function is what `DFTKernel(potential_fn=...)` takes. Needs `pip install pymc` beside the package. A bambi model `b` is sampled as
``sample(b.backend.model)`` after ``b.build()``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pymc as pm
from numpyro.infer import MCMC
from pymc.sampling.jax import get_jaxified_graph, get_jaxified_logp

from pyro_dft.numpyro import DFTKernel


def sample(model: pm.Model, draws: int = 2000, seed: int = 0) -> tuple[dict[str, np.ndarray], Any]:
    """Draws from the posterior of a PyMC model.

    Args:
        model: Its free variables are continuous.
        draws: How many.
        seed: Of the fit and of the draws.

    Returns:
        Draws of all unobserved variables by name, (draws, *shape) each, in the model's own spaces; the diagnostics of the fit.

    Raises:
        ValueError: the model has discrete variables.
    """
    if model.discrete_value_vars:
        raise ValueError(
            f"discrete variables: {', '.join(v.name for v in model.discrete_value_vars)}; sum them out"
        )
    start = model.initial_point()
    # Minus the log density, over the unconstrained values in their order.
    potential = get_jaxified_logp(model, negative_logp=False)
    values = [jnp.asarray(start[value.name]) for value in model.value_vars]
    if not np.allclose(potential(values), -model.compile_logp()(start)):
        raise ValueError(
            "get_jaxified_logp gives something else than minus the log density in this version of PyMC"
        )
    mcmc = MCMC(DFTKernel(potential_fn=potential), num_warmup=0, num_samples=draws, progress_bar=False)
    mcmc.run(jax.random.key(seed), init_params=values)
    constrain = jax.vmap(get_jaxified_graph(model.value_vars, model.unobserved_value_vars))
    found = constrain(*mcmc.get_samples())
    names = [variable.name for variable in model.unobserved_value_vars]
    return dict(zip(names, map(np.asarray, found), strict=True)), mcmc.sampler.diagnostics[0]


def schools() -> pm.Model:
    """Eight schools, non-centred: nothing else non-centres a bare potential."""
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    with pm.Model(coords={"school": range(8)}) as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        offset = pm.Normal("offset", 0.0, 1.0, dims="school")
        theta = pm.Deterministic("theta", mu + tau * offset, dims="school")
        pm.Normal("y", theta, errors, observed=effects)
    return model


def main() -> None:
    """Eight schools: means, sds and the verdict."""
    draws, diagnostics = sample(schools())
    for name in ("mu", "tau", "theta"):
        print(f"{name:6} mean {np.round(draws[name].mean(0), 2)}  sd {np.round(draws[name].std(0), 2)}")
    print("verdict:", diagnostics["status"])


if __name__ == "__main__":
    main()
