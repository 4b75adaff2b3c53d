"""The models by name: what is fixed, which sites are ranked, and the log likelihood as a further test quantity.

Their functions are in ``numpyro_models.py`` and ``pyro_models.py``. Unlike those of ``benchmarks.models`` they can simulate
their data, and all priors are such that simulated data are of the size that a user would have: the scale of the eight
schools has a half-normal prior. Under the half-Cauchy prior of the textbooks one in thirty simulated scales is
above 100, where the data pin each standardised effect to a few hundredths of a prior sd, which the schools' own
data are far from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LOG_LIKELIHOOD = "log likelihood"


@dataclass(frozen=True)
class Model:
    """A joint distribution to draw parameters and data from.

    Attributes:
        name: Key on the command line and name of its functions.
        title: For the table and the picture.
        sites: Latent sites in order, with their shapes; each scalar in them is ranked.
        argument: Name of the functions' first argument; the second is ``y``.
        fixed: Its value.
        log_likelihood: (draws by site, data, fixed) -> (n,).
        shown: Coordinates that the picture has room for.
    """

    name: str
    title: str
    sites: Mapping[str, tuple[int, ...]]
    argument: str
    fixed: np.ndarray
    log_likelihood: Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]
    shown: tuple[str, ...]

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The fixed data, for keys of the cache."""
        return (self.fixed,)

    def numpyro(self) -> tuple[Callable[..., None], tuple[np.ndarray, ...]]:
        """The NumPyro function and its fixed arguments."""
        from benchmarks.sbc import numpyro_models

        return getattr(numpyro_models, self.name), (self.fixed,)

    def pyro(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The Pyro function and its fixed arguments."""
        import torch

        from benchmarks.sbc import pyro_models

        return getattr(pyro_models, self.name), (torch.tensor(self.fixed),)

    @property
    def names(self) -> list[str]:
        """Names of the columns of `quantities`."""
        out = []
        for site, shape in self.sites.items():
            out += [site + (f"[{','.join(map(str, i))}]" if shape else "") for i in np.ndindex(shape)]
        return [*out, LOG_LIKELIHOOD]

    def quantities(self, values: Mapping[str, np.ndarray], y: np.ndarray) -> np.ndarray:
        """Everything that is ranked, (n, k): the coordinates, and the log likelihood.

        The log likelihood depends on the data as well, and so sees errors that no coordinate shows, such as draws of
        the prior in place of the posterior (Modrák et al. 2023).
        """
        last = self.log_likelihood(values, y, self.fixed)
        return np.column_stack([*(np.reshape(values[site], (len(last), -1)) for site in self.sites), last])


def _normal(theta: np.ndarray, y: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return -0.5 * np.square((y - theta) / sigma).sum(-1)


def _noncentred(values: Mapping[str, np.ndarray], y: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    theta = values["mu"][:, None] + values["tau"][:, None] * values["theta_trans"]
    return _normal(theta, y, sigma)


def _centred(values: Mapping[str, np.ndarray], y: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return _normal(values["theta"], y, sigma)


def _bernoulli(values: Mapping[str, np.ndarray], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    eta = values["beta"] @ x.T
    return (y * eta - np.logaddexp(0.0, eta)).sum(-1)


def _design(rows: int = 100, columns: int = 5) -> np.ndarray:
    """An intercept and independent standard normal predictors."""
    x = np.random.default_rng(0).normal(size=(rows, columns))
    x[:, 0] = 1.0
    return x.astype(np.float32)


SIGMA = np.array([15, 10, 16, 11, 9, 11, 10, 18], np.float32)
X = _design()

MODELS: dict[str, Model] = {
    m.name: m
    for m in (
        Model(
            "schools_noncentred",
            "eight schools, non-centred",
            {"mu": (), "tau": (), "theta_trans": SIGMA.shape},
            "sigma",
            SIGMA,
            _noncentred,
            ("mu", "tau", "theta_trans[0]", LOG_LIKELIHOOD),
        ),
        Model(
            "schools_centred",
            "eight schools, centred",
            {"mu": (), "tau": (), "theta": SIGMA.shape},
            "sigma",
            SIGMA,
            _centred,
            ("mu", "tau", "theta[0]", LOG_LIKELIHOOD),
        ),
        Model(
            "logistic",
            "logistic regression",
            {"beta": X.shape[1:]},
            "x",
            X,
            _bernoulli,
            ("beta[0]", "beta[1]", "beta[2]", LOG_LIKELIHOOD),
        ),
    )
}
