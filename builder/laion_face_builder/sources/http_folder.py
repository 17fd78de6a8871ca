"""Find metadata in an http(s) folder: from its index page if it has one, else by trying known names.

http has no listing. Most servers of plain files give a page of links for a folder (nginx, Apache, Python's
http.server). Where there is none, the names of 2021 and those of today's release are asked for, one by one.
"""

from __future__ import annotations

import html.parser
import posixpath
import urllib.error
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from laion_face_builder.errors import GatedSource, SourceNotFound
from laion_face_builder.layout import ALL_PARTS
from laion_face_builder.shown import bare
from laion_face_builder.sources.copied_file import RemoteFile
from laion_face_builder.sources.metadata_kinds import (
    WAYS_OUT,
    ByPart,
    Place,
    Whole,
    both_kinds,
    listed,
    metadata_at,
    names_of,
    only_one,
)
from laion_face_builder.sources.retrying import retried
from laion_face_builder.sources.url import UrlFile, joined_url, look_up_url, open_url, ranged_pieces

#: The names of the release that the Hub has today (laion/relaion400m): no number in them is a part's.
TODAYS = tuple(f"part-{number:05d}-4227e361-38e7-40d5-8822-c6db46ea077c-c000.snappy.parquet" for number in range(128))
#: Files that are asked for at a time.
_AT_A_TIME = 8
#: Bytes of an index page that are read.
_MOST_PAGE = 32_000_000


def http_metadata(address: str) -> ByPart | Whole:
    """Find out what kind of metadata an http(s) folder has.

    Raises:
        SourceNotFound: no metadata, or not all files of today's release; GatedSource: the server forbids it;
        SourceError: both kinds, or no answer.
    """
    names = tuple(sorted(name for name in linked(address) if name.endswith(".parquet")))
    place = HttpPlace(address, names)
    return metadata_at(place) if names else _tried(place)


@dataclass(frozen=True)
class HttpPlace(Place):
    """An http(s) folder, and the names that its index page links to."""

    address: str = field(repr=False)
    linked: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The address, without user, password and query."""
        return bare(self.address)

    def names(self) -> Sequence[str]:
        """Return the names that the page links to."""
        return self.linked

    def file(self, name: str) -> RemoteFile:
        """Look up one file."""
        return self.files([name])[0]

    def files(self, names: Sequence[str]) -> tuple[RemoteFile, ...]:
        """Look up several files, a few asked for at a time."""
        answers = self.ask(names)
        found = [answer for answer in answers.values() if isinstance(answer, UrlFile)]
        if len(found) < len(names):
            raise self.refusal(f"{len(names) - len(found)} of {len(names)} files cannot be had", answers)
        return tuple(found)

    def ask(self, names: Iterable[str]) -> dict[str, UrlFile | int]:
        """Look up each file; in its place, the HTTP status that says why there is none."""
        names = list(names)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            answers = pool.map(look_up_url, [joined_url(self.address, name) for name in names])
            return dict(zip(names, answers, strict=True))

    def refusal(self, problem: str, answers: dict[str, UrlFile | int]) -> GatedSource | SourceNotFound:
        """Return the error for statuses in place of files."""
        failed = {name: status for name, status in answers.items() if not isinstance(status, UrlFile)}
        kind = GatedSource if {401, 403} & set(failed.values()) else SourceNotFound
        statuses = listed((f"{name}: HTTP {status}" for name, status in failed.items()), 4)
        return kind(f"{self.where}: {problem} ({statuses}). {WAYS_OUT}")


@dataclass(frozen=True)
class _TriedByPart(ByPart):
    """Files of parts in a folder without an index page: each is asked for when it is wanted."""

    place: HttpPlace

    def part(self, part: int) -> RemoteFile:
        """Look up the part's file."""
        answers = self.place.ask(names_of(part))
        found = {name: answer for name, answer in answers.items() if isinstance(answer, UrlFile)}
        if not found:
            raise self.place.refusal(f"no metadata of part {part}", answers)
        return found[only_one(part, list(found), self.where)]


def _tried(place: HttpPlace) -> ByPart | Whole:
    first = place.ask([*names_of(0), TODAYS[0]])
    of_parts = [name for name in names_of(0) if isinstance(first[name], UrlFile)]
    todays = isinstance(first[TODAYS[0]], UrlFile)
    if of_parts and todays:
        raise both_kinds(place.where, of_parts, TODAYS[:1])
    if set(first.values()) == {401}:
        raise place.refusal("no metadata to be had", first)
    if todays:
        return _todays(place)
    if of_parts or _any_found(place.ask(name for part in ALL_PARTS[1:] for name in names_of(part))):
        return _TriedByPart(place.where, place, ())
    if _any_found(place.ask(TODAYS[1:])):
        return _todays(place)
    raise place.refusal("no index page with links to Parquet files, and no file of a known name", first)


def _any_found(answers: dict[str, UrlFile | int]) -> bool:
    return any(isinstance(answer, UrlFile) for answer in answers.values())


def _todays(place: HttpPlace) -> Whole:
    answers = place.ask(TODAYS)
    files = tuple(answer for answer in answers.values() if isinstance(answer, UrlFile))
    if len(files) < len(TODAYS):
        raise place.refusal(
            f"{len(TODAYS) - len(files)} of the {len(TODAYS)} files of today's release are missing, and there is no "
            "index page that says which files are all",
            answers,
        )
    return Whole(place.where, files)


def linked(address: str) -> set[str]:
    """Give the names of the files that the folder's page links to; none if it has no such page."""
    parts = urlsplit(address)
    folder = urlunsplit(parts._replace(path=posixpath.join(parts.path or "/", ""), fragment=""))
    return retried(partial(_linked_now, folder), bare(address))


def _linked_now(folder: str) -> set[str]:
    try:
        answer = open_url(folder, {"Accept": "text/html"})
    except urllib.error.HTTPError:
        return set()
    with answer:
        if answer.headers.get_content_type() != "text/html":
            return set()
        base, page = answer.url, b""
        for _, piece in ranged_pieces(answer, 0):
            page += piece
            if len(page) > _MOST_PAGE:
                break
    links = _Links()
    links.feed(page.decode("utf-8", "replace"))
    return {name for link in links.found if (name := _name_in(base, link))}


def _name_in(folder: str, link: str) -> str:
    """Return the name of the file that a link in the folder's page leads to; "" if it leads elsewhere."""
    try:
        here, there = urlsplit(folder), urlsplit(urljoin(folder, link))
    except ValueError:  # Not an address at all.
        return ""
    parent, name = posixpath.split(there.path)
    same = (here.scheme, here.netloc, posixpath.dirname(here.path)) == (there.scheme, there.netloc, parent)
    return unquote(name) if same and "/" not in unquote(name) else ""


class _Links(html.parser.HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where an <a> leads to."""
        if tag == "a":
            self.found += [target.strip() for name, target in attrs if name == "href" and target]
