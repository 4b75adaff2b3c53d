"""Other methods of NumPyro's users on four posteriors: ``python -m benchmarks.posteriordb.rivals [names]``.

Writes ``benchmarks/results/rivals.md`` and ``.csv``; rows of DFT and NUTS come from ``posteriordb_numpyro.json``. Finished
cells are kept below ``benchmarks/.cache`` and not run again; ``--fresh`` runs all again, ``--table`` only prints. Every cell
starts from a cold cache and its CPU seconds include compilation.

Every method gets the model as it is written and its library's defaults, with the few settings of ``SETTINGS``.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cache, metrics, nuts, table
from benchmarks.command_line import chosen
from benchmarks.costs import timed
from benchmarks.models.case import Case
from benchmarks.posteriordb import __main__ as posteriordb
from benchmarks.posteriordb import bars, case
from benchmarks.posteriordb.posteriors import POSTERIORS
from benchmarks.references import Reference

NAMES = (
    "kidiq-kidscore_interaction",
    "eight_schools-eight_schools_noncentered",
    "mesquite-logmesquite",
    "hmm_example-hmm_example",
)
OURS = ("nuts", "dft-raw", "dft-refined")
NUM_DRAWS = 10_000
SEED = 0
SVI_SETTINGS = {"steps": 10_000, "lr": 1e-3, "draws": NUM_DRAWS, "seed": SEED}
# What defines a cell; its key holds these, so that a change makes a new one.
SETTINGS: dict[str, dict[str, Any]] = {
    "AutoMultivariateNormal": SVI_SETTINGS,
    "AutoIAFNormal": SVI_SETTINGS,
    "AutoMultivariateNormal (0.01)": {**SVI_SETTINGS, "lr": 1e-2},
    "AutoIAFNormal (0.01)": {**SVI_SETTINGS, "lr": 1e-2},
    "Pathfinder": {"paths": 1, "draws": NUM_DRAWS, "seed": SEED},
    "multi-path Pathfinder": {"paths": 10, "draws": NUM_DRAWS, "seed": SEED},
    "SVGD": {"particles": 100, "steps": 10_000, "lr": 0.05, "seed": SEED},
    "NeuTra": {**SVI_SETTINGS, "lr": 1e-2, "chains": 1, "warmup": 1000, "draws": 4000},
}
# A row has its number of draws in place of gradients, which no other library counts.
COLUMNS: table.Columns = tuple(
    ("draws", "draws", "{}") if field == "gradients" else (heading, field, form)
    for heading, field, form in posteriordb.COLUMNS
)

# Draws {site: (n, *shape)} on the model's scale and what the method says of itself.
Result = tuple[Mapping[str, Any], str]
Method = Callable[[Callable[..., None], Sequence[Any], Mapping[str, Any]], Result]


def _trained(guide: Any, model: Callable[..., None], args: Sequence[Any], settings: Mapping[str, Any]) -> Any:
    """Result of SVI with Adam; has ``params`` and ``losses`` (steps,)."""
    import jax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.optim import Adam

    svi = SVI(model, guide, Adam(settings["lr"]), Trace_ELBO())
    return svi.run(jax.random.key(settings["seed"]), settings["steps"], *args, progress_bar=False)


def _loss(result: Any) -> str:
    """The end of training in words: one step's loss is noisy."""
    losses = np.asarray(result.losses)
    return f"loss {losses[-len(losses) // 10 :].mean():.1f}"


def _guide(kind: str) -> Method:
    """A method that draws from an automatic guide of this class."""

    def run(model: Callable[..., None], args: Sequence[Any], settings: Mapping[str, Any]) -> Result:
        import jax
        from numpyro.infer import autoguide

        guide = getattr(autoguide, kind)(model)
        result = _trained(guide, model, args, settings)
        key = jax.random.key(settings["seed"] + 1)
        shape = (settings["draws"],)
        return guide.sample_posterior(key, result.params, sample_shape=shape), _loss(result)

    return run


def neutra(model: Callable[..., None], args: Sequence[Any], settings: Mapping[str, Any]) -> Result:
    """NUTS in the coordinates of an inverse autoregressive flow that SVI has trained before."""
    import jax
    from numpyro.diagnostics import summary
    from numpyro.infer import MCMC, NUTS
    from numpyro.infer.autoguide import AutoIAFNormal
    from numpyro.infer.reparam import NeuTraReparam

    guide = AutoIAFNormal(model)
    flow = NeuTraReparam(guide, _trained(guide, model, args, settings).params)
    mcmc = MCMC(
        NUTS(flow.reparam(model)),
        num_warmup=settings["warmup"],
        num_samples=settings["draws"],
        num_chains=settings["chains"],
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(settings["seed"] + 1), *args)
    by_chain = mcmc.get_samples(group_by_chain=True)
    latent = {k: v for k, v in by_chain.items() if k.endswith("_shared_latent")}
    rhat = max(float(np.max(v["r_hat"])) for v in summary(latent).values())
    divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    samples = flow.transform_sample(mcmc.get_samples()[next(iter(latent))])
    return samples, f"{divergences} divergences, R-hat {rhat:.2f}"


def svgd(model: Callable[..., None], args: Sequence[Any], settings: Mapping[str, Any]) -> Result:
    """Stein variational gradient descent, kernel and optimizer as NumPyro recommends them."""
    import jax
    from numpyro import handlers
    from numpyro.contrib.einstein import SVGD, RBFKernel
    from numpyro.distributions import ImproperUniform, biject_to
    from numpyro.infer import Predictive, init_to_uniform
    from numpyro.optim import Adagrad

    def feasible(site: Mapping[str, Any]) -> Any:
        # SVGD traces the model with draws from its prior once; an improper prior has none
        if isinstance(site.get("fn"), ImproperUniform):
            transform = biject_to(site["fn"].support)
            return transform(np.zeros(transform.inverse_shape(site["fn"].shape())))
        return None

    stein = SVGD(
        model,
        Adagrad(settings["lr"]),
        RBFKernel(),
        num_stein_particles=settings["particles"],
        guide_kwargs={"init_loc_fn": init_to_uniform},
    )
    stein.model = handlers.substitute(model, substitute_fn=feasible)  # the guide keeps its random starts
    result = stein.run(jax.random.key(settings["seed"]), settings["steps"], *args, progress_bar=False)
    sites = {k.removesuffix("_auto_loc"): v for k, v in result.params.items()}
    more = Predictive(model, sites)(jax.random.key(settings["seed"] + 1), *args)  # deterministic sites
    return {**more, **sites}, _loss(result)


def pathfinder(model: Callable[..., None], args: Sequence[Any], settings: Mapping[str, Any]) -> Result:
    """BlackJAX's Pathfinder on NumPyro's unconstrained coordinates; more than one path ends in PSIS resampling."""
    import jax
    import jax.numpy as jnp
    from blackjax.vi import multipathfinder
    from blackjax.vi import pathfinder as single
    from numpyro.infer.util import initialize_model

    start, path, draw = jax.random.split(jax.random.key(settings["seed"]), 3)
    num_paths, n = settings["paths"], settings["draws"]
    starts = jax.random.split(start, num_paths) if num_paths > 1 else start
    info = initialize_model(starts, model, model_args=tuple(args))
    origin = info.param_info.z
    if num_paths == 1:
        state, _ = jax.jit(lambda k, z: single.approximate(k, lambda u: -info.potential_fn(u), z))(
            path, origin
        )
        samples, _ = single.sample(draw, state, n)
        return jax.vmap(info.postprocess_fn)(samples), f"ELBO {float(np.max(state.elbo)):.1f}"

    def fit(k: Any, z: Any) -> tuple[Any, Any, Any]:
        state, _ = multipathfinder.multi_approximate(k, lambda u: -info.potential_fn(u), z, n // num_paths)
        return state.samples, *multipathfinder.psis_weights(state)

    samples, log_weights, k = jax.jit(fit)(path, origin)
    index = jax.random.categorical(draw, jnp.ravel(log_weights), shape=(n,))
    samples = {name: v.reshape(-1, *v.shape[2:])[index] for name, v in samples.items()}
    return jax.vmap(info.postprocess_fn)(samples), f"Pareto k {float(k):.2f}"


METHODS: dict[str, Method] = {
    **{m: _guide(m.split()[0]) for m in SETTINGS if m.startswith("Auto")},
    "Pathfinder": pathfinder,
    "multi-path Pathfinder": pathfinder,
    "SVGD": svgd,
    "NeuTra": neutra,
}


def measure(
    one: Case, truth: Reference, run: Method, settings: Mapping[str, Any], name: str = ""
) -> table.Row:
    """Errors and costs of one method; a method that raises or gives nothing finite has its message and no errors."""
    import jax

    row: table.Row = {"model": one.name, "d": len(truth.mean), "method": name, "flagged": False}
    model, args = one.numpyro()
    jax.clear_caches()  # compilation is part of the cost

    def task() -> tuple[dict[str, np.ndarray], str]:
        samples, said = run(model, args, settings)
        return {k: np.asarray(v) for k, v in samples.items()}, said

    try:
        (samples, said), cost = timed(task)
        flat = one.flat(samples)
    except Exception as error:  # one failing method must not lose the other rows
        return row | {"said": f"{type(error).__name__}: {error}"[:200]}
    row |= {"said": said, "draws": len(flat), **cost.to_json("numpyro")}
    if np.isfinite(flat).all(1).sum() < 2:
        return row | {"said": f"{said}; no finite draws"}
    return row | metrics.errors(flat, truth).to_dict()


def kept(folder: Path, make: Callable[[], table.Row], fresh: bool = False) -> table.Row:
    """A row from the disk, made and stored first if it is not there."""
    path = folder / "row.json"
    if fresh or not path.exists():
        row = make()
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
    return json.loads(path.read_text())


def our_rows(name: str, store: Path) -> list[table.Row]:
    """The rows of NUTS and DFT that the command of the package has stored for this posterior."""
    rows = table.stored(store)
    draws = dict.fromkeys(OURS, NUM_DRAWS) | {"nuts": nuts.CHAINS * nuts.DRAWS}
    found = [rows[f"{name}/{method}"] for method in OURS if f"{name}/{method}" in rows]
    return [
        {k: v for k, v in r.items() if k not in ("facts", "warnings")} | {"draws": draws[r["method"]]}
        for r in found
    ]


def notes() -> list[str]:
    """How the methods were run."""
    svi, stein, chains = (SETTINGS[k] for k in ("AutoMultivariateNormal", "SVGD", "NeuTra"))
    return [
        "no method was tuned to a posterior and no predictor scaled: models are as published and in single precision, "
        "all else has its library's defaults; scaled predictors or longer training would help some of the rows",
        f"AutoMultivariateNormal, AutoIAFNormal: SVI, {svi['steps']:,} steps of Adam with a step size of {svi['lr']:g} "
        f"(0.01 in the rows that say so), one draw for each gradient, then {svi['draws']:,} draws",
        f"NeuTra: AutoIAFNormal (step size {chains['lr']:g}), then NUTS in its coordinates, {chains['chains']} chain x "
        f"({chains['warmup']} + {chains['draws']})",
        f"SVGD: numpyro.contrib.einstein.SVGD (AutoDelta, RBF kernel), {stein['particles']} particles from uniform "
        f"starts, {stein['steps']:,} steps of Adagrad ({stein['lr']:g}, as in its documentation); the particles are its "
        "draws, so that outer quantiles are coarse; it cannot trace a model with an improper prior as it is written: "
        "such sites get a fixed value in its first trace only",
        f"Pathfinder: BlackJAX, one path, default settings, {NUM_DRAWS:,} draws; multi-path Pathfinder: "
        f"{SETTINGS['multi-path Pathfinder']['paths']} paths, {NUM_DRAWS:,} draws resampled with its smoothed weights; its "
        "evidence bounds lie far below those of the guides, so its optimiser probably stops early in single precision",
        "CPU seconds include compilation; nuts, dft-raw and dft-refined are the rows of posteriordb_numpyro",
        "the bar is that of the package's benchmark (dft-raw has its wider one); 'as NUTS': outside, and no worse than "
        "NUTS, which is outside too",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="of the four posteriors, or parts of their names; default all"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--fresh", action="store_true", help="run cells again although they are there")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args(arguments)
    wanted = chosen(parser, options.methods, METHODS)
    names = [n for n in NAMES if not options.names or any(part in n for part in options.names)]
    folders = {
        (n, m): cache.cell(case.PosteriorCase(POSTERIORS[n]), m, SETTINGS[m], "numpyro")
        for n in NAMES for m in METHODS
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what became of a method is in its errors
        # method by method: the slow ones come last for all posteriors
        for m, n in [] if options.table else [(m, n) for m in METHODS if m in wanted for n in names]:
            one, truth = case.PosteriorCase(POSTERIORS[n]), case.reference(POSTERIORS[n])
            row = kept(folders[n, m], lambda: measure(one, truth, METHODS[m], SETTINGS[m], m), options.fresh)  # noqa: B023
            print(table.plain([row], COLUMNS), flush=True)
    rows = []
    for n in NAMES:
        rows += our_rows(n, posteriordb.RESULTS / "posteriordb_numpyro.json")
        rows += [json.loads(p.read_text()) for m in METHODS if (p := folders[n, m] / "row.json").exists()]
    if rows:
        done = bars.judged(rows)
        print("\n".join([table.plain(done, COLUMNS), *notes()]))
        table.write(done, notes(), posteriordb.RESULTS / "rivals", COLUMNS)


if __name__ == "__main__":
    main()
