"""The command line that the user typed, for pages that say what they were made with; and the parts it means."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from laion_face_builder.examples import parts
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
            words += [f"--{spec.name.replace('_', '-')}", *([] if value is True else [_plain(value)])]
    return shlex.join(words)


def to_look_at(options: Options, named: object) -> Options:
    """Give the options for all parts if the user `named` parts, else for those that are prepared.

    Raises:
        NotPrepared: a part that was named is not prepared, or none is.
    """
    if named is None:
        return parts.of_those_prepared(options)
    parts.require_prepared(options)
    return options


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(str(value))
