"""Pictures of the gallery: ``python docs/images/gallery.py`` writes ``gallery_*.png`` beside this file (NumPyro, minutes)."""

from __future__ import annotations

import os
from pathlib import Path

for _name in ("NPROC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

from pyro_dft.numpyro import DFT  # noqa: E402

HERE = Path(__file__).resolve().parent
DRAWS = 10_000


def banana(z):
    a, b = z["x"]
    return 0.5 * a**2 + 0.5 * ((b - a**2) / 0.5) ** 2


def ring(z):
    return 0.5 * ((jnp.sqrt((z["x"] ** 2).sum() + 1e-12) - 2.6) / 0.25) ** 2


def squiggle(z):
    a, b = z["x"]
    return 0.5 * (a / 1.5) ** 2 + 0.5 * ((b - jnp.sin(2.5 * a)) / 0.25) ** 2


def modes(z):
    centres = jnp.array([[-3.0, -2.0], [3.0, -2.0], [0.0, 3.0]])
    squares = ((z["x"] - centres) ** 2).sum(1) / (2 * 0.7**2)
    return -jax.nn.logsumexp(jnp.log(jnp.array([0.2, 0.3, 0.5])) - squares)


TARGETS = {
    "banana": (banana, (-3.5, 3.5, -2.0, 9.0)),
    "ring": (ring, (-4.0, 4.0, -4.0, 4.0)),
    "squiggle": (squiggle, (-5.0, 5.0, -2.5, 2.5)),
    "three modes": (modes, (-6.0, 6.0, -5.0, 6.0)),
}


def exact(potential, box):
    """Density on a grid, (400, 400), normalised over the box."""
    a, b = np.linspace(*box[:2], 400), np.linspace(*box[2:], 400)
    points = jnp.stack(jnp.meshgrid(jnp.asarray(a), jnp.asarray(b)), -1).reshape(-1, 2)
    density = np.exp(-np.asarray(jax.vmap(lambda x: potential({"x": x}))(points)).reshape(400, 400))
    return a, b, density / density.sum()


def main():
    figure, axes = plt.subplots(3, 4, figsize=(12, 8.6), layout="constrained")
    training = None
    for column, (name, (potential, box)) in enumerate(TARGETS.items()):
        dft = DFT(potential_fn=potential, initial_params={"x": jnp.zeros(2)}, disable_progbar=True)
        dft.run(jax.random.key(0))
        training = training or dft
        a, b, density = exact(potential, box)
        status = dft.diagnostics()["status"]
        axes[0, column].contourf(a, b, density, levels=np.linspace(0.02, 1, 12) * density.max(), cmap="Blues")
        axes[0, column].set_title(f"{name}: exact density")
        for row, (kind, steps) in enumerate((("raw one-step draws", 0), ("refined draws", None)), start=1):
            draws = np.asarray(dft.get_samples(DRAWS, refine_steps=steps)["x"])
            axes[row, column].plot(*draws.T, ".", ms=1, alpha=0.35)
            axes[row, column].set_title(kind if row == 1 else f"{kind}, status: {status}")
        for ax in axes[:, column]:
            ax.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[])
    figure.savefig(HERE / "gallery_densities.png", dpi=90)
    training.plot_training()
    plt.gcf().savefig(HERE / "gallery_training.png", dpi=90)


if __name__ == "__main__":
    main()
