"""Turn each option as people have it into a plain value, checked by itself: text, a number, a tuple, or None.

People have NumPy's scalars and arrays, `pathlib.Path`s and sets; None stands for an option that is left out.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from glob import has_magic
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import OptionError
from laion_face_builder.images.geometry import RESIZE_MODES
from laion_face_builder.images.modes import MODES
from laion_face_builder.index.exclusion import Exclusion, exclusion_of, read_exclusion
from laion_face_builder.index.joined_columns import JoinSource
from laion_face_builder.index.listed_column import is_column, read_column
from laion_face_builder.options.fields import (
    IMAGE_MODES,
    JOIN_HOWS,
    KEEP_FACES,
    NSFW_VALUES,
    ON_ERROR,
    ON_SIZE_CHANGE,
    ORDERS,
    RESPECTS,
    OptionFields,
)
from laion_face_builder.shown import short
from laion_face_builder.values import absolute, as_written, one_of, place

#: Options that are addresses or paths; `exclude` and `images` are too, among other things.
_PLACES = ("source_repo", "metadata", "index")
_TEXTS = ("source_revision", "user_agent_token", "contact")
_WORDS = {
    "join_how": JOIN_HOWS,
    "on_error": ON_ERROR,
    "on_size_change": ON_SIZE_CHANGE,
    "keep_faces": KEEP_FACES,
    "order": ORDERS,
    "mode": MODES,
    "resize_mode": RESIZE_MODES,
    "respect": RESPECTS,
}


def plain(given: OptionFields) -> OptionFields:
    """Return the options as plain values; `parts` stays as it is, since only the config says what is valid.

    Raises:
        OptionError: names the option, the value and the valid ones; BadFile: a line of the exclusion list.
    """
    specs = dataclasses.fields(OptionFields)
    return OptionFields(**{spec.name: _plain(spec, _scalar(getattr(given, spec.name))) for spec in specs})


def _scalar(value: Any) -> Any:
    """Return what an array without dimensions, or a NumPy value that is no number, holds; else the value itself."""
    if isinstance(value, numbers.Number) or getattr(value, "ndim", None) != 0:
        return value
    return value.item()


def _plain(spec: dataclasses.Field[Any], value: Any) -> Any:
    name, kind, valid = spec.name, spec.metadata["kind"], spec.metadata["valid"]
    if value is None:
        return spec.default
    if kind is bool and not isinstance(value, bool):
        raise OptionError(f"{name}={as_written(value)}: expected True or False")
    if valid is not None:
        valid.check(name, value)
        # Those of NumPy are no JSON; an int stays one, since it is in fingerprints.
        return value if type(value) in (int, float) else kind(value)
    if name in _PLACES:
        return _place(name, value)
    if name in _WORDS:
        return one_of(name, value, _WORDS[name])
    if name in _TEXTS and not isinstance(value, str):
        raise OptionError(f"{name}={as_written(value)}: expected text, not {type(value).__name__}")
    return _OF_THEIR_OWN[name](value) if name in _OF_THEIR_OWN else value


def _place(name: str, given: Any) -> str:
    """Return the absolute path, if it is a path and not an address or the name of a Hub dataset; else the text."""
    text = place(name, given)
    is_path = text.startswith((".", "~", os.sep)) or os.path.exists(text)
    return str(absolute(text)) if is_path and "://" not in text else text


def _cache_images(given: Any) -> str:
    text = place("cache_images", given)
    if "://" in text:
        raise OptionError(f"cache_images={as_written(text)}: expected a local folder")
    return str(absolute(text))


def _images(given: Any) -> str:
    if isinstance(given, str) and given in IMAGE_MODES:
        return str(given)
    folder = absolute(place("images", given)) if isinstance(given, (str, os.PathLike)) else None
    if folder is None or not folder.is_dir():
        valid = ", ".join(map(repr, IMAGE_MODES))
        raise OptionError(f"images={as_written(given)}: valid are {valid}, or a folder that exists")
    return str(folder)


def _nsfw(given: Any) -> tuple[str, ...]:
    valid = ", ".join(map(repr, NSFW_VALUES))
    if not isinstance(given, Iterable):
        raise OptionError(f"nsfw={as_written(given)}: valid are {valid}")
    values = given.split(",") if isinstance(given, str) else list(given)
    chosen = tuple(sorted({str(value).strip().upper() for value in values}))
    if not chosen:
        raise OptionError(f"nsfw={as_written(given)}: nothing would pass; valid are {valid}")
    for value in chosen:
        one_of("nsfw", value, NSFW_VALUES)
    return chosen


_AS_FILE = "one entry goes into a file too, or through a pipe: echo ENTRY | laion-face {} -"
#: How a single entry is given.
_ALONE = {
    "exclude": "one entry goes as exclude=[…] in Python",
    "include": "one entry goes as include=[…] in Python",
    "remove": _AS_FILE.format("remove"),
    "removed": _AS_FILE.format("verify --removed"),
}


def read_list(option: str, given: Any) -> Exclusion:
    """Return the list that an option was given: a file, or the entries themselves.

    Raises:
        OptionError: it is neither; BadFile: a line has none of the known forms.
    """
    if isinstance(given, Exclusion):
        return given
    if isinstance(given, (str, os.PathLike)):
        path = absolute(place(option, given))
        if not path.is_file():
            found = "it is a folder" if path.is_dir() else "there is no such file"
            raise OptionError(f"{option}={as_written(given)}: {found}; {_ALONE[option]}")
        return read_column(str(path), option) if is_column(str(path)) else read_exclusion(str(path), option)
    if isinstance(given, (bytes, bytearray, Mapping)) or not isinstance(given, Iterable):
        raise OptionError(f"{option}={as_written(given)}: expected a file, or a list of ids, URLs, hosts and hashes")
    return exclusion_of(given, option)


def _pattern(option: str, given: Any) -> str:
    """Return a regular expression that Arrow's RE2 understands."""
    if not isinstance(given, str) or not given:
        raise OptionError(f"{option}={as_written(given)}: expected a regular expression (RE2), such as '(?i)smil'")
    try:
        pc.match_substring_regex(pa.array([""]), given)
    except pa.ArrowInvalid as error:
        said = short(error).removeprefix("Invalid regular expression: ")
        raise OptionError(f"{option}={as_written(given)}: no regular expression of RE2 ({said})") from error
    return given


_NAMED = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<place>.+)", re.DOTALL)
_TABLES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


def _join(given: Any) -> tuple[JoinSource, ...] | None:
    if isinstance(given, Mapping):
        found = [_source(place, name) for name, place in given.items()]
    elif isinstance(given, (str, os.PathLike, JoinSource)):
        found = [_source(given)]
    elif isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray)):
        found = [_source(one) for one in given]
    else:
        raise OptionError(
            f"join={as_written(given)}: expected a table, a list of tables, or a dict of names and tables"
        )
    if doubled := [one for one in found if found.count(one) > 1]:
        raise OptionError(f"join: {doubled[0]} is there {found.count(doubled[0])} times")
    return tuple(found) or None


def _source(given: Any, name: Any = None) -> JoinSource:
    if isinstance(given, JoinSource):
        return given
    text = place("join", given)
    if name is not None and not (isinstance(name, str) and _NAMED.fullmatch(f"{name}=x")):
        raise OptionError(f"join: the name {as_written(name)}: expected letters, digits and _, the first no digit")
    named = _NAMED.fullmatch(text) if name is None and isinstance(given, str) and not os.path.exists(text) else None
    if named is not None:
        name, text = named["name"], named["place"]
    is_path = text.startswith((".", "~", os.sep)) or os.path.exists(text) or text.endswith(_TABLES) or has_magic(text)
    return JoinSource(str(absolute(text)) if is_path and "://" not in text else text, name)


_OF_THEIR_OWN: dict[str, Callable[[Any], Any]] = {
    "cache_images": _cache_images,
    "images": _images,
    "nsfw": _nsfw,
    "include": partial(read_list, "include"),
    "exclude": partial(read_list, "exclude"),
    "caption_matches": partial(_pattern, "caption_matches"),
    "caption_excludes": partial(_pattern, "caption_excludes"),
    "join": _join,
}


def one_spelling(value: Any) -> Any:
    """Write equal numbers alike: 64, 64.0 and NumPy's are one filter."""
    if isinstance(value, dict):
        return {name: one_spelling(one) for name, one in value.items()}
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    return int(number) if float(number).is_integer() else number
