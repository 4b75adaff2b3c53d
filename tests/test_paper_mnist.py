"""The MNIST experiment: its energy's loss, its Langevin dynamics, its distance, its checkpoints, and a small run."""

import csv
import math
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import data
from benchmarks.paper import __main__ as paper
from benchmarks.paper import page
from benchmarks.paper.mnist import cells, correction, energy, features, figures, langevin, onestep, training


class Quadratic(nn.Module):
    """E(x) = c |x|^2 / (2 s0^2): the right energy of normal data at one noise level."""

    def __init__(self, curvature, reference=0.1):
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(float(curvature), dtype=torch.float64))
        self.reference = reference

    def gradient(self, x, create_graph=False):
        return self.curvature * x / self.reference**2

    def denoise(self, x, sigma):
        return (1 - self.curvature.detach()) * x


def test_denoising_loss_is_least_at_the_score_of_the_smoothed_data():
    # Data N(0, v) under noise sigma have the score -x / (v + sigma^2) = -(s0 / sigma)^2 grad E.
    v, sigma = 0.09, 0.4
    best = sigma**2 / (v + sigma**2)
    model = Quadratic(best)
    generator = torch.Generator().manual_seed(0)
    slopes = []
    for _ in range(200):
        clean = math.sqrt(v) * torch.randn(100, 4, generator=generator, dtype=torch.float64)
        noise = torch.randn(100, 4, generator=generator, dtype=torch.float64)
        level = torch.full((100, 1), sigma, dtype=torch.float64)
        loss = energy.matching_loss(model, clean, level, noise)
        slopes.append(torch.autograd.grad(loss, model.curvature)[0])
    slopes = torch.stack(slopes)
    assert abs(slopes.mean()) < 4 * slopes.std() / math.sqrt(200)
    # A curvature 5 % too high would be found by the same test: the slope is 2 (v + sigma^2) / sigma^2 times the error.
    assert 2 * (v + sigma**2) / sigma**2 * 0.05 * best > 8 * slopes.std() / math.sqrt(200)


def test_energy_gradient_is_that_of_the_energy_and_works_for_one_point_under_vmap():
    torch.manual_seed(0)
    settings = energy.EnergySettings(widths=(4, 8), strides=(1, 2))
    model = energy.Energy(settings, torch.rand(196)).double().requires_grad_(False)
    x = torch.rand(3, 196, dtype=torch.float64)
    direction = torch.randn(3, 196, dtype=torch.float64)
    slope = (model(x + 1e-5 * direction) - model(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(slope, (model.gradient(x) * direction).sum(1), rtol=1e-5, atol=1e-6)
    single = torch.func.vmap(torch.func.grad(lambda point: model(point[None])[0]))(x)
    torch.testing.assert_close(single, model.gradient(x))
    torch.testing.assert_close(model.denoise(x), x - 0.01 * single)


def test_the_energy_grows_far_from_the_images():
    torch.manual_seed(0)
    model = energy.Energy(energy.EnergySettings(widths=(4, 8), strides=(1, 2)), torch.rand(196))
    far = torch.randn(8, 196) * 50
    assert (model(2 * far) > model(far)).all()


@pytest.fixture
def corrected():
    """A small energy with a correction whose weights are not zero, as after training."""
    torch.manual_seed(0)
    base = energy.Energy(energy.EnergySettings(widths=(4, 8), strides=(1, 2)), torch.rand(196)).double()
    extra = correction.Correction(correction.CorrectionSettings(width=4), base).double()
    nn.init.normal_(extra.head.weight)
    return correction.Corrected(base, extra).requires_grad_(False)


def test_correction_acts_below_its_cut_off_and_nowhere_else(corrected):
    x = torch.rand(3, 196, dtype=torch.float64)
    base, extra, s0 = corrected.energy, corrected.correction, corrected.reference
    for level in (s0, 1.5 * s0):  # in full
        torch.testing.assert_close(
            corrected(x, level), base(x) + level**2 / s0**2 * extra(base.features(x), level)
        )
    assert not torch.allclose(corrected.gradient(x, s0), base.gradient(x))
    between = extra.weight(torch.linspace(1.5, 4.0, 50)[:, None] * s0).squeeze()
    assert (between.diff() < 0).all()
    above = torch.tensor([[4.0], [4.5], [20.0]], dtype=torch.float64) * s0
    for level in (above, 4.0 * s0, 20.0 * s0):  # the energy itself, to the last bit
        assert torch.equal(corrected(x, level), base(x))
        assert torch.equal(corrected.gradient(x, level), base.gradient(x))
        assert torch.equal(corrected.denoise(x, level), base.denoise(x))


def test_corrected_energy_of_single_points_under_vmap_is_that_of_a_batch(corrected):
    x = torch.rand(4, 196, dtype=torch.float64)
    levels = torch.tensor([0.1, 0.2, 0.3, 0.5], dtype=torch.float64)
    slope = torch.func.grad(lambda point, level: corrected(point[None], level)[0])
    torch.testing.assert_close(torch.func.vmap(slope)(x, levels), corrected.gradient(x, levels[:, None]))


class Flat(nn.Module):
    """E = |x|^2 / (2 s0^2) about a mean of 0: chains of it stay at the mean, wherever the data are."""

    def __init__(self):
        super().__init__()
        self.size, self.reference = 14, 0.1
        self.register_buffer("mean", torch.zeros(196))

    def features(self, x):
        return x

    def value(self, x, h):
        return 0.5 * (x**2).sum(1) / self.reference**2


@pytest.fixture
def corrects(tmp_path, monkeypatch):
    """Corrects an energy whose chains leave the data; killed before an iteration if asked."""
    monkeypatch.setattr(correction, "EVERY", 5)
    images = torch.zeros(50, 196)
    images[:, :98] = 0.3
    settings = correction.CorrectionSettings(width=4, iterations=40, batch=16, chains=32, rate=1e-2)

    def make(name, kill=None):
        calls, whole = [], correction.Contrast.loss

        def loss(self, generator):
            calls.append(1)
            if len(calls) == kill:
                raise KeyboardInterrupt
            return whole(self, generator)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(correction.Contrast, "loss", loss)
            return correction.fit(settings, Flat(), images, tmp_path / f"{name}.safetensors"), len(calls)

    return make, images


def test_correction_is_lower_at_data_than_where_the_chains_went(corrects):
    make, images = corrects
    model, _ = make("whole")
    away = torch.zeros_like(images)
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    assert model.correction(images + noise, 0.1).mean() < model.correction(away + noise, 0.1).mean() - 1


def test_a_killed_correction_resumes_to_the_same_bits(corrects):
    make, images = corrects
    whole, calls = make("whole")
    assert calls == 40
    with pytest.raises(KeyboardInterrupt):
        make("killed", kill=13)  # the checkpoint is that of iteration 10
    again, calls = make("killed")
    assert calls == 30
    assert torch.equal(again.correction(images, 0.1), whole.correction(images, 0.1))


def test_langevin_reaches_the_variance_of_a_quadratic_energy():
    share, curvature, n = 0.2, 0.5, 20_000
    model = Quadratic(curvature)
    x = torch.zeros(n, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        x = langevin.step(model, x, share, 4.0, generator)
    # x' = (1 - a c) x + sqrt(2 a T) s0 n; its stationary variance tends to T s0^2 / c for small steps.
    expected = 2 * share * 4.0 * 0.01 / (1 - (1 - share * curvature) ** 2)
    assert expected == pytest.approx(4.0 * 0.01 / curvature, rel=0.06)
    assert abs(x.var() / expected - 1) < 4 * math.sqrt(2 / n)


def test_annealed_langevin_cools_from_start_to_end_and_denoises():
    schedule = langevin.Schedule(steps=30, share=0.2, start=100.0)
    temperatures = schedule.temperatures()
    assert temperatures[0] == 100.0
    assert temperatures[-1] == pytest.approx(1.0)
    mean = torch.zeros(4)
    model = Quadratic(1.0)
    assert langevin.anneal(model, mean, 600, schedule, seed=0, block=250).shape == (600, 4)
    # With c = 1 the denoised image is the mean, wherever the chain is.
    assert langevin.anneal(model, mean, 5, schedule, seed=0).abs().max() == 0


def test_frechet_distance_of_samples_with_known_moments():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T))).T  # mean 0, covariance I
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert features.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert features.frechet(a, a * scale + 1) == pytest.approx(3 + 0 + 1 + 4, rel=1e-9)


@pytest.fixture
def stopped_at(tmp_path):
    """Trains a small network to 20 iterations, killed at one of them if asked, and gives its weights."""

    def make(name, kill=None, iterations=20):
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        module.unused = nn.Parameter(torch.zeros(1))  # as the bias of a head of the energy

        def loss(iteration, generator):
            if iteration == kill:
                raise KeyboardInterrupt
            return (module(torch.randn(8, 3, generator=generator)) ** 2).mean()

        training.run(module, loss, tmp_path / f"{name}.safetensors", iterations, 1e-2, every=5)
        return module.weight.detach().clone()

    return make


def test_a_killed_training_resumes_to_the_same_weights(stopped_at):
    whole = stopped_at("whole")
    with pytest.raises(KeyboardInterrupt):
        stopped_at("killed", kill=13)
    assert torch.equal(stopped_at("killed"), whole)
    assert torch.equal(stopped_at("killed", kill=0), whole)  # nothing left to train
    assert not torch.equal(stopped_at("short", iterations=10), whole)


def test_cells_are_made_once_for_the_same_settings(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"value": len(calls)}

    first = cells.cell(tmp_path, "part", {"n": 1}, make)
    assert cells.cell(tmp_path, "part", {"n": 1}, make) == first
    assert cells.cell(tmp_path, "part", {"n": 2}, make)["value"] == 2


def test_mosaic_keeps_every_pixel_in_its_place():
    images = np.random.default_rng(0).uniform(size=(5, 4))
    picture = figures.mosaic(images, columns=3, gap=1)
    assert picture.shape == (5, 8)
    np.testing.assert_array_equal(picture[3:5, 3:5], images[4].reshape(2, 2))
    assert (picture[2] == 1).all()


def test_missing_mnist_says_where_it_comes_from(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("PYRO_DFT_DATA", str(tmp_path))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    with pytest.raises(FileNotFoundError, match="mnist_784"):
        data.mnist()
    with pytest.raises(ValueError, match="14"):
        data.mnist(20)


# The small run takes a minute; every day its parts are tested by themselves, above.
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A small run through the command line, all methods, on real digits."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "CACHE", folder)
        paper.main(["mnist", "--quick"])
        first = {path.name: path.read_bytes() for path in (folder / "quick").iterdir()}
        weights = next((folder / "mnist" / "14-quick").glob("energy-*")).stat().st_mtime_ns
        paper.main(["mnist", "--quick"])  # everything is there already
        again = {path.name: path.read_bytes() for path in (folder / "quick").iterdir()}
        assert next((folder / "mnist" / "14-quick").glob("energy-*")).stat().st_mtime_ns == weights
    return folder, first, again


@slow
def test_quick_run_writes_table_page_and_pictures_once(quick):
    folder, first, again = quick
    assert set(first) == {"mnist14.md", "mnist14.csv", "mnist14_samples.png", "mnist14_fid.png"}
    assert first["mnist14.csv"] == again["mnist14.csv"]
    page_text = first["mnist14.md"].decode()
    for words in ("not** Inception FID", "gate of the energy", "python -m benchmarks.paper mnist", "seeds"):
        assert words in page_text
    assert all(image.startswith(b"\x89PNG") for name, image in first.items() if name.endswith("png"))


@slow
def test_quick_run_measures_every_method(quick):
    folder, *_ = quick
    with open(folder / "quick" / "mnist14.csv", encoding="utf-8") as f:
        rows = {row["method"]: row for row in csv.DictReader(f)}
    assert set(onestep.METHODS) <= set(rows)
    assert [r["evaluations"] for n, r in rows.items() if n.startswith("Langevin")] == ["11", "21", "21"]
    for name in onestep.METHODS:
        assert rows[name]["evaluations"] == "1"
        assert rows[f"{name} + denoising step"]["evaluations"] == "2"
        assert float(rows[name]["times"]) > 1
    # Real digits are far nearer to real digits than anything made by networks that were trained for seconds.
    floor = float(rows["real training images (floor)"]["fid"])
    assert all(float(row["fid"]) > 3 * floor for row in rows.values() if row["evaluations"])


@slow
def test_features_tell_digits_from_noise(quick):
    folder, *_ = quick
    path = next((folder / "mnist" / "14-quick").glob("floors-*.json"))
    floors = cells.json.loads(path.read_text())
    assert floors["noise"] > 10 * floors["halves"]


@slow
def test_one_step_training_resumes_after_a_kill(quick, monkeypatch, tmp_path):
    from benchmarks.paper.mnist import plan

    setup = plan.plan(14, True)
    folder = quick[0] / "mnist" / "14-quick"
    model = energy.Energy(setup.energy, torch.zeros(196))
    model.load_state_dict(training.weights(next(folder.glob("energy-*"))))
    model = correction.Corrected(model, correction.Correction(setup.correction, model)).requires_grad_(False)
    classifier = features.Classifier(14)
    classifier.load_state_dict(training.weights(next(folder.glob("classifier-*"))))
    fid = features.Fid(classifier.eval().requires_grad_(False), torch.rand(100, 196))

    def run(name, steps=None):
        nets = onestep.load(setup, model.mean, tmp_path / "none")
        dft = onestep.sampler(setup, model, nets, "kl", True, checkpoint=tmp_path / f"{name}.checkpoint")
        if steps is not None:
            for _ in range(steps):
                dft.step()
            return None
        onestep.train(dft, setup, fid, name, tmp_path / f"{name}.log", setup.start_steps)
        return onestep.draw(dft.generator, 20, 0)

    whole = run("whole")
    run("killed", steps=13)  # the checkpoint is that of step 10
    assert torch.equal(run("killed"), whole)
