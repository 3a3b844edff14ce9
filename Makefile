# make env          a working environment in .venv, with .venv/bin/forcewell
# make quickstart   real data -> pre-train -> fine-tune -> MD -> quickstart/report.html
# make test         ruff, pyright, import layers, then every test
#
# PYTHON=...           the interpreter, 3.11 or newer (found by itself otherwise)
# TORCH_INDEX_URL=...  where torch comes from, e.g. https://download.pytorch.org/whl/cpu for the small CPU build
# OUT=...              where the quickstart writes

VENV ?= .venv
OUT ?= quickstart
WORKERS ?= 2
TORCH_INDEX_URL ?=

NEW_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python; do $$p $(NEW_ENOUGH) && echo $$p && break; done)
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# torch is installed alone and first, so that its build (CPU or CUDA) is chosen once and every later step keeps it.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: env dev quickstart lint test clean

env: $(VENV)/.env-stamp
dev: $(VENV)/.dev-stamp

$(BIN)/python:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) $(NEW_ENOUGH); then \
	  echo "Forcewell needs Python 3.11 or newer$(if $(PYTHON), but $(PYTHON) is older or absent,; none was found on PATH). Name one: make env PYTHON=/path/to/python3.12" >&2; \
	  exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.env-stamp: pyproject.toml constraints.txt setup.py $(wildcard src/forcewell/kernels/*) | $(BIN)/python
	$(PIP) install $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL),-c constraints.txt) $(TORCH)
	$(PIP) install -c constraints.txt -e .
	@touch $@
	@echo "ready: $(BIN)/forcewell"

$(VENV)/.dev-stamp: $(VENV)/.env-stamp
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: env
	$(BIN)/forcewell quickstart --out $(OUT)

lint: dev
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo --no-cache

# One thread per worker: two workers with two threads each are slower on two cores than two with one.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
