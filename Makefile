# Everything a fresh machine needs is installed by the first target that asks for it: Python 3.11 and a C compiler suffice.
PYTHON ?= python3.11
ifeq ($(shell command -v $(PYTHON) 2>/dev/null),)
PYTHON := python3
endif
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench up down clean install

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "Squall needs Python 3.11, found " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: install
	$(BIN)/squall demo

# One process per core, whole files to each, in the order of the files: those with a stack of their own come early.
test: install
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 20

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python tests/bench/run.py

up: install
	$(BIN)/squall up

down: install
	$(BIN)/squall down

# The plan of a running stack lies in the state folder: without it nothing could stop the services any more.
clean:
	@if test -e .squall/stack/stack.json && test -x $(BIN)/squall; then SQUALL_HOME=.squall $(BIN)/squall down >/dev/null; fi
	rm -rf .squall .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
