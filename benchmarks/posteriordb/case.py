"""A posterior of posteriordb as the methods see it, and the reference that it is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.metrics import Errors, errors
from benchmarks.posteriordb import posteriors
from benchmarks.posteriordb.posteriors import Posterior
from benchmarks.references import QUANTILES, Reference


@dataclass(frozen=True)
class PosteriorCase:
    """One posterior; see `benchmarks.models.registry.Case`."""

    posterior: Posterior

    @property
    def name(self) -> str:
        """Key on the command line."""
        return self.posterior.name

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The model's positional arguments as NumPy arrays."""
        prepared = self.posterior.prepare(data.posteriordb_data(self.posterior.data))
        return tuple(np.asarray(a) for a in prepared)

    def pyro(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The Pyro model and its arguments."""
        return posteriors.pyro_model(self.posterior)

    def numpyro(self, reference: bool = False) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The NumPyro model and its arguments."""
        return posteriors.numpyro_model(self.posterior)

    def flat(self, samples: Mapping[str, Any]) -> np.ndarray:
        """Unconstrained coordinates (n, k) of constrained draws {site: (n, *shape)}."""
        wanted = {name: np.asarray(samples[name]) for name, _ in self.posterior.sites}
        return posteriors.unconstrain(self.posterior, wanted)


def reference(posterior: Posterior, chains: slice = slice(None)) -> Reference:
    """The published draws, or those of some of the ten chains, as a `Reference` without a floor."""
    draws = posteriors.reference_draws(posterior)[chains]
    flat = draws.reshape(-1, draws.shape[-1])
    none = np.empty((0, flat.shape[1]))
    return Reference(
        names=list(posteriors.coordinate_names(posterior)),
        mean=flat.mean(0),
        sd=flat.std(0),
        quantiles=np.quantile(flat, QUANTILES, axis=0),
        covariance=np.atleast_2d(np.cov(flat.T)),
        draws=flat,
        floor=none,
        rhat=none,
        ess=none,
        meta={"origin": f"posteriordb {posterior.name}"},
    )


def floor(posterior: Posterior) -> Errors:
    """Five of the published chains against the other five: errors of 5,000 exact draws against 5,000."""
    draws = posteriors.reference_draws(posterior)[5:]
    return errors(draws.reshape(-1, draws.shape[-1]), reference(posterior, slice(0, 5)))
