.DEFAULT_GOAL := help
.PHONY: help setup test coverage demo bench lint format clean
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

# The first Python >= 3.13 that really runs: one of the PATH's, else one of pyenv's.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)
PYTHON ?= $(shell \
	for python in python3.14 python3.13 python3 $$(ls -d $(PYENV)/versions/3.*/bin/python 2>/dev/null | sort -rV); do \
		$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 13))' 2>/dev/null \
			&& echo $$python && break; \
	done)

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## make the environments that the tests and the demo run in
	@test -n "$(PYTHON)" || { echo "No Python 3.13 or later was found: install one (as python3.13, say, or with pyenv), or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m tests.parts.environments

test: setup ## lint, and run all tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest

coverage: setup ## measure which lines the tests of modules and app run (on the stand-in, which runs files as they are)
	rm -f .coverage.*
	COVERAGE_CORE=sysmon PYSCRIPT_REF=stand-in .venv/bin/python -m coverage run -m pytest tests/modules tests/apps
	.venv/bin/python -m coverage combine -q
	.venv/bin/python -m coverage report

demo: setup ## plan S2 devices with a real FlexMeasures server and Home Assistant, until Ctrl-C (DEVICES="pv ev", all, list)
	@.venv/bin/python -m tests.demo '$(DEVICES)'

bench: setup ## measure how many S2 messages Home Assistant confirms per second, beside a bare server
	@.venv/bin/python -m tests.bench

lint: setup ## check style
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: setup ## apply style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean: ## remove what the commands left in the checkout (the environments stay in the user's cache folder)
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
