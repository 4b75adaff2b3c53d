"""The architecture figure: ``python docs/images/architecture.py`` writes ``architecture.svg`` beside this file."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "pyro_dft", "font.family": "sans-serif", "font.size": 8.5})

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

INK, MUTED = "#1f2933", "#52606d"
SHADES = {"door": "#e3f0fb", "engine": "#fdeedb", "shared": "#e6f4ea"}
WIDTH, HEIGHT = 2.75, 1.2
# Column, row (0 is the top), shade, title, what happens there.
STOPS = [
    (0, 0, "door", "model", "Pyro or NumPyro,\nand your data"),
    (1, 0, "engine", "target", "potential of a flat vector,\nbatched; scores"),
    (2, 0, "shared", "Gaussian", "a start for the chains;\nfinds separate modes"),
    (3, 0, "engine", "particles", "64 exact chains,\nadapted together"),
    (3, 1, "engine", "training", "generator, against a\nsurrogate of the score"),
    (2, 1, "engine", "sampler", "g(z) + noise:\none forward pass"),
    (1, 1, "shared", "drift test", "halves of the chains;\nsampler against chains"),
    (0, 1, "shared", "report", "verdict, summary,\nArviZ"),
]
GAP, ROW = 0.7, 1.95


def corner(column: int, row: int) -> tuple[float, float]:
    return column * (WIDTH + GAP), -row * ROW


def main() -> None:
    figure, ax = plt.subplots(figsize=(11.5, 3.4))
    for column, row, shade, title, text in STOPS:
        x, y = corner(column, row)
        box = FancyBboxPatch(
            (x, y),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.12",
            fc=SHADES[shade],
            ec=MUTED,
            lw=1.0,
        )
        ax.add_patch(box)
        ax.text(
            x + WIDTH / 2,
            y + HEIGHT - 0.2,
            title,
            ha="center",
            va="top",
            fontsize=11,
            weight="bold",
            color=INK,
        )
        ax.text(x + WIDTH / 2, y + 0.16, text, ha="center", va="bottom", color=INK, linespacing=1.25)
    for (column, row, *_), (other, below, *_) in zip(STOPS, STOPS[1:], strict=False):
        (x, y), (u, v) = corner(column, row), corner(other, below)
        if row == below:
            start, end = ((x + WIDTH, y), (u, v)) if u > x else ((x, y), (u + WIDTH, v))
            start, end = (start[0], start[1] + HEIGHT / 2), (end[0], end[1] + HEIGHT / 2)
        else:
            start, end = (x + WIDTH / 2, y), (u + WIDTH / 2, v + HEIGHT)
        arrow = {
            "arrowstyle": "-|>",
            "color": INK,
            "lw": 1.4,
            "shrinkA": 2,
            "shrinkB": 2,
            "mutation_scale": 14,
        }
        ax.annotate("", end, start, arrowprops=arrow)
    # The states of the chains are what is judged and kept.
    x, low = corner(3, 0)[0] + 0.5, -0.36
    u, v = corner(1, 1)[0] + WIDTH / 2, corner(1, 1)[1] + HEIGHT
    ax.plot([x, x, u], [0, low, low], color=INK, lw=1.4)
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1.4, "mutation_scale": 14}
    ax.annotate("", (u, v), (u, low), arrowprops=arrow)
    ax.text((x + u) / 2, low + 0.05, "kept draws", ha="center", va="bottom", color=MUTED)
    # Raw draws need none of it.
    x, y = corner(2, 1)
    u = corner(0, 1)[0] + WIDTH / 2
    low = y - 0.42
    ax.plot([x + WIDTH / 2, x + WIDTH / 2, u], [y, low, low], color=MUTED, lw=1.1, ls=(0, (4, 3)))
    ax.annotate(
        "",
        (u, y),
        (u, low),
        arrowprops={"arrowstyle": "-|>", "color": MUTED, "lw": 1.1, "mutation_scale": 12},
    )
    ax.text(
        (x + WIDTH / 2 + u) / 2,
        low - 0.07,
        "raw draws: no model, no data",
        ha="center",
        va="top",
        color=MUTED,
    )
    names = {
        "door": "front door: one for each framework",
        "engine": "engine: torch or jax",
        "shared": "shared: NumPy",
    }
    for i, (shade, name) in enumerate(names.items()):
        x = 0.15 + i * 4.6
        ax.add_patch(
            FancyBboxPatch(
                (x, 1.62), 0.24, 0.2, boxstyle="round,pad=0,rounding_size=0.04", fc=SHADES[shade], ec=MUTED
            )
        )
        ax.text(x + 0.36, 1.72, name, va="center", color=INK)
    ax.set_xlim(-0.1, 4 * WIDTH + 3 * GAP + 0.1)
    ax.set_ylim(-ROW - 0.85, 1.95)
    ax.set_aspect("equal")
    ax.axis("off")
    figure.patch.set_facecolor("white")
    path = Path(__file__).with_suffix(".svg")
    figure.savefig(path, bbox_inches="tight", pad_inches=0.08, metadata={"Date": None})
    plt.close(figure)
    # Matplotlib leaves blanks at the ends of lines.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


if __name__ == "__main__":
    main()
