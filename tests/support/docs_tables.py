"""Write what the pages in docs/ take from the code: `python -m tests.support.docs_tables`."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from laion_face_builder.cli.arguments import make_parser
from laion_face_builder.layout import default_data_dir
from laion_face_builder.options import OptionFields
from tests.examples import test_operations

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- {name}: written by docs_tables.py -->", "<!-- end of {name} -->"
#: The groups of options in the order of the page, and what they are called there.
GROUPS = {
    "source": "Where from",
    "which": "Which parts",
    "filter": "Which samples",
    "join": "Tables to join",
    "pictures": "Pictures",
    "resize": "Resizing and blurring",
    "stream": "Fetching ahead",
    "transfer": "Fetching",
}


def options_tables() -> str:
    """Give a table of every option with its default and meaning for each group."""
    return "\n\n".join(f"## {title}\n\n{_options_of(group)}" for group, title in GROUPS.items())


def _options_of(group: str) -> str:
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for spec in dataclasses.fields(OptionFields):
        if spec.metadata["group"] == group:
            default = "–" if spec.default is None else f"`{spec.default}`"
            lines.append(f"| `{spec.name}` | {default} | {spec.metadata['help']} |")
    return "\n".join(lines)


def command_tables() -> str:
    """Give the arguments of every command; those that are options of a dataset stand in the options' page."""
    return "\n\n".join("\n".join(_command(name, parser)) for name, parser in make_parser().commands.items())


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    options = {spec.name for spec in dataclasses.fields(OptionFields)}
    shown = [action for action in parser._actions if argparse.SUPPRESS not in (action.help, action.dest)]
    own = [action for action in shown if action.dest not in options and action.dest not in ("help", "debug")]
    words = [_word(action) for action in own if not action.option_strings]
    yield f"### {name}\n"
    yield f"`{' '.join(['laion-face', name, *words, '[OPTION …]'])}`: {parser.description}.\n"
    yield "| argument | meaning |"
    yield "|---|---|"
    for action in own:
        yield f"| `{_argument(action)}` | {_meaning(action)} |"
    if of_dataset := [f"`{action.option_strings[0]}`" for action in shown if action.dest in options]:
        yield f"\nAnd of the [options](options.md): {', '.join(of_dataset)}."


def _word(action: argparse.Action) -> str:
    word = str(action.metavar or action.dest.upper())
    return {"?": f"[{word}]", "+": f"{word} …"}.get(str(action.nargs), word)


def _argument(action: argparse.Action) -> str:
    if not action.option_strings:
        return _word(action)
    if action.nargs == 0:
        return action.option_strings[0]
    return f"{action.option_strings[0]} {_word(action)}"


def _meaning(action: argparse.Action) -> str:
    valid = ", ".join(f"`{choice}`" for choice in action.choices or ())
    text = (action.help or "") % vars(action)
    text = f"{valid}: {text}".strip(": ") if action.option_strings or not text else text
    return text.replace(str(default_data_dir()), "~/.cache/laion-face")


#: Name of a block, the page that it stands in, and what makes it.
BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {
    "options": ("options.md", options_tables),
    "commands": ("command-line.md", command_tables),
    "limits": ("recipes.md", test_operations.as_markdown),
}


def written(name: str, text: str) -> str:
    """Give the text of a page with its block as it has to be."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    parts = re.split(f"({re.escape(begin)}\n|\n{re.escape(end)})", text)
    assert len(parts) == 5, f"no place for {name}"
    return "".join([*parts[:2], f"\n{BLOCKS[name][1]()}\n", *parts[3:]])


if __name__ == "__main__":
    for block, (page, _) in BLOCKS.items():
        path = DOCS / page
        path.write_text(written(block, path.read_text(encoding="utf-8")), encoding="utf-8")
