"""The pages in docs/, README.md and llms.txt say what is so: names, tests, links, tables, commands."""

import ast
import importlib
import re
import textwrap
from pathlib import Path

import pytest

import laion_face
import laion_face_builder
from laion_face_builder import cli
from laion_face_builder.schema import EXAMPLE_COLUMNS
from tests.support import docs_tables

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md")
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
LLMS = (ROOT / "llms.txt").read_text(encoding="utf-8")
REPOSITORY = "https://github.com/FacePerceiver/LAION-Face/blob/main/"
ARCHITECTURE = TEXTS["docs/architecture.md"]


def named(dotted):
    """Return what a dotted name stands for: a package, a module, or something in one."""
    found = importlib.import_module(dotted.partition(".")[0])
    path = found.__name__
    for word in dotted.split(".")[1:]:
        path += f".{word}"
        found = getattr(found, word, None) or importlib.import_module(path)
    return found


@pytest.mark.parametrize("page", TEXTS)
def test_every_name_of_the_package_exists(page):
    for dotted in re.findall(r"\blaion_face(?:_builder)?(?:\.\w+)+", TEXTS[page]):
        assert dotted.endswith(".py") or named(dotted) is not None, dotted


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_that_is_named_exists(page):
    for file in re.findall(r"`((?:builder|tests|benchmarks|docs)/[\w/.-]+\.\w+)`", TEXTS[page]):
        assert (ROOT / file).exists(), file


def test_every_test_that_is_named_exists():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", sources))
    named_here = set(re.findall(r"`(test_\w+)`", ARCHITECTURE))
    assert len(named_here) > 20
    assert named_here <= there


def test_every_law_names_its_tests():
    laws = re.split(r"^\d+\. ", ARCHITECTURE.split("\n## The laws\n")[1].split("\n## ")[0], flags=re.MULTILINE)[1:]
    assert [bool(re.search(r"`test_\w+`", law)) for law in laws] == [True] * 12


def test_every_floor_is_in_the_house():
    house = ARCHITECTURE.split("\n## The house\n")[1].split("\n## ")[0]
    drawing = re.search(r"```text\n(.*?)```", house, re.DOTALL)[1]
    floors = [path.parent.name for path in Path(laion_face_builder.__file__).parent.glob("*/__init__.py")]
    assert [name for name in floors if not re.search(rf"\b{name}\b", drawing)] == []
    assert [name for name in floors if f"`laion_face_builder.{name}`" not in house] == []


@pytest.mark.parametrize("name", ["README.md", "llms.txt", *(name for name in TEXTS if name != "README.md")])
def test_every_link_leads_somewhere(name):
    text = LLMS if name == "llms.txt" else TEXTS[name]
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(REPOSITORY):
            assert (ROOT / link.removeprefix(REPOSITORY)).exists(), link
        elif "://" not in link:
            file, _, anchor = link.partition("#")
            target = (ROOT / name).parent / file if file else ROOT / name
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page):
    text = page.read_text(encoding="utf-8")
    for included in re.findall(r'^--8<-- "([\w/.]+)"$', text, re.MULTILINE):
        text += (ROOT / included).read_text(encoding="utf-8")
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("block", docs_tables.BLOCKS)
def test_what_comes_from_the_code_is_as_the_code_has_it(block):
    text = TEXTS[f"docs/{docs_tables.BLOCKS[block][0]}"]
    assert docs_tables.written(block, text) == text, "run `python -m tests.support.docs_tables`"


def test_the_api_has_every_public_name():
    shown = re.findall(r"^::: laion_face\.(\w+)$", TEXTS["docs/api.md"], re.MULTILINE)
    assert sorted(shown) == sorted(laion_face.__all__)


def test_every_column_is_told():
    assert [name for name in EXAMPLE_COLUMNS if f"`{name}`" not in TEXTS["docs/quick-start.md"]] == []


@pytest.mark.parametrize("page", TEXTS)
def test_python_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL):
        ast.parse(textwrap.dedent(block))


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^ *laion-face (\w+)", "\n".join(TEXTS.values()), re.MULTILINE)))
)
def test_every_command_exists(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert "usage: laion-face" in capsys.readouterr().out


def test_the_readme_is_one_screen():
    assert 60 <= len(TEXTS["README.md"].splitlines()) <= 90


def test_llms_txt_has_its_form():
    # https://llmstxt.org: a title, a summary, prose without headings, then sections of links alone.
    head, *sections = re.split(r"^## ", LLMS, flags=re.MULTILINE)
    assert re.match(r"# [^\n]+\n\n> [^\n]+\n", head)
    for section in sections:
        _, *lines = section.strip().splitlines()
        assert [line for line in lines if line and not re.fullmatch(r"- \[[^]]+\]\([^)]+\): .+", line)] == []
    assert [name for name in PAGES if f"({name})" not in LLMS and name != "docs/index.md"] == []
