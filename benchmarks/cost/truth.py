"""References of the cost benchmark: exact draws, or four long chains of NUTS; only moments and quantiles are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost.accuracy import Reference
from benchmarks.cost.targets import Target
from benchmarks.costs import timed

FOLDER = Path(__file__).resolve().parents[1] / "references" / "cost"
CHAINS, ACCEPT, SEED = 4, 0.9, 0
EXACT_DRAWS = 400_000


def path(target: Target) -> Path:
    """File of a reference."""
    return FOLDER / f"{target.name}.npz"


def load(target: Target) -> Reference | None:
    """The reference of a target, None where it has not been made (``--references`` makes it)."""
    file = path(target)
    if not file.exists():
        return None
    with np.load(file) as f:
        mean, sd = f["mean"].astype(np.float64), f["sd"].astype(np.float64)
        quantiles = mean + sd * f["quantiles"].astype(np.float64)
        meta = json.loads(str(f["meta"]))
        return Reference(mean, sd, quantiles, f["square_sd"].astype(np.float64), tuple(f["sites"]), meta)


def store(reference: Reference, file: Path) -> None:
    """Write a reference: quantiles in sds from the mean in half precision (they move by 0.001 sd), the rest in single."""
    sd = np.where(reference.sd > 0, reference.sd, 1.0)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        file,
        mean=reference.mean.astype(np.float32),
        sd=reference.sd.astype(np.float32),
        quantiles=((reference.quantiles - reference.mean) / sd).astype(np.float16),
        square_sd=reference.square_sd.astype(np.float32),
        sites=np.asarray(reference.sites),
        meta=np.asarray(json.dumps(reference.meta)),
    )


def make(target: Target) -> Reference:
    """The reference of a target; NumPyro's model in double precision where it has to be sampled."""
    if target.exact is not None:
        draws = target.exact(target.make(), EXACT_DRAWS, np.random.default_rng(SEED))
        sites = sorted(draws)
        flat = np.concatenate([draws[name].reshape(EXACT_DRAWS, -1) for name in sites], axis=1)
        return Reference.of(
            flat, sites, {"sampler": "independent exact draws", "draws": EXACT_DRAWS, "seed": SEED}
        )
    return _long_chains(target)


def _long_chains(target: Target) -> Reference:
    import jax
    import numpyro
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    numpyro.enable_x64()
    warmup, number = target.reference
    model, args = target.numpyro()
    mcmc = MCMC(
        NUTS(model, target_accept_prob=ACCEPT), num_warmup=warmup, num_samples=number, num_chains=CHAINS,
        chain_method="sequential", progress_bar=False,
    )  # fmt: skip
    _, cost = timed(lambda: mcmc.run(jax.random.key(SEED), *args))
    sites = list(target.sites("numpyro"))
    flat = target.flat({k: np.asarray(v) for k, v in mcmc.get_samples().items()})
    chains = flat.reshape(CHAINS, number, -1)
    live = chains[..., flat.std(0) > 0]
    meta: dict[str, Any] = {
        "sampler": "NumPyro NUTS, float64", "chains": CHAINS, "warmup": warmup, "draws": number,
        "target_accept": ACCEPT, "seed": SEED, "cpu_seconds": round(cost.cpu, 1),
        "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
        "worst_rhat": round(float(split_gelman_rubin(live).max()), 4),
        "smallest_ess": round(float(min(effective_sample_size(live).min(), effective_sample_size(live**2).min()))),
    }  # fmt: skip
    return Reference.of(flat, sites, meta)


def words(reference: Reference | None) -> str:
    """A reference in a few words."""
    if reference is None:
        return "none yet"
    m = reference.meta
    if "chains" not in m:
        return f"{m['draws']:,} {m['sampler']}"
    return (
        f"{m['chains']} x ({m['warmup']:,} + {m['draws']:,}) {m['sampler']}: worst R-hat {m['worst_rhat']:.3f}, smallest "
        f"ESS {m['smallest_ess']:,}, {m['divergences']} divergences"
    )
