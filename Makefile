# Everything the project does from a shell. `make help` lists the targets.
#
#   make demo                          set up a fresh machine and run the example
#   make test                          set up a fresh machine and run the tests
#   make test ARGS="-k save -x"        hand options to pytest (or to the example, with `make demo`)
#   make docs                          build the documentation in docs/_build/html, notebooks executed
#   make demo PYTHON=python3.12        choose the Python that .venv is made from

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
EXTRAS := pyro,numpyro,examples,dev

# More threads than cores make small tensors slower, and a machine is often shared.
OMP_NUM_THREADS ?= 2
export OMP_NUM_THREADS

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all docs lint format release clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## */\1|/' \
		| while IFS='|' read -r target text; do printf '  make %-10s %s\n' "$$target" "$$text"; done

venv: $(STAMP)  ## make .venv and install the package in it, editable, with all extras

# The constraints hold the versions that the project is tested with. A machine for which one of them
# does not exist gets the newest that pip finds instead.
$(STAMP): pyproject.toml
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo "$(PYTHON) is missing or older than 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
		$(PYTHON) -m venv $(VENV) || { \
			rm -rf $(VENV); \
			echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; }
	@echo "Installing pyro_dft[$(EXTRAS)] in $(VENV): a few minutes the first time."
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]' || { \
		echo "Not with constraints.txt; trying again without." >&2; \
		$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'; }
	@touch $@

# Sphinx and what executes notebooks, for `docs` and `test-all` only.
$(DOCS_STAMP): $(STAMP)
	@echo "Installing the documentation's tools in $(VENV)."
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]' || $(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

demo: $(STAMP)  ## NUTS and DFT side by side on a real data set: a table and a picture
	$(BIN)/python examples/logistic_regression.py $(ARGS)

# jaxlib can deadlock on two cores in second-order graphs through a batched Cholesky factor, unless
# its own pool and the BLAS pool have one thread each, set before jax starts.
# A file's tests stay in one process: they share fits.
WORKERS ?= 2
QUIET := NPROC=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
PYTEST := $(QUIET) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: $(STAMP)  ## run the tests, without the slow ones
	$(PYTEST) $(ARGS)

test-all: $(DOCS_STAMP)  ## run all the tests, the notebooks included
	$(PYTEST) -m "" $(ARGS)

# Notebooks are executed once, and again only where they have changed.
docs: $(DOCS_STAMP)  ## build the documentation; warnings are errors
	$(QUIET) CI=1 $(BIN)/python -m sphinx -W --keep-going -n -b html docs docs/_build/html $(ARGS)

lint: $(STAMP)  ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(STAMP)  ## fix what ruff can fix
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# What is built is checked in fresh environments, from an empty folder: files, version, and the README's examples.
release: $(STAMP)  ## build wheel and source distribution into dist/, and check them (ARGS="--backends numpyro")
	$(QUIET) $(BIN)/python tools/release.py $(ARGS)

clean:  ## remove .venv and everything else that the other targets made
	rm -rf $(VENV) build dist docs/_build docs/tables .pytest_cache .mypy_cache .ruff_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +
