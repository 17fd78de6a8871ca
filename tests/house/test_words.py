"""The documents agree with the code."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

from laion_face_builder import cli
from laion_face_builder.publish.card import card_template
from laion_face_builder.schema import EXAMPLE_COLUMNS, INDEX
from tests.support import readme_tables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_column():
    assert [name for name in EXAMPLE_COLUMNS if f"`{name}`" not in README] == []
    card = card_template()
    assert [name for name in INDEX.names if f"`{name}`" not in card] == []


def test_python_in_the_readme_is_python():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) > 4
    for block in blocks:
        ast.parse(textwrap.dedent(block))


def test_every_module_has_its_room_in_contributing():
    rooms = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = [path.stem for path in (ROOT / "builder" / "laion_face_builder").rglob("*.py") if path.stem[0] != "_"]
    assert [name for name in modules if f"`{name}`" not in rooms] == []


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^ *laion-face (\w+)", README, re.MULTILINE))))
def test_every_command_in_the_readme_exists(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert "usage: laion-face" in capsys.readouterr().out


def test_no_two_modules_have_one_name():
    modules = [path.stem for path in (ROOT / "builder" / "laion_face_builder").rglob("*.py") if path.stem[0] != "_"]
    assert sorted(modules) == sorted(set(modules))


def test_the_readmes_tables_are_those_of_the_code():
    text = readme_tables.README.read_text(encoding="utf-8")
    assert readme_tables.written(text) == text, "run `python tests/support/readme_tables.py`"
