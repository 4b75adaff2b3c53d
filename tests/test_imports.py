"""What importing the package loads: neither framework before it is used, and never the other one."""

import subprocess
import sys

import pytest

FRAMEWORKS = ("torch", "pyro", "jax", "numpyro", "arviz", "matplotlib")


def loaded_after(statement):
    """Which of the frameworks a fresh interpreter has loaded."""
    code = f"{statement}\nimport sys\nprint(*[n for n in {FRAMEWORKS} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_loads_no_framework():
    assert loaded_after("import pyro_dft; pyro_dft.Settings(); dir(pyro_dft)") == set()


def test_the_pyro_front_door_does_not_load_jax():
    assert loaded_after("from pyro_dft import DFT, DFTKernel") & {"jax", "numpyro", "arviz"} == set()


def test_the_error_without_pyro_says_what_to_install():
    code = (
        "import sys; sys.modules['pyro'] = None\n"
        "import pyro_dft\n"
        "try:\n    pyro_dft.DFT\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'pyro-dft[pyro]'" in done.stdout


def test_unknown_names_are_attribute_errors():
    import pyro_dft

    with pytest.raises(AttributeError, match="DFTs"):
        pyro_dft.DFTs  # noqa: B018
    assert set(pyro_dft.__all__) == set(dir(pyro_dft))
