# Every target sets up what it needs in .venv; a machine needs Python 3.11 to 3.13 and make.
#   make demo    real log -> semantic IDs -> OneRec -> sessions -> evaluation -> report
#   make test    the tests and doctests          make test-long    also the long tests
#   make lint    formatting, lint, types, import directions
#   make bench   the benchmarks                  make notebooks    *.ipynb from their *.py
#   make clean   removes .venv and caches
# Another interpreter: make PYTHON=python3.13 VENV=.venv313 test

PYTHON ?= python3
VENV ?= .venv
PACKAGES = core_jax rec_jax reasoning_jax launch
WORKERS ?= 2
PYTEST_ARGS ?=
PRESET ?= demo
DEMO_ARGS ?=

IN = $(VENV)/bin
INSTALL = $(IN)/python -m pip install --quiet --disable-pip-version-check --editable
ON_CPU = JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.cache/jax" \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
# Tests compile thousands of small programs and run each once: where XLA still has its older code
# for loops, that compiles faster. The long tests and the demos run what users run.
OLD_LOOPS = --xla_cpu_use_fusion_emitters=false
# Stripped: flags that begin with a blank are taken for the name of a file.
SOON_COMPILED = XLA_FLAGS="$(strip $(XLA_FLAGS) $(shell XLA_FLAGS=$(OLD_LOOPS) JAX_PLATFORMS=cpu \
	$(IN)/python -c 'import jax; jax.devices()' 2>/dev/null && echo $(OLD_LOOPS)))"
WITHOUT_TASKS = echo "The extra 'tasks' (reasoning-gym) could not be installed, going on without" >&2
# A file of tests stays in one process: what its tests share is made once.
PYTEST = $(ON_CPU) $(IN)/python -m pytest -n $(WORKERS) --dist loadfile \
	--doctest-modules $(PACKAGES) tests

.PHONY: help demo test test-long lint format notebooks bench clean

help:
	@sed -n 's/^#   /  /p' Makefile

demo: $(VENV)/.main
	$(IN)/python -m launch.local rec.pipeline --preset $(PRESET) $(DEMO_ARGS)

test: $(VENV)/.dev
	$(SOON_COMPILED) $(PYTEST) -m "not long" $(PYTEST_ARGS)

# In the order of their names: by default files of few tests come last, and those take longest here.
test-long: $(VENV)/.dev
	$(PYTEST) --no-loadscope-reorder -m long $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(IN)/ruff format --check .
	$(IN)/ruff check .
	$(IN)/lint-imports
	$(IN)/pyright --pythonpath $(IN)/python

format: $(VENV)/.dev
	$(IN)/ruff format .
	$(IN)/ruff check --fix .

notebooks: $(VENV)/.dev
	$(IN)/jupytext --update --to ipynb notebooks/*.py

bench: $(VENV)/.main
	$(IN)/python -m benchmarks

clean:
	rm -rf "$(VENV)" .cache .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info

# The virtual environment: made once, brought up to date when the requirements change.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Alignax needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is not one:" >&2; \
	  $(PYTHON) --version >&2; \
	  echo "Name another interpreter, for example: make PYTHON=python3.13 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version)"
	@rm -rf "$(VENV)"
	@$(PYTHON) -m venv "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }
	@touch $@

$(VENV)/.main: $(VENV)/.made setup.py requirements.txt
	$(INSTALL) '.[tasks]' || { $(WITHOUT_TASKS); $(INSTALL) .; }
	@touch $@

$(VENV)/.dev: $(VENV)/.made setup.py requirements.txt
	$(INSTALL) '.[dev,tasks]' || { $(WITHOUT_TASKS); $(INSTALL) '.[dev]'; }
	@touch $(VENV)/.main $@
