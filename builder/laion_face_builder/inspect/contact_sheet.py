"""A contact sheet: pictures with boxes and landmarks drawn, captions and counts under them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from laion_face_builder.errors import TransformError
from laion_face_builder.images.modes import to_rgb
from laion_face_builder.shown import counted
from laion_face_builder.transforms.affine import moved_face
from laion_face_builder.transforms.drawing import SURE, UNSURE, Marker

Example = dict[str, Any]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CARD, _PICTURE, _TEXT, _GAP, _HEAD = 264, 224, 76, 16, 56
_PAGE, _PAPER, _LINE, _MAT = (242, 242, 239), (255, 255, 255), (218, 218, 214), (232, 233, 236)
_INK, _FAINT = (34, 36, 40), (118, 122, 130)
_ENLARGED_AT_MOST = 2.0
#: More letters than a line has room for: the rest of a caption, which may be a whole page, is not measured.
_LETTERS = 200
_READ = 4 * _LETTERS  # of a caption, spaces and accents included


def contact_sheet(examples: Sequence[Example], columns: int = 4) -> Image.Image:
    """Draw one RGB picture with a card for each example.

    Args:
        examples: dicts with image (a PIL picture of any mode, or None; a smaller copy will do), width and height of the
            whole picture, faces (dicts of box, landmarks, score in the whole picture's frame), caption, faces_aligned.
            Boxes that may not fit are drawn in amber.
        columns: cards in a row.
    """
    lines = max(1, math.ceil(len(examples) / columns))
    height = _PICTURE + _TEXT
    size = (columns * (_CARD + _GAP) + _GAP, _HEAD + lines * (height + _GAP))
    sheet = Image.new("RGB", size, _PAGE)
    ImageDraw.Draw(sheet).text((_GAP, 16), _title(examples), fill=_INK, font=_font(20))
    for number, example in enumerate(examples):
        left = _GAP + number % columns * (_CARD + _GAP)
        top = _HEAD + number // columns * (height + _GAP)
        sheet.paste(_card(example), (left, top))
    return sheet


def _title(examples: Sequence[Example]) -> str:
    faces = sum(len(example["faces"]) for example in examples)
    pictures = sum(example["image"] is not None for example in examples)
    return f"{counted(len(examples), 'example')}, {counted(pictures, 'picture')}, {counted(faces, 'face')}"


def _card(example: Example) -> Image.Image:
    card = Image.new("RGB", (_CARD, _PICTURE + _TEXT), _PAPER)
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, 0, _CARD - 1, _PICTURE), fill=_MAT)
    if example["image"] is None:
        pen.text((_CARD / 2, _PICTURE / 2), "no picture", fill=_FAINT, font=_font(15), anchor="mm")
    else:
        _place_picture(card, example)
    pen.rectangle((0, 0, card.width - 1, card.height - 1), outline=_LINE)
    for number, line in enumerate(
        _wrapped(showable((example["caption"] or "(no caption)")[:_READ]), _font(14), _CARD - 20)
    ):
        pen.text((10, _PICTURE + 8 + 19 * number), line, fill=_INK, font=_font(14))
    pen.text((10, _PICTURE + 52), _facts(example), fill=_FAINT, font=_font(12))
    return card


def _facts(example: Example) -> str:
    facts = [counted(len(example["faces"]), "face")]
    if example["image"] is not None:
        facts.append(f"{example['width']} x {example['height']}")
        if not example.get("faces_aligned", True):
            facts.append("not aligned")
    return "  |  ".join(facts)


def _place_picture(card: Image.Image, example: Example) -> None:
    picture = to_rgb(example["image"])
    width, height = example["width"], example["height"]
    scale = min(_CARD / width, _PICTURE / height, _ENLARGED_AT_MOST)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (_CARD - size[0]) // 2, (_PICTURE - size[1]) // 2
    card.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top))
    # Boxes may stick out of the picture: they are drawn over the mat too, but not over the text.
    area = card.crop((0, 0, _CARD, _PICTURE))
    pen = ImageDraw.Draw(area)
    marker = Marker(pen, SURE if example.get("faces_aligned", True) else UNSURE, _font(11))
    to_card = np.array([[scale, 0, left], [0, scale, top]])
    for face in example["faces"]:
        with suppress(TransformError):  # a box without area cannot be drawn; the count under the picture has it
            marker.draw(moved_face(face, to_card), _CARD)
    card.paste(area, (0, 0))


def showable(text: str) -> str:
    """Return `text` in one line. What the font lacks becomes its letter without accents, or the names of its scripts.

    Japanese mixes three scripts in a word, and there are blanks between words: one pair of brackets names them all.
    """
    pieces = []
    for script, run in groupby(_letters(_without_accents(" ".join(text.split()))), key=_script_if_missing):
        pieces.append(f"<{script}>" if script else "".join(run))
    return re.sub(r"<\w+>(\s*<\w+>)+", _in_one, "".join(pieces))


def _in_one(run: re.Match[str]) -> str:
    return f"<{', '.join(dict.fromkeys(re.findall(r'[^<>]+(?=>)', run[0])))}>"


def _letters(text: str) -> list[str]:
    """Split into characters; a mark that the font lacks the letter for stays with the letter."""
    letters: list[str] = []
    for one in text:
        if letters and unicodedata.category(one)[0] == "M" and _script_if_missing(letters[-1]):
            letters[-1] += one
        else:
            letters.append(one)
    return letters


def _without_accents(text: str) -> str:
    """Remove accents and strokes, but only from letters that the font does not have."""
    return "".join(_plain_latin(one) if _script_if_missing(one) == "latin" else one for one in text)


def _plain_latin(letter: str) -> str:
    base = unicodedata.normalize("NFKD", letter)[0]
    stroked = _STROKED.match(unicodedata.name(letter, ""))
    if base != letter or not stroked:
        return base
    return stroked[2] if stroked[1] == "CAPITAL" else stroked[2].lower()


#: Unicode has no plain letter for such as "LATIN SMALL LETTER O WITH STROKE", but names it.
_STROKED = re.compile(r"LATIN (CAPITAL|SMALL) LETTER (\w{1,2})\b")


@lru_cache(maxsize=4096)
def _script_if_missing(character: str) -> str:
    """Return "" if the font has the character, else the first word of a letter's Unicode name: its script.

    Of a letter with its marks the letter counts.
    """
    character = character[0]
    if not _is_missing(character):
        return ""
    is_letter = unicodedata.category(character)[0] in "LM"
    return re.split(r"\W", unicodedata.name(character, "sign"))[0].lower() if is_letter else "sign"


def _is_missing(character: str) -> bool:
    if character.isascii():
        return False
    if unicodedata.bidirectional(character) in ("R", "AL") and not features.check("raqm"):
        return True  # Pillow alone would draw it from the wrong side, its letters apart
    return bytes(_font(14).getmask(character)) == bytes(_font(14).getmask("\U0010ffff"))


def _wrapped(text: str, font: Font, width: int, lines: int = 2) -> list[str]:
    """Wrap `text` into at most `lines` lines of at most `width` pixels; what is left over ends in an ellipsis."""
    wrapped: list[str] = []
    rest = text[: lines * _LETTERS]
    while rest and len(wrapped) < lines:
        fits = next(n for n in range(len(rest), 0, -1) if n == 1 or font.getlength(rest[:n]) <= width)
        cut = rest.rfind(" ", 0, fits + 1) if fits < len(rest) else fits
        cut = cut if cut > fits // 2 else fits
        wrapped.append(rest[:cut].strip())
        rest = rest[cut:].strip()
    if rest:
        wrapped[-1] = wrapped[-1][:-2].rstrip() + "..."
    return wrapped


@lru_cache
def _font(size: int) -> Font:
    """Give DejaVu Sans, of the system or of matplotlib, which has most scripts; else Pillow's own, which is Latin."""
    matplotlib = find_spec("matplotlib")
    places = [Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"] if matplotlib and matplotlib.origin else []
    for place in (Path(), *places):
        with suppress(OSError):
            return ImageFont.truetype(str(place / "DejaVuSans.ttf"), size)
    return ImageFont.load_default(size=size)
