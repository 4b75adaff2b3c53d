"""Importance weights of a sampler's draws: evidence, k-hat, weighted draws."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
import torch
from backends import BACKENDS, ROWS, Y
from quick import NETWORK

from pyro_dft import FidelityWarning, ModelError, NotFittedError
from pyro_dft.engine_jax.sampler import Sampler as JaxSampler
from pyro_dft.engine_torch.sampler import Sampler as TorchSampler
from pyro_dft.evidence import importance, reverse
from pyro_dft.evidence.psis import khat_threshold
from pyro_dft.evidence.student import StudentT
from pyro_dft.experimental import grouped

# A fit of a second may be doubted, and so may its weights. Whether they are doubted rightly is tested where it matters.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the fit is"),
    pytest.mark.filterwarnings("ignore:the importance weights are unreliable"),
]

PYRO = BACKENDS[0]
X = np.random.default_rng(3).normal(size=(30, 3)).astype(np.float32)
Z = (X @ [1.0, -0.5, 0.3] + np.random.default_rng(4).normal(size=30)).astype(np.float32)


def gaussian(y, covariance):
    """Log density of N(0, covariance) at y."""
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), y)
    return -0.5 * (whitened @ whitened + np.linalg.slogdet(covariance)[1] + len(y) * math.log(2 * math.pi))


def evidence_of_the_hierarchy():
    """mu and theta integrated by hand, tau ~ HalfNormal(3) on a grid."""
    tau = np.linspace(0.0, 30.0, 6001)
    likelihood = [gaussian(Y, 25 + (1 + t**2) * np.eye(len(Y))) for t in tau]
    prior = math.log(2 / 3 / math.sqrt(2 * math.pi)) - tau**2 / 18
    return math.log(np.trapezoid(np.exp(likelihood + prior), tau))


# Name -> model, settings, data, log evidence. NumPyro reads what Pyro has trained: to compile its training takes longer
# than all else here, and what is tested comes after it. (Fits of its own are in test_contract.py.)
FITS = {
    "conjugate": ("known_mean", {}, (Y,), gaussian(Y, 100 + np.eye(len(Y)))),
    "two chains": ("known_mean", {"num_chains": 2}, (Y,), gaussian(Y, 100 + np.eye(len(Y)))),
    "network": ("regression", {"num_chains": 2, **NETWORK}, (X, Z), gaussian(Z, X @ X.T + np.eye(len(Z)))),
    "minibatches": (
        "minibatched",
        grouped({"precondition_steps": 150}),
        (ROWS,),
        gaussian(ROWS, 100 + np.eye(40)),
    ),
    "non-centred": (
        "hierarchy",
        grouped({"precondition_steps": 300, "num_draws": 2000}),
        (Y,),
        evidence_of_the_hierarchy(),
    ),
    # No data: the evidence is that of the prior, one, whatever the transforms of the sites.
    "constrained": ("constrained", grouped({"precondition_steps": 150}), (), 0.0),
}


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """Each sampler is trained once."""

    @functools.cache
    def get(backend, name):
        model, options, data, _ = FITS[name]
        if backend is PYRO:
            return backend.fitted(backend.dft(model, **options), *data)
        path = tmp_path_factory.mktemp("fits") / "fit"
        get(PYRO, name).save(path)
        return backend.DFT.load(path, getattr(backend.models, model), disable_progbar=True, seed=1)

    return get


@pytest.fixture(scope="module")
def result(fit):
    return functools.cache(lambda backend, name: fit(backend, name).importance_sampling())


# Through the public interface


@pytest.mark.parametrize("name", FITS)
def test_evidence_is_the_known_one(backend, name, result):
    found, truth = result(backend, name), FITS[name][3]
    # The scales of the last two have longer tails than a Gaussian: there k-hat is around its threshold.
    assert found.reliable or name in ("non-centred", "constrained")
    assert found.log_evidence_error < 0.1
    # Four standard errors, and the rounding of a sum in single precision.
    assert abs(found.log_evidence - truth) < 4 * found.log_evidence_error + 1e-5 * abs(truth)


def test_a_fit_in_other_coordinates_is_weighed_in_those(backend, fit):
    assert fit(PYRO, "non-centred").diagnostics()["coordinates"] == ["theta"]


def test_results_hold_weighted_draws_of_all_sites(backend, result):
    found = result(backend, "conjugate")
    assert {name: tuple(v.shape) for name, v in found.samples.items()} == {"mu": (4000,), "twice": (4000,)}
    assert {type(value) for value in found.samples.values()} == {type(backend.array(0.0))}
    assert found.log_weights.shape == (4000,)
    assert np.exp(found.log_weights).sum() == pytest.approx(1.0)
    assert found.ess == pytest.approx(1 / np.exp(2 * found.log_weights).sum())
    assert found.reliable == (found.k_hat < khat_threshold(4000))
    assert "samples" not in repr(found)
    tensor = result(backend, "network").samples["slope"]
    assert tuple(tensor.shape) == (4000, 3)


def test_weights_repair_raw_draws(backend, result):
    """A network trained for 20 steps is off; the conjugate posterior is known."""
    found = result(backend, "network")
    precision = X.T @ X + np.eye(3)
    mean, sd = np.linalg.solve(precision, X.T @ Z), np.sqrt(np.diag(np.linalg.inv(precision)))
    draws = np.asarray(found.samples["slope"], float)
    standard_error = sd / math.sqrt(found.ess)
    assert (abs(np.exp(found.log_weights) @ draws - mean) < 4 * standard_error).all()
    equal = found.resample(1000)
    assert type(equal["slope"]) is type(found.samples["slope"])
    # The choice of 1000 has its own error on top.
    standard_error = sd * math.sqrt(1 / found.ess + 1 / 1000)
    assert (abs(np.asarray(equal["slope"], float).mean(0) - mean) < 4 * standard_error).all()


def test_k_hat_is_that_of_arviz(backend, fit, monkeypatch):
    arviz = pytest.importorskip("arviz")
    seen, own = [], importance.psis
    monkeypatch.setattr(importance, "psis", lambda w: seen.append(w.copy()) or own(w))
    # A size whose tail is as long in ArviZ 0.x as in 1.x.
    found = fit(backend, "network").importance_sampling(900)
    if hasattr(arviz, "psislw"):
        expected, k_hat = arviz.psislw(seen[0])
    else:  # ArviZ 1.x, where the argument is a log likelihood
        from arviz_stats.base import array_stats

        expected, k_hat = array_stats.psislw(-seen[0])
    assert found.k_hat == pytest.approx(float(k_hat), abs=1e-6)
    np.testing.assert_allclose(found.log_weights, expected, atol=1e-8)


def test_a_narrow_sampler_is_not_reliable(backend, fit, tmp_path, monkeypatch):
    fit(backend, "conjugate").save(tmp_path / "fit")
    dft = backend.DFT.load(tmp_path / "fit", backend.models.known_mean, disable_progbar=True)
    sampler, measured = dft.parts.fit.sampler, dft.parts.fit.measurement
    sampler.scale = sampler.scale / 50
    measured.refined = sampler.mean[:, None] + (measured.refined - sampler.mean[:, None]) / 50
    with pytest.warns(FidelityWarning, match=r"importance weights are unreliable: k-hat is .*, above 0\.70"):
        found = dft.importance_sampling()
    assert found.k_hat > khat_threshold(4000)
    assert not found.reliable


@pytest.mark.parametrize("number", [99, 0, -1, 1.5, True, "many"])
def test_bad_numbers_of_draws_are_refused(backend, number, fit, result):
    with pytest.raises(ValueError, match="num_samples=.*: expected an integer of at least 100"):
        fit(backend, "conjugate").importance_sampling(number)
    if number != 99:
        with pytest.raises(ValueError, match="num_samples=.*: expected an integer of at least 1$"):
            result(backend, "conjugate").resample(number)


def test_an_untrained_sampler_has_no_density(backend):
    with pytest.raises(NotFittedError):
        backend.dft().importance_sampling()


# The parts, on NumPy samplers whose density is known


class Network:
    """A sampler of one chain in d dimensions: u = g(z) + sigma eps, x = u."""

    generator = "a network"

    def __init__(self, g, jacobian, sigma):
        self.g, self.jacobian, self.noise = g, jacobian, np.asarray(sigma, float)[None, None]

    def generate(self, z):
        return self.g(z)

    def linearise(self, z):
        return self.g(z), self.jacobian(z)

    def to_arrays(self):
        dim = self.noise.shape[-1]
        return {"mean": np.zeros((1, dim)), "scale": np.eye(dim)[None]}


def affine():
    matrix, shift = np.array([[1.0, 0.4], [-0.3, 0.2]]), np.array([0.5, -1.0])
    jacobian = lambda z: np.tile(matrix.T, (*z.shape[:-1], 1, 1))  # noqa: E731
    return Network(lambda z: z @ matrix + shift, jacobian, [0.1, 0.3]), matrix, shift


def folded():
    """Two latents for most points: u = z^2 - 1 + noise."""
    return Network(lambda z: z**2 - 1, lambda z: 2 * z[..., None], [0.3])


NO_OPTIMA = (np.zeros((0, 1)), np.zeros((0, 1, 1)), np.zeros(0))


@pytest.mark.parametrize("latents", [1, 7])
def test_the_density_of_an_affine_network_is_exact(latents):
    sampler, matrix, shift = affine()
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 2))
    u = z @ matrix + shift + sampler.noise[0] * rng.normal(size=(50, 2))
    u[25:] += 3.0  # not draws of the sampler
    chain = np.repeat([0, -1], 25)
    found = reverse.Marginal(sampler, rng, latents).log_density(u[None], z, chain)[0]
    covariance = matrix.T @ matrix + np.diag(sampler.noise[0, 0] ** 2)
    np.testing.assert_allclose(found, [gaussian(row - shift, covariance) for row in u], atol=1e-8)


@pytest.mark.parametrize("latents", [1, 16])
def test_weights_are_unbiased_where_the_network_folds(latents, monkeypatch):
    """Target N(0, 1) times exp(2); half of all latents are far from the mode that the kernel sits at."""
    monkeypatch.setattr(reverse.Marginal.__init__, "__defaults__", (latents,))
    rng = np.random.default_rng(1)
    mixture = importance.Mixture(folded(), np.ones(1), rng.normal(size=(1, 500, 1)), NO_OPTIMA, rng)
    found = importance.importance_sample(
        mixture, lambda x: (x**2).sum(-1) / 2 - 2, lambda x: {"x": x}, 20_000
    )
    truth = 2 + math.log(2 * math.pi) / 2
    assert abs(found.log_evidence - truth) < 4 * found.log_evidence_error
    assert found.log_evidence_error < 0.05


def test_chains_at_separate_modes_are_weighed_together():
    """Each of two Gaussian chains sits at one of two modes; a third mode is known from the restarts only."""

    class Gaussians:
        generator = None

        def to_arrays(self):
            return {"mean": np.array([[-9.0], [9.0]]), "scale": np.ones((2, 1, 1))}

    optima = np.array([[0.0]]), np.ones((1, 1, 1)), np.zeros(1)
    rng = np.random.default_rng(2)
    refined = np.array([-9.0, 9.0])[:, None, None] + rng.normal(size=(2, 500, 1))
    mixture = importance.Mixture(Gaussians(), np.ones(2), refined, optima, rng)

    def potential(x):
        terms = np.log([0.3, 0.6, 0.1]) - (x - [-9.0, 9.0, 0.0]) ** 2 / 2
        return -np.logaddexp.reduce(terms, -1)

    found = importance.importance_sample(mixture, potential, lambda x: {"x": x}, 4000)
    assert abs(found.log_evidence - math.log(2 * math.pi) / 2) < 4 * found.log_evidence_error
    assert found.log_evidence_error < 0.05
    weights, x = np.exp(found.log_weights), found.samples["x"][:, 0]
    for centre, share in ((-9.0, 0.3), (9.0, 0.6), (0.0, 0.1)):
        assert weights[abs(x - centre) < 4.5].sum() == pytest.approx(
            share, abs=4 * 0.5 / math.sqrt(found.ess)
        )


def test_draws_without_density_do_not_count_and_are_not_shown_to_the_model():
    rng = np.random.default_rng(3)
    sampler, *_ = affine()
    mixture = importance.Mixture(sampler, np.ones(1), rng.normal(size=(1, 500, 2)), NO_OPTIMA, rng)

    def constrain(x):
        assert (x[:, 0] > 0).all()
        return {"x": x}

    found = importance.importance_sample(
        mixture, lambda x: np.where(x[:, 0] > 0, 1.0, np.inf), constrain, 1000
    )
    assert np.isneginf(found.log_weights).any()
    with pytest.raises(ModelError, match="zero or not finite at all 1000 draws"):
        importance.importance_sample(mixture, lambda x: np.full(len(x), np.inf), constrain, 1000)


def test_resampling_repeats_each_draw_as_its_weight_says():
    weights = np.array([0.5, 0.25, 0.2, 0.05, 0.0])
    with np.errstate(divide="ignore"):
        found = importance.ImportanceResult(0.0, 0.0, 0.0, 2.9, np.log(weights), {"x": np.arange(5)})
    times = np.bincount(found.resample(1000, seed=1)["x"], minlength=5)
    assert (abs(times - 1000 * weights) < 1).all()
    assert len(found.resample()["x"]) == 1
    counts = [importance.systematic_counts(weights, 3, np.random.default_rng(i)) for i in range(2000)]
    assert {int(count.sum()) for count in counts} == {3}
    # Counts differ from 3 times the weight by less than one, so that their sd is at most a half.
    assert (abs(np.mean(counts, 0) - 3 * weights) < 4 * 0.5 / math.sqrt(2000)).all()


def test_student_t_is_a_density():
    stats = pytest.importorskip("scipy.stats")
    root = np.array([[2.0, 0.0], [1.0, -0.5]])  # any square root
    t = StudentT(np.array([1.0, -2.0]), root, 5.0)
    draws = t.draw(100_000, np.random.default_rng(0))
    expected = stats.multivariate_t(t.mean, root @ root.T, df=5).logpdf(draws[:100])
    np.testing.assert_allclose(t.log_density(draws[:100]), expected, atol=1e-10)
    # Covariance 5/3 of the scale matrix; its relative standard error is sqrt((kurtosis 9 - 1) / n) = 0.009.
    np.testing.assert_allclose(np.cov(draws.T), 5 / 3 * root @ root.T, rtol=0.04, atol=0.04)
    again = StudentT.of_draws(draws, t.mean, root, 5.0)
    np.testing.assert_allclose(again.root @ again.root.T, np.cov(draws.T), rtol=1e-3)


def test_both_engines_linearise_alike():
    rng = np.random.default_rng(5)
    shapes = TorchSampler.generator_shapes(2, 3, 7, 2)
    arrays = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    arrays |= {"mean": rng.normal(size=(2, 3)), "scale": rng.normal(size=(2, 3, 3))}
    z = rng.normal(size=(2, 20, 3))
    with jax.enable_x64(True):
        samplers = TorchSampler.from_arrays(arrays, width=7, depth=2), JaxSampler.from_arrays(arrays)
        found = [(s.noise, s.generate(z), *s.linearise(z)) for s in samplers]
        # One draw, one latent at a time: sizes that are not those of a block.
        assert np.allclose(samplers[1].linearise(z[:, :1])[1], found[1][3][:, :1], rtol=1e-10)
    for one, two in zip(*found, strict=True):
        assert one.shape == two.shape
        assert one.dtype == two.dtype == np.float64
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-10)
    noise, g, again, jacobian = found[0]
    np.testing.assert_allclose(noise, np.exp(arrays["generator.log_sigma"]))
    np.testing.assert_allclose(g, again, rtol=1e-12)
    step = 1e-6
    for j in range(3):
        ahead, behind = (samplers[0].generate(z + sign * step * np.eye(3)[j]) for sign in (1, -1))
        np.testing.assert_allclose(jacobian[..., j], (ahead - behind) / (2 * step), atol=1e-7)
    # The same draws as those that are served.
    eps = torch.zeros(2, 20, 3, dtype=torch.float64)
    served = samplers[0].transport(torch.as_tensor(z), eps)
    np.testing.assert_allclose(samplers[0].color(torch.as_tensor(g)), served, rtol=1e-10)
