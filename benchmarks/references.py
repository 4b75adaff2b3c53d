"""Reference posteriors: small npz files under ``benchmarks/references``, made once by ``--make-references``.

A file holds, in flat unconstrained coordinates, the moments and quantiles of all reference draws, 4,000 of
these draws (for distances between samples), and 10,000 draws of *other* chains, which give the row that no
method can beat. The draws come from float64 NumPyro NUTS on the same density (8 chains; the first four are
the reference, the other four the floor), or from posteriordb where the posterior is one of theirs; then the
floor is our own run, so that the floor row also checks our model against theirs.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.models.registry import Benchmark

FOLDER = Path(__file__).resolve().parent / "references"
QUANTILES = (0.05, 0.5, 0.95)
CHAINS, WARMUP, DRAWS = 8, 1000, 5_000
KEPT_REFERENCE, KEPT_FLOOR = 4_000, 10_000


@dataclass(frozen=True)
class Reference:
    """What errors are measured against; d coordinates.

    Attributes:
        names: Coordinate names (d).
        mean: (d,).
        sd: (d,).
        quantiles: (3, d), at 5, 50 and 95 %.
        covariance: (d, d).
        draws: (4000, d) of the reference draws.
        floor: (10000, d) independent of all of the above.
        rhat: (d,) over all chains of the NumPyro run.
        ess: (d,) bulk effective sample size of the NumPyro run.
        meta: Settings and origin.
    """

    names: list[str]
    mean: np.ndarray
    sd: np.ndarray
    quantiles: np.ndarray
    covariance: np.ndarray
    draws: np.ndarray
    floor: np.ndarray
    rhat: np.ndarray
    ess: np.ndarray
    meta: dict[str, Any]


def load(name: str) -> Reference:
    """Read a reference.

    Raises:
        FileNotFoundError: there is none; the message gives the command that makes it.
    """
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"no reference for {name!r}: run python -m benchmarks.swap --make-references --models {name}"
        )
    with np.load(path) as f:
        wide = {k: f[k].astype(np.float64) for k in f.files if k not in ("names", "meta")}
        return Reference(names=[str(s) for s in f["names"]], meta=json.loads(str(f["meta"])), **wide)


def sample_numpyro(benchmark: Benchmark, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Float64 NUTS of the NumPyro twin: {site: (CHAINS, DRAWS, *shape)}, deterministic ones too; settings.

    ``NPROC=1 OPENBLAS_NUM_THREADS=1`` must be set before jax is first imported: jaxlib can deadlock in
    batched Cholesky factors on machines with few cores.
    """
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS

    numpyro.enable_x64()
    model, args = benchmark.numpyro(reference=True)
    mcmc = MCMC(
        NUTS(model, target_accept_prob=benchmark.target_accept),
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    start = time.process_time()
    mcmc.run(jax.random.PRNGKey(seed), *args)
    samples = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    meta = {
        "sampler": "NumPyro NUTS, float64",
        "chains": CHAINS,
        "warmup": WARMUP,
        "draws": DRAWS,
        "target_accept": benchmark.target_accept,
        "form": benchmark.reference_function or benchmark.function,
        "seed": seed,
        "divergences": int(np.asarray(mcmc.get_extra_fields()["diverging"]).sum()),
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    return samples, meta


def posteriordb_samples(benchmark: Benchmark) -> dict[str, np.ndarray]:
    """Draws of posteriordb as {site: (n, *shape)} of the Pyro model's latent sites."""
    assert benchmark.posteriordb is not None
    draws, names = data.posteriordb_draws(benchmark.posteriordb)
    flat = draws.reshape(-1, draws.shape[-1])
    sites: dict[str, np.ndarray] = {}
    for site in dict.fromkeys(n.split("[")[0] for n in names):
        columns = [i for i, n in enumerate(names) if n.split("[")[0] == site]
        sites[site] = flat[:, columns] if "[" in names[columns[0]] else flat[:, columns[0]]
    if benchmark.function == "eight_schools_noncentered":
        sites["theta_trans"] = (sites["theta"] - sites["mu"][:, None]) / sites["tau"][:, None]
    return sites


def make(benchmark: Benchmark) -> Path:
    """Make and store the reference of one model; returns the file."""
    import arviz as az

    from benchmarks.flat import coordinate_names, to_flat

    samples, meta = sample_numpyro(benchmark)
    merged = {k: v.reshape(-1, *v.shape[2:]) for k, v in samples.items()}
    chains = to_flat(benchmark, merged).reshape(CHAINS, DRAWS, -1)
    stats = az.convert_to_dataset({"x": chains})
    half = CHAINS // 2
    if benchmark.posteriordb is None:
        reference = chains[:half].reshape(-1, chains.shape[-1])
        meta["origin"] = f"NumPyro chains 1 to {half}; floor: chains {half + 1} to {CHAINS}"
    else:
        reference = to_flat(benchmark, posteriordb_samples(benchmark))
        meta["origin"] = f"posteriordb {benchmark.posteriordb}; floor: NumPyro chains {half + 1} to {CHAINS}"
        gap = np.abs(chains.mean((0, 1)) - reference.mean(0)) / reference.std(0)
        meta["worst_mean_gap_to_numpyro_sd"] = round(float(gap.max()), 4)
    floor = chains[half:].reshape(-1, chains.shape[-1])
    pick = np.random.default_rng(0).permutation(len(reference))[:KEPT_REFERENCE]
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{benchmark.name}.npz"
    np.savez_compressed(
        path,
        names=np.asarray(coordinate_names(benchmark, merged)),
        mean=reference.mean(0),
        sd=reference.std(0),
        quantiles=np.quantile(reference, QUANTILES, axis=0),
        covariance=np.atleast_2d(np.cov(reference.T)),
        draws=reference[pick].astype(np.float32),
        floor=floor[:: len(floor) // KEPT_FLOOR][:KEPT_FLOOR].astype(np.float32),
        rhat=az.rhat(stats)["x"].to_numpy(),
        ess=az.ess(stats, method="bulk")["x"].to_numpy(),
        meta=np.asarray(json.dumps(meta)),
    )
    return path
