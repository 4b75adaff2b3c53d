"""Sphinx: how the documentation is built. `make docs` runs it."""

import os
import re
import sys
import urllib.request
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

# Before anything loads torch or jax, and for the notebooks' kernels too: silent bars, one thread (jaxlib can deadlock
# on two cores otherwise), and the repository's own package and helpers.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "CI"):
    os.environ.setdefault(name, "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from pyro_dft import __version__  # noqa: E402

project = "pyro_dft"
author = "the pyro_dft authors"
project_copyright = "the pyro_dft authors"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
nitpicky = True

# MyST and notebooks

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = os.environ.get("PYRO_DFT_DOCS_EXECUTE", "cache")  # "off" for a look at the prose
nb_execution_cache_path = str(DOCS / "_build" / "notebooks")
nb_execution_timeout = (
    900  # for a cell that hangs; tests/test_notebooks.py bounds the CPU seconds of each notebook
)
nb_execution_raise_on_error = True
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# API

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures carry them
autodoc_inherit_docstrings = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False
# "Keys:" of `Diagnostics` and "Warns:" as sections of their own.
napoleon_custom_sections = [("Keys", "params_style")]
default_role = "code"
python_use_unqualified_type_names = True
# References to this package must resolve; others do where their inventory could be had. Type hints also name aliases and
# private classes, which have no page.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pyro_dft\.).*"),
    (r"py:.*", r"pyro_dft\..*\b(hooks|files|inference|arguments|layout|engine_jax)\b.*"),
]

# Theme

html_theme = "furo"
html_title = "pyro_dft"
html_static_path = ["_static"]
html_theme_options = {"navigation_with_keys": True}

# Other projects' documentation. Where an inventory cannot be had (no network), its links are left out, and so are the
# warnings about them.

INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
    "pyro": "https://docs.pyro.ai/en/stable/",
    "numpyro": "https://num.pyro.ai/en/stable/",
    "arviz": "https://python.arviz.org/en/stable/",
}
TIMEOUT = 5  # seconds


def reachable(url):
    """Whether an inventory is there."""
    try:
        with urllib.request.urlopen(url + "objects.inv", timeout=TIMEOUT) as answer:
            return answer.read(20).startswith(b"# Sphinx inventory")
    except OSError:
        return False


def mapping():
    """The inventories that can be had; the first failure of two means that there is no network."""
    found, failures = {}, 0
    for project_name, url in INVENTORIES.items():
        if failures < 2 and reachable(url):
            found[project_name] = (url, None)
        else:
            failures += 1
    return found


intersphinx_mapping = mapping()
intersphinx_timeout = TIMEOUT


# The tables that the benchmarks write stand beside them, outside of this folder. They become pages here.

TABLES = DOCS / "tables"


def copy_tables():
    """One page for each table of `benchmarks/results`."""
    TABLES.mkdir(exist_ok=True)
    wanted = {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks/results").glob("*.md")
    }
    for old in TABLES.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        page = text if text.startswith("# ") else f"# {name.removesuffix('.md').replace('_', ' ')}\n\n{text}"
        path = TABLES / name
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            path.write_text(page, encoding="utf-8")


copy_tables()


def to_pages(app, name, source):
    """Links to files of the repository that have pages here -> links to these pages."""
    if name in ("contributing", "changelog"):
        source[0] = (ROOT / f"{name.upper()}.md").read_text(encoding="utf-8")
    up = "../" * name.count("/")
    text = re.sub(r"\]\((?:\.\./)+benchmarks/results/(\w+\.md)\)", rf"]({up}tables/\1)", source[0])
    text = re.sub(r"\]\((?:\.\./)*CHANGELOG\.md\)", f"]({up}changelog.md)", text)
    if not any((DOCS / "results").glob("*.md")):
        text = text.replace("\nresults/*\n", "\n")
    source[0] = text


def for_sphinx(app, what, name, thing, options, lines):
    """Google-style docstrings are written for readers of the code: `*site` is a shape there, and no emphasis."""
    lines[:] = [re.sub(r"(?<![\\*`])\*(site|args\b(?!:))", r"\\*\1", line) for line in lines]


def setup(app):
    app.connect("source-read", to_pages)
    app.connect("autodoc-process-docstring", for_sphinx, priority=400)  # before napoleon's
