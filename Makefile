# Everything from a bare machine with Python 3.10 or newer: `make test`, `make demo`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= street:
VIDEO ?=
OUT ?= demo-out

.PHONY: setup test demo lint

setup: $(VENV)/.ready

# uv resolves and installs in seconds what takes pip minutes; the constraints say which versions were tested.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[all]' --group dev
	touch $@

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: setup
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: setup
	$(BIN)/python -m benchmarks.demo --data '$(DATA)' $(if $(VIDEO),--video '$(VIDEO)') --out '$(OUT)'
