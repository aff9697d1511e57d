# From a fresh clone, use `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Two processes, each with whole files, as fixtures belong to files.
PARALLEL := -n 2 --dist loadfile
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test-quick test test-all lint format types layers wheel clone check clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sftsearch needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing the pinned dependencies into .venv (takes some minutes the first time) ...'
	$(INSTALL) -e '.[export]'
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@

.typing: 
	mkdir -p .typing/sftsearch
	for folder in datasets orchestrator search_spaces trainables; do \
	  ln -sfn ../../$$folder .typing/sftsearch/$$folder; done

run: .venv/installed  ## run or resume the shipped study `stride` and print its front
	$(BIN)/sftsearch run search_spaces/stride.yaml --resume

test-quick: .venv/installed-dev  ## run one case of every quick test (under a minute on two cores)
	$(BIN)/python -m pytest $(PARALLEL) --quick

test: .venv/installed-dev  ## run the fast tests (under 15 minutes on two cores)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not service'

test-all: .venv/installed-dev  ## run all tests (under 75 minutes on two cores)
	$(BIN)/python -m pytest $(PARALLEL)

lint: .venv/installed-dev  ## check style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md docs datasets/*.py datasets/readers orchestrator trainables search_spaces tests

format: .venv/installed-dev  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/installed-dev .typing  ## check types
	$(BIN)/mypy

layers: .venv/installed-dev .typing  ## check the import layers
	PYTHONPATH=.typing $(BIN)/lint-imports

wheel: .venv/installed-dev  ## build the wheel, install it in a fresh environment, use it
	bash tests/wheel.sh

clone: .venv/installed-dev  ## go from a fresh clone to a prediction (about eight minutes)
	bash tests/fresh_clone.sh

check: lint types layers wheel  ## run all checks except the tests

clean:  ## remove builds and caches; keep studies
	rm -rf .venv .typing .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist *.egg-info
