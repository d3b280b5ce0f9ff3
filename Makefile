# The two commands of the course are `make lab` and `make test`. Either may be the first.

SHELL := /bin/bash
# pip leaves the libraries uncompiled; without this wish Python keeps what a first import compiles.
# With it, every process compiles torch and transformers again: eight seconds.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
PY := $(VENV)/bin/python
CARD := .venv-card

# The first Python >= 3.11 on the PATH, unless you name one: make lab PYTHON=python3.12
OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c '$(OLD_ENOUGH)' 2>/dev/null && echo $$p && break; done)
PYTHON_311 ?= $(shell for p in python3.11 $(PYTHON); do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)

MAKING := pyproject.toml labkit/environment/create.py labkit/environment/llama_cpp.cmake

.DEFAULT_GOAL := help
.PHONY: help setup lab test test-slow test-peers test-long lint notebooks card-env peers clean \
	gptqmodel-env llmcompressor-env

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.labkit-ready ## the environment (.venv) alone

$(VENV)/.labkit-ready: constraints.txt $(MAKING)
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(OLD_ENOUGH)'; then \
		echo "The course needs Python 3.11 or newer; found: $(or $(PYTHON),none on the PATH)."; \
		echo "Install one (python.org, apt-get install python3.11, brew install python) or name it:"; \
		echo "    make lab PYTHON=/path/to/python3.12"; exit 1; fi
	@"$(PYTHON)" labkit/environment/create.py $(VENV) --constraints constraints.txt

lab: setup ## the course in JupyterLab (PORT=8888, LAB_ARGS="...")
	@$(PY) -m labkit.doctor
	@$(PY) -m labkit.lab

# lm-evaluation-harness without its dependencies: only its window arithmetic is compared with ours.
LM_EVAL := lm_eval==0.4.13
$(VENV)/.lm-eval-ready: $(VENV)/.labkit-ready Makefile
	$(PY) -m pip install -q --disable-pip-version-check --no-deps $(LM_EVAL)
	@touch $@

# Processes that share the tests; each uses one thread and about 1.5 GB.
JOBS ?= 2

test: setup $(VENV)/.lm-eval-ready lint ## every test, every notebook compared with its outputs
	$(PY) -m pytest tests -m "not peers and not slow" -n $(JOBS) --dist worksteal
	PYTHONPATH=$(CURDIR)/tests/offline $(PY) -m labkit.notebooks check --jobs $(JOBS)

# The files with a mark: to collect all the others costs half a minute.
marked = $(shell grep -rl --include='test_*.py' 'mark\.$(1)\b' tests | sort)

test-slow: setup ## ten million weights a type, a hundred thousand damaged files: minutes
	$(PY) -m pytest $(call marked,slow) -m "slow and not peers" -n $(JOBS) --dist worksteal

test-peers: setup peers ## our methods and formats against the real libraries
	$(PY) -m pytest $(call marked,peers) -m peers -n $(JOBS) --dist loadgroup

test-long: setup peers ## both of these at once: no processor waits for the end of the first
	$(PY) -m pytest $(sort $(call marked,slow) $(call marked,peers)) -m "slow or peers" \
		-n $(JOBS) --dist loadgroup

lint: setup ## ruff, mypy on labkit/core, the rules of the notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m labkit.notebooks lint

notebooks: setup ## execute notebooks/source/*.py into notebooks/*.ipynb
	$(PY) -m labkit.notebooks build

card-env: $(CARD)/.labkit-ready ## environment.yml with pip: ten packages, two of them archived

$(CARD)/.labkit-ready: environment.yml constraints-card.txt $(MAKING)
	@if [ -z "$(PYTHON_311)" ]; then \
		echo "auto-gptq needs Python 3.11: make card-env PYTHON_311=/path/to/python3.11"; exit 1; fi
	@"$(PYTHON_311)" labkit/environment/create.py $(CARD) \
		--constraints constraints-card.txt --environment environment.yml

peers: card-env gptqmodel-env llmcompressor-env ## the real libraries, each in an environment of its own

gptqmodel-env llmcompressor-env: %-env: setup
	@$(PY) -m labkit.peers $*

clean: ## remove all environments and the caches of the tools
	rm -rf $(VENV) $(CARD) .venv-gptqmodel .venv-llmcompressor .pytest_cache .mypy_cache .ruff_cache .hypothesis .numba
