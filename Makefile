# Everything a newcomer or CI runs. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test check format sample validate accuracy bench bench-planners bench-bounds clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.core  ## install the torch-free core into .venv and compare all planners on the embedded sample
	$(BIN)/grace-opt compare output=outputs/quickstart

test: $(VENV)/.test  ## install what the tests need and run them
	$(BIN)/python -m pytest -n auto --dist loadgroup

check: $(VENV)/.dev  ## lint, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sample: $(VENV)/.runtime  ## train the sample model and record the embedded trace anew (under 20 minutes on 2 cores)
	$(BIN)/python -m runtime.sample --output outputs/sample
	cp outputs/sample/sample.safetensors conf/samples/sample.safetensors

validate: $(VENV)/.runtime outputs/sample/model.safetensors  ## predict, then measure on slow-linked hosts of this machine (Linux, root; 20 minutes)
	$(BIN)/python -m analysis.bench_validation

accuracy: $(VENV)/.measured  ## compare the cost model with published measurements (82 MB of them are fetched; 3 minutes)
	$(BIN)/python -m analysis.bench_accuracy

outputs/sample/model.safetensors: | $(VENV)/.runtime
	$(BIN)/python -m runtime.sample --output outputs/sample

bench: $(VENV)/.runtime  ## time counts, planners and kernels; rows go to analysis/results/
	$(BIN)/python -m analysis.bench_traffic
	$(BIN)/python -m analysis.bench_plan_time
	$(BIN)/python -m runtime.kernels.bench

bench-planners: $(VENV)/.core  ## every planner over traces, clusters, phases and budgets (hours; goes on where it stopped)
	$(BIN)/python -m analysis.bench_planners

bench-bounds: $(VENV)/.core  ## how far from the best there can be our plans are, certified (hours; goes on where it stopped)
	$(BIN)/python -m analysis.bench_bounds

clean:  ## remove the environment and everything computed
	rm -rf $(VENV) outputs dist build

$(VENV)/bin/python:
	@echo 'installing into $(VENV): half a minute or more'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	@$(PIP) --editable .
	@touch $@

$(VENV)/.runtime: $(VENV)/.core
	@$(PIP) --editable '.[runtime]'
	@touch $@

$(VENV)/.measured: $(VENV)/.core
	@$(PIP) --editable '.[measured]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@$(PIP) --editable '.[runtime,test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(PIP) --editable '.[runtime,test,dev]'
	@touch $@ $(VENV)/.test  # all that tests need is there
