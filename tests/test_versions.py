"""The command that tries versions: what it asks pip for, and how its table gets into the page."""

from __future__ import annotations

import sys
import types

import pytest

from benchmarks import versions


def test_the_oldest_are_those_of_the_bounds_and_the_newest_have_none():
    oldest = versions.requirements("numpyro", True)
    assert "jax==0.5" in oldest
    assert "numpy==1.26" in oldest
    assert versions.requirements("numpyro", False) == [
        "numpy",
        "safetensors",
        "tqdm",
        "jax",
        "numpyro",
        "optax",
        "arviz",
        "h5netcdf",
        "h5py",
    ]


def test_rows_replace_their_like_and_stand_in_order(tmp_path):
    kept, page = tmp_path / "kept.json", tmp_path / "versions.md"
    page.write_text("before\n" + "\n".join(versions.MARKS) + "after\n")
    row = {"versions": "v", "status": "converged", "arviz": "DataTree", "diagnose": "no problems"}
    for backend, which, python, status in (
        ("pyro", "newest", "3.11.7", "converged"), ("numpyro", "newest", "3.13.5", "converged"),
        ("numpyro", "newest", "3.9.1", "converged"), ("numpyro", "oldest", "3.11.7", "fails"),
        ("pyro", "newest", "3.11.9", "suspect"),
    ):  # fmt: skip
        rows = versions.keep(
            row | {"backend": backend, "which": which, "python": python, "status": status}, kept
        )
        versions.into_page(rows, page)
    order = [(one["backend"], one["which"], one["python"], one["status"]) for one in rows]
    assert order == [
        ("numpyro", "oldest", "3.11.7", "fails"), ("numpyro", "newest", "3.9.1", "converged"),
        ("numpyro", "newest", "3.13.5", "converged"), ("pyro", "newest", "3.11.9", "suspect"),
    ]  # fmt: skip
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| pyro | newest |") == 1
    assert "| numpyro | newest | 3.13.5 | v | converged | DataTree | no problems |" in text


@pytest.mark.parametrize("python", [None, "python3.99"])
def test_an_environment_is_completed_where_other_things_are_asked_for(tmp_path, monkeypatch, python):
    called = []
    monkeypatch.setattr(versions.subprocess, "run", lambda call, check: called.append(call))
    for asked in (["numpy"], ["numpy"], ["numpy", "h5py"]):
        call, variables = versions.prepared(tmp_path / "place", python, asked)
    installed = [call[call.index("--quiet") + 1 :] for call in called if "pip" in call]
    where = [] if python is None else ["--target", str(tmp_path / "place" / "site"), "--upgrade"]
    assert installed == [[*where, "numpy"], [*where, "numpy", "h5py"]]
    assert call == [python or str(tmp_path / "place" / "bin" / "python")]
    assert variables["PYTHONPATH"].endswith(str(versions.ROOT))


@pytest.mark.parametrize(
    ("said", "problems", "expected"),
    [
        ("R-hat values satisfactory", False, "no problems"),
        ("R-hat skipped: one chain", False, "no problems, something skipped"),
        ("R-hat values above 1.01", True, "problems"),
    ],
)
def test_what_diagnose_says_in_a_word(monkeypatch, said, problems, expected):
    module = types.ModuleType("arviz_stats")
    module.diagnose = lambda data: print(said) or problems
    monkeypatch.setitem(sys.modules, "arviz_stats", module)
    assert versions.diagnosed(None) == expected
    monkeypatch.setitem(sys.modules, "arviz_stats", None)  # not installed
    assert versions.diagnosed(None) == "-"
