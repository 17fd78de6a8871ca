"""Faces drawn onto their picture: boxes, landmarks, scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from laion_face_builder.transforms.affine import Face, Picture, checked_box, checked_landmarks, opened

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

#: A box that is known to fit the picture, and one that is not.
SURE: Colour = (0, 158, 96)
UNSURE: Colour = (222, 138, 0)
#: Left eye, right eye, nose, left and right mouth corner.
POINTS: tuple[Colour, ...] = ((30, 136, 229), (0, 188, 212), (255, 193, 7), (233, 30, 99), (171, 71, 188))
#: Pixels: nothing is drawn further out, since Pillow would walk all the way there.
_FAR = 100_000


def draw_faces(image: Picture, faces: Iterable[Face], *, aligned: bool = True) -> Picture:
    """Draw the box, the landmarks and the score of every face on a copy of the picture.

    Lines grow with the picture, so that they are seen when it is scaled down.

    Args:
        image: a PIL picture, or uint8[height, width(, 3)]; the result is of the same kind.
        faces: box, landmarks and score each, in pixels of `image`, as an example's `faces`.
        aligned: False draws the boxes in amber, as those that may not fit (an example's `faces_aligned`).

    Raises:
        TransformError: a box without area, landmarks that are not five points, no such picture.
    """
    pixels, give_back = opened(image)
    canvas = Image.fromarray(pixels).convert("RGB")
    unit = max(1, round(max(canvas.size) / 400))
    marker = Marker(ImageDraw.Draw(canvas), SURE if aligned else UNSURE, _font(11 * unit), unit)
    for face in faces:
        marker.draw(face, canvas.width)
    return give_back(np.asarray(canvas.convert("L") if pixels.ndim == 2 else canvas))


@dataclass(frozen=True)
class Marker:
    """A pen that marks faces.

    Attributes:
        pen: draws on an RGB picture.
        colour: of boxes and labels.
        font: of scores.
        unit: pixels; lines are two of them wide.
    """

    pen: ImageDraw.ImageDraw
    colour: Colour
    font: Font
    unit: int = 1

    def draw(self, face: Face, width: int) -> None:
        """Mark one face, in pixels of the pen's picture, which is `width` wide: the score stays inside.

        In a crowd marks must not hide the faces: dots shrink with the box, and one half as wide as its score has none.
        """
        x1, y1, x2, y2 = np.clip(checked_box(face["box"]), -_FAR, _FAR).tolist()
        points = np.clip(checked_landmarks(face["landmarks"]), -_FAR, _FAR).tolist()
        pen, unit = self.pen, self.unit
        pen.rectangle((x1, y1, x2, y2), outline=self.colour, width=2 * unit)
        dot = min(3 * unit, max(1, (x2 - x1) / 12))
        for (x, y), fill in zip(points, POINTS, strict=True):
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=fill, outline="white" if dot > 2 else None)
        label = f"{face['score']:.2f}"
        room = pen.textlength(label, font=self.font) + 4 * unit
        if room > 2 * (x2 - x1):
            return
        at = (max(min(max(x1, 0), width - room), 0) + 3 * unit, max(y1, 1) + 2 * unit)
        left, top, right, bottom = pen.textbbox(at, label, font=self.font)
        pen.rectangle((left - 3 * unit, top - 2 * unit, right + 2 * unit, bottom + 2 * unit), fill=self.colour)
        pen.text(at, label, fill="white", font=self.font)


@lru_cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)
