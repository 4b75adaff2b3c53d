"""Bayesian logistic regression on real data: NUTS and DFT side by side, in Pyro or in NumPyro.

The data are the 569 tumours of scikit-learn's breast cancer set, with 30 measurements each; the parameters
are an intercept and 30 coefficients with standard normal priors. Many measurements are nearly the same
(radius, perimeter, area), so the posterior is narrow in some directions and wide in others.

    python examples/logistic_regression.py           # under two minutes on two cores
    python examples/logistic_regression.py --backend numpyro
    python examples/logistic_regression.py --chains 4 --nuts-warmup 1000 --nuts-draws 1000  # NUTS in full

It prints a table and writes a picture. By default Pyro's NUTS is cut short; the table shows how large a
difference that makes by chance alone. The models and the calls of the two methods are in `logistic_pyro.py` and
`logistic_numpyro.py`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import astuple, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

# Before NumPy and jax start: on few cores jaxlib can deadlock where its pool and the BLAS pool have more threads.
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import matplotlib
import numpy as np
from logistic_data import Data, Seconds, load_data

matplotlib.use("Agg")  # a picture file, on machines without a screen too
import matplotlib.pyplot as plt

DRAWS = 10_000
QUANTILES = (0.05, 0.50, 0.95)
# Each is a module beside this file, loaded by name: neither framework loads the other one.
BACKENDS = {"pyro": ("Pyro", "logistic_pyro"), "numpyro": ("NumPyro", "logistic_numpyro")}
# Pyro's NUTS needs minutes for 4 x (1000 + 1000) iterations.
NUTS_LENGTHS = {
    "pyro": {"chains": 2, "nuts_warmup": 150, "nuts_draws": 250},
    "numpyro": {"chains": 4, "nuts_warmup": 1000, "nuts_draws": 1000},
}
# Not over the pictures of the documentation: a look at the example leaves the repository as it is.
BUILD = Path(__file__).resolve().parent.parent / "build"
OUTPUTS = {"pyro": BUILD / "logistic_regression.png", "numpyro": BUILD / "logistic_regression_numpyro.png"}


@dataclass
class Fit:
    """What one method gave: draws of (intercept, coefficients), shape (n, 31), and what they cost."""

    name: str
    draws: np.ndarray
    seconds: Seconds  # from the start to these draws
    more: Seconds  # for DRAWS more of them; extrapolated for NUTS


@dataclass
class Nuts(Fit):
    """The reference, and what is needed to judge it."""

    warmup: Seconds  # with NumPyro's compilation
    effective_draws: tuple[int, int]  # independent draws with the same error in the mean, and in the spread
    r_hat: float


# ---- The two methods -----------------------------------------------------------------------------


def fit_nuts(backend: ModuleType, data: Data, options: argparse.Namespace) -> Nuts:
    """Run NUTS and count what its draws are worth."""
    by_chain, warmup, sampling = backend.run_nuts(data, options)
    squares = (by_chain - by_chain.mean((0, 1))) ** 2
    n = options.chains * options.nuts_draws
    return Nuts(
        name=f"NUTS, {options.chains} x ({options.nuts_warmup} + {options.nuts_draws})",
        draws=by_chain.reshape(n, -1),
        seconds=warmup + sampling,
        more=sampling * (DRAWS / n),
        warmup=warmup,
        effective_draws=(
            int(np.median(backend.effective_draws(by_chain))),
            int(np.median(backend.effective_draws(squares))),
        ),
        r_hat=float(backend.r_hat(by_chain).max()),
    )


def fit_dft(backend: ModuleType, data: Data, options: argparse.Namespace) -> tuple[list[Fit], str]:
    """Train DFT and draw from it, refined and raw; return its own verdict too."""
    start = Seconds.now()
    dft = backend.train_dft(data, options)
    training = Seconds.now() - start
    fits = []
    for name, refine_steps in (("DFT, refined", None), ("DFT, one step", 0)):
        start = Seconds.now()
        draws = backend.flat(dft.get_samples(DRAWS, refine_steps=refine_steps))
        first = Seconds.now()
        backend.flat(dft.get_samples(DRAWS, refine_steps=refine_steps))
        fits.append(Fit(name, draws, training + (first - start), Seconds.now() - first))
    report = dft.diagnostics()
    kept = report["objective"]
    if kept == "gaussian":
        kept += " (the start of the training: no network was needed)"
    return fits, f"{report['status']}. Sampler kept: {kept}"


# ---- Table ---------------------------------------------------------------------------------------


@dataclass
class Difference:
    """How far the marginals of two sets of draws are apart, in posterior sds of the second."""

    worst_mean: float
    average_mean: float
    lowest_sd_ratio: float
    highest_sd_ratio: float
    worst_quantile: float

    @staticmethod
    def between(draws: np.ndarray, reference: np.ndarray) -> Difference:
        """Compare draws (n, d) with reference (m, d)."""
        sd = reference.std(0)
        means = np.abs(draws.mean(0) - reference.mean(0)) / sd
        ratios = draws.std(0) / sd
        quantiles = np.abs(np.quantile(draws, QUANTILES, 0) - np.quantile(reference, QUANTILES, 0)) / sd
        return Difference(means.max(), means.mean(), ratios.min(), ratios.max(), quantiles.max())

    @staticmethod
    def expected(nuts: Nuts, rng: np.random.Generator) -> Difference:
        """Give the difference that DRAWS independent exact draws would show by chance.

        Resamples NUTS 200 times, with as many rows as have the Monte Carlo error of both sets of draws, and
        averages. NUTS knows means better than spreads: each has its own count, the quantiles that of spreads.
        """
        repeats = []
        for effective in nuts.effective_draws:
            rows = rng.integers(len(nuts.draws), size=(200, round(1 / (1 / effective + 1 / DRAWS))))
            repeats.append(np.mean([astuple(Difference.between(nuts.draws[r], nuts.draws)) for r in rows], 0))
        means, spreads = repeats
        return Difference(*means[:2], *spreads[2:])

    def cells(self) -> list[str]:
        """Format for the table."""
        return [
            f"{self.worst_mean:.3f}",
            f"{self.average_mean:.3f}",
            f"{self.lowest_sd_ratio:.2f} - {self.highest_sd_ratio:.2f}",
            f"{self.worst_quantile:.3f}",
        ]


def accuracy(draws: np.ndarray, data: Data) -> float:
    """Share of held-out tumours that the posterior predictive puts on the right side of one half."""
    logits = draws[:, :1] + draws[:, 1:] @ data.x_test.T
    probability = (1.0 / (1.0 + np.exp(-logits))).mean(0)
    return float(((probability > 0.5) == (data.y_test > 0.5)).mean())


def table(nuts: Nuts, fits: list[Fit], data: Data, rng: np.random.Generator) -> str:
    """Lay out one row per method, each compared with NUTS."""

    def costs(fit: Fit, more: str) -> list[str]:
        return [f"{accuracy(fit.draws, data):.3f}", f"{fit.seconds.wall:.1f}", f"{fit.seconds.cpu:.1f}", more]

    rows = [
        ["", "mean", "mean", "sd ratio", "quantile", "held-out", "wall", "CPU", f"CPU s for {DRAWS:,}"],
        ["", "worst", "average", "range", "worst", "accuracy", "seconds", "seconds", "more draws"],
        [nuts.name, "-", "-", "-", "-", *costs(nuts, f"~{nuts.more.cpu:.0f}")],
        ["  expected by chance", *Difference.expected(nuts, rng).cells(), "", "", "", ""],
        *(
            [fit.name, *Difference.between(fit.draws, nuts.draws).cells(), *costs(fit, f"{fit.more.cpu:.2g}")]
            for fit in fits
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(2, "-" * len(lines[0]))
    return "\n".join(lines)


# ---- Picture -------------------------------------------------------------------------------------

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5f6368"  # of the colour-blind safe palette of Okabe and Ito


def picture(framework: str, nuts: Nuts, fits: list[Fit], data: Data, output: Path) -> None:
    """Draw the coefficients of NUTS and refined DFT, their most correlated pair, and what the draws cost."""
    plt.rcParams.update({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplot_mosaic(
        [["forest", "pair"], ["forest", "costs"]], width_ratios=[1.1, 1], height_ratios=[2.4, 1]
    )
    figure.suptitle(f"NUTS and DFT in {framework}: {nuts.draws.shape[1]} parameters", fontsize=13)
    forest(axes["forest"], nuts, fits[0], ["intercept", *data.names])
    correlated_pair(axes["pair"], nuts, fits[0], data.names)
    costs(axes["costs"], nuts, fits)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=160)
    plt.close(figure)


def forest(axes: plt.Axes, nuts: Nuts, dft: Fit, names: list[str]) -> None:
    """Show mean and 90 % interval of every parameter, the two methods one above the other."""
    order = np.argsort(nuts.draws.mean(0))
    rows = np.arange(len(order))
    for fit, colour, offset, marker in ((nuts, BLUE, 0.17, "o"), (dft, ORANGE, -0.17, "s")):
        low, high = np.quantile(fit.draws[:, order], (0.05, 0.95), axis=0)
        axes.hlines(rows + offset, low, high, color=colour, linewidth=1.8)
        axes.plot(
            fit.draws[:, order].mean(0), rows + offset, marker, color=colour, markersize=3.8, label=fit.name
        )
    axes.axvline(0.0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_yticks(rows, [names[i] for i in order])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("effect of one sd of the measurement on the log odds of benign")
    axes.set_title("Posterior mean and 90 % interval", loc="left", fontweight="bold")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.99), frameon=False, handlelength=1, handletextpad=0.4)


def correlated_pair(axes: plt.Axes, nuts: Nuts, dft: Fit, names: list[str]) -> None:
    """Show the joint draws of the two coefficients with the strongest posterior correlation."""
    correlation = np.corrcoef(nuts.draws[:, 1:].T)
    np.fill_diagonal(correlation, 0.0)
    i, j = np.unravel_index(np.abs(correlation).argmax(), correlation.shape)
    shown = min(len(nuts.draws), 1000)  # as many of each, so that neither hides the other
    for fit, colour, marker in ((dft, ORANGE, "s"), (nuts, BLUE, "o")):
        x, y = fit.draws[-shown:, 1 + i], fit.draws[-shown:, 1 + j]
        axes.plot(x, y, marker, color=colour, markersize=3.2, alpha=0.6, markeredgewidth=0)
    axes.set_xlabel(names[i])
    axes.set_ylabel(names[j])
    axes.set_title(f"Most correlated pair, {shown:,} draws each", loc="left", fontweight="bold")


def costs(axes: plt.Axes, nuts: Nuts, fits: list[Fit]) -> None:
    """Show the CPU seconds of the first 10,000 draws and of 10,000 more, on a logarithmic axis."""
    bars = [("NUTS\n(extrapolated)", nuts.warmup.cpu + nuts.more.cpu, nuts.more.cpu, BLUE)]
    bars += [(fit.name, fit.seconds.cpu, fit.more.cpu, ORANGE) for fit in fits]
    for row, (_, first, more, colour) in enumerate(bars):
        axes.plot([more, first], [row, row], color=colour, linewidth=1.2)
        for seconds, face, side, align in ((first, colour, 9, "left"), (more, "white", -9, "right")):
            axes.plot(seconds, row, "o", color=colour, markersize=7, markerfacecolor=face)
            text = f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.2g} s"
            axes.annotate(text, (seconds, row), (side, 0), textcoords="offset points", va="center", ha=align)
    axes.set_xscale("log")
    axes.set_xlim(min(bar[2] for bar in bars) / 40, max(bar[1] for bar in bars) * 40)  # room for the labels
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("filled: with warm-up or training; hollow: after it")
    axes.set_title(f"CPU seconds for {DRAWS:,} draws", loc="left", fontweight="bold")


# ---- Command line --------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Bayesian logistic regression on real data: NUTS and DFT side by side.",
    )
    parser.add_argument(
        "--backend", choices=sorted(BACKENDS), default="pyro", help="framework of the model (pyro)"
    )
    parser.add_argument("--chains", type=int, help="NUTS chains, one after another; Pyro: 2, NumPyro: 4")
    parser.add_argument(
        "--nuts-warmup", type=int, help="NUTS warm-up of each chain; Pyro: 150, NumPyro: 1000"
    )
    parser.add_argument("--nuts-draws", type=int, help="NUTS draws of each chain; Pyro: 250, NumPyro: 1000")
    parser.add_argument(
        "--nuts-jit",
        action="store_true",
        help="Pyro's NUTS(jit_compile=True), about twice as fast here; NumPyro always compiles",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (1); tensors this small gain little")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of both methods (0)")
    parser.add_argument("--output", type=Path, help="where the picture goes (build)")
    options = parser.parse_args()
    options.output = options.output or OUTPUTS[options.backend]
    for name, value in NUTS_LENGTHS[options.backend].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.chains < 1 or options.nuts_warmup < 1 or options.nuts_draws < 100:
        parser.error("NUTS needs at least 1 chain, 1 warm-up iteration and 100 draws")
    return options


def main() -> None:
    """Fit, print the table, write the picture."""
    options = parse_arguments()
    data = load_data(options.seed)
    framework, module = BACKENDS[options.backend]
    backend = import_module(module)
    nuts = fit_nuts(backend, data, options)
    fits, status = fit_dft(backend, data, options)

    print(
        f"\nBreast cancer, with {framework}: {len(data.y_train)} tumours to learn from, {len(data.y_test)} held out; "
        f"{nuts.draws.shape[1]} parameters."
    )
    print("Differences from NUTS in its posterior sds, over all parameters; quantiles 5, 50 and 95 %.\n")
    print(table(nuts, fits, data, np.random.default_rng(options.seed)))
    print(f"\nDFT's own verdict: {status}.")
    print(
        f"NUTS: R-hat at most {nuts.r_hat:.3f}. Expected by chance: what {DRAWS:,} exact draws would show, "
        "from Monte Carlo error alone."
    )
    if options.nuts_warmup < 1000 or options.chains * options.nuts_draws < 4000:
        print(
            f"NUTS was cut short. In full, 4 x (1000 + 1000), it needs about {8000 * nuts.more.cpu / DRAWS:.0f} s:\n"
            f'  make demo ARGS="--backend {options.backend} --chains 4 --nuts-warmup 1000 --nuts-draws 1000"'
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    picture(framework, nuts, fits, data, options.output)
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
