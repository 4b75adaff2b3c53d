"""`callback` looks at a training on its way, and changes nothing in it."""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS, ROWS, Y
from quick import NETWORK

from pyro_dft import FidelityWarning, SettingsError
from pyro_dft.experimental import grouped

pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def test_a_callback_sees_each_phase_with_draws_and_changes_nothing(backend):
    seen = []

    def look(progress, draw):
        draws = draw(7)
        seen.append((progress.phase, progress.step, {name: tuple(v.shape) for name, v in draws.items()}))

    options = {**NETWORK, "num_chains": 2}
    plain = backend.fitted(backend.dft("hierarchy", **options), Y)
    watched = backend.fitted(backend.dft("hierarchy", callback=look, callback_every=10, **options), Y)
    for name, value in plain.get_samples().items():
        np.testing.assert_array_equal(np.asarray(watched.get_samples()[name]), np.asarray(value))
    phases = [phase for phase, _, _ in seen]
    assert list(dict.fromkeys(phases)) == ["gaussian", "kl", "dft", "done"]
    steps = [step for _, step, _ in seen]
    assert steps == sorted(steps)
    assert steps[-1] == watched.progress.step
    assert all(shapes == {"mu": (7,), "tau": (7,), "theta": (7, len(Y))} for _, _, shapes in seen)


def test_draws_come_nearer_on_the_way(backend):
    """Also where a fit to minibatches goes on with the full data."""
    means = []
    options = {
        **grouped({"precondition_steps": 150}),
        "callback": lambda _, draw: means.append(float(draw(500)["mu"].mean())),
    }
    dft = backend.fitted(backend.dft("minibatched", **options), ROWS)
    exact = ROWS.sum() / (0.01 + len(ROWS))
    assert abs(means[-1] - exact) < 4 * (0.01 + len(ROWS)) ** -0.5 / 500**0.5 + 0.1
    assert len(means) > 1
    assert dft.diagnostics()["data_rows"] > 0


def test_a_callback_may_end_the_training(backend):
    def stop(progress, draw):
        if progress.phase == "kl":
            raise KeyboardInterrupt

    dft = backend.dft(callback=stop, **NETWORK)
    with pytest.warns(FidelityWarning, match="interrupted"):
        backend.fitted(dft, Y)
    assert tuple(dft.get_samples(5)["mu"].shape) == (5,)


def test_what_cannot_be_called_is_refused(backend):
    with pytest.raises(SettingsError, match="callback"):
        backend.dft(callback=3)
