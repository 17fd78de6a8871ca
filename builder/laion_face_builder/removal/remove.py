"""Take down ids, addresses, hosts and pictures wherever they are, and remember that: `laion-face remove`.

It is noted as begun before the first file is touched, and as done once DATA_DIR has none of it; until then nothing
else works there. Copies elsewhere follow. The same command goes on with what was killed, or could not be reached.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from functools import partial

import numpy as np

from laion_face_builder import progress
from laion_face_builder.download.named_pictures import pictures_named
from laion_face_builder.errors import OptionError, StateConflict
from laion_face_builder.files import locked
from laion_face_builder.index.exclusion import Exclusion
from laion_face_builder.index.prepare_plan import has_pictures
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.removal import elsewhere
from laion_face_builder.removal.half_written import remove_half_written
from laion_face_builder.removal.newer_metadata import NewerMetadata, rows_gone_since
from laion_face_builder.removal.removal_request import Counts, RemovalRequest, TakenDown
from laion_face_builder.removal.rows import (
    NamedRows,
    Names,
    free_sources,
    named_rows,
    names_of,
    parts_with_rows,
    take_rows_out,
)


def remove(request: RemovalRequest) -> list[TakenDown]:
    """Take down what is listed; return what was taken out, by place.

    Without a list it goes on with what was asked for before: what is not finished in DATA_DIR, and further places.

    Raises:
        OptionError: nothing is named, now or before; or DATA_DIR is an address.
        StateConflict: the new metadata lacks too much; or pictures were downloaded for an index that is elsewhere.
        BadFile, DiskError, SourceError, PublishError: a place cannot be read, or written.
    """
    data = request.data
    require_folder(data)
    with locked(data.staging, f"waiting for another run that works in {data.root}"):
        request = with_gone_since(request)
        with locked(data.removed):
            before = Removals.of(data)
            removals = begun(before, request)
            require_index(data)
            if removals is not before:
                removals.write(data)
        elsewhere.note_pictures(data)
        # Of a list that is begun with, nothing has been taken out: it is matched as it is, which is quicker.
        is_first = removals is not before and before.pending is None
        taken = _from_data(request, names_of(request.listed if is_first else None, removals.removed))
        elsewhere.note_pictures(data)
        with locked(data.removed):
            removals = Removals.of(data).finished()
            if removals != Removals.of(data):
                removals.write(data)
    logger.info("%s: has none of it any more, and remembers it: %s", data.removed, removals.removed)
    return [*taken, *elsewhere.take_out_of_copies(request, removals)]


def begun(before: Removals, request: RemovalRequest) -> Removals:
    """Return the removals with that of the request, if it names anything new.

    Raises:
        OptionError: nothing is named, now or before.
    """
    entries = Removed.of(request.listed) if request.listed is not None else Removed()
    if not entries and not before.done:
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
    parts = parts_with_rows(data)
    with progress.bar("remove", len(parts)) as bar:
        for number, part in enumerate(parts, 1):
            with progress.nth("part", number, len(parts)), locked(data.index(part)):
                removed = Removals.of(data).removed
                named = look_through(data, part, names, removed)
                forgotten = elsewhere.forget_fetched(request, Removed(), named.urls)
                counts = take_rows_out(data, part, named, partial(elsewhere.take_pictures_out, removed=removed))
            taken.append(TakenDown(f"part {part}", counts + forgotten))
            bar.update()
    if (pictures := Removals.of(data).removed.pictures) and request.cache_images is not None:
        taken.append(TakenDown(str(request.cache_images), elsewhere.forget_fetched(request, pictures)))
    freed = Counts()
    if Removals.of(data).pending is not None:  # Whether they have any of it could not be told without reading them all.
        freed["sources_bytes"] = free_sources(data)
        remove_half_written(data)
    return [*taken, TakenDown(f"{data.sources.name}, {data.staging.name}", freed)]


def look_through(data: DataDir, part: int, names: Names, removed: Removed) -> NamedRows:
    """Find what is named in a part, by its rows and its pictures.

    Raises:
        BadFile: a table is damaged.
    """
    pictures = pictures_named(data, part, removed) if removed.pictures else None
    return named_rows(data, part, names, pictures)


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


def require_index(data: DataDir) -> None:
    """Refuse to go on where pictures could not be told by their addresses.

    Raises:
        StateConflict: they were downloaded for an index that lies elsewhere.
    """
    for part in ALL_PARTS:
        if has_pictures(data, part) and not data.index(part).exists():
            raise StateConflict(
                f"{data.tars(part)}: its pictures were downloaded for an index that is not in {data.root}. Copy it "
                "there first: `laion-face prepare` with the same --index"
            )
