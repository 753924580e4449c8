# Sets itself up: each target that needs it makes .venv and installs this checkout into it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What needs no quiet machine, and so can run in two processes at once.
PURE := tests/unit tests/property tests/sim

SEED := 0
COUNT := 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## say what there is
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/'

.PHONY: setup
setup: $(STAMP) ## make .venv and install the checkout into it

$(STAMP): setup.cfg setup.py pyproject.toml brokers/objects/_nursery.c dagsched/_walking.c dagsched/partition/_scans.c
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

.PHONY: demo
demo: $(STAMP) ## a real run of several processes on real files, its picture and numbers
	$(BIN)/dagsched demo

.PHONY: bench
bench: $(STAMP) ## what a task costs on this machine, beside targets; a minute
	$(BIN)/dagsched bench

.PHONY: lint
lint: $(STAMP) ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: check
check: lint ## style, types, and the tests that need no other process; below 90 seconds
	$(BIN)/python -m pytest -q -n 2 -m 'not slow' $(PURE)

.PHONY: sim
sim: $(STAMP) ## one simulated story, told: make sim SEED=7; many: make sim COUNT=2000
	$(BIN)/python -m dagsched.testing --seed $(SEED) --count $(COUNT) --jobs 2

.PHONY: test
test: $(STAMP) ## all but the slow part of make chaos and make frontends (needs a redis-server binary)
	$(BIN)/python -m pytest -q -n 2 $(PURE)
	$(BIN)/python -m pytest -q tests/contract tests/integration
	$(BIN)/python -m pytest -q -m 'not slow' tests/frontends tests/chaos

.PHONY: chaos
chaos: $(STAMP) ## kills, stops, full memory and disks, hostile tasks; minutes
	$(BIN)/python -m pytest -q tests/chaos

.PHONY: frontends
frontends: $(STAMP) ## the tests of the packages that front ends are for; half an hour
	$(BIN)/python -m pytest -q tests/frontends

OLDEST_DASK := $(shell sed -n 's/.*dask\[.*\] >=//p' setup.cfg | head -n 1)

.PHONY: oldest
oldest: $(STAMP) ## the Dask front end with the oldest Dask that setup.cfg allows, in .venv/oldest
	$(BIN)/python -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install --quiet -e '.[test]' 'dask[array,bag,dataframe]==$(OLDEST_DASK)'
	$(VENV)/oldest/bin/python -m pytest -q tests/frontends/test_dask.py tests/unit/dagsched/test_dask_conversion.py tests/unit/dagsched/test_composed.py

.PHONY: format
format: $(STAMP) ## let the formatter write
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: clean
clean: ## remove what was built, .venv too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find brokers dagsched -name '*.so' -delete
