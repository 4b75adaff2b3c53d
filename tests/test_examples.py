"""The example runs with both frameworks, and loads only the one that was asked for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FRAMEWORKS = {"pyro": "torch", "numpyro": "jax"}
# A tenth of the draws that the example takes: refining ten thousand is what costs most here.
RUN = (
    "import sys\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "del sys.argv[1]\n"
    "import logistic_regression\n"
    "logistic_regression.DRAWS = 1000\n"
    "logistic_regression.main()\n"
    "print('loaded', *[name for name in ('torch', 'jax') if name in sys.modules])"
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", FRAMEWORKS)
def test_logistic_regression(backend, tmp_path):
    picture = tmp_path / "picture.png"
    # Too short for NUTS to be a reference: what is tested is the road, and DFT's own verdict.
    options = ["--chains", "1", "--nuts-warmup", "50", "--nuts-draws", "100", "--nuts-jit", "--seed", "0"]
    command = [sys.executable, "-c", RUN, str(EXAMPLES), "--backend", backend, *options]
    done = subprocess.run([*command, "--output", str(picture)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "verdict: converged" in done.stdout
    row = re.search(r"^DFT, refined .*$", done.stdout, re.MULTILINE)
    assert row is not None, done.stdout
    # `python examples/logistic_regression.py` gives 0.982; with two more of the 114 tumours wrong it is 0.965.
    accuracy = float(re.findall(r"\d\.\d{3}", row[0])[3])
    assert accuracy > 0.96
    assert done.stdout.split("loaded ")[1].split() == [FRAMEWORKS[backend]]
    assert picture.read_bytes().startswith(b"\x89PNG")
