"""A contact sheet as an HTML page: every example with its faces drawn over it, its caption, and its other columns."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from laion_face_builder.errors import TransformError
from laion_face_builder.images.modes import to_rgb
from laion_face_builder.inspect.html import attributes, escaped, link, page
from laion_face_builder.transforms.affine import checked_box, checked_landmarks
from laion_face_builder.transforms.drawing import POINTS

Example = dict[str, Any]

#: Longest side of a picture in the page, pixels: a page of a hundred stays a few megabytes.
THUMBNAIL = 512
_QUALITY = 85
#: Pixels: further out nothing is drawn.
_FAR = 100_000
_NAMES = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")
_POINTS = "\n".join(f".point-{number} {{ fill: rgb{colour}; }}" for number, colour in enumerate(POINTS))
_STYLE = f"""
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); margin-top: 1.4rem; }}
@media (min-width: 60rem) {{ main {{ grid-template-columns: repeat(COLUMNS, minmax(0, 1fr)); }} }}
figure {{ margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }}
.frame {{ aspect-ratio: 1; background: var(--mat); overflow: hidden; padding: 6%; }}
.frame svg {{ display: block; width: 100%; height: 100%; overflow: visible; }}
.box {{ fill: none; stroke: var(--sure); stroke-width: 2px; vector-effect: non-scaling-stroke; }}
.label {{ fill: var(--sure); }} .unsure .label {{ fill: var(--unsure); }} .unsure .box {{ stroke: var(--unsure); }}
.score {{ fill: #fff; font-weight: 600; font-family: system-ui, "Liberation Sans", sans-serif; }}
.point {{ stroke: #fff; stroke-width: 1px; vector-effect: non-scaling-stroke; }}
{_POINTS}
.blank {{ fill: #f8f8f6; stroke: #c9cac4; stroke-dasharray: 4 4; vector-effect: non-scaling-stroke; }}
figcaption {{ padding: .7rem .8rem .8rem; font-size: .9rem; line-height: 1.4; }}
.caption {{ margin: 0 0 .5rem; font-size: 1rem; }}
figcaption dl {{ margin: 0; display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem .7rem; }}
dt {{ color: var(--faint); }} dd {{ margin: 0; font-variant-numeric: tabular-nums; }}
.badge {{ color: var(--unsure); font-weight: 600; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; color: var(--faint); }}
.legend svg {{ width: .8rem; height: .8rem; vertical-align: -.08rem; margin-right: .3rem; }}
"""


def sheet(examples: Sequence[Example], command: str, counts: str, columns: int = 4) -> str:
    """Make the page of a contact sheet.

    Args:
        examples: as datasets yields them, pictures decoded (or None; a smaller copy will do); see
            `schema.EXAMPLE_COLUMNS`.
        command: what the page was made with, shown in it.
        counts: a sentence about the rows that were read.
        columns: cards in a row, on a wide screen.
    """
    faces = sum(len(example["faces"]) for example in examples)
    pictures = sum(example["image"] is not None for example in examples)
    body = [
        "<header><h1>LAION-Face contact sheet</h1>",
        f"<p>{len(examples):,} examples, {pictures:,} with a picture, {faces:,} faces. {escaped(counts)}.</p>",
        f"<pre>$ {escaped(command)}</pre>",
        _legend(),
        "</header>\n<main>",
        *(_card(example) for example in examples),
        "</main>",
    ]
    if not examples:
        body.append('<p class="empty">No sample passed. Loosen the filters, or read more parts.</p>')
    return page("LAION-Face contact sheet", body, _STYLE.replace("COLUMNS", str(columns)))


def _legend() -> str:
    marks = [
        f'<span><svg viewBox="0 0 10 10"><circle class="point-{number}" cx="5" cy="5" r="5"/></svg>{name}</span>'
        for number, name in enumerate(_NAMES)
    ]
    return f'<div class="legend">{"".join(marks)}</div>'


def _card(example: Example) -> str:
    caption = example["caption"]
    said = escaped(caption) if caption else '<span class="faint">no caption</span>'
    facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in _facts(example))
    return (
        f'<figure>\n<div class="frame">{_picture(example)}</div>\n'
        f'<figcaption><p class="caption" dir="auto">{said}</p>\n<dl>{facts}</dl></figcaption>\n</figure>'
    )


def _facts(example: Example) -> Iterator[tuple[str, str]]:
    yield "sample", f"{example['sample_id']}, part {example['part']}"
    original = _size(example["original_width"], example["original_height"])
    now = _size(example["width"], example["height"])
    if example["image"] is None:
        yield "size", f"{original} in the metadata"
    else:
        yield "size", now + ("" if now == original else f", {original} in the metadata")
        if not example["faces_aligned"]:
            yield "boxes", '<span class="badge">may not fit this picture</span>'
    scores = ", ".join(f"{face['score']:.2f}" for face in example["faces"])
    yield "scores", scores or "no faces"
    similarity = "unknown" if example["similarity"] is None else f"{example['similarity']:.3f}"
    yield "tags", escaped(f"{example['nsfw'] or 'no nsfw tag'}, similarity {similarity}")
    yield "from", link(example["url"])


def _size(width: int | None, height: int | None) -> str:
    if width is None and height is None:
        return "unknown size"
    return f"{'?' if width is None else width} x {'?' if height is None else height}"


def _picture(example: Example) -> str:
    """Draw picture and faces as one SVG in the picture's own coordinates, so that they cannot drift apart."""
    image = example["image"]
    kind = "original_" if image is None else ""
    width, height = example[f"{kind}width"], example[f"{kind}height"]
    if width is None or height is None or min(width, height) < 1:
        return '<span class="faint">no picture, and its size is not known</span>'
    faces = example["faces"]
    told = f"{'picture' if image is not None else 'no picture'}, {width} x {height} pixels, {len(faces)} faces"
    fit = "faces" if image is None or example["faces_aligned"] else "faces unsure"
    place = attributes({"x": 0, "y": 0, "width": width, "height": height})
    inner = (
        f'<image {place} preserveAspectRatio="none" href="{_thumbnail(image)}"/>'
        if image is not None
        else f'<rect class="blank" {place}/>'
    )
    drawn = "".join(_face(face, width, height) for face in faces)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{told}"><title>{told}</title>{inner}'
        f'<g class="{fit}">{drawn}</g></svg>'
    )


def _thumbnail(image: Image.Image) -> str:
    small = to_rgb(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = BytesIO()
    small.save(out, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _face(face: dict[str, Any], width: int, height: int) -> str:
    """Draw box, landmarks and score. Ours count from pixels' centres, SVG from their corners: hence the halves."""
    with suppress(TransformError):  # a box without area cannot be drawn; its score is among the facts
        x1, y1, x2, y2 = (np.clip(checked_box(face["box"]), -_FAR, _FAR) + 0.5).tolist()
        points = (np.clip(checked_landmarks(face["landmarks"]), -_FAR, _FAR) + 0.5).tolist()
        letter = max(width, height) / 24
        # The label stays where it is seen, also when the box sticks out.
        left, top = min(max(x1, 0), width - 2.8 * letter), min(max(y1, 0), height - 1.25 * letter)
        box = attributes({"class": "box", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1})
        label = attributes({"class": "label", "x": left, "y": top, "width": 2.8 * letter, "height": 1.25 * letter})
        at = attributes({"class": "score", "x": left + 0.2 * letter, "y": top + letter, "font_size": letter})
        dots = "".join(
            f"<circle {attributes({'class': f'point point-{n}', 'cx': x, 'cy': y, 'r': letter / 4})}/>"
            for n, (x, y) in enumerate(points)
        )
        return f"<rect {box}/>{dots}<rect {label}/><text {at}>{face['score']:.2f}</text>"
    return ""
