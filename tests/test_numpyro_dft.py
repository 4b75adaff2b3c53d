"""The NumPyro front door: `DFT` and `DFTKernel` from model to draws, files and MCMC."""

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, Predictive, log_likelihood

from pyro_dft.errors import ModelError, NotFittedError, SettingsError, StorageError
from pyro_dft.experimental import grouped
from pyro_dft.numpyro import DFT, DFTKernel

GAUSSIAN = grouped({
    "train": "never", "precondition_steps": 40, "restarts": 2, "refine_steps": 2, "num_draws": 400,
    "disable_progbar": True,
})  # fmt: skip
NETWORK = {**GAUSSIAN, "train": "always", "num_steps": 20, "width": 8, "depth": 1, "batch_size": 16}
Y = np.array([1.0, 2.0, 3.0, 2.5], np.float32)
KEY = jax.random.key(0)


def known_mean(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    numpyro.deterministic("twice", 2 * mu)
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def posterior(y):
    precision = 0.01 + len(y)
    return float(y.sum()) / precision, precision**-0.5


def hierarchy(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(3.0))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@pytest.fixture(scope="module")
def fitted():
    dft = DFT(known_mean, **GAUSSIAN)
    dft.run(KEY, Y)
    return dft


@pytest.fixture(scope="module")
def network():
    dft = DFT(known_mean, num_chains=2, **NETWORK)
    dft.run(KEY, Y)
    return dft


def test_draws_are_those_of_the_posterior(fitted):
    mean, sd = posterior(Y)
    draws = np.asarray(fitted.get_samples(10_000)["mu"])
    # Independent draws: standard errors sd / sqrt(n) and sd / sqrt(2 n); 5 of them.
    assert abs(draws.mean() - mean) < 5 * sd / 10_000**0.5
    assert abs(draws.std() - sd) < 5 * sd / 20_000**0.5
    assert fitted.diagnostics()["status"] == "converged"


def test_shapes_kinds_and_repetition(network):
    kept = network.get_samples()
    assert {k: v.shape for k, v in kept.items()} == {"mu": (400,), "twice": (400,)}
    assert isinstance(kept["mu"], jax.Array)
    assert np.array_equal(kept["mu"], network.get_samples()["mu"])
    assert network.get_samples(group_by_chain=True)["mu"].shape == (2, 200)
    assert network.get_samples(7)["mu"].shape == (7,)
    assert network.get_samples(7, group_by_chain=True, refine_steps=0)["mu"].shape == (2, 7)
    assert not np.array_equal(network.get_samples(7)["mu"], network.get_samples(7)["mu"])


def test_the_same_key_gives_the_same_draws():
    draws = []
    for key in (KEY, jax.random.PRNGKey(0), jax.random.key(1)):
        dft = DFT(known_mean, **GAUSSIAN)
        dft.run(key, Y)
        draws.append(np.asarray(dft.get_samples(50)["mu"]))
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_summary_and_arviz_groups_hold_what_numpyro_gives(fitted, capsys):
    fitted.summary()
    assert "mu" in capsys.readouterr().out
    data = fitted.to_inference_data(posterior_predictive=True, prior=True)
    assert data.posterior["mu"].shape == (1, 400)
    assert data.log_likelihood["y"].dims == ("chain", "draw", "data")
    expected = log_likelihood(known_mean, {"mu": jnp.asarray(data.posterior["mu"].values[0])}, Y)["y"]
    assert np.allclose(data.log_likelihood["y"][0], expected, atol=1e-4)
    assert data.posterior_predictive["y"].shape == (1, 400, 4)
    assert data.prior["mu"].shape == (1, 400)
    assert np.array_equal(data.observed_data["y"], Y)


def test_numpyros_predictive_takes_samples_and_guide(fitted):
    by_samples = Predictive(known_mean, fitted.get_samples(20))(KEY, Y)
    assert by_samples["y"].shape == (20, 4)
    for parallel in (False, True):
        by_guide = Predictive(known_mean, guide=fitted.guide, num_samples=50, parallel=parallel)(KEY, Y)
        assert len(np.unique(by_guide["twice"])) > 30


@pytest.mark.parametrize("which", ["fitted", "network"])
def test_a_file_or_pickle_gives_the_same_draws_and_sampler(which, request, tmp_path):
    dft = request.getfixturevalue(which)
    path = tmp_path / "fit.st"
    dft.save(path)
    loaded = DFT.load(path, known_mean)
    assert np.array_equal(loaded.get_samples()["mu"], dft.get_samples()["mu"])
    one, two = dft.parts.fit.sampler, loaded.parts.fit.sampler
    z, eps = np.random.default_rng(0).normal(size=(2, dft.num_chains, 9, 1)).astype(np.float32)
    assert np.array_equal(one.transport(z, eps), two.transport(z, eps))
    assert loaded.get_samples(9)["mu"].shape == (9,)
    assert loaded.diagnostics()["objective"] == dft.diagnostics()["objective"]
    with pytest.raises(StorageError, match="another model, or other data"):
        DFT.load(path, known_mean, Y + 1)
    again = pickle.loads(pickle.dumps(dft))
    assert np.array_equal(again.get_samples()["mu"], dft.get_samples()["mu"])


@pytest.mark.filterwarnings("ignore:the fit is")
def test_noncentred_coordinates_are_served_as_the_model_names_them():
    dft = DFT(hierarchy, **GAUSSIAN)
    dft.run(KEY, Y)
    assert dft.diagnostics()["coordinates"] in ([], ["theta"])
    samples = dft.get_samples(100)
    assert {k: v.shape for k, v in samples.items()} == {"mu": (100,), "tau": (100,), "theta": (100, 4)}
    assert DFT(hierarchy, reparam="never", **GAUSSIAN).settings.reparam == "never"


def test_bare_potential():
    def potential(z):
        return 0.5 * ((z["x"] - 1.0) ** 2).sum() / 4.0

    dft = DFT(potential_fn=potential, initial_params={"x": jnp.zeros(2)}, **GAUSSIAN)
    dft.run(KEY)
    draws = np.asarray(dft.get_samples(4000)["x"])
    assert (np.abs(draws.mean(0) - 1) < 5 * 2 / 4000**0.5).all()
    with pytest.raises(ModelError, match="takes no model arguments"):
        dft.run(KEY, Y)


@pytest.mark.slow  # both parts every day: tests/test_minibatches.py, tests/test_streams.py
def test_minibatches_are_used_and_budgeted():
    y = np.linspace(-1, 1, 50).astype(np.float32) + 2

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        with numpyro.plate("row", len(y), subsample_size=10) as index:
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    dft = DFT(model, **NETWORK)
    dft.run(KEY, y)
    mean, sd = posterior(y)
    assert abs(float(dft.get_samples(4000)["mu"].mean()) - mean) < 5 * sd / 4000**0.5 + 0.1 * sd


# Training by steps


def test_init_and_update_are_pure_functions():
    dft = DFT(known_mean, **NETWORK)
    state = dft.init(KEY, Y)
    update = jax.jit(dft.update)
    losses = []
    for _ in range(60):
        state, loss = update(state, Y)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    whole, all_losses = dft.fit(KEY, Y)
    assert np.allclose(all_losses, losses, rtol=1e-3, atol=1e-3)
    assert np.allclose(whole.mean, state.mean, atol=1e-4)
    further, _ = update(whole, Y)
    assert int(further.step) == int(whole.step) == 60
    drawn = dft.draw(jax.random.key(1), state, 500, Y)
    assert drawn["mu"].shape == (1, 500)
    dft.adopt(state, Y)
    with pytest.raises(NotFittedError, match="no history"):
        dft.plot_training()
    mean, sd = posterior(Y)
    assert abs(float(dft.get_samples(4000)["mu"].mean()) - mean) < 5 * sd / 4000**0.5 + 0.1 * sd


def test_many_data_sets_at_once():
    dft = DFT(known_mean, **NETWORK)
    data = np.stack([Y, Y + 1, Y - 2])
    together, _ = jax.jit(jax.vmap(dft.fit, in_axes=(None, 0)))(KEY, data)
    for i in range(3):
        alone, _ = dft.fit(KEY, data[i])
        assert np.allclose(alone.mean, together.mean[i], atol=1e-4)
        for name, value in alone.network.generator.items():
            assert np.allclose(value, together.network.generator[name][i], atol=1e-4), name


def test_there_is_no_step():
    dft = DFT(known_mean, **GAUSSIAN)
    assert not hasattr(dft, "step")
    with pytest.raises(NotFittedError):
        dft.get_samples()


# MCMC


def run_mcmc(chain_method, chains, kernel=None, samples=500, **options):
    kernel = kernel or DFTKernel(known_mean, **NETWORK)
    options = {"num_warmup": 5, "num_samples": samples, "num_chains": chains, "progress_bar": False} | options
    mcmc = MCMC(kernel, chain_method=chain_method, **options)
    mcmc.run(KEY, Y, extra_fields=("potential_energy",))
    return mcmc


def check(mcmc, chains, samples=500):
    mean, sd = posterior(Y)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["mu"])
    assert draws.shape == (chains, samples)
    assert len(np.unique(draws)) > 0.99 * draws.size
    # Allows for a tenth of an sd from 20 steps of training, refined by two transitions.
    assert abs(draws.mean() - mean) < 5 * sd / draws.size**0.5 + 0.1 * sd
    twice = mcmc.get_samples(group_by_chain=True)["twice"]
    assert np.allclose(twice, 2 * draws, atol=1e-5)
    energy = mcmc.get_extra_fields(group_by_chain=True)["potential_energy"]
    mu = draws.astype(float)
    expected = 0.5 * (mu / 10) ** 2 + 0.5 * ((Y - mu[..., None]) ** 2).sum(-1)
    assert np.ptp(np.asarray(energy) - expected) < 1e-3


@pytest.mark.parametrize(
    ("chain_method", "chains"), [("sequential", 2), pytest.param("vectorized", 3, marks=pytest.mark.slow)]
)
def test_draws_of_mcmc_chains_are_right(chain_method, chains):
    mcmc = run_mcmc(chain_method, chains)
    check(mcmc, chains)
    mcmc.print_summary()


def test_mapped_chains_are_trained_under_the_trace():
    kernel = DFTKernel(known_mean, **NETWORK)
    mcmc = MCMC(
        kernel, num_warmup=2, num_samples=500, num_chains=2, chain_method=jax.vmap, progress_bar=False
    )
    mcmc.run(jax.random.split(KEY, 2), Y, extra_fields=("potential_energy",))
    check(mcmc, 2)


def test_more_draws_than_a_block_and_resuming_without_training():
    kernel = DFTKernel(known_mean, **GAUSSIAN)
    mcmc = run_mcmc("sequential", 1, kernel, samples=1000)
    check(mcmc, 1, samples=1000)
    first = np.asarray(mcmc.get_samples()["mu"])
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key, Y)
    second = np.asarray(mcmc.get_samples()["mu"])
    assert len(kernel.diagnostics) == 1
    assert len(np.intersect1d(first, second)) < 20


def test_thinning_pickling_and_arviz():
    import arviz as az

    mcmc = run_mcmc("sequential", 1, samples=400, thinning=2)
    assert mcmc.get_samples()["mu"].shape == (200,)
    again = pickle.loads(pickle.dumps(mcmc))
    assert np.array_equal(again.get_samples()["mu"], mcmc.get_samples()["mu"])
    data = az.from_numpyro(mcmc, log_likelihood=True)
    assert data.log_likelihood["y"].shape == (1, 200, 4)
    assert not data.sample_stats["diverging"].values.any()


@pytest.mark.slow  # every day: tests/test_kernel_modes.py, tests/test_kernel_data.py
def test_a_fitted_sampler_as_kernel(network):
    mcmc = run_mcmc("sequential", 2, DFTKernel(network))
    check(mcmc, 2)
    with pytest.raises(SettingsError, match="brings its own options"):
        DFTKernel(network, num_steps=5)


def test_wrong_options():
    with pytest.raises(SettingsError, match="belongs to MCMC"):
        DFTKernel(known_mean, num_chains=2)
    with pytest.raises(SettingsError, match="an option of NUTS"):
        DFT(known_mean, dense_mass=True)
    with pytest.raises(SettingsError, match="did you mean"):
        DFT(known_mean, num_step=3)
    with pytest.raises(TypeError, match="random key"):
        DFT(known_mean, **GAUSSIAN).run(Y)


def test_importing_this_front_door_does_not_load_torch():
    code = "from pyro_dft.numpyro import DFT, DFTKernel\nimport sys\nprint('torch' in sys.modules, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_the_error_without_numpyro_says_what_to_install():
    code = (
        "import sys; sys.modules['numpyro'] = None\n"
        "import pyro_dft.numpyro\n"
        "try:\n    pyro_dft.numpyro.DFT\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'pyro-dft[numpyro]'" in done.stdout


@pytest.mark.slow
def test_compiled_programs_outlive_the_process(tmp_path):
    code = (
        "import sys, jax, numpy as np, numpyro, numpyro.distributions as dist\n"
        "from pyro_dft import Experimental\n"
        "from pyro_dft.numpyro import DFT, enable_compilation_cache\n"
        "enable_compilation_cache(sys.argv[1])\n"
        "def model(y):\n"
        "    mu = numpyro.sample('mu', dist.Normal(0.0, 10.0))\n"
        "    numpyro.sample('y', dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)\n"
        "brief = Experimental(precondition_steps=10)\n"
        "dft = DFT(model, train='never', experimental=brief, restarts=2, refine_steps=1, num_draws=100, "
        "disable_progbar=True)\n"
        "dft.run(jax.random.key(0), np.ones(3, np.float32))\n"
    )
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True)
        kept.append({path.name for path in tmp_path.iterdir() if path.name.endswith("-cache")})
    assert kept[0]
    assert kept[1] == kept[0]


PARALLEL = """
import numpyro
numpyro.set_host_device_count(2)
import jax, numpy as np, numpyro.distributions as dist
from numpyro.infer import MCMC
from pyro_dft import Experimental
from pyro_dft.numpyro import DFTKernel

def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

y = np.array([1.0, 2.0, 3.0, 2.5], np.float32)
kernel = DFTKernel(model, restarts=2, refine_steps=2, num_draws=400, num_steps=20, width=8, depth=1,
                   experimental=Experimental(precondition_steps=40), batch_size=16, disable_progbar=True)
mcmc = MCMC(kernel, num_warmup=5, num_samples=500, num_chains=2, chain_method="parallel", progress_bar=False)
mcmc.run(jax.random.key(0), y)
first = np.asarray(mcmc.get_samples(group_by_chain=True)["mu"])
mcmc.post_warmup_state = mcmc.last_state
mcmc.run(mcmc.post_warmup_state.rng_key, y)
print(jax.local_device_count(), *first.shape, *first.mean(1), len(np.intersect1d(first, mcmc.get_samples()["mu"])))
"""


@pytest.mark.slow  # another process; tests/test_kernel_modes.py has one as well
def test_parallel_chains_on_two_devices():
    """The devices must be there before jax starts: a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", PARALLEL]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    devices, chains, draws, *means, again = map(float, done.stdout.split())
    assert (devices, chains, draws, again) == (2, 2, 500, 0)  # resuming brings new draws
    mean, sd = posterior(Y)
    for own in means:
        # Allows for a tenth of an sd from 20 steps of training, refined by two transitions.
        assert abs(own - mean) < 5 * sd / draws**0.5 + 0.1 * sd


@pytest.mark.parametrize(
    "call",
    [
        lambda run: jax.jit(lambda: run(KEY, jnp.asarray(Y)))(),
        lambda run: jax.jit(run)(KEY, Y),
        lambda run: jax.vmap(lambda y: run(KEY, y))(jnp.stack([Y, Y])),
    ],
    ids=["inside jit", "jit", "vmap"],
)
def test_a_run_under_a_transformation_says_what_to_call(call):
    dft = DFT(known_mean, **GAUSSIAN)
    with pytest.raises(ModelError, match=r"DFT\.run was called within jax\.jit"):
        call(dft.run)
