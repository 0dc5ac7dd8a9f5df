# `make help` lists the targets. Everything happens in .venv, which is made when missing and brought up to date when
# pyproject.toml or constraints.txt change.

# Byte code is written as modules are imported, also where the environment says otherwise: start-up takes half the time.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
JINA := .venv-jina
JINA_TESTS ?=
BIN := $(VENV)/bin
# PROCESSES=2: two test processes, each up to 6 GB with the nets of the golden tests. 0: all tests in one process.
PROCESSES ?= 0
PYTEST = python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
DEMO ?= demo-output
MINUTES ?= 30
# --no-compile: only what is imported gets compiled, when it is; that saves half of the installation.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-other-processor soak test-jina check goals format clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/demo-installed ## see the whole tour: draw images, encode them, search them by words
	@$(BIN)/image-encoders demo $(DEMO)

test: $(VENV)/dev-installed ## run every test but the slow ones of the Jina Executors
	$(BIN)/$(PYTEST)
	$(MAKE) test-jina JINA_TESTS='-m "not golden and not slow"'

# Tests of what `auto` chooses run on both kinds of processor by themselves; this runs whatever else may depend on it.
test-other-processor: $(VENV)/dev-installed ## run the tests of models and engines as on a processor without bfloat16, or with it
	IMAGE_ENCODERS_BFLOAT16=$$($(BIN)/python -c \
		"from image_encoders.engines.openvino import has_bfloat16; print(int(not has_bfloat16()))") \
		$(BIN)/$(PYTEST) tests/engines tests/models tests/contract tests/test_encoder.py -m "not golden" \
		-k "not with-bfloat16 and not without-bfloat16"

soak: $(VENV)/dev-installed ## kill runs at 50 moments, load a service for half an hour with 1% broken images (MINUTES=5: shorter)
	KILL_SERIES=5 $(BIN)/python -m pytest tests/bulk/test_kill.py tests/bulk/test_parts.py -k random
	KILL_SERIES=1 $(BIN)/python -m pytest tests/bulk/test_ray.py
	$(BIN)/python tests/serve/soak.py --minutes $(MINUTES)

test-jina: $(JINA)/installed ## run all tests of the Jina Executors, real Flows among them, in an environment of their own
	$(JINA)/bin/$(PYTEST) tests/jina $(JINA_TESTS)

check: $(VENV)/dev-installed ## format, lint, types, layers, and the tests of the package and its contracts with torch
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_package.py tests/contract -k "not engine and not openvino"

goals: $(VENV)/dev-installed ## measure speed and closeness against their goals and other libraries: half an hour or more
	$(BIN)/python benchmarks/goals.py --quick --plot docs/goals.svg

format: $(VENV)/dev-installed ## put the code into its one form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the other targets made
	rm -rf $(VENV) $(JINA) .venv-peers $(DEMO) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.10 to 3.13 is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Another one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/demo-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): a minute or two, the first time"
	@$(PIP) -e ".[audio,heif,serve]"
	@touch $@

$(VENV)/dev-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): a minute or two, the first time"
	@$(PIP) -e ".[audio,heif,serve,dev]"
	@touch $@ $(VENV)/demo-installed

# Jina holds back urllib3, grpcio and others, so it has its own environment and its own tested set.
$(JINA)/installed: pyproject.toml constraints-jina.txt | $(VENV)/bin/python
	@echo "installing into $(JINA): a minute or two, the first time"
	@$(PYTHON) -m venv $(JINA)
	@$(JINA)/bin/python -m pip install --disable-pip-version-check --quiet --no-compile -c constraints-jina.txt \
		-e ".[jina,audio,heif]" pytest pytest-xdist
	@touch $@
