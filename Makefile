# Everything that a developer or CI runs. `make help` lists it.
# Each target sets up what it needs; what is fetched or built is cached in $(MEDLEY_CACHE), outside the checkout.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
export MEDLEY_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/medley
BIN := .venv/bin

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}'

.PHONY: setup tools
setup: ## Make the virtual environment (.venv)
	@$(PYTHON) tools/bootstrap.py
tools: setup ## Build or find the control plane's binaries (about 15 minutes on 2 cores, once)
	@$(BIN)/python -m medley_cluster build-tools

# --- the story -----------------------------------------------------------------------------------------------------

.PHONY: demo demo-down
demo: setup ## Bring up a real cluster with simulated GPUs and show what Medley does
	@$(BIN)/python -m medley_demo
demo-down: setup ## Remove every trace of the demo's cluster
	@$(BIN)/python -m medley_cluster down --name demo

.PHONY: image-context
image-context: ## Collect the wheels that operator/Dockerfile installs, into build/image
	@rm -rf build/image && mkdir -p build/image
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
		> build/image/requirements.txt
	@$(PYTHON) -m pip download --quiet --dest build/image/dependencies --only-binary=:all: --python-version 3.11 \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --requirement build/image/requirements.txt
	@$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir build/image/wheel .
	@echo "docker build -f operator/Dockerfile -t medley-operator:0.1.0 build/image"

.PHONY: engine-image-context
engine-image-context: ## Collect the wheels that engine/Dockerfile installs (3 GB, torch above all), into build/engine-image
	@rm -rf build/engine-image && mkdir -p build/engine-image
	@$(PYTHON) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["dependencies"], *project["optional-dependencies"]["engine"], sep="\n")' \
		> build/engine-image/requirements.txt
	@$(PYTHON) -m pip download --quiet --dest build/engine-image/dependencies --only-binary=:all: --python-version 3.11 \
		$(foreach tag,2_28 2_27 2_26 2_25 2_24 2_18 2_17 2_12 2_5,--platform manylinux_$(tag)_x86_64) \
		--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
		--requirement build/engine-image/requirements.txt
	@$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir build/engine-image/wheel .
	@echo "docker build -f engine/Dockerfile -t medley-engine:0.1.0 build/engine-image"

# --- checks --------------------------------------------------------------------------------------------------------

.PHONY: test lint types imports generated test-fast test-fresh test-cluster
test: setup lint types imports generated test-fast test-cluster ## Run every check that this machine can run
lint: setup ## Check formatting and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
types: setup ## Check types
	@$(BIN)/mypy
imports: setup ## Check the import rules
	@$(BIN)/lint-imports --no-cache
generated: setup ## Check that generated files are in step with their sources
	@$(BIN)/python -m medley_operator.api.generate --check
	@$(BIN)/python tools/render_base.py --check
	@$(BIN)/python benchmarks/capacity.py --check
	@$(BIN)/python benchmarks/mix.py --check
test-fast: setup ## Unit, property, golden and integration tests: no cluster
	@$(BIN)/pytest tests -n 2 --dist loadgroup
test-fresh: setup ## Property tests on examples that were never drawn before; each run is another one
	@MEDLEY_FRESH_EXAMPLES=1 $(BIN)/pytest tests/property -n 2 --dist loadgroup
test-cluster: setup tools ## Tests on a real control plane and, where the machine allows, a real node
	@$(BIN)/pytest e2e/tests

.PHONY: format generate presets
format: setup ## Format, and mend what lint can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
generate: setup ## Write the generated files anew: CRDs, API reference, kustomize base, tables in docs/
	@$(BIN)/python -m medley_operator.api.generate
	@$(BIN)/python tools/render_base.py
	@$(BIN)/python benchmarks/capacity.py --write
	@$(BIN)/python benchmarks/mix.py --write
presets: setup ## Make the workload presets from the published traces: make presets TRACES=FOLDER
	@$(BIN)/python planner/make_presets.py $(TRACES)

# --- measurements --------------------------------------------------------------------------------------------------

.PHONY: bench-operator bench-mix bench-capacity bench-planner bench-engine
bench-operator: setup tools ## Measure the operator on a real control plane (about 20 minutes)
	@$(BIN)/python benchmarks/operator_on_cluster.py
bench-mix: setup ## Compare our mix with single GPU types and with Melange's formulation
	@$(BIN)/python benchmarks/mix.py
bench-capacity: setup ## Compare the capacity estimates with those of others
	@$(BIN)/python benchmarks/capacity.py
bench-planner: setup ## Measure the planner: scale, prices, estimates, simulated attainment, 100,000 fuzzed inputs
	@$(BIN)/python benchmarks/planner.py
bench-engine: ## Measure the elastic engine on this machine's CPUs
	@$(PYTHON) tools/bootstrap.py --extra engine --extra engine-test --extra engine-bench
	@$(BIN)/python benchmarks/engine.py
