"""`laion-face verify`: find what is wrong with a DATA_DIR or a published place, a line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from laion_face_builder.errors import NotPrepared, SourceNotFound
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.destination import is_folder
from laion_face_builder.publish.destinations import destination_at
from laion_face_builder.publish.manifest import CARD, MANIFEST
from laion_face_builder.publish.place import Place
from laion_face_builder.publish.verify_data import data_problems, prepared_parts
from laion_face_builder.publish.verify_place import place_problems
from laion_face_builder.upstream.tokens import Token
from laion_face_builder.values import absolute


@dataclass(frozen=True)
class Verification:
    """What was verified, for people, and the problems, one line each, found as they are iterated."""

    about: str
    problems: Iterator[str]


def verify(place: str, *, deep: bool = False, revision: str | None = None, token: Token = None) -> Verification:
    """Verify a DATA_DIR, a published folder or a Hub dataset "owner/name", whichever `place` is.

    Args:
        deep: hash every picture and read every page, rather than samples and footers.

    Raises:
        NotPrepared: it is none of these; SourceError: the Hub does not answer, or has no such dataset.
    """
    root = absolute(place)
    if root.is_file():
        raise NotPrepared(f"{place}: it is a file, expected a DATA_DIR, a published folder or a Hub dataset owner/name")
    if is_folder(place):
        if not root.is_dir():
            raise NotPrepared(f"{place}: there is no such folder")
        data = DataDir.at(root)
        if not (root / MANIFEST).exists() and (prepared_parts(data) or not (root / CARD).exists()):
            return _of_data(data, deep)
    destination = destination_at(place, private=False, revision=revision, token=token)
    found = Place.at(place, revision, token)
    try:
        found.require()
    except SourceNotFound as error:
        folder = "" if revision else f". Nor is there a folder {place}"
        raise SourceNotFound(f"{error}{folder}") from error
    return Verification(f"{found.name}: published", place_problems(found, destination, deep))


def _of_data(data: DataDir, deep: bool) -> Verification:
    parts = prepared_parts(data)
    if not parts:
        raise NotPrepared(f"{data.root}: nothing is prepared or published there. Run `laion-face prepare` first.")
    return Verification(f"{data.root}: parts {', '.join(map(str, parts))}", data_problems(data, deep))
