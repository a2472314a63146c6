.DEFAULT_GOAL := help
.PHONY: help setup test test-long coverage demo bench torture lint format update clean
# Nothing of the user's leads into another environment, and what is imported is compiled once.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE
export HOME_ASSISTANT

# A Python >= 3.13 that really runs, to make the environments with: one of the PATH's, else uv's or pyenv's.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)
PYTHON ?= $(shell \
	for python in python3.14 python3.13 python3 $$(ls -d $(HOME)/.local/bin/python3.1? $(PYENV)/versions/3.*/bin/python 2>/dev/null | sort -rV); do \
		$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 13))' 2>/dev/null \
			&& echo $$python && break; \
	done)
VENV := .venv$(addprefix -,$(HOME_ASSISTANT))
RUN := $(VENV)/bin/python -m
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
# A test waits for a third of its time. A worker starts a FlexMeasures server of its own: with more than four, the
# servers want the processors.
WORKERS ?= $(shell test $(CORES) -lt 3 && echo $$(($(CORES) + 1)) || echo 4)

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## make the environments that the tests and the demo run in
	@test -n "$(PYTHON)" || { echo "No Python 3.13 or later was found: install one (as python3.13, say, or with pyenv), or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m tests.parts.environments

test: setup lint ## lint, and run the tests, on HOME_ASSISTANT=<release> or the oldest supported one
	$(RUN) pytest -n $(WORKERS) --dist loadgroup

test-long: setup lint ## run all tests, with all examples of each property and whole simulated days
	$(RUN) pytest -n $(WORKERS) --dist loadgroup --long

coverage: setup ## measure which lines the tests of modules and app run (on the stand-in, which runs files as they are)
	rm -f .coverage.*
	PYSCRIPT_REF=stand-in $(RUN) pytest -n $(WORKERS) --dist loadgroup --cov --cov-report=term tests/modules tests/apps

demo: setup ## plan S2 devices with a real FlexMeasures server and Home Assistant, until Ctrl-C (DEVICES="pv ev", all, list)
	@$(RUN) tests.demo '$(DEVICES)'

bench: setup ## measure S2 messages per second, plans of many devices, and how soon devices are instructed
	@$(RUN) tests.bench
	@$(RUN) tests.bench_plans --best 10

torture: setup ## kill, cut off, damage, attack and overload a home on purpose, and write docs/reliability.md (TORTURE="kills files" for some)
	@$(RUN) tests.torture $(if $(TORTURE),--only $(TORTURE))

lint: setup ## check style, spelling and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(VENV)/bin/codespell
	@$(RUN) tests.parts.type_check

format: setup ## apply style
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

update: ## refresh the pinned requirements of all environments
	@$(PYTHON) -m tests.parts.pins

clean: ## remove what the commands left in the checkout (the environments stay in the user's cache folder)
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
