# `make` or `make help` lists what can be made. Nothing needs to be installed first but Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Small networks: one thread a process. A second one on a busy core makes them many times slower.
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help install demo rlhf test check format bench study clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; choose one with: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/installed  ## make .venv and install pgcli with its pinned dependencies

demo: install  ## train PPO on CartPole until it is solved
	$(BIN)/pgcli train algo=ppo env=cartpole stop_at=475

test: install  ## run the tests, on all cores (some minutes)
	$(BIN)/python -m pytest --numprocesses auto

check: install  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install  ## put the code into format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## measure speed, beside the peers that are installed (see benchmarks/)
	$(BIN)/python benchmarks/run.py

rlhf: install  ## reward hacking happening, in text and as a curve, and the KL penalty that prevents it (a minute or two)
	$(BIN)/pgcli pipeline overoptimisation

study: install  ## the learning claims again: every method over ten seeds, and on language over five (writes docs/results)
	$(BIN)/pgcli reproduce family --workers 2 --out docs/results
	$(BIN)/pgcli reproduce sort --workers 2 --out docs/results

clean:  ## remove .venv and caches; runs and sweeps stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
