"""Where finished cells are kept: one folder per (model, method, settings) below ``benchmarks/.cache``."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.models.case import Case

FOLDER = Path(__file__).resolve().parent / ".cache"


def _syntax(function: Any) -> str:
    """Syntax tree without positions, comments and docstring: reformatting does not change it."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    return ast.dump(node)


def model_hash(benchmark: Case, framework: str = "pyro") -> str:
    """Changes when the model function or its data change."""
    h = hashlib.sha256()
    function = benchmark.pyro()[0] if framework == "pyro" else benchmark.numpyro()[0]
    h.update(_syntax(function).encode())
    for a in benchmark.arrays():
        h.update(a.tobytes())
    return h.hexdigest()[:12]


def cell(benchmark: Case, method: str, settings: Mapping[str, Any], framework: str = "pyro") -> Path:
    """Folder of one cell; a new one for every change of the model, its data or the settings."""
    text = json.dumps(dict(settings), sort_keys=True) + model_hash(benchmark, framework)
    return FOLDER / benchmark.name / f"{method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def code_hash() -> str:
    """Changes with every change of the package's source; a row keeps the one that it was made with."""
    import pyro_dft

    folder = Path(pyro_dft.__file__).parent
    h = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        h.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return h.hexdigest()[:12]
