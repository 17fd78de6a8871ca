# make demo   sets up and runs the main job end to end on a miniature upstream on this machine
# make test   sets up and passes the tests, on the newest datasets and on datasets 3.6
# make check  lint, format and types

PYTHON ?= python3
VENV := .venv
VENV_36 := .venv-datasets-3.6
# Two workers: every test has servers, folders and processes of its own.
SPREAD := --numprocesses 2 --dist worksteal
INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check browser clean

demo: $(VENV)/ready
	$(VENV)/bin/laion-face demo demo

test: $(VENV)/ready $(VENV_36)/ready browser
	$(VENV)/bin/python -m pytest $(SPREAD)
	$(VENV_36)/bin/python -m pytest $(SPREAD) tests/test_builder.py tests/test_streaming.py tests/test_ready.py \
		tests/test_fetching.py tests/test_published.py tests/test_publish_hub.py tests/test_foreign_index.py tests/test_join.py \
		tests/test_metadata.py tests/test_metadata_copies.py

# The tests open our pages in a real browser: $CHROMIUM, else one that is installed, else one that apt-get can install.
browser:
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v "$$name" >/dev/null 2>&1 && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0; \
	fi; \
	echo "make test needs Chromium or Chrome: install one, or name its command in CHROMIUM" >&2; exit 1

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
