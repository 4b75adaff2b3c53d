"""The benchmark that runs the frameworks' own examples with the kernel swapped, on a folder of three small ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.examples import __main__ as examples
from benchmarks.examples import compare, data
from benchmarks.examples.catalogue import EXAMPLES, Example
from benchmarks.examples.record import moments
from benchmarks.examples.source import program

SCRIPT = """
import argparse, jax, numpy, numpyro, seaborn
from numpyro.examples.datasets import UCBADMIT, load_dataset
from numpyro.infer import MCMC, NUTS

parser = argparse.ArgumentParser()
parser.add_argument("-n", type=int, default=500)
n = parser.parse_args().n
assert numpyro.__version__ == "7.8"
dept, male, applications, admit = load_dataset(UCBADMIT, shuffle=False)[1]()
seaborn.set_style("white").anything[0](dept)
print("unseeded data", numpy.random.rand())

def model():
    p = numpyro.sample("p", numpyro.distributions.Beta(1.0, 1.0))
    numpyro.sample("admit", numpyro.distributions.Binomial(applications, p), obs=admit)

assert (NUTS.__module__ == "numpyro.infer.hmc") or "{what}" == "fine", "which is wrong"

mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=n, progress_bar=False)
mcmc.run(jax.random.key(0))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(examples, "RESULTS", tmp_path / "results")
    theirs = tmp_path / "theirs"
    for name, text in {
        "numpyro/infer/mcmc.py": "", "numpyro/version.py": '__version__ = "7.8"\n',
        "examples/good.py": SCRIPT.format(what="fine"), "examples/bad.py": SCRIPT.format(what="bad"),
    }.items():  # fmt: skip
        path = theirs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    chosen = (Example("examples/good.py", ("-n", "400"), note="one rate"), Example("examples/bad.py"))
    monkeypatch.setitem(EXAMPLES, "numpyro", chosen)
    return theirs


@pytest.mark.slow
def test_an_example_runs_with_both_kernels_and_is_compared(folder, tmp_path, capsys):
    assert examples.main([str(folder), "--only", "good"]) == 0
    nuts, ours = (examples.finished("numpyro", EXAMPLES["numpyro"][0], kernel) for kernel in examples.KERNELS)
    assert nuts["calls"][0]["verdicts"] == []
    assert ours["calls"][0]["verdicts"] == ["converged"]
    told = compare.row("a", "", nuts, ours)
    assert (told["outcome"], told["count"], told["beyond"]) == ("unchanged", 1, False)
    assert "1 unchanged, 0 with an error" in capsys.readouterr().out
    table = (tmp_path / "results" / "examples_numpyro.md").read_text()
    assert "| examples/good.py -n 400 | unchanged | converged |" in table
    assert "one rate" in table


def test_an_error_of_the_swapped_run_is_in_the_table(folder, tmp_path):
    """NUTS' side stands for a run that went well."""
    example = EXAMPLES["numpyro"][1]
    call = {"seconds": 2.0, "verdicts": [], "alarms": [], "moments": moments({"x": np.eye(5)[None]})}
    target = examples.cell("numpyro", example, "nuts")
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps({"error": "", "calls": [call], "seconds": 5.0}))
    assert examples.main([str(folder), "--only", "bad"]) == 1
    nuts, ours = (examples.finished("numpyro", example, kernel) for kernel in examples.KERNELS)
    assert ours["error"] == "AssertionError: which is wrong"
    assert ours["calls"] == []
    assert f"unseeded data {np.random.RandomState(0).rand()}" in ours["printed"]
    assert (compare.outcome(nuts, ours), compare.outcome(ours, ours)) == ("error", "not with NUTS either")
    assert compare.outcome(None, ours) == "ends with an error; NUTS not run yet"
    assert compare.outcome(nuts, None) == "not run"
    table = (tmp_path / "results" / "examples_numpyro.md").read_text()
    assert "| examples/bad.py | error |" in table
    assert "which is wrong" in table
    assert "good.py" not in table


def test_runs_over_the_limit_are_no_errors():
    """NUTS that was stopped for its cost leaves nothing to compare with, and says nothing against the swapped run."""
    call = {
        "seconds": 2.0,
        "verdicts": ["converged"],
        "alarms": [],
        "moments": moments({"x": np.eye(5)[None]}),
    }
    fine = {"error": "", "calls": [call], "seconds": 5.0, "code": "now"}
    stopped = {
        "error": f"{compare.STOPPED} 300 CPU s, or killed",
        "calls": [],
        "seconds": 300.0,
        "code": "now",
    }
    wrong = {"error": "ValueError: no", "calls": [call], "seconds": 5.0, "code": "before"}
    outcomes = [compare.outcome(a, b) for a in (fine, stopped, wrong) for b in (fine, stopped, wrong)]
    assert outcomes == [
        "unchanged", "over the limit", "error",
        compare.ALONE, "over the limit, NUTS too", "error",
        "NUTS ends with an error", "not with NUTS either", "not with NUTS either",
    ]  # fmt: skip
    told = compare.row("a", "", stopped, fine)
    assert "count" not in told
    both = compare.row("b", "", wrong, wrong)
    assert both["count"] == 5
    text = compare.table([told, both, compare.row("c", "", fine, fine)], "numpyro", "now")
    assert f"| a | {compare.ALONE} | converged | > 300 | 2.0 | – |" in text
    assert "| b | not with NUTS either | converged | 2.0 | 2.0 | 1.00 | 5 | 0.0 | 0.0 |" in text
    assert "2 runs of 2 examples and tutorials; 2 runs, of 2 examples, get to their end" in text
    assert "0 of the 2 that have NUTS' draws" in text
    assert "1 are of an earlier state of the package" in text


def test_differences_are_counted_in_monte_carlo_errors():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4, 1000, 3))
    same, moved = (
        moments({"x": draws, "n": np.arange(4000).reshape(4, 1000)}),
        moments({"x": rng.normal(size=(4, 1000, 3)) * [1.0, 1.0, 1.2] + [0.0, 0.2, 0.0]}),
    )
    assert same["names"] == ["x[0]", "x[1]", "x[2]"]
    # Errors of 1/sqrt(4000) and 1/sqrt(8000) on each side: 0.2 is 8.9 of both, a fifth of an sd
    # 0.2/(0.0112 sqrt(1 + 1.44)) = 11.4; each comes out within four.
    found = compare.differences(same, moved)
    assert found["count"] == 3
    assert found["mean"] == pytest.approx(8.9, abs=4)
    assert found["sd"] == pytest.approx(11.4, abs=4)
    assert found["sd_ratio"] == pytest.approx(1.2, abs=0.06)
    assert found["mean_in_sds"] == pytest.approx(0.2, abs=0.09)
    assert compare.differences(same, same)["mean"] == 0.0
    # 2.8 for a single coordinate: 0.25 % in each tail of each of two differences.
    assert compare.bound(1) == pytest.approx(2.807, abs=0.001)


def test_notebooks_and_docstrings_become_programs(tmp_path):
    cells = [
        ["%matplotlib inline\n", "x = 1\n"],
        ["!pip install that\n", "if x:\n", "    y = 2"],
        ["late = 3"],
    ]
    notebook = {"cells": [{"cell_type": "code", "source": cell} for cell in cells]}
    notebook["cells"].insert(1, {"cell_type": "markdown", "source": ["prose"]})
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    names: dict = {}
    exec(program(tmp_path, Example("a.ipynb", replaced=(("y = 2", "y = 5"),), until="late")), names)
    assert (names["x"], names["y"]) == (1, 5)
    assert "late" not in names
    with pytest.raises(ValueError, match="does not hold 'z'"):
        program(tmp_path, Example("a.ipynb", replaced=(("z", ""),)))
    (tmp_path / "b.py").write_text(
        'class A:\n    """As\n\n    >>> mcmc.run(1)\n    >>> mcmc.get()  # doctest: +SKIP\n    >>> later()\n    """\n'
    )
    assert program(tmp_path, Example("b.py::A")).endswith(
        "pyro.set_rng_seed(0)\nmcmc.run(1)\nmcmc.get()  # doctest: +SKIP\n"
    )


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(SystemExit, match="holds neither"):
        examples.backend_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "size"),
    [
        ("ucbadmit", "train", 12), ("dipper_vole", "dipper", 294), ("dipper_vole", "vole", 171),
        ("jsb_chorales", "train", 229), ("mortality", "train", 19 * 113 * 14),
    ],
)  # fmt: skip
def test_made_data_have_the_size_of_the_real_ones(name, split, size):
    arrays = data.NUMPYRO[name]()[split]
    assert {len(one) for one in arrays} == {size}
    assert all(np.isfinite(one).all() for one in arrays)
