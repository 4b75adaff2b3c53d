"""What the comparison must show, judged by the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.paper.neural import RECIPES
from benchmarks.table import Row

MEASURES = {"ksd_u": "KSD", "sw2": "sliced W2"}
OURS = {
    "dft-ns": "DFT-NS",
    "default": "default recipe, one step",
    "default-long": "default recipe, 5,000 steps, one step",
    "kl-then-dft": "KL, then DFT",
}
# The KL-NS that a sampler is judged by: one that trained for no fewer steps.
KL = {"default-long": "kl-ns-long"}
AGAINST_SVGD = ("donut", "rosenbrock")

Table = Mapping[tuple[str, str], Row]


def by_cell(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """Rows by density and method."""
    return {(r["density"], r["key"]): r for r in rows}


def within(a: Row, b: Row, measure: str, errors: float) -> bool:
    """Whether a is better than b, or worse by no more than so many standard errors of the difference."""
    error = math.hypot(a[f"{measure}_se"], b[f"{measure}_se"])
    return bool(a[measure] <= b[measure] + errors * error)


def against_svgd(cells: Table, density: str, ours: str) -> dict[str, bool]:
    """For each measure: at least as good as SVGD with 200 steps, or within two standard errors of exact draws."""
    own, svgd, exact = (cells[density, k] for k in (ours, "svgd-200", "exact"))
    return {m: within(own, svgd, m, 0.0) or within(own, exact, m, 2.0) for m in MEASURES}


def against_kl(cells: Table, density: str, ours: str) -> dict[str, bool]:
    """For each measure: within one standard error of KL-NS, or better."""
    kl = cells[density, KL.get(ours, "kl-ns")]
    return {m: within(cells[density, ours], kl, m, 1.0) for m in MEASURES}


def at_the_floor(rows: Sequence[Row]) -> list[Row]:
    """For each method, on how many densities it is within two standard errors of exact draws."""
    cells = by_cell(rows)
    out = []
    for key in dict.fromkeys(r["key"] for r in rows if r["key"] != "exact"):
        mine = [r for r in rows if r["key"] == key and (r["density"], "exact") in cells]
        if not mine:
            continue
        good = {m: [within(r, cells[r["density"], "exact"], m, 2.0) for r in mine] for m in MEASURES}
        both = [all(each) for each in zip(*good.values(), strict=True)]
        counts = {m: f"{sum(found)} of {len(mine)}" for m, found in good.items()}
        out.append({"method": mine[0]["method"], **counts, "both": f"{sum(both)} of {len(mine)}"})
    return out


def judge(rows: Sequence[Row]) -> list[str]:
    """One sentence for each requirement and sampler; those whose rows are missing are left out."""
    cells = by_cell(rows)
    densities = list(dict.fromkeys(r["density"] for r in rows))
    lines = []
    for key, label in OURS.items():
        for density in AGAINST_SVGD:
            if all((density, k) in cells for k in (key, "svgd-200", "exact")):
                found = against_svgd(cells, density, key)
                words = ", ".join(f"{MEASURES[m]} {_word(ok)}" for m, ok in found.items())
                lines.append(
                    f"{label} on {density}: {_word(all(found.values()))} (at least as good as SVGD with 200 steps, or within two "
                    f"standard errors of exact draws: {words})"
                )
        kl = KL.get(key, "kl-ns")
        known = [d for d in densities if (d, key) in cells and (d, kl) in cells]
        if not known:
            continue
        for measure, name in MEASURES.items():
            rival = RECIPES[kl].label
            good = [d for d in known if against_kl(cells, d, key)[measure]]
            missed = ", ".join(d for d in known if d not in good) or "none"
            lines.append(
                f"{label}, {name}: {_word(2 * len(good) > len(known))} (within one standard error of {rival} or better "
                f"on {len(good)} of {len(known)} densities; not on: {missed})"
            )
    return lines


def _word(ok: bool) -> str:
    return "pass" if ok else "FAIL"
