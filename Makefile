# One command each. Every target that needs it sets up .venv first; a second time that costs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup train test test-quick test-long lint bench docs

ARGS ?=
ready := .venv/.ready

# The stamp holds the folder it was made for: a checkout that was moved or copied is set up anew.
ifneq ($(shell cat $(ready) 2>/dev/null),$(CURDIR))
.PHONY: $(ready)
endif

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(ready) ## make .venv and install everything into it (Python 3.11 or newer; with uv, if it is on PATH)

train: $(ready) ## train configs/digits.yaml on all GPUs, or on the CPU: make train ARGS="optimizer.lr=0.05"
	@exec .venv/bin/dist-train train configs/digits.yaml $(ARGS)

test: lint ## style, types and all tests but the long ones: make test ARGS="tests/unit -k sampler"
	@exec .venv/bin/python -m pytest -q -n 4 --durations 25 -m "not long" $(ARGS)

quick := tests/unit tests/test_architecture.py tests/test_documents.py
quick += tests/end_to_end/test_training.py::test_a_saved_run_answers_the_other_commands

test-quick: lint ## while you work: style, types, the unit tests and one run from start to end
	@exec .venv/bin/python -m pytest -q -n 3 --durations 10 -m "not long" $(quick) $(ARGS)

test-long: $(ready) ## the long campaigns too
	@exec .venv/bin/python -m pytest -q $(ARGS)

lint: $(ready) ## ruff and mypy
	@.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --quiet --check .
	.venv/bin/python -m mypy --no-error-summary

bench: $(ready) ## step time against plain torchrun and DDP
	@exec .venv/bin/python -m benchmarks.step_overhead $(ARGS)

docs: $(ready) ## the documents as a site that needs no network, in build/docs/site
	@if ! .venv/bin/python -c 'import zensical' 2>/dev/null; then
	    if command -v uv >/dev/null; then uv pip install --quiet --python .venv/bin/python --editable '.[docs]'
	    else .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'; fi
	fi
	exec .venv/bin/python docs/build_site.py build/docs

$(ready): setup.cfg pyproject.toml
	@./setup.sh
