"""Which error is small enough: the bars of a row, and the counts over all posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.table import Row


@dataclass(frozen=True)
class Bar:
    """Limits in sds of the reference.

    Attributes:
        mean: Of the worst mean error.
        sd: Of the deviation of a ratio of sds from one.
        quantile: Of the worst error of the 5, 50 and 95 % quantiles.
    """

    mean: float
    sd: float
    quantile: float

    def holds(self, row: Row, times: float = 1.0) -> bool:
        """Whether all errors of a row are within so many times the limits."""
        if row.get("worst_mean") is None:
            return False
        return bool(
            row["worst_mean"] <= times * self.mean
            and row["sd_low"] >= 1 - times * self.sd
            and row["sd_high"] <= 1 + times * self.sd
            and row["worst_quantile"] <= times * self.quantile
        )


REFINED = Bar(0.10, 0.07, 0.15)
RAW = Bar(0.15, 0.15, float("inf"))


def bar(method: str) -> Bar:
    """One-step draws are held against a wider bar."""
    return RAW if method.endswith("-raw") else REFINED


def worst(row: Row) -> float:
    """The largest error of a row in units of its limit: 1 is just good enough."""
    if row.get("worst_mean") is None:
        return float("inf")
    limit = REFINED
    return max(
        row["worst_mean"] / limit.mean,
        (1 - row["sd_low"]) / limit.sd,
        (row["sd_high"] - 1) / limit.sd,
        row["worst_quantile"] / limit.quantile,
    )


def judged(rows: Sequence[Row]) -> list[Row]:
    """Rows with `passes`, `excused` (NUTS misses the bar in the same run, and this row is no worse) and `ratio`."""
    nuts = {r["model"]: r for r in rows if r["method"] == "nuts"}
    out = []
    for r in rows:
        base = nuts.get(r["model"], {})
        passes = bar(r["method"]).holds(r)
        excused = bool(
            not passes
            and r["method"] not in ("nuts", "reference")
            and base
            and not REFINED.holds(base)
            and worst(r) <= worst(base)
        )
        ratio = None
        if r["method"] != "nuts" and r.get("seconds") and base.get("seconds"):
            ratio = r["seconds"] / base["seconds"]
        share = r.get("compile_share")
        running = None if share is None or not r.get("seconds") else r["seconds"] * (1 - share)
        said = "yes" if passes else "as NUTS" if excused else "no"
        out.append(
            {**r, "passes": passes, "excused": excused, "ratio": ratio, "running": running, "bar": said}
        )
    return out


def upper_limit(count: int, of: int) -> float:
    """Upper 95 % limit (one-sided, Clopper and Pearson) of a rate seen `count` times in `of`."""
    from scipy.stats import beta

    return 1.0 if count >= of else float(beta.ppf(0.95, count + 1, of - count))


def summary(rows: Sequence[Row]) -> list[str]:
    """The counts, one sentence each.

    Args:
        rows: From `judged`.
    """
    out = []
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        good, excused = sum(r["passes"] for r in mine), sum(r["excused"] for r in mine)
        limit = bar(method)
        words = f"worst mean error {limit.mean:.2f} sd, sd ratios {1 - limit.sd:.2f} to {1 + limit.sd:.2f}"
        if limit.quantile < float("inf"):
            words += f", worst quantile error {limit.quantile:.2f} sd"
        more = f"; {excused} more are no worse than NUTS, which misses it too" if excused else ""
        share = (good + excused) / len(mine)
        out.append(f"{method}: {good} of {len(mine)} posteriors within {words}{more} ({share:.0%})")
    for method in ("dft-refined", "dft-raw"):
        mine = [r for r in rows if r["method"] == method]
        if not mine:
            continue
        missed = [r["model"] for r in mine if not r["passes"] and not r["excused"]]
        silent = [r["model"] for r in mine if r["model"] in missed and not r["flagged"]]
        alarms = [r["model"] for r in mine if r["passes"] and r["flagged"]]
        words = f"not flagged: {', '.join(silent) or 'none'}"
        out.append(f"{method}: outside the bar: {', '.join(missed) or 'none'}; {words}")
        out.append(f"{method}: inside the bar and flagged: {', '.join(alarms) or 'none'}")
    served = [r for r in rows if r["method"] == "dft-refined"]
    if served:
        calm = [r for r in served if not r["flagged"]]
        wrong = [r["model"] for r in calm if not REFINED.holds(r, 2.0)]
        out.append(
            f"status converged with an error of more than twice a bar: {len(wrong)} of {len(calm)}"
            f" ({', '.join(wrong) or 'none'}; upper 95 % limit of the rate {upper_limit(len(wrong), len(calm)):.0%})"
        )
        ratios = [r["ratio"] for r in served if r["ratio"] is not None]
        if ratios:
            out.append(
                f"CPU seconds to the refined draws over those of NUTS, compilation included: median {median(ratios):.2f} "
                f"over {len(ratios)} posteriors (from {min(ratios):.2f} to {max(ratios):.2f})"
            )
        spent = {r["model"]: r["gradients"] for r in rows if r["method"] == "nuts" and r.get("gradients")}
        times = [
            r["gradients"] / spent[r["model"]] for r in served if r["model"] in spent and r.get("gradients")
        ]
        if times:
            out.append(
                f"gradients to the refined draws over those of NUTS after its warm-up: median {median(times):.2f} "
                f"(from {min(times):.2f} to {max(times):.2f}; above 2: {sum(t > 2 for t in times)})"
            )
    return out
