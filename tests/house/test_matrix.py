"""The environments that the tests run in are the same in tests/matrix.py, the workflow and the table of versions."""

import re
from pathlib import Path

import yaml

from tests import matrix
from tests.support.core_tests import CORE_MODULES, CORE_TESTS, DATASETS36_MODULES

ROOT = Path(__file__).parents[2]
NAMES = [environment.name for environment in matrix.MATRIX]


def test_the_workflow_runs_every_environment():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["environment"] == NAMES


def test_the_table_names_nothing_else():
    table = matrix.PAGE.read_text(encoding="utf-8").split(matrix.BEGIN)[1].split(matrix.END)[0]
    rows = [line.split("|")[1].strip() for line in table.strip().splitlines()]
    assert set(rows) <= {"environment", "---", *NAMES}


def test_what_runs_everywhere_is_there():
    for module in (*CORE_MODULES, *CORE_TESTS, *DATASETS36_MODULES):
        source = (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
        for name in CORE_TESTS.get(module, ()):
            assert f"\ndef {name}" in source, f"{module} has no {name}"


def test_lowest_has_what_pyproject_allows_at_the_least():
    bounds = dict(re.findall(r'^ *"([a-z_]+)>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE))
    _, _, python, *found = (cell.strip() for cell in matrix.claimed()["lowest"].split("|")[:8])
    assert python == re.search(r'requires-python = ">=([0-9.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))[1]
    for name, version in zip(matrix.SHOWN, found, strict=True):
        assert version.startswith(f"{bounds[name]}."), name


def test_the_table_is_written_by_the_run_and_compared_with_it(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.BEGIN}\n{matrix.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(matrix, "PAGE", page)
    found = ["3.11", "5.2.0", "2.4.0", "26.0.0", "2.4.6", "13.0.0"]
    rows = {"newest": matrix.row(matrix.NEWEST, found), "datasets-3.6": matrix.row(matrix.OLD, found)}
    assert matrix.compare(rows, write=False) == 1
    assert matrix.compare(rows, write=True) == 0
    assert matrix.compare(rows, write=False) == 0
    # A run of a few environments says nothing of the others.
    assert matrix.compare({"newest": rows["newest"]}, write=False) == 0
    found[1] = "5.3.0"
    assert matrix.compare({"newest": matrix.row(matrix.NEWEST, found)}, write=False) == 1
    # What failed is claimed no longer.
    assert matrix.compare({"newest": ""}, write=True) == 0
    assert list(matrix.claimed()) == ["datasets-3.6"]
    assert "5.3.0" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
