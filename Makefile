.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench soak docs clean

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.demo  ## watch jobs run: installs the library alone, needs no server
	$(BIN)/jobs-async demo $(ARGS)

test: .venv/.installed  ## run the tests (ARGS="-k retry" narrows them)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: .venv/.installed  ## lint, format, types, architecture, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy jobs_async $(wildcard tests examples)
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/deptry .

bench: .venv/.installed  ## run the benchmarks (ARGS is handed on)
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

soak: .venv/.installed  ## run the tests that take long
	$(BIN)/python -m pytest -m soak --timeout=3600 $(ARGS)

docs: .venv/.installed  ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -E -a -W --keep-going -b html docs docs/_build/html

clean:  ## remove the environment, caches and everything built
	rm -rf .venv build dist docs/_build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'jobs-async needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { echo 'cannot create .venv: is the venv module installed (Debian: python3-venv)?' >&2; exit 1; }

.venv/.demo: pyproject.toml | .venv/bin/pip
	$(PIP) -e .
	@touch $@

.venv/.installed: pyproject.toml | .venv/bin/pip
	$(PIP) -e '.[dev]'
	@touch .venv/.demo $@
