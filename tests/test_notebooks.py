"""The notebooks of the documentation run from top to bottom, for both frameworks, within their time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*_*.md"))
# CPU seconds of a kernel with one thread: what a reader waits at most, on a machine that does nothing else.
LIMIT = 180
CLOCK = "import time as _time\nprint('cpu', _time.process_time())"


def test_every_notebook_exists_for_both_frameworks():
    pairs = [set(re.findall(rf"(\w+)_{framework}\b", " ".join(NAMES))) for framework in ("pyro", "numpyro")]
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) == 6
    listed = (NOTEBOOKS / "index.md").read_text(encoding="utf-8")
    assert all(f"\n{name}\n" in listed for name in NAMES)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter's own clients
@pytest.mark.parametrize("name", NAMES)
def test_notebook(name, monkeypatch):
    import jupytext
    from nbclient import NotebookClient

    monkeypatch.setenv("CI", "1")  # no progress bars
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parents[1]))
    notebook = jupytext.read(NOTEBOOKS / f"{name}.md")
    assert sum(cell.cell_type == "code" for cell in notebook.cells) >= 4
    notebook.cells.append(
        notebook.cells[-1].__class__(
            cell_type="code", source=CLOCK, metadata={}, outputs=[], execution_count=None
        )
    )
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    seconds = float(notebook.cells[-1].outputs[0].text.split()[1])
    assert seconds < LIMIT
