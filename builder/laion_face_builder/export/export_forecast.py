"""What `laion-face export` would read, ask for and write; see `forecast`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.download.adopt import part_folder
from laion_face_builder.examples import parts
from laion_face_builder.examples.walk import Shard
from laion_face_builder.export.export_ledger import Ledger
from laion_face_builder.export.exporter import ExportRequest
from laion_face_builder.forecast import Amount, Disk, Forecast, Step
from laion_face_builder.images.reasons import Reason
from laion_face_builder.options import IMAGE_MODES
from laion_face_builder.options.export_options import JSONL
from laion_face_builder.parquet_files import table_of

#: About what a picture of a face takes: bytes a pixel as JPEG of quality 95, and bytes where its size is not known.
_BYTES_A_PIXEL, _BYTES_A_FACE = 0.35, 30_000
#: About what a condition picture, and what an example's line, caption and columns take.
_BYTES_A_CONDITION, _BYTES_A_LINE = 3_000, 900


def forecast_export(request: ExportRequest) -> Forecast:
    """Say what `exporter.export` would do with the same request; nothing is made, and no folder is looked through.

    Raises:
        LaionFaceError: as `exporter.export` raises it before it asks for a picture.
    """
    parts.require_prepared(request.options)
    ledger = Ledger(request.out)
    if request.options.images in IMAGE_MODES:
        ledger.merged(request.asked(None))
    steps: list[Step] = []
    asked, write = Amount(), Amount()
    for part in request.options.parts:
        if request.options.images not in IMAGE_MODES:
            part_folder(Path(request.options.images), part)
        of_part = [shard for shard in request.mine if shard.part == part]
        todo = [shard for shard in of_part if ledger.counts_of(shard) is None]
        seen = _look_at(request, part, todo)
        size = Amount(seen.bytes(request), is_exact=not seen.pictures)
        steps.append(_step(part, of_part, todo, seen, size))
        asked += Amount(seen.pictures if seen.is_fetched else 0, is_exact=not seen.is_fetched)
        write += size
    fetch = Amount(asked.count * parts.BYTES_A_PICTURE, is_exact=asked.is_exact)
    notes = ["pictures that fail give nothing; those that are cached are not asked for"] * bool(asked.count)
    disks = (Disk.of(request.out, write),)
    return Forecast("export", tuple(steps), disks, fetch, pictures=asked, notes=tuple(notes))


@dataclass
class _Reckoned:
    """What is to be read of a part: pictures that pass, their bytes, and the faces in them that count."""

    is_fetched: bool = False
    pictures: int = 0
    picture_bytes: int = 0
    faces: int = 0

    def bytes(self, request: ExportRequest) -> int:
        """Estimate what is written."""
        how = request.how
        if how.layout == JSONL:
            return self.pictures * _BYTES_A_LINE
        pieces, size = self.pictures, self.picture_bytes
        if how.of_faces:
            pieces = self.faces
            a_face = _BYTES_A_FACE if how.sides is None else how.sides**2 * _BYTES_A_PIXEL
            size = round(pieces * a_face)
        return size + pieces * (_BYTES_A_LINE + (_BYTES_A_CONDITION if how.draw is not None else 0))


def _step(part: int, shards: Sequence[Shard], todo: Sequence[Shard], seen: _Reckoned, size: Amount) -> Step:
    whole = f"{len(shards) - len(todo)} of {len(shards)} shards are whole" if len(todo) < len(shards) else ""
    if not todo:
        return Step(f"part {part}", "used as it is", whole)
    found = f"{seen.pictures:,} pictures, {seen.faces:,} faces that count in them"
    where = "from the web" if seen.is_fetched else ""
    return Step(f"part {part}", "made", ", ".join(filter(None, (found, where, whole))), size)


def _look_at(request: ExportRequest, part: int, todo: Sequence[Shard]) -> _Reckoned:
    options = request.options
    is_folder = options.images not in IMAGE_MODES
    reckoned = _Reckoned()
    if not todo:
        return reckoned
    with parts.open_part(replace(options, images="none") if is_folder else options, part) as opened:
        reckoned.is_fetched = opened.is_fetched
        stored = None
        if opened.pictures is not None:
            stored = table_of(opened.pictures.sidecar, ["status", "length"])
        columns = list(dict.fromkeys(("url", "faces", "n_faces", "width", "height", *options.filters.columns)))
        for start, stop in _stretches([shard.bounds(opened.index.num_rows) for shard in todo]):
            rows = opened.index.read(start, stop, columns)
            keep, lengths = options.filters.mask(rows), np.full(stop - start, parts.BYTES_A_PICTURE)
            if stored is not None:
                here = stored.slice(start, stop - start)
                keep &= pc.equal(here["status"], Reason.OK).to_numpy()
                lengths = pc.fill_null(here["length"], 0).to_numpy()
            _count(reckoned, request, rows, keep, lengths)
    return reckoned


def _count(reckoned: _Reckoned, request: ExportRequest, rows: pa.Table, keep: np.ndarray, lengths: np.ndarray) -> None:
    faces = request.options.filters.count_faces(rows)
    reckoned.pictures += int(keep.sum())
    reckoned.picture_bytes += int(lengths[keep].sum())
    reckoned.faces += int(np.minimum(faces, 1 if request.how.largest_face else faces)[keep].sum())


def _stretches(bounds: Sequence[tuple[int, int]], most: int = 65_536) -> Iterator[tuple[int, int]]:
    """Yield the same rows in longer stretches, of up to about `most` rows: shards may be of a few rows each."""
    held: tuple[int, int] | None = None
    for start, stop in bounds:
        if held is not None and (start != held[1] or stop - held[0] > most):
            yield held
            held = None
        held = (start, stop) if held is None else (held[0], stop)
    if held is not None and held[1] > held[0]:
        yield held
