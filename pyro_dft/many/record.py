"""What is kept of one posterior of many: its draws, its verdict, and the reason where it has none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_dft.errors import first_line
from pyro_dft.export.arviz import sample_stats
from pyro_dft.interface.training import Training


@dataclass
class Record:
    """One posterior.

    Attributes:
        row: Which one, counted from 0.
        status: "converged", "suspect" or "failed".
        warnings: What is wrong, in words; the error where it could not be fitted.
        alarms: The same in short; ["error"] where it could not be fitted.
        report: What `DFT.diagnostics` says, in plain numbers; {} where it could not be fitted.
        samples: Draws by site, (chains, draws, *site); {} where it could not be fitted.
        stats: What is known of each draw, (chains, draws): the group "sample_stats" of ArviZ.
        dims: Names of the dimensions of each site.
        rows: Rows of data, where data sets were padded; else None.
    """

    row: int
    status: str
    warnings: list[str]
    alarms: list[str]
    report: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    dims: dict[str, list[str]] = field(default_factory=dict)
    rows: int | None = None

    @classmethod
    def of_error(cls, row: int, error: BaseException) -> Record:
        """Of a posterior that could not be fitted."""
        return cls(row, "failed", [first_line(error)], ["error"])

    @classmethod
    def of(cls, row: int, training: Training) -> Record:
        """Of a training that has left a result."""
        backend, result, report = training.backend, training.trained(), training.report()
        numpy, problem = backend.arrays.numpy, result.fit.problem
        samples = {name: numpy(value) for name, value in backend.constrain(problem, [result.kept]).items()}
        if (
            problem == 0 and result.refine_steps > 0
        ):  # the model's own coordinates, where the density is known
            log_density = numpy(result.served(result.measurement.log_density)).astype(float)
        else:
            log_density = -backend.potential_at(backend.original(problem, result.kept)).astype(float)
        stats = sample_stats(log_density, result.statistics())
        dims = backend.posteriors[0].plate_dims()
        return cls(
            row, report["status"], list(report["warnings"]), list(report["alarms"]), report.to_json(), samples,
            {name: np.asarray(value) for name, value in stats.items()},
            {name: own for name, own in dims.items() if name in samples},
        )  # fmt: skip

    def cut(self, rows: int, padded: int, plates: frozenset[str] | None = None) -> None:
        """Takes away what belongs to rows of padding: entries beyond `rows` in the plates of the rows.

        Args:
            rows: Of data.
            padded: All of them.
            plates: Those of the rows; None takes all that are as long as the padded data.
        """
        self.rows = rows
        for name, value in self.samples.items():
            labels = self.dims.get(name, [])
            for axis, (label, size) in enumerate(zip(labels, value.shape[2:], strict=False)):
                own = label != f"{name}_dim_{axis}" if plates is None else label in plates
                if own and size == padded:
                    value = np.take(value, np.arange(rows), axis + 2)
            self.samples[name] = value

    def header(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        return {
            "row": self.row, "status": self.status, "warnings": self.warnings, "alarms": self.alarms,
            "report": self.report, "dims": self.dims, "rows": self.rows,
        }  # fmt: skip
