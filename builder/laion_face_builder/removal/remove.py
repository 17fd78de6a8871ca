"""Take down ids, addresses, hosts and pictures wherever they are, and remember that: `laion-face remove`.

It is noted as begun before the first file is touched, and as done once DATA_DIR has none of it; until then nothing
else works there. Copies elsewhere follow. The same command goes on with what was killed, or could not be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TypeVar

import numpy as np

from laion_face_builder import progress
from laion_face_builder.download.adopted_passes import nobody_adopts
from laion_face_builder.download.taken_down import nobody_downloads
from laion_face_builder.errors import OptionError
from laion_face_builder.files import locked, was_locked
from laion_face_builder.index.exclusion import Exclusion
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.index.removed import Names, Removed
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.removal import elsewhere
from laion_face_builder.removal.half_written import remove_half_written
from laion_face_builder.removal.newer_metadata import NewerMetadata, rows_gone_since
from laion_face_builder.removal.removal_request import Counts, RemovalRequest, TakenDown
from laion_face_builder.removal.rows import (
    NamedRows,
    free_sources,
    named_rows,
    names_of,
    note_rows,
    parts_with_rows,
    take_rows_out,
)

T = TypeVar("T")


def remove(request: RemovalRequest) -> list[TakenDown]:
    """Take down what is listed; return what was taken out, by place.

    Without a list it goes on with what was asked for before: what is not finished in DATA_DIR, and further places.

    Raises:
        OptionError: nothing is named, now or before; or DATA_DIR is an address.
        StateConflict: the new metadata lacks too much; or an earlier version downloaded pictures, and not all of them.
        NotPrepared, BadFile, DiskError, SourceError, PublishError: a place cannot be read, or written.
    """
    data = request.data
    require_folder(data)
    with locked(data.staging, f"waiting for another run that works in {data.root}"):
        request, there = with_gone_since(request), elsewhere.removed_there(request)
        with locked(data.removed):
            before = Removals.of(data)
            removals = begun(before, request, there)
            if not removals.done:
                logger.info("%s: nothing was taken down there", request.from_published)
                return []
            if removals is not before:
                removals.write(data)
        elsewhere.note_pictures(data)
        # What a copy has taken down is known by its hashes alone.
        taken = _from_data(request, names_of(None if there else request.listed, before, removals.removed))
        elsewhere.note_pictures(data)
        with locked(data.removed):
            removals = Removals.of(data).finished()
            if removals != Removals.of(data):
                removals.write(data)
    logger.info("%s: has none of it any more, and remembers it: %s", data.removed, removals.removed)
    if not parts_with_rows(data):
        logger.warning("%s: nothing is prepared there; is it the right --data-dir?", data.root)
    return [*taken, *elsewhere.take_out_of_copies(request, removals)]


def begun(before: Removals, request: RemovalRequest, there: Removed) -> Removals:
    """Return the removals with that of the request, if it names anything new.

    Args:
        there: what was taken down from the published copy that it names.

    Raises:
        OptionError: nothing is named, now or before.
    """
    entries = there if request.listed is None else Removed.of(request.listed) | there
    if not entries and not before.done and request.from_published is None:
        raise OptionError(
            f"{request.data.removed}: nothing was taken down before, and nothing is named. Name a list of sample ids, "
            "URLs, hosts or SHA-256s, one a line"
        )
    if not entries - before.removed:
        return before
    today = datetime.now(timezone.utc).date().isoformat()
    return before.begun(Removal(today, request.reason, entries))


def with_gone_since(request: RemovalRequest) -> RemovalRequest:
    """Return the request with the ids of rows that the newer metadata no longer has on its list.

    Raises:
        As `rows_gone_since`.
    """
    if request.from_metadata is None:
        return request
    ids = rows_gone_since(request.data, NewerMetadata(request.from_metadata, request.most_gone, request.token))
    listed = request.listed or Exclusion()
    return replace(request, listed=replace(listed, sample_ids=np.union1d(listed.sample_ids, ids)))


def _from_data(request: RemovalRequest, names: Names) -> list[TakenDown]:
    data, taken = request.data, list[TakenDown]()
    if data.ids(0).parent.exists():
        with locked(data.ids(0).with_name("id-list")):
            pass  # Whoever was writing ids is done, and whoever comes next knows.
    parts = _parts(data)
    named = dict(_each(data, parts, "look through", partial(_found, request, names)))
    note_rows(data, named)
    removed = Removals.of(data).removed

    def take_out(part: int) -> Counts:
        forgotten = elsewhere.forget_fetched(request, Removed(), named[part].urls)
        take_pictures_out = partial(elsewhere.take_pictures_out, removed=removed)
        return take_rows_out(data, part, named[part], take_pictures_out) + forgotten

    taken += [TakenDown(f"part {part}", counts) for part, counts in _each(data, parts, "remove", take_out)]
    if Removals.of(data).pending is not None and (known := elsewhere.forget_adopted_samples(data)):
        taken.append(TakenDown("adopted", known))
    if (pictures := Removals.of(data).removed.pictures) and request.cache_images is not None:
        taken.append(TakenDown(str(request.cache_images), elsewhere.forget_fetched(request, pictures)))
    freed = Counts()
    if Removals.of(data).pending is not None:  # Whether they have any of it could not be told without reading them all.
        freed["sources_bytes"] = free_sources(data)
        remove_half_written(data)
    return [*taken, TakenDown(f"{data.sources.name}, {data.staging.name}", freed)]


def _parts(data: DataDir) -> list[int]:
    """List the parts that have any rows, also those whose first file is being made: that is waited for."""
    for part in sorted({*ALL_PARTS}.difference(parts_with_rows(data))):
        for first in (data.index(part), data.images_fingerprint(part)):
            if was_locked(first):
                with locked(first):
                    pass
    for lock in sorted(data.joined("").glob(".*.lock")):
        with locked(lock.with_name(lock.name[1:].removesuffix(".lock"))):
            pass
    with nobody_adopts(data):
        return parts_with_rows(data)


def _found(request: RemovalRequest, names: Names, part: int) -> NamedRows:
    with nobody_downloads(request.data, part), nobody_adopts(request.data):
        found = named_rows(request.data, part, names, Removals.of(request.data).removed)
    return found if request.cache_images is not None else replace(found, urls=())


def _each(data: DataDir, parts: list[int], what: str, work: Callable[[int], T]) -> Iterator[tuple[int, T]]:
    """Do something to one part after the other, each under its lock."""
    with progress.bar(what, len(parts)) as bar:
        for number, part in enumerate(parts, 1):
            with progress.nth("part", number, len(parts)), locked(data.index(part)):
                yield part, work(part)
            bar.update()


def require_folder(data: DataDir) -> None:
    """Refuse a DATA_DIR at an address.

    Raises:
        OptionError: it is one.
    """
    if data.address is not None:
        raise OptionError(
            f"data_dir={data.where}: rows are taken out of a folder of this machine only. Copy it to one, remove them "
            "there, and put that in the place of what is at the address"
        )
