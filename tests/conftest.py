"""Options and clean-up for all tests: precision and device of the engine, and no global state left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Before torch, NumPy or jax start: more threads than cores slow small tensors down, and jaxlib can deadlock
# on two cores.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
    os.environ.setdefault(_variable, "1")

# Loops emitted by XLA's older code, each program in one piece: half the time of compilation.
QUICK = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")


def xla_takes(flags):
    """Whether the installed XLA knows all of `flags`: it ends the process where it does not."""
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    environment = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0


def pytest_configure(config):
    """Without the slow tests jax compiles quickly rather than well: compilation is most of what its tests take.

    With them (`make test-all`) programs are optimised as they are for users. Workers of pytest-xdist inherit the
    environment.
    """
    if config.option.markexpr != "not slow" or hasattr(config, "workerinput"):
        return
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK]).strip()
    if xla_takes(flags):
        os.environ["XLA_FLAGS"] = flags


def pytest_addoption(parser):
    parser.addoption(
        "--dtype", default="float64", choices=("float32", "float64"), help="of the engine's tests"
    )
    parser.addoption("--device", default="cpu", help="of the engine's tests, such as cpu or cuda:0")


@pytest.fixture(scope="session")
def dtype(request):
    """Precision that the engine's tests run in."""
    import torch

    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(scope="session")
def device(request):
    """Device that the engine's tests run on."""
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _global_state():
    """One torch thread; torch's defaults, Pyro's validation flags and parameter store as before each test.

    Neither library is imported for tests that do without.
    """
    torch, pyro = sys.modules.get("torch"), sys.modules.get("pyro")
    if torch is not None:
        torch.set_num_threads(1)
        defaults = torch.get_default_dtype(), torch.get_default_device()
        validate = torch.distributions.Distribution._validate_args
        random_state = torch.get_rng_state()
    if pyro is not None:
        store = pyro.get_param_store()
        parameters = store.get_state()
        checks = (pyro.distributions, pyro.infer, pyro.poutine)
        flags = [module.is_validation_enabled() for module in checks]
    yield
    if pyro is not None:
        for module, flag in zip(checks, flags, strict=True):
            module.enable_validation(flag)
        store.clear()
        store.set_state(parameters)
    if torch is not None:
        torch.set_num_threads(1)
        torch.set_default_dtype(defaults[0])
        if torch.get_default_device() != defaults[1]:
            torch.set_default_device(defaults[1])
        # After Pyro's own flag, which sets this one too.
        torch.distributions.Distribution.set_default_validate_args(validate)
        torch.set_rng_state(random_state)


@pytest.fixture
def compiled_programs_stay(monkeypatch):
    """For benchmarks that forget all compiled programs before they look at the clock: those of other tests are kept."""
    import jax

    monkeypatch.setattr(jax, "clear_caches", lambda: None)


@pytest.fixture
def brief_surrogate(monkeypatch):
    """Surrogates of scores that are fitted for a few steps only: most of a small fit's time, where nothing hangs on them."""
    from pyro_dft.recipe import bank

    monkeypatch.setattr(bank, "SURROGATE_STEPS", 40)
    monkeypatch.setattr(bank, "SURROGATE_MORE", 10)
