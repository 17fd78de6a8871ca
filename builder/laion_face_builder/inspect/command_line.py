"""The command line that the user typed, for pages that say what they were made with; and the parts it means."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from laion_face_builder.examples import beside, parts
from laion_face_builder.examples.placeholders import with_placeholders
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.shown import shown


def as_typed(command: str, given: Mapping[str, Any]) -> str:
    """Rebuild the command line, without options that have their default; tokens and passwords are never written down.

    Args:
        command: such as "show".
        given: its arguments by name: config, data_dir, and those of `OptionFields`.
    """
    words = ["laion-face", command, given["config"]]
    if given["data_dir"] is not None:
        words += ["--data-dir", shown(str(given["data_dir"]))]
    for spec in dataclasses.fields(OptionFields):
        value = given.get(spec.name, spec.default)
        if value != spec.default:
            flag = f"--{spec.name.replace('_', '-')}"
            values = value if spec.metadata["is_repeated"] else [value]
            words += [word for one in values for word in (flag, *([] if one is True else [_plain(one)]))]
    return shlex.join(words)


def to_look_at(options: Options, named: object, *, is_dry_run: bool = False) -> Options:
    """Give the options for all parts if the user `named` parts, else for those that are prepared; join their tables.

    Args:
        is_dry_run: whether nothing may be made: tables have to be joined already.

    Raises:
        NotPrepared: a part that was named is not prepared, or none is.
    """
    if named is None:
        options = parts.of_those_prepared(options)
    parts.require_prepared(options)
    options = beside.with_columns(options, is_made=is_dry_run)
    if is_dry_run:
        return options
    parts.fit_pictures(options)
    return with_placeholders(options)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(str(value))
