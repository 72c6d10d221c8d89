# Every command sets itself up: on a fresh machine with Python (3.11 or newer) and make, `make series` is enough.
# PYTHON=python3.12 make series chooses the interpreter; PROFILE=smoke|default|full and OUT=folder choose the run.

PYTHON ?= python3
PROFILE ?= default
OUT ?= out/series
SERIES := $(sort $(wildcard notebooks/*.ipynb))

BIN := .venv/bin
READY := .venv/ready

# Bytecode is compiled when a module is first imported, so packages are installed without: of torch little is imported.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup series site pictures reference lab test test-fast bench lint format

help:
	@echo "make series    run the notebooks headless and write $(OUT)/index.html"
	@echo "make site      the same with the documentation and a search in out/site, for any web server or disk"
	@echo "make pictures  the README's pictures from the pages in $(OUT), with Chromium"
	@echo "make reference  train and measure the reference results anew where they are missing: hours, but it resumes"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make test      run the tests"
	@echo "make test-fast the tests that need no training and no browser: about a minute"
	@echo "make bench     run the benchmarks: each claim about speed, against the tool one would use instead"
	@echo "make lint      check format, lint, import order and notebook outputs; make format repairs what it can"
	@echo "make setup     only install, into .venv"

setup: $(READY)

# Made again whenever the lock or the package's metadata changes.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "lmdynamics needs Python 3.11 or newer; '$(PYTHON)' was not found. Name one: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lmdynamics needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "Python's venv module is missing (on Debian and Ubuntu: apt install python3-venv)"; exit 2; }
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

series: $(READY)
	$(BIN)/lmdynamics batch $(SERIES) --profile $(PROFILE) --out $(OUT)

site: series
	$(BIN)/lmdynamics site $(OUT) --to out/site --docs README.md

pictures: $(READY)
	$(BIN)/python -m tests.browser.pictures $(OUT) --to docs/pictures

reference: $(READY)
	@for name in syntax interventions masking seeds ladder; do $(BIN)/lmdynamics reference $$name || exit 1; done

lab: $(READY)
	$(BIN)/jupyter lab notebooks

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # a thread in each of two processes

# No training, no browser, no kernel, and not the fits, which take seconds each: what one runs while working.
FAST := analysis corpora experiments test_cli.py test_project.py test_records.py test_devices.py
test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(addprefix tests/,$(FAST)) $(addprefix --ignore=tests/analysis/,test_deceleration.py test_fits.py)

bench: $(READY)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-id notebooks/*.ipynb
