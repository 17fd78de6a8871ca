"""Make what is exported of one example: the picture as it came but for its metadata, or one picture of each face.

A piece of a whole picture has the very pixels that came, in the bytes that came, without EXIF and all else that is not
the picture (`images.stripping`). A piece of a face is decoded, cut and encoded, with the picture's ICC profile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from laion_face_builder.errors import PictureError, TransformError
from laion_face_builder.examples.example import Example, chosen_faces
from laion_face_builder.images import modes
from laion_face_builder.images.reasons import Reason
from laion_face_builder.images.stripping import stripped
from laion_face_builder.options import LARGEST_FACE, Options
from laion_face_builder.options.export_options import (
    CROP_FORMATS,
    DRAWN_BOXES,
    DRAWN_LANDMARKS,
    DRAWN_MESH,
    JSONL,
    ExportOptions,
)
from laion_face_builder.transforms.affine import Pixels, Transformed
from laion_face_builder.transforms.alignment import align_face
from laion_face_builder.transforms.crops import crop_face
from laion_face_builder.transforms.drawing import draw_faces

_DEFAULT_MARGIN = 0.25
#: What `draw_faces` draws for each of the drawings.
_MARKS = {
    DRAWN_LANDMARKS: {"boxes": False, "landmarks": True, "mesh": False},
    DRAWN_BOXES: {"boxes": True, "landmarks": False, "mesh": False},
    DRAWN_MESH: {"boxes": False, "landmarks": False, "mesh": True},
}
#: Where an ICC profile says which colours it is of, and what it says there for each of our modes.
_PROFILE_SPACE = slice(16, 20)
_SPACES = {"RGB": b"RGB ", "L": b"GRAY"}


@dataclass(frozen=True)
class Piece:
    """One thing that is exported.

    Attributes:
        name: the sample id, and the face's number among its picture's faces: "2130100001234-0".
        caption: "" if there is none: readers want text.
        values: the example's other columns, in the frame of this picture.
        picture: its bytes; None in lists.
        extension: of its format, without a dot.
        condition: a PNG of what is drawn on black; None if nothing is.
    """

    name: str
    caption: str
    values: Mapping[str, Any]
    picture: bytes | None = None
    extension: str = ""
    condition: bytes | None = None


@dataclass
class PieceMaker:
    """Makes the pieces of examples, and counts why some have none.

    Attributes:
        options: what the examples were read with.
        how: what is made of them.
        failed: reasons, counted: of pictures, and of single faces.
    """

    options: Options
    how: ExportOptions
    failed: Counter[str] = field(default_factory=Counter)

    def pieces(self, example: Example, row: Example) -> Iterator[Piece]:
        """Yield the pieces of an example, and count those that cannot be made.

        Args:
            example: with its picture's bytes.
            row: its index row's values, whose faces decide which of them count.

        Raises:
            PictureError: a picture cannot be used, and on_error is "raise".
        """
        try:
            yield from self._pieces(example, row)
        except PictureError as error:
            self.failed[error.reason] += 1
            if self.options.on_error == "raise":
                raise

    def _pieces(self, example: Example, row: Example) -> Iterator[Piece]:
        if self.how.layout == JSONL:
            yield self._piece(example, {})
            return
        if (self.how.of_faces or self.how.draw) and example["faces"] and not example["faces_aligned"]:
            raise PictureError(Reason.UNSURE_FACES)
        if not self.how.of_faces:
            yield self._whole(example, [face for _, face in self._chosen(example, row)])
            return
        if chosen := self._chosen(example, row):
            pixels, profile = self._decoded(example["image"]["bytes"])
            for place, face in chosen:
                try:
                    yield self._face(example, place, face, pixels, profile)
                except TransformError:
                    self.failed[Reason.CANNOT_CROP] += 1

    def _chosen(self, example: Example, row: Example) -> list[tuple[int, Any]]:
        """List the faces that are cut out or drawn: their places in the row, and as they are in the example."""
        kept = chosen_faces(self.options.filters, row, self.options.keep_faces)
        there = dict(zip(kept, example["faces"], strict=True))
        keep = LARGEST_FACE if self.options.keep_faces == LARGEST_FACE else self.how.keep_faces
        return [(place, there[place]) for place in chosen_faces(self.options.filters, row, keep)]

    def _piece(self, example: Example, made: Mapping[str, Any], place: int | None = None, **more: Any) -> Piece:
        values = {name: value for name, value in {**example, **made}.items() if name not in ("image", "caption")}
        if place is not None:
            values["face"] = place
        name = str(example["sample_id"]) if place is None else f"{example['sample_id']}-{place}"
        return Piece(name, example["caption"] or "", values, **more)

    def _whole(self, example: Example, faces: Sequence[Any]) -> Piece:
        data, extension = stripped(example["image"]["bytes"])
        size = (example["width"], example["height"])
        return self._piece(example, {}, picture=data, extension=extension, condition=self._drawn(size, faces))

    def _face(self, example: Example, place: int, face: Any, pixels: Pixels, profile: bytes | None) -> Piece:
        cut = self._cut(pixels, face)
        moved = cut.moved(face)
        height, width = cut.image.shape[:2]
        return self._piece(
            example,
            {"faces": [moved], "width": width, "height": height},
            place,
            picture=self._encoded(cut.image, profile),
            extension=self.how.crop_format,
            condition=self._drawn((width, height), [moved]),
        )

    def _cut(self, pixels: Pixels, face: Any) -> Transformed[Pixels]:
        if self.how.align is not None and self.how.sides is not None:
            return align_face(pixels, face["landmarks"], self.how.sides, self.how.align)
        margin = _DEFAULT_MARGIN if self.how.margin is None else self.how.margin
        return crop_face(pixels, face, margin, self.how.sides)

    def _decoded(self, data: bytes) -> tuple[Pixels, bytes | None]:
        """Decode a picture as a viewer shows it; add its ICC profile, if that is of the colours that it has now.

        It becomes an array once, and not again for each of its faces.
        """
        mode = self.options.mode or "RGB"
        with Image.open(BytesIO(modes.simple(data))) as image:
            profile = image.info.get("icc_profile")
            is_so = image.mode == mode and "transparency" not in image.info
            keeps = image.mode == mode and isinstance(profile, bytes) and profile[_PROFILE_SPACE] == _SPACES[mode]
            return np.asarray(image if is_so else modes.to_mode(image, mode)), profile if keeps else None

    def _encoded(self, pixels: Pixels, profile: bytes | None) -> bytes:
        out = BytesIO()
        quality = {} if self.how.crop_format == "png" else {"quality": self.how.crop_quality}
        Image.fromarray(pixels).save(out, CROP_FORMATS[self.how.crop_format], icc_profile=profile, **quality)
        return out.getvalue()

    def _drawn(self, size: tuple[int, int], faces: Sequence[Any]) -> bytes | None:
        if self.how.draw is None:
            return None
        black = np.zeros((size[1], size[0], 3), np.uint8)
        drawn = black
        for face in faces:
            try:
                drawn = draw_faces(drawn, [face], scores=False, **_MARKS[self.how.draw])
            except TransformError:
                self.failed[Reason.CANNOT_CROP] += 1
        out = BytesIO()
        Image.fromarray(drawn).save(out, "PNG", compress_level=6)
        return out.getvalue()
