"""One natural-gradient step of several Gaussians at once, and what is needed to step back from a bad move, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft import roots
from pyro_dft.recipe.constants import MAX_SD

Array = NDArray[np.floating[Any]]

# A step counts as a movement only where it is longer than this beyond the noise of its own estimate; the second figure is for
# changes of log curvatures.
SMALL_MOVE, SMALL_CURVATURE = 0.2, 0.3
MOVE_ERRORS, CURVATURE_ERRORS = 3.0, 4.0
# A step without movement counts for less as evidence of rest where the noise of its estimate is above the first figure, and for
# no less than the second.
NOISY, LEAST_STILL = 0.15, 0.25
# Two restarts are told apart coordinate by coordinate with so much room for rounding.
TINY = 1e-6
# Curvatures outside of this range, in units of the present one, are taken as errors of one step's estimate and clipped.
CURVATURES = (0.25, 9.0)


def antithetic(rng: np.random.Generator, k: int, count: int, dim: int) -> Array:
    """Normal noise (K, 2 count, d): rows, then their negatives."""
    noise = rng.standard_normal((k, count, dim))
    return np.concatenate([noise, -noise], 1)


def bound(log_q: Array, noise: Array, log_det: Array) -> tuple[Array, Array]:
    """Evidence bounds (K,), up to d/2 log(2 pi e), and their standard errors.

    The noise's own log density is a control variate: without error where the target is the Gaussian.

    Args:
        log_q: Log densities (K, n); bounds are -inf where more than a tenth are not finite.
        noise: (K, n, d), as from `antithetic`.
        log_det: Log determinants of the scales, (K,).
    """
    d = noise.shape[-1]
    good = np.isfinite(log_q)
    count = good.sum(1)
    value = np.where(good, log_q + 0.5 * np.square(noise).sum(-1), 0.0)
    mean = value.sum(1) / np.maximum(count, 1)
    residual = np.where(good, value - mean[:, None], 0.0)
    # The two points of an antithetic pair are not independent: pairs are the units of the standard error.
    pair = residual.reshape(len(residual), 2, -1).sum(1)
    error = np.sqrt(np.square(pair).sum(1)) / np.maximum(count, 1)
    return np.where(count >= 0.9 * good.shape[1], mean - 0.5 * d + log_det, -np.inf), error


@dataclass
class State:
    """Means (K, d), scales (K, d, d) or (K, d), and what a step needs to know of the ones before.

    Attributes:
        mean: (K, d).
        scale: (K, d, d), or (K, d) where only standard deviations are fitted.
        log_det: Log determinants of the scales, (K,).
        rate: Step sizes, (K,).
        best: Highest evidence bounds seen, (K,).
        best_error: Their standard errors, (K,).
        kept_mean, kept_scale, kept_log_det: Mean, scale and log determinant there.
        returned: Where the last step went back, (K,).
        reach: The longest step allowed, in units of 2 sqrt(d), (K,): it doubles while the optimum is far ahead.
        limited: Where the last step was cut short, (K,).
        last: The last step, in the present whitened coordinates, (K, d).
        stopped: Restarts whose sd passed `MAX_SD`, which are not moved any more, (K,).
        calm_sd: Standard deviations at the first of the present run of steps without movement, (K, d).
    """

    mean: Array
    scale: Array
    log_det: Array
    rate: Array
    best: Array
    best_error: Array
    kept_mean: Array
    kept_scale: Array
    kept_log_det: Array
    returned: NDArray[np.bool_]
    reach: Array
    limited: NDArray[np.bool_]
    last: Array
    stopped: NDArray[np.bool_]
    calm_sd: Array

    @classmethod
    def start(cls, means: Array, sds: Array, *, full: bool) -> State:
        """From means (K, d) and standard deviations (K,)."""
        mean, sd = np.array(means, float), np.asarray(sds, float)
        k, d = mean.shape
        scale = sd[:, None] * np.ones_like(mean)
        if full:
            scale = scale[..., None] * np.eye(d)
        log_det, one, no = d * np.log(sd), np.ones(k), np.zeros(k, bool)
        return cls(
            mean, scale, log_det, one, -np.inf * one, 0.0 * one, mean, scale, log_det, no, one, no, np.zeros_like(mean), no,
            sd[:, None] * np.ones_like(mean),
        )  # fmt: skip

    @classmethod
    def joined(cls, states: Sequence[State]) -> State:
        """One behind the other."""
        return cls(*(np.concatenate([getattr(own, field.name) for own in states]) for field in fields(cls)))

    def __getitem__(self, index: Any) -> State:
        return State(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def full(self) -> bool:
        """Whether whole covariances are fitted."""
        return self.scale.ndim == 3

    @property
    def sd(self) -> Array:
        """Standard deviations, (K, d)."""
        return np.sqrt(roots.variances(self.scale, self.mean))

    @property
    def highest(self) -> float:
        """The highest evidence bound seen."""
        return float(self.best.max())

    def whole(self) -> State:
        """The same, with full covariances fitted from here on."""
        return replace(self, scale=roots.matrices(self.scale), kept_scale=roots.matrices(self.kept_scale))

    def points(self, noise: Array) -> Array:
        """Points (K, n, d) for given noise."""
        return self.mean[:, None] + roots.coloured(self.scale, noise)

    def put(self, mean: Array, scale: Array) -> None:
        """Goes on from other Gaussians: means (K, d), and square roots of covariances of the same kind as these."""
        self.mean, self.scale, self.log_det = mean, scale, roots.log_det(scale, mean)
        self.kept_mean, self.kept_scale, self.kept_log_det = self.mean, self.scale, self.log_det

    def go_back(self) -> None:
        """Goes on from where the bounds were highest."""
        self.mean, self.scale, self.log_det = self.kept_mean, self.kept_scale, self.kept_log_det

    def may_meet(self, distance: float, ratio: float) -> NDArray[np.bool_]:
        """Pairs (K, K) that `met` has to look at: no coordinate by itself says that two Gaussians differ.

        A distance in whitened units is at least that in the sds of any one coordinate, and a factor between the sds along some
        direction is at least that between those of any one coordinate.

        Args:
            distance: See `met`.
            ratio: See `met`.
        """
        sd = self.sd
        reach = (1 + TINY) * distance * self.mean.shape[1] ** 0.5
        with np.errstate(invalid="ignore", divide="ignore"):
            gaps = np.abs(self.mean[:, None] - self.mean) / np.minimum(sd[:, None], sd)
            ratios = np.abs(np.log(sd[:, None] / sd))
        far = (gaps > reach) | (ratios > (1 + TINY) * np.log(ratio))
        return ~far.any(-1)

    def met(self, i: int, j: int, distance: float, ratio: float) -> bool:
        """Whether two Gaussians are the same but for the noise of their fits.

        Args:
            i: One.
            j: The other.
            distance: Between the means, in sds of either times sqrt(d), at most.
            ratio: Between sds, at most, in any direction.
        """
        if self.limited[i] or self.limited[j] or not np.isfinite(self.best[[i, j]]).all():
            return False
        apart = self.mean[i] - self.mean[j]
        reach = distance * len(apart) ** 0.5
        if not self.full:
            far = max(np.linalg.norm(apart / self.scale[k]) for k in (i, j))
            return bool(far <= reach and np.abs(np.log(self.scale[i] / self.scale[j])).max() <= np.log(ratio))
        try:
            far = max(np.linalg.norm(np.linalg.solve(self.scale[k], apart)) for k in (i, j))
            if far > reach:
                return False
            values = np.linalg.svd(np.linalg.solve(self.scale[i], self.scale[j]), compute_uv=False)
        except np.linalg.LinAlgError:
            return False
        return bool(values.max() <= ratio and values.min() >= 1 / ratio)

    def advance(
        self, noise: Array, log_q: Array, score: Array, averaging: int | None, *, minibatch: bool
    ) -> Array:
        """One step for given noise (K, n, d), log densities (K, n) and scores (K, n, d).

        Args:
            noise: As from `antithetic`.
            log_q: -inf where the target is not finite.
            score: In unconstrained coordinates.
            averaging: How many of the last, averaging steps are made; None before them.
            minibatch: Whether the scores come from minibatches.

        Returns:
            How still each restart is, (K,): zero where something moved beyond the noise of its own estimate, one where
            nothing did and that noise is small, and less than one where it is large, as it hides small movements.
        """
        good = np.isfinite(log_q)
        whitened = roots.projected(self.scale, score)
        # Points where the target is not finite act as under a unit Gaussian: they pull back.
        s = np.where(good[..., None], whitened, -noise)
        n, d = noise.shape[1:]
        centre = s.mean(1)
        elbo, error = bound(log_q, noise, self.log_det)
        centred = s - centre[:, None]
        products = _products(centred, noise) if self.full else None
        spread = _noise(centred, noise, products)
        dropped = np.zeros(len(s), bool)
        if minibatch:
            # Minibatch noise swamps the bound, so the step follows from the size of that noise instead.
            size = _size(centred, noise)
            ridge = np.maximum(spread / size**2, 1.0)
            rate = np.minimum(0.5 * size * np.sqrt(n / spread), 1.0)
            pull = 1 - 4 * spread * d / (n * np.maximum(np.square(centre).sum(-1), 1e-300))
            mean_rate = np.maximum(rate, pull)
            self.best = np.fmax(self.best, elbo)
        else:
            ridge = np.ones(len(s))
            dropped = self._accept_or_return(elbo, error)
            # The scores of a point that was just left are of no use at the one returned to.
            rate = mean_rate = np.where(dropped, 0.0, self.rate)
        slow = (1.0 + (averaging or 0)) ** 0.7
        rate, mean_rate = (np.where(self.stopped, 0.0, r / slow) for r in (rate, mean_rate))
        w, v = _curvature(centred, noise, ridge, products)
        move = centre / w if v is None else _turned(v, _turned(v.swapaxes(1, 2), centre) / w)
        length = self._move(np.nan_to_num(move), centre, w, v, rate, mean_rate, dropped)
        errors = np.sqrt(spread * d / n)
        small = (length < SMALL_MOVE + MOVE_ERRORS * errors) & (
            np.abs(np.log(w)).max(-1) < SMALL_CURVATURE + CURVATURE_ERRORS * errors
        )
        still = (small & ~dropped & ~self.limited) | self.stopped | ~np.isfinite(elbo)
        return np.where(still, np.clip(NOISY / np.maximum(errors, 1e-300), LEAST_STILL, 1.0), 0.0)

    def _move(
        self, move: Array, centre: Array, w: Array, v: Array | None, rate: Array, mean_rate: Array,
        dropped: NDArray[np.bool_],
    ) -> Array:  # fmt: skip
        """Moves means and scales; how long the step would have been, (K,)."""
        d = move.shape[1]
        length = np.maximum(np.linalg.norm(move, axis=-1), 1e-300)
        # Narrow posteriors can be thousands of their own sds away. While the score still points the way of the last step,
        # and that was cut short, the next may be twice as long.
        ahead = self.limited & ~dropped & ((centre * self.last).sum(-1) > 0)
        self.reach = np.where(ahead, 2 * self.reach, 1.0)
        limit = 2 * d**0.5 * self.reach
        self.limited = length > limit
        move = move * (np.minimum(limit / length, 1.0) * mean_rate)[:, None]
        shrink = w ** (-0.5 * rate[:, None])
        before = (self.mean, self.scale, self.log_det)
        if v is None:
            self.mean, self.scale = self.mean + self.scale * move, self.scale * shrink
            self.last = move / shrink
        else:
            self.mean = self.mean + _turned(self.scale, move)
            self.scale = self.scale @ (v * shrink[:, None, :]) @ v.swapaxes(1, 2)
            self.last = _turned(v, _turned(v.swapaxes(1, 2), move) / shrink)
        self.log_det = self.log_det - 0.5 * rate * np.log(w).sum(-1)
        # A restart that has grown too wide takes its last step back, and is moved no more.
        wide = self.sd.max(-1) > MAX_SD
        self.mean, self.scale, self.log_det = (
            _choose(wide, a, b) for a, b in zip(before, (self.mean, self.scale, self.log_det), strict=True)
        )
        self.stopped = self.stopped | wide
        return length

    def _accept_or_return(self, elbo: Array, error: Array) -> NDArray[np.bool_]:
        """Goes back to the best point where the bound dropped, and adapts the step sizes; returns where it dropped, (K,)."""
        finite = np.isfinite(elbo)
        # A lucky estimate of the bound must not hold a restart in its place for ever: after a return, this is a second
        # estimate for the same point.
        again = self.returned & finite
        dropped = np.isfinite(self.best) & (~finite | (elbo < self.best - 2 - 3 * error)) & ~again
        better = finite & (elbo > self.best) & ~again
        average = np.where(again, 0.5 * (self.best + np.where(finite, elbo, 0.0)), self.best)
        self.best, self.best_error = np.where(better, elbo, average), np.where(better, error, self.best_error)
        self.returned = dropped
        for name in ("mean", "scale", "log_det"):
            now, kept = getattr(self, name), getattr(self, f"kept_{name}")
            kept = _choose(better, now, kept)
            setattr(self, f"kept_{name}", kept)
            setattr(self, name, _choose(dropped, kept, now))
        self.rate = np.where(dropped, self.rate / 2, np.minimum(1.2 * self.rate, 1.0))
        return dropped


def _choose(mask: NDArray[np.bool_], a: Array, b: Array) -> Array:
    """Rows of `a` where the mask (K,) is True, else rows of `b`."""
    return np.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _turned(matrices: Array, vectors: Array) -> Array:
    """Products of matrices (K, d, d) and vectors (K, d)."""
    return (matrices @ vectors[..., None])[..., 0]


def _products(s: Array, noise: Array) -> tuple[Array, Array]:
    """E' E and E' S, (K, d, d) each, of noise E and centred whitened scores S, (K, n, d)."""
    transposed = noise.swapaxes(1, 2)
    return transposed @ noise, transposed @ s


def _curvature(
    s: Array, noise: Array, ridge: Array, products: tuple[Array, Array] | None
) -> tuple[Array, Array | None]:
    """Eigenvalues (K, d) and eigenvectors (K, d, d) of the whitened negative Hessian's estimate.

    Args:
        s: Centred whitened scores (K, n, d).
        noise: (K, n, d).
        ridge: Weight of the identity in the regression, (K,).
        products: See `_products`; None estimates the diagonal alone, and gives values without vectors.
    """
    if products is None:
        weight = ridge[:, None]
        w = (-(s * noise).sum(1) + weight) / (np.square(noise).sum(1) + weight)
        return np.clip(np.nan_to_num(w, nan=1.0), *CURVATURES), None
    eye = ridge[:, None, None] * np.eye(noise.shape[-1])
    matrix = np.linalg.solve(products[0] + eye, np.nan_to_num(eye - products[1]))
    matrix = np.nan_to_num(0.5 * (matrix + matrix.swapaxes(1, 2)), nan=0.0, posinf=9.0, neginf=-9.0)
    w, v = np.linalg.eigh(matrix)
    return np.clip(w, *CURVATURES), v


def _noise(s: Array, noise: Array, products: tuple[Array, Array] | None) -> Array:
    """Variance (K,) of centred whitened scores (K, n, d) that no curvature explains."""
    n, d = s.shape[1:]
    if products is not None and n > 2 * d:
        residual = s - noise @ np.linalg.solve(*products)
        freedom = n - d
    else:
        residual = s - noise * (s * noise).sum(1, keepdims=True) / np.square(noise).sum(1, keepdims=True)
        freedom = n - 1
    return np.maximum(np.square(residual).sum((1, 2)) / (max(freedom, 1) * d), 1e-12)


def _size(s: Array, noise: Array) -> Array:
    """Size of that curvature, (K,): one number for all directions, less twice its standard error.

    Where the posterior is still much narrower than the Gaussian, the curvature is large, and none of it is noise.
    """
    squares = np.square(noise).sum((1, 2))
    size = -(s * noise).sum((1, 2)) / squares
    rest = np.square(s + size[:, None, None] * noise).mean((1, 2))
    size = size - 2 * np.sqrt(rest / squares)
    return np.maximum(np.nan_to_num(size, nan=1.0), 1.0)
