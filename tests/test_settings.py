"""Settings: NumPy's numbers are numbers, each setting changes something or is refused, and what does not fit says so."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from backends import BACKENDS, ROWS
from quick import GAUSSIAN, NETWORK

from pyro_dft import DFT, Experimental, Settings, SettingsError
from pyro_dft.engine_jax.functional import Schedule
from pyro_dft.engine_jax.step import Hyper, Plan
from pyro_dft.experimental import grouped
from pyro_dft.interface import memory_check

pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def test_numbers_of_numpy_are_stored_as_plain_ones():
    given = Settings(
        num_steps=np.int64(5),
        learning_rate=np.float32(0.25),
        refine_steps=np.int32(3),
        seed=np.uint8(7),
        experimental=Experimental(averaging=np.float64(0.5)),
    )
    own = Experimental(averaging=0.5)
    assert given == Settings(num_steps=5, learning_rate=0.25, refine_steps=3, seed=7, experimental=own)
    entries = given.to_json()
    plain = {type(value) for value in [*entries.pop("experimental").values(), *entries.values()]}
    assert plain <= {int, float, str, bool, type(None)}
    for wrong in (
        {"num_steps": np.bool_(True)},
        {"num_steps": np.float64(5.0)},
        {"learning_rate": np.float32("nan")},
    ):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Settings(**wrong)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 2**70, True, "a"])
def test_seeds_of_more_than_63_bits(seed):
    with pytest.raises(SettingsError, match="seed="):
        Settings(seed=seed)


# A fit of a tenth of a second with all phases, whose draws, losses and report show whatever changes.
BASE = {
    "train": "always", "dft_fraction": 0.5, "num_steps": 6, "precondition_steps": 12, "restarts": 2, "width": 4, "depth": 1,
    "batch_size": 8, "num_draws": 40, "refine_steps": 2, "seed": 0, "compile": "never",
}  # fmt: skip
# Setting -> (another value, what else it needs to act).
CHANGED = {
    "objective": ("dft-paper", {"dft_fraction": 0.0}),
    "num_steps": (8, {}),
    "dft_fraction": (0.2, {}),
    "partial_gradient": (True, {"objective": "dft", "dft_fraction": 0.0}),
    "settle_fraction": (0.9, {}),
    "score_steps": (1, {}),
    "batch_size": (16, {}),
    "final_batch_factor": (2, {}),
    "width": (5, {}),
    "depth": (2, {}),
    "learning_rate": (1e-2, {}),
    "dft_learning_rate": (1e-2, {}),
    "score_learning_rate": (1e-2, {}),
    "averaging": (0.9, {}),
    "distance": ("pseudo-huber", {}),
    "huber_scale": (0.1, {}),
    "noise": (0.3, {}),
    "noise_mode": ("learned", {}),
    "noise_start": (1.0, {"noise_mode": "annealed"}),
    "train": ("never", {}),
    "gate": (1e-6, {"train": "auto", "seed": 2}),
    "precondition": ("never", {}),
    "restarts": (3, {}),
    "precondition_steps": (6, {}),
    "refine_steps": (3, {}),
    "max_refine_steps": (1, {"refine_steps": None}),
    "leapfrog_steps": (3, {}),
    "refine_limit": (0, {"refine_steps": None}),
    "num_draws": (50, {}),
    "full_data_budget": (1.0, {"train": "never", "dft_fraction": 0.0, "num_draws": 400}),
    "max_gradients": (1, {}),
    "max_seconds": (1e-6, {}),
    "compile": ("auto", {}),
    "reparam": ("never", {"train": "never", "dft_fraction": 0.0}),
    "modes": ("never", {"train": "never", "dft_fraction": 0.0, "precondition_steps": 60, "restarts": 6}),
    "seed": (1, {}),
}  # fmt: skip


def skewed(z):
    return 0.5 * ((z["a"] - 1) ** 2).sum() + 0.1 * (z["a"] ** 4).sum()


def two_modes(z):
    return -torch.logsumexp(-0.5 * ((z["a"].sum() + torch.tensor([-8.0, 8.0])) / 0.5) ** 2, 0)


@functools.cache
def trace_of_base(model, needs):
    """Of the base fit: the same for most settings."""
    return trace_of(model, {**BASE, **dict(needs)})


def trace_of(model, settings):
    """All that a fit shows: losses by phase, kept and new draws, the report without its times."""
    pyro = BACKENDS[0]
    if model in ("reparam", "full_data_budget"):
        function = pyro.models.hierarchy if model == "reparam" else pyro.models.minibatched
        dft = DFT(function, disable_progbar=True, **grouped(settings))
        dft.run(pyro.array(ROWS[:6] if model == "reparam" else ROWS))
    else:
        function = two_modes if model == "modes" else skewed
        start = {"a": torch.zeros(1 if model == "modes" else 2)}
        dft = DFT(potential_fn=function, initial_params=start, disable_progbar=True, **grouped(settings))
        dft.run()
    losses = [(entry.phase, entry.loss) for entry in dft.parts.training.trainer.history]
    kept = {name: value.tolist() for name, value in dft.get_samples().items()}
    report = {k: v for k, v in dft.diagnostics().to_json().items() if "seconds" not in k}
    traced = [problem.target._full.trace for problem in dft.parts.backend.problems]
    return losses, kept, report, dft.get_samples(5)[next(iter(kept))].tolist(), traced


def test_the_table_is_complete():
    names = [field.name for kind in (Settings, Experimental) for field in dataclasses.fields(kind)]
    assert set(CHANGED) == {*names} - {"experimental"}


def test_a_fit_repeats():
    """The control: what is compared below does not differ by itself."""
    assert trace_of("skewed", BASE) == trace_of_base("skewed", ())


@pytest.mark.filterwarnings("ignore:raw draws differ")
@pytest.mark.parametrize("setting", CHANGED)
def test_each_setting_changes_something(setting):
    value, needs = CHANGED[setting]
    model = setting if setting in ("reparam", "full_data_budget", "modes") else "skewed"
    changed = trace_of(model, {**BASE, **needs, setting: value})
    assert trace_of_base(model, tuple(needs.items())) != changed


# Read by the front door, the Gaussian's fitter and the measurement, which both engines share line by line.
ELSEWHERE = {
    "train", "gate", "restarts", "refine_limit", "num_draws", "full_data_budget", "compile", "reparam", "modes", "seed",
    "leapfrog_steps", "precondition", "max_gradients", "max_seconds",
}  # fmt: skip


@pytest.mark.parametrize("setting", sorted(CHANGED.keys() - ELSEWHERE))
def test_each_setting_reaches_the_programs_of_jax(setting):
    value, needs = CHANGED[setting]
    base = {**BASE, **needs}
    pair = [Settings(**grouped(base)), Settings(**grouped({**base, setting: value}))]
    one, two = ((Plan.of(s), tuple(map(float, Hyper.of(s))), str(Schedule.of(None, s))) for s in pair)
    assert one != two


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"distance": "pseudo-huber"}, "distance='pseudo-huber' changes nothing here: it needs .*dft_fraction"),
        ({"distance": "pseudo-huber", "objective": "kl"}, "distance='pseudo-huber' changes nothing"),
        ({"dft_fraction": 0.2, "objective": "kl"}, "dft_fraction=0.2 is a part of"),
        ({"dft_fraction": 0.2, "objective": "dft-paper"}, "dft_fraction=0.2 is a part of"),
        ({"final_batch_factor": 4}, "final_batch_factor=4 changes nothing"),
        ({"noise_start": 1.0}, "noise_start=1.0 changes nothing"),
        ({"noise_start": 1.0, "noise_mode": "learned"}, "noise_start=1.0 changes nothing"),
        ({"gate": 0.2, "train": "always"}, "gate=0.2 changes nothing"),
        ({"gate": 0.2, "precondition": "never"}, "gate=0.2 changes nothing"),
        ({"objective": "dft-paper", "train": "never"}, "objective='dft-paper' and train=.* nothing to draw from"),
    ],
)  # fmt: skip
def test_choices_that_would_change_nothing_are_refused(backend, settings, match):
    with pytest.raises(SettingsError, match=match):
        backend.DFT(backend.models.known_mean, **grouped(settings))


@pytest.mark.parametrize("objective", ["auto", "dft", "dft-paper"])
def test_minibatches_and_the_pseudo_huber_distance(backend, objective):
    changed = {"distance": "pseudo-huber", "objective": objective}
    changed["dft_fraction"] = 0.2 if objective == "auto" else 0.0
    dft = backend.dft("minibatched", **grouped({**NETWORK, **changed}))
    with pytest.raises(SettingsError, match="distance='pseudo-huber' needs the full data"):
        backend.run(dft, backend.array(ROWS))


@pytest.mark.parametrize("make", [Settings, Settings.from_kwargs, BACKENDS[0].dft, BACKENDS[1].dft], ids=str)
def test_an_old_use_of_a_setting_for_experiments_names_the_new_place(make):
    for name, value in (
        ("dft_fraction", 0.2),
        ("leapfrog_steps", 5),
        ("precondition_steps", 50),
        ("noise", 0.05),
    ):
        with pytest.raises(SettingsError, match=rf"experimental=Experimental\({name}=\.\.\."):
            make(**{name: value})
    with pytest.raises(SettingsError, match=r'"dft" with experimental=Experimental\(partial_gradient=True\)'):
        make(objective="fisher-partial")
    with pytest.raises(SettingsError, match=r"expected Experimental\(...\)"):
        make(experimental={"dft_fraction": 0.2})


def test_misspelt_settings_of_experiments():
    with pytest.raises(SettingsError, match="'leapfrog_step' .did you mean 'leapfrog_steps'"):
        Experimental(leapfrog_step=5)
    with pytest.raises(SettingsError, match="'leapfrog_step' .did you mean 'leapfrog_steps'"):
        Settings(leapfrog_step=5)
    with pytest.raises(SettingsError, match="unknown setting of Experimental 'width'; they are: averaging"):
        Experimental(width=5)


@pytest.mark.parametrize(
    "wrong",
    [{"dft_fraction": 2.0}, {"averaging": 1.0}, {"score_steps": 0}, {"distance": "l1"}, {"gate": 0.0},
     {"partial_gradient": 1}, {"noise": 0.0}, {"noise": np.float32("nan")}, {"precondition": "sometimes"}, {"leapfrog_steps": 0},
     {"leapfrog_steps": 2.0}, {"precondition_steps": 0}, {"max_refine_steps": 0}, {"refine_limit": -1}, {"compile": True}],
    ids=str,
)  # fmt: skip
def test_values_of_experiments_out_of_range(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Experimental(**wrong)


def test_settings_of_early_files_are_read():
    """They had those of experiments beside the others."""
    own = Experimental(partial_gradient=True, huber_scale=2.0, leapfrog_steps=7, noise=0.2, compile="never")
    now = Settings(width=8, objective="dft", experimental=own)
    entries = now.to_json()
    assert Settings.from_json(entries) == now
    own = entries.pop("experimental")
    assert own.pop("partial_gradient")
    assert Settings.from_json(entries | own | {"objective": "fisher-partial"}) == now


def test_sizes_that_no_memory_holds(backend):
    dft = backend.fitted(backend.dft(), np.ones(3))
    for ask in (dft.get_samples, dft.to_inference_data, dft.importance_sampling):
        with pytest.raises(
            MemoryError, match="10000000000000 draws need about .* TB of memory, and .* are free"
        ):
            ask(10**13)
    for huge in ({"batch_size": 10**12, "train": "always"}, {"num_draws": 10**13}):
        with pytest.raises(
            SettingsError, match=f"{next(iter(huge))}=.*needs about .* of memory, and .* are free"
        ):
            backend.fitted(backend.dft(**{**GAUSSIAN, **huge}), np.ones(3))


def test_free_memory_is_read_from_the_system(monkeypatch):
    assert 1e6 < memory_check.available() < 1e16
    with monkeypatch.context() as patch:
        patch.setattr(memory_check, "available", lambda: 1e9)
        memory_check.check_draws(10**8, 1, 4)
        with pytest.raises(MemoryError, match="need about 16 GB of memory, and 1 GB are free"):
            memory_check.check_draws(10**9, 2, 4)
        memory_check.check_fit(Settings(), 4, 100, 4)
        with pytest.raises(SettingsError, match="restarts=6: with 10000 coordinates and 1 chains"):
            memory_check.check_fit(Settings(train="never"), 1, 10_000, 4)
