# Two commands matter: `make quickstart` and `make test`. Both install into .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

# Ray turns token authentication on for local clusters, and its command line then needs the token too. The clusters these targets start
# are thrown away and listen on the loopback interface only (which is what the second line says, see docs/beware.md), so they run
# without. Never copy this to a real cluster.
export RAY_AUTH_MODE ?= disabled
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER ?= 0
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_DATA_DISABLE_PROGRESS_BARS ?= 1
# The second data source packs many small files into one block, so that a pool of actors works with one (docs/beware.md).
export RAY_DATA_USE_DATASOURCE_V2 ?= 0

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all lint types contracts clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "raytraffic needs Python >= 3.11, but '$(PYTHON)' is not. Name one that is: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "'$(PYTHON) -m venv .venv' failed: install the venv module of that Python (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing raytraffic into .venv (some gigabytes, a few minutes; once) ..."
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/.installed ## create .venv and install the pinned packages

quickstart: .venv/.installed ## synthetic cities -> trained model -> report in runs/quickstart (5 minutes on 2 cores)
	$(BIN)/raytraffic quickstart --out runs/quickstart

# Ray Train's controller looks at its workers this often; the default of 2 s would be most of a small test's time.
test test-all: export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S = 0.2

test: .venv/.installed ## the tests without the slow ones
	$(BIN)/python -m pytest

test-all: .venv/.installed ## every test
	$(BIN)/python -m pytest -m ""

lint: .venv/.installed ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed ## type checker
	$(BIN)/mypy

contracts: .venv/.installed ## layer rules
	$(BIN)/lint-imports

clean: ## remove caches, build output and the quickstart's run; keeps .venv
	rm -rf build dist runs/quickstart .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find raytraffic tests -name __pycache__ -type d -prune -exec rm -rf {} +
