"""Faces drawn onto their picture, or onto black: boxes, landmarks, the lines between these, scores."""

from __future__ import annotations

from collections.abc import Container, Iterable
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
#: The lines between the landmarks, by their places; each has the colour of its first end.
MESH = ((0, 1), (1, 2), (2, 0), (3, 4), (0, 3), (4, 1), (2, 3), (4, 2))
#: Pixels: nothing is drawn further out, since Pillow would walk all the way there.
_FAR = 100_000


def draw_faces(
    image: Picture,
    faces: Iterable[Face],
    *,
    aligned: bool = True,
    blank: bool = False,
    boxes: bool = True,
    landmarks: bool = True,
    mesh: bool = False,
    scores: bool = True,
) -> Picture:
    """Draw the box, the landmarks and the score of every face on a copy of the picture.

    Lines grow with the picture, so that they are seen when it is scaled down. What a model is to be conditioned on,
    landmarks alone on black, is `draw_faces(image, faces, blank=True, boxes=False, scores=False)`.

    Args:
        image: a PIL picture, or uint8[height, width(, 3)]; the result is of the same kind.
        faces: box, landmarks and score each, in pixels of `image`, as an example's `faces`.
        aligned: False draws the boxes in amber, as those that may not fit (an example's `faces_aligned`).
        blank: draw on black of the picture's size instead of on the picture.
        boxes: draw the boxes.
        landmarks: draw the five points, each in a colour of its own.
        mesh: draw lines between the points: eyes, nose and mouth corners, `MESH`.
        scores: draw the scores, in the boxes' upper left corners.

    Raises:
        TransformError: a box without area, landmarks that are not five points, no such picture.
    """
    pixels, give_back = opened(image)
    size = pixels.shape[1::-1]
    canvas = Image.new("RGB", size) if blank else Image.fromarray(pixels).convert("RGB")
    unit = max(1, round(max(canvas.size) / 400))
    marks = frozenset(name for name, on in zip(MARKS, (boxes, landmarks, mesh, scores), strict=True) if on)
    marker = Marker(ImageDraw.Draw(canvas), SURE if aligned else UNSURE, _font(11 * unit), unit, marks)
    for face in faces:
        marker.draw(face, canvas.width)
    return give_back(np.asarray(canvas.convert("L") if pixels.ndim == 2 else canvas))


#: What may be drawn of a face.
MARKS = BOX, LANDMARKS, LINES, SCORE = "box", "landmarks", "lines", "score"


@dataclass(frozen=True)
class Marker:
    """A pen that marks faces.

    Attributes:
        pen: draws on an RGB picture.
        colour: of boxes and labels.
        font: of scores.
        unit: pixels; lines are two of them wide.
        marks: what is drawn, of `MARKS`.
    """

    pen: ImageDraw.ImageDraw
    colour: Colour
    font: Font
    unit: int = 1
    marks: Container[str] = frozenset({BOX, LANDMARKS, SCORE})

    def draw(self, face: Face, width: int) -> None:
        """Mark one face, in pixels of the pen's picture, which is `width` wide: the score stays inside.

        In a crowd marks must not hide the faces: dots shrink with the box, and one half as wide as its score has none.
        """
        x1, y1, x2, y2 = np.clip(checked_box(face["box"]), -_FAR, _FAR).tolist()
        points = np.clip(checked_landmarks(face["landmarks"]), -_FAR, _FAR).tolist()
        pen, unit = self.pen, self.unit
        if BOX in self.marks:
            pen.rectangle((x1, y1, x2, y2), outline=self.colour, width=2 * unit)
        for start, end in MESH if LINES in self.marks else ():
            pen.line((*points[start], *points[end]), fill=POINTS[start], width=2 * unit)
        dot = min(3 * unit, max(1, (x2 - x1) / 12))
        for (x, y), fill in zip(points, POINTS, strict=True) if LANDMARKS in self.marks else ():
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=fill, outline="white" if dot > 2 else None)
        if SCORE in self.marks:
            self._label(face, (x1, y1, x2), width)

    def _label(self, face: Face, edges: tuple[float, float, float], width: int) -> None:
        (x1, y1, x2), pen, unit = edges, self.pen, self.unit
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
