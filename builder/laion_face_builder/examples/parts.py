"""Open a part: its index rows, and its pictures on disk or on the web.

What is prepared is used as it is, without a request upstream; only `laion-face prepare` looks for newer sources.
Opening a part makes nothing: `ready` makes what is missing, when a dataset is loaded, and error messages
have the shell command that makes it, ready to be typed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from laion_face_builder import progress
from laion_face_builder.download.adopt import part_folder
from laion_face_builder.download.tar_reader import PartPictures
from laion_face_builder.errors import NotPrepared, OptionError, ShardsGivenUp, StateConflict
from laion_face_builder.files import digest, read_fingerprint
from laion_face_builder.forecast import Forecast
from laion_face_builder.index.exclusion import Exclusion, Mask
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.joined_part import JoinedPart
from laion_face_builder.index.published import PublishedPart, find_published, not_named
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import STAMP, without_stamp
from laion_face_builder.log import logger
from laion_face_builder.options import IMAGE_MODES, INNER, OptionFields, Options
from laion_face_builder.shown import ranges, shown
from laion_face_builder.sources import data_store
from laion_face_builder.sources.hub import Token

if TYPE_CHECKING:
    from laion_face_builder.download.part import DownloadOptions, PartResult

#: Which options each command takes besides CONFIG, --parts and --data-dir, by their groups.
_GROUPS = {"prepare": ("source",), "download": ("source", "filter", "join", "resize", "transfer")}


def command(name: str, options: Options, parts: Sequence[int]) -> str:
    """Give `laion-face prepare 20M --parts 0,2 --data-dir …` for just these sources, filters and sizes.

    Tokens are left out. Where an address has a password, there is *** for the user to fill in.

    Args:
        name: "prepare" or "download".
        options: of the dataset that lacks something.
        parts: which of its parts lack it.
    """
    words = ["laion-face", name, options.config, "--parts", listed(parts), "--data-dir", options.data.where]
    values = options.by_name()
    for spec in dataclasses.fields(OptionFields):
        value = values[spec.name]
        if spec.metadata["group"] in _GROUPS[name] and value != spec.default:
            flag = f"--{spec.name.replace('_', '-')}"
            if spec.metadata["is_repeated"]:
                words += [word for one in value for word in (flag, str(one))]
            else:
                words += [flag, *([] if value is True else [_typed(value)])]
    return shlex.join(words)


def listed(parts: Sequence[int]) -> str:
    """Give "0,2" for parts 0 and 2, as --parts takes them."""
    return ranges(parts)


def _typed(value: object) -> str:
    if isinstance(value, Exclusion):
        return value.name if os.path.isabs(value.name) else "FILE_WITH_THESE"
    return ",".join(value) if isinstance(value, tuple) else shown(str(value))


#: About what one picture takes of the disk, and how many rows a part of the real set has (50 million over 32 parts).
BYTES_A_PICTURE = 60_000
ROWS_A_PART = 1_560_000
#: The sidecars of an adopted folder (images=FOLDER), by part.
Adopted = Mapping[int, Path]


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
    """Say whether the part's rows can be read without anything being made."""
    return options.index is not None or data_store.has(options.data, options.data.index(part))


@contextmanager
def open_part(options: Options, part: int, adopted: Adopted | None = None) -> Iterator[OpenPart]:
    """Open what there is of a part; its files are open until the block ends. Nothing is prepared or downloaded.

    With images="auto" the pictures are those on disk if the part was downloaded, else those of the web.

    Args:
        options: say which rows and pictures.
        part: number of the part.
        adopted: the sidecars that `adopt` gave; None for commands, which look through a folder when they get to it.

    Raises:
        NotPrepared: something would have to be made first; names the command.
        StateConflict: the pictures on disk are not those that are asked for.
    """
    if not is_prepared(options, part):
        require_prepared(options)
    with index_of(options, part) as index, _pictures_of(options, part, index, adopted) or nullcontext() as pictures:
        yield OpenPart(index, pictures, is_fetched=pictures is None and options.images != "none")


def fit_pictures(options: Options) -> None:
    """Make the lists of downloaded pictures fit an index that lies elsewhere, which may have lost rows since.

    Raises:
        SourceError: the index cannot be had. StateConflict: it has rows that were never downloaded.
    """
    if options.index is None or options.images not in ("auto", "download"):
        return
    for part in options.parts:
        if options.data.sidecar(part).exists():
            from laion_face_builder.download.sidecar_renewal import fit_to_index

            with index_of(options, part) as index:
                fit_to_index(options.data, part, index)


def adopt(options: Options) -> Adopted:
    """Scan the folder that images= names, as far as that was not done yet, and give the sidecars.

    Raises:
        NotPrepared: a part is not in it.
    """
    return {part: _looked_through(options, part) for part in options.parts if options.images not in IMAGE_MODES}


def rows_of(options: Options, part: int) -> int:
    """Give the number of rows of the part's index, which has to be there."""
    with index_of(options, part) as index:
        return index.num_rows


def require_prepared(options: Options) -> None:
    """Check that every part has an index, for callers that do not prepare.

    Raises:
        NotPrepared: a part has no index.
    """
    missing = [part for part in options.parts if not is_prepared(options, part)]
    if missing:
        raise NotPrepared(
            f"{options.data.where}: no index of parts {listed(missing)}. Run `{command('prepare', options, missing)}` "
            "first."
        )


def of_those_prepared(options: Options) -> Options:
    """Narrow the options to those of the chosen parts that are prepared.

    Raises:
        NotPrepared: none is.
    """
    there = tuple(part for part in options.parts if is_prepared(options, part))
    if not there:
        require_prepared(options)
    return replace(options, parts=there)


def identity(options: Options, part: int, adopted: Adopted | None = None) -> dict[str, Any]:
    """Give digests of what is read of a part, so that a cache never gives outdated content."""
    with open_part(options, part, adopted) as opened:
        pictures, index = opened.pictures, opened.index.fingerprint
        read = {"index": digest(without_stamp(index)), "pictures": pictures and digest(pictures.fingerprint)}
    # What is gone stands apart: what was made before can then be told from what was made of another index.
    if stamp := dict(options.stamps).get(part, index.get(STAMP)):
        read[STAMP] = stamp
    if options.more is not None and options.more.names:
        # Only then: caches of earlier versions stay good.
        read["more"] = digest([str(options.more), *(table.fingerprint(part) for table in options.tables)])
    if options.max_copies is not None:
        read["placeholders"] = digest(sorted(options.placeholders))
    return read


def download_options(options: Options, **how: Any) -> DownloadOptions:
    """Make the DownloadOptions for `options`; `how` are further fields of it, None meaning the default."""
    from laion_face_builder.download.part import DownloadOptions

    given = {name: value for name, value in how.items() if value is not None}
    return DownloadOptions(options.fetch, options.resizing, options.blur_faces, **given)


def download(
    options: Options, how: DownloadOptions, retry_failed: int = 0, shards: str | None = None, *, clean: bool = False
) -> Iterator[tuple[int, PartResult]]:
    """Download the pictures of each part, which has to be prepared; yield the part's number and result.

    Args:
        shards: a share of each part's shards, as `share.Share.parse` understands it; None means all.

    Raises:
        OptionError: no such number of rounds, or no such share; NotPrepared: a part has no index; ShardsGivenUp: not
            all of a part could be made. The other parts are.
    """
    from laion_face_builder.download.download_options import RETRY_FAILED
    from laion_face_builder.download.part import Share, download_part, download_share

    RETRY_FAILED.check("retry_failed", retry_failed)
    share = None if shards is None else Share.parse(shards)
    if share is not None and retry_failed:
        raise OptionError("shards and retry_failed: rounds over what failed come with the download of all shards, last")
    if share is not None and clean:
        raise OptionError("shards and clean_tars: tars are cleaned by the download of all shards, last")
    require_prepared(options)
    given_up: list[ShardsGivenUp] = []
    for number, part in enumerate(options.parts, 1):
        with index_of(options, part) as index:
            try:
                with progress.nth("part", number, len(options.parts)):
                    if share is None:
                        given = (options.data, part, how, row_filters(options, part), retry_failed)
                        result = download_part(*given, index=index, clean=clean)
                    else:
                        result = download_share(options.data, part, share, how, row_filters(options, part), index=index)
            except ShardsGivenUp as error:
                logger.warning("part %d is not whole; the others go on: %s", part, error)
                given_up.append(error)
                continue
            yield part, result
    if given_up:
        raise given_up[0]


@dataclass(frozen=True)
class JoinedFilters:
    """The filters of a download, where rows that a table lacks are left out: which these are is part of them."""

    filters: Filters
    tables: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `mask` needs."""
        return self.filters.columns

    def mask(self, table: pa.Table) -> Mask:
        """Tell, bool[n], which rows pass."""
        return self.filters.mask(table)

    def as_dict(self) -> dict[str, Any]:
        """Return what defines the filters, the content of the tables included."""
        return {**self.filters.as_dict(), "tables": list(self.tables)}


def row_filters(options: Options, part: int) -> Filters | JoinedFilters:
    """Return what says which rows of a part are fetched into tars, but for those that were taken down.

    These are left out of whatever is downloaded, and no part of what a download was begun with: else none could go on
    after a removal.
    """
    filters = replace(options.filters, removed=None)
    if filters.join_how != INNER:
        return filters
    return JoinedFilters(filters, tuple(digest(table.content(part)) for table in options.tables))


def forecast_download(options: Options, how: DownloadOptions, retry_failed: int = 0) -> Forecast:
    """Say what `download` would do with the same arguments.

    Raises:
        NotPrepared: a part has no index.
    """
    from laion_face_builder.download.download_forecast import PartForecast, forecast_part, forecast_parts

    require_prepared(options)

    def forecast_of(part: int) -> PartForecast:
        with index_of(options, part) as index:
            return forecast_part(options.data, part, how, row_filters(options, part), retry_failed, index=index)

    return forecast_parts(options.data, options.parts, forecast_of)


def index_of(options: Options, part: int) -> IndexPart:
    """Return the part's rows, with those of the tables that are joined; nothing is opened yet."""
    token = None if options.index is None else options.upstream.token
    place = (
        data_store.place(options.data, options.data.index(part))
        if options.index is None
        else _published(options.index, part, token)
    )
    if options.tables:
        return JoinedPart.beside(place, part, options.tables, token)
    return IndexPart.open(place, token)


@functools.lru_cache(maxsize=64)
def _published(place: str, part: int, token: Token) -> PublishedPart:
    """Find a published part, and remember it: listing a Hub repo takes requests, and every shard asks again."""
    return find_published(place, part, token)


def require_published(options: Options) -> None:
    """Check that a published index has every part: not after hours, when a stream comes to the one that it lacks.

    Raises:
        SourceNotFound: it lacks one; SourceError: no answer.
    """
    if options.index is not None:
        for part in not_named(options.index, options.parts, options.upstream.token):
            _published(options.index, part, options.upstream.token)


def _pictures_of(options: Options, part: int, index: IndexPart, adopted: Adopted | None) -> PartPictures | None:
    if options.images in ("none", "fetch"):
        return None
    if options.images not in IMAGE_MODES:
        return _adopted(options, part, index, adopted)
    if read_fingerprint(options.data.sidecar(part)) is None:
        if options.images == "download":
            raise _not_downloaded(options)
        refuse_to_resize(options, part)
        return None
    opened = PartPictures.open(options.data, part, index)
    _require_as_wanted(options, opened)
    return opened


def _adopted(options: Options, part: int, index: IndexPart, adopted: Adopted | None) -> PartPictures:
    if adopted is None:
        most, size = options.fetch.max_pixels, options.resizing
        return PartPictures.adopt(options.images, options.data, part, index, max_pixels=most, resizing=size)
    folder, sidecar = part_folder(Path(options.images), part), adopted.get(part)
    if sidecar is None or not sidecar.exists():
        raise NotPrepared(
            f"{sidecar or options.data.root}: what lies in {folder} is not known here. Load the dataset again, where "
            "it is to be read: that looks through the folder, reading does not."
        )
    return PartPictures(folder, sidecar)


def _looked_through(options: Options, part: int) -> Path:
    with index_of(options, part) as index, _adopted(options, part, index, None) as pictures:
        return pictures.sidecar


def _not_downloaded(options: Options) -> NotPrepared:
    missing = [part for part in options.parts if not options.data.sidecar(part).exists()]
    return NotPrepared(
        f"{options.data.root}: no pictures of parts {listed(missing)}. Run `{command('download', options, missing)}` "
        "first."
    )


def refuse_to_resize(options: Options, part: int) -> None:
    """Raise NotPrepared if the pictures of a part that was not downloaded were to be resized."""
    if options.resizing:
        raise NotPrepared(
            f"{options.data.sidecar(part)}: there is none, and pictures that are fetched are not resized: "
            f'{options.resizing} goes with `laion-face download` or images="download".'
        )


def _require_as_wanted(options: Options, stored: PartPictures) -> None:
    """Check that the downloaded pictures are what the options ask for; no resizing asked for means as they are.

    Raises:
        StateConflict: they are of another size, or blurred although blur_faces was not given.
    """
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
