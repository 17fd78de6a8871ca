"""Choose rows, to leave out or to keep, by ids, addresses, hosts and hashes of pictures; a row group at once.

A million entries are fine: ids are looked up in a sorted array, addresses and hosts in sets that are made once, where
Arrow's `is_in` would make its table anew for every row group. A list goes by value to worker processes, so that all
of a dataset's processes leave out the same, whatever happens to the file meanwhile.

Lists are read as people write them: by hand, with comments; saved by Excel; exported by pandas.

    # withdrawn in May                     a comment, also behind an entry after a blank
    1234567                                a sample id; 1234567.0 and "1234567" are the same
    1234567,http://cdn.example/a.jpg       a line of CSV: its first field counts
    https://cdn.example/a,b.jpg            an address, comma and all: exactly this one, but for the case of its host
    "https://cdn.example/a.jpg",why        an address in quotes ends with them
    cdn.example                            a host and its subdomains
    cdn.example:8080                       the same, on this port only
    *.cdn.example                          its subdomains only
    9f86d0…                                SHA-256 or MD5 of a picture's bytes, 64 or 32 hexadecimal digits

The first line may be a header such as `sample_id` or `caption,url`; with a comma in it, all lines are CSV. Whatever is
none of these is refused: a line that is passed over would let through what should have stayed away.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import BadFile, OptionError
from laion_face_builder.index.urls import addresses_named, canonical_url, domains_of, one_spelling, place_of
from laion_face_builder.log import logger
from laion_face_builder.shown import counted
from laion_face_builder.values import as_written

#: What a column of entries may be called, in any case; of several the first here counts.
HEADERS = ("sample_id", "sampleid", "id", "key", "url", "host", "domain", "sha256", "md5", "hash")
_QUOTED = re.compile(r"""(["'])(?P<inside>(?:(?!\1).|\1\1)*)\1\s*(?:,.*|\#.*)?""")
_COMMENT = re.compile(r"\s#")
_ID = re.compile(r"-?[0-9]{1,19}(?=(?:\.0+)?$)")
#: One number or several fields: nobody knows.
_THOUSANDS = re.compile(r"[0-9]{1,3}(,[0-9]{3})+")
_HASH = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{32}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://(?![^/?#]*\*).+")
_HOST = re.compile(r"(?P<star>\*\.)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]*?#\\]+)(?P<port>:[0-9]{1,5})?")
_NAME = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z][a-z0-9-]*[a-z0-9]")
_EXPECTED = "a sample id, a URL with its scheme, a host, a SHA-256 or an MD5"


class ExclusionEntry(NamedTuple):
    """One entry: the field of `Exclusion` that it belongs to, and its value there."""

    kind: str
    value: str | int


def read_exclusion(path: str, option: str = "exclude") -> Exclusion:
    """Read the list at `path` and say what it names; read again only once the file has changed.

    Args:
        path: of a file of lines; of Parquet, see `listed_column`.
        option: which takes it.

    Raises:
        BadFile: the file cannot be read, or a line has none of the known forms; names the line.
    """
    try:
        now = Path(path).stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _read(path, option, (now.st_mtime_ns, now.st_size, now.st_ino))


@functools.lru_cache(maxsize=4)
def _read(path: str, option: str, _version: tuple[int, ...]) -> Exclusion:
    found = _listed_in_lines(path)
    say_what_is_named(path, found, option)
    return found


#: What there is of a kind of entries, in words.
_KINDS: dict[str, Callable[[int], str]] = {
    "ids": lambda count: counted(count, "id"),
    "urls": lambda count: counted(count, "URL"),
    "hosts": lambda count: counted(count, "host"),
    "hashes": lambda count: f"{count:,} {'hash' if count == 1 else 'hashes'}",
}
#: What becomes of the entries of a list, and of nothing, by the option that takes it.
_MEANT = {
    "exclude": ("are left out", "is left out"),
    "include": ("are kept, and no others", "is kept"),
    "remove": ("are to be taken down", "is to be taken down"),
    "removed": ("are looked for", "is looked for"),
}


def in_words(counts: Mapping[str, int]) -> str:
    """Give "1 id, 2 hosts" for the counts of a list's entries by kind."""
    return ", ".join(_KINDS[kind](count) for kind, count in counts.items() if count) or "nothing"


def say_what_is_named(name: str, found: Exclusion, option: str) -> None:
    """Log what the list called `name`, given to `option`, leaves out or keeps."""
    what = _MEANT[option]
    if any(found.counts.values()):
        logger.info("%s: names %s, which %s", name, found, what[sum(found.counts.values()) == 1])
    else:
        logger.warning("%s: names nothing, so nothing %s", name, what[1])


def _listed_in_lines(path: str) -> Exclusion:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    # Not `splitlines`: addresses may have the rarer line breaks in them, and editors do not count them.
    return parse_exclusion(re.split(r"\r\n|\r|\n", text), path)


def _unreadable(path: str, error: Exception) -> BadFile:
    return BadFile(
        path,
        found=f"no readable text ({error})",
        expected="UTF-8 with one sample id, URL, host or hash a line",
        way_out="Save it as plain text in UTF-8, or name a Parquet file.",
    )


def parse_exclusion(lines: Iterable[str], name: str = "exclude") -> Exclusion:
    """Sort the lines of an exclusion list by what they are.

    Args:
        lines: without their ends.
        name: of the file, for messages.

    Raises:
        BadFile: a line has none of the known forms.
    """
    found: list[ExclusionEntry] = []
    is_first, column, with_comma = True, -1, 0
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line[0] == "#":
            continue
        if is_first and (headed := _column_in(line)) is not None:
            column, is_first = headed, False
            continue
        if column < 0 and _THOUSANDS.fullmatch(line):
            raise _refused(f"{name}:{number}", line)
        field = _first_field(line, column == 0) if column < 1 else _nth_field(line, column)
        if (entry := entry_of(field)) is None:
            raise _refused(f"{name}:{number}", line)
        found.append(entry)
        with_comma += column < 1 and entry.kind == "urls" and "," in field and line[0] not in "\"'"
        is_first = False
    if with_comma:
        logger.info("%s: %d URLs have a comma and no quotes: it is taken as a part of them", name, with_comma)
    return exclusion_named(name, found)


def exclusion_of(values: Iterable[Any], option: str = "exclude") -> Exclusion:
    """Sort ids, URLs, hosts and hashes that were given as values; they mean what the same lines in a file mean.

    Raises:
        OptionError: a value is none of these. There are no comments, headers or further columns here.
    """
    return _of_texts(tuple(map(str, values)), option)


@functools.lru_cache(maxsize=4)
def _of_texts(texts: tuple[str, ...], option: str) -> Exclusion:
    entries = [(text, entry_of(text.strip())) for text in texts]
    for number, (text, entry) in enumerate(entries):
        if entry is None:
            raise OptionError(f"{option}[{number}]={as_written(text)}: expected {_EXPECTED}")
    found = exclusion_named(option, [entry for _, entry in entries if entry is not None])
    say_what_is_named(option, found, option)
    return found


def exclusion_named(name: str, entries: Iterable[ExclusionEntry]) -> Exclusion:
    """Make the list called `name` of its entries."""
    found: dict[str, set[Any]] = {"sample_ids": set(), "urls": set(), "hosts": set(), "sha256s": set(), "md5s": set()}
    for entry in entries:
        found[entry.kind].add(entry.value)
    ids = np.array(sorted(found.pop("sample_ids")), np.int64)
    return Exclusion(name, ids, **{kind: frozenset(values) for kind, values in found.items()})


def _column_in(header: str) -> int | None:
    """Return which field of a CSV file's header is that of the entries, -1 if it is the only one; None if none is."""
    first = _first_field(header, is_csv=True).casefold()
    if first in HEADERS:
        return 0 if "," in header else -1
    if entry_of(_first_field(header, is_csv=False)) is not None:
        return None
    names = [name.strip().casefold() for name in next(csv.reader([header]))]
    return next((names.index(name) for name in HEADERS if name in names), None) if len(names) > 1 else None


def _nth_field(line: str, number: int) -> str:
    fields = next(csv.reader([line]))
    return fields[number].strip() if number < len(fields) else ""


def _first_field(line: str, is_csv: bool) -> str:
    if line[0] in "\"'":
        quoted = _QUOTED.fullmatch(line)
        return quoted["inside"].replace(line[0] * 2, line[0]).strip() if quoted else line
    text = _COMMENT.split(line, maxsplit=1)[0].rstrip()
    first = text.partition(",")[0].rstrip()
    return text if "://" in first and not is_csv else first


def entry_of(text: str) -> ExclusionEntry | None:
    """Tell what an entry is; None if it is none of the known forms."""
    if number := _ID.match(text):
        value = int(number[0])
        return ExclusionEntry("sample_ids", value) if -(1 << 63) <= value < 1 << 63 else None
    if _HASH.fullmatch(text):
        return ExclusionEntry("sha256s" if len(text) == 64 else "md5s", text.lower())
    if "://" in text:
        return ExclusionEntry("urls", canonical_url(text)) if _URL.fullmatch(text) else None
    host = _host_entry(text)
    return ExclusionEntry("hosts", host) if host else None


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


Ids = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False, repr=False)
class Exclusion:
    """The entries of one exclusion list. Two are equal if they name the same; hashable, picklable.

    Attributes:
        name: where it was read from.
        sample_ids: int64[n], sorted, unique.
        urls: as `urls.canonical_url`.
        hosts: as `urls.one_spelling`, with ":port" if only that port is meant; each stands for its subdomains too, and
            after "*." for the subdomains alone.
        sha256s: of pictures, 64 hexadecimal digits in lower case.
        md5s: of pictures, 32 hexadecimal digits in lower case.
    """

    name: str = ""
    sample_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    urls: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    sha256s: frozenset[str] = frozenset()
    md5s: frozenset[str] = frozenset()

    @property
    def counts(self) -> dict[str, int]:
        """How many different entries there are of each kind: ids, urls, hosts, hashes."""
        hashes = len(self.sha256s) + len(self.md5s)
        return {"ids": len(self.sample_ids), "urls": len(self.urls), "hosts": len(self.hosts), "hashes": hashes}

    @cached_property
    def digest(self) -> str:
        """A hash that is equal for lists that name the same things, in whatever order."""
        entries = [*map(str, self.sample_ids.tolist()), *self.urls, *self.hosts, *self.sha256s, *self.md5s]
        return hashlib.sha256("\n".join(sorted(entries)).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def has_hashes(self) -> bool:
        """Whether pictures are named by their bytes, which are not known before they are there."""
        return bool(self.sha256s or self.md5s)

    def mask(self, table: pa.Table) -> Mask:
        """Tell, bool[n], which rows of `table` are named by their id, address or host.

        Args:
            table: has `sample_id` int64 and, for addresses and hosts, `url` string.
        """
        named = self._names_ids(table["sample_id"])
        if (self.urls or self.hosts) and "url" in table.column_names:
            named |= self._names_addresses(table["url"].combine_chunks())
        return named

    def names_picture(self, data: bytes, sha256s: Iterable[str]) -> bool:
        """Tell whether a picture is named by a hash.

        Args:
            data: its bytes; hashed only if the list has MD5s.
            sha256s: those that are known of the picture.
        """
        if not self.sha256s.isdisjoint(sha256s):
            return True
        return bool(self.md5s) and hashlib.md5(data, usedforsecurity=False).hexdigest() in self.md5s

    def names_row(self, sample_id: int | None, url: str | None) -> bool:
        """Tell whether a row is named by its id, address or host."""
        row = pa.table({"sample_id": pa.array([sample_id], pa.int64()), "url": pa.array([url], pa.string())})
        return bool(self.mask(row)[0])

    def names_address(self, url: str) -> bool:
        """Tell whether the address is named, or its host, or a domain above it."""
        return canonical_url(url) in self.urls or self._names_host(*place_of(url))

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Exclusion) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __deepcopy__(self, _: object) -> Exclusion:
        return self  # datasets copies streams when it interleaves them; nothing in here ever changes

    def __repr__(self) -> str:
        return f"Exclusion({self.name!r}, {self})"

    def __str__(self) -> str:
        return in_words(self.counts)

    @cached_property
    def _forms(self) -> frozenset[tuple[str, bool]]:
        """The forms in which hosts are listed: ("*." or nothing before them, whether a port behind them)."""
        return frozenset(("*." if host[0] == "*" else "", ":" in host.rpartition("]")[2]) for host in self.hosts)

    def _names_ids(self, column: pa.ChunkedArray) -> Mask:
        if not len(self.sample_ids):
            return np.zeros(len(column), bool)
        values = pc.fill_null(column, 0).to_numpy()
        at = np.searchsorted(self.sample_ids, values).clip(max=len(self.sample_ids) - 1)
        return np.asarray((self.sample_ids[at] == values) & pc.is_valid(column).to_numpy())

    def _names_addresses(self, urls: pa.Array) -> Mask:
        names_url = self.urls.__contains__ if self.urls else None
        return addresses_named(urls, names_url, self._names_host if self.hosts else None, self.names_address)

    def _names_host(self, host: str, port: str) -> bool:
        return any(
            (is_above or not star) and f"{star}{domain}{f':{port}' if has_port else ''}" in self.hosts
            for domain, is_above in domains_of(host)
            for star, has_port in self._forms
        )
