# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo

# Threads that wait by spinning starve each other where anything else runs; see src/lighten/cli/__init__.py.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint types install clean

demo: install
	$(BIN)/lighten compress digits --max-drop 0.01 --minimize latency --out $(OUT)

test: lint types
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

install: $(VENV)/installed

# torch first and pinned: a looser requirement pulls gigabytes of CUDA on Linux.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OUT) .mypy_cache .ruff_cache .pytest_cache .hypothesis
