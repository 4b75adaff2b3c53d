"""The models by name: data, the two functions, and where the reference comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import data


@dataclass(frozen=True)
class Benchmark:
    """One posterior.

    Attributes:
        name: Key on the command line.
        kind: What sort of model it is, for the table.
        function: Name of the model function in ``pyro_models`` and ``numpyro_models``.
        load: Returns the data as a dict of NumPy arrays, in the order of the model's arguments.
        reference_function: NumPyro function that the reference run samples (default: ``function``); its
            deterministic sites supply what a non-centred form does not sample.
        numpyro_function: NumPyro function that is fitted (default: ``function``).
        target_accept: Acceptance target of the reference run.
        posteriordb: Name of the posteriordb posterior whose draws are the reference, if it is one of theirs.
    """

    name: str
    kind: str
    function: str
    load: Callable[[], dict[str, np.ndarray]]
    reference_function: str | None = None
    numpyro_function: str | None = None
    target_accept: float = 0.95
    posteriordb: str | None = None

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The model's positional arguments as NumPy arrays."""
        return tuple(self.load().values())

    def pyro(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The Pyro model and its arguments as tensors (floats in torch's default dtype)."""
        import torch

        from benchmarks.models import pyro_models

        args = tuple(
            torch.tensor(a) if a.dtype.kind == "i" else torch.tensor(a, dtype=torch.get_default_dtype())
            for a in self.arrays()
        )
        return getattr(pyro_models, self.function), args

    def numpyro(self, reference: bool = False) -> tuple[Callable[..., None], tuple[np.ndarray, ...]]:
        """The NumPyro model (or its easier reference form) and its arguments as NumPy arrays."""
        from benchmarks.models import numpyro_models

        name = (self.reference_function if reference else self.numpyro_function) or self.function
        return getattr(numpyro_models, name), self.arrays()

    def flat(self, samples: Mapping[str, Any]) -> np.ndarray:
        """Coordinates (n, d) in which errors are measured, from constrained draws {site: (n, *shape)}."""
        from benchmarks.flat import to_flat

        return to_flat(self, samples)


_EIGHT = "eight_schools-eight_schools_noncentered"

BENCHMARKS: dict[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark("breast_cancer", "logistic regression", "logistic", data.breast_cancer),
        Benchmark("german_credit", "logistic regression", "logistic", data.german_credit),
        Benchmark(
            "eight_schools_centered",
            "hierarchical, funnel",
            "eight_schools_centered",
            data.eight_schools,
            reference_function="eight_schools_noncentered",
            target_accept=0.99,
            posteriordb=_EIGHT,
        ),
        Benchmark(
            "eight_schools_noncentered",
            "hierarchical",
            "eight_schools_noncentered",
            data.eight_schools,
            target_accept=0.99,
            posteriordb=_EIGHT,
        ),
        Benchmark(
            "baseball",
            "partial pooling, binomial",
            "baseball",
            data.baseball,
            reference_function="baseball_reference",
            target_accept=0.99,
        ),
        Benchmark("gp_lynx", "Gaussian process", "gaussian_process", data.lynx),
        Benchmark(
            "mixture",
            "enumerated mixture",
            "enumerated_mixture",
            data.gauss_mix,
            numpyro_function="mixture_of_components",
            posteriordb="low_dim_gauss_mix-low_dim_gauss_mix",
        ),
        Benchmark("lkj_iris", "LKJ covariance", "lkj_covariance", data.iris),
        Benchmark("varying_slopes", "LKJ, varying slopes", "varying_slopes", data.rugged, target_accept=0.99),
        Benchmark(
            "dirichlet_covertype",
            "Dirichlet, pooled",
            "dirichlet_multinomial",
            data.covertype_counts,
            target_accept=0.99,
        ),
        Benchmark("ark", "autoregression", "autoregression", data.ark, posteriordb="arK-arK"),
        Benchmark("negbin_linnerud", "negative binomial GLM", "negative_binomial", data.linnerud),
        Benchmark("horseshoe_diabetes", "horseshoe", "horseshoe", data.diabetes, target_accept=0.99),
    )
}
