# Everything a checkout needs; `make help` lists it. Set-up happens by itself and once: stamp files in $(VENV) remember it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
MODEL ?=
DEMOS := smollm2 minilm
ADAPTERS ?= $(if $(filter-out $(DEMOS),$(MODEL)),,adapters/)
SERVE_FLAGS ?=
TEST_PROCESSES ?= 2
TEST_FLAGS ?=
BENCH_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help
help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Variables: PYTHON ($(PYTHON)), VENV ($(VENV)), VENV_FLAGS (--system-site-packages keeps an installed torch),"
	@echo "MODEL (folder, hub id, or a demo model: $(DEMOS)), ADAPTERS, SERVE_FLAGS, TEST_PROCESSES ($(TEST_PROCESSES)),"
	@echo "TEST_FLAGS, BENCH_FLAGS."

# --- set-up -----------------------------------------------------------------------------------------------------------

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or say which: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), and softmux needs 3.11 or newer. Say which one to use: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@touch $@

# torch comes first and by its own pin; one that is there already (--system-site-packages) and new enough is kept.
$(VENV)/.torch: constraints-torch.txt $(VENV)/.made
	@$(BIN)/python -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' 2>/dev/null \
		|| $(PIP) install -r constraints-torch.txt
	@touch $@

$(VENV)/.serve: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -c constraints.txt -e '.[tune]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -c constraints.txt -e '.[tune,dev]'
	@touch $@ $(VENV)/.serve

.PHONY: setup
setup: $(VENV)/.dev ## Make .venv with everything for development

# Never fails: without these programs the tests that need them are skipped, and listed. The stamp means all are there.
$(VENV)/.tools: .ci/tools $(VENV)/.made
	@.ci/tools && touch $@ || true

.PHONY: tools
tools: $(VENV)/.tools ## Install the programs that some tests need (Chromium, Prometheus) by apt-get, where that is allowed

.PHONY: demo-model
demo-model: $(VENV)/.serve ## Fetch and convert a demo's base model (once), print its folder: MODEL=smollm2 or minilm
	@$(BIN)/python -m softmux.demo $(if $(MODEL),--model '$(MODEL)')

.PHONY: constraints
constraints: $(VENV)/.dev ## Write down the exact versions that .venv holds, as tested
	@{ sed -n '/^#/p; /;/p' constraints.txt; $(PIP) freeze --exclude-editable --exclude torch --exclude async-timeout | grep -v -E '^(nvidia-|cuda-|triton|#)' | sort -f; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt

# --- running ----------------------------------------------------------------------------------------------------------

.PHONY: serve
serve: $(VENV)/.serve ## Serve the demo model and the tasks in adapters/ on 127.0.0.1:8000
	@model='$(MODEL)'; case "$$model" in ''|smollm2|minilm) model="$$($(BIN)/python -m softmux.demo --model "$${model:-smollm2}")";; esac; \
	exec $(BIN)/softmux serve --model "$$model" $(if $(ADAPTERS),--adapters '$(ADAPTERS)') $(SERVE_FLAGS)

.PHONY: docs
docs: $(VENV)/.dev ## Build the documentation as a site in build/site, and follow every link
	$(BIN)/python .ci/site.py

.PHONY: bench
bench: $(VENV)/.dev ## Measure softmux beside other ways to serve the same adapters
	$(BIN)/softmux bench $(BENCH_FLAGS)

.PHONY: console-image
console-image: $(VENV)/.dev $(VENV)/.tools ## Take the picture of the console in docs/images, with the demo model
	PYTHONPATH=tests $(BIN)/python -m console.picture "$$($(BIN)/python -m softmux.demo)"

# --- checking ---------------------------------------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.dev $(VENV)/.tools ## Run the tests that every change must pass
	$(BIN)/python -m pytest -m 'not nightly' -n $(TEST_PROCESSES) --dist loadfile $(TEST_FLAGS)

# Triton's interpreter, which needs no GPU and an older numpy than all else here: in a folder of its own.
$(VENV)/.triton: constraints-triton.txt $(VENV)/.made
	$(PIP) install --quiet --upgrade --target $(VENV)/triton -r constraints-triton.txt
	@touch $@

.PHONY: nightly
nightly: $(VENV)/.dev $(VENV)/.tools $(VENV)/.triton ## Run the tests that are too long for every change
	PYTHONPATH=$(abspath $(VENV))/triton $(BIN)/python -m pytest -m triton tests/engine $(TEST_FLAGS)
	TRITON_INTERPRET=1 PYTHONPATH=$(abspath $(VENV))/triton $(BIN)/python -m pytest tests/engine/test_attention_both_ways.py tests/engine/test_mixed_graphs.py tests/engine/test_fused_interpreted.py $(TEST_FLAGS)
	$(BIN)/python -m pytest -m nightly --timeout 3600 $(TEST_FLAGS)

.PHONY: lint
lint: $(VENV)/.dev ## Check format, style, types, layers, and the files around the code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict .
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run .ci/tools
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/compose.cuda.yml

.PHONY: dashboards
dashboards: $(VENV)/.dev ## Make Grafana's dashboards anew from the declared metrics and docs/operations.md
	$(BIN)/python -m softmux.dashboards deploy/grafana/dashboards

.PHONY: audit
audit: $(VENV)/.dev ## Check that the pinned packages agree, are still offered, and that none was withdrawn
	$(PIP) install --quiet 'pip>=24'
	$(PIP) check
	$(PIP) install --dry-run --ignore-installed --no-deps --quiet --report - -r constraints.txt | $(BIN)/python .ci/audit.py

.PHONY: format
format: $(VENV)/.dev ## Rewrite the code in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: hooks
hooks: $(VENV)/.dev ## Check every commit before it is made (pre-commit)
	$(BIN)/pre-commit install

.PHONY: clean
clean: ## Remove .venv and every cache in this folder; data and models stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache server/*.egg-info
	find server tests -name __pycache__ -prune -exec rm -rf {} +
