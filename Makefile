# The whole project in a few verbs. Needs Python 3.11 or newer with venv, and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -q --disable-pip-version-check
SOURCES := engine service tests benchmarks
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: install run test soak check bench lock clean

install: $(RUN_STAMP)

run: install
	$(BIN)/softgauge serve

test: check
	$(BIN)/python -m pytest -n 2 --maxschedchunk 8 --cov

soak: $(DEV_STAMP)
	$(BIN)/python -m pytest -m soak

check: $(DEV_STAMP)
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/mypy

bench: $(DEV_STAMP)
	$(BIN)/python benchmarks/run.py

# uv writes no host names into a lock, as pip-compile and uv.lock do; it lives in an environment of its own.
UV := .venv-lock/bin/uv
COMPILE := $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links
# LOCK_FLAGS=--upgrade takes the newest versions; without it what is locked stays.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip -q --disable-pip-version-check install uv
	$(COMPILE) $(LOCK_FLAGS) pyproject.toml --group build -o requirements.lock
	$(COMPILE) $(LOCK_FLAGS) pyproject.toml --group build --group dev -c requirements.lock -o requirements-dev.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-lock build *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_STAMP): requirements-dev.lock $(RUN_STAMP)
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@
