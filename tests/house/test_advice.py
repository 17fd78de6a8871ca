"""What messages advise exists: every option, argument and flag that an error or a warning names can be given."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import datasets

import laion_face
from laion_face_builder import errors
from laion_face_builder.cli.arguments import make_parser
from laion_face_builder.options import option_names
from laion_face_builder.options.export_options import ExportOptions
from laion_face_builder.schema import EXAMPLE_COLUMNS, INDEX

PACKAGE = Path(errors.__file__).parent
SOURCES = [Path(laion_face.__file__), *PACKAGE.rglob("*.py")]
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
LOGGERS = {"logger", "_LOG", "_logger"}
#: What messages name of other libraries: torch's DataLoader, `datasets`, img2dataset.
OTHERS = {
    "num_workers",
    "batched",
    "set_epoch",
    "load_dataset",
    "laion_face",
    "output_format",
    "--save_additional_columns",
}
COLUMNS = {*EXAMPLE_COLUMNS, *INDEX.names}


def messages(tree: ast.AST) -> Iterator[str]:
    """Yield all texts of a module that go into errors, warnings and notes; what is filled in is left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_message(node.func):
            yield from _texts(node)
        elif isinstance(node, ast.Assign) and _is_piece(node):
            yield from _texts(node.value)


def _is_piece(node: ast.Assign) -> bool:
    """Say whether this is a text with a name of its own, as pieces of messages have."""
    names = (target.id if isinstance(target, ast.Name) else "" for target in node.targets)
    is_text = isinstance(node.value, (ast.Constant, ast.JoinedStr, ast.Dict))
    return is_text and all(name.isupper() for name in names)


def _is_message(called: ast.expr) -> bool:
    if isinstance(called, ast.Attribute):
        return isinstance(called.value, ast.Name) and called.value.id in LOGGERS
    return isinstance(called, ast.Name) and called.id in ERRORS - {"PictureError"}


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield the sentences in an expression: no single words, which stand for columns and reasons, and no pages."""
    for one in ast.walk(node):
        text = one.value if isinstance(one, ast.Constant) else ""
        if isinstance(one, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in one.values)
        if isinstance(text, str) and " " in text and "\n" not in text and not text.startswith("<"):
            yield text


def names_in(text: str) -> set[str]:
    """Name what a text tells to give: `name=`, and words that only names have, with an underscore or as a flag."""
    given = re.findall(r"(?<![\w./?&-])([a-z][a-z0-9_]*)=(?!=)", text)
    words = re.findall(r"(?<![\w./<-])[a-z]+(?:_[a-z0-9]+)+(?![\w./])", text)
    return {*given, *words, *re.findall(r"(?<![\w./-])--[a-z][a-z_-]*", text)}


def valid() -> set[str]:
    parser = make_parser()
    flags = {flag for command in parser.commands.values() for flag in command.option_names}
    arguments = set()
    for taker in (datasets.load_dataset, datasets.DatasetBuilder.as_dataset):
        arguments |= set(inspect.signature(taker).parameters)
    names = {flag[2:].replace("-", "_") for flag in flags}
    own = {spec.name for spec in dataclasses.fields(ExportOptions)}
    return {*option_names(), *own, *arguments, *flags, *names, *OTHERS, *COLUMNS}


def test_names_are_found_where_messages_have_them():
    text = 'f"{a}: give {b}, max_size=5, --big-ones or another data_place, not x/y?z=1 or a/b_c"'
    for code in (f"raise OptionError({text})", f"logger.warning({text})", f"_WAY_OUT = {text}"):
        assert set.union(*map(names_in, messages(ast.parse(code)))) == {"max_size", "--big-ones", "data_place"}


def test_every_option_that_a_message_names_exists():
    known, wrong, named = valid(), [], set()
    for path in SOURCES:
        for text in messages(ast.parse(path.read_text(encoding="utf-8"))):
            named |= names_in(text)
            wrong += [(path.name, name, text) for name in names_in(text) - known]
    assert wrong == []
    assert {"images", "metadata", "index", "--ignore-space", "shards_per_part"} <= named
