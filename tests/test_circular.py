"""Angles: a density that repeats itself every 2 pi has one copy, whose values are exact draws."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from numpyro.handlers import reparam
from numpyro.infer import MCMC
from numpyro.infer.reparam import CircularReparam

from pyro_dft.experimental import grouped
from pyro_dft.models import circular
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.numpyro.transforms import Wrapped as JaxWrapped
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.pyro.transforms import Wrapped

LOC, CONCENTRATION = np.array([3.0, -2.9, 1.0]), np.array([4.0, 20.0, 1.0])
FIT = grouped({"train": "never", "precondition_steps": 100, "restarts": 3, "num_draws": 2000, "num_chains": 2, "refine_steps": 12,
       "disable_progbar": True})  # fmt: skip
DRAWS = 20_000


def angles(backend):
    """A narrow and a very narrow angle near the cut at pi, and a wide one."""
    dist, loc, concentration = backend.ppl.distributions, backend.array(LOC), backend.array(CONCENTRATION)

    def model():
        with backend.ppl.plate("angles", 3):
            backend.ppl.sample("x", dist.VonMises(loc, concentration))

    return model


def exact(values, concentration):
    """Mean of values of t (m,) on an even grid of the circle under a von Mises density around zero."""
    t = np.linspace(-math.pi, math.pi, 20_000, endpoint=False)
    weight = np.exp(concentration * (np.cos(t) - 1))
    return (values(t) * weight).sum() / weight.sum()


@pytest.fixture(scope="module", params=[*BACKENDS, "reparam"], ids=str)
def fit(request):
    backend = BACKENDS[1] if request.param == "reparam" else request.param
    model = angles(backend)
    if request.param == "reparam":
        model = reparam(model, config={"x": CircularReparam()})
    dft = backend.DFT(model, **FIT, **({"seed": 0} if backend.name == "pyro" else {}))
    backend.run(dft)
    return dft


def test_there_is_one_mode_and_nothing_is_missing(fit):
    report = fit.diagnostics()
    assert report["status"] == "converged"
    assert report["modes"] is None
    assert report["optima"]["missing"] == []


def test_moments_and_tails(fit):
    x = np.asarray(fit.get_samples(DRAWS)["x"], float)
    assert (np.abs(x) <= math.pi + 1e-6).all()
    t = circular.wrapped(x - LOC)
    for j, k in enumerate(CONCENTRATION):
        beyond = np.quantile(np.abs(t[:, j]), [0.5, 0.9, 0.98])  # where to look; the shares there are tested
        functions = [
            np.cos,
            np.sin,
            lambda t: np.cos(t) ** 2,
            *(lambda t, b=b: (np.abs(t) > b) * 1.0 for b in beyond),
        ]
        for f in functions:
            mean, square = exact(f, k), exact(lambda t, f=f: f(t) ** 2, k)
            error = math.sqrt((square - mean**2) / DRAWS)
            assert abs(f(t[:, j]).mean() - mean) < 4.5 * error


def flat_and_angle(backend):
    """A cosine of an angle and of a flat number, of which one repeats itself and the other has no prior."""
    dist = backend.ppl.distributions

    def model(y):
        angle = backend.ppl.sample("angle", dist.VonMises(1.0, 20.0))
        if backend.name == "numpyro":
            flat = backend.ppl.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))
        else:
            flat = backend.ppl.sample("flat", dist.Normal(0.0, 100.0))
        backend.ppl.sample("y", dist.Normal(flat + 0 * angle, 0.5), obs=y)

    return model


def check_flat_and_angle(samples, count):
    """Draws of a posterior of which everything is known; they are worth half of their number at least."""
    angle = circular.wrapped(np.asarray(samples["angle"], float) - 1.0)
    flat = np.asarray(samples["flat"], float)
    assert angle.shape == flat.shape == (count,)
    error = (2 / count) ** 0.5
    assert abs(flat.mean() - 2.0) < 4 * 0.5 * error
    assert abs(flat.std() / 0.5 - 1) < 4 * error
    spread = exact(lambda t: t**2, 20.0) ** 0.5
    assert abs(angle.mean()) < 4 * spread * error
    assert abs(angle.std() / spread - 1) < 4 * error


@pytest.mark.filterwarnings("ignore:the fit is")
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_mcmc_serves_angles_and_flat_sites_kept_draws_and_new_ones(backend):
    quick = {"train": "never", "restarts": 2, "num_draws": 400}
    kernel = backend.DFTKernel(flat_and_angle(backend), **quick)
    mcmc = backend.mcmc(kernel, 600, 2, 1, backend.array(2.0))
    check_flat_and_angle(mcmc.get_samples(), 600)


@pytest.mark.filterwarnings("ignore:.*nothing judges:pyro_dft.FidelityWarning")
def test_angles_and_flat_sites_where_the_data_are_traced():
    numpyro = BACKENDS[1]
    kernel = numpyro.DFTKernel(
        flat_and_angle(numpyro), train="never", num_draws=500, **grouped({"precondition_steps": 60, "refine_steps": 4})
    )  # fmt: skip

    @jax.jit
    def drawn(y):
        mcmc = MCMC(kernel, num_warmup=0, num_samples=500, progress_bar=False)
        mcmc.run(jax.random.key(0), y)
        return mcmc.get_samples()

    check_flat_and_angle(drawn(jnp.asarray(2.0)), 500)


@pytest.mark.parametrize("centre", [0.0, 2.5])
def test_shares_of_all_copies_add_up_to_one(centre):
    x = np.linspace(-math.pi, math.pi, 50)
    copies = x[:, None] + 2 * math.pi * np.arange(-3, 4)
    shares = (
        Wrapped(torch.tensor(centre).double()).log_abs_det_jacobian(torch.tensor(copies), None).exp().numpy()
    )
    assert shares.sum(1) == pytest.approx(1.0, abs=1e-9)
    other = np.exp(np.asarray(JaxWrapped(centre).log_abs_det_jacobian(jnp.asarray(copies), None)))
    assert other == pytest.approx(shares, abs=1e-5)
    for function in (np.cos, np.sin):  # at pi itself the two may round to either side
        values = function(np.asarray(JaxWrapped(centre)(jnp.asarray(copies))))
        assert values == pytest.approx(function(copies), abs=5e-6)


def test_a_model_that_tells_pi_from_minus_pi_has_no_copies():
    """An angle that the model uses as a number: in Pyro the support is the real line, in NumPyro it ends at pi."""
    for backend, problem in zip(BACKENDS, (PyroProblem, NumPyroProblem), strict=True):
        sample, dist, array = backend.ppl.sample, backend.ppl.distributions, backend.array

        def model(y, sample=sample, dist=dist, array=array):
            angle = sample("angle", dist.VonMises(array(0.0), array(1.0)))
            sample("y", dist.Normal(angle, 1.0), obs=y)

        layout = problem(model, (array(2.5),)).layout
        assert layout["angle"].transform == {"pyro": "real", "numpyro": "circular"}[backend.name]
        assert problem(angles(backend)).layout["x"].transform == circular.NAME


def test_angles_that_only_depend_on_their_difference_are_told_apart():
    def evaluate(x):
        return np.cos(x[:, 0] - x[:, 1]) - x[:, 1] ** 2, np.zeros_like(x)

    def where(*index):
        return np.isin(np.arange(2), index)

    assert circular.repeats(evaluate, where(0), may_be_flat=False)
    assert not circular.repeats(evaluate, where(0, 1), may_be_flat=False)
    # A density that does not depend on a coordinate at all is improper, not periodic.
    assert not circular.repeats(lambda x: (-(x[:, 1] ** 2), np.zeros_like(x)), where(0), may_be_flat=False)


def test_points_are_folded_to_the_copy_at_the_centre():
    for backend, problem in zip(BACKENDS, (PyroProblem, NumPyroProblem), strict=True):
        posterior = problem(angles(backend))
        near = np.tile(LOC, (3, 1)) + 0.1
        moved = near + 2 * math.pi * np.array([[0, 1, -1], [2, 0, 1], [-1, -2, 0]])
        # The centres are near to the modes, so that none of these is on the other side.
        assert posterior.folded(moved) == pytest.approx(near, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_a_draw_in_the_next_copy_is_compared_where_its_angle_is(backend):
    """On the real line it is far out: one in two thousand made squares look as if no transition moved them."""
    dft = backend.DFT(angles(backend), **FIT)
    dft.parts.backend.read((), {}, 0)
    (problem,), (posterior,) = dft.parts.backend.problems, dft.parts.backend.posteriors
    x = posterior.folded(np.array([[0.1, -0.2, 0.3], [2.0, -2.0, 1.0]]))
    turns = 2 * math.pi * np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]])
    compared = np.asarray(problem.original(backend.array(x + turns)), float)
    np.testing.assert_allclose(compared, x, atol=1e-5)
