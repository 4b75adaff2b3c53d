"""The picture of the training: what it shows, for both front doors, and what it refuses.

That an adopted state has no history: tests/test_numpyro_dft.py, which adopts one.
"""

import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from backends import BACKENDS, Y
from daily import daily
from quick import NETWORK

from pyro_dft import NotFittedError
from pyro_dft.export import plot

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


def history(**phases):
    """`phases`: name -> losses."""
    entries = [(phase, loss) for phase, losses in phases.items() for loss in losses]
    return [SimpleNamespace(step=i + 1, phase=p, loss=loss) for i, (p, loss) in enumerate(entries)]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def points(ax):
    """The losses, drawn as dots."""
    return next(line for line in ax.lines if line.get_marker() == ".").get_xydata()


@pytest.mark.parametrize("backend", daily(BACKENDS, BACKENDS[0]), ids=str, indirect=True)
def test_a_fit_shows_every_loss_with_its_phase(backend):
    dft = backend.fitted(backend.dft(**NETWORK), Y)
    gaussian, network = dft.plot_training()
    drawn = np.concatenate([points(gaussian), points(network)])
    made = dft.parts.training.trainer.history
    assert np.array_equal(drawn, [(p.step, np.float64(p.loss)) for p in made])
    assert texts(gaussian) == ["Gaussian"]
    assert texts(network) == ["KL", "DFT"]
    assert [ax.get_ylabel() for ax in (gaussian, network)] == [
        "minus evidence bound (nats)",
        "Fisher gap on one batch",
    ]


def test_a_gaussian_alone_has_one_panel(backend):
    dft = backend.fitted(backend.dft(), Y)
    (ax,) = dft.plot_training()
    assert texts(ax) == ["Gaussian"]
    own = pyplot.subplots()[1]
    assert dft.plot_training(own)[0] is own
    with pytest.raises(ValueError, match="1 panels, got 2"):
        dft.plot_training(pyplot.subplots(1, 2)[1])


def test_without_training_there_is_nothing_to_show(backend, tmp_path):
    dft = backend.dft()
    with pytest.raises(NotFittedError, match="not trained yet"):
        dft.plot_training()
    backend.run(dft, backend.array(Y))
    dft.save(tmp_path / "fit.safetensors")
    loaded = backend.DFT.load(tmp_path / "fit.safetensors", backend.models.known_mean)
    with pytest.raises(NotFittedError, match="no history"):
        loaded.plot_training()


def test_phases_are_shaded_where_they_were():
    (ax,) = plot.training(history(kl=np.zeros(30), dft=np.zeros(10)))
    spans = sorted((p.get_x(), p.get_x() + p.get_width()) for p in ax.patches)
    assert spans == [(0.5, 30.5), (30.5, 40.5)]
    assert [t.get_position()[0] for t in ax.texts] == [15.5, 35.5]


def test_the_start_does_not_flatten_the_rest():
    losses = np.concatenate([[1e6, 1e5], np.linspace(1.0, 0.0, 98)])
    (ax,) = plot.training(history(kl=losses))
    low, high = ax.get_ylim()
    assert low < 0.0
    assert 1.0 < high < 2.0


def test_losses_that_are_not_finite_are_left_out():
    losses = np.array([1.0, np.nan, np.inf, 0.5])
    (ax,) = plot.training(history(kl=losses))
    assert np.array_equal(points(ax), [(1, 1.0), (4, 0.5)])


def test_without_matplotlib_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from types import SimpleNamespace\n"
        "from pyro_dft.export import plot\n"
        "try:\n    plot.training([SimpleNamespace(step=1, phase='kl', loss=0.0)])\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "plot_training needs Matplotlib: pip install matplotlib"
