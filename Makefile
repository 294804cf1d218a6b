# Needs python3 (3.10 or later) and make. `make train` and `make test` install what they need into .venv once,
# and again when setup.cfg, pyproject.toml or constraints.txt change.
#   make train PYTHON=python3.12              another interpreter for .venv (after make clean, if there is one)
#   make train OUTPUT=outputs/second          another output folder
#   make train OPTIONS="--seed 1"             any option of train_hf.py

PYTHON ?= python3
# not from the environment: `make clean` removes it
VENV = .venv
OUTPUT = outputs/nano
OPTIONS =
# test processes; each takes about 1 GB
JOBS = 2

# a browser for the tests of the page; make test BROWSER= leaves them out
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

BIN := $(VENV)/bin
READY := $(VENV)/.ready
SHELL := /bin/sh

WITHOUT_BROWSER = $(if $(BROWSER),:,echo "make: no chromium, chromium-browser or google-chrome here, so the tests marked" \
  "'browser' are left out (Debian, Ubuntu: apt install chromium)" >&2)

.DEFAULT_GOAL := help
.PHONY: help setup train test test-long quality clean
.DELETE_ON_ERROR:

help:
	@echo "make train      train configs/nano.yaml on text that comes with Python; needs no network after set-up"
	@echo "make test       what guards behaviour; tests of the page need a Chromium, and it is said where there is none"
	@echo "make test-long  the rest: whole tables of cases, laws of samplers, killed runs"
	@echo "make quality    ruff (check, format) and mypy"
	@echo "make setup      only install into $(VENV)"
	@echo "make clean      remove $(VENV) and caches; never what training wrote"

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $(PYTHON) is not Python 3.10 or later; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make environments; install its venv module (Debian, Ubuntu:" \
	         "apt install python3-venv) or name another interpreter: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,clients,app]'
# pip compiles on one processor, other people's tests too; some files are of a later Python and cannot be compiled
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	@touch $@

# the card is what a run writes last
train: $(READY)
	@if [ -e '$(OUTPUT)/README.md' ]; then \
	  echo "$(OUTPUT) holds a finished run, so nothing was trained: its card is $(OUTPUT)/README.md," \
	       "its curves are in $(OUTPUT)/logs."; \
	  $(if $(OPTIONS),echo "OPTIONS had no effect.";) \
	  echo "Another run: make train OUTPUT=outputs/second    The same again: remove $(OUTPUT) first."; \
	else \
	  HF_HUB_OFFLINE=$${HF_HUB_OFFLINE:-1} $(BIN)/python train_hf.py --config configs/nano.yaml \
	    --output_dir '$(OUTPUT)' --resume_from_checkpoint true $(OPTIONS); \
	fi

test: $(READY)
	@$(WITHOUT_BROWSER)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m 'not long$(if $(BROWSER),, and not browser)'

test-long: $(READY)
	@$(WITHOUT_BROWSER)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m 'long$(if $(BROWSER),, and not browser)'

quality: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .cache
	find . -name __pycache__ -not -path './outputs/*' -prune -exec rm -rf {} +
