"""The table, and what was to be shown: accuracy beside NUTS and KL-NS, and how much sooner it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks import table
from benchmarks.paper.logistic import judge
from benchmarks.paper.logistic.course import Run
from benchmarks.paper.logistic.judge import Score
from benchmarks.paper.logistic.methods import Line
from benchmarks.paper.logistic.problem import Split

SPEED_TARGET = 10.0

COLUMNS: table.Columns = (
    ("method", "method", "{}"),
    ("seeds", "seeds", "{}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("sd", "accuracy_sd", "{:.4f}"),
    ("log likelihood", "log_likelihood", "{:.4f}"),
    ("sd", "log_likelihood_sd", "{:.4f}"),
    ("worst mean", "worst_mean", "{:.2f}"),
    ("avg mean", "average_mean", "{:.2f}"),
    ("sd min", "sd_low", "{:.2f}"),
    ("sd max", "sd_high", "{:.2f}"),
    ("data passes", "passes", "{:.0f}"),
    ("wall s", "wall", "{:.0f}"),
    ("CPU s", "cpu", "{:.0f}"),
    ("CPU s until the log likelihood is NUTS'", "reached_cpu", "{:.1f}"),
    ("its own diagnostics", "said", "{}"),
)


def score(run: Run, labels: np.ndarray, mark: int = -1) -> Score:
    """Predictions of a run at a mark, the last one by default."""
    return Score.of(run.probability[mark], labels)


def reached(
    run: Run, labels: np.ndarray, goal: Score, axis: str = "wall", paired: bool = False
) -> float | None:
    """Cost of the first mark from which on the log likelihood is within one standard error of the goal's, or better.

    Args:
        run: The run.
        labels: (m,).
        goal: NUTS' final predictions.
        axis: "wall" or "cpu".
        paired: Take the standard error of the difference, row by row, in place of that of the goal: much smaller.
    """
    good = []
    for p in run.probability:
        now = Score.of(p, labels)
        error = (
            judge.paired_error(now.log_likelihoods, goal.log_likelihoods)
            if paired
            else goal.log_likelihood_error
        )
        good.append(now.log_likelihood >= goal.log_likelihood - error)
    late = [k for k, g in enumerate(good) if not g]
    first = late[-1] + 1 if late else 0
    return float(getattr(run, axis)[first]) if first < len(good) else None


def rows(lines: Sequence[Line], runs: Mapping[str, list[Run]], split: Split) -> list[table.Row]:
    """One row for each line; two where draws were refined, the raw ones first."""
    reference = runs["reference"][0].draws.astype(float)
    goal = score(runs["nuts"][0], split.y_test)
    out = []
    for line in lines:
        found = runs[line.key]
        refined = any(not np.array_equal(run.raw, run.draws) for run in found)
        for stage in ("raw", "refined") if refined else ("",):
            mark = -2 if stage == "raw" else -1
            draws = [run.raw if stage == "raw" else run.draws for run in found]
            scores = [score(run, split.y_test, mark) for run in found]
            errors = [judge.posterior_errors(d.astype(float), reference) for d in draws]
            # The reference has no error against itself.
            if line.key == "reference":
                errors = []
            sooner = [reached(run, split.y_test, goal, "cpu") for run in found]
            out.append(
                {
                    "method": f"{line.label}, {stage}" if stage else line.label,
                    "seeds": len(found),
                    "accuracy": _mean([s.accuracy for s in scores]),
                    "accuracy_sd": _sd([s.accuracy for s in scores]),
                    "log_likelihood": _mean([s.log_likelihood for s in scores]),
                    "log_likelihood_sd": _sd([s.log_likelihood for s in scores]),
                    **{
                        key: _mean([e[key] for e in errors])
                        for key in ("worst_mean", "average_mean", "average_sd")
                    },
                    "sd_low": min((e["sd_low"] for e in errors), default=None),
                    "sd_high": max((e["sd_high"] for e in errors), default=None),
                    "passes": _mean([run.passes[mark] for run in found]),
                    "wall": _mean([run.wall[mark] for run in found]),
                    "cpu": _mean([run.cpu[mark] for run in found]),
                    "reached_cpu": None if None in sooner else _mean(sooner),
                    "said": said(found),
                }
            )
    return out


def said(found: Sequence[Run]) -> str | None:
    """The verdicts of the seeds, or the divergences; None where a method says nothing of itself."""
    verdicts = [run.notes["status"] for run in found if "status" in run.notes]
    if verdicts:
        return ", ".join(f"{name} {verdicts.count(name)}" for name in dict.fromkeys(verdicts))
    divergences = [run.notes["divergences"] for run in found if "divergences" in run.notes]
    return f"{sum(divergences)} divergences" if divergences else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _sd(values: Sequence[float]) -> float | None:
    """Over seeds; None with one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def about(split: Split, lines: Sequence[Line], runs: Mapping[str, list[Run]]) -> list[str]:
    """What was run on what."""
    reference = runs["reference"][0]
    nuts = judge.posterior_errors(runs["nuts"][0].draws.astype(float), reference.draws.astype(float))
    settings = "; ".join(
        f"{line.label} {dict(line.settings)}" for line in lines if line.function not in ("whole", "stepwise")
    )
    return [
        f"data: {split.source}; 80/20 split, numeric columns scaled by the training rows, intercept; {split.rows:,} "
        f"training rows, the same for all methods, and {len(split.y_test):,} test rows",
        "model: alpha ~ Gamma(1, 0.01), w ~ N(0, 1/alpha) (55 weights), Bernoulli logits; the one-hot columns are "
        "collinear with the intercept, so only the prior holds the sum of their weights",
        "mean errors are in posterior sds, sd columns are ratios to the posterior sds, over log alpha and 55 weights, "
        f"against the reference ({len(reference.draws):,} draws of NUTS with a full mass matrix); averages over seeds, and "
        f"the extremes of the ratios over seeds. The draws of NUTS itself: worst mean {nuts['worst_mean']:.2f}",
        "wall and CPU seconds include compilation and leave out predictions for the curves; one thread, on a busy machine: "
        "wall seconds depend on who else worked, CPU seconds less so",
        "'CPU s until' is from the first mark on the curve from which on the test log likelihood is no more than one standard "
        "error (over test rows) below NUTS' final one. `run` has its marks by `callback`: raw draws of the sampler as it stands",
        "DFT-NS, KL-NS and Fisher-NS are `DFT(model, ...).run(key, x, y, batch=...)`: raw one-step draws and refined ones. "
        "Rows with `init` and `update` are the pure functions, raw draws. `default recipe` keeps the Gaussian where that "
        "is right already; the others train a network in any case",
        "rivals: SVGD and SGLD of BlackJAX, mean-field VI (SVI, AutoNormal, Adam), HMCECS (second-order control variate at "
        f"the mode, NUTS with a full mass matrix inside) and NUTS of NumPyro; settings: {settings}",
        "a data pass is one gradient on all rows, or as many on minibatches as together read that many rows; those of `run` are "
        "its diagnostics' `data_rows`, drift tests and refinement included",
    ]


def musts(lines: Sequence[Line], runs: Mapping[str, list[Run]], split: Split) -> list[str]:
    """What was to be shown, with the numbers, and whether it holds."""
    labels = split.y_test
    nuts_run = runs["nuts"][0]
    nuts = score(nuts_run, labels)
    notes = [
        f"NUTS ends at accuracy {nuts.accuracy:.4f} ± {nuts.accuracy_error:.4f} and log likelihood {nuts.log_likelihood:.4f} "
        f"± {nuts.log_likelihood_error:.4f} (standard errors over test rows), after {nuts_run.wall[-1]:.0f} wall s and "
        f"{nuts_run.cpu[-1]:.0f} CPU s"
    ]
    rivals = [
        (line.label, runs[line.key]) for line in lines if line.key in ("kl", "pyro-kl") and runs[line.key]
    ]
    for line in lines:
        if not line.label.startswith("DFT-NS") or not runs[line.key]:
            continue
        found = runs[line.key]
        scores = [score(run, labels) for run in found]
        mine = float(np.mean([s.accuracy for s in scores]))
        paired = judge.paired_error(np.mean([s.correct for s in scores], 0), nuts.correct)
        low = nuts.accuracy - nuts.accuracy_error
        notes.append(
            f"{line.label}: accuracy {mine:.4f}, {mine - nuts.accuracy:+.4f} from NUTS' (its standard error "
            f"{nuts.accuracy_error:.4f}; of the difference over the same rows {paired:.4f}): "
            f"{_verdict(mine >= low)}"
        )
        for label, others in rivals:
            theirs = [score(run, labels).accuracy for run in others]
            error = float(np.hypot(_seed_error(theirs), _seed_error([s.accuracy for s in scores])))
            gap = mine - float(np.mean(theirs))
            notes.append(
                f"{line.label}: {gap:+.4f} from {label} (standard error over seeds {error:.4f}): "
                f"{_verdict(gap >= -max(error, 1e-12))}"
            )
        notes += [_speed(line, found, nuts_run, nuts, labels, paired=p) for p in (False, True)]
    return notes


def _speed(
    line: Line, found: Sequence[Run], nuts_run: Run, nuts: Score, labels: np.ndarray, paired: bool
) -> str:
    """How much sooner than the end of NUTS the log likelihood is NUTS'."""
    what = "the strict standard error, of the difference" if paired else "NUTS' standard error"
    times = {axis: [reached(run, labels, nuts, axis, paired) for run in found] for axis in ("wall", "cpu")}
    missed = sum(t is None for t in times["cpu"])
    if missed:
        return f"{line.label}: log likelihood never within {what} in {missed} of {len(found)} runs"
    ratio = {axis: getattr(nuts_run, axis)[-1] / float(np.mean(t)) for axis, t in times.items()}  # type: ignore[arg-type]
    own = reached(nuts_run, labels, nuts, "cpu", paired)
    return (
        f"{line.label}: log likelihood within {what} after {np.mean(times['cpu']):.1f} CPU s; NUTS' warm-up and draws took "  # type: ignore[arg-type]
        f"{ratio['cpu']:.1f} times that (wall: {ratio['wall']:.1f}; target {SPEED_TARGET:.0f}): "
        f"{_verdict(ratio['cpu'] >= SPEED_TARGET)}; NUTS' own curve is there after {own:.1f} CPU s"
    )


def _seed_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _verdict(good: bool) -> str:
    return "met" if good else "not met"
