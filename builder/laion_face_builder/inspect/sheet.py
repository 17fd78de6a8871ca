"""A contact sheet as an HTML page: every example with its faces drawn over it, its caption, and its other columns."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from laion_face_builder.errors import TransformError
from laion_face_builder.images.modes import to_rgb
from laion_face_builder.inspect.html import rendered
from laion_face_builder.transforms.affine import checked_box, checked_landmarks
from laion_face_builder.transforms.drawing import POINTS

Example = dict[str, Any]

#: Longest side of a picture in the page, pixels: a page of a hundred stays a few megabytes.
THUMBNAIL = 512
_QUALITY = 85
#: Scores that a card tells; all are in the picture.
_SCORES = 12
#: Pixels: further out nothing is drawn.
_FAR = 100_000
_NAMES = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")


def sheet(examples: Sequence[Example], command: str, counts: str, columns: int = 4) -> str:
    """Make the page of a contact sheet.

    Args:
        examples: as datasets yields them, pictures decoded (or None; a smaller copy will do); see
            `schema.EXAMPLE_COLUMNS`.
        command: what the page was made with, shown in it.
        counts: a sentence about the rows that were read.
        columns: cards in a row, on a wide screen.
    """
    return rendered(
        "sheet.html",
        cards=[_card(example) for example in examples],
        pictures=sum(example["image"] is not None for example in examples),
        faces=sum(len(example["faces"]) for example in examples),
        command=command,
        counts=counts,
        columns=columns,
        colours=POINTS,
        point_names=_NAMES,
    )


def _card(example: Example) -> dict[str, Any]:
    return {**facts(example), "drawing": _drawing(example)}


def facts(example: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what is known of an example besides its picture: short texts, for a card."""
    known = example.get("similarity")
    similarity = "unknown" if known is None else f"{known:.3f}"
    return {
        "caption": example["caption"],
        "sample": f"{example['sample_id']}, part {example['part']}",
        "size": _sizes(example),
        "is_unsure": _is_unsure(example),
        "scores": _scores(example["faces"]),
        "tags": f"{example.get('nsfw') or 'no nsfw tag'}, similarity {similarity}",
        "url": example["url"],
    }


def _scores(faces: Sequence[dict[str, Any]]) -> str:
    scores = [f"{face['score']:.2f}" for face in faces[:_SCORES]]
    return ", ".join(scores) + (f" and {len(faces) - _SCORES} more" if len(faces) > _SCORES else "") or "no faces"


def _sizes(example: Mapping[str, Any]) -> str:
    original, now = (_size(example[f"{kind}width"], example[f"{kind}height"]) for kind in ("original_", ""))
    if example["image"] is None:
        return f"{original} in the metadata"
    return now if now == original else f"{now}, {original} in the metadata"


def _size(width: int | None, height: int | None) -> str:
    if width is None and height is None:
        return "unknown size"
    return f"{'?' if width is None else width} x {'?' if height is None else height}"


def _is_unsure(example: Mapping[str, Any]) -> bool:
    """Say whether there is a picture that the boxes may not fit."""
    return example["image"] is not None and not example.get("faces_aligned", True)


def _drawing(example: Example) -> dict[str, Any] | None:
    """Give what is drawn of an example, in the pixels of its picture; None if the size is not known."""
    image = example["image"]
    kind = "original_" if image is None else ""
    width, height = example[f"{kind}width"], example[f"{kind}height"]
    if width is None or height is None or min(width, height) < 1:
        return None
    shown = "no picture" if image is None else "picture"
    return {
        "width": width,
        "height": height,
        "told": f"{shown}, {width} x {height} pixels, {len(example['faces'])} faces",
        "picture": None if image is None else _thumbnail(image),
        "is_unsure": _is_unsure(example),
        "faces": list(_faces(example["faces"], width, height)),
    }


def _thumbnail(image: Image.Image) -> str:
    small = to_rgb(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = BytesIO()
    small.save(out, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _faces(faces: Sequence[dict[str, Any]], width: int, height: int) -> Iterator[dict[str, Any]]:
    """Place boxes, landmarks and scores. Ours count from pixels' centres, SVG from their corners: hence the halves."""
    letter = max(width, height) / 24
    for face in faces:
        with suppress(TransformError):  # a box without area cannot be drawn; its score is among the facts
            x1, y1, x2, y2 = (np.clip(checked_box(face["box"]), -_FAR, _FAR) + 0.5).tolist()
            points = (np.clip(checked_landmarks(face["landmarks"]), -_FAR, _FAR) + 0.5).tolist()
            # The label stays where it is seen, also when the box sticks out.
            left, top = min(max(x1, 0), width - 2.8 * letter), min(max(y1, 0), height - 1.25 * letter)
            box = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
            label = {"left": left, "top": top, "letter": letter, "score": f"{face['score']:.2f}"}
            marks = {"dot": min(letter / 4, (x2 - x1) / 12), "has_label": 2.8 * letter <= 2 * (x2 - x1)}
            yield {**box, **label, **marks, "points": points}
