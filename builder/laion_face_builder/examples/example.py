"""From an index row and its picture to an example, and what became of it: the last room before `datasets`.

Reading a row and making its example are two steps. The state of a stream counts rows of the first kind, so that a
resumed stream repeats and skips nothing whatever fails then or now; only the second touches the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from laion_face_builder.download.tars import PartPictures, StoredPicture
from laion_face_builder.errors import PictureError
from laion_face_builder.examples import frames
from laion_face_builder.examples.report import Tally
from laion_face_builder.images import pictures
from laion_face_builder.index.filters import read_exclusion
from laion_face_builder.index.reader import RowBatch
from laion_face_builder.options import Options
from laion_face_builder.schema import EXAMPLE_COLUMNS
from laion_face_builder.web.fetcher import FetchedPicture

Example = dict[str, Any]

#: The columns of the index that an example is made from.
INDEX_COLUMNS = ("sample_id", "url", "caption", "width", "height", "part", "license", "nsfw", "similarity", "faces")


class Row(NamedTuple):
    """One index row on its way to an example.

    Attributes:
        maker: makes the example.
        number: of the row in its part.
        batch: has the row's values; None if the filters drop the row.
        place: of the row in `batch`.
    """

    maker: ExampleMaker
    number: int
    batch: RowBatch | None
    place: int

    @property
    def url_to_fetch(self) -> str | None:
        """Where its picture has to be fetched from; None if it is filtered, or its picture is not fetched."""
        if self.batch is None or not self.maker.is_fetched:
            return None
        return self.batch.urls[self.place] or ""

    def example(self, fetched: FetchedPicture | PictureError | None = None) -> Example | None:
        """The example, None if the row is filtered or its picture failed; counted either way.

        Args:
            fetched: its picture, or why there is none, if it was fetched.

        Raises:
            PictureError: the picture failed and on_error is "raise".
        """
        if self.batch is None:
            self.maker.tally.filtered()
            return None
        return self.maker.example(self.number, self.batch[self.place], fetched)


@dataclass(frozen=True)
class ExampleMaker:
    """Joins a part's rows with its pictures and counts what becomes of them.

    Attributes:
        options: what to do with failures and changed sizes.
        pictures: those on disk, if these are used.
        is_fetched: whether rows come with a picture from the web.
        tally: the counts.
    """

    options: Options
    pictures: PartPictures | None
    is_fetched: bool
    tally: Tally

    def example(
        self, number: int, values: Example, fetched: FetchedPicture | PictureError | None = None
    ) -> Example | None:
        """The example of row `number` with these values; see `Row.example`."""
        try:
            picture = self._picture(number, fetched)
            example = self._with_picture(values, picture) if picture is not None else without_picture(values)
        except PictureError as error:
            return self._failed(values, error)
        self.tally.yielded()
        return example

    def _picture(
        self, number: int, fetched: FetchedPicture | PictureError | None
    ) -> StoredPicture | FetchedPicture | None:
        if isinstance(fetched, PictureError):
            raise fetched
        if fetched is not None:
            return fetched
        return self.pictures.get(number) if self.pictures is not None else None

    def _failed(self, values: Example, error: PictureError) -> Example | None:
        self.tally.failed(error.reason, values["url"])
        if self.options.on_error == "raise":
            raise PictureError(error.reason, f"{error.detail or 'no picture'} ({values['url']})") from error
        return without_picture(values) if self.options.on_error == "null" else None

    def _with_picture(self, values: Example, stored: StoredPicture | FetchedPicture) -> Example:
        if stored.data is None:
            raise PictureError(stored.status)
        exclude = self.options.filters.exclude
        if exclude is not None and stored.sha256 in read_exclusion(exclude).sha256s:
            raise PictureError("excluded")
        frame, aligned = self._frame((values["width"], values["height"]), (stored.width, stored.height))
        data = pictures.neutral(stored.data) if stored.orientation != 1 else stored.data
        return _filled(
            values,
            image={"bytes": data, "path": None},
            faces=frame.faces(values["faces"]),
            width=stored.width,
            height=stored.height,
            faces_aligned=aligned,
        )

    def _frame(self, original: tuple[int | None, int | None], now: tuple[int, int]) -> tuple[frames.Frame, bool]:
        """How faces move, and whether they are known to fit."""
        width, height = original
        if width is None or height is None:
            return frames.Frame(), False
        if (width, height) == now:
            return frames.Frame(), True
        if self.options.on_size_change == "keep":
            return frames.Frame(), False
        frame = frames.rescaled((width, height), now)
        if frame is None and self.options.on_size_change == "drop":
            raise PictureError("size_changed", f"{width}x{height} is now {now[0]}x{now[1]}")
        return (frame, True) if frame is not None else (frames.Frame(), False)


def without_picture(values: Example) -> Example:
    """The example of an index row whose picture is missing: image None, faces in the original frame."""
    return _filled(values, image=None, width=None, height=None, faces_aligned=False)


def _filled(values: Example, **made: Any) -> Example:
    known = {**values, "original_width": values["width"], "original_height": values["height"], **made}
    return {name: known[name] for name in EXAMPLE_COLUMNS}
