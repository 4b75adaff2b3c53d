"""The training objectives: each formula of the paper stands here once.

Notation, all in whitened coordinates: a draw is x = g(z) + sigma eps with z, eps standard normal; s_q is the score of the
target, s_p that of the sampler's density p, estimated by the score network s_phi, and delta = s_phi(x) - s_q(x).
All functions take tensors (chains C, batch B, d), average over B and return one value for each chain, (C,).

Source: Luo and Deng, Denoising Fisher Training (arXiv 2411.01453): Lemma 2, Theorem 1 and Algorithm 1; the general distance
is that of its Theorem 1 with d(.) in place of the square; KL: Luo et al., arXiv 2306.04952.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """Distance d(delta) between two scores: `1/2 ||delta||^2`, or pseudo-Huber with its knee at `scale * sqrt(dim)`."""

    name: str = "squared"
    scale: float = 3.0

    def _root(self, delta: Tensor) -> Tensor:
        knee = self.scale**2 * delta.shape[-1]
        return (1 + delta.square().sum(-1, keepdim=True) / knee).sqrt()

    def value(self, delta: Tensor) -> Tensor:
        """d(delta), summed over the last axis: (..., d) -> (...)."""
        if self.name == "squared":
            return 0.5 * delta.square().sum(-1)
        return self.scale**2 * delta.shape[-1] * (self._root(delta).squeeze(-1) - 1)

    def slope(self, delta: Tensor) -> Tensor:
        """The gradient d'(delta), (..., d)."""
        return delta if self.name == "squared" else delta / self._root(delta)


def denoising(score: Tensor, eps: Tensor, sigma: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Denoising loss J(s) = E 1/2 ||s(x) + eps / sigma||^2; its minimiser over all s is s_p."""
    return 0.5 * (weight * (score + eps / sigma).square().sum(-1)).mean(-1)


def denoising_weighted(score: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Denoising loss with each coordinate weighted by sigma^2, so that its size does not grow as sigma falls."""
    return 0.5 * (sigma * score + eps).square().sum(-1).mean(-1)


def fisher_full(
    delta: Tensor,
    score_p: Tensor,
    eps: Tensor,
    sigma: Tensor,
    distance: Distance,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Theorem 1: L = E[ d(delta) - d'(delta)^T (s_phi(x) + eps / sigma) ].

    With the weights of s_phi frozen, and the gradient running through x in every place (s_q(x) included), its gradient is
    that of the Fisher divergence E d(s_p - s_q). For the squared distance L = J(s_q) - J(s_phi), a lower bound of it.
    Where the noise varies from point to point, `weight` (C, B) says how much each level counts.
    """
    each = distance.value(delta) - (distance.slope(delta) * (score_p + eps / sigma)).sum(-1)
    return (weight * each).mean(-1)


def fisher_full_two_minibatches(
    delta_1: Tensor, delta_2: Tensor, score_p: Tensor, eps: Tensor, sigma: Tensor
) -> Tensor:
    """`fisher_full` (squared) from two independent minibatch scores: unbiased, where squaring one score is not.

    E[ 1/2 delta_1^T delta_2 - 1/2 (delta_1 + delta_2)^T (s_phi + eps / sigma) ].
    """
    cross = 0.5 * (delta_1 * delta_2).sum(-1)
    return (cross - 0.5 * ((delta_1 + delta_2) * (score_p + eps / sigma)).sum(-1)).mean(-1)


def fisher_partial(delta: Tensor, distance: Distance, weight: Tensor | float = 1.0) -> Tensor:
    """The first term of Theorem 1 alone, E d(delta). A biased gradient, kept for the paper's Figure 2."""
    return (weight * distance.value(delta)).mean(-1)


def kl(delta: Tensor, x: Tensor, distance: Distance) -> Tensor:
    """KL-NS: a surrogate whose gradient E[(dx/dtheta)^T d'(delta)] is that of KL(p || q) for the squared distance.

    With the pseudo-Huber distance single particles pull with bounded force; the fixed point p = q is the same. The value
    of the surrogate itself means nothing.
    """
    return (distance.slope(delta.detach()) * x).sum(-1).mean(-1)


def kl_levels(delta: Tensor, x: Tensor, sigma: Tensor, distance: Distance) -> Tensor:
    """`kl` at noise levels sigma (C, B, 1) that vary from point to point, each weighted by sigma^2.

    That weight makes the force on a draw the difference of two denoised points, of one size at all levels: the sum over
    levels of KL divergences of noised densities (Luo et al., Diff-Instruct, arXiv 2305.18455, equation 6, with that weight).
    """
    return kl(sigma * delta, sigma * x, distance)


def fisher_gap(
    score_q: Tensor,
    score_p: Tensor,
    eps: Tensor,
    sigma: Tensor,
    score_q_2: Tensor | None = None,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """J(s_q) - J(s_phi) on fresh draws: a lower bound of the Fisher divergence for any score network, tight for a good one.

    With minibatch scores give two independent ones, so that the noise of s_q does not enter squared.
    """
    if score_q_2 is None:
        return denoising(score_q, eps, sigma, weight) - denoising(score_p, eps, sigma, weight)
    shift = eps / sigma
    own = 0.5 * ((score_q + shift) * (score_q_2 + shift)).sum(-1).mean(-1)
    return own - denoising(score_p, eps, sigma)
