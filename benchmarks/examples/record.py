"""What each `MCMC.run` of an example gave: means, sds and their Monte Carlo errors, the verdict and the CPU seconds."""

from __future__ import annotations

import functools
import resource
from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_dft.judging.rhat import ess

# Of a call's coordinates so many are kept at most, evenly spread.
MOST = 2000


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def moments(samples: dict[str, Any]) -> dict[str, list[float]]:
    """Mean and sd of every coordinate that varies, with their Monte Carlo errors.

    The error of an sd is that of the mean of squared deviations, over twice the sd (the delta method).

    Args:
        samples: site -> (chains, draws, *site); sites that hold whole numbers are left out.
    """
    names, columns = [], []
    for site in sorted(samples):
        values = np.asarray(samples[site])
        if values.dtype.kind != "f" or values.size == 0:
            continue
        flat = values.reshape(*values.shape[:2], -1).astype(np.float64)
        names += [f"{site}[{i}]" for i in range(flat.shape[2])]
        columns.append(flat)
    if not columns:
        return {"names": [], "mean": [], "sd": [], "mean_error": [], "sd_error": []}
    draws = np.concatenate(columns, axis=2)
    chosen = np.unique(np.linspace(0, draws.shape[2] - 1, min(MOST, draws.shape[2])).astype(int))
    draws = draws[:, :, chosen]
    mean, sd = draws.mean((0, 1)), draws.std((0, 1))
    squares = (draws - mean) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_error = sd / np.sqrt(ess(draws, kind="mean"))
        sd_error = squares.std((0, 1)) / (2 * sd * np.sqrt(ess(squares, kind="mean")))
    kept = np.flatnonzero(np.isfinite(mean_error) & np.isfinite(sd_error) & (sd > 1e-6 * (1e-30 + abs(mean))))
    numbers = {"mean": mean, "sd": sd, "mean_error": mean_error, "sd_error": sd_error}
    return {"names": [names[chosen[i]] for i in kept]} | {k: v[kept].tolist() for k, v in numbers.items()}


def record(mcmc: type, reports: Callable[[Any], Any], calls: list[dict[str, Any]]) -> None:
    """Lets `run` of a framework's `MCMC` leave what it gave in `calls`.

    Args:
        mcmc: The class.
        reports: The verdicts of an instance, where its kernel is ours.
        calls: Gets one entry for each run that is not traced.
    """
    plain = mcmc.run  # type: ignore[attr-defined]

    @functools.wraps(plain)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = cpu()
        result = plain(self, *args, **kwargs)
        try:
            samples = {k: np.asarray(v) for k, v in self.get_samples(group_by_chain=True).items()}
        except Exception as error:
            if "Tracer" not in type(error).__name__:
                raise
            return result
        seconds = cpu() - before
        verdicts = [None if one is None else one["status"] for one in reports(self)]
        alarms = sorted({alarm for one in reports(self) if one is not None for alarm in one["alarms"]})
        calls.append(
            {"seconds": seconds, "verdicts": verdicts, "alarms": alarms, "moments": moments(samples)}
        )
        return result

    mcmc.run = recorded  # type: ignore[attr-defined]
