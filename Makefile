# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow faults experiments-quick lint peers clean

quickstart: $(VENV)/.installed
	$(BIN)/lastmile quickstart

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 tests/faults

experiments-quick: $(VENV)/.installed
	OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 $(BIN)/python experiments/quick.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

peers: $(VENV)/.installed-peers
	$(BIN)/python benchmarks/peers.py $(OPTIONS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-peers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[peers]'
	touch $@

clean:
	rm -rf $(VENV)
