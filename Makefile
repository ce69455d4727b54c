# make demo | test | check | ui | down. Each sets up what it needs first: all that a fresh clone lacks is Python 3.11.
#   make test PYTHON=/usr/bin/python3.11     which interpreter makes the environment
#   make test VENV=/tmp/venv                 where the environment is (7 GB with torch)
PYTHON ?= python3.11
VENV ?= .venv

bin := $(VENV)/bin
installed := $(VENV)/.hst-installed
sources := hst pipeline jobs infra tests

.PHONY: demo test check ui down
.DEFAULT_GOAL := demo

demo: $(installed)
	VENV=$(VENV) infra/demo.sh

test: $(installed)
	$(bin)/python -m pytest -m "not slow and not gpu"

check: $(installed)
	$(bin)/ruff check $(sources)
	$(bin)/ruff format --check $(sources)
	$(bin)/mypy

ui: $(installed)
	$(bin)/python -m infra.stack ui

down: $(installed)
	$(bin)/python -m infra.stack down

# The stamp is written last: an install that broke off is made again. setuptools comes first, so that the version that
# builds our own package is a pinned one too.
$(installed): pyproject.toml constraints.txt
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet -c constraints.txt setuptools
	$(bin)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[pipeline,dev]'
	touch $@
