"""The card, and the rooms of CONTRIBUTING.md, agree with the code."""

from pathlib import Path

from laion_face_builder.publish.card import card_template
from laion_face_builder.schema import INDEX

ROOT = Path(__file__).parents[2]


def test_the_card_lists_every_column():
    card = card_template()
    assert [name for name in INDEX.names if f"`{name}`" not in card] == []


def test_every_module_has_its_room_in_contributing():
    rooms = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = [path.stem for path in (ROOT / "builder" / "laion_face_builder").rglob("*.py") if path.stem[0] != "_"]
    assert [name for name in modules if f"`{name}`" not in rooms] == []


def test_no_two_modules_have_one_name():
    modules = [path.stem for path in (ROOT / "builder" / "laion_face_builder").rglob("*.py") if path.stem[0] != "_"]
    assert sorted(modules) == sorted(set(modules))
