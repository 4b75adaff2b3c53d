"""Every method turns a benchmark into flat draws and costs. The only file that calls ``DFT``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import cache, nuts, references
from benchmarks.cache import code_hash as code_hash
from benchmarks.costs import timed
from benchmarks.models.case import Case
from pyro_dft.experimental import grouped
from pyro_dft.judging.verdict import Diagnostics

NUM_DRAWS = 10_000
# Settings that define a fit, beside the seed; raw and refined rows share one fit.
FITS: dict[str, dict[str, Any]] = {
    "dft": {},
    "gaussian": {"train": "never"},
    "kl": {"objective": "kl", "train": "always"},
    "always": {"train": "always"},
    # Crippled on purpose, to see whether the diagnostics notice.
    "hasty": {"train": "always", "num_steps": 100, "refine_steps": 1},
    "shallow": {"train": "never", "precondition_steps": 15, "refine_steps": 1},
}
METHODS = ("reference", "nuts", "dft-raw", "dft-refined", "gaussian-refined")


@dataclass(frozen=True)
class Outcome:
    """What one method gave on one model.

    Attributes:
        draws: Flat unconstrained draws (n, d), or empty when it failed.
        seconds: CPU seconds from ``run`` to the draws (NUTS: the whole run), None for the reference.
        compile_share: Share of the wall time of these seconds that jax spent tracing and compiling; None with Pyro.
        more_seconds: CPU seconds for 10,000 more draws.
        gradients: Gradient evaluations of the potential up to the draws; NUTS without its warm-up.
        said: What the method's own diagnostics said, in short.
        flagged: Whether they warned.
        notes: Anything else worth keeping with the row.
    """

    draws: np.ndarray
    seconds: float | None = None
    compile_share: float | None = None
    more_seconds: float | None = None
    gradients: float | None = None
    said: str = ""
    flagged: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


def key(benchmark: Case, method: str, seed: int, framework: str = "pyro") -> Path:
    """The cell of a method: its name is the key that a row is stored under."""
    if method == "reference":
        return cache.cell(benchmark, "reference", {"draws": NUM_DRAWS}, framework)
    if method == "nuts":
        return cache.cell(benchmark, "nuts", nuts.settings(), framework)
    fit = method.split("-")[0]
    return cache.cell(benchmark, fit, {**FITS[fit], "seed": seed, "draws": NUM_DRAWS}, framework)


def run(benchmark: Case, method: str, seed: int, fresh: bool = False, framework: str = "pyro") -> Outcome:
    """Run a method, or read it from the cache.

    Raises:
        FileNotFoundError: the reference of the model has not been made.
    """
    folder = key(benchmark, method, seed, framework)
    if method == "reference":
        return Outcome(references.load(benchmark.name).floor, said="independent draws of the reference")
    if method == "nuts":
        return _nuts(benchmark, folder, framework, fresh)
    fit, kind = method.split("-")
    if fresh or not (folder / "fit.json").exists():
        _fit_and_store(benchmark, FITS[fit], seed, folder, framework)
    meta = json.loads((folder / "fit.json").read_text())
    if "error" in meta:
        return Outcome(np.empty((0, 0)), said=meta["error"], flagged=True, notes={"code": meta["code"]})
    with np.load(folder / "draws.npz") as f:
        draws = f[kind].astype(np.float64)
    return Outcome(draws, **meta[kind], said=meta["said"], flagged=meta["flagged"], notes=meta["notes"])


def _nuts(benchmark: Case, folder: Path, framework: str, fresh: bool) -> Outcome:
    draws, cost = nuts.run(benchmark, folder, framework, fresh=fresh)
    iterations = nuts.CHAINS * (nuts.WARMUP + nuts.DRAWS)
    return Outcome(
        draws.reshape(-1, draws.shape[-1]),
        seconds=cost["seconds"],
        compile_share=cost.get("compile_share"),
        # An iteration after warm-up is taken to cost what the average iteration does.
        more_seconds=cost["seconds"] / iterations * NUM_DRAWS,
        gradients=cost["gradients"],
        said=f"{int(cost['divergences'])} divergences",
        flagged=cost["divergences"] > 0,
    )


def _prepared(
    benchmark: Case, options: Mapping[str, Any], seed: int, framework: str
) -> tuple[Any, Callable[[], None]]:
    """An untrained sampler of a framework, and the call that trains it."""
    options = grouped(options)
    if framework == "pyro":
        from pyro_dft import DFT

        model, args = benchmark.pyro()
        dft = DFT(model, seed=seed, disable_progbar=True, **options)
        return dft, lambda: dft.run(*args)
    import jax

    from pyro_dft.numpyro import DFT as NumPyroDFT

    jax.clear_caches()  # compilation is part of the cost
    twin, arrays = benchmark.numpyro()
    bare = getattr(benchmark, "bare", lambda: None)()
    if bare is not None:  # a potential function in place of a model
        twin, arrays, options = None, (), {**options, **bare}
    other = NumPyroDFT(twin, disable_progbar=True, **options)
    return other, lambda: other.run(jax.random.key(seed), *arrays)


def _fit_and_store(
    benchmark: Case, options: Mapping[str, Any], seed: int, folder: Path, framework: str
) -> None:
    """One fit; raw and refined draws of it with their costs. A fit that raises is kept as an error."""
    folder.mkdir(parents=True, exist_ok=True)
    code = code_hash()
    try:
        dft, train = _prepared(benchmark, options, seed, framework)
        _, fitting = timed(train)
        fitted = _gradients(dft)
        refined, first = timed(dft.get_samples)  # those that the fit keeps
        used = _gradients(dft)
        _, second = timed(lambda: dft.get_samples(NUM_DRAWS))
        raw, raw_first = timed(lambda: dft.get_samples(NUM_DRAWS, refine_steps=0))
        _, raw_second = timed(lambda: dft.get_samples(NUM_DRAWS, refine_steps=0))
        report = dft.diagnostics()
    except Exception as error:  # one failing model must not lose the other rows: it becomes a row of its own
        meta = {"error": f"{type(error).__name__}: {error}"[:300], "code": code}
        (folder / "fit.json").write_text(json.dumps(meta))
        return
    np.savez(
        folder / "draws.npz",
        refined=benchmark.flat(refined).astype(np.float32),
        raw=benchmark.flat(raw).astype(np.float32),
    )
    said, flagged = verdict(report)
    meta = {
        "raw": {
            **(fitting + raw_first).to_json(framework),
            "more_seconds": raw_second.cpu,
            "gradients": fitted,
        },
        "refined": {**(fitting + first).to_json(framework), "more_seconds": second.cpu, "gradients": used},
        "said": said,
        "flagged": flagged,
        "notes": {
            "code": code,
            "warnings": [str(w) for w in report.get("warnings", [])],
            "facts": Diagnostics(report).to_json(),
        },
    }
    (folder / "fit.json").write_text(json.dumps(meta))


def _gradients(dft: Any) -> float:
    return float(dft.diagnostics()["gradient_evaluations"])


def verdict(report: Mapping[str, Any]) -> tuple[str, bool]:
    """The status in words and whether it is an alarm."""
    status = str(report["status"])
    return status, status != "converged"


def prepare_process() -> None:
    """One thread, float32 as Pyro's users run it."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
