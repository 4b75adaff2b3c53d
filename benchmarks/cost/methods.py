"""Our fit and the frameworks' NUTS on one target: draws, costs, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import nuts
from benchmarks.cost.targets import Target
from benchmarks.costs import Cost, timed
from benchmarks.methods import verdict
from pyro_dft.judging.verdict import Diagnostics


@dataclass(frozen=True)
class Outcome:
    """What one method gave.

    Attributes:
        chains: Draws (chains, n, D) in the order in which they were made; one chain where they have no order.
        cost: Of everything from the model to the draws.
        gradients: Evaluations of the model's gradient, warm-up included.
        warm_gradients: Those of the warm-up; None where draws and warm-up are not told apart.
        said: Verdict or divergences.
        flagged: Whether that is an alarm.
        notes: Anything else worth keeping with the row.
    """

    chains: np.ndarray
    cost: Cost
    gradients: float
    warm_gradients: float | None = None
    said: str = ""
    flagged: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


Method = Callable[[Target, str, Mapping[str, Any]], Outcome]


def dft(target: Target, framework: str, settings: Mapping[str, Any]) -> Outcome:
    """Our defaults, and the kept draws of ``get_samples()``."""
    if framework == "pyro":
        from pyro_dft.pyro import DFT

        model, args = target.pyro()
        fit: Any = DFT(model, seed=settings["seed"], disable_progbar=True)
    else:
        import jax

        from pyro_dft.numpyro import DFT as NumPyroDFT

        model, args = target.numpyro()
        args = (jax.random.key(settings["seed"]), *args)
        fit = NumPyroDFT(model, disable_progbar=True)
    _, fitting = timed(lambda: fit.run(*args))
    samples, drawing = timed(lambda: {k: np.asarray(v) for k, v in fit.get_samples().items()})
    report = fit.diagnostics()
    said, flagged = verdict(report)
    flat = target.flat(samples, framework)
    return Outcome(
        flat[None], fitting + drawing, float(report["gradient_evaluations"]), said=said, flagged=flagged,
        notes={"facts": Diagnostics(report).to_json(), "warnings": [str(w) for w in report.get("warnings", [])]},
    )  # fmt: skip


def frameworks_nuts(target: Target, framework: str, settings: Mapping[str, Any]) -> Outcome:
    """NUTS with the framework's defaults, chains one after the other."""
    return _pyro_nuts(target, settings) if framework == "pyro" else _numpyro_nuts(target, settings)


def _pyro_nuts(target: Target, settings: Mapping[str, Any]) -> Outcome:
    runs = [_pyro_chain(target, chain, settings) for chain in range(settings["chains"])]
    divergences = sum(run.notes["divergences"] for run in runs)
    return Outcome(
        np.concatenate([run.chains for run in runs]), sum((run.cost for run in runs), Cost(0.0, 0.0, 0.0)),
        sum(run.gradients for run in runs), warm_gradients=sum(run.warm_gradients or 0.0 for run in runs),
        said=f"{divergences} divergences", flagged=divergences > 0,
    )  # fmt: skip


def _pyro_chain(target: Target, chain: int, settings: Mapping[str, Any]) -> Outcome:
    import pyro
    from pyro.infer import MCMC, NUTS

    model, args = target.pyro()
    pyro.clear_param_store()
    pyro.set_rng_seed(settings["seed"] + chain)
    warm = [0]
    with nuts.counted_gradients() as count:

        def note(kernel: Any, samples: Any, stage: str, i: int) -> None:
            if stage.startswith("Warmup"):
                warm[0] = count[0]

        mcmc = MCMC(
            NUTS(model), num_samples=settings["draws"], warmup_steps=settings["warmup"], disable_progbar=True,
            hook_fn=note,
        )  # fmt: skip
        _, cost = timed(lambda: mcmc.run(*args))
    divergences = sum(len(v) for v in mcmc.diagnostics()["divergences"].values())
    flat = target.flat(mcmc.get_samples(), "pyro")
    return Outcome(flat[None], cost, float(count[0]), float(warm[0]), notes={"divergences": divergences})


def _numpyro_nuts(target: Target, settings: Mapping[str, Any]) -> Outcome:
    import jax
    from numpyro.infer import MCMC

    from benchmarks.cost.counting import counting_nuts

    model, args = target.numpyro()
    mcmc = MCMC(
        counting_nuts(model), num_warmup=settings["warmup"], num_samples=settings["draws"],
        num_chains=settings["chains"], chain_method="sequential", progress_bar=False,
    )  # fmt: skip

    def sample() -> dict[str, np.ndarray]:
        mcmc.run(
            jax.random.key(settings["seed"]), *args, extra_fields=("num_steps", "diverging", "total_steps")
        )
        return {name: np.asarray(value) for name, value in mcmc.get_samples().items()}

    samples, cost = timed(sample)
    extra = {k: np.asarray(v) for k, v in mcmc.get_extra_fields(group_by_chain=True).items()}
    total, divergences = float(extra["total_steps"][:, -1].sum()), int(extra["diverging"].sum())
    chains = target.flat(samples).reshape(settings["chains"], settings["draws"], -1)
    return Outcome(
        chains, cost, total, warm_gradients=total - float(extra["num_steps"].sum()),
        said=f"{divergences} divergences", flagged=divergences > 0,
    )  # fmt: skip
