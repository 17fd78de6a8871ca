"""The tables of README.md that follow from the code: `python tests/support/readme_tables.py` writes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from laion_face_builder.options import OptionFields
from tests.examples import test_operations

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- {name}: written by `python tests/support/readme_tables.py` -->", "<!-- end of {name} -->"


def options_table() -> str:
    """Give the table of every option with its default and meaning."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for spec in dataclasses.fields(OptionFields):
        default = "–" if spec.default is None else f"`{spec.default}`"
        lines.append(f"| `{spec.name}` | {default} | {spec.metadata['help']} |")
    return "\n".join(lines)


TABLES = {"options": options_table, "limits": test_operations.as_markdown}


def written(text: str) -> str:
    """Give the text with every table as it has to be."""
    for name, table in TABLES.items():
        before, rest = text.split(BEGIN.format(name=name))
        after = rest.split(END.format(name=name))[1]
        text = f"{before}{BEGIN.format(name=name)}\n{table()}\n{END.format(name=name)}{after}"
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
