# make demo   everything from nothing: install, build the image, lend, boot, attach, check, detach
# make lab-tour   three virtual hosts with KVM on this machine, and a guest that grows by memory of two of them
# make test   install what is missing and run every test this machine can run
# The rest is for people who work on vmcoal; see CONTRIBUTING.md.

VENV := .venv
PYTHON := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
SOURCES := $(shell find vmcoal qmp guest-agent dataplane tools/list-sources meson.build meson.options pyproject.toml -type f -not -name '*.pyc' -not -path '*/.*' 2>/dev/null)
TESTS ?= tests
PYTEST_ARGS ?=

.PHONY: help setup demo lab-tour test lint format docs bench bench-attach bench-memory bench-policy bench-programs bench-guest bench-gpu bench-compress soak clean
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(VENV)/installed

$(VENV)/packages: tools/setup pyproject.toml
	tools/setup
	@touch $@

$(VENV)/test-packages: $(VENV)/packages
	tools/setup --test
	@touch $@

$(VENV)/bench-packages: $(VENV)/packages
	tools/setup --bench
	@touch $@

$(VENV)/installed: $(VENV)/packages $(SOURCES)
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	@touch $@

demo: setup
	@tools/demo

lab-tour: setup
	@$(VENV)/bin/vmcoal lab tour

test: setup $(VENV)/test-packages
	@tools/run-tests $(TESTS) $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: setup
	$(VENV)/bin/sphinx-build -W -q -b html docs docs/_build/html
	$(VENV)/bin/sphinx-build -W -q -b man docs docs/_build/man

bench-attach: setup
	@$(PYTHON) tools/bench-attach $(BENCH_ARGS)

bench-memory: setup
	@PYTHONPATH=tests $(PYTHON) tools/bench-memory

bench-compress: setup
	@PYTHONPATH=tests $(PYTHON) tools/bench-compress

bench-policy: setup
	@PYTHONPATH=tests $(PYTHON) tools/bench-policy $(BENCH_ARGS)

bench-programs: setup $(VENV)/bench-packages
	@PYTHONPATH=tests $(PYTHON) tools/bench-programs $(BENCH_ARGS)

bench-guest: setup $(VENV)/bench-packages
	@PYTHONPATH=tests $(PYTHON) tools/bench-guest $(BENCH_ARGS)

bench-gpu: setup
	@PYTHONPATH=tests $(PYTHON) tools/bench-gpu

# Each target of its own takes BENCH_ARGS; together they take none.
bench: BENCH_ARGS :=
bench: bench-attach bench-memory bench-compress bench-policy bench-programs bench-guest bench-gpu

soak: setup
	$(PYTHON) -m pytest -m soak $(PYTEST_ARGS)

clean:
	rm -rf build builddir dist docs/_build $(VENV)
