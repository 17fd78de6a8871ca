"""Make an example from an index row and its picture, and count what became of the row.

Reading a row and making its example are two steps. The state of a stream counts the rows that were read, so that a
resumed stream repeats and skips nothing whatever fails then or now; only the second step touches the picture.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from laion_face_builder.download.blur import blurred
from laion_face_builder.download.tar_reader import PartPictures
from laion_face_builder.errors import PictureError
from laion_face_builder.examples.report import Tally
from laion_face_builder.images import modes, pictures
from laion_face_builder.images.geometry import Frame, Size, frame_of, is_swapped, largest, rescaled
from laion_face_builder.images.pictures import Picture
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.reader import RowBatch
from laion_face_builder.log import logger
from laion_face_builder.options import ALL_FACES, LARGEST_FACE, Options
from laion_face_builder.schema import BLURRED_COLUMN

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
        is_excluded: whether the exclusion list names it.
        is_bad: whether the index's row cannot be read.
    """

    maker: ExampleMaker
    number: int
    batch: RowBatch | None
    place: int
    is_excluded: bool = False
    is_bad: bool = False

    @property
    def url_to_fetch(self) -> str | None:
        """Address to fetch the picture from; None if the row is filtered, or its picture is not fetched."""
        if self.batch is None or not self.maker.is_fetched:
            return None
        return self.batch.urls[self.place] or ""

    def example(self, fetched: Picture | PictureError | None = None) -> Example | None:
        """Make the example; None if the row is filtered or its picture failed. The tally counts the row either way.

        Args:
            fetched: its picture, or why there is none, if it was fetched.

        Raises:
            PictureError: the picture failed and on_error is "raise".
        """
        if self.is_bad:
            self.maker.refuse_row(self.number)
            return None
        if self.batch is None:
            self.maker.tally.filtered(self.is_excluded)
            return None
        return self.maker.example(self.number, self.batch[self.place], fetched)


@dataclass(frozen=True)
class ExampleMaker:
    """Joins a part's rows with its pictures and counts what becomes of them.

    Attributes:
        options: what to do with failures, changed sizes and faces.
        pictures: those on disk, if these are used.
        is_fetched: whether rows come with a picture from the web.
        tally: the counts.
    """

    options: Options
    pictures: PartPictures | None
    is_fetched: bool
    tally: Tally

    def example(self, number: int, values: Example, fetched: Picture | PictureError | None = None) -> Example | None:
        """Make the example of row `number` with these values; see `Row.example`."""
        self._listen(values, fetched)
        try:
            picture = self._picture(number, fetched)
            example = self._with_picture(values, picture) if picture is not None else self.without_picture(values)
        except PictureError as error:
            return self._failed(values, error)
        self.tally.yielded()
        return example

    def refuse_row(self, number: int) -> None:
        """Count row `number`, which cannot be read: nobody knows what it would be, so it gives no example.

        Raises:
            PictureError: on_error is "raise".
        """
        self.tally.failed(Reason.BAD_ROW, None)
        if self.options.on_error == "raise":
            raise PictureError(Reason.BAD_ROW, f"row {number} of the index cannot be read")

    def _listen(self, values: Example, fetched: Picture | PictureError | None) -> None:
        if isinstance(fetched, PictureError):
            self.tally.heard(values["url"], fetched.reason)
        elif fetched is not None and not fetched.is_kept:
            self.tally.heard(values["url"], None)

    def _picture(self, number: int, fetched: Picture | PictureError | None) -> Picture | None:
        if isinstance(fetched, PictureError):
            raise fetched
        if fetched is not None:
            return fetched
        picture = self.pictures.get(number).picture if self.pictures is not None else None
        if picture is not None and self.options.fetch.isolate_decoder:
            pictures.inspect(picture.data, max_pixels=self.options.fetch.max_pixels)
        return picture

    def _failed(self, values: Example, error: PictureError) -> Example | None:
        self.tally.failed(error.reason, values["url"])
        if self.options.on_error == "raise":
            raise PictureError(error.reason, f"{error.detail or 'no picture'} ({values['url']})") from error
        return self.without_picture(values) if self.options.on_error == "null" else None

    def _with_picture(self, values: Example, picture: Picture) -> Example:
        self._require_included(values, picture)
        self._refuse_excluded(picture)
        if (picture.fetched_sha256 or picture.sha256) in self.options.placeholders:
            raise PictureError(Reason.TOO_MANY_COPIES)
        values = self._put_right(values, picture)
        frame = self._frame(values, picture)
        placed, aligned = self._placed(values, picture, frame)
        return self._filled(
            values,
            image={"bytes": self._data(values, picture, frame), "path": None},
            faces=placed.faces(self._kept_faces(values)),
            width=picture.width,
            height=picture.height,
            faces_aligned=aligned,
        )

    def _require_included(self, values: Example, picture: Picture) -> None:
        include = self.options.filters.include
        if include is None or not include.has_hashes or include.names_row(values["sample_id"], values["url"]):
            return
        if not include.names_picture(picture.data, (picture.sha256, picture.fetched_sha256)):
            raise PictureError(Reason.NOT_INCLUDED)

    def _refuse_excluded(self, picture: Picture) -> None:
        exclude, removed = self.options.filters.exclude, self.options.filters.removed
        fetched = picture.fetched_sha256
        if removed is not None:
            known = (picture.sha256, fetched) if removed.sha256s else ()
            if removed.names_picture(picture.data, filter(None, known)):
                raise PictureError(Reason.EXCLUDED)
        if exclude is None:
            return
        sha256s = (picture.sha256, fetched) if exclude.sha256s else ()
        if exclude.names_picture(picture.data, sha256s):
            raise PictureError(Reason.EXCLUDED)
        if fetched and exclude.md5s:
            _say_that_md5s_miss(exclude.name)

    def _put_right(self, values: Example, picture: Picture) -> Example:
        """Exchange width and height if the picture shows that the metadata has them swapped.

        All later steps, and original_width and original_height, then fit the picture that the faces were found in.
        """
        width, height = values["width"], values["height"]
        if width is None or height is None:
            return values
        if not is_swapped((width, height), self._given(picture), values["faces"]):
            return values
        return {**values, "width": height, "height": width}

    def _given(self, picture: Picture) -> Size:
        """Give width and height of the picture that the host sent, as far as they are known."""
        fetched = picture.fetched if self._is_resized else None
        return fetched or (picture.width, picture.height)

    def _frame(self, values: Example, picture: Picture) -> Frame | None:
        """Give the frame that moves points from the original picture to this one; None if it is not known."""
        width, height = values["width"], values["height"]
        if width is None or height is None:
            return None
        now = (picture.width, picture.height)
        if self.pictures is not None:
            return frame_of((width, height), picture.fetched, self.pictures.resizing, now)
        return rescaled((width, height), now)

    def _placed(self, values: Example, picture: Picture, frame: Frame | None) -> tuple[Frame, bool]:
        """Give the frame that moves the faces, as on_size_change says, and whether they are then known to fit."""
        width, height = values["width"], values["height"]
        if width is None or height is None:
            return Frame(), False
        now = self._given(picture)
        if (width, height) != now and self.options.on_size_change == "keep":
            return Frame(), False
        if frame is None and self.options.on_size_change == "drop":
            raise PictureError(Reason.SIZE_CHANGED, f"{width}x{height} is now {now[0]}x{now[1]}")
        return (frame, True) if frame is not None else (Frame(), False)

    @property
    def _is_resized(self) -> bool:
        return self.pictures is not None and bool(self.pictures.resizing)

    def _data(self, values: Example, picture: Picture, frame: Frame | None) -> bytes:
        """Give the bytes to yield: with a neutral EXIF orientation, and blurred and in one colour mode if asked for."""
        data = self._upright(values, picture, frame)
        return data if self.options.mode is None else modes.in_mode(data, self.options.mode)

    def _upright(self, values: Example, picture: Picture, frame: Frame | None) -> bytes:
        data = picture.data
        if self.options.blur_faces and values["faces"]:
            if frame is None:
                raise PictureError(Reason.CANNOT_BLUR, "the faces may be elsewhere in this picture")
            if self.pictures is None or not self.pictures.are_blurred:
                return self._blurred(values, picture, frame)
        return pictures.neutral(data) if picture.orientation != 1 else data

    def _blurred(self, values: Example, picture: Picture, frame: Frame) -> bytes:
        faces, within = values["faces"], (values["width"], values["height"])
        now = (picture.width, picture.height)
        if self._is_resized:  # else img2dataset would do it by the original's boxes
            faces, within = frame.faces(faces), now
        return blurred(picture.data, faces, within, now)

    def without_picture(self, values: Example) -> Example:
        """Make the example of a row whose picture is missing: image None, faces in the original frame."""
        faces = self._kept_faces(values)
        return self._filled(values, image=None, faces=faces, width=None, height=None, faces_aligned=False)

    def _kept_faces(self, values: Example) -> list[Any]:
        faces: list[Any] = values["faces"]
        return [faces[place] for place in chosen_faces(self.options.filters, values, self.options.keep_faces)]

    def _filled(self, values: Example, **made: Any) -> Example:
        known = {**values, "original_width": values["width"], "original_height": values["height"], **made}
        known[BLURRED_COLUMN] = known["image"] is not None
        return {name: known[name] for name in self.options.columns}


def chosen_faces(filters: Filters, values: Example, keep_faces: str) -> list[int]:
    """Tell which faces of a row's `faces` its example has, by their places there, as `keep_faces` says."""
    if keep_faces == ALL_FACES:
        return list(range(len(values["faces"])))
    counting = filters.counting(values)
    return largest(values["faces"], counting) if keep_faces == LARGEST_FACE else counting


@functools.lru_cache(maxsize=8)
def _say_that_md5s_miss(name: str) -> None:
    """Warn, once per process and exclusion list, that its MD5s miss pictures that were encoded again."""
    logger.warning(
        "%s: its MD5s do not reach pictures that were encoded again when they were downloaded: of what the host gave "
        "only the SHA-256 is known. Give SHA-256s or sample ids.",
        name,
    )
