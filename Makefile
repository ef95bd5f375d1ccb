# Two commands on a bare machine with Python and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
VERSION := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
CONSTRAINTS := requirements/constraints-$(VERSION).txt

.PHONY: demo test slow check docs bench accelerator dist lock readme clean

demo: $(VENV)/.package
	$(VENV)/bin/jaxinterp demo

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest

slow: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m slow

check: $(VENV)/.installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

bench: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet -c $(CONSTRAINTS) torch captum zennit quantus
	$(VENV)/bin/python -m benchmarks.coda
	$(VENV)/bin/python -m benchmarks.agreement
	$(VENV)/bin/python -m benchmarks.attribution

# Of a checkout alone: PYTHON is one that has JAX for this machine's GPU or TPU; ARGS such as "--data-dir DIR".
accelerator:
	PYTHONPATH=. $(PYTHON) -m benchmarks.accelerator $(ARGS)

# Strict: a broken reference, a failing tutorial or a public name without a page fails. Tutorials and pictures are kept
# in docs/_build, and made anew only where they or the package have changed.
docs: $(VENV)/.documented
	$(VENV)/bin/sphinx-build -W --keep-going -b html docs docs/_build/html

dist:
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/pip install --quiet -c $(CONSTRAINTS) build twine
	rm -rf dist
	$(VENV)-dist/bin/python -m build
	$(VENV)-dist/bin/twine check --strict dist/*

readme: $(VENV)/.installed
	$(VENV)/bin/python experiments/update_readme.py README.md experiments/results/README.md

# What was tested, one file per supported Python; any other version stops here for want of its file.
lock: $(VENV)/.installed
	for v in 3.11 3.12 3.13; do \
	  $(VENV)/bin/uv pip compile pyproject.toml --extra dev --extra docs --extra release --python-version $$v --universal --quiet \
	    --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	    --output-file requirements/constraints-py$$(echo $$v | tr -d .).txt; \
	done

$(VENV)/.package: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed: $(VENV)/.package
	$(VENV)/bin/pip install --quiet --no-compile -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

$(VENV)/.documented: $(VENV)/.package
	$(VENV)/bin/pip install --quiet --no-compile -c $(CONSTRAINTS) -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-dist .jax_cache runs dist docs/_build docs/reference
