"""Cartoon faces with known boxes and landmarks, drawn and encoded in the formats that the web has.

Each of the five landmarks is the centre of a disc in a colour of its own, with a grey level of its own, so that
`find_landmarks` finds it again in what a decoder gives, whatever happened to the picture on its way.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from laion_face_builder.sandbox.spec import Face

#: Left eye, right eye, nose, left and right mouth corner: far apart as colours and (19 to 156) as grey levels.
MARKS = ((0, 40, 220), (0, 125, 30), (250, 130, 40), (40, 0, 60), (225, 45, 140))
_SKINS = ((255, 224, 189), (241, 194, 125), (192, 130, 62), (141, 85, 36))
_HAIRS = ((85, 58, 36), (225, 190, 90), (190, 110, 60), (170, 170, 175))
_MOUTH = (200, 105, 100)
#: Where a landmark lies in its face's box, as shares of width and height.
_PLACES = ((0.30, 0.42), (0.70, 0.42), (0.50, 0.60), (0.32, 0.78), (0.68, 0.78))

KINDS = (
    *("jpeg",) * 8,
    *(f"jpeg-exif-{orientation}" for orientation in range(1, 9)),
    *("jpeg-progressive", "jpeg-gray", "jpeg-cmyk", "jpeg-comment"),
    *("png", "png-rgba", "png-palette", "png-16bit", "png-exif-6"),
    *("webp", "webp-alpha", "webp-exif-8", "gif", "gif-animated"),
)


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn: its size in pixels, its faces, and the seed of its looks."""

    width: int
    height: int
    faces: tuple[Face, ...]
    looks: int


def plan(rng: random.Random, faces: int) -> Scene:
    """Plan a picture with so many faces on a loose grid; in one of six they stick out of it."""
    columns = max(1, math.ceil(math.sqrt(faces)))
    lines = max(1, math.ceil(faces / columns))
    cell = rng.randint(84, 150) if faces < 3 else rng.randint(76, 96)
    width, height = columns * cell + rng.randint(0, 90), lines * cell + rng.randint(8, 60)
    shift_x = rng.randint(0, width - columns * cell)
    shift_y = 4
    if faces and rng.random() < 1 / 6:
        shift_x, shift_y = rng.choice([(-cell // 3, 4), (0, -cell // 4), (width - columns * cell + cell // 3, 4)])
    spots = [(shift_x + at % columns * cell, shift_y + at // columns * cell) for at in range(faces)]
    found = [_face(rng, left, top, cell) for left, top in spots]
    found.sort(key=lambda face: -face.score)
    return Scene(width, height, tuple(found), rng.getrandbits(32))


def _face(rng: random.Random, left: int, top: int, cell: int) -> Face:
    height = rng.randint(68, cell - 6)
    width = round(height * rng.uniform(0.8, 0.95))
    x, y = left + rng.randint(2, cell - width - 2), top + rng.randint(2, cell - height - 2)
    box = (x, y, x + width, y + height)
    marks = [(x + share_x * width, y + share_y * height) for share_x, share_y in _PLACES]
    return Face(
        box=tuple(_single(edge + rng.uniform(-0.4, 0.4)) for edge in box),  # type: ignore[arg-type] # four of four
        landmarks=tuple((_single(mark_x), _single(mark_y)) for mark_x, mark_y in marks),
        score=_single(rng.uniform(0.5, 0.9999)),
    )


def _single(value: float) -> float:
    return float(np.float32(value))


def draw(scene: Scene, *, plain: bool = False) -> Image.Image:
    """Draw the picture in RGB; `plain` leaves out the gradient, for formats with few colours."""
    looks = random.Random(scene.looks)  # noqa: S311 - looks, not secrets
    light, other = ((looks.randint(185, 250), looks.randint(185, 250), looks.randint(185, 250)) for _ in range(2))
    picture = Image.new("RGB", (scene.width, scene.height), light)
    if not plain and looks.random() < 0.6:
        slope = Image.linear_gradient("L").rotate(90 * looks.randint(0, 3)).resize(picture.size)
        picture = Image.composite(Image.new("RGB", picture.size, other), picture, slope)
    pen = ImageDraw.Draw(picture)
    for face in scene.faces:
        _draw_face(pen, face, looks)
    return picture


def _draw_face(pen: ImageDraw.ImageDraw, face: Face, looks: random.Random) -> None:
    x1, y1, x2, y2 = (round(edge) for edge in face.box)
    marks = [(round(x), round(y)) for x, y in face.landmarks]
    radius = max(4, round((x2 - x1) / 16))
    skin, hair = looks.choice(_SKINS), looks.choice(_HAIRS)
    pen.ellipse((x1, y1, x2, y2), fill=hair)
    pen.ellipse((x1 + 3, y1 + (y2 - y1) // 6, x2 - 3, y2), fill=skin)
    pen.line(marks[3:], fill=_MOUTH, width=2)
    for number, (x, y) in enumerate(marks):
        if number < 2:
            pen.ellipse((x - 2 * radius, y - radius - 2, x + 2 * radius, y + radius + 2), fill="white")
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=MARKS[number])


def encode(picture: Image.Image, kind: str) -> bytes:
    """Encode `picture` (RGB) as one of `KINDS`."""
    form, _, variant = kind.partition("-")
    exif = Image.Exif()
    if variant.startswith("exif-"):
        exif[0x0112] = int(variant[-1])
    settings = {"exif": exif} if len(exif) else {}
    if form == "jpeg":
        return _jpeg(picture, variant, settings)
    if form == "gif":
        frames = [picture.quantize(64)]
        frames += [ImageOps.mirror(picture).quantize(64)] if variant == "animated" else []
        return _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=80)
    if form == "webp":
        chosen = _see_through(picture) if variant == "alpha" else picture
        return _saved(chosen, "WEBP", lossless=variant == "alpha", quality=90, method=0, **settings)
    return _saved(_png_mode(picture, variant), "PNG", compress_level=1, **settings)


def _png_mode(picture: Image.Image, variant: str) -> Image.Image:
    if variant == "rgba":
        return _see_through(picture)
    if variant == "palette":
        return picture.quantize(64)
    if variant == "16bit":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    return picture


def _jpeg(picture: Image.Image, variant: str, settings: Mapping[str, object]) -> bytes:
    modes = {"gray": "L", "cmyk": "CMYK"}
    chosen = picture.convert(modes[variant]) if variant in modes else picture
    data = _saved(chosen, "JPEG", quality=92, subsampling=0, progressive=variant == "progressive", **settings)
    if variant == "comment":  # the JFIF segment goes, a comment comes first: readers that look for JFIF give up here
        note = b"drawn for the sandbox"
        jfif = int.from_bytes(data[4:6], "big")
        data = data[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + data[4 + jfif :]
    return data


def _see_through(picture: Image.Image) -> Image.Image:
    slope = Image.linear_gradient("L").resize(picture.size)
    picture = picture.copy()
    picture.putalpha(slope)
    return picture


def _saved(picture: Image.Image, form: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **settings)
    return buffer.getvalue()


def find_landmarks(picture: Image.Image, box: Sequence[float]) -> np.ndarray:
    """Find the centres of the five discs within `box` (in `picture`'s frame), float64[5, 2]; NaN where there is none.

    A picture without colours is searched by grey levels.
    """
    left, top = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    right, bottom = min(math.ceil(box[2]), picture.width), min(math.ceil(box[3]), picture.height)
    if right <= left or bottom <= top:
        return np.full((5, 2), np.nan)
    array, marks = _channels(picture.crop((left, top, right, bottom)))
    found = np.full((5, 2), np.nan)
    for number, mark in enumerate(marks):
        hits = np.abs(array - mark).max(axis=-1) <= (9 if array.shape[-1] == 1 else 30)
        if array.shape[-1] == 1:
            hits = _eroded(hits)  # the rims between light and dark pass through every level
        if hits.any():
            rows, columns = np.nonzero(hits)
            found[number] = columns.mean() + left, rows.mean() + top
    return found


def _channels(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    marks = np.asarray(MARKS, dtype=np.float64)
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    array = np.asarray(picture.convert("RGB"), dtype=np.float64)
    if np.ptp(array, axis=-1).max(initial=0) > 0:
        return array, marks
    return array[..., :1], (marks @ (0.299, 0.587, 0.114))[:, None]


def _eroded(hits: np.ndarray) -> np.ndarray:
    core = np.zeros_like(hits)
    if min(hits.shape) > 2:
        core[1:-1, 1:-1] = np.lib.stride_tricks.sliding_window_view(hits, (3, 3)).all(axis=(2, 3))
    return core
