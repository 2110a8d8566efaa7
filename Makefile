# Every target makes its own virtual environment first; a second run downloads and installs nothing.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python

.PHONY: setup demo test test-all check bench chaos serve lint unit

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: setup  ## a picture and a video through the whole path
	@$(RUN) examples/demo.py

serve: setup  ## the service on http://127.0.0.1:8000 until Ctrl-C
	@$(RUN) -m deployments.cli serve examples/shapes.yaml

check: lint unit  ## lint, format, types, layers, unit tests

test: unit setup  ## the representative suite; needs no GPU
	$(RUN) -m pytest -q -m "not gpu and not full" --ignore=tests/unit --durations=30

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

unit: setup  ## spread over two processes; the others below share one Ray and a machine of two cores
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile tests/unit -m "not gpu and not full"

test-all: setup  ## every matrix in full
	$(RUN) -m pytest -q -m "not gpu"

bench: setup  ## what can be measured without a GPU; figures are kept in benchmarks/results
	$(RUN) -m benchmarks.seam_cost
	$(RUN) -m benchmarks.cfg_on_cpu

chaos: setup  ## kills, stops and overloads the parts of a service; goes on where the ledger ends
	$(RUN) -m benchmarks.chaos
