"""Starting points in search of further modes: far from those that are known, or where these explain least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_dft import roots
from pyro_dft.evidence.student import StudentT
from pyro_dft.recipe.mode_weights import Array, LogDensity, Weighted

# Where further modes are looked for: at normal points around a single known mode, with so many times its sds, and around several,
# with so many times the sds of all together.
SCOUT_SDS = 6.0
SCOUT_SPREADS = 1.5


@dataclass(frozen=True)
class Reach:
    """How far out starting points are looked for.

    Attributes:
        box: Half-width of a box around the origin, in which every second point is.
        candidates: Number of points at which the density is compared.
    """

    box: float = 10.0  # five times that of the usual starting points
    candidates: int = 4000


FAR = Reach()
# With an adaptive target: its solver takes a hundred times as many steps where it does not belong.
NEAR = Reach(box=2.0, candidates=400)
# In more than `FULL_RANK_LIMIT` dimensions, where a hundred times as many would come no nearer to a mode.
SPARSE = Reach(candidates=400)


def further_starts(
    means: Array,
    scales: Array,
    count: int,
    log_density: LogDensity,
    rng: np.random.Generator,
    reach: Reach = FAR,
) -> Array:
    """Starting points (count, d) in search of more modes, far from those (K) that are known.

    Every second one is random: in a box around the origin, or around the known modes. The others are those of many such
    points where the posterior is highest above what the known modes explain.

    Args:
        means: (K, d).
        scales: Square roots of the covariances, (K, d, d).
        count: Number of starting points.
        log_density: Of the posterior.
        rng: For the points.
        reach: How far out.
    """
    d, half = means.shape[1], reach.candidates // 2
    box = rng.uniform(-reach.box, reach.box, size=(half, d))
    within = roots.variances(scales, means).mean(0)
    if len(means) == 1:
        spread = SCOUT_SDS * np.sqrt(within)
    else:
        spread = SCOUT_SPREADS * np.sqrt(np.square(means - means.mean(0)).mean(0) + within)
    around = means.mean(0) + spread * rng.normal(size=(half, d))
    # Alternately, so that the first ones are of both kinds.
    points = np.stack([box, around], 1).reshape(-1, d)
    log_p = log_density(points[None])[0]
    wide = [StudentT(m, scale, 5.0) for m, scale in zip(means, scales, strict=True)]
    known = np.logaddexp.reduce(np.stack([one.log_density(points) for one in wide], axis=1), axis=1)
    promise = np.where(np.isfinite(log_p), log_p - known, -np.inf)
    picked: list[int] = []
    for i in np.argsort(-promise, kind="stable")[: max(reach.candidates // 10, count)]:
        if len(picked) >= count // 2:
            break
        # Not several for one mode: as far from each other as the known modes are wide.
        gaps = np.square((points[picked] - points[i]) / np.sqrt(within)).sum(-1)
        if not picked or gaps.min() > 9.0 + d:
            picked.append(int(i))
    rest = [i for i in range(len(points)) if i not in picked][: count - len(picked)]
    return points[[*picked, *rest]]


def overlooked(drawn: Weighted, scales: Array, count: int) -> Array:
    """Starting points (count, d) where the known optima explain least: draws with the largest weights, far from each other.

    Args:
        drawn: Weighted draws of the known optima.
        scales: Square roots of their covariances, (J, d, d).
        count: Number of starting points.
    """
    within = np.sqrt((np.square(scales).sum(-1) if scales.ndim == 3 else np.square(scales)).mean(0))
    order = np.argsort(-drawn.log_w, kind="stable")
    order = order[np.isfinite(drawn.log_w[order])][: max(50 * count, 200)]
    picked: list[int] = []
    for i in order:
        gaps = np.square((drawn.points[picked] - drawn.points[i]) / within).sum(-1)
        if not picked or gaps.min() > len(within):
            picked.append(int(i))
        if len(picked) == count:
            break
    rest = [int(i) for i in order if i not in picked][: count - len(picked)]
    return drawn.points[np.resize([*picked, *rest], count)]
