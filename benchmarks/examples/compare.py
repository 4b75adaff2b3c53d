"""NUTS beside the swapped kernel: what an example's row in the table says."""

from __future__ import annotations

from collections import Counter
from statistics import NormalDist
from typing import Any

import numpy as np

STOPPED = "stopped after"  # how the error of a run begins that met its limit
UNJUDGED = ("gets to its end; NUTS not run yet", "ends with an error; NUTS not run yet")
ALONE = "unchanged, where NUTS is over the limit"
FINE = ("unchanged", ALONE)
JUDGED = (*FINE, "error", "over the limit")
CHANCE = 0.01  # how often the largest difference of a row passes its bound where both kernels are right


def differences(nuts: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Largest differences between two runs of one example's `MCMC.run`.

    Args:
        nuts: Moments as of `benchmarks.examples.record`.
        ours: The same, of the swapped kernel.

    Returns:
        `count` coordinates that both hold, `mean` and `sd`: largest difference in Monte Carlo errors of both together, and
        `mean_in_sds` and `sd_ratio`, in those coordinates in which these are largest, for how much that is.
    """
    here = {name: i for i, name in enumerate(ours["names"])}
    pairs = [(i, here[name]) for i, name in enumerate(nuts["names"]) if name in here]
    if not pairs:
        return {"count": 0}
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    a = {key: np.array(nuts[key])[left] for key in ("mean", "sd", "mean_error", "sd_error")}
    b = {key: np.array(ours[key])[right] for key in a}
    found: dict[str, float] = {"count": len(pairs)}
    for key in ("mean", "sd"):
        errors = np.hypot(a[f"{key}_error"], b[f"{key}_error"])
        found[key] = float(np.max(np.abs(a[key] - b[key]) / errors))
    found["mean_in_sds"] = float(np.max(np.abs(a["mean"] - b["mean"]) / a["sd"]))
    ratios = np.log(b["sd"] / a["sd"])
    found["sd_ratio"] = float(np.exp(ratios[np.argmax(np.abs(ratios))]))
    return found


def bound(count: int) -> float:
    """What the largest of `count` coordinates' two differences passes once in a hundred times, if they were independent."""
    return NormalDist().inv_cdf(1 - CHANCE / (4 * max(count, 1)))


def row(name: str, note: str, nuts: dict[str, Any] | None, ours: dict[str, Any] | None) -> dict[str, Any]:
    """What is told of one example."""
    told: dict[str, Any] = {"name": name, "note": note, "outcome": outcome(nuts, ours)}
    told["verdicts"] = "" if ours is None else _verdicts(ours["calls"])
    errors = [side["error"] for side in (nuts, ours) if side is not None and side["error"]]
    told["error"] = errors[0] if errors else ""
    told["code"] = None if ours is None else ours.get("code")
    for key, side in (("nuts", nuts), ("dft", ours)):
        told[f"{key}_seconds"] = None if side is None else sum(call["seconds"] for call in side["calls"])
        told[f"{key}_stopped"] = side["seconds"] if _stopped(side) else None
    if nuts is None or ours is None:
        return told
    calls = list(zip(nuts["calls"], ours["calls"], strict=False))
    found = [differences(a["moments"], b["moments"]) for a, b in calls]
    found = [one for one in found if one["count"]]
    if found:
        told["count"] = sum(int(one["count"]) for one in found)
        for key in ("mean", "sd", "mean_in_sds"):
            told[key] = max(one[key] for one in found)
        told["sd_ratio"] = max((one["sd_ratio"] for one in found), key=lambda r: abs(np.log(r)))
        told["beyond"] = max(told["mean"], told["sd"]) > bound(told["count"])
    return told


def _stopped(side: dict[str, Any] | None) -> bool:
    return side is not None and side["error"].startswith(STOPPED)


def outcome(nuts: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    """In words: the swapped run is judged where NUTS itself gets to the end, or is stopped for what it costs."""
    if ours is None:
        return "not run"
    if nuts is None:
        return UNJUDGED[bool(ours["error"])]
    if _stopped(nuts):
        return "over the limit, NUTS too" if _stopped(ours) else "error" if ours["error"] else ALONE
    if nuts["error"]:
        return "not with NUTS either" if ours["error"] else "NUTS ends with an error"
    if not nuts["calls"]:
        return "no run of NUTS"
    return "over the limit" if _stopped(ours) else "error" if ours["error"] else "unchanged"


def _verdicts(calls: list[dict[str, Any]]) -> str:
    words = Counter(str(v or "nothing to infer") for call in calls for v in call["verdicts"])
    alarms = sorted({alarm for call in calls for alarm in call["alarms"]})
    said = ", ".join(name if n == 1 and len(words) == 1 else f"{n} {name}" for name, n in words.items())
    return said + (f" ({', '.join(alarms)})" if alarms else "")


def table(rows: list[dict[str, Any]], backend: str, code: str) -> str:
    """All rows as Markdown, with counts before them.

    Args:
        rows: From `row`.
        backend: Whose examples.
        code: State of the package, as of `benchmarks.cache.code_hash`.
    """
    judged = [one for one in rows if one["outcome"] in JUDGED]
    fine = [one for one in judged if one["outcome"] in FINE]
    files = {one["name"].split()[0] for one in judged}
    bad = {one["name"].split()[0] for one in judged if one["outcome"] not in FINE}
    compared = [one for one in rows if "count" in one]
    beyond = [one for one in compared if one["beyond"]]
    certain = [
        one for one in beyond if one["verdicts"] == "converged" or one["verdicts"].endswith(" converged")
    ]
    ratios = [one["dft_seconds"] / one["nuts_seconds"] for one in compared if one["nuts_seconds"]]
    median = np.median(ratios) if ratios else float("nan")
    alone = sum(one["outcome"] in UNJUDGED for one in rows)
    old = sum(one["outcome"] != "not run" and one["code"] != code for one in rows)
    open_ = f" {alone} more runs have no NUTS beside them yet." if alone else ""
    open_ += f" {old} are of an earlier state of the package." if old else ""
    lines = [
        f"# {backend}'s own examples with the kernel swapped", "",
        f"`python -m benchmarks.examples FOLDER`: {len(judged)} runs of {len(files)} examples and tutorials; {len(fine)} runs, "
        f"of {len(files - bad)} examples, get to their end unchanged. In {len(beyond)} of the {len(compared)} that have NUTS' "
        f"draws beside theirs the largest difference passes what chance gives once in a hundred times; {len(certain)} of "
        "them say `converged`. CPU seconds within `MCMC.run`, compilation included, over those of NUTS: median "
        f"{median:.2f}.{open_}", "",
        "Differences are the largest over all coordinates and all runs within an example, between NUTS and the swapped kernel, "
        "of means and of standard deviations: in Monte Carlo errors of both together, and then in posterior sds and as the "
        "ratio of sds. A * marks those beyond chance. NUTS is as short as the example has it, and may be off itself.", "",
        "| example | outcome | verdict | CPU s NUTS | CPU s DFT | over NUTS | coordinates | means, in errors | sds, in errors | "
        "mean, in sds | sd ratio | note |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [_line(one) for one in rows if one["outcome"] != "not run"]
    return "\n".join(lines) + "\n"


def _line(one: dict[str, Any]) -> str:
    shown = []
    for key in ("nuts", "dft"):
        stopped, seconds = one[f"{key}_stopped"], one[f"{key}_seconds"]
        shown.append(f"> {stopped:.0f}" if stopped else "–" if seconds is None else f"{seconds:.1f}")
    both = "count" in one and one["nuts_seconds"] and not one["dft_stopped"]
    shown.append(f"{one['dft_seconds'] / one['nuts_seconds']:.2f}" if both else "–")
    if "count" in one:
        star = "*" if one["beyond"] else ""
        shown += [str(one["count"]), f"{one['mean']:.1f}{star}", f"{one['sd']:.1f}{star}"]
        shown += [f"{one['mean_in_sds']:.2f}", f"{one['sd_ratio']:.2f}"]
    else:
        shown += ["–"] * 5
    note = "; ".join(text for text in (one["note"], one["error"]) if text)
    cells = [one["name"], one["outcome"], one["verdicts"] or "–", *shown, note or "–"]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
