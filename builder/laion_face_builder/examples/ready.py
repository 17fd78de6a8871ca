"""Make what is missing when a dataset is loaded, so that iterating only reads: indexes, pictures, sidecars of folders.

What is missing is seen from the names of files. If nothing is, no request goes upstream and no module that prepares or
downloads is imported, so that the first example of a stream comes soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from laion_face_builder.download.adopt import part_folder
from laion_face_builder.errors import NotPrepared
from laion_face_builder.examples import beside, parts
from laion_face_builder.examples.parts import command, listed
from laion_face_builder.examples.placeholders import with_placeholders
from laion_face_builder.files import disk_free, human_size
from laion_face_builder.log import logger
from laion_face_builder.options import IMAGE_MODES, Options


def make_ready(options: Options, *, streaming: bool, is_joined: bool = False) -> tuple[Options, parts.Adopted]:
    """Make what is missing before the parts can be read; log first how much that is.

    Args:
        streaming: pictures that are nowhere on disk may then be fetched with images="auto".
        is_joined: whether another process has joined what is to be joined.

    Returns:
        The options with what is read beside the index, see `beside.with_columns`; and the sidecars of an adopted
        folder, by part; none with other pictures.

    Raises:
        NotPrepared: pictures are missing, and no option says where from; the message says what downloading them takes.
        SourceError, BadFile, StateConflict, DownloadError: see `index.prepare.prepare` and `download.part`.
    """
    _require_pictures(options, streaming)
    beside.require_table(options)
    parts.require_published(options)
    missing = without_index(options)
    if missing:
        from laion_face_builder.index.prepare import prepare

        prepare(options.data, missing, options.upstream)
    parts.fit_pictures(options)
    options = beside.with_columns(options, is_made=is_joined)
    if options.images == "download":
        _download(options)
    adopted = parts.adopt(options)
    return with_placeholders(options, adopted), adopted


def without_index(options: Options) -> list[int]:
    """Give the parts whose index would have to be made."""
    return [part for part in options.parts if not parts.is_prepared(options, part)]


def without_pictures(options: Options) -> list[int]:
    """Give the parts that have not been downloaded to their end."""
    return [part for part in options.parts if not options.data.sidecar(part).exists()]


def require_made(options: Options, why: str) -> None:
    """Refuse to make indexes and downloads, for processes of which many would do it at once.

    Args:
        why: such as "WORLD_SIZE is 8", to begin the message with.

    Raises:
        NotPrepared: something is missing; names the command that makes it.
    """
    if missing := without_index(options):
        raise NotPrepared(
            f"{why} and parts {listed(missing)} are not prepared in {options.data.root}: run "
            f"`{command('prepare', options, missing)}` once, or give index="
        )
    if options.images == "download" and (missing := without_pictures(options)):
        raise NotPrepared(
            f"{why} and the pictures of parts {listed(missing)} are not in {options.data.root}: run "
            f"`{command('download', options, missing)}` once, or give images='fetch'"
        )


def _download(options: Options) -> None:
    """Download all parts; of those that are there only check that they are what is asked for."""
    if missing := without_pictures(options):
        logger.info(
            "parts %s: pictures to download, about %s; %s free at %s",
            listed(missing),
            human_size(parts.BYTES_A_PICTURE * sum(parts.rows_of(options, part) for part in missing)),
            _free(options.data.root),
            options.data.root,
        )
    for _ in parts.download(options, parts.download_options(options)):
        pass  # each says itself what has become of it


def _require_pictures(options: Options, streaming: bool) -> None:
    """Check that there will be pictures: before hours of preparing, not after them.

    Raises:
        NotPrepared: they would be missing, or would not be resized as asked for.
    """
    if options.images not in IMAGE_MODES:
        for part in options.parts:
            part_folder(Path(options.images), part)
    missing = without_pictures(options) if options.images == "auto" else []
    if missing and not streaming:
        raise _no_pictures(options, missing)
    if missing:
        parts.refuse_to_resize(options, missing[0])


def _no_pictures(options: Options, missing: Sequence[int]) -> NotPrepared:
    needed = 2 * parts.BYTES_A_PICTURE * parts.ROWS_A_PART * len(missing)
    return NotPrepared(
        f"{options.data.root}: no pictures of parts {listed(missing)}. Give images='download' to download them (about "
        f"{human_size(needed)}: once as tars and, not streaming, once more as Arrow files; {_free(options.data.root)} "
        f"free), streaming=True or images='fetch' to fetch them from the web as they are read, images=FOLDER to use an "
        f"img2dataset folder that you have, or images='none' to do without."
    )


def _free(folder: Path) -> str:
    return human_size(disk_free(folder))
