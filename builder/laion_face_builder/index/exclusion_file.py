"""Read exclusion lists as people write them: by hand, with comments; saved by Excel; exported by pandas.

    # withdrawn in May                     a comment, also behind an entry after a blank
    1234567                                a sample id; 1234567.0 and "1234567" are the same
    1234567,http://cdn.example/a.jpg       a line of CSV: its first field counts
    https://cdn.example/a,b.jpg            an address, comma and all: exactly this one, but for the case of its host
    "https://cdn.example/a.jpg",why        an address in quotes ends with them
    cdn.example                            a host and its subdomains
    cdn.example:8080                       the same, on this port only
    *.cdn.example                          its subdomains only
    9f86d0…                                SHA-256 or MD5 of a picture's bytes, 64 or 32 hexadecimal digits

The first line may be a header such as `sample_id` or `url,caption`; with a comma in it, all lines are CSV. Whatever is
none of these is refused: a line that is passed over would let through what should have stayed away.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from laion_face_builder.errors import BadFile, OptionError
from laion_face_builder.index.exclusion import Exclusion
from laion_face_builder.index.urls import canonical_url, one_spelling
from laion_face_builder.values import as_written

logger = logging.getLogger("laion_face")

_HEADERS = frozenset({"sample_id", "sampleid", "id", "key", "url", "host", "domain", "sha256", "md5", "hash"})
_QUOTED = re.compile(r"""(["'])(?P<inside>(?:(?!\1).|\1\1)*)\1\s*(?:,.*|\#.*)?""")
_COMMENT = re.compile(r"\s#")
_ID = re.compile(r"-?[0-9]{1,19}(?=(?:\.0+)?$)")
_HASH = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{32}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://(?![^/?#]*\*).+")
_HOST = re.compile(r"(?P<star>\*\.)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]*?#\\]+)(?P<port>:[0-9]{1,5})?")
_NAME = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z][a-z0-9-]*[a-z0-9]")

_EXPECTED = "a sample id, a URL with its scheme, a host, a SHA-256 or an MD5"


class Entry(NamedTuple):
    """One entry: the field of `Exclusion` that it belongs to, and its value there."""

    kind: str
    value: str | int


def read_exclusion(path: str) -> Exclusion:
    """Read the exclusion list at `path` and say what it names; read again only once the file has changed.

    Raises:
        BadFile: the file cannot be read, or a line has none of the known forms; names the line.
    """
    try:
        now = Path(path).stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _read(path, (now.st_mtime_ns, now.st_size, now.st_ino))


@functools.lru_cache(maxsize=4)
def _read(path: str, _version: tuple[int, ...]) -> Exclusion:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    # Not `splitlines`: addresses may have the rarer line breaks in them, and editors do not count them.
    found = parse_exclusion(re.split(r"\r\n|\r|\n", text), path)
    if any(found.counts.values()):
        logger.info("%s: %s are left out", path, found)
    else:
        logger.warning("%s: names nothing, so nothing is left out", path)
    return found


def _unreadable(path: str, error: Exception) -> BadFile:
    return BadFile(
        path,
        found=f"no readable text ({error})",
        expected="UTF-8 with one sample id, URL, host or hash a line",
        way_out="Give exclude= the path of such a file.",
    )


def parse_exclusion(lines: Iterable[str], name: str = "exclude") -> Exclusion:
    """Sort the lines of an exclusion list by what they are.

    Args:
        lines: without their ends.
        name: of the file, for messages.

    Raises:
        BadFile: a line has none of the known forms.
    """
    found: list[Entry] = []
    is_first, is_csv, with_comma = True, False, 0
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line[0] == "#":
            continue
        field = _first_field(line, is_csv)
        if is_first and field.casefold() in _HEADERS:
            is_csv = "," in line
        elif (entry := entry_of(field)) is None:
            raise _refused(f"{name}:{number}", line)
        else:
            found.append(entry)
            with_comma += entry.kind == "urls" and "," in field and line[0] not in "\"'"
        is_first = False
    if with_comma:
        logger.info("%s: %d URLs have a comma and no quotes: it is taken as a part of them", name, with_comma)
    return _exclusion(name, found)


def exclusion_of(values: Iterable[Any]) -> Exclusion:
    """Sort ids, URLs, hosts and hashes that were given as values; they mean what the same lines in a file mean.

    Raises:
        OptionError: a value is none of these. There are no comments, headers or further columns here.
    """
    return _of_texts(tuple(map(str, values)))


@functools.lru_cache(maxsize=4)
def _of_texts(texts: tuple[str, ...]) -> Exclusion:
    entries = [(text, entry_of(text.strip())) for text in texts]
    for number, (text, entry) in enumerate(entries):
        if entry is None:
            raise OptionError(f"exclude[{number}]={as_written(text)}: expected {_EXPECTED}")
    found = _exclusion("exclude", [entry for _, entry in entries if entry is not None])
    if any(found.counts.values()):
        logger.info("exclude: %s are left out", found)
    else:
        logger.warning("exclude: names nothing, so nothing is left out")
    return found


def _exclusion(name: str, entries: Iterable[Entry]) -> Exclusion:
    found: dict[str, set[Any]] = {"sample_ids": set(), "urls": set(), "hosts": set(), "sha256s": set(), "md5s": set()}
    for entry in entries:
        found[entry.kind].add(entry.value)
    ids = np.array(sorted(found.pop("sample_ids")), np.int64)
    return Exclusion(name, ids, **{kind: frozenset(values) for kind, values in found.items()})


def _first_field(line: str, is_csv: bool) -> str:
    if line[0] in "\"'":
        quoted = _QUOTED.fullmatch(line)
        return quoted["inside"].replace(line[0] * 2, line[0]).strip() if quoted else line
    text = _COMMENT.split(line, maxsplit=1)[0].rstrip()
    first = text.partition(",")[0].rstrip()
    return text if "://" in first and not is_csv else first


def entry_of(text: str) -> Entry | None:
    """Tell what an entry is; None if it is none of the known forms."""
    if number := _ID.match(text):
        value = int(number[0])
        return Entry("sample_ids", value) if -(1 << 63) <= value < 1 << 63 else None
    if _HASH.fullmatch(text):
        return Entry("sha256s" if len(text) == 64 else "md5s", text.lower())
    if "://" in text:
        return Entry("urls", canonical_url(text)) if _URL.fullmatch(text) else None
    host = _host_entry(text)
    return Entry("hosts", host) if host else None


def _host_entry(text: str) -> str:
    """Return a host as `Exclusion.hosts` has it; empty if it is none."""
    if text.count(":") > 1 and "]" not in text:
        text = f"[{text}]"
    parts = _HOST.fullmatch(text.removeprefix("."))
    if parts is None or (parts["port"] and not 0 < int(parts["port"][1:]) < 65536):
        return ""
    star, host = parts["star"] or "", one_spelling(parts["host"])
    if not _is_host(host, is_domain=bool(star)):
        return ""
    return f"{star}{host}:{int(parts['port'][1:])}" if parts["port"] else star + host


def _is_host(host: str, is_domain: bool) -> bool:
    """Tell whether this is a host or, after "*.", a domain such as `*.example`; a single word is taken for a slip."""
    if _NAME.fullmatch(host):
        return is_domain or "." in host or host == "localhost"
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return not is_domain


def _refused(place: str, line: str) -> BadFile:
    return BadFile(
        place,
        found=repr(line if len(line) <= 80 else f"{line[:80]}…"),
        expected=_EXPECTED,
        way_out="Correct the line, or put a # before it.",
    )
