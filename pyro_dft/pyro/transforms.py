"""From the support of a distribution to unconstrained coordinates and back."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import biject_to
from torch import Tensor
from torch.distributions import constraints, transforms
from torch.nn.functional import logsigmoid

from pyro_dft.models.circular import COPIES, SPREAD

from .families import unwrap


class _TriangularTransform(transforms.Transform):
    """A vector of length k (k + 1) / 2 -> lower triangular k x k matrix with a positive diagonal.

    torch registers no bijection for these supports. As in NumPyro, so that each framework reads the other's
    files, the diagonal is exp of the last k coordinates and the others fill the strict lower triangle row by
    row: log |det J| is the sum of the last k coordinates.
    """

    domain = constraints.real_vector
    codomain: constraints.Constraint = constraints.lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self))

    __hash__ = transforms.Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        k = self._side(x.shape[-1])
        rows, columns = torch.tril_indices(k, k, -1, device=x.device)
        # Products with one-hot tensors, not indexed assignment: the latter is in place and vmap forbids it.
        place = torch.zeros(x.shape[-1] - k, k, k, dtype=x.dtype, device=x.device)
        place[torch.arange(len(rows)), rows, columns] = 1
        strict = (x[..., :-k] @ place.reshape(len(rows), k * k)).reshape(x.shape[:-1] + (k, k))
        return strict + torch.diag_embed(x[..., -k:].exp())

    def _inverse(self, y: Tensor) -> Tensor:
        k = y.shape[-1]
        rows, columns = torch.tril_indices(k, k, -1, device=y.device)
        return torch.cat([y[..., rows, columns], y.diagonal(dim1=-2, dim2=-1).log()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x[..., -y.shape[-1] :].sum(-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        k = self._side(shape[-1])
        return tuple(shape[:-1]) + (k, k)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        k = shape[-1]
        return tuple(shape[:-2]) + (k * (k + 1) // 2,)

    @staticmethod
    def _side(size: int) -> int:
        k = int(((8 * size + 1) ** 0.5 - 1) / 2 + 0.5)
        if k * (k + 1) // 2 != size:
            raise ValueError(f"{size} is not the number of entries of a triangular matrix")
        return k


class _PositiveDefiniteTransform(_TriangularTransform):
    """A vector of length k (k + 1) / 2 -> positive definite matrix L L^T.

    log |det J| of L -> L L^T on the lower triangle is k log 2 + sum_i (k - i) log L_ii for i = 0, ..., k - 1
    (Muirhead, Aspects of Multivariate Statistical Theory, theorem 2.1.9).
    """

    codomain = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        factor = super()._call(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        k = y.shape[-1]
        powers = torch.arange(k, 0, -1, dtype=x.dtype, device=x.device) + 1
        return (x[..., -k:] * powers).sum(-1) + k * torch.log(
            torch.tensor(2.0, dtype=x.dtype, device=x.device)
        )


class _StickBreaking(transforms.StickBreakingTransform):
    """torch's coordinates of a simplex, computed in logarithms.

    There the rest of the stick is a product of rounded factors, and the log Jacobian has logarithms of values that were clipped:
    in single precision the density is flat from a coordinate of -87 on, and another one above 16. Sparse simplices, as under
    Dirichlet(0.1), get there.
    """

    @staticmethod
    def _logs(x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of all shares (..., K), and of what each break leaves of the stick (..., K - 1)."""
        x = x - torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()
        left = logsigmoid(-x)
        none = x.new_zeros((*x.shape[:-1], 1))
        before = torch.cat([none, left.cumsum(-1)], -1)
        return before + torch.cat([logsigmoid(x), none], -1), left

    def _call(self, x: Tensor) -> Tensor:
        return self._logs(x)[0].clamp(min=math.log(4 * torch.finfo(x.dtype).tiny)).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the exact shares."""
        shares, left = self._logs(x)
        return (shares[..., :-1] + left).sum(-1)


def bijection(support: constraints.Constraint) -> transforms.Transform:
    """A bijective transform from unconstrained space onto ``support``.

    Pyro's and torch's registry, the triangular and positive definite matrices that are missing there, stick-breaking as here.

    Raises:
        NotImplementedError: There is none, as for discrete supports or the sphere.
    """
    if isinstance(support, constraints.independent):
        inner = bijection(support.base_constraint)
        return transforms.IndependentTransform(inner, support.reinterpreted_batch_ndims)
    if isinstance(support, type(constraints.lower_cholesky)):
        return _TriangularTransform()
    if isinstance(support, type(constraints.positive_definite)):
        return _PositiveDefiniteTransform()
    found = biject_to(support)
    # Not one that a user has registered in its place.
    return _StickBreaking() if type(found) is transforms.StickBreakingTransform else found


class Wrapped(transforms.Transform):
    """Real coordinates -> angles in [-pi, pi), with the share of each copy in the place of the Jacobian.

    See `pyro_dft.models.circular`. It is no bijection: the inverse gives the coordinate of an angle that is nearest to the
    centre.

    Args:
        centre: m, of the shape of the site.
    """

    domain = constraints.real
    codomain: constraints.Constraint = constraints.real
    bijective = True
    sign = +1

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.centre = centre

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapped) and torch.equal(self.centre, other.centre)

    __hash__ = transforms.Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return torch.remainder(x + math.pi, 2 * math.pi) - math.pi

    def _inverse(self, y: Tensor) -> Tensor:
        return self.centre + self._call(y - self.centre)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log shares of the copies."""
        t = x - self.centre
        turns = 2 * math.pi * torch.arange(-COPIES, COPIES + 1, dtype=x.dtype, device=x.device)
        copies = self._call(t)[..., None] + turns
        return -t.square() / (2 * SPREAD**2) - torch.logsumexp(-copies.square() / (2 * SPREAD**2), -1)


def is_identity(transform: transforms.Transform) -> bool:
    """Whether a transform leaves its argument alone, so that its Jacobian can be skipped."""
    while isinstance(transform, transforms.IndependentTransform):
        transform = transform.base_transform
    if type(transform).__name__ == "_InverseTransform":
        return is_identity(transform.inv)
    return isinstance(transform, transforms.ComposeTransform) and not transform.parts


def angle_of(fn: Any) -> str:
    """What a distribution on the real line may be: "angle" for the circular families, "improper" for a flat one, or ""."""
    fn = unwrap(fn)
    if isinstance(fn, dist.SineSkewed | dist.SineBivariateVonMises | torch.distributions.VonMises):
        return "angle"
    return "improper" if isinstance(fn, dist.ImproperUniform) else ""
