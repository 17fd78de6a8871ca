"""The options in laion_face-stubs, from the options themselves: `python tests/support/stubs.py` writes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from laion_face_builder import options
from laion_face_builder.images.geometry import RESIZE_MODES
from laion_face_builder.images.modes import MODES
from laion_face_builder.layout import CONFIG_PARTS

STUB = Path(__file__).parents[2] / "laion_face-stubs" / "__init__.pyi"
BEGIN, END = "# options: written by `python tests/support/stubs.py`\n", "# end of options\n"


def _literal(values: tuple[str, ...]) -> str:
    return f"Literal[{', '.join(f'{chr(34)}{value}{chr(34)}' for value in values)}]"


#: What is `str` to datasets, and one of a few words to a type checker.
TYPES = {
    "keep_faces": _literal(options.KEEP_FACES),
    "nsfw": f"{_literal(options.NSFW_VALUES)} | Iterable[{_literal(options.NSFW_VALUES)}] | None",
    "images": f"{_literal(options.IMAGE_MODES)} | os.PathLike[str]",
    "on_error": _literal(options.ON_ERROR),
    "on_size_change": _literal(options.ON_SIZE_CHANGE),
    "mode": f"{_literal(MODES)} | None",
    "resize_mode": _literal(RESIZE_MODES),
    "order": _literal(options.ORDERS),
}


def options_block() -> str:
    """Give the names of the configs, and every option with its type: as a keyword, and as a config's field."""
    fields = [
        f"    {spec.name}: {TYPES.get(spec.name, spec.type)}" for spec in dataclasses.fields(options.OptionFields)
    ]
    config = f"_Config: TypeAlias = {_literal(tuple(CONFIG_PARTS))}"
    return "\n".join(
        [config, "", "class _Options(TypedDict, total=False):", *fields, "", "class _Fields:", *fields, ""]
    )


def written(text: str) -> str:
    """Give the stub with the options as they are."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{options_block()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    STUB.write_text(written(STUB.read_text(encoding="utf-8")), encoding="utf-8")
