"""Find the rows of a part in a published index: by the names of its files, or by their column `part`.

Ours are called part-000NN.parquet. What other programs save has names of their own (train-00000-of-00002.parquet,
data_0.parquet), and numbers in them that say nothing; there the rows whose column `part` is N are part N.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from laion_face_builder.errors import BadFile, SourceError, SourceNotFound
from laion_face_builder.index.index_file import IndexFile, Known, holds_only, may_hold
from laion_face_builder.shown import ShownFields, bare, ranges, shown
from laion_face_builder.sources.fsspec_folder import list_fsspec
from laion_face_builder.sources.http_folder import linked
from laion_face_builder.sources.hub import HubRepo, Token
from laion_face_builder.sources.sources import hub_id
from laion_face_builder.sources.url import check_address, joined_url
from laion_face_builder.values import absolute

#: As `datasets` names the files of a split; newer and older versions put a hash behind it.
_SPLIT = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})(-[0-9a-f]+)?\.parquet")


@dataclass(frozen=True, repr=False)
class PublishedPart(ShownFields):
    """A part of a published index: its rows are in these files, in this order."""

    part: int
    files: tuple[str, ...]


_CALLED = re.compile(r"part-(\d{5})(?:-.*)?\.parquet")


def find_published(place: str, part: int, token: Token = None) -> PublishedPart:
    """Find the files of a part in a published index, for `IndexPart.open`.

    Footers are read, and of files with several parts the column `part`.

    Args:
        place: a local folder (a DATA_DIR too), a Hub dataset "owner/name" or "owner/name@revision", an fsspec address
            of a folder, or a Parquet file; also folders below it. Files without the index's columns are passed over.

    Raises:
        SourceNotFound: no such part there, or no such place; SourceError: more than one set of files has it, a file of
            a set is missing, or no answer.
        BadFile: the one file that is called as ours are is no index.
    """
    files, where = sorted(_published_files(place, token), key=_natural), shown(place)
    name = re.compile(rf"part-{part:05d}(-.*)?\.parquet")
    named = [file for file in files if name.fullmatch(_name(file))]
    if len(named) == 1:
        found = _known_of(named[0], token)
        if found is not None and holds_only(found, part):
            return PublishedPart(part, tuple(named))
        if found is None and _name(named[0]) == f"part-{part:05d}.parquet":
            _require_index(named[0], token)
    known = {file: found for file in files if (found := _known_of(file, token)) is not None}
    holding = [file for file, found in known.items() if may_hold(found, part) and _has_rows(file, found, part, token)]
    if not holding:
        raise SourceNotFound(
            f"{where}: found {_listed(files)}{_in_them(files, known, token)}; expected one part-{part:05d}.parquet, or "
            f"files whose column part has {part}. Ask with parts= for those that are there, or name another published "
            "index with index=."
        )
    _refuse_several(where, part, holding)
    _refuse_missing(where, part, files, holding[0])
    _refuse_copies(where, part, holding, token)
    return PublishedPart(part, tuple(holding))


def not_named(place: str, parts: Iterable[int], token: Token = None) -> list[int]:
    """Give those of the parts that no file of a published index is called by: to be looked for in the files.

    Raises:
        SourceNotFound: no such place; SourceError: no answer.
    """
    names = [_name(file) for file in _published_files(place, token)]
    called = {int(found[1]) for name in names if (found := _CALLED.fullmatch(name))}
    return [part for part in parts if part not in called]


def _in_them(files: Sequence[str], known: dict[str, list[Known]], token: Token) -> str:
    """Describe the parts or rows in the files, as far as they are known without reading the files."""
    there = sorted({one[0] for found in known.values() for one in found if one is not None and one[0] == one[1]})
    if there:
        return f" with parts {ranges(there, ', ')}"
    if known or not files:
        return ""
    opened = IndexFile(files[0], token)
    try:
        return f" of {opened.num_rows} rows"
    except BadFile as error:
        return f" ({error.found})"
    finally:
        opened.close()


def _published_files(place: str, token: Token) -> list[str]:
    folder = absolute(place)
    if "://" not in place and folder.is_dir():
        # A DATA_DIR has other files of the same names beside its index.
        folder = folder / "index" if (folder / "index").is_dir() else folder
        return list(map(str, folder.rglob("*.parquet")))
    if "://" in place:
        check_address(place, "index")
    if bare(place).endswith(".parquet") and ("://" in place or folder.is_file()):
        return [place if "://" in place else str(folder)]
    if place.startswith(("http://", "https://")) and "?" in place:
        # A signature or a key in the query, which no link of the folder's page has.
        return [joined_url(place, name) for name in linked(place) if name.endswith(".parquet")]
    if "://" in place:
        return [file for file in list_fsspec(place, token) if file.endswith(".parquet")]
    name, _, revision = place.partition("@")
    repo = HubRepo(hub_id(name, "index"), revision or None, token)
    return [f"hf://datasets/{name}@{repo.commit}/{file}" for file in repo.files if file.endswith(".parquet")]


def _known_of(file: str, token: Token) -> list[Known] | None:
    """Return what the statistics of each row group say of the column `part`; None if the file is no index."""
    if "://" in file:
        return _looked_up(file, token, 0, 0)
    status = os.stat(file)
    return _looked_up(file, token, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _looked_up(file: str, token: Token, _size: int, _modified: int) -> list[Known] | None:
    """Read a file's footer; remembered, since every part of a place asks for the same footers."""
    opened = IndexFile(file, token)
    try:
        return [one for one, (start, stop) in zip(opened.known, opened.groups, strict=True) if start < stop]
    except BadFile:
        return None
    finally:
        opened.close()


def _require_index(file: str, token: Token) -> None:
    """Raise BadFile if the file is no index."""
    opened = IndexFile(file, token)
    try:
        _ = opened.known
    finally:
        opened.close()


def _has_rows(file: str, known: Sequence[Known], part: int, token: Token) -> bool:
    if (part, part) in known:
        return True
    opened = IndexFile(file, token)
    try:
        return len(opened.spans(part)) > 0
    finally:
        opened.close()


def _refuse_several(place: str, part: int, holding: Sequence[str]) -> None:
    """Raise SourceError if several sets of files have the part: then every row would come twice."""
    sets: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in holding:
        split = _SPLIT.fullmatch(_name(file))
        sets[posixpath.dirname(_slashed(file)), f"{split['split']}-of-{split['of']}" if split else ""].append(file)
    if len(sets) > 1:
        raise SourceError(
            f"{place}: {len(sets)} sets of files have part {part}: {_listed([files[0] for files in sets.values()])}; "
            "expected one. Name the folder or file that holds only one of them with index=, or move the others away."
        )


def _refuse_missing(place: str, part: int, files: Sequence[str], one: str) -> None:
    """Raise SourceError if a file of the split is missing: the rows would silently be too few."""
    mine = _SPLIT.fullmatch(_name(one))
    if mine is None:
        return
    beside = [file for file in files if posixpath.dirname(_slashed(file)) == posixpath.dirname(_slashed(one))]
    splits = [split for file in beside if (split := _SPLIT.fullmatch(_name(file)))]
    there = {int(s["number"]) for s in splits if (s["split"], s["of"]) == (mine["split"], mine["of"])}
    missing = sorted(set(range(int(mine["of"]))) - there)
    if missing:
        names = [f"{mine['split']}-{number:05d}-of-{mine['of']}.parquet" for number in missing]
        raise SourceError(
            f"{place}: part {part} is in a set of {int(mine['of'])} files of which {_listed(names)} is missing. "
            "Copy the whole set, or name another index with index=."
        )


def _refuse_copies(place: str, part: int, holding: Sequence[str], token: Token) -> None:
    """Raise SourceError if files of as many rows are copies of each other."""
    rows: dict[int, list[IndexFile]] = defaultdict(list)
    for address in holding if len(holding) > 1 else ():
        file = IndexFile(address, token)
        rows[file.num_rows].append(file)
        file.close()
    for files in rows.values():
        versions = [file.version() for file in files] if len(files) > 1 else []
        if len(set(versions)) < len(versions):
            raise SourceError(
                f"{place}: part {part} would have rows twice: of {_listed([file.address for file in files])} some are "
                "the same. Move the copies away."
            )


def _natural(file: str) -> list[tuple[int, str]]:
    """Return a key that sorts data_10 behind data_9, folder by folder."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", _slashed(file))]


def _name(file: str) -> str:
    return posixpath.basename(_slashed(bare(file)))


def _slashed(file: str) -> str:
    return file.replace(os.sep, "/")


def _listed(files: Sequence[str], most: int = 8) -> str:
    if not files:
        return "no files"
    return ", ".join(map(shown, files[:most])) + (f" and {len(files) - most} more" if len(files) > most else "")
