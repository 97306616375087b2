# One command each on a fresh machine with Python 3.10 or newer and a package index; see docs/INSTALL.md.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.11.0 torchvision==0.26.0
PYTEST_ARGS ?=
# Test processes; each runs torch on one thread.
JOBS ?= 2

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
MARK := $(VENV)/.sst_d2
SHORT_VERSION := import sys; print('Python %d.%d' % sys.version_info[:2])
# An environment that somebody else made keeps its torch, unless TORCH= names one.
KEEP_TORCH := $(if $(filter file,$(origin TORCH)),[ ! -e $(MARK)/made ] && $(PY) -c "import torch; import torchvision" 2>/dev/null,false)
# Full output of pip for a person, none for a log.
QUIET := $(shell [ -t 2 ] || echo --quiet)
PIP_FAILED := echo "Error: pip failed, see its lines above; check the network and pip's settings, then run the same command again." >&2; exit 1
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test slow lint bench clean FORCE

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=\"$(TORCH)\" JOBS=$(JOBS) PYTEST_ARGS="

venv: $(MARK)/package  ## make the environment (the other targets do it by themselves)

demo: $(MARK)/package  ## synthetic people, a short training, evaluation of all heads, pictures
	@$(PY) tools/run_demo.py

test: $(MARK)/package  ## the fast tests, with coverage
	@$(PYTEST) --cov=sst_d2 --cov-report=term $(PYTEST_ARGS)

slow: $(MARK)/package  ## the slow tests
	@$(PYTEST) -m slow $(PYTEST_ARGS)

lint: $(MARK)/package  ## style and format
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

bench: $(MARK)/package  ## the measurements
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(PY) $$file || exit 1; done

clean:  ## remove the environment and what building and testing left; results of trainings stay
	@if [ -e $(MARK)/made ]; then rm -rf $(VENV); fi
	@rm -rf $(MARK) build dist *.egg-info sst_d2/modeling/ops/_C_*.so sst_d2/modeling/ops/_build_info.py .pytest_cache .ruff_cache .coverage .coverage.* htmlcov

# The environment grows in steps. Each step leaves a stamp when it is whole, so an interrupted set-up goes on where it
# stopped, and a step is done again only when its input changed. Nothing is ever removed from a folder that this
# Makefile did not make.
$(MARK)/venv:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null || { \
	  echo "Error: PYTHON=$(PYTHON) is not a Python 3.10 or newer; name one: make PYTHON=python3.11" >&2; exit 1; }
	@if [ ! -e $(MARK)/made ] && [ -e $(VENV) ]; then \
	  $(PY) -c "import sys, pip; sys.exit(sys.version_info < (3, 10))" 2>/dev/null || { \
	    echo "Error: VENV=$(VENV) exists, but is no environment with pip and Python 3.10 or newer; remove it or choose another folder." >&2; exit 1; }; \
	  echo "== using the environment $(VENV) as it is"; mkdir -p $(MARK); \
	else \
	  $(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { \
	    echo "Error: PYTHON=$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv python3-pip." >&2; exit 1; }; \
	  echo "== making the environment $(VENV) with $$($(PYTHON) --version)"; \
	  mkdir -p $(MARK) && touch $(MARK)/made && $(PYTHON) -m venv $(VENV) && { $(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV); } \
	    && mkdir -p $(MARK) && touch $(MARK)/made; \
	fi
	@touch $@

# Rewritten only when TORCH changes, so that the next step sees a change. An environment keeps the Python it was made with.
$(MARK)/torch.spec: $(MARK)/venv FORCE
ifneq ($(origin PYTHON),file)
	@want=$$($(PYTHON) -c "$(SHORT_VERSION)" 2>&1 | tail -1); have=$$($(PY) -c "$(SHORT_VERSION)" 2>&1 | tail -1); \
	[ "$$want" = "$$have" ] || { \
	  echo "Error: PYTHON=$(PYTHON) is '$$want', but VENV=$(VENV) has '$$have'; run make clean first, or name another VENV." >&2; exit 1; }
endif
	@echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@

# A killed pip can leave a package that looks installed but is not whole; the import tells, and then all is laid anew.
$(MARK)/torch: $(MARK)/torch.spec
	@if $(KEEP_TORCH); then echo "== keeping the torch of $(VENV); another one: TORCH="; else \
	  echo "== installing $(TORCH) (up to 5 GB)"; \
	  $(PIP) install $(QUIET) $(TORCH) || { $(PIP_FAILED); }; \
	  $(PY) -c "import torch, torchvision" 2>/dev/null || $(PIP) install $(QUIET) --ignore-installed $(TORCH) || { $(PIP_FAILED); }; \
	fi
	@touch $@

$(MARK)/detectron2: $(MARK)/torch tools/install_detectron2.py
	@echo "== looking for Detectron2"
	@$(PY) tools/install_detectron2.py
	@touch $@

# Without build isolation the attention operator is compiled for the torch that is here; where that fails, or there is
# no compiler, the installation goes on. torch is named so that its wishes for setuptools are heard.
$(MARK)/package: $(MARK)/detectron2 pyproject.toml setup.py $(wildcard sst_d2/modeling/ops/csrc/*)
	@echo "== installing sst_d2 from this folder, with what it and its tests need; compiling its attention operator where that can be done"
	@$(PIP) install $(QUIET) "setuptools>=70.1" wheel torch || { $(PIP_FAILED); }
	@SST_D2_EXTENSIONS="$${SST_D2_EXTENSIONS-$$(nvidia-smi -L >/dev/null 2>&1 && echo cpu,cuda || echo cpu)}" \
	  $(PIP) install $(QUIET) --no-build-isolation --editable ".[dev,datasets]" || { $(PIP_FAILED); }
	@touch $@
