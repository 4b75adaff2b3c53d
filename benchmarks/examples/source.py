"""An example's text, made into one program."""

from __future__ import annotations

import ast
import doctest
import json
import re
from pathlib import Path

from benchmarks.examples.catalogue import Example

# What the documentation of Pyro takes for granted before each example of a docstring.
IMPORTS = """\
import torch, pyro
import pyro.distributions as dist
import pyro.contrib.gp as gp
from pyro.infer import HMC, MCMC, NUTS
pyro.set_rng_seed(0)
"""


def program(folder: Path, example: Example) -> str:
    """Source of an example: the file, the cells of a notebook, or the examples of a docstring.

    Raises:
        FileNotFoundError: the folder does not hold it.
        ValueError: a text that is to be replaced is not there.
    """
    path, _, name = example.path.partition("::")
    text = (folder / path).read_text(encoding="utf-8")
    if name:
        text = _docstring(text, name)
    elif path.endswith(".ipynb"):
        text = _cells(text)
    for old, new in example.replaced:
        if old not in text:
            raise ValueError(f"{example.path} does not hold {old!r}")
        text = text.replace(old, new)
    if example.until not in text:
        raise ValueError(f"{example.path} does not hold {example.until!r}")
    return text.split(example.until)[0] if example.until else text


def _cells(text: str) -> str:
    """Code of a notebook, without what only IPython understands."""
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join(re.sub(r"^\s*[%!].*$", "", cell, flags=re.M) for cell in cells) + "\n"


def _docstring(text: str, name: str) -> str:
    """The examples in a class's docstring, as far as its MCMC goes."""
    node = next(n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef) and n.name == name)
    steps = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
    last = max(i for i, step in enumerate(steps) if "mcmc." in step.source)
    return IMPORTS + "".join(step.source for step in steps[: last + 1])
