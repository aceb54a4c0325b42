# Needs GNU make and Python 3.11; `make setup` brings everything else.
SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.installed
COMPILE = $(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11
# Two workers suit two cores, and share the servers that the first of them starts.
# `loadgroup`: tests that share one `dagster dev` stay on one worker, so that it starts once.
PYTEST_ARGS ?= -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help setup run test check fmt bench lock env down clean

help: ## List the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

setup: $(STAMP) ## Make .venv and install everything pinned in requirements/ (instant when done)

$(STAMP): requirements/dev.txt requirements/bootstrap.txt pyproject.toml scripts/setup
	@scripts/setup

run: $(STAMP) ## Ingest the sample documents, show the table, keep the Dagster UI up until Ctrl-C
	@$(BIN)/apex demo

test: check ## Everything under `check`, then the tests, on real servers
	@$(BIN)/pytest $(PYTEST_ARGS)

check: $(STAMP) ## Lint, format, types, import directions, and whether the code location loads
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@scripts/validate

fmt: $(STAMP) ## Format the code and fix what the linter can fix
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(STAMP) ## Measure throughput and latency on stores of its own; BENCH_ARGS=--quick takes two minutes
	@$(BIN)/apex bench $(BENCH_ARGS)

lock: $(STAMP) ## Pin the newest allowed versions in requirements/, with hashes
	@$(COMPILE) --upgrade pyproject.toml --group build --group dev -o requirements/dev.txt
	@$(COMPILE) --upgrade pyproject.toml -c requirements/dev.txt -o requirements/run.txt
	@$(COMPILE) --upgrade --group build -c requirements/dev.txt -o requirements/bootstrap.txt
	@$(COMPILE) --upgrade --group peers -o requirements/peers.txt

env: ## Write .env with generated passwords for docker-compose.yml, unless there is one
	@docker/make-env

down: $(STAMP) ## Stop the embedded servers; their data stays
	@$(BIN)/apex down

clean: ## Stop the embedded servers, remove .venv and caches; data in .apex stays
	@if [ -x $(BIN)/apex ]; then $(BIN)/apex down; fi
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
	find apex_dagster apex_dagster_tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
