# Everything is built on first use. Only make and python3 (3.10 or newer, with venv) are required.
# Progress goes to stderr, so that other commands can use what a target prints on stdout.
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh
VENV_PYTHON := .venv/bin/python

# The first Python that is new enough and can create virtual environments.
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))
# What an unusable Python lacks; this must run on any Python 3.
LACKS := *["without " + m for m in ("venv", "ensurepip") if not find_spec(m)]
SEEN := import sys; from importlib.util import find_spec; print(sys.executable, sys.version.split()[0], $(LACKS))
ifndef PYTHON
PYTHON := $(shell for python in $(CANDIDATES); do \
	"$$python" -c '$(USABLE)' >/dev/null 2>&1 && { echo "$$python"; break; }; done)
endif

CODE = $(wildcard bootstrap handler demo scripts tests benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help demo demo-models demo-volume demo-env test image-test bench prove check checker docs picture site format venv clean clean-cache python

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: python ## Run one workflow on a demo volume; picture in demo-output/
	@$(PYTHON) -m demo venv worker
	@$(PYTHON) -m demo run

demo-models: python ## Fetch models of a manifest from local servers (seconds)
	@$(PYTHON) -m demo venv worker
	@$(VENV_PYTHON) -m demo models

demo-volume: python ## Build the demo volume; its path is the last line
	@$(PYTHON) -m demo volume

demo-env: python ## Print exports for a shell: eval "$(make -s demo-env)"
	@$(PYTHON) -m demo venv worker
	@$(PYTHON) -m demo env

# In the order of their names: sorted by count, as is usual, the files with few long tests come last
# and keep one process busy while the others have nothing left.
test: python ## Run all tests (TESTS="tests/demo -k name" for some)
	@$(PYTHON) -m demo venv dev
	@$(PYTHON) -m demo volume >/dev/null
	@$(VENV_PYTHON) -m pytest $(or $(TESTS),-n 3 --dist loadfile --no-loadscope-reorder)

image-test: python ## Build and run the image without Docker (docs/image.md)
	@$(PYTHON) -m demo venv dev
	@$(PYTHON) -m demo volume >/dev/null
	@$(VENV_PYTHON) -m pytest -s $(or $(TESTS),tests/image/contents.py tests/image/running.py)

# ARGS are cold_start's; the others have their own: make bench BENCHMARKS=busy_gpu ARGS="--rounds 1"
BENCHMARKS = cold_start $(if $(ARGS),,boot_overhead busy_gpu job_overhead two_comfyuis venv_start thousand_jobs)

bench: python ## Run the benchmarks (ARGS="--only hot" for some starts)
	@$(PYTHON) -m demo venv dev
	@$(PYTHON) -m demo volume >/dev/null
	@missed=0; for name in $(BENCHMARKS); do \
	$(VENV_PYTHON) -m benchmarks.$$name $(ARGS) || missed=1; done; \
	$(VENV_PYTHON) -m scripts.document; exit $$missed

prove: python ## Run the long tests: kills, faults, freezes (an hour)
	@$(PYTHON) -m demo venv dev
	@$(PYTHON) -m demo volume >/dev/null
	$(VENV_PYTHON) -m tests.prove.kill_provisioners
	$(VENV_PYTHON) -m tests.prove.malformed_requests
	$(VENV_PYTHON) -m tests.prove.freeze
	$(VENV_PYTHON) -m tests.prove.faults
	$(VENV_PYTHON) -m tests.prove.differential

check: python ## Check format, lint and strict types; change nothing
	@$(PYTHON) -m demo venv dev
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy $(CODE)

checker: python ## Write the checker as one file, dist/check_volume.py
	@$(PYTHON) -m scripts.one_file dist/check_volume.py

docs: python ## Write the generated parts of the documents
	@$(PYTHON) -m demo venv dev
	@$(VENV_PYTHON) -m scripts.document

picture: python ## Redraw the README's picture of the checker's report
	@$(PYTHON) -m demo venv dev
	@$(VENV_PYTHON) -m demo.picture

site: python ## Build the documentation in build/site/, checking its links
	@$(PYTHON) -m demo venv dev
	@NO_MKDOCS_2_WARNING=true $(VENV_PYTHON) -m mkdocs build --quiet

format: python ## Format the code and apply the linter's safe fixes
	@$(PYTHON) -m demo venv dev
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

venv: python ## Create .venv with the worker's and the developer's packages
	@$(PYTHON) -m demo venv dev

clean: ## Remove everything built inside this folder
	rm -rf .venv .venv.lock demo-output output build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

clean-cache: python ## Remove demo volumes and environments from the cache
	@$(PYTHON) -m demo clean-cache

python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(USABLE)' 2>/dev/null || { \
	echo "No usable Python: 3.10 or newer with the venv and ensurepip modules is needed." >&2; \
	echo "  Found: $$("$(or $(PYTHON),python3)" -c '$(SEEN)' 2>/dev/null || echo 'no $(or $(PYTHON),python3)')" >&2; \
	echo "  Debian, Ubuntu: sudo apt install python3-venv" >&2; \
	echo "  Or name one: make demo PYTHON=/path/to/python3.12" >&2; exit 1; }
