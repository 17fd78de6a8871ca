"""What `laion-face show` and `laion-face stats` would read, ask for and write; see `forecast`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.download.adopt import unseen
from laion_face_builder.download.plan import planned
from laion_face_builder.examples import parts
from laion_face_builder.forecast import Amount, Disk, Forecast, Step
from laion_face_builder.images.reasons import Reason
from laion_face_builder.inspect.audit import require_pictures
from laion_face_builder.inspect.counts import refuse_download
from laion_face_builder.inspect.show import Sheet, files_of
from laion_face_builder.options import IMAGE_MODES, Options
from laion_face_builder.parquet_files import table_of

#: About what a card of a contact sheet takes of each of its files, and what a page of statistics takes.
_CARD_BYTES, _PAGE_BYTES = 60_000, 100_000


def forecast_show(options: Options, wanted: Sheet) -> Forecast:
    """Say what `show.show` would do with the same arguments; parts are opened until there are enough rows.

    Raises:
        LaionFaceError: as `show` raises it before it asks for a picture.
    """
    files = files_of(options, wanted)
    steps: list[Step] = []
    asked = found = 0
    for part in options.parts:
        with _seen(options, part) as seen:
            steps += seen.steps()
            rows = seen.rows(options, wanted.count - found)
            found += rows
            asked += rows if seen.opened.is_fetched else 0
        if found >= wanted.count:
            break
    steps += [_written(file, _CARD_BYTES * min(found, wanted.count)) for file in files]
    pictures = Amount(asked, is_exact=not asked)
    notes = ["more pictures are asked for where some fail, and some ahead; none that are cached"] * bool(asked)
    fetch = Amount(asked * parts.BYTES_A_PICTURE, is_exact=not asked)
    return Forecast("show", tuple(steps), _disks(files, steps), fetch, pictures=pictures, notes=tuple(notes))


def forecast_stats(options: Options, out: Path, audited: int | None = None) -> Forecast:
    """Say what `stats` would do; no picture is asked for but those of a sample that is audited, with images="fetch".

    Args:
        audited: pictures that are shown to a second detector; None if that is not asked for.

    Raises:
        LaionFaceError: as `counts.count` and `audit.audit` raise it.
    """
    refuse_download(options)
    steps: list[Step] = []
    fetch, there = Amount(), {}
    for part in options.parts:
        with _seen(options, part) as seen:
            steps += seen.steps()
            fetch += seen.fetch()
            if seen.opened.pictures is not None or seen.unseen is not None or options.images == "fetch":
                there[part] = seen.opened
    steps.append(_written(out, _PAGE_BYTES))
    forecast = Forecast("stats", tuple(steps), _disks([out], steps), fetch)
    return forecast if audited is None else _with_audit(forecast, options, audited, there)


def _with_audit(forecast: Forecast, options: Options, rows: int, there: dict[int, parts.OpenPart]) -> Forecast:
    require_pictures(options, there)
    if options.images != "fetch":
        return replace(forecast, notes=(f"{rows:,} pictures on disk are shown to a second detector",))
    asked = Amount(rows, is_exact=False)
    notes = ("more pictures are asked for where some fail, and some ahead; none that are cached",)
    fetch = forecast.fetch + Amount(rows * parts.BYTES_A_PICTURE, is_exact=False)
    return replace(forecast, fetch=fetch, pictures=asked, notes=notes)


@dataclass(frozen=True)
class _Seen:
    """A part as these commands would read it; `unseen` are the tars of a folder that have not been scanned yet."""

    part: int
    opened: parts.OpenPart
    unseen: list[Path] | None

    def steps(self) -> Iterator[Step]:
        where = "from the web" if self.opened.is_fetched else "from its tars" if self.opened.pictures else "none"
        if self.unseen is None:
            yield Step(f"part {self.part}", "used as it is", f"pictures: {where}")
        elif self.unseen:
            yield Step(f"part {self.part}", "made", f"{len(self.unseen)} tars of the folder are looked through, once")
        else:
            yield Step(f"part {self.part}", "used as it is", "pictures: from the folder's tars")

    def fetch(self) -> Amount:
        """Estimate what is fetched of a remote index: some of its columns."""
        index = self.opened.index
        return Amount(sum(index.row_group_bytes), is_exact=False) if "://" in index.address else Amount()

    def rows(self, options: Options, most: int) -> int:
        """Count the rows that would be shown, `most` at most; a remote index is not read for it."""
        index = self.opened.index
        if "://" in index.address:
            return min(most, index.num_rows)
        found = 0
        for (start, stop), status in zip(index.row_groups, planned(index, options.filters), strict=False):
            found += pc.sum(self._shown(status, start, stop)).as_py() or 0
            if found >= most:
                break
        return min(most, found)

    def _shown(self, status: pa.Array, start: int, stop: int) -> pa.Array:
        """Mark the rows, bool[n], whose picture is asked for or there; without pictures all that pass the filters."""
        if self.opened.is_fetched:
            return pc.is_null(status)
        passing = pc.fill_null(pc.not_equal(status, Reason.FILTERED), True)
        if self.opened.pictures is None:
            return passing
        stored = table_of(self.opened.pictures.sidecar, ["status"])["status"].slice(start, stop - start)
        return pc.and_(passing, pc.equal(stored, Reason.OK).combine_chunks())


@contextmanager
def _seen(options: Options, part: int) -> Iterator[_Seen]:
    """Open a part without scanning its folder of pictures."""
    if options.images in IMAGE_MODES:
        with parts.open_part(options, part) as opened:
            yield _Seen(part, opened, None)
        return
    most = options.fetch.max_pixels
    with parts.open_part(replace(options, images="none"), part) as opened:
        yield _Seen(
            part, opened, unseen(Path(options.images), options.data, part, max_pixels=most, resizing=options.resizing)
        )


def _written(file: Path, size: int) -> Step:
    return Step(str(file), "made anew" if file.exists() else "made", size=Amount(size, is_exact=False))


def _disks(files: Sequence[Path], steps: Sequence[Step]) -> tuple[Disk, ...]:
    write = sum((step.size for step in steps if step.size), Amount())
    return (Disk.of(files[0].absolute().parent, write),)
