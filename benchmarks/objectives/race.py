"""Does DFT earn its place on a surrogate of the score? ``python -m benchmarks objectives.race [names]``.

Where chains have seen the posterior, networks are trained on a surrogate of the scores that these evaluated, and a DFT step
costs no gradient of the model. So the last fifth of the training is made twice from the same chains: with KL's gradient, and
with Theorem 1's of arXiv 2411.01453. What counts is how far raw draws are from particles that the training has not seen (root
mean square over means, log sds and tails beyond their noise, in sds). NumPyro, default settings, the network always trained.
Writes ``benchmarks/results/objectives_race.md`` and ``.csv``.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import table
from benchmarks.posteriordb import case
from benchmarks.posteriordb.posteriors import POSTERIORS

STEM = Path(__file__).resolve().parents[1] / "results" / "objectives_race"
NAMES = (
    "eight_schools-eight_schools_centered",
    "eight_schools-eight_schools_noncentered",
    "bball_drive_event_0-hmm_drive_0",
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs",
    "gp_pois_regr-gp_pois_regr",
    "arK-arK",
    "low_dim_gauss_mix-low_dim_gauss_mix",
)
SEEDS = range(3)
# Share of the steps that is made twice.
SHARE = 0.2
COLUMNS: table.Columns = (
    ("model", "model", "{}"),
    ("d", "d", "{}"),
    ("seed", "seed", "{}"),
    ("KL, all steps", "kl", "{:.4f}"),
    ("KL, then DFT", "dft", "{:.4f}"),
    ("KL, without the last fifth", "before", "{:.4f}"),
)


def fit(name: str, seed: int) -> table.Row:
    """Distances of one model's raw draws from the particles, after each training."""
    import jax

    from pyro_dft import Experimental
    from pyro_dft.numpyro import DFT

    one = case.PosteriorCase(POSTERIORS[name])
    model, args = one.numpyro()
    moved = []
    for share in (0.0, SHARE):
        own = Experimental(dft_fraction=share)
        dft = DFT(model, disable_progbar=True, train="always", experimental=own)
        dft.run(jax.random.key(seed), *args)
        moved.append({key: float(np.mean(value)) for key, value in dft.diagnostics()["movement"].items()})
    return {
        "model": name,
        "d": len(case.reference(one.posterior).mean),
        "seed": seed,
        "kl": moved[0]["kl"],
        "dft": moved[1]["dft"],
        "before": moved[1]["kl"],
    }


def notes(rows: Sequence[table.Row]) -> list[str]:
    """How often each is nearer, and by how much, with standard errors."""
    gain = np.array([row["kl"] - row["dft"] for row in rows])
    error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float("nan")
    return [
        f"the last {SHARE:.0%} of the steps with Theorem 1's gradient are nearer in {int((gain > 0).sum())} of {len(rows)} fits, "
        f"as near in {int((gain == 0).sum())}, further away in {int((gain < 0).sum())}",
        f"KL's distance less DFT's: mean {gain.mean():+.4f} sd (standard error {error:.4f}), from {gain.min():+.4f} to "
        f"{gain.max():+.4f}; a distance of 0 is one that noise explains",
    ]


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.objectives.race", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="posteriors, or parts of their names")
    asked = parser.parse_args().names
    warnings.filterwarnings("ignore")
    chosen = [name for name in NAMES if not asked or any(part in name for part in asked)]
    if not chosen:
        parser.error(f"none of {', '.join(NAMES)} is meant by {', '.join(asked)}")
    rows = []
    for name in chosen:
        for seed in SEEDS:
            rows.append(fit(name, seed))
            print(table.line(rows[-1], COLUMNS), flush=True)
    print("\n".join(notes(rows)))
    if not asked:
        table.write(rows, notes(rows), STEM, COLUMNS)


if __name__ == "__main__":
    main()
