"""`laion-face stats --audit`: a sample of pictures shown to a second detector.

The sample is drawn without regard to anything but the filters: each row of a part has a number by chance, the same in
every run, and those with the least numbers are in it. So it does not depend on the order of parts, and a sample of 200
has all that one of 100 has.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from laion_face_builder import progress
from laion_face_builder.errors import NotPrepared, OptionError
from laion_face_builder.examples import parts
from laion_face_builder.examples.example import INDEX_COLUMNS, Example, ExampleMaker, Row
from laion_face_builder.examples.report import Tally
from laion_face_builder.examples.walk import Fetched, MarkedRow, Plan, RowMark, fetched
from laion_face_builder.images.modes import to_rgb
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.reader import IndexPart, RowBatch
from laion_face_builder.inspect.agreement import Agreement, Detected
from laion_face_builder.inspect.second_detector import Detector
from laion_face_builder.log import logger
from laion_face_builder.options import ALL_FACES, Options
from laion_face_builder.parquet_files import table_of
from laion_face_builder.values import Range

#: Rows of a sample; more take hours.
MOST_ROWS = 100_000
_SEED = 112_03109
#: So many times the rows that are wanted are drawn, since some have no picture after all: of those on disk hardly any.
_SPARE_STORED, _SPARE_FETCHED = 1.25, 4.0
#: Pictures in flight: a sample of them is wanted, and no others.
_IN_FLIGHT = 64

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Audit:
    """What a second detector said of a sample.

    Attributes:
        detector: its name.
        weights_sha256: of its weights.
        rows: pictures that were wanted.
        is_fetched: whether they came from the web; else from tars.
        parts: the parts they were drawn from: those that have pictures.
        found: the counts.
    """

    detector: str
    weights_sha256: str
    rows: int
    is_fetched: bool
    parts: tuple[int, ...]
    found: Agreement


class _Drawn(NamedTuple):
    """A row of the sample: its number by chance, and where it is."""

    chance: float
    part: int
    row: int


def check_rows(rows: int) -> None:
    """Raise OptionError unless that many rows can be audited."""
    Range(int, 1, MOST_ROWS).check("audit_rows", rows)


def audit(options: Options, detector: Detector, rows: int) -> Audit:
    """Show `rows` pictures that the filters keep to the detector, and count where it agrees.

    Pictures are those of tars; with images="fetch" they come from the web, a few times as many being asked for as are
    wanted, since many are gone. Rows whose picture failed are made up for by others of the same chance.

    Raises:
        OptionError: images="none"; or the faces in the pictures are blurred.
        NotPrepared: no part has pictures, and they are not to be fetched.
    """
    fetch = replace(options.fetch, concurrency=min(_IN_FLIGHT, options.fetch.concurrency))
    ahead = replace(options.ahead, lookahead=min(_IN_FLIGHT, 2 * rows))
    options = replace(options, keep_faces=ALL_FACES, on_error="skip", more=None, fetch=fetch, ahead=ahead)
    if options.images == "fetch":
        # What is on disk is refused where it is blurred; what is fetched is not blurred to begin with.
        options = replace(options, blur_faces=False)
    found = Agreement()
    with ExitStack() as stack, Tally(None) as tally:
        opened = {part: stack.enter_context(parts.open_part(options, part)) for part in options.parts}
        there = {part: one for part, one in opened.items() if _has_pictures(options, one)}
        require_pictures(options, there)
        spare = _SPARE_FETCHED if options.images == "fetch" else _SPARE_STORED
        drawn = sorted(_drawn(options, there, round(rows * spare) + 8))
        steps = stack.enter_context(closing(_with_pictures(options, _rows(options, there, drawn, tally))))
        with progress.bar("auditing", rows, "picture") as bar:
            for step, picture in steps:
                if (example := step.row.example(picture)) is None:
                    continue
                if _look_at(example, detector, found):
                    bar.update()
                if found.pictures == rows:
                    break
        found.failed = tally.counts.failed
    if found.pictures < rows:
        logger.warning("stats --audit: %d pictures were looked at, not %d: there are no more", found.pictures, rows)
    return Audit(detector.name, detector.weights_sha256, rows, options.images == "fetch", tuple(there), found)


def require_pictures(options: Options, there: dict[int, parts.OpenPart]) -> None:
    """Check that there is something to look at.

    Args:
        there: the parts that have pictures.

    Raises:
        OptionError: images="none"; or the faces in the pictures are blurred.
        NotPrepared: no part has any.
    """
    if options.images == "none":
        raise OptionError("images='none': --audit looks at pictures; leave it out, or say images='fetch'")
    if not there:
        raise NotPrepared(
            f"{options.data.where}: no pictures of parts {parts.listed(options.parts)} for --audit. Add "
            "`--images fetch` to get the sample alone, or first run "
            f"`{parts.command('download', options, options.parts)}`."
        )
    for part, one in there.items():
        if one.pictures is not None and one.pictures.are_blurred:
            raise OptionError(
                f"stats --audit: the faces in the pictures of part {part} were blurred, where no detector finds them. "
                "Add `--images fetch` to look at others."
            )


def _has_pictures(options: Options, opened: parts.OpenPart) -> bool:
    return opened.pictures is not None or options.images == "fetch"


def _drawn(options: Options, there: dict[int, parts.OpenPart], most: int) -> list[_Drawn]:
    """Draw `most` rows that the filters keep and that have a picture on disk, if pictures are read from there."""
    drawn: list[_Drawn] = []
    for part, opened in there.items():
        chances = np.random.default_rng([_SEED, part]).random(opened.index.num_rows)
        chances[~_eligible(options, opened)] = np.inf
        least = np.argpartition(chances, most)[:most] if most < len(chances) else np.arange(len(chances))
        drawn += [_Drawn(float(chances[row]), part, int(row)) for row in least if np.isfinite(chances[row])]
        drawn = sorted(drawn)[:most]
    return drawn


def _eligible(options: Options, opened: parts.OpenPart) -> Mask:
    eligible = np.ones(opened.index.num_rows, np.bool_)
    if not options.filters.is_empty:
        of_faces = ("faces",) if options.filters.face_thresholds else ()
        columns = list(dict.fromkeys((*options.filters.columns, *of_faces)))
        for start, stop in opened.index.row_groups:
            eligible[start:stop] = options.filters.mask(opened.index.read(start, stop, columns))
    if opened.pictures is not None:
        status = table_of(opened.pictures.sidecar, ["status"])["status"]
        eligible &= np.asarray(pc.fill_null(pc.equal(status, Reason.OK), False))
    return eligible


def _rows(
    options: Options, there: dict[int, parts.OpenPart], drawn: Sequence[_Drawn], tally: Tally
) -> Iterator[MarkedRow]:
    """Read the rows that were drawn, each row group that has some once, and yield them in their order."""
    values: dict[tuple[int, int], tuple[RowBatch, int]] = {}
    for part, opened in there.items():
        wanted = np.sort([one.row for one in drawn if one.part == part]).astype(np.int64)
        for start, stop in opened.index.row_groups:
            here = wanted[(wanted >= start) & (wanted < stop)]
            if len(here):
                batch = RowBatch(_taken(opened.index, start, stop, here))
                values |= {(part, int(row)): (batch, at) for at, row in enumerate(here)}
    for one in drawn:
        opened, (batch, place) = there[one.part], values.pop((one.part, one.row))
        maker = ExampleMaker(options, opened.pictures, opened.is_fetched, tally)
        mark = RowMark(one.part, one.row, batch[place]["sample_id"], opened.index.num_rows)
        yield MarkedRow(mark, one.row, Row(maker, one.row, batch, place))


def _taken(index: IndexPart, start: int, stop: int, rows: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
    return index.read(start, stop, INDEX_COLUMNS).take(pa.array(rows - start))


def _with_pictures(options: Options, rows: Iterator[MarkedRow]) -> Generator[Fetched, None, None]:
    """Yield the rows with their pictures, if these are fetched; else nothing of the network is started."""
    if options.images == "fetch":
        return fetched(Plan(options, None), rows)
    return ((row, None) for row in rows)


def _look_at(example: Example, detector: Detector, found: Agreement) -> bool:
    """Count the picture of an example; say whether it could be looked at."""
    if not example["faces_aligned"]:
        found.unplaced += 1
        return False
    with Image.open(BytesIO(example["image"]["bytes"])) as image:
        picture = to_rgb(image)
    boxes = np.array([face["box"] for face in example["faces"]], np.float64).reshape(-1, 4)
    scores = np.array([face["score"] for face in example["faces"]], np.float64)
    found.add(Detected(boxes, scores).within(*picture.size), detector.faces(picture).within(*picture.size))
    return True
