"""Bayesian logistic regression on real data: NUTS and DFT side by side.

The data are the 569 tumours of scikit-learn's breast cancer set, with 30 measurements each; the parameters
are an intercept and 30 coefficients with standard normal priors. Many measurements are nearly the same
(radius, perimeter, area), so the posterior is narrow in some directions and wide in others.

    python examples/logistic_regression.py           # under two minutes on two cores
    python examples/logistic_regression.py --chains 4 --nuts-warmup 1000 --nuts-draws 1000  # NUTS in full

It prints a table and writes a picture. By default NUTS is cut short; the table shows how large a
difference that makes by chance alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

matplotlib.use("Agg")  # a picture file, on machines without a screen too
import matplotlib.pyplot as plt

DRAWS = 10_000
QUANTILES = (0.05, 0.50, 0.95)
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "logistic_regression.png"


@dataclass
class Data:
    """Measurements standardised with the training mean and sd; labels 1.0 (benign) or 0.0 (malignant)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    names: list[str]


@dataclass
class Seconds:
    """Wall and CPU seconds; on a busy machine the second is the fairer one."""

    wall: float = 0.0
    cpu: float = 0.0

    @staticmethod
    def now() -> Seconds:
        """Read both clocks."""
        return Seconds(time.perf_counter(), time.process_time())

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.wall * factor, self.cpu * factor)


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

    warmup: Seconds
    effective_draws: tuple[int, int]  # independent draws with the same error in the mean, and in the spread
    r_hat: float


# ---- The two methods, in Pyro --------------------------------------------------------------------


def fit_with_pyro(data: Data, options: argparse.Namespace) -> tuple[Nuts, list[Fit], str]:
    """Fit the model with Pyro's NUTS and with DFT; return both, and DFT's own verdict on its fit."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import MCMC, NUTS
    from pyro.ops.stats import effective_sample_size, split_gelman_rubin

    from pyro_dft import DFT

    def model(x, y=None):
        intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
        coefficients = pyro.sample("coefficients", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
        with pyro.plate("tumours", len(x)):
            pyro.sample("benign", dist.Bernoulli(logits=intercept + x @ coefficients), obs=y)

    def flat(samples: dict[str, torch.Tensor]) -> np.ndarray:
        return torch.column_stack([samples["intercept"], samples["coefficients"]]).numpy()

    torch.set_num_threads(options.threads)
    x = torch.as_tensor(data.x_train, dtype=torch.get_default_dtype())
    y = torch.as_tensor(data.y_train, dtype=torch.get_default_dtype())

    chains, warmup, sampling = [], Seconds(), Seconds()
    for chain in range(options.chains):
        pyro.set_rng_seed(options.seed + chain)
        laps = [Seconds.now()]
        mcmc = MCMC(
            NUTS(model, jit_compile=options.nuts_jit, ignore_jit_warnings=True),
            num_samples=options.nuts_draws,
            warmup_steps=options.nuts_warmup,
            hook_fn=lambda kernel, params, stage, i, laps=laps: laps.append(Seconds.now()),
        )
        mcmc.run(x, y)
        laps.append(Seconds.now())
        warmup += laps[options.nuts_warmup] - laps[0]
        sampling += laps[-1] - laps[options.nuts_warmup]
        chains.append(flat(mcmc.get_samples()))

    by_chain = torch.as_tensor(np.stack(chains))
    squares = (by_chain - by_chain.mean((0, 1))) ** 2
    effective = (int(effective_sample_size(t).median()) for t in (by_chain, squares))
    n = options.chains * options.nuts_draws
    nuts = Nuts(
        name=f"NUTS, {options.chains} x ({options.nuts_warmup} + {options.nuts_draws})",
        draws=np.concatenate(chains),
        seconds=warmup + sampling,
        more=sampling * (DRAWS / n),
        warmup=warmup,
        effective_draws=(next(effective), next(effective)),
        r_hat=float(split_gelman_rubin(by_chain).max()),
    )

    start = Seconds.now()
    dft = DFT(model, seed=options.seed)
    dft.run(x, y)
    training = Seconds.now() - start

    fits = []
    for name, refine_steps in (("DFT, refined", None), ("DFT, one step", 0)):
        start = Seconds.now()
        draws = flat(dft.get_samples(DRAWS, refine_steps=refine_steps))
        first = Seconds.now()
        dft.get_samples(DRAWS, refine_steps=refine_steps)
        fits.append(Fit(name, draws, training + (first - start), Seconds.now() - first))
    report = dft.diagnostics()
    kept = report["objective"]
    if kept == "gaussian":
        kept += " (the start of the training: no network was needed)"
    return nuts, fits, f"{report['status']}. Sampler kept: {kept}"


BACKENDS: dict[str, Callable[[Data, argparse.Namespace], tuple[Nuts, list[Fit], str]]] = {
    "pyro": fit_with_pyro
}


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


def picture(nuts: Nuts, fits: list[Fit], data: Data, output: Path) -> None:
    """Draw the coefficients of NUTS and refined DFT, their most correlated pair, and what the draws cost."""
    plt.rcParams.update({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplot_mosaic(
        [["forest", "pair"], ["forest", "costs"]], width_ratios=[1.1, 1], height_ratios=[2.4, 1]
    )
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


def load_data(seed: int) -> Data:
    """Split the breast cancer data, four fifths for training, and standardise them."""
    raw = load_breast_cancer()
    x_train, x_test, y_train, y_test = train_test_split(
        raw.data, raw.target.astype(float), test_size=0.2, random_state=seed, stratify=raw.target
    )
    mean, sd = x_train.mean(0), x_train.std(0)
    return Data((x_train - mean) / sd, y_train, (x_test - mean) / sd, y_test, list(raw.feature_names))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Bayesian logistic regression on real data: NUTS and DFT side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="pyro", help="framework of the model")
    parser.add_argument("--chains", type=int, default=2, help="NUTS chains, one after another")
    parser.add_argument("--nuts-warmup", type=int, default=150, help="NUTS warm-up iterations in each chain")
    parser.add_argument("--nuts-draws", type=int, default=250, help="NUTS draws in each chain")
    parser.add_argument(
        "--nuts-jit", action="store_true", help="NUTS(jit_compile=True), about twice as fast here"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of both methods; tensors this small gain little"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and of both methods")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="where the picture goes")
    options = parser.parse_args()
    if options.chains < 1 or options.nuts_warmup < 1 or options.nuts_draws < 100:
        parser.error("NUTS needs at least 1 chain, 1 warm-up iteration and 100 draws")
    return options


def main() -> None:
    """Fit, print the table, write the picture."""
    options = parse_arguments()
    data = load_data(options.seed)
    nuts, fits, status = BACKENDS[options.backend](data, options)

    print(
        f"\nBreast cancer: {len(data.y_train)} tumours to learn from, {len(data.y_test)} held out; "
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
        per_iteration = nuts.warmup.cpu / (options.chains * options.nuts_warmup) + nuts.more.cpu / DRAWS
        print(
            f"NUTS was cut short. In full, 4 x (1000 + 1000), it needs about {per_iteration * 4000:.0f} s:\n"
            '  make demo ARGS="--chains 4 --nuts-warmup 1000 --nuts-draws 1000"'
        )
    picture(nuts, fits, data, options.output)
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
