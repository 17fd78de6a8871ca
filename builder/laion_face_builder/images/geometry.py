"""Move faces with their picture: pure geometry from the original frame to the frame of the picture that is yielded.

**The convention.** Coordinates are pixel indices, as in OpenCV and NumPy: the centre of the first pixel is 0, and the
picture reaches from -0.5 to width - 0.5. Resizing keeps the picture's edges in place, so a point at v goes to
(v + 0.5) * scale - 0.5, which is what `cv2.resize` and Pillow do to pixels (measured: the centres of soft spots are
found again within 0.12 pixels of it). The detector itself is not known to be better than half a pixel of the original.

**The sizes** are those of img2dataset 1.47 with albumentations 1.4.24: one scale from one side, both sides rounded
by Python's `round` (half to even), at least 1; then each axis has the scale that its rounded side gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from laion_face_builder.values import Range, one_of

#: img2dataset's: keep_ratio and center_crop scale the short side to the size, the other two the long one.
RESIZE_MODES = ("no", "keep_ratio", "keep_ratio_largest", "center_crop", "border")
#: Sizes that pictures can be resized to, pixels.
IMAGE_SIZE = Range(int, 1, 16_384)
#: Two scales may differ by this share where rounding to whole pixels does not explain more.
ASPECT_TOLERANCE = 0.02

Face = dict[str, Any]
#: Width and height, pixels.
Size = tuple[int, int]


def area_of(face: Mapping[str, Any]) -> float:
    """Return the area of a face's box in pixels, not clipped."""
    x1, y1, x2, y2 = map(float, face["box"])
    return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)


def largest(faces: Sequence[Mapping[str, Any]], places: Sequence[int]) -> list[int]:
    """Return the place of the face with the largest box, the first of several, among those at `places`; [] of none."""
    return [max(places, key=lambda place: area_of(faces[place]))] if places else []


@dataclass(frozen=True)
class Frame:
    """How x and y of the original picture (pixels) become x and y of the yielded one: v' = v * scale + offset."""

    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return self == Frame()

    def then(self, later: Frame) -> Frame:
        """Return the frame that applies this one first, and `later` to what comes out."""
        return Frame(
            self.scale_x * later.scale_x,
            self.scale_y * later.scale_y,
            self.offset_x * later.scale_x + later.offset_x,
            self.offset_y * later.scale_y + later.offset_y,
        )

    def faces(self, faces: Sequence[Face]) -> list[Face]:
        """Return `faces` (box x1, y1, x2, y2; landmarks (x, y) each; score) in the new frame, rounded to float32."""
        if self.is_identity:
            return list(faces)
        return [
            {"box": self._points(f["box"]), "landmarks": [self._points(p) for p in f["landmarks"]], "score": f["score"]}
            for f in faces
        ]

    def _points(self, numbers: Sequence[float]) -> list[float]:
        """Move numbers that are alternating x and y."""
        scale = np.resize([self.scale_x, self.scale_y], len(numbers))
        offset = np.resize([self.offset_x, self.offset_y], len(numbers))
        moved: list[float] = (np.asarray(numbers, np.float64) * scale + offset).astype(np.float32).tolist()
        return moved


@dataclass(frozen=True)
class Resized:
    """What a resizer made of a picture: where its points went, and its width and height now."""

    frame: Frame
    size: Size


@dataclass(frozen=True)
class Resizing:
    """How img2dataset resizes: its `resize_mode`, `image_size` (pixels) and `resize_only_if_bigger`.

    Raises:
        OptionError: there is no such mode, or no picture has such a size.
    """

    mode: str = "no"
    size: int = 256
    only_if_bigger: bool = False

    def __post_init__(self) -> None:
        one_of("resize_mode", self.mode, RESIZE_MODES)
        IMAGE_SIZE.check("image_size", self.size)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Resizing:
        """Return the resizing that `as_dict` gave; None is the default."""
        return cls(**values) if values else cls()

    def as_dict(self) -> dict[str, Any] | None:
        """Return the values for fingerprints; None where nothing is resized, whatever the size would be."""
        return asdict(self) if self else None

    def __bool__(self) -> bool:
        return self.mode != "no"

    def __str__(self) -> str:
        if not self:
            return "resize_mode='no'"
        bigger = ", resize_only_if_bigger=True" if self.only_if_bigger else ""
        return f"resize_mode={self.mode!r}, image_size={self.size}{bigger}"

    def of(self, original: Size) -> Resized:
        """Say what becomes of a picture of this width and height (at least 1 each), however it is encoded then."""
        by_short_side = self.mode in ("keep_ratio", "center_crop")
        side = min(original) if by_short_side else max(original)
        if not self or (self.only_if_bigger and side <= self.size):
            return Resized(Frame(), original)
        width, height = (max(1, round(length * (self.size / side))) for length in original)
        frame = _scaled(original, (width, height))
        if self.mode == "center_crop":
            left, top = (width - self.size) // 2, (height - self.size) // 2
            return Resized(frame.then(Frame(1, 1, -left, -top)), (self.size, self.size))
        if self.mode == "border":
            left, top = (self.size - width) // 2, (self.size - height) // 2
            return Resized(frame.then(Frame(1, 1, left, top)), (self.size, self.size))
        return Resized(frame, (width, height))


def frame_of(original: Size, fetched: Size | None, resizing: Resizing, now: Size) -> Frame | None:
    """Return the frame from the original picture to the one that lies on disk.

    Args:
        original: width and height of the picture that the faces were found in.
        fetched: those of the picture that the host gave, before it was resized; None if they are not known.
        resizing: how that picture was resized.
        now: width and height on disk.

    Returns:
        The frame; None if it cannot be known: the host's picture has another aspect, or was not resized like that.
    """
    if not resizing or fetched is None:
        return rescaled(original, now)
    resized, copy = resizing.of(fetched), rescaled(original, fetched)
    return copy.then(resized.frame) if copy is not None and resized.size == now else None


def is_swapped(said: Size, given: Size, faces: Sequence[Face]) -> bool:
    """Say whether a picture's width and height were noted the wrong way round, as in some rows of LAION-400M.

    They were if its size is exactly the swapped one, and the centre of every box lies in it as it is: then the faces
    were found in this very frame. Without a face nothing says so; a host may have turned the picture.

    Args:
        said: width and height by the metadata; above 0.
        given: those of the picture that the host gave.
        faces: of the row, unmoved.
    """
    return said[0] != said[1] and given == said[::-1] and bool(faces) and centres_lie_in(faces, given)


def centres_lie_in(faces: Sequence[Face], size: Size) -> bool:
    """Say whether every box's centre lies in a picture of this width and height; NaN does not.

    Boxes are not clipped, and a face that is cut off by an edge reaches beyond it: only centres tell frames apart.
    """
    return all(
        0 <= (box[0] + box[2]) / 2 <= size[0] and 0 <= (box[1] + box[3]) / 2 <= size[1]
        for box in (face["box"] for face in faces)
    )


def rescaled(original: Size, now: Size) -> Frame | None:
    """Return the frame of a copy of another size; None if its aspect is another and nothing can be known.

    Widths and heights of resized copies are whole pixels: a scale that explains both sides to less than one pixel must
    exist, and the two sides' scales must agree to `ASPECT_TOLERANCE`.
    """
    if min(*original, *now) <= 0:
        return None
    scale_x, scale_y = now[0] / original[0], now[1] / original[1]
    slack = 1 / original[0] + 1 / original[1]
    if abs(scale_x - scale_y) >= slack or abs(scale_x / scale_y - 1) > ASPECT_TOLERANCE:
        return None
    return _scaled(original, now)


def _scaled(original: Size, now: Size) -> Frame:
    scale_x, scale_y = now[0] / original[0], now[1] / original[1]
    return Frame(scale_x, scale_y, (scale_x - 1) / 2, (scale_y - 1) / 2)
