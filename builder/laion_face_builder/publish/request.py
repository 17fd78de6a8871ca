"""The request to publish: what and where, and the checks whether that can and may be done."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.compute as pc

from laion_face_builder.errors import LaionFaceError, NotPrepared, OptionError
from laion_face_builder.examples import beside
from laion_face_builder.files import disk_free, human_size
from laion_face_builder.index.exclusion import Exclusion
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.options import LEFT, OptionFields, Options
from laion_face_builder.parquet_files import table_of
from laion_face_builder.publish.manifest import GATES, Kind
from laion_face_builder.publish.published_files import MOST_ROWS, Bounds
from laion_face_builder.publish.targets import is_folder
from laion_face_builder.sources.hub import Token
from laion_face_builder.values import Range

# What is written into a card: one word without marks of Markdown or HTML.
_CONTACT = re.compile(r"(https?://[^\s<>\"`\\]+|[^\s@<>\"`\\:/]+@[^\s@<>\"`\\:/]+\.[^\s@<>\"`\\:/]+)")


@dataclass(frozen=True)
class PublishRequest:
    """What is to be published where.

    Args:
        data: where the parts are prepared.
        target: a folder, or a Hub dataset "owner/name".
        parts: such as "0,2,5-7"; None means those that are there.
        with_images: pictures too, from the tars.
        pictures_only: with pictures, rows that have none are left out, instead of published with a null.
        preview: rows of the config `preview`; 0 means none.
        private: the Hub repo is made private.
        public_pictures: the user has the right to show the pictures to everybody.
        include: list, or file of sample ids, URLs and hosts of what is published, and nothing else.
        gated: how the Hub lets people in, see `manifest.GATES`; None leaves it as it is.
        contact: an e-mail address or URL for those who want to be left out; None leaves it as it is.
        exclude: list, or file of sample ids, URLs, hosts, SHA-256s or MD5s to leave out.
        join, join_how: tables whose columns are published beside ours, as the options of these names.
        bounds, batch_bytes: how large files and commits get; one commit is up to so many bytes.
    """

    data: DataDir
    target: str
    parts: str | None = None
    with_images: bool = False
    pictures_only: bool = False
    preview: int = 0
    private: bool = False
    public_pictures: bool = False
    gated: str | None = None
    contact: str | None = None
    revision: str | None = None
    token: Token = field(default=None, repr=False)
    include: str | Exclusion | None = None
    exclude: str | Exclusion | None = None
    join: Any = None
    join_how: str = LEFT
    bounds: Bounds = Bounds()
    batch_bytes: int = 4_000_000_000

    @property
    def kind(self) -> Kind:
        """Which columns the parts will have."""
        return "examples" if self.with_images else "index"


def check_given(request: PublishRequest) -> None:
    """Refuse what no publish can do.

    Raises:
        OptionError: a preview cannot have so many rows, there is no such gate, a contact is none, or two do not fit.
    """
    Range(int, 0, MOST_ROWS).check("preview", request.preview)
    if request.pictures_only and not request.with_images:
        raise OptionError("--pictures-only leaves out rows without a picture: it only goes with --with-images")
    if request.gated not in (None, *GATES):
        raise OptionError(f"gated={request.gated!r}: expected one of {', '.join(GATES)}")
    if request.contact is not None and not _CONTACT.fullmatch(request.contact):
        raise OptionError(f"contact={request.contact!r}: expected an e-mail address, or one that begins with https://")


def check_rights(request: PublishRequest) -> None:
    """Refuse to make pictures public by accident, and warn that they belong to their owners.

    Raises:
        OptionError: pictures would become public.
    """
    if not (request.with_images or request.preview):
        return
    logger.warning(
        "Pictures belong to their owners: publish them to private repos only, or where you have the right to."
    )
    if not is_folder(request.target) and not (request.private or request.public_pictures):
        raise OptionError(
            f"{request.target}: pictures would become public. Add --private, or --public-pictures if you have the "
            "right to show every one of them, or leave out --with-images and --preview"
        )


def options_of(request: PublishRequest, *, is_dry_run: bool = False) -> Options:
    """Give the options for the parts to publish, which are checked to be there; join what is to be joined.

    Args:
        is_dry_run: whether nothing may be made: tables have to be joined already.

    Raises:
        OptionError: no valid parts, no such list, or hashes in `include`; BadFile: a line of a list is wrong.
        NotPrepared: a part or its pictures are missing.
    """
    lists: dict[str, Any] = {"include": request.include, "exclude": request.exclude}
    on_error = "skip" if request.pictures_only else "null"
    fields = OptionFields(parts=request.parts, **lists, join=request.join, join_how=request.join_how, on_error=on_error)
    everything = Options.of("50M", fields, request.data.root, request.token)
    chosen = everything.parts
    if request.parts is None:
        chosen = tuple(part for part in ALL_PARTS if not _missing(request, part))
    missing = {part: why for part in (chosen or ALL_PARTS) if (why := _missing(request, part))}
    if missing:
        raise NotPrepared(_not_there(request, missing))
    options = beside.with_columns(replace(everything, parts=chosen), is_made=is_dry_run)
    include, exclude = options.filters.include, options.filters.exclude
    if include is not None and include.has_hashes:
        # With hashes every row would stay, without its picture: more would be published than was asked for.
        raise OptionError(
            f"include={include.name}: hashes name pictures, and it is rows that are published. Give the samples' ids, "
            "URLs or hosts"
        )
    if exclude is not None and not request.with_images and exclude.counts["hashes"]:
        logger.warning(
            "%s: hashes leave out nothing of an index, which has no pictures: give their ids too", exclude.name
        )
    return options


def check_room(request: PublishRequest, options: Options) -> None:
    """Check that the disk has room for what is made before it is sent.

    Raises:
        LaionFaceError: the disk has no room.
    """
    if request.with_images:
        sidecars = [request.data.sidecar(part) for part in options.parts]
        sizes = [pc.sum(table_of(path, ["length"])["length"]).as_py() or 0 for path in sidecars]
    else:
        sizes = [request.data.index(part).stat().st_size for part in options.parts]
    needed = most_staged(request, sum(sizes), max(sizes, default=0))
    free = disk_free(request.data.root)
    if needed > free:
        raise LaionFaceError(
            f"{request.data.root}: {human_size(needed)} are needed for files that are made and not yet sent, "
            f"{human_size(free)} are free. Make room there"
        )


def most_staged(request: PublishRequest, total: int, largest: int) -> int:
    """Give the most bytes that lie there at a time, made and not yet sent: a batch and a file, or all if that is less.

    Args:
        total: bytes of all that is made.
        largest: bytes of the largest part, of which a file with pictures is no more than `bounds` says.
    """
    if request.with_images:
        largest = min(largest, request.bounds.file_bytes + request.bounds.row_group_bytes)
    return min(total, request.batch_bytes + largest)


def _missing(request: PublishRequest, part: int) -> str:
    if not request.data.index(part).exists():
        return "index"
    return "pictures" if request.with_images and not request.data.sidecar(part).exists() else ""


def _not_there(request: PublishRequest, missing: dict[int, str]) -> str:
    # Without --parts nothing at all is there: then the first step that is missing everywhere is to be done.
    values = missing.values()
    what = "index" if (request.parts is not None and "index" in values) or set(values) == {"index"} else "pictures"
    command = {"index": "prepare", "pictures": "download"}[what]
    if request.parts is None:
        return f"{request.data.root}: no part has its {what}. Run `laion-face {command}` there first."
    parts = ",".join(str(part) for part, why in missing.items() if why == what)
    return f"{request.data.root}: no {what} of parts {parts}. Run `laion-face {command}` with --parts {parts} first."
