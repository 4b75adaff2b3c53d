"""One fit to one posterior, in either framework, and its row of the results."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import methods
from benchmarks.costs import timed
from benchmarks.hostile.judge import BARS, EXACT_DRAWS, RULES, STATISTICS, Comparison, Truth, compare
from benchmarks.hostile.kinds import generate
from benchmarks.hostile.posterior import Posterior
from benchmarks.metrics import unconstrained
from benchmarks.table import Row

# As many more draws, where those that the fit kept leave it open how good they are.
MORE_DRAWS = 16_000
# Of what this process loads, whatever happens to the files while it runs.
CODE = methods.code_hash()


def key(kind: str, seed: int, backend: str, settings: Mapping[str, Any], code: str = CODE) -> str:
    """Changes with the posterior itself, the backend, the settings, the rules of the judge and the code of the package."""
    posterior = generate(kind, seed)
    h = hashlib.sha256(
        json.dumps(
            [kind, seed, backend, code, dict(settings), RULES, BARS, MORE_DRAWS], sort_keys=True, default=repr
        ).encode()
    )
    for part in (posterior.what, posterior.model or "", *posterior.parameters):
        h.update(part.encode())
    for array in (*posterior.parameters.values(), *posterior.arguments):
        # Not to the last bit, in which machines differ.
        h.update(" ".join(f"{v:.4g}" for v in np.ravel(array)).encode())
    return h.hexdigest()[:12]


def fit(posterior: Posterior, backend: str, seed: int, settings: Mapping[str, Any]) -> Any:
    """A trained `DFT`, through the public interface."""
    problem, arguments = posterior.problem(backend)
    if backend == "pyro":
        import pyro

        from pyro_dft import DFT

        pyro.set_rng_seed(seed)
        dft = DFT(**problem, seed=seed, disable_progbar=True, **settings)
        dft.run(*arguments)
        return dft
    import jax

    from pyro_dft.numpyro import DFT as NumPyroDFT

    other = NumPyroDFT(**problem, disable_progbar=True, **settings)
    other.run(jax.random.key(seed), *arguments)
    return other


def make_row(kind: str, seed: int, backend: str, settings: Mapping[str, Any] | None = None) -> Row:
    """Makes the posterior, fits it and holds its draws against exact ones. A fit that raises keeps its error."""
    settings = settings or {}
    importlib.import_module(backend)  # before the clock starts
    posterior = generate(kind, seed)
    row: Row = {
        "name": f"{kind}-{seed}", "kind": kind, "seed": seed, "d": posterior.dim, "what": posterior.what,
        "backend": backend, "key": key(kind, seed, backend, settings), "code": CODE,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a fit warns of is in its row
        try:
            dft, cost = timed(lambda: fit(posterior, backend, seed, settings))
            kept = unconstrained(dft)
        except Exception as error:  # one failing fit must not lose the others
            return row | {
                "status": "raised",
                "quality": "raised",
                "reason": f"{type(error).__name__}: {error}"[:300],
            }
        said = dft.diagnostics().to_json()
        truth = Truth(posterior.draw(np.random.default_rng([30, seed]), EXACT_DRAWS))
        seen, judged = len(kept), compare(kept, truth)
        if judged.undecided:
            fresh = unconstrained(dft, MORE_DRAWS)
            seen, judged = len(fresh), compare(fresh, truth)
    return row | error_part(judged, truth) | {
        "judged_by": seen,
        "status": said["status"],
        "alarms": list(said["alarms"]),
        **cost.to_json(backend),
        "gradients": float(said["gradient_evaluations"]),
        "facts": {name: rounded(said[name]) for name in FACTS if name in said},
    }  # fmt: skip


# Of the diagnostics, what a verdict is made of.
FACTS = (
    "drift_raw", "drift_refined", "refine_steps", "acceptance", "divergence_rate", "stuck", "expected_stuck", "optima", "modes",
    "objective", "reparametrised",
)  # fmt: skip


def error_part(judged: Comparison, truth: Truth) -> Row:
    """The part of a row that says how right the draws are."""
    return {
        **judged.row(), "net": rounded(judged.row(net=True)), **judged.worst(), "quality": judged.quality,
        "heavy": np.flatnonzero(truth.heavy).tolist(), "non_finite": judged.non_finite, "left_out": int(truth.gaps.sum()),
        "error": rounded(judged.error.tolist()), "noise": rounded(judged.noise.tolist()),
    }  # fmt: skip


def rounded(value: Any) -> Any:
    """Numbers to four digits, so that the results stay small."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def details(row: Row) -> str:
    """All errors of a row as text, in bars, with the noise: one line for each coordinate; and the facts."""
    if row["status"] == "raised":
        return str(row["reason"])
    lines = ["errors in bars (what noise explains); heavy coordinates by median and width"]
    for j in range(row["d"]):
        cells = (
            f"{name} {row['error'][i][j] / BARS[i]:+.2f} ({row['noise'][i][j] / BARS[i]:.2f})"
            for i, name in enumerate(STATISTICS)
        )
        lines.append(f"  {j}{' heavy' if j in row['heavy'] else ''}: " + "  ".join(cells))
    return "\n".join([*lines, json.dumps(row["facts"])])
