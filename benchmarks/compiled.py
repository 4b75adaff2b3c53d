"""What compiled training and drawing cost on NumPyro: ``python -m benchmarks.compiled [draws|chains|datasets]``.

Prints, and writes to ``benchmarks/results/compiled.md``:

- draws: wall time for each of a million raw draws of the 31-parameter logistic posterior against NUTS' sampling time
  for each effective draw, both without compilation and training, and how many draws pay for the training;
- chains: `run` with four chains together against one, from a cold cache and with the programs compiled;
- datasets: `fit` of 64 data sets of one shape (500 x 10 logistic regressions) by `vmap` against one after the other.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS

from benchmarks.models.registry import BENCHMARKS
from pyro_dft.experimental import grouped
from pyro_dft.numpyro import DFT

RESULTS = Path(__file__).resolve().parent / "results" / "compiled"
MODEL = "breast_cancer"
# Of the many data sets: the ratio of two times does not need whole trainings.
BRIEF = grouped({"precondition_steps": 50, "num_steps": 100})


def seconds(task: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds until the result of a task is there, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(task())
    return time.perf_counter() - start, result


def draws(count: int = 1_000_000) -> list[str]:
    """Cost of a raw draw against that of an effective draw of NUTS."""
    import arviz as az

    model, args = BENCHMARKS[MODEL].numpyro()
    raw, training = {}, {}
    for train in ("auto", "always"):
        jax.clear_caches()
        dft = DFT(model, disable_progbar=True, train=train)
        training[train], _ = seconds(lambda dft=dft: dft.run(jax.random.key(0), *args))
        dft.get_samples(count, refine_steps=0)  # compiles
        times = [seconds(lambda dft=dft: dft.get_samples(count, refine_steps=0))[0] for _ in range(3)]
        raw[train] = dft.diagnostics()["objective"], min(times) / count
    before, _ = seconds(lambda: _warm(_nuts(model, 1), args))
    # Each run compiles again: the difference of a long and a short one is sampling alone.
    short, long = 1_000, 11_000
    cost = {}
    for n in (short, long):
        mcmc = _nuts(model, n)
        _warm(mcmc, args)
        cost[n], _ = seconds(lambda mcmc=mcmc: _sampled(mcmc, args))
    sampling = cost[long] - cost[short]
    kept = az.from_dict(posterior={k: np.asarray(v)[None] for k, v in mcmc.get_samples().items()})
    effective = min(float(v.min()) for v in az.ess(kept).data_vars.values()) * (long - short) / long
    each = sampling / effective
    lines = [
        f"NUTS: {each * 1e6:.0f} us of sampling for each effective draw ({sampling:.2f} s for {long - short:,} draws, bulk "
        f"ESS {effective:.0f} at least); warm-up {before:.1f} s with compilation"
    ]
    for train, (objective, own) in raw.items():
        pays, pays_after = (max(0.0, t / (each - own)) for t in (training[train], training[train] - before))
        lines.append(
            f"DFT, train={train!r} ({objective}): {own * 1e6:.2f} us for each raw draw of {count:,} ({MODEL}), ratio "
            f"{each / own:.0f} (target at least 300); break-even: training takes {training[train]:.1f} s with compilation, "
            f"which {pays:,.0f} effective draws pay for, {pays_after:,.0f} where NUTS' warm-up is counted too"
        )
    return lines


def _nuts(model: Any, draws: int) -> MCMC:
    return MCMC(NUTS(model), num_warmup=1000, num_samples=draws, progress_bar=False)


def _warm(mcmc: MCMC, args: tuple[Any, ...]) -> Any:
    mcmc.warmup(jax.random.key(0), *args)
    return mcmc.post_warmup_state.z


def _sampled(mcmc: MCMC, args: tuple[Any, ...]) -> Any:
    mcmc.run(mcmc.post_warmup_state.rng_key, *args)
    return mcmc.get_samples()


def chains() -> list[str]:
    """Four chains trained together against one."""
    model, args = BENCHMARKS[MODEL].numpyro()
    lines = []
    for train in ("auto", "always"):
        cost: dict[tuple[int, str], float] = {}
        for k in (1, 4):
            jax.clear_caches()
            for state in ("cold", "compiled"):
                dft = DFT(model, num_chains=k, disable_progbar=True, train=train)
                cost[k, state], _ = seconds(lambda dft=dft: dft.run(jax.random.key(0), *args))
        for state in ("cold", "compiled"):
            one, four = cost[1, state], cost[4, state]
            lines.append(
                f"train={train!r}, {state}: 1 chain {one:.1f} s, 4 chains {four:.1f} s, ratio {four / one:.2f} "
                "(target at most 3)"
            )
    return lines


def logistic(x: Any, y: Any) -> None:
    """Logistic regression."""
    import numpyro
    import numpyro.distributions as dist

    beta = numpyro.sample("beta", dist.Normal(np.zeros(x.shape[1], np.float32), 1.0).to_event(1))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def datasets(count: int = 64, rows: int = 500, columns: int = 10) -> list[str]:
    """Many data sets at once against one after the other; rounding grows in training, so in both precisions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, rows, columns))
    truth = rng.normal(size=(count, columns))
    y = (rng.uniform(size=(count, rows)) < 1 / (1 + np.exp(-np.einsum("nij,nj->ni", x, truth)))).astype(float)
    return [_datasets(x, y, precision) for precision in ("float32", "float64")]


def _datasets(x: np.ndarray, y: np.ndarray, precision: str) -> str:
    count, key = len(x), jax.random.key(0)
    with jax.enable_x64(precision == "float64"):
        x, y = x.astype(precision), y.astype(precision)
        dft = DFT(logistic, disable_progbar=True, **BRIEF)
        one = jax.jit(dft.fit).lower(key, x[0], y[0]).compile()
        many = jax.jit(jax.vmap(dft.fit, in_axes=(None, 0, 0))).lower(key, x, y).compile()
        apart, singles = seconds(lambda: [one(key, x[i], y[i])[0] for i in range(count)])
        together, states = seconds(lambda: many(key, x, y)[0])
        draw = jax.jit(lambda state, a, b: dft.draw(key, state, 100, a, b)["beta"])
        alike = 0.0
        for i in range(count):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], states)
            difference = draw(singles[i], x[i], y[i]) - draw(own, x[i], y[i])
            alike = max(alike, float(np.abs(difference).max()))
    iterations, ratio = sum(BRIEF.values()), together / apart
    return (
        f"{precision}, {iterations} iterations: {apart / count:.2f} s for each data set one after the other, "
        f"{together / count:.2f} s together, ratio {ratio:.2f} (target at most 1); draws of the two differ by at most "
        f"{alike:.1e}"
    )


PARTS = {"draws": draws, "chains": chains, "datasets": datasets}


def main() -> None:
    """Measures what is asked for and writes everything that was measured so far."""
    parser = argparse.ArgumentParser(prog="benchmarks.compiled", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    store = RESULTS.with_suffix(".json")
    found: dict[str, list[str]] = json.loads(store.read_text()) if store.exists() else {}
    for part in parser.parse_args().parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[part] = PARTS[part]()
        print("\n".join(found[part]), flush=True)
        store.write_text(json.dumps(found, indent=1))
    text = ["# `python -m benchmarks.compiled`", ""]
    for part, lines in found.items():
        text += [f"## {part}", "", *(f"- {line}" for line in lines), ""]
    RESULTS.with_suffix(".md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
