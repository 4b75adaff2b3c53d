"""A PyMC model is sampled through its potential: draws come back in the model's own space, with a verdict.

In a process of its own, as PyMC switches jax to float64.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import numpy as np, pymc as pm
from pymc_model import sample

with pm.Model() as model:
    rate = pm.Gamma("rate", 2.0, 1.0)
    pm.Deterministic("twice", 2.0 * rate)
    pm.Poisson("y", rate, observed=np.array([3, 0, 2, 4, 1]))
draws, diagnostics = sample(model)
assert set(draws) == {"rate_log__", "rate", "twice"} and draws["rate"].shape == (2000,)
assert np.array_equal(draws["twice"], 2.0 * draws["rate"])
# The posterior is Gamma(2 + 10, 1 + 5): mean 2, sd sqrt(12) / 6. 2000 draws, nearly independent: four errors of the mean are
# 0.052, of the sd (kurtosis 3.5 of this Gamma) 0.042.
assert abs(draws["rate"].mean() - 2.0) < 0.055, draws["rate"].mean()
assert abs(draws["rate"].std() - 12**0.5 / 6) < 0.045, draws["rate"].std()
# Of a Gamma(12) over 6, 5 % are below 1.1541 and 5 % above 3.0346: four errors of a share are 0.0195.
assert abs((draws["rate"] < 1.1541).mean() - 0.05) < 0.02 and abs((draws["rate"] > 3.0346).mean() - 0.05) < 0.02
with pm.Model() as model:
    pm.Poisson("n", 2.0)
try:
    sample(model)
except ValueError as error:
    print(error)
print("verdict:", diagnostics["status"])
"""


@pytest.mark.slow  # PyMC takes long to import and to compile
def test_a_pymc_model_with_a_known_posterior():
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["discrete variables: n; sum them out", "verdict: converged"]
