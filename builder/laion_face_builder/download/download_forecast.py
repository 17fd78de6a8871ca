"""Forecast a download (see `forecast`), from the same files that decide in the real run (`part`, `round`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.download.numbering import Numbering, has_ids, ids_of_download
from laion_face_builder.download.part import bytes_of, check_space, claimed, has_plan, rounds_in_all
from laion_face_builder.download.plan import (
    PartFiles,
    RowFilters,
    Rows,
    opened_index,
    planned,
    rows_of_round,
    rows_to_fetch,
    rows_to_retry,
)
from laion_face_builder.download.round import Round
from laion_face_builder.download.sidecar import CheckedTar, sidecar_table
from laion_face_builder.errors import LaionFaceError
from laion_face_builder.fetch.addresses import refuse_user_proxy
from laion_face_builder.files import Fingerprint
from laion_face_builder.forecast import Amount, Deed, Disk, Forecast, Step
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import table_of
from laion_face_builder.shown import counted
from laion_face_builder.sources import data_store


@dataclass(frozen=True)
class RoundForecast:
    """What one round would do.

    Attributes:
        number: 0 for the first round, else the number of the retry.
        pictures: how many are asked for; None where that shows only once the round before has ended.
        unchecked: how many are there, but not checked yet; those of shards that are not whole are asked for too.
        shards: how many tars are made.
    """

    number: int
    pictures: int | None
    unchecked: int = 0
    shards: int = 0


@dataclass(frozen=True)
class PartForecast:
    """What downloading one part would do.

    Attributes:
        rows: how many its index has.
        wanted: how many rows pass the filters and can be fetched at all.
        is_read: whether the rows were looked at; those of an index that lies elsewhere are not, and count as wanted.
        is_begun: whether a download of this part has been started before.
        is_there: whether the part has a sidecar.
        rounds: in order; those that were finished before are among them, with nothing to do.
        refusal: the error it would end with, at a round for which the disk has no room or the folder cannot be used.
    """

    part: int
    rows: int
    wanted: int
    is_read: bool
    is_begun: bool
    is_there: bool
    rounds: tuple[RoundForecast, ...]
    refusal: LaionFaceError | None = None

    @property
    def pictures(self) -> int:
        """All pictures that are asked for, as far as that is known."""
        return sum(one.pictures or 0 for one in self.rounds)

    @property
    def unchecked(self) -> int:
        """All pictures that are there and would be checked."""
        return sum(one.unchecked for one in self.rounds)

    @property
    def is_exact(self) -> bool:
        """Whether `pictures` is exact: no more can come."""
        return self.is_read and not self.unchecked and all(one.pictures is not None for one in self.rounds)


def forecast_part(
    data: DataDir,
    part: int,
    options: DownloadOptions | None = None,
    filters: RowFilters | None = None,
    retry_failed: int = 0,
    *,
    index: IndexPart | None = None,
) -> PartForecast:
    """Say what `part.download_part` would do with the same arguments.

    Raises:
        NotPrepared, StateConflict, OptionError, BadFile: as `download_part` before it fetches anything.
    """
    options = options or DownloadOptions()
    with data_store.at_work(data) as here, opened_index(here, part, index) as rows:
        refuse_user_proxy(os.environ, options.fetch.trust_proxy)
        files = PartFiles(here, part)
        made_with = claimed(files, rows, options, filters)
        is_planned = has_plan(files, made_with)
        if is_planned and has_ids(files):
            Numbering.of(files, rows)
        is_read = is_planned or "://" not in rows.address
        plan = _plan(files, rows, made_with, options, filters) if is_read else _everything(rows.num_rows)
        rounds: list[RoundForecast] = []
        refusal = None
        try:
            for one in _Rounds(files, options, made_with, plan).all(retry_failed):
                rounds.append(one)
        except LaionFaceError as error:
            refusal = error
        begun = data_store.has(here, here.images_fingerprint(part))
        is_there = data_store.has(here, here.sidecar(part))
    return PartForecast(part, len(plan), len(rows_to_fetch(plan)), is_read, begun, is_there, tuple(rounds), refusal)


def _plan(
    files: PartFiles, index: IndexPart, made_with: Fingerprint, options: DownloadOptions, filters: RowFilters | None
) -> pa.ChunkedArray:
    if has_plan(files, made_with):
        return table_of(data_store.bring(files.data, files.plan), ["status"])["status"]
    return pa.chunked_array(planned(index, filters, options.blur_faces), pa.string())


def _everything(rows: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(rows, pa.string())])


@dataclass(frozen=True)
class _Rounds:
    """The walk through a part's rounds, as `part` goes through them."""

    files: PartFiles
    options: DownloadOptions
    made_with: Fingerprint
    plan: pa.ChunkedArray

    def all(self, retry_failed: int) -> Iterator[RoundForecast]:
        """Yield what each round would do; after a round that would fail, raise its error."""
        tars: list[CheckedTar] = []
        is_known = True
        for number in rounds_in_all(self.files, retry_failed):
            rows = self._rows(number, tars if is_known else None)
            if rows is None:
                yield RoundForecast(number, None)
                continue
            if number and not len(rows):
                return
            this_round = Round(self.files, number, rows, self.options, self.made_with)
            yield self._round(number, this_round)
            if this_round.missing:
                check_space(self.files, this_round.samples_to_fetch, self.options)
            is_known = is_known and not this_round.missing
            tars += this_round.tars()

    def _rows(self, number: int, tars: list[CheckedTar] | None) -> Rows | None:
        """Return the rows of a round; None if it is new, and the rounds before it are not finished."""
        if not number:
            return rows_to_fetch(self.plan)
        if data_store.brought(self.files.data, self.files.round(number)):
            return rows_of_round(self.files, number)
        if tars is None:
            return None
        is_known = has_plan(self.files, self.made_with) and has_ids(self.files)
        # Nobody asks what they are, only which are gone.
        ids = ids_of_download(self.files) if is_known else pa.array(np.arange(len(self.plan)))
        return rows_to_retry(sidecar_table(self.plan, Numbering.lacking(ids), tars)["status"])

    @staticmethod
    def _round(number: int, this_round: Round) -> RoundForecast:
        unchecked = this_round.unchecked
        fetched = [shard for shard in this_round.missing if shard not in unchecked]
        return RoundForecast(number, this_round.samples_of(fetched), this_round.samples_of(unchecked), len(fetched))


def forecast_parts(data: DataDir, parts: Sequence[int], forecast_of: Callable[[int], PartForecast]) -> Forecast:
    """Say what downloading several parts would do, one after the other; a part that is refused is the last.

    Args:
        forecast_of: what `forecast_part` says of a part.
    """
    steps: list[Step] = []
    pictures = Amount()
    refusal: LaionFaceError | None = None
    for part in parts:
        try:
            found = forecast_of(part)
            refusal = found.refusal
        except LaionFaceError as error:
            refusal = error
        if refusal is not None:  # Parts before it are downloaded, those after it are not.
            steps.append(Step(f"part {part}", "refused", str(refusal)))
            break
        steps.append(Step(f"part {part}", *_deed(found)))
        pictures += Amount(found.pictures, found.is_exact)
    write = Amount(bytes_of(pictures.count), is_exact=not pictures.count)
    notes = [f"bytes to write are reckoned with {bytes_of(1):,} a picture"] if pictures.count else []
    return Forecast(
        "download",
        tuple(steps),
        (Disk.of(data.root, write),) if data.address is None else (),
        write,
        pictures=pictures,
        notes=tuple(notes),
        refusal=refusal,
    )


def _deed(found: PartForecast) -> tuple[Deed, str]:
    said = "; ".join(_said(one) for one in found.rounds if one.pictures is None or one.pictures or one.unchecked)
    if not said:
        return ("used as it is", "") if found.is_there else ("made", "all pictures are there, the list of them is not")
    if not found.is_read:
        said += "; filters aside, since the index lies elsewhere"
    if not found.is_begun:
        return "made", said
    return "made", f"goes on: {said}"


def _said(one: RoundForecast) -> str:
    name = f"retry {one.number}: " if one.number else ""
    if one.pictures is None:
        return f"{name}what has failed by then"
    fetched = f"{one.pictures:,} pictures to ask for, in {counted(one.shards, 'tar')}" if one.pictures else ""
    checked = f"{one.unchecked:,} that are there to look through" if one.unchecked else ""
    return name + ", ".join(filter(None, (fetched, checked)))
