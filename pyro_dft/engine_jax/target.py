"""A batched target: log density, score and Hessian-vector products of a potential written for one point.

What is compiled depends on a `TargetSpec`, which hashes by the model's structure and holds no data: the data are an argument
of every compiled function, so that another data set of the same shapes compiles nothing again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_dft.engine_jax import networks, random
from pyro_dft.engine_jax.chunks import in_chunks, on_cpu
from pyro_dft.engine_jax.cost import point_size, uses_lapack
from pyro_dft.engine_jax.gradients import needs_forward, value_and_gradient
from pyro_dft.engine_jax.sharding import Placement
from pyro_dft.errors import ModelError
from pyro_dft.recipe.engine import FULL_DATA, Forms
from pyro_dft.recipe.memory import PointSize
from pyro_dft.roots import coloured, projected

Potential = Callable[[Array, Any], Array]
MinibatchPotential = Callable[[Array, Any, Array], Array]
SmoothedPotential = Callable[[Array, Array, Any], Array]
# Host calls go through compiled blocks of one size, so that any number of points needs one compilation.
CPU_BLOCK, ACCELERATOR_BLOCK = 512, 8192
# The same where points are only evaluated: the rows that fill up a block cost as much as those that were asked for, which counts
# where a row costs more than a call (the second figure).
CPU_POINTS, CPU_DEAR_POINTS = 128, 32
# How programs that run briefly are compiled: a third of the time is saved, and small models take most of theirs to compile. They
# run as fast, but for solvers of differential equations, which lose a third. Models whose largest array has so many elements,
# which lose a quarter, are compiled as jax does by default.
BRIEFLY = {"xla_backend_optimization_level": 1}
SMALL_ELEMENTS = 2**13


def block_rows() -> int:
    """How many points one compiled call from the host takes."""
    return CPU_BLOCK if on_cpu() else ACCELERATOR_BLOCK


def double() -> np.dtype:
    """float64 where jax has it switched on, else float32."""
    return np.dtype(np.float64 if jax.config.read("jax_enable_x64") else np.float32)


@dataclass(frozen=True)
class TargetSpec:
    """What the compiled functions need to know of a posterior; equal specs share compiled programs.

    Attributes:
        potential: U(x, data) of one point (d,), minus the log density up to a constant, on the full data.
        dim: d.
        dtype: Name of the dtype in which the potential is evaluated.
        minibatch_potential: U(x, data, key) from a random subsample of the data, unbiased; or None. The key
            is two words; see `pyro_dft.engine_jax.random`.
        smoothed_potential: V(x, sigma, data), minus the log density of the posterior with noise N(0, sigma^2 I) added; or
            None.
        differences: Whether Hessian-vector products come from differences of scores (see `pyro_dft.engine_jax.cost.LAPACK`).
        size: What each point takes on the full data: how many are evaluated at once.
        minibatch_size: The same on a minibatch.
        surrogate: Whether whitened scores are those of a network, whose weights are what the posterior "reads".
        forward: Whether gradients come in forward mode; see `pyro_dft.engine_jax.gradients`.
        placement: Where rows and points are, where the data are spread over devices; else None.
    """

    potential: Potential
    dim: int
    dtype: str = "float32"
    minibatch_potential: MinibatchPotential | None = None
    differences: bool = False
    smoothed_potential: SmoothedPotential | None = None
    size: PointSize = PointSize()
    minibatch_size: PointSize = PointSize()
    forward: bool = False
    surrogate: bool = False
    placement: Placement | None = None

    @property
    def minibatch(self) -> bool:
        """Whether scores can come from random subsamples of the data."""
        return self.minibatch_potential is not None

    @property
    def brief(self) -> bool:
        """Whether its programs run so briefly that their compilation counts."""
        return self.size.elements < SMALL_ELEMENTS

    def evaluate(self, x: Array, data: Any, key: Array | None = None) -> tuple[Array, Array]:
        """Log density (...,) and score (..., d) at x (..., d); with a key from a minibatch for each point.

        Where either is not finite the log density is -inf and the score zero.
        """
        flat = x.reshape(-1, self.dim).astype(self.dtype)
        return self._finite(x, *self._rows(flat, data, key))

    def score(self, x: Array, data: Any) -> Array:
        """Score (..., d) on the full data at x (..., d), without the log density; zero where it is not finite."""
        _, gradient = self._rows(x.reshape(-1, self.dim).astype(self.dtype), data, None)
        good = jnp.isfinite(gradient).all(-1, keepdims=True)
        return jnp.where(good, -gradient, 0.0).astype(x.dtype).reshape(x.shape)

    def smoothed(self, x: Array, sigma: Array, data: Any) -> tuple[Array, Array]:
        """As `evaluate`, of the smoothed potential at x (..., d) with noise sigma (..., 1)."""
        assert self.smoothed_potential is not None
        flat = x.reshape(-1, self.dim).astype(self.dtype)
        levels = jnp.broadcast_to(sigma, (*x.shape[:-1], 1)).reshape(-1).astype(self.dtype)
        function = jax.vmap(value_and_gradient(self.smoothed_potential, self.forward), in_axes=(0, 0, None))
        rows = self._in_chunks(lambda part: function(part[0], part[1], data), (flat, levels), self.size)
        return self._finite(x, *rows)

    @staticmethod
    def _finite(x: Array, value: Array, gradient: Array) -> tuple[Array, Array]:
        good = jnp.isfinite(value) & jnp.isfinite(gradient).all(-1)
        log_density = jnp.where(good, -value, -jnp.inf).astype(x.dtype)
        score = jnp.where(good[:, None], -gradient, 0.0).astype(x.dtype)
        return log_density.reshape(x.shape[:-1]), score.reshape(x.shape)

    def evaluate_differentiable(self, x: Array, data: Any, key: Array | None = None) -> tuple[Array, Array]:
        """As `evaluate`, with a gradient of the score in x that drops what is not finite."""
        return self.evaluate(finite_gradient(x), data, key)

    def _rows(self, x: Array, data: Any, key: Array | None) -> tuple[Array, Array]:
        if key is None or self.minibatch_potential is None:
            function = jax.vmap(value_and_gradient(self.potential, self.forward), in_axes=(0, None))
            return self._in_chunks(lambda rows: function(*rows, data), (x,), self.size)
        function = jax.vmap(value_and_gradient(self.minibatch_potential, self.forward), in_axes=(0, None, 0))
        # One key gives each point a minibatch of its own: at the same cost, the noise averages out over the batch.
        keys = key if key.ndim > 1 else random.split(key, len(x))
        return self._in_chunks(lambda rows: function(rows[0], data, rows[1]), (x, keys), self.minibatch_size)

    def _in_chunks(self, function: Callable[[Any], Any], rows: tuple[Array, ...], size: PointSize) -> Any:
        placement = self.placement
        if placement is None:
            return in_chunks(function, rows, size.at_once(on_cpu(), compiled=True), size)
        # Each round is a message between devices.
        spread = lambda part: placement.whole(function(placement.spread(part)))  # noqa: E731
        return in_chunks(spread, rows, self.at_once(size), size)

    def whole(self, tree: Any) -> Any:
        """Results of a compiled function, whole on every device."""
        return tree if self.placement is None else self.placement.whole(tree)

    def at_once(self, size: PointSize) -> int:
        """Points of one call from the host, on all devices that share them; its program would fill its last part up."""
        rows = size.at_once(on_cpu())
        rows -= rows % min(rows, size.at_once(on_cpu(), compiled=True))
        return rows * (1 if self.placement is None else self.placement.points)


@jax.custom_vjp
def finite_gradient(x: Array) -> Array:
    """Identity whose backward pass drops non-finite gradients: one bad particle must not spoil the batch."""
    return x


finite_gradient.defvjp(
    lambda x: (x, None), lambda _, g: (jnp.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0),)
)


def whitened_score(
    spec: TargetSpec, u: Array, mean: Array, scale: Array, data: Any, key: Any, anchor: Any = None
) -> tuple[Array, Array]:
    """Target score L^T s(mean + L u) in whitened coordinates (C, B, d), and where it is finite (C, B).

    Elsewhere it is that of a unit Gaussian, which pulls back. Not meant to be differentiated.

    With an `anchor`, the full score (C, d) at the means, minibatch scores are corrected by those at the means:
    s_minibatch(x) - s_minibatch(m) + s(m) has little noise where the data are many and the posterior is narrow, a control
    variate (Baker et al., Control variates for stochastic gradient MCMC, 2019). It costs a second evaluation.
    """
    return _anchored(spec, spec.evaluate, u, mean, scale, data, key, anchor)


def _anchored(
    spec: TargetSpec, evaluate: Any, u: Array, mean: Array, scale: Array, data: Any, key: Any, anchor: Any
) -> tuple[Array, Array]:
    if spec.surrogate:
        return networks.score(data, u, jnp.zeros(())), jnp.ones(u.shape[:-1], bool)
    if anchor is None or key is None:
        return _whiten(evaluate, u, mean, scale, data, key)
    # The same rows of the data for the same point.
    keys = random.split(key, u.shape[0] * u.shape[1])
    score, good = _whiten(evaluate, u, mean, scale, data, keys)
    _, at_mean = spec.evaluate(jnp.broadcast_to(mean[:, None], u.shape), data, keys)
    correction = projected(scale, jnp.nan_to_num(anchor[:, None] - at_mean))
    return jnp.where(good[..., None], score + jax.lax.stop_gradient(correction), score), good


def smoothed_score(
    spec: TargetSpec, u: Array, sigma: Array, mean: Array, scale: Array, data: Any
) -> tuple[Array, Array]:
    """As `whitened_score` of the smoothed posterior, at noise (C, B, 1); differentiable in u."""
    if spec.forward:
        return _score_by_pushing(spec, u, (sigma, mean, scale, data, None, None))
    return _smoothed(spec, u, sigma, mean, scale, data)


def _smoothed(
    spec: TargetSpec, u: Array, sigma: Array, mean: Array, scale: Array, data: Any
) -> tuple[Array, Array]:
    def evaluate(x: Array, own: Any, _: Any) -> tuple[Array, Array]:
        return spec.smoothed(x if spec.forward else finite_gradient(x), sigma, own)

    return _whiten(evaluate, u, mean, scale, data, None)


def whitened_score_differentiable(
    spec: TargetSpec, u: Array, mean: Array, scale: Array, data: Any, key: Any, anchor: Any = None
) -> tuple[Array, Array]:
    """As `whitened_score`; its backward pass is a Hessian-vector product, exact or from differences of scores."""
    if spec.differences:
        return _score_by_differences(spec, u, (mean, scale, data, key, anchor))
    if spec.forward:
        return _score_by_pushing(spec, u, (None, mean, scale, data, key, anchor))
    return _anchored(spec, spec.evaluate_differentiable, u, mean, scale, data, key, anchor)


def _whiten(evaluate: Any, u: Array, mean: Array, scale: Array, data: Any, key: Any) -> tuple[Array, Array]:
    x = mean[:, None] + coloured(scale, u)
    log_density, score = evaluate(x, data, key)
    good = jnp.isfinite(jax.lax.stop_gradient(log_density))
    return jnp.where(good[..., None], projected(scale, score), -u), good


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score_by_differences(spec: TargetSpec, u: Array, arguments: tuple[Any, ...]) -> tuple[Array, Array]:
    return _anchored(spec, spec.evaluate, u, *arguments)


def _differences_forward(spec: TargetSpec, u: Array, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    return _score_by_differences(spec, u, arguments), (u, arguments)


def _differences_backward(spec: TargetSpec, residuals: Any, cotangents: Any) -> tuple[Array, None]:
    """H v from the scores at u +- h v / |v|: the error of rounding and that of the third derivative balance."""
    g, _ = cotangents
    u, (mean, scale, data, key, _) = residuals
    n = u.shape[1]
    if key is not None and spec.minibatch:
        # Both sides see the minibatch of the forward pass: others would differ by more than the points do.
        keys = random.split(key, u.shape[0] * n).reshape(u.shape[0], n, 2)
        key = jnp.concatenate([keys, keys], 1).reshape(-1, 2)
    length = jnp.linalg.norm(g, axis=-1, keepdims=True)
    direction = jnp.where(length > 0, g / jnp.where(length > 0, length, 1.0), 0.0)
    h = float(np.finfo(u.dtype).eps) ** (1 / 3)
    # One call for both sides: the model is compiled once.
    sides = jnp.concatenate([u + h * direction, u - h * direction], 1)
    score, good = _whiten(spec.evaluate, sides, mean, scale, data, key)
    product = length * (score[:, :n] - score[:, n:]) / (2 * h)
    usable = (good[:, :n] & good[:, n:])[..., None] & jnp.isfinite(product)
    return jnp.where(usable, product, 0.0), None


_score_by_differences.defvjp(_differences_forward, _differences_backward)


def _score(spec: TargetSpec, u: Array, arguments: tuple[Any, ...]) -> tuple[Array, Array]:
    sigma, *others = arguments
    if sigma is None:
        return _anchored(spec, spec.evaluate, u, *others)
    return _smoothed(spec, u, sigma, *others[:3])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score_by_pushing(spec: TargetSpec, u: Array, arguments: tuple[Any, ...]) -> tuple[Array, Array]:
    return _score(spec, u, arguments)


def _pushing_forward(spec: TargetSpec, u: Array, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    return _score(spec, u, arguments), (u, arguments)


def _pushing_backward(spec: TargetSpec, residuals: Any, cotangents: Any) -> tuple[Array, None]:
    """H v by a derivative of the score along v, forward over forward: H is its own transpose, as that of any density."""
    u, arguments = residuals
    _, product = jax.jvp(lambda at: _score(spec, at, arguments)[0], (u,), (cotangents[0],))
    return jnp.where(jnp.isfinite(product), product, 0.0), None


_score_by_pushing.defvjp(_pushing_forward, _pushing_backward)


@partial(jax.jit, static_argnums=0, compiler_options=BRIEFLY)
def _evaluate_block(spec: TargetSpec, x: Array, data: Any, words: Any) -> tuple[Array, Array]:
    return spec.evaluate(x, data, None if words is None else random.words(words))


_evaluate_large = jax.jit(_evaluate_block.__wrapped__, static_argnums=0)  # type: ignore[attr-defined]


class Target:
    """The posterior that a sampler is trained for, on points x of unconstrained R^d, as the host sees it.

    Args:
        potential: U(x, data) of one point (d,), minus the log density up to a constant, on the full data. Equal ones (by
            `==` and `hash`) share compiled programs.
        dim: d.
        data: Arrays that `potential` reads, any pytree.
        dtype: In which it is evaluated.
        forms: Its other forms, U(x, data, key) from a minibatch and V(x, sigma, data) with noise, and their rows of data.
        hvp: "exact", "difference", or "auto": differences where the potential calls LAPACK and runs on a CPU.
    """

    def __init__(
        self,
        potential: Potential,
        dim: int,
        *,
        data: Any = (),
        dtype: Any = np.float32,
        forms: Forms = FULL_DATA,
        hvp: str = "auto",
    ):
        self.dim, self.data = dim, data
        self.data_size, self.minibatch_size = forms.rows, forms.minibatch_rows
        drawn, smoothed = forms.minibatch, forms.smoothed
        self.dtype = np.dtype(dtype)
        point = jax.ShapeDtypeStruct((dim,), self.dtype)
        shape = jax.eval_shape(potential, point, data)
        if getattr(shape, "shape", None) != ():
            raise ModelError(f"potential_fn must return a scalar, got {shape}")
        differences = hvp == "difference"
        if hvp == "auto" and on_cpu():
            differences = uses_lapack(potential, point, data)
        forward = needs_forward(potential, point, data)
        if smoothed is not None:
            level = jax.ShapeDtypeStruct((), self.dtype)
            forward = needs_forward(smoothed, point, level, data) or forward
        size = minibatch = point_size(value_and_gradient(potential, forward), point, data)
        if drawn is not None:
            key = jax.ShapeDtypeStruct((2,), np.uint32)
            from_key = value_and_gradient(lambda x, k, given: drawn(x, given, k), forward)
            minibatch = point_size(from_key, point, key, data, own=2)
        placement = Placement.of(data)
        if placement is not None:
            size = size.shared(placement.rows)  # a minibatch is on each device that has its point
        self.spec = TargetSpec(
            potential, dim, self.dtype.name, drawn, differences, smoothed, size, minibatch, forward,
            placement=placement,
        )  # fmt: skip
        self.gradient_evaluations = self.data_rows = self.nonfinite_evaluations = 0

    @property
    def minibatch(self) -> bool:
        """Whether scores can come from random subsamples of the data."""
        return self.spec.minibatch

    @property
    def adaptive(self) -> bool:
        """Whether the potential has loops that end by what they compute."""
        return self.spec.size.adaptive

    @property
    def vectorised(self) -> bool:
        """Whether a batch of points is evaluated at once: always, in jax."""
        return True

    def count(self, evaluations: int, nonfinite: int = 0, *, minibatch: bool = False) -> None:
        """Adds to the cost, of minibatches or of the full data; compiled loops cannot count on the host."""
        self.gradient_evaluations += int(evaluations)
        self.data_rows += int(evaluations) * (self.minibatch_size if minibatch else self.data_size)
        self.nonfinite_evaluations += int(nonfinite)

    def evaluate(
        self, x: Any, minibatches: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log density (...,) and score (..., d) at x (..., d); -inf and zero where not finite.

        Args:
            x: Points.
            minibatches: Chooses the data of each point, where the model subsamples them; None evaluates on the full data.
        """
        x = np.asarray(x)
        flat = x.reshape(-1, self.dim)
        minibatch = minibatches is not None and self.minibatch
        size = self.spec.minibatch_size if minibatch else self.spec.size
        most = CPU_POINTS if self.spec.brief else CPU_DEAR_POINTS
        rows = min(most if on_cpu() else ACCELERATOR_BLOCK, self.spec.at_once(size))
        n, evaluate = len(flat), _evaluate_block if self.spec.brief else _evaluate_large
        log_density, score = np.empty(n, x.dtype), np.empty((n, self.dim), x.dtype)
        for start in range(0, n, rows):
            some = slice(start, min(start + rows, n))
            part = flat[some]
            padded = np.concatenate([part, np.repeat(part[:1], rows - len(part), 0)])
            words = None
            if minibatches is not None and minibatch:
                words = minibatches.integers(2**32, size=2, dtype=np.uint32)
            a, b = evaluate(self.spec, padded, self.data, words)
            log_density[some], score[some] = np.asarray(a)[: len(part)], np.asarray(b)[: len(part)]
        self.count(n, int((~np.isfinite(log_density)).sum()), minibatch=minibatch)
        return log_density.reshape(x.shape[:-1]), score.reshape(x.shape)
