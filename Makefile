# Needs Python 3.11 or newer and make; everything else goes into .venv.
#   make demo    a simulated district, its metrics and the pages
#   make test    lint, then tests              make test-slow    those of whole systems
#   make lint    ruff, mypy, import-linter     make bench   measurements, [PART=kernel]
#   make docs    the generated pages
#   make services    what tests need besides Python: MariaDB, Redis, Kafka, Chromium, psql

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
WORKERS ?= 2

.PHONY: demo test test-slow services lint bench docs clean

demo: $(STAMPS)/project
	$(BIN)/theon demo

test: lint $(STAMPS)/test services
	PATH="$$PATH:/usr/sbin" $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(STAMPS)/test services
	PATH="$$PATH:/usr/sbin" $(BIN)/python -m pytest -n $(WORKERS) -m slow

services:
	@tools/services install

lint: $(STAMPS)/test $(STAMPS)/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@# mypy reads src only: whether each test can be imported is seen here, not after all others ran
	@collected=$$($(BIN)/python -m pytest --collect-only --disable-warnings) || { echo "$$collected"; exit 1; }

bench: $(STAMPS)/bench
	$(BIN)/python -m bench $(PART)

docs: $(STAMPS)/project
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A stamp is as old as its last installation, so nothing is installed twice.
$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Theon needs Python 3.11 or newer; '$(PYTHON)' is older or missing." >&2; \
	  echo "Install one and name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. On Debian or Ubuntu: sudo apt install python3-venv" >&2; \
	  echo "Or name another Python: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Creating $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/project: $(STAMPS)/venv pyproject.toml
	@echo "Installing Theon into $(VENV); the first time takes a minute or two" >&2
	@$(PIP) install --editable .
	@touch $@

$(STAMPS)/test $(STAMPS)/lint $(STAMPS)/bench: $(STAMPS)/%: $(STAMPS)/project
	@echo "Installing what '$*' needs" >&2
	@$(PIP) install --group $*
	@touch $@
