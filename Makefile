# Two commands: `make demo` shows a claim reproduced, `make test` checks the project.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt

SCALE ?= 1
SEEDS ?= 1 2 3 4 5

.PHONY: demo test fast slow bounds lint types docs seeds bench clean

demo: $(VENV)/.installed
	$(BIN)/undertow reproduce low-rank

test: lint types $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2

# As many tests as fit into a minute.
fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow"

# Kills, flips and fuzz by the thousands, for minutes, with a tally; SCALE=0.01 for a hundredth.
slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --scale $(SCALE) tests/slow

# The lowest and the newest releases of the dependencies on each Python; takes hours.
bounds: $(VENV)/.installed-dev
	$(BIN)/python tests/bounds.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m website.claims
	$(BIN)/python -m zensical build --strict --clean
	$(BIN)/python -m website.check site

# Every claim on five base seeds, for hours; killed, the same command goes on.
seeds: $(VENV)/.installed-dev
	$(BIN)/python -m website.seeds --seeds $(SEEDS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Undertow needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@echo "Installing Undertow into $(VENV) (the first time this takes a minute or two) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev,mnist]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) --editable '.[bench]'
	@touch $@
