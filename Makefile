# Two commands on a bare machine: `make demo` and `make test`. Both set up what they need in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
UV := $(BIN)/uv

.PHONY: setup demo quick test check audit bench clean up down status postgresql chromium iproute2
.DELETE_ON_ERROR:
unexport PYTHONDONTWRITEBYTECODE  # where it is set, each of a run's dozen processes would compile the project anew

setup: $(STAMP)

$(STAMP): pyproject.toml infra/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --compile-bytecode --constraint infra/constraints.txt --editable '.[clip,vision,pipeline,stack,dev]'
	touch $@

# Debian packages of the services and of the tests of pages: installed where that can be done without asking; what needs
# them names them where not.
apt = test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends $(1) >/dev/null; }

postgresql:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || $(call apt,postgresql)

iproute2:
	@command -v ip >/dev/null || $(call apt,iproute2)

chromium:
	@command -v chromium >/dev/null || $(call apt,chromium fonts-dejavu-core)

demo: setup
	$(BIN)/ssl-backdoor run demo

quick: setup
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'not services and not slow' tests/unit tests/contract

test: setup postgresql chromium iproute2
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=5

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/python -m tests.house
	$(BIN)/hadolint infra/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec infra/compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows infra/ci-example.yaml

audit: setup
	@$(BIN)/python -m infra.audit

bench: setup
	$(BIN)/python -m tests.benchmarks

up: setup postgresql
	@$(BIN)/python -m infra.stack up

down: setup
	@$(BIN)/python -m infra.stack down

status: setup
	@$(BIN)/python -m infra.stack status

clean:
	@test ! -d .lab/stack || test ! -x $(BIN)/python || $(BIN)/python -m infra.stack down
	rm -rf .venv .lab build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
