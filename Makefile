# Two commands matter: `make demo` shows the whole story, `make test` checks it. Each sets everything up by itself.
PYTHON ?= python3
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
BIN := .venv/bin

.PHONY: help demo test test-all lint format docs clean
.DEFAULT_GOAL := help

help: ## What can be made
	@grep -hE '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv: pyproject.toml constraints.txt ## A virtual environment with everything, in exact versions
	@$(PYTHON) -c 'import sys; sys.exit("nulls needs Python 3.11 or newer, got %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "setting up .venv: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch .venv

demo: .venv ## The whole story on a real Wikipedia excerpt, about ten minutes; ends with demo/report.html
	$(BIN)/nulls demo --dir demo

test: .venv ## The tests, without the slow ones
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) -m "not slow" $(PYTEST_ARGS)

test-all: .venv ## All tests
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) $(PYTEST_ARGS)

lint: .venv ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv ## The documentation site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## Delete the environment and what the demo made
	rm -rf .venv demo site .pytest_cache .mypy_cache .ruff_cache *.egg-info
