# make demo      sets up and runs the main job end to end on a miniature upstream on this machine
# make test      sets up and passes the tests, on the built wheel, on every version that docs/quick-start.md claims (most in brief)
# make test-browser  those that open pages in Chromium, which `make test` leaves out where there is none
# make test-engines  those that need Spark and Ray, in an environment of their own
# make versions  tries every version that can be had here, and has docs/quick-start.md claim what held
# make coverage  which lines the tests run, as a table and in htmlcov/; ONLY=tests/fetch measures a part; properties get new examples
# make check     lint, format, types and imports; the forms of workflows and other YAML; the docs, whose links have to lead somewhere
# make docs      the docs as a site, in site/
# make bench     the benchmarks that need no files of yours, in their quick forms: several minutes
# make faults    tries faults of every kind, and prints what came of them: a minute; LONG=1 with kills and failing calls, for hours
# make fuzz      the fuzzers among these at full length, for hours; SECONDS=600 bounds each, ONLY=pictures names one
# make develop   an editable install in .venv, and one with datasets 3.6 in .venv-datasets-3.6, to develop with

PYTHON ?= python3
VENV := .venv
MATRIX := $(PYTHON) tests/matrix.py
FORM := $(VENV)/bin/check-jsonschema --quiet --builtin-schema

# benchmarks/README.md has what they measure and what was found. Figures mean something on an idle machine alone.
BENCHES := "bench_first_example.py --runs 1" "bench_transforms.py --seconds 0.5 --repeats 1" \
  "bench_fetch.py --seconds 2 --latency 0.1" "bench_stream.py --seconds 1 --repeats 1 --only stream"

# Commands are started by the hundred: what they import is compiled once, not by each of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-browser test-engines java versions coverage check docs bench faults fuzz develop browser git-lfs clean

demo:
	$(MATRIX) demo

test:
	$(MATRIX) test

test-browser: browser
	$(MATRIX) test newest --pytest=-mbrowser

versions: browser git-lfs
	$(MATRIX) test --write

# Some tests open our pages in a real browser: $CHROMIUM, else one that is installed, else one that apt-get can install.
browser:
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v "$$name" >/dev/null 2>&1 && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0; \
	fi; \
	echo "tests that open pages need Chromium or Chrome: install one, or name its command in CHROMIUM" >&2; exit 1

# What mlcroissant gets a published copy's files with.
git-lfs:
	@git lfs version >/dev/null 2>&1 && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends git-lfs >/dev/null && exit 0; \
	fi; \
	echo "tests of Croissant by URL need git-lfs: install it" >&2; exit 1

test-engines: java
	$(MATRIX) test engines --pytest=--numprocesses=0

# Spark runs on Java: the one that is installed, if it is new enough, else one that apt-get can install.
java:
	@java="$${JAVA_HOME:+$$JAVA_HOME/bin/}java"; \
	is_new() { [ "$$("$$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -1)" -ge 17 ] 2>/dev/null; }; \
	is_new && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless >/dev/null; \
	fi; \
	is_new && exit 0; \
	echo "make test-engines needs Java 17 or newer: install it, and have java on the PATH, or named by JAVA_HOME" >&2; exit 1

check: $(VENV)/ready docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/yamllint --strict .github .pre-commit-config.yaml .yamllint.yaml CITATION.cff mkdocs.yml
	$(FORM) vendor.github-workflows .github/workflows/*.yml
	$(FORM) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(FORM) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(FORM) vendor.dependabot .github/dependabot.yml
	$(FORM) vendor.citation-file-format CITATION.cff

ONLY ?= tests
coverage: develop
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest --hypothesis-profile=random --numprocesses 2 --dist worksteal $(ONLY); code=$$?; \
	$(VENV)/bin/coverage combine --quiet && $(VENV)/bin/coverage html --quiet && $(VENV)/bin/coverage report && exit $$code

docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

bench: $(VENV)/ready
	@set -e; for bench in $(BENCHES); do echo "== $$bench"; $(VENV)/bin/python benchmarks/$$bench; done

FAULTS := $(VENV)/bin/python -m tests.support.faults $(if $(SECONDS),--seconds $(SECONDS))
faults: $(VENV)/ready
	$(FAULTS) $(if $(LONG),--long)

FUZZERS := flipped pickles Parquet tars pictures answers
fuzz: $(VENV)/ready
	$(FAULTS) --long --only $(if $(filter command line,$(origin ONLY)),$(ONLY),$(FUZZERS))

develop: $(VENV)/ready $(VENV)-datasets-3.6/ready

$(VENV)/ready: pyproject.toml constraints.txt tests/matrix.py
	$(MATRIX) develop newest
	touch $@

$(VENV)-datasets-3.6/ready: pyproject.toml constraints.txt tests/matrix.py
	$(MATRIX) develop datasets-3.6
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* demo site htmlcov .coverage*
