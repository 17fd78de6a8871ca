"""Single values as users give them: checked against what is valid, and shown in messages of one line."""

from __future__ import annotations

import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laion_face_builder.errors import OptionError
from laion_face_builder.shown import short

#: Characters of a value that a message shows.


@dataclass(frozen=True)
class Range:
    """The numbers that are valid, both ends included; `most` None means that there is no end."""

    kind: type
    least: float
    most: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise OptionError if `value` is not a number in the range.

        Raises:
            OptionError: names `name`, the value and the range.
        """
        wanted = numbers.Integral if self.kind is int else numbers.Real
        is_number = isinstance(value, wanted) and not isinstance(value, bool)
        if not is_number or not value >= self.least or (self.most is not None and value > self.most):
            raise OptionError(f"{name}={as_written(value)}: expected {self}")

    def __str__(self) -> str:
        number = "a whole number" if self.kind is int else "a number"
        return f"{number}, {self.text}"

    @property
    def text(self) -> str:
        """The range in words: "0 to 1", or "1 or more"."""
        return f"{self.least:,} or more" if self.most is None else f"{self.least:,} to {self.most:,}"


def as_written(value: object) -> str:
    """Return a value in one short line, as Python writes it."""
    return short(repr(value))


def one_of(name: str, value: Any, valid: Sequence[str]) -> str:
    """Return `value` if it is one of the valid words.

    Raises:
        OptionError: names `name`, the value and the valid words.
    """
    if not isinstance(value, str) or value not in valid:
        raise OptionError(f"{name}={as_written(value)}: valid are {', '.join(map(repr, valid))}")
    return str(value)


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return the path from the root, `~` and `~name` replaced: a program may change its folder later.

    Raises:
        OptionError: there is no such user; or the path has bytes that are no UTF-8, which Arrow cannot open.
    """
    try:
        found = Path(path).expanduser().absolute()
        str(found).encode()
        return found
    except UnicodeError as error:
        raise OptionError(
            f"{os.fspath(path)!r}: found a name that is no UTF-8, or Python does not take it for that under this "
            "locale. Set PYTHONUTF8=1, or give another name"
        ) from error
    except RuntimeError as error:
        raise OptionError(f'{os.fspath(path)!r}: there is no such user; a folder of that name is "./~…"') from error


def place(name: str, value: Any) -> str:
    """Return the text of a place, an address or a path; a `Path` is a local one, whatever it looks like.

    Raises:
        OptionError: `value` is neither text nor a path, or is empty.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise OptionError(f"{name}={as_written(value)}: expected text or a pathlib.Path, not {type(value).__name__}")
    if not text.strip() or "\0" in text:
        raise OptionError(f"{name}={as_written(text)}: names nothing; leave it out, or give a folder or an address")
    return text if isinstance(value, str) else str(absolute(text))


def folder(name: str, value: Any) -> Path:
    """Return the absolute path of a local folder, which may not exist yet.

    Raises:
        OptionError: `value` is no path of this machine, or a file is in its way.
    """
    text = place(name, value)
    if "://" in text:
        raise OptionError(f"{name}={as_written(text)}: expected a folder of this machine, not an address")
    path = absolute(text)
    there = next(found for found in (path, *path.parents) if os.path.lexists(found) or found == found.parent)
    if not os.path.isdir(there):
        what = "it" if there == path else str(there)
        raise OptionError(f"{name}={as_written(text)}: {what} is no folder. Name another, or move it away")
    return path
