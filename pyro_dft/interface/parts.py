"""What a `DFT` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro_dft.interface.backend import Backend
from pyro_dft.interface.drawing import Drawing
from pyro_dft.interface.options import Options
from pyro_dft.interface.persistence import Store
from pyro_dft.interface.result import Result
from pyro_dft.interface.training import Training
from pyro_dft.recipe.fit import Fit


@dataclass(frozen=True)
class Parts:
    """The inner interface, for kernels and guides of this package; it may change.

    Attributes:
        options: The options of the `DFT`.
        backend: Turns the model into targets, and draws into sites.
        training: Trains, and holds the result.
        drawing: Makes draws of the result.
        store: Writes and reads the result, as a file or a copy.
    """

    options: Options
    backend: Any
    training: Training
    drawing: Drawing
    store: Store

    @classmethod
    def of(cls, backend: Backend) -> Parts:
        """New parts around a backend."""
        training = Training(backend)
        return cls(backend.options, backend, training, Drawing(training), Store(training))

    @property
    def result(self) -> Result:
        """The result of the training."""
        return self.training.trained()

    @property
    def fit(self) -> Fit:
        """The measured fit."""
        return self.result.fit

    @property
    def posterior(self) -> Any:
        """The posterior in the sampler's coordinates."""
        return self.backend.posteriors[self.fit.problem]
