"""`laion-face show`: a contact sheet of the dataset's first examples, as a picture and as a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from laion_face_builder.errors import OptionError
from laion_face_builder.examples.example import Example
from laion_face_builder.examples.report import Report, Tally
from laion_face_builder.examples.walk import Plan, Position, fetched, walk
from laion_face_builder.files import written_whole
from laion_face_builder.images.modes import to_rgb
from laion_face_builder.inspect.contact_sheet import contact_sheet
from laion_face_builder.inspect.sheet import THUMBNAIL, sheet
from laion_face_builder.log import logger
from laion_face_builder.options import Options
from laion_face_builder.values import Range

MOST_EXAMPLES = 500
_SUFFIXES = {".png": (".png",), ".html": (".html",), ".htm": (".htm",), "": (".png", ".html")}
#: Pictures in flight for a sheet: the first few dozen rows are wanted soon, and no others.
_IN_FLIGHT = 64


@dataclass(frozen=True)
class Sheet:
    """The contact sheet that is asked for.

    Attributes:
        out: .png or .html; without a suffix both are written.
        count: examples, up to `MOST_EXAMPLES`.
        columns: cards in a row.
        command: what the user typed, shown in the page.

    Raises:
        OptionError: count or columns is out of range.
    """

    out: Path
    count: int = 24
    columns: int = 4
    command: str = "laion-face show"

    def __post_init__(self) -> None:
        Range(int, 1, MOST_EXAMPLES).check("count", self.count)
        Range(int, 1, 24).check("columns", self.columns)

    @property
    def files(self) -> list[Path]:
        """The files to be written.

        Raises:
            OptionError: `out` has another suffix.
        """
        suffix = self.out.suffix.lower()
        if suffix not in _SUFFIXES:
            raise OptionError(f"out={self.out}: expected .png, .html, or no suffix for both")
        return [self.out.with_suffix(made) for made in _SUFFIXES[suffix]]


def show(options: Options, wanted: Sheet) -> list[Path]:
    """Write the sheet of the first examples that `load_dataset` would yield with these options, and give its files.

    Raises:
        OptionError: see `Sheet.files`; or images="download", which is for `laion-face download` to do.
    """
    files = files_of(options, wanted)
    examples, counts = take(options, wanted.count)
    if not examples:
        logger.warning("no example to show: %s", counts)
    for file in files:
        with written_whole(file) as partial:
            partial.write_bytes(_drawn(file, examples, counts, wanted))
    return files


def files_of(options: Options, wanted: Sheet) -> list[Path]:
    """List the files that `show` writes.

    Raises:
        OptionError: see `show`.
    """
    if options.images == "download":
        raise OptionError("images='download': run `laion-face download` first; show reads what is there, or fetches")
    return wanted.files


def take(options: Options, count: int) -> tuple[list[Example], Report]:
    """Give the first `count` examples, and a report of the rows up to there; nothing is left open.

    Pictures are decoded and scaled down one by one; the columns width and height stay those of the full picture.
    """
    fetch = replace(options.fetch, concurrency=min(_IN_FLIGHT, options.fetch.concurrency))
    ahead = replace(options.ahead, lookahead=2 * count)
    plan = Plan(replace(options, fetch=fetch, ahead=ahead), None)
    examples: list[Example] = []
    with (
        Tally(None) as tally,
        closing(walk(plan, plan.shards(), Position(), tally)) as rows,
        closing(fetched(plan, rows)) as steps,
    ):
        for step, picture in steps:
            if (example := step.row.example(picture)) is not None:
                examples.append({**example, "image": _thumbnail(example)})
            if len(examples) == count:
                break
    return examples, tally.counts


def _thumbnail(example: Example) -> Image.Image | None:
    if example["image"] is None:
        return None
    with Image.open(BytesIO(example["image"]["bytes"])) as image:
        small = to_rgb(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return small


def _drawn(file: Path, examples: Sequence[Example], counts: Report, wanted: Sheet) -> bytes:
    if file.suffix.lower() != ".png":
        return sheet(examples, wanted.command, f"Read: {counts}", wanted.columns).encode(errors="replace")
    out = BytesIO()
    contact_sheet(examples, wanted.columns).save(out, "PNG", optimize=True)
    return out.getvalue()
