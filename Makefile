# Everything happens in an environment of its own, .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# What has been installed there: the package and what it needs, and what tests, checks and measurements need besides.
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
DOCUMENTED := $(VENV)/.documented

# For `make test-system`, now and for tests to come.
SYSTEM_PACKAGES := openssh-server systemd chromium prometheus runit man-db zsh fish haproxy logrotate nginx-light

.PHONY: help demo test test-all test-versions test-system release-check coverage compiled fuzz lint bench bench-fleet hammer docs reference picture clean
help:
	@echo "make demo           see it work"
	@echo "make test           what a change is likely to break, each server once"
	@echo "make test-all       every test, on every row of the table of servers"
	@echo "make test-versions  under each Python that is found, and the lowest versions of Flask and the servers"
	@echo "make test-system    what needs packages of Debian, which it installs"
	@echo "make release-check  build sdist and wheel, install the wheel alone and use it, test the sdist"
	@echo "make coverage       what the tests of \`make test\` run of each room, lines and branches"
	@echo "make fuzz           10,000 conversations with whatever bytes a client may send"
	@echo "make lint           ruff and strict mypy"
	@echo "make bench          measure, as ratios, and write benchmarks/results.md"
	@echo "make bench-fleet    measure control over NATS, and write benchmarks/fleet.md"
	@echo "make hammer         200 reloads of each server under load, and what was lost"
	@echo "make docs           the documentation as a site, docs/_build/index.html"
	@echo "make reference      write docs/reference, the manual pages and the completion scripts anew"
	@echo "make picture        draw the terminal of the README anew, from a real run, and the view of flask-ctl top"
	@echo "make clean          remove the environments and caches"

$(INSTALLED): pyproject.toml
	@echo "Installing flask-ctl and the packages that it needs in $(VENV) (some 40 MB) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

# Only the order matters: where both are as new as pyproject.toml, whichever was made first, nothing is installed again.
$(READY): pyproject.toml | $(INSTALLED)
	@echo "Installing the HTTP servers and tools for tests, checks and measurements in $(VENV) (some 340 MB) ..."
	@$(PIP) --editable '.[test,lint,bench,versions]'
	@touch $@

$(DOCUMENTED): pyproject.toml | $(INSTALLED)
	@$(PIP) --editable '.[docs]'
	@touch $@

demo: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/quickstart/demo.sh

test: compiled
	$(BIN)/python -m pytest -m "not full" --hypothesis-profile=quick --durations=10 $(ARGS)

test-all: compiled
	$(BIN)/python -m pytest --durations=10 $(ARGS)

# Each process writes a file of its own, and is slower: limits that a test sets to its server may be missed.
coverage: compiled
	rm -rf .coverage
	$(BIN)/coverage run -m pytest -m "not full" --hypothesis-profile=quick $(ARGS)
	$(BIN)/python tests/coverage_by_room.py

# A Python that is not found is one line of nox's output.
test-versions: $(READY)
	$(BIN)/nox --reuse-venv=yes --no-error-on-missing-interpreters $(ARGS)

test-system: compiled $(DOCUMENTED)
	tests/system/install.sh $(SYSTEM_PACKAGES)
	@$(PIP) --editable '.[system]'
	$(BIN)/python -m pytest -n 1 --durations=10 tests/system $(ARGS)

# Of the tests of the sdist a file for each room; all of `make test` by ARGS=tests.
release-check: ARGS ?= $(patsubst %,tests/test_%.py,package versions architecture framing dispatcher transports \
	adapters lifecycle client extension hub cli)
release-check: compiled
	@$(PIP) --editable '.[release]'
	SDIST_TESTS="$(ARGS)" $(BIN)/python -m pytest -n 0 -s tests/release

# The tests start hundreds of processes; where Python must not write bytecode each would compile the package anew.
compiled: $(READY)
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q flask_ctl cli

fuzz: $(READY)
	FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest tests/fuzz --durations=3

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: compiled
	$(BIN)/python benchmarks/bench.py

bench-fleet: compiled
	$(BIN)/python benchmarks/fleet.py

hammer: $(READY)
	$(BIN)/python benchmarks/hammer.py

docs: $(DOCUMENTED)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build

reference: $(INSTALLED)
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/pictures.py
	$(BIN)/python docs/manual.py

picture: $(DOCUMENTED)
	$(BIN)/python docs/terminal.py
	$(BIN)/python docs/view.py

clean:
	rm -rf docs/_build $(VENV) .nox .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
