# make demo   sets up and runs the main job end to end on a miniature upstream on this machine
# make test   sets up and passes the tests, on the newest datasets and on datasets 3.6
# make check  lint, format and types

PYTHON ?= python3
VENV := .venv
VENV_36 := .venv-datasets-3.6
# Two workers: every test has servers, folders and processes of its own.
SPREAD := --numprocesses 2 --dist worksteal
INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check clean

demo: $(VENV)/ready
	$(VENV)/bin/laion-face demo demo

test: $(VENV)/ready $(VENV_36)/ready
	$(VENV)/bin/python -m pytest $(SPREAD)
	$(VENV_36)/bin/python -m pytest $(SPREAD) tests/test_builder.py tests/test_streaming.py tests/test_fetching.py

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV_36)/ready: pyproject.toml constraints.txt tests/constraints-datasets-3.6.txt
	$(PYTHON) -m venv $(VENV_36)
	$(VENV_36)/bin/python $(INSTALL) --constraint tests/constraints-datasets-3.6.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_36) demo
