"""Reach what the tables of a DATA_DIR do not hold: pictures in tars, copies, exports and caches.

Each is a function of its own, called in the order in which `remove` needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from laion_face_builder.download import taken_down
from laion_face_builder.download.adopted_passes import forget_adopted
from laion_face_builder.errors import NotPrepared
from laion_face_builder.fetch.cache import forget
from laion_face_builder.files import digest, locked, read_fingerprint
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.removals import Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.publish.manifest import MANIFEST
from laion_face_builder.publish.targets import PublishedPlace, is_folder
from laion_face_builder.removal.arrow_caches import remove_from_arrow_caches
from laion_face_builder.removal.exported import remove_from_export
from laion_face_builder.removal.published_copy import TargetRequest, free_staging, remove_from_target
from laion_face_builder.removal.removal_request import Counts, RemovalRequest, TakenDown
from laion_face_builder.shown import short
from laion_face_builder.sources.hub_cache import cached_copy


def take_pictures_out(data: DataDir, part: int, gone: Mask, removed: Removed, *, is_index_here: bool = True) -> Counts:
    """Take rows of a part out of all that was downloaded of it, before they leave the index.

    Pictures in folders of other people stay where they are: a warning names the files.

    Args:
        gone: bool[n], see `taken_down.take_pictures_out`.

    Raises:
        StateConflict: the pictures are of another index; DownloadError: they are being downloaded.
        DiskError: the disk is full, or read-only.
    """
    taken = taken_down.take_pictures_out(data, part, gone, is_index_here=is_index_here)
    counts = Counts({"pictures": taken.pictures, "pictures_bytes": taken.bytes, "tars rewritten": taken.tars})
    return counts + _forgotten(data, part, gone, removed) if is_index_here else counts


def _forgotten(data: DataDir, part: int, gone: Mask, removed: Removed) -> Counts:
    adopted = forget_adopted(data, {part: gone}, removed)
    if adopted.held:
        logger.warning(
            "part %d: %d pictures are in folders that are not ours, and are left as they are: %s",
            part,
            adopted.held.total(),
            short(", ".join(sorted(adopted.held)), 500),
        )
    return Counts({"samples of adopted folders": adopted.samples})


def forget_adopted_samples(data: DataDir) -> Counts:
    """Forget samples of adopted folders by what is known without an index, once all ids that are named are noted.

    Raises:
        DiskError: the disk is full, or read-only.
    """
    return Counts({"samples of adopted folders": forget_adopted(data, {}, Removals.of(data).removed).samples})


def forget_fetched(request: RemovalRequest, removed: Removed, urls: Iterable[str] = ()) -> Counts:
    """Remove pictures that came from these addresses from the picture cache, and those that are named by their bytes.

    Raises:
        OptionError: there is no cache; DiskError: it cannot be read, or a picture not be removed.
    """
    if request.cache_images is None:
        return Counts()
    return Counts({"cached pictures": forget(request.cache_images, removed, urls)})


def note_pictures(data: DataDir) -> None:
    """Note which pictures the parts have, by the digests of their sidecars; to be called before and after a removal.

    What was published or exported of them before can then be told to be as good as what would be made now.
    """
    with locked(data.removed):
        before = removals = Removals.of(data)
        for part in ALL_PARTS:
            if (sidecar := read_fingerprint(data.sidecar(part))) is not None:
                removals = removals.with_pictures(part, digest(sidecar))
        if removals != before:
            removals.write(data)


def removed_there(request: RemovalRequest) -> Removed:
    """Read what was taken down from the published copy that the request names; nothing if it names none.

    Raises:
        NotPrepared: nothing was published there; BadFile: its manifest is none of ours.
        SourceError: the Hub does not answer, or has no such dataset.
    """
    if request.from_published is None:
        return Removed()
    name, _, revision = request.from_published.partition("@")
    if is_folder(request.from_published):
        name, revision = request.from_published, ""
    place = PublishedPlace.at(name, revision or None, request.token)
    place.require()
    manifest = place.manifest()
    if manifest is None:
        raise NotPrepared(f"{place.name}: nothing was published there, it has no {MANIFEST}")
    return manifest.removals.removed


def take_out_of_copies(request: RemovalRequest, removals: Removals) -> Iterator[TakenDown]:
    """Take what was removed out of Arrow caches, exports and published copies, once DATA_DIR has none of it.

    Raises:
        NotPrepared: there is no export, or nothing was published; BadFile, DiskError: it cannot be read, or written.
        SourceError, PublishError: the Hub does not answer, or refuses.
    """
    if freed := free_staging(request.data):
        yield TakenDown("publish", Counts(sources_bytes=freed))
    for cache in remove_from_arrow_caches(request.cache_dir, removals.removed):
        yield TakenDown(str(cache.folder), Counts({"cached rows": cache.rows, "cache_bytes": cache.size}))
    for out in request.exports:
        exported = remove_from_export(out, request.data, removals)
        counts = Counts({"samples": exported.samples, "shards rewritten": exported.rewritten})
        yield TakenDown(str(out), counts + Counts({"shards to be exported again": exported.anew}))
    for target in request.targets:
        yield _out_of_target(request, target, removals)


def _out_of_target(request: RemovalRequest, target: str, removals: Removals) -> TakenDown:
    asked = TargetRequest(target, removals, request.revision, request.token, request.squash_history)
    if is_folder(target):  # It has no branches, no history and no tokens.
        asked = TargetRequest(target, removals)
    result = remove_from_target(asked)
    for note in result.history.notes if result.history is not None else ():
        logger.warning("%s", note)
    if not is_folder(target) and (cached := cached_copy(target)) is not None:
        logger.warning(
            "%s: the Hub's cache on this machine has files of %s, maybe those of before: `hf cache rm dataset/%s` "
            "deletes them",
            cached,
            target,
            target,
        )
    freed = 0 if result.history is None else result.history.freed
    counts = Counts({"published rows": result.rows, "files rewritten": len(result.rewritten)})
    return TakenDown(target, counts + Counts({"files deleted from the Hub's storage": freed}))
