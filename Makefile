# One command from a fresh checkout: `make demo`, or `make test`. Nothing has to be installed but Python 3.11 or 3.12.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first of these that is there and new enough; `make env PYTHON=/path/to/python3` decides otherwise.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3 python,$(shell \
    $(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $(name))))

# The lock is the whole truth about versions: uv reads neither pip's settings nor an environment made elsewhere.
UV_VERSION := $(shell sed -n 's/^uv==//p' requirements.lock)
UV := env -u UV_PROJECT_ENVIRONMENT VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv
ifdef DEBUG
UV += --verbose
endif

OUT ?= demo
STUDY ?= study-demo
ARGS ?=

.PHONY: help env demo study test lint format docs bench lock clean

help: ## list the targets
	@echo "raymotion: label image collections with emotions"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

env: $(STAMP) ## make .venv with the locked versions and the project in it

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found. Install one, or say make PYTHON=/path/to/python3." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	    rm -rf $(VENV); echo "error: '$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv." >&2; exit 1; }
	@$(BIN)/uv --version 2>/dev/null | grep -qF "uv $(UV_VERSION) " || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	$(UV) pip install --quiet --compile-bytecode --requirement requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: env ## run the whole pipeline on small synthetic data (OUT=demo)
	$(BIN)/raymotion demo --out $(OUT) $(ARGS)

study: env ## the five-stage EMOTIC study on synthetic persons, from nothing to its page (STUDY=study-demo)
	$(BIN)/raymotion data synth emotic --persons 2000 --out $(STUDY)/emotic
	$(BIN)/raymotion data prepare emotic $(STUDY)/emotic --faces $(STUDY)/emotic/faces.csv --out $(STUDY)/emotic.parquet
	$(BIN)/raymotion features embeddings $(STUDY)/emotic.parquet --study tune_spaces/emotic-small --backbone-weights random:0 \
	    --size 64 --views 2 --out $(STUDY)/embeddings
	$(BIN)/raymotion study run tune_spaces/emotic-small --embeddings $(STUDY)/embeddings --seeds 3 --out $(STUDY)/study $(ARGS)
	$(BIN)/raymotion study report $(STUDY)/study --out $(STUDY)/report

test: env ## run the tests (ARGS="tests/data -k exif" for some; ARGS="-m slow" for those left out)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

lint: env ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env ## let ruff mend and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env ## build the documentation as a site (site/index.html); a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict $(ARGS)
	@echo "site/index.html; with its search: $(BIN)/python -m http.server --directory site"

bench: env ## run every benchmark, one after the other
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" $(ARGS) || \
	    [ "$$file $$?" = "benchmarks/gpu.py 3" ]; done  # which says that there is no GPU

lock: env ## resolve requirements.lock anew (UPGRADE=1: to the newest versions)
	$(UV) pip compile --quiet pyproject.toml --extra offline --group dev --group docs --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --no-emit-index-url \
	    $(if $(UPGRADE),--upgrade) --output-file requirements.lock

clean: ## remove the environment, caches, the demo and the study
	rm -rf $(VENV) demo study-demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
