"""Give the options as the objects that the work is done with: frozen, validated, nested as they are used.

    Options
    ├── data: DataDir             where prepared parts live
    ├── upstream: Upstream        where ids, detections and metadata come from
    ├── filters: Filters          which rows pass
    ├── join: JoinSource, …       tables whose columns come beside ours
    ├── resizing: Resizing        how downloads are resized
    ├── fetch: FetchOptions       how a picture is fetched, by streams and downloads alike
    └── ahead: Ahead              how far a stream runs ahead of its reader

Whoever needs a group of options takes its object, and never a copy of its fields.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import pyarrow as pa

from laion_face_builder.errors import OptionError
from laion_face_builder.images.geometry import Resizing
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.joined_columns import JoinSource
from laion_face_builder.index.removals import settled
from laion_face_builder.index.removed import Removed
from laion_face_builder.index.side_table import SideTable
from laion_face_builder.layout import CONFIG_PARTS, DataDir, parse_parts
from laion_face_builder.options.fields import ALL_FACES, DEFINES, FETCHED, ORDERS, RANGES, OptionFields
from laion_face_builder.options.plain import one_spelling, plain
from laion_face_builder.schema import example_columns
from laion_face_builder.shown import ShownFields
from laion_face_builder.sources import data_store
from laion_face_builder.sources.hub import Token, checked_token
from laion_face_builder.sources.sources import Upstream
from laion_face_builder.values import one_of

_Group = TypeVar("_Group")


@dataclass(frozen=True)
class FetchOptions:
    """How a picture is fetched. What each means is said at `OptionFields`, which has the defaults too.

    Raises:
        OptionError: a number is out of its range, or the name is none that a header could have.
    """

    timeout: float = OptionFields.timeout
    retries: int = OptionFields.retries
    max_bytes: int = OptionFields.max_bytes
    max_pixels: int = OptionFields.max_pixels
    isolate_decoder: bool = OptionFields.isolate_decoder
    per_host: int = OptionFields.per_host
    concurrency: int = OptionFields.concurrency
    outage_patience: float = OptionFields.outage_patience
    user_agent_token: str | None = OptionFields.user_agent_token
    allow_private_hosts: bool = OptionFields.allow_private_hosts
    trust_proxy: bool = OptionFields.trust_proxy

    def __post_init__(self) -> None:
        _check_ranges(self)
        token = self.user_agent_token or ""
        if not token.isascii() or not token.isprintable():
            raise OptionError(f"user_agent_token={token!r}: expected plain ASCII on one line")


@dataclass(frozen=True)
class Ahead:
    """How far fetching runs ahead of a stream's reader, in which order examples come, and what is kept.

    Raises:
        OptionError: a number is out of its range, or there is no such order.
    """

    order: str = OptionFields.order
    lookahead: int = OptionFields.lookahead
    max_buffer_bytes: int = OptionFields.max_buffer_bytes
    cache_images: str | None = None
    cache_bytes: int = OptionFields.cache_bytes

    def __post_init__(self) -> None:
        _check_ranges(self)
        one_of("order", self.order, ORDERS)


@dataclass(frozen=True, repr=False)
class Options(ShownFields):
    """All options of one dataset, validated. Hashable, comparable, picklable."""

    config: str
    data: DataDir
    upstream: Upstream
    index: str | None
    parts: tuple[int, ...]
    shards_per_part: int
    filters: Filters
    join: tuple[JoinSource, ...] | None
    max_copies: int | None
    images: str
    on_error: str
    on_size_change: str
    keep_faces: str
    mode: str | None
    resizing: Resizing
    blur_faces: bool
    fetch: FetchOptions
    ahead: Ahead
    #: What is read beside the index, once it is known: see `examples.beside`.
    more: pa.Schema | None = None
    tables: tuple[SideTable, ...] = ()
    #: SHA-256s that more than `max_copies` addresses give, once they are counted: see `examples.placeholders`.
    placeholders: frozenset[str] = frozenset()
    #: Parts, and digests of what is gone from them, once that is known: see `publish.withdrawn`.
    stamps: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(
        cls,
        config: str,
        given: OptionFields,
        data_dir: str | os.PathLike[str] | DataDir | None = None,
        token: Token = None,
    ) -> Options:
        """Check everything in `given`, and return it as options.

        Raises:
            OptionError: names the option, the value and the valid ones; BadFile: a line of the exclusion list.
            StateConflict: a removal from DATA_DIR was begun and is not finished.
        """
        if config not in CONFIG_PARTS:
            raise OptionError(f"config {config!r}: valid are {', '.join(CONFIG_PARTS)}")
        values: Any = plain(given)
        _check_together(values)
        data = data_dir if isinstance(data_dir, DataDir) else DataDir.at(data_dir)
        return cls(
            config=config,
            data=data,
            upstream=Upstream(values.source_repo, values.source_revision, values.metadata, checked_token(token)),
            index=values.index,
            parts=parse_parts(values.parts, config),
            shards_per_part=values.shards_per_part,
            filters=replace(_group(Filters, values), removed=_removed_from(data, values.index)),
            join=values.join,
            max_copies=values.max_copies,
            images=values.images,
            on_error=values.on_error,
            on_size_change=values.on_size_change,
            keep_faces=values.keep_faces,
            mode=values.mode,
            resizing=Resizing(values.resize_mode, values.image_size, values.resize_only_if_bigger),
            blur_faces=values.blur_faces,
            fetch=_group(FetchOptions, values),
            ahead=_group(Ahead, values),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of an example: ours, and those that are read beside the index."""
        return (*example_columns(self.blur_faces), *(self.more.names if self.more is not None else ()))

    def by_name(self) -> dict[str, Any]:
        """Return every option by the name that it is given under, for messages: a list to leave out stays `Exclusion`.

        `Options.of` understands all of them again.
        """
        groups = (self, self.filters, self.fetch, self.ahead)
        names = {spec.name for spec in fields(OptionFields)}
        flat = {spec.name: (one, spec.name) for one in groups for spec in fields(one)}
        found = {name: getattr(*at) for name, at in flat.items() if name in names}
        return {
            **found,
            "source_repo": os.fspath(self.upstream.source_repo),
            "source_revision": self.upstream.source_revision,
            "metadata": os.fspath(self.upstream.metadata_place),
            "resize_mode": self.resizing.mode,
            "image_size": self.resizing.size,
            "resize_only_if_bigger": self.resizing.only_if_bigger,
        }

    def defining(self) -> dict[str, Any]:
        """Return the options that define which examples come and how: never where from, how fast or under which name.

        See `DEFINES`. Equal meanings give equal values, however they are spelled.
        """
        # Only what is not the default: caches of earlier versions stay good.
        changed = {
            "resize": self.resizing.as_dict(),
            "blur_faces": self.blur_faces,
            "mode": self.mode,
            "max_copies": self.max_copies,
            "isolate_decoder": self.fetch.isolate_decoder,
        }
        if self.filters.removed is not None and self.images == "fetch":
            changed["removed"] = self.filters.removed.digest
        changed["keep_faces"] = self.keep_faces if self.keep_faces != ALL_FACES else None
        is_fetched = self.images == "fetch"
        defining = {
            "parts": self.parts,
            "filters": self.filters.as_dict(),
            "images": self.images if self.images in ("none", "fetch") else "stored",
            "on_error": self.on_error,
            "on_size_change": self.on_size_change,
            **{name: value for name, value in changed.items() if value},
            # Always there, if empty: earlier versions kept what other bounds let through under one and the same id.
            **({"fetched": self._fetched()} if is_fetched else {}),
        }
        return {name: one_spelling(value) for name, value in defining.items()}

    def _fetched(self) -> dict[str, Any]:
        """Return the bounds of fetching that change which rows come, where they are not the default."""
        given = {name: getattr(self.fetch, name) for name, (when, _) in DEFINES.items() if when == FETCHED}
        return {name: value for name, value in given.items() if value != getattr(OptionFields, name)}


def _group(kind: type[_Group], values: OptionFields) -> _Group:
    """Make the object of a group of options, which has their names: the only place where fields are handed over."""
    given = {spec.name: getattr(values, spec.name) for spec in fields(kind) if hasattr(values, spec.name)}  # type: ignore[arg-type]
    return kind(**given)


def _removed_from(data: DataDir, index: str | None) -> Removed | None:
    """Return what was taken down from `data`, as far as it may still come.

    An index in there has none of the rows; another one may have, and pictures that are fetched may be anybody's.
    """
    with data_store.at_work(data) as here:
        removed = settled(here).removed
    found = removed.pictures if index is None else removed
    return found or None


def _check_ranges(group: Any) -> None:
    for spec in fields(group):
        if spec.name in RANGES:
            RANGES[spec.name].check(spec.name, getattr(group, spec.name))


def _check_together(given: OptionFields) -> None:
    """Check what options mean to each other; each by itself is right."""
    if given.min_faces is not None and given.max_faces is not None and given.min_faces > given.max_faces:
        raise OptionError(f"min_faces={given.min_faces} is more than max_faces={given.max_faces}: nothing would pass")
    if given.resize_mode != "no" and given.images == "fetch":
        raise OptionError(
            f"resize_mode={given.resize_mode!r}: pictures that are fetched keep their size; valid is 'no'"
        )
    if given.blur_faces and given.cache_images is not None:
        raise OptionError(
            "cache_images keeps pictures as they came, faces and all: it does not go with blur_faces. Leave one out"
        )
