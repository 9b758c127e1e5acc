# Two commands on a bare machine: `make demo` and `make test`. Both set up what they need in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
UV := $(BIN)/uv

.PHONY: setup demo test check bench clean up down status
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml infra/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --compile-bytecode --constraint infra/constraints.txt --editable '.[clip,vision,pipeline,stack,dev]'
	touch $@

demo: setup
	$(BIN)/ssl-backdoor run demo

test: setup
	$(BIN)/python -m pytest -q

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/python -m tests.house

bench: setup
	$(BIN)/python -m tests.benchmarks

# PostgreSQL comes from Debian: installed here where that can be done without asking, named by `up` where not.
up: setup
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
	  || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
	  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends postgresql >/dev/null; }
	@$(BIN)/python -m infra.stack up

down: setup
	@$(BIN)/python -m infra.stack down

status: setup
	@$(BIN)/python -m infra.stack status

clean:
	@test ! -d .lab/stack || test ! -x $(BIN)/python || $(BIN)/python -m infra.stack down
	rm -rf .venv .lab build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
