"""The verdict on a fit beneath the table that a framework's own `MCMC` prints."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_ORDER = ("converged", "suspect", "failed")


def show_verdict(
    mcmc: type,
    method: str,
    kernel: Callable[[Any], Any],
    reports: Callable[[Any], Sequence[Mapping[str, Any] | None]],
) -> None:
    """Makes a method that prints a summary print the verdict as well, where the kernel is a `DFTKernel`; once for each process.

    `MCMC` prints its table without asking the kernel for more than the number of divergences: a failed fit would look like any
    other.

    Args:
        mcmc: The framework's class.
        method: Name of the method.
        kernel: The `DFTKernel` of an instance, or None.
        reports: The diagnostics that belong to the draws of an instance: one for each chain, or one for all; none where the
            training was traced, None where there was nothing to infer.
    """
    plain = getattr(mcmc, method)

    @functools.wraps(plain)
    def with_verdict(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, *args, **kwargs)
        if kernel(self) is not None:
            print(verdict_line(reports(self)))
        return result

    setattr(mcmc, method, with_verdict)


def verdict_line(
    reports: Sequence[Mapping[str, Any] | None], where_more: str = "the kernel's diagnostics"
) -> str:
    """One line: the worst status, the alarms behind it, and where to read on.

    Args:
        reports: As `Diagnostics`, of each training; None where there was nothing to infer.
        where_more: What says more.
    """
    known = [report for report in reports if report is not None]
    if len(known) < len(reports):
        return "DFT: nothing to infer, as there is no continuous latent site"
    if not known:
        return (
            "DFT: no verdict, as the training was traced; give MCMC concrete data, or use DFT(...).run(...)"
        )
    worst = max((report["status"] for report in known), key=_ORDER.index)
    alarms = list(dict.fromkeys(alarm for report in known for alarm in report["alarms"]))
    named = f" ({', '.join(alarms)})" if alarms else ""
    bad = [str(i) for i, report in enumerate(known) if report["status"] == worst]
    where = f" in chain {', '.join(bad)} of {len(known)}" if 1 <= len(bad) < len(known) else ""
    return f"DFT: {worst}{where}{named}; {where_more} say more"
