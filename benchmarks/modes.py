"""How often are all separate modes found? ``python -m benchmarks.modes [--seeds 20]``.

Gaussian modes in several arrangements, with the Gaussian phase alone (``train="never"``), float32 and default settings but
for a fixed number of transitions. Writes ``benchmarks/results/modes.md``: for each arrangement in how many fits all modes
were found, in how many the status warned of what was missing, in how many it said nothing, and the largest error of a share.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import warnings
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
DRAWS = 10_000


def corners(dim: int, distance: float) -> np.ndarray:
    """Three centres (3, dim) at one distance from each other."""
    centres = np.zeros((3, dim))
    centres[range(3), range(3)] = distance / np.sqrt(2)
    return centres - centres.mean(0)


def pair(dim: int, half: float) -> np.ndarray:
    """Two centres (2, dim) on the first axis."""
    centres = np.zeros((2, dim))
    centres[:, 0] = -half, half
    return centres


# What it is, centres, weights, sd of each mode.
ARRANGEMENTS: tuple[tuple[str, np.ndarray, list[float], float], ...] = (
    ("three in 8-D, 6 sds apart", corners(8, 6.0), [0.2, 0.3, 0.5], 1.0),
    ("three in 8-D, 12 sds apart", corners(8, 12.0), [0.2, 0.3, 0.5], 1.0),
    ("three in 8-D, 30 sds apart", corners(8, 30.0), [0.2, 0.3, 0.5], 1.0),
    ("three in 2-D, 10 sds apart", np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]]), [0.2, 0.3, 0.5], 0.7),
    ("two in 2-D, 100 sds apart", pair(2, 10.0), [0.3, 0.7], 0.2),
    ("two in 20-D, 8 sds apart", pair(20, 4.0), [0.3, 0.7], 1.0),
    ("two in 3-D, one far from the origin", np.array([[0.0, 0, 0], [8.0, 8.0, 8.0]]), [0.5, 0.5], 1.0),
    ("two in 3-D, the lighter one 2 %", pair(3, 5.0), [0.02, 0.98], 1.0),
)  # fmt: skip


def count(centres: np.ndarray, weights: list[float], sd: float, seeds: int) -> tuple[int, int, int, float]:
    """Fits with all modes, fits that warn of a missing one, fits that do not; the largest error of a share with all modes."""
    import jax
    import jax.numpy as jnp

    from pyro_dft.numpyro import DFT

    c, log_w = jnp.asarray(centres, jnp.float32), jnp.log(jnp.asarray(weights, jnp.float32))

    def potential(z: dict[str, jax.Array]) -> jax.Array:
        return -jax.scipy.special.logsumexp(log_w - 0.5 * (((z["x"] - c) / sd) ** 2).sum(-1))

    start = {"x": jnp.zeros(c.shape[1])}
    dft = DFT(
        potential_fn=potential, initial_params=start, train="never", refine_steps=2, disable_progbar=True
    )
    found, warned, silent, error = 0, 0, 0, 0.0
    for seed in range(seeds):
        dft.run(jax.random.key(seed))
        draws = np.asarray(dft.get_samples(DRAWS)["x"])
        nearest = np.square(draws[:, None] - centres).sum(-1).argmin(1)
        shares = np.bincount(nearest, minlength=len(weights)) / DRAWS
        if (shares > 0.2 * np.asarray(weights)).all():
            found += 1
            error = max(error, float(np.abs(shares - weights).max()))
        elif dft.diagnostics()["status"] == "converged":
            silent += 1
        else:
            warned += 1
    return found, warned, silent, error


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.modes", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    lines = [
        f"Fits with {seeds} seeds each; the standard error of a share of {DRAWS:,} draws is at most 0.005.",
        "",
        "| modes | weights | all found | missing, and flagged | missing, not flagged | worst error of a share |",
        "|---|---|---|---|---|---|",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, centres, weights, sd in ARRANGEMENTS:
            found, warned, silent, error = count(centres, weights, sd, seeds)
            shown = " / ".join(map(str, weights))
            lines.append(f"| {what} | {shown} | {found} | {warned} | {silent} | {error:.3f} |")
            print(lines[-1], flush=True)
    (RESULTS / "modes.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
