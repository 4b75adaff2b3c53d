"""The table of fits: how often `converged` was wrong, and how often a good fit was flagged, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import table
from benchmarks.hostile.kinds import KINDS
from benchmarks.posteriordb.bars import REFINED, upper_limit
from benchmarks.table import Row

COLUMNS: table.Columns = (
    ("kind", "title", "{}"),
    ("d", "dims", "{}"),
    ("fits", "fits", "{}"),
    ("converged", "converged", "{}"),
    ("of these off by a bar", "silent_off", "{}"),
    ("off by twice a bar (upper 95 % limit)", "silent_bad", "{}"),
    ("good", "good", "{}"),
    ("of these flagged (upper 95 % limit)", "false", "{}"),
    ("beyond a bar and flagged", "caught", "{}"),
    ("alarms", "alarms", "{}"),
    ("CPU s, median (mean)", "seconds", "{}"),
    ("gradients, median", "gradients", "{:.1e}"),
)
CASES: table.Columns = (
    ("fit", "name", "{}"),
    ("what", "what", "{}"),
    ("d", "d", "{}"),
    ("worst mean", "worst_mean", "{:.2f}"),
    ("sd min", "sd_low", "{:.2f}"),
    ("sd max", "sd_high", "{:.2f}"),
    ("worst q", "worst_quantile", "{:.2f}"),
    ("largest", "where", "{}"),
    ("in bars", "bars", "{:.1f}"),
    ("net of noise", "sure_bars", "{:.1f}"),
    ("draws", "judged_by", "{}"),
    ("status", "status", "{}"),
    ("alarms", "said", "{}"),
)
QUALITIES = ("good", "off", "bad")


def flagged(row: Row) -> bool:
    """Whether the fit warned."""
    return bool(row["status"] in ("suspect", "failed"))


def _rate(count: int, of: int) -> str:
    return f"{count} of {of} (<= {upper_limit(count, of):.1%})" if of else "-"


def counted(title: str, rows: Sequence[Row]) -> Row:
    """The line of the table of some fits."""
    judged = [r for r in rows if r["status"] != "raised"]
    calm, warned = ([r for r in judged if flagged(r) == said] for said in (False, True))
    good = [r for r in judged if r["quality"] == "good"]
    alarms = Counter(a for r in judged for a in r["alarms"])
    costs = [r["seconds"] for r in judged]
    dims = sorted({r["d"] for r in rows})
    return {
        "title": title,
        "dims": f"{dims[0]}-{dims[-1]}" if len(dims) > 1 else f"{dims[0]}",
        "fits": len(rows),
        "converged": len(calm),
        "silent_off": sum(r["quality"] != "good" for r in calm),
        "silent_bad": _rate(sum(r["quality"] == "bad" for r in calm), len(calm)),
        "good": len(good),
        "false": _rate(sum(map(flagged, good)), len(good)),
        "caught": sum(r["quality"] != "good" for r in warned),
        "alarms": ", ".join(f"{a} {n}" for a, n in alarms.most_common()) or "-",
        "seconds": f"{median(costs):.1f} ({sum(costs) / len(costs):.1f})" if costs else "-",
        "gradients": median(r["gradients"] for r in judged) if judged else None,
    }


def lines(rows: Sequence[Row]) -> list[Row]:
    """One line for each kind that has fits, and one for all."""
    groups = [(KINDS[k].title, [r for r in rows if r["kind"] == k]) for k in KINDS]
    return [counted(title, some) for title, some in groups if some] + [counted("all", rows)]


def alarm_table(rows: Sequence[Row]) -> str:
    """How often each alarm fired on fits of each quality."""
    names = sorted({a for r in rows for a in r.get("alarms", ())})
    out = ["| alarm | " + " | ".join(QUALITIES) + " |", "|---" * 4 + "|"]
    for name in names:
        counts = [sum(name in r.get("alarms", ()) and r["quality"] == q for r in rows) for q in QUALITIES]
        out.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(out)


def notes(rows: Sequence[Row], code: str) -> list[str]:
    """What a reader has to know, one sentence each."""
    out = [
        "default settings: the 4,000 draws that a fit keeps are held against 200,000 exact ones, in all unconstrained "
        "coordinates",
        f"the bars: means {REFINED.mean:.2f} sd, ratios of sds {1 - REFINED.sd:.2f} to {1 + REFINED.sd:.2f}, 5, 50 and 95 % "
        f"points {REFINED.quantile:.2f} sd",
        "an error passes a bar where the noise of that many draws does not explain it (5 % for all coordinates and statistics of "
        "a fit together); where it passes one by less than that, 16,000 further draws decide",
        "coordinates whose kurtosis is over 15 (Student-t with few degrees of freedom, necks of funnels) have no usable sd: "
        "their median stands in for the mean, the width from 5 to 95 % for the sd, also as the unit",
        "5, 50 and 95 % points that lie in a gap between modes (1 % of probability moves them by two bars or more) are left out; "
        "means and sds see the weights of modes",
        "CPU seconds are those of `run`, compilation included; fits of one kind and dimension share their programs",
    ]
    for row in (r for r in rows if r["status"] == "raised"):
        out.append(f"{row['name']} raised {row['reason']}")
    if old := sum(r["code"] != code for r in rows):
        out.append(f"made by another state of the package: {old} of {len(rows)} fits")
    return out


def cases(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The fits that one wants to see, by heading."""
    judged = [r | {"said": ", ".join(r["alarms"]) or "-"} for r in rows if r["status"] != "raised"]
    calm, warned = ([r for r in judged if flagged(r) == said] for said in (False, True))
    return {
        "Converged and off by twice a bar": [r for r in calm if r["quality"] == "bad"],
        "Converged and off by a bar": [r for r in calm if r["quality"] == "off"],
        "Flagged though good": [r for r in warned if r["quality"] == "good"],
        "Flagged and off by a bar or more": [r for r in warned if r["quality"] != "good"],
    }


def write(rows: Sequence[Row], command: str, code: str, stem: Path) -> str:
    """Writes ``stem``.md; returns the table as text.

    Args:
        rows: Of all fits.
        command: That made them.
        code: Fingerprint of the package as it is.
        stem: Path without a suffix.
    """
    listed = "\n".join(f"- {n}" for n in notes(rows, code))
    parts = [
        f"Made by `{command}`.",
        table.markdown(lines(rows), COLUMNS).rstrip(),
        listed,
        alarm_table(rows),
    ]
    for heading, some in cases(rows).items():
        parts.append(f"## {heading}\n\n{table.markdown(some, CASES).rstrip() if some else 'None.'}")
    name = stem.name.removeprefix("hostile_")
    parts.append(
        f"One fit again, with all its errors: `python -m benchmarks.hostile --backend {name} --only NAME`."
    )
    stem.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return table.plain(lines(rows), COLUMNS)
