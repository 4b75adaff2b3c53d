"""One command for all benchmarks: each name can be run, and says what it takes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks import __main__ as command

ROOT = Path(command.__file__).parent


def test_it_lists_them(capsys):
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in command.COMMANDS)


def test_an_unknown_name(capsys):
    assert command.main(["swop"]) == 2
    assert "swop" in capsys.readouterr().err


def test_every_file_that_can_be_run_is_listed():
    """And nothing else is."""
    runnable = set()
    for path in ROOT.rglob("*.py"):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__main__")
            if name:
                runnable.add(name)
    assert runnable == set(command.COMMANDS)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_each_is_a_module(name):
    assert importlib.util.find_spec(f"benchmarks.{name}") is not None


def test_the_rest_of_the_line_goes_to_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    with pytest.raises(SystemExit) as stopped:
        command.main(["fingerprint", "--help"])
    assert stopped.value.code == 0
    assert "--store" in capsys.readouterr().out
