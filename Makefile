# Every target sets itself up: it needs Python 3.11 or newer and make, and installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo lab dashboard test check bench clean
help:
	@echo "make demo       generations of agents on a real hub that is killed half-way (under 2 minutes)"
	@echo "make lab        the notebooks in JupyterLab"
	@echo "make dashboard  the dashboard, on a hub that fills itself"
	@echo "make test       everything: style, types, tests"
	@echo "make check      style and types only"
	@echo "make bench      measured speed, as ratios to raw limits of this machine"
	@echo "make clean      remove the virtual environment and caches"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/fedlab demo --output demo-output

lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir notebooks

dashboard: $(STAMP)
	$(BIN)/fedlab dashboard

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output
