"""What the interface asks of a posterior, whether it is of a model or of a bare potential, in either framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from pyro_dft.errors import ModelError
from pyro_dft.layout import Layout
from pyro_dft.models import circular


class Posterior(ABC):
    """A posterior over one flat vector; the common part of both frameworks.

    Attributes:
        framework: Its name, in messages.
        layout: Sites of the flat vector.
        transforms: Name -> transform from constrained to unconstrained values.
        data_size: Rows of data that one evaluation on the full data reads (1 without subsampled plates).
        minibatch_size: Rows of data that one evaluation on a random part of the data reads.
        enumerated: Whether discrete sites are summed out.
    """

    framework: str
    layout: Layout
    transforms: dict[str, Any]
    data_size: int = 1
    minibatch_size: int = 1
    enumerated: bool = False

    @property
    def dim(self) -> int:
        """Length d of the flat vector."""
        return self.layout.dim

    @abstractmethod
    def constrain(self, x: Any, include_deterministic: bool = True) -> dict[str, Any]:
        """Flat points -> values of latent sites and, if asked for, deterministic ones.

        Args:
            x: Points of shape (n, d).
            include_deterministic: Also return deterministic sites and sites that a reparametrisation
                made deterministic. Those that depend on enumerated sites have no single value: left out.

        Returns:
            Name -> array of shape (n, *site shape).
        """

    @abstractmethod
    def unconstrain(self, samples: Mapping[str, Any]) -> Any:
        """Values of the latent sites -> flat points; entries that are no latent sites are ignored.

        Args:
            samples: Name -> array of shape (n, *site shape).

        Returns:
            Points of shape (n, d).

        Raises:
            ModelError: A latent site is missing or has the wrong shape.
        """

    def original_coordinates(self, x: Any) -> Any:
        """Flat points (n, d) -> the unconstrained coordinates (n, d) of the problem before non-centring."""
        return x

    def folded(self, x: np.ndarray) -> np.ndarray:
        """Flat points (..., d) without the full turns of angles; themselves where there are none."""
        return circular.folded(x, self.angles, self.centre) if self.angles.any() else x

    @property
    @abstractmethod
    def centre(self) -> np.ndarray:
        """The point (d,) around which starting points lie, and opposite of which angles are cut; in double precision."""

    @property
    def angles(self) -> np.ndarray:
        """Which coordinates (d,) are angles: full turns change nothing."""
        return self.layout.where([site.name for site in self.layout.sites if site.transform == circular.NAME])

    def compared_coordinates(self, x: Any) -> Any:
        """The original coordinates (n, d) of flat points (n, d), without full turns: those that draws are compared in.

        An angle that has made a full turn is where it was, and on the real line far out.
        """
        return self.original_coordinates(x)

    def noncentering_candidates(self) -> tuple[str, ...]:
        """Sites whose prior is moved or stretched by other latent sites (`families.py`); none if enumerated."""
        return ()

    def noncentered(self, sites: Collection[str] | Mapping[str, float]) -> Posterior:
        """The same posterior with standardised coordinates for ``sites``.

        The flat coordinates of such a site hold y, its unconstrained coordinates are loc + scale * y, with loc and scale from
        the model's own run; see `noncentering.py`. :meth:`constrain` returns the original sites.

        Args:
            sites: Names out of :meth:`noncentering_candidates`, or name -> amount, from 0 for the model's own coordinates to 1.

        Raises:
            ModelError: One of the sites is not a candidate.
        """
        raise ModelError(f"sites {list(sites)} cannot be non-centred: that needs a {self.framework} model")

    def invalid(self, x: Any) -> dict[str, dict[str, float]]:
        """Parameters and data that their distributions do not allow, at points (n, d); see `pyro_dft.models.validity`."""
        return {"parameters": {}, "data": {}}

    def observed(self) -> dict[str, Any]:
        """Observed data by site."""
        raise ModelError(self._needs_model("observed data"))

    @abstractmethod
    def density(self) -> circular.Evaluate:
        """Log densities (n,) and scores (n, d) at points (n, d) of NumPy, in double precision."""

    def site_terms(self, x: Any) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
        """Log density of each site on the full data at points (n, d), in double precision; {} for a bare potential.

        Returns:
            Name of a latent or observed site, and "log Jacobian" for the transforms -> the sum (n,) and the sum of the absolute
            terms (n,), or None where discrete sites leave it no density by itself.
        """
        return {}

    def log_likelihood(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """Pointwise log-likelihood of all data, log p(datum | draw); entries under a mask are 0.

        Terms of ``factor`` statements belong to no datum and are not included. :meth:`without_likelihood` names the sites that
        are left out: with NumPyro those of models with discrete sites, with Pyro those whose data do not have a discrete site
        each.

        Args:
            samples: Name -> array of shape (n, *site shape), for all latent sites.

        Returns:
            Name of an observed site -> array of shape (n, *batch shape of the site).

        Raises:
            ModelError: No observed site has a pointwise log-likelihood, or ``samples`` do not fit the model.
        """
        raise ModelError(self._needs_model("the log-likelihood"))

    def plate_dims(self) -> dict[str, list[str]]:
        """Names of the dimensions of latent, deterministic and observed sites, for ArviZ.

        Dimensions of a plate carry its name, others are called ``"<site>_dim_<i>"``.
        """
        return {}

    def _no_strategy(self) -> str:
        return f"init_strategy needs a {self.framework} model; with potential_fn, set initial_params"

    def _needs_model(self, what: str) -> str:
        return f"{what} needs a {self.framework} model: a bare potential_fn knows neither data nor likelihood"


def checked_samples(
    layout: Layout, samples: Mapping[str, Any], convert: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """Values of the latent sites, native (n, *site) each.

    Args:
        layout: The sites.
        samples: Values by name; entries that are no latent sites are ignored.
        convert: Makes a native array of the value of a site, by name.

    Raises:
        ModelError: a latent site is missing or has the wrong shape.
    """
    missing = [name for name in layout.names if name not in samples]
    if missing:
        raise ModelError(f"samples lack the latent sites {missing}")
    checked = {}
    for site in layout.sites:
        value = convert(site.name, samples[site.name])
        if value.ndim == 0 or tuple(value.shape[1:]) != site.constrained_shape:
            shape = ", ".join(["n", *map(str, site.constrained_shape)])
            raise ModelError(
                f"samples of site '{site.name}' must have shape ({shape}), got {tuple(value.shape)}"
            )
        checked[site.name] = value
    counts = {name: len(value) for name, value in checked.items()}
    if len(set(counts.values())) > 1:
        raise ModelError(f"samples have different numbers of draws: {counts}")
    return checked
