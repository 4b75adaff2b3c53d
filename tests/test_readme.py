"""The README's first example can be pasted into a file and run, with both frameworks, in under a minute."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADINGS = {"pyro": "First example", "numpyro": "With NumPyro"}
LIMIT = 60  # CPU seconds with one thread


def example(framework):
    """The first block of code of a section that is a whole program."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {HEADINGS[framework]}\n(.*?)^## ", text, re.M | re.S)[1]
    return next(block for block in re.findall(r"```python\n(.*?)```", section, re.S) if "def model" in block)


def test_the_examples_are_there():
    for framework, module in (("pyro", "pyro_dft"), ("numpyro", "pyro_dft.numpyro")):
        assert f"from {module} import DFT\n" in example(framework)


@pytest.mark.slow
@pytest.mark.parametrize("framework", HEADINGS)
def test_first_example(framework, tmp_path):
    code = example(framework) + "\nprint('verdict:', dft.diagnostics()['status'])\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("verdict: converged")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT
