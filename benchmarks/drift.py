"""How often does the drift test flag right draws, and wrong ones? ``python -m benchmarks.drift [--repeats 200]``.

Draws are simulated: autoregressions that keep their distribution stand for the transitions, so that before and after are
exactly right. Writes ``benchmarks/results/drift.md``: false alarms (drift, gap and raw gap together) for numbers of draws and
coordinates that the library itself can come to, and how often an error of one coordinate is flagged. "plain" is the test
without regard to how many coordinates and moments there are: it flags what passes 0.1 sd by 1.96 standard errors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np

from benchmarks.posteriordb.bars import upper_limit
from pyro_dft.judging import alarms
from pyro_dft.judging.drift import Drift, drift
from pyro_dft.judging.remains import left_over

Array = np.ndarray

RESULTS = Path(__file__).resolve().parent / "results" / "drift.md"
DRAWS = (40, 100, 125, 200, 500, 1000, 4000)
COORDINATES = (1, 10, 31, 100, 300)
POWER_DRAWS = (200, 500, 1000, 4000)
# Fewer repetitions where there are many numbers, and chance makes no alarm.
BUDGET = 1.2e6


def lognormal(z: Array) -> Array:
    """Skewed: the exponential of a normal variable of sd 0.7."""
    return np.exp(0.7 * z)


def student(z: Array) -> Array:
    """Heavy tails: a normal variable bent to those of Student's t with 5 degrees of freedom, nearly (Hill's expansion)."""
    return z + (z**3 + z) / 20 + (5 * z**5 + 16 * z**3 + 3 * z) / 2400


def same(z: Array) -> Array:
    """A normal variable."""
    return z


# Memory of the transitions, and the marginal distribution.
KINDS: dict[str, tuple[float, Callable[[Array], Array]]] = {
    "normal, memory .2": (0.2, same),
    "normal, memory .6": (0.6, same),
    "normal, memory .9": (0.9, same),
    "lognormal, memory .6": (0.6, lognormal),
    "Student-t(5), memory .6": (0.6, student),
}


def step(rng: np.random.Generator, z: Array, memory: float) -> Array:
    """Transitions that keep a standard normal distribution."""
    return memory * z + np.sqrt(1 - memory**2) * rng.standard_normal(z.shape)


def flagged(raw: Drift, refined: Drift) -> bool:
    """Whether one of the three alarms sounds."""
    left = float(left_over(raw, refined)[1].max())
    return refined.flagged() or refined.gap_flagged or left > alarms.LEFT_LIMITS[0]


def plainly(refined: Drift) -> bool:
    """The same of means and log sds, without the correction."""
    effect = (np.abs(refined.effects[:2]) - 1.96 * refined.standard_errors[:2]).max()
    z = NormalDist().inv_cdf(1 - 0.025 / refined.gap[:2].size)
    return max(effect, (np.abs(refined.gap[:2]) - z * refined.gap_se[:2]).max()) > 0.1


def false_alarms(
    n: int, d: int, memory: float, bent: Callable[[Array], Array], repeats: int
) -> tuple[int, int]:
    """Alarms in so many repetitions: of the test, and of the plain one."""
    rng, count, plain = np.random.default_rng(n * d), 0, 0
    for _ in range(repeats):
        first = rng.standard_normal((n, d))
        second = step(rng, first, memory)
        third = step(rng, second, memory)
        refined = drift(bent(second), bent(third))
        count += flagged(drift(bent(first), bent(second)), refined)
        plain += plainly(refined)
    return count, plain


def alarm_table(repeats: int) -> list[str]:
    """Rates over all kinds, and that of the worst kind."""
    lines = [
        "| draws | coordinates | false alarms | of | rate | upper 95 % limit | worst kind | plain test |",
        "|" + "---|" * 8,
    ]
    for n in DRAWS:
        for d in COORDINATES:
            times = int(np.clip(BUDGET / (n * d), 5, repeats))
            found = {kind: false_alarms(n, d, *options, times) for kind, options in KINDS.items()}
            count, plain = (sum(f[i] for f in found.values()) for i in (0, 1))
            total = times * len(KINDS)
            kind = max(found, key=lambda k: found[k][0])
            worst = f"{found[kind][0] / times:.1%} ({kind})" if count else "none"
            lines.append(
                f"| {n} | {d} | {count} | {total} | {count / total:.1%} | {upper_limit(count, total):.1%} | {worst} | "
                f"{plain / total:.1%} |"
            )
            print(lines[-1], flush=True)
    return lines


def power_table(repeats: int, d: int = 31) -> list[str]:
    """How often an error in one of `d` coordinates is flagged."""
    lines = [
        "| draws | error of one coordinate | forgotten | flagged | plain test |",
        "|---|---|---|---|---|",
    ]
    for n in POWER_DRAWS:
        for size in (0.1, 0.2, 0.3, "tail"):
            for memory in (0.0, 0.5):
                rng, count, plain = np.random.default_rng(n), 0, 0
                for _ in range(repeats):
                    before = rng.standard_normal((n, d))
                    if size == "tail":  # nothing below the 10 % point
                        low = NormalDist().inv_cdf(0.1)
                        fresh = rng.standard_normal(3 * n)
                        before[:, 0] = fresh[fresh > low][:n]
                    else:
                        before[:, 0] += size
                    moved = drift(before, step(rng, before, memory))
                    count += moved.flagged() or moved.gap_flagged
                    plain += plainly(moved)
                what = "lowest tenth missing" if size == "tail" else f"mean off by {size} sd"
                part = "wholly" if memory == 0 else "half"
                lines.append(f"| {n} | {what} | {part} | {count / repeats:.0%} | {plain / repeats:.0%} |")
                print(lines[-1], flush=True)
    return lines


def main(arguments: list[str] | None = None, path: Path = RESULTS) -> None:
    """Print and write both tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.drift", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200, help="of each row, at most")
    options = parser.parse_args(arguments)
    alarming, power = alarm_table(options.repeats), power_table(options.repeats // 2)
    lines = [
        f"False alarms on draws that are exactly right, {len(KINDS)} kinds together ({'; '.join(KINDS)}).",
        "",
        *alarming,
        "",
        "Errors of one coordinate of 31 (normal distribution), by how much of them the transitions forget.",
        "",
        *power,
    ]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
