"""Where a part's rows and pictures come from: what is there, what has to be made first, and what is open now.

What is prepared is used as it is, and nobody upstream is asked; `laion-face prepare` is what looks for newer sources.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from laion_face_builder.download.part import DownloadOptions, PartResult, download_part
from laion_face_builder.download.tars import PartPictures
from laion_face_builder.errors import NotPrepared, StateConflict
from laion_face_builder.files import digest, human_size, read_fingerprint
from laion_face_builder.index.prepare import prepare, prepare_part
from laion_face_builder.index.published import PublishedPart, find_published
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.options import IMAGE_MODES, Options

#: About what one picture takes of the disk, and how many rows a part of the real set has (50 million over 32 parts).
BYTES_A_PICTURE = 60_000
ROWS_A_PART = 1_560_000


@dataclass(frozen=True)
class OpenPart:
    """A part that can be read.

    Attributes:
        index: its rows.
        pictures: those on disk; None if there are none to be used.
        is_fetched: whether pictures are to be had from the web instead.
    """

    index: IndexPart
    pictures: PartPictures | None
    is_fetched: bool


def is_prepared(options: Options, part: int) -> bool:
    """Whether the part's rows can be read without anything being made."""
    return options.index is not None or options.data.index(part).exists()


@contextmanager
def open_part(options: Options, part: int) -> Iterator[OpenPart]:
    """The part, prepared first if need be; its files are open until the block ends.

    With images="auto" the pictures are those on disk if the part was downloaded, else those of the web.
    """
    if not is_prepared(options, part):
        prepare_part(options.data, part, options.upstream)
    with _index_of(options, part) as index:
        if options.images == "download":
            _download(options, part, index)
        with _pictures_of(options, part, index) or nullcontext() as pictures:
            yield OpenPart(index, pictures, is_fetched=pictures is None and options.images != "none")


def require_prepared(options: Options) -> None:
    """For what reads, or downloads, but does not prepare.

    Raises:
        NotPrepared: a part has no index.
    """
    missing = [part for part in options.parts if not is_prepared(options, part)]
    if missing:
        raise NotPrepared(
            f"{options.data.root}: no index of parts {_listed(missing)}. Run `laion-face prepare {options.config} "
            f"--parts {_listed(missing)} --data-dir {options.data.root}` first."
        )


def of_those_prepared(options: Options) -> Options:
    """The options for the parts that are prepared, of those chosen: what there is to be looked at.

    Raises:
        NotPrepared: none is.
    """
    there = tuple(part for part in options.parts if is_prepared(options, part))
    if not there:
        require_prepared(options)
    return replace(options, parts=there)


def make_ready(options: Options) -> None:
    """Makes what is missing before all parts can be read: indexes, pictures if images="download", sidecars.

    Raises:
        NotPrepared: pictures are missing; says what downloading them takes.
    """
    missing = [part for part in options.parts if not is_prepared(options, part)]
    _require_pictures(options)
    if missing:
        prepare(options.data, missing, options.upstream)
    for part in options.parts:
        with open_part(options, part):
            pass


def identity(options: Options, part: int) -> dict[str, Any]:
    """Digests of what is read of a part, so that changed content never comes back from a cache."""
    with open_part(options, part) as opened:
        pictures = opened.pictures
        return {"index": digest(opened.index.fingerprint), "pictures": pictures and digest(pictures.fingerprint)}


def download_options(options: Options, **how: Any) -> DownloadOptions:
    """How to download, by the options; `how` are further fields of DownloadOptions, None meaning its default."""
    given = {name: value for name, value in how.items() if value is not None}
    size = options.resizing
    return DownloadOptions(
        **vars(options.transfer),
        resize_mode=size.mode,
        image_size=size.size,
        resize_only_if_bigger=size.only_if_bigger,
        blur_faces=options.blur_faces,
        **given,
    )


def download(options: Options, how: DownloadOptions, retry_failed: int = 0) -> Iterator[tuple[int, PartResult]]:
    """Downloads the pictures of each part that is prepared; gives its number and result.

    Raises:
        NotPrepared: a part has no index.
    """
    require_prepared(options)
    for part in options.parts:
        with _index_of(options, part) as index:
            yield part, download_part(options.data, part, how, options.filters, retry_failed, index=index)


def _download(options: Options, part: int, index: IndexPart) -> None:
    download_part(options.data, part, download_options(options), options.filters, index=index)


def _index_of(options: Options, part: int) -> IndexPart:
    if options.index is None:
        return IndexPart.open(options.data.index(part))
    token = options.upstream.token
    return IndexPart.open(_published(options.index, part, token), token)


@functools.lru_cache(maxsize=64)
def _published(place: str, part: int, token: str | None) -> PublishedPart:
    """Listing a Hub repo takes a request or more; shards of a part come here one after the other."""
    return find_published(place, part, token)


def _pictures_of(options: Options, part: int, index: IndexPart) -> PartPictures | None:
    if options.images in ("none", "fetch"):
        return None
    if options.images not in IMAGE_MODES:
        how: dict[str, Any] = {"max_pixels": options.transfer.max_pixels, "resizing": options.resizing}
        return PartPictures.adopt(options.images, options.data, part, index, **how)
    if read_fingerprint(options.data.sidecar(part)) is None:
        _refuse_to_resize(options, part)
        return None
    opened = PartPictures.open(options.data, part, index)
    _require_as_wanted(options, opened)
    return opened


def _refuse_to_resize(options: Options, part: int) -> None:
    if options.resizing:
        raise NotPrepared(
            f"{options.data.sidecar(part)}: there is none, and pictures that are fetched are not resized: "
            f'{options.resizing} goes with `laion-face download` or images="download".'
        )


def _require_as_wanted(options: Options, stored: PartPictures) -> None:
    """Whether what was downloaded is what the options ask for; no resizing asked for means as they are."""
    if options.resizing and options.resizing != stored.resizing:
        raise StateConflict(
            f"{stored.sidecar}: its pictures were downloaded with {stored.resizing}, not with {options.resizing}. "
            "Leave these options out, or use another data_dir."
        )
    if stored.are_blurred and not options.blur_faces:
        raise StateConflict(
            f"{stored.sidecar}: the faces in its pictures were blurred. Say blur_faces=True, so that each example says "
            "so, or use another data_dir."
        )


def _require_pictures(options: Options) -> None:
    """Before hours of preparing, not after them."""
    missing = [part for part in options.parts if not options.data.sidecar(part).exists()]
    if options.images == "auto" and missing:
        raise _no_pictures(options, missing)


def _no_pictures(options: Options, parts: list[int]) -> NotPrepared:
    needed = 2 * BYTES_A_PICTURE * ROWS_A_PART * len(parts)
    return NotPrepared(
        f"{options.data.root}: no pictures of parts {_listed(parts)}. Give images='download' to download them (about "
        f"{human_size(needed)}: once as tars and, not streaming, once more as Arrow files; {_free(options.data.root)} "
        f"free), streaming=True or images='fetch' to fetch them from the web as they are read, images=FOLDER to use an "
        f"img2dataset folder that you have, or images='none' to do without."
    )


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return human_size(shutil.disk_usage(folder).free)


def _listed(parts: list[int]) -> str:
    return ",".join(map(str, parts))
