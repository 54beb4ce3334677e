# make setup       environment in .venv, from requirements/lock.txt; a second time does nothing
# make quickstart  the whole walk on synthetic products, no data needed
# make demo        search products in a browser         [CHECKPOINT=... CATALOGUE=... IMAGES=folder]
# make test        all tests                            [ARGS="-k tokenizer"] [JOBS=2]
# make train       one experiment                       [CONFIG=configs/...py] [GPUS=1] [ARGS=...]
# make benchmark   every benchmark, small enough for two cores and a quarter of an hour
# make lint        ruff: rules and format
# make docs        this documentation as a site, in site/; open site/index.html
# make clean       remove caches and build outputs; .venv, data and work_dirs stay
#
# With PYTHON=python any target uses that environment as it is and installs nothing.

CONFIG ?= configs/eiclip_fashiongen.py
GPUS ?= 1
JOBS ?= 2
ARGS ?=
VENV ?= .venv

ifeq ($(strip $(PYTHON)),)
PY := $(VENV)/bin/python
ENVIRONMENT := $(VENV)/.installed
else
PY := $(PYTHON)
ENVIRONMENT :=
endif

.PHONY: help setup quickstart demo test train benchmark lint docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

setup: $(ENVIRONMENT)
	@echo "Ready: $$($(PY) --version) in $(PY)"

# pip is left at the version the venv brings: a newer one is not needed.
$(VENV)/.installed: $(wildcard requirements/*.txt) setup.py pyproject.toml
	@for python in python3.11 python3.12 python3.13 python3; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version); this takes some minutes."; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo 'No Python 3.11 or newer here. Install one, or name one: make PYTHON=/path/to/python' >&2; \
	exit 1
	$(PY) -m pip install -q --disable-pip-version-check -r requirements/lock.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

quickstart: $(ENVIRONMENT)
	$(PY) tools/quickstart.py $(ARGS)

demo: $(ENVIRONMENT)
	$(PY) demo/app.py $(CHECKPOINT) $(if $(CATALOGUE),--catalogue $(CATALOGUE)) $(if $(IMAGES),--images $(IMAGES)) $(ARGS)

test: $(ENVIRONMENT)
	$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

train: $(ENVIRONMENT)
ifneq ($(filter 0 1,$(GPUS)),)
	$(PY) tools/train.py $(CONFIG) $(ARGS)
else
	PYTHON=$(PY) bash tools/dist_train.sh $(CONFIG) $(GPUS) $(ARGS)
endif

BENCHMARK := $(PY) tools/analysis_tools/benchmark_

benchmark: $(ENVIRONMENT)
	$(BENCHMARK)loader.py --repeats 1
	$(BENCHMARK)text.py --repeats 1
	$(BENCHMARK)loss.py --repeats 1
	$(BENCHMARK)step.py --repeats 1
	$(BENCHMARK)memory.py --repeats 1
	$(BENCHMARK)frozen.py --repeats 1
	$(BENCHMARK)end_to_end.py --repeats 1
	$(BENCHMARK)evaluator.py --repeats 1 --images 8192 --texts 8192

lint: $(ENVIRONMENT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(ENVIRONMENT)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -q
	@echo "Open site/index.html"

clean:
	rm -rf build dist site *.egg-info .dist_test .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
