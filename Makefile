# `make demo` and `make test` need Python 3.11 or newer, make and a package registry; each alone does the whole work.
# Another interpreter: `make PYTHON=python3.12 test`. Another place for the environment: `make VENV=/tmp/venv test`.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
PYTEST := $(RUN) -m pytest
# Tests use models made in memory; a hub that is asked by mistake shall be an error and not a delay.
TEST_ENV := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PARALLEL := -n logical --maxprocesses=4 --dist=loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test slow lint format docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(VENV)/.installed-dev ## Make the development environment

demo: $(VENV)/.installed ## Train, tune and compare a small captioner on drawn scenes (ARGS="..." are passed on)
	$(VENV)/bin/contrastive-caption demo $(ARGS)

test: $(VENV)/.installed-dev ## Run the quick tests (ARGS="..." are passed to pytest)
	$(TEST_ENV) $(PYTEST) $(PARALLEL) $(ARGS)

slow: $(VENV)/.installed-dev ## Run the slow tests, naming what was skipped
	$(TEST_ENV) $(PYTEST) -m slow $(PARALLEL) -rs --timeout=1800 $(ARGS)

lint: $(VENV)/.installed-dev ## ruff check, ruff format --check, mypy --strict
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.installed-dev ## Repair what ruff can repair
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(VENV)/.installed-docs ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. Each stamp says that what it stands for was installed from these two files. The constraints pin
# every package to the version that was tested; torch is named so that nothing can ask for another build of it.
# Without -q: the first installation takes minutes, and somebody watches it.
INPUTS := pyproject.toml constraints.txt

$(VENV)/pyvenv.cfg:
	@command -v "$(PYTHON)" > /dev/null || { \
		echo "error: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); Python 3.11 or newer is needed. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "error: '$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu install python3-venv, or name another Python: make PYTHON=... $(MAKECMDGOALS)" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear "$(VENV)"

$(VENV)/.installed: $(INPUTS) | $(VENV)/pyvenv.cfg
	$(PIP) install -c constraints.txt torch -e ".[report]"
	@touch $@

$(VENV)/.installed-dev: $(INPUTS) | $(VENV)/pyvenv.cfg
	$(PIP) install -c constraints.txt torch -e ".[dev]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(INPUTS) | $(VENV)/pyvenv.cfg
	$(PIP) install -c constraints.txt torch -e ".[docs]"
	@touch $(VENV)/.installed $@
