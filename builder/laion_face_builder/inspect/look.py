"""An example as a notebook shows it: the picture with its faces, and what is known of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from laion_face_builder.errors import OptionError, TransformError
from laion_face_builder.images.modes import to_rgb
from laion_face_builder.inspect.html import rendered
from laion_face_builder.inspect.sheet import facts
from laion_face_builder.transforms.affine import moved_face
from laion_face_builder.transforms.drawing import draw_faces

#: Longest side of the picture that is shown, pixels.
LONGEST = 640
_ENLARGED_AT_MOST = 4
_SIZES = ("width", "height", "original_width", "original_height")
_SHOWN = ("sample_id", "image", "caption", "faces", "url", *_SIZES, "part")


@dataclass(frozen=True)
class Look:
    """An example that shows itself in a notebook; elsewhere it prints one line, and `picture` is there to be saved."""

    example: Mapping[str, Any]

    @property
    def picture(self) -> Image.Image | None:
        """The picture in RGB with boxes, landmarks and scores, up to 640 pixels; None if the example has none."""
        found = _decoded(self.example["image"])
        if found is None:
            return None
        scale = min(LONGEST / max(found.size), _ENLARGED_AT_MOST)
        shown = found.resize([max(1, round(side * scale)) for side in found.size], Image.Resampling.LANCZOS)
        to_shown = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])
        for face in self.example["faces"]:
            with suppress(TransformError):  # a box without area cannot be drawn
                moved = moved_face(face, to_shown)
                shown = draw_faces(shown, [moved], aligned=self.example.get("faces_aligned", True))
        return shown

    def _repr_png_(self) -> bytes | None:
        if (picture := self.picture) is None:
            return None
        out = BytesIO()
        picture.save(out, "PNG")
        return out.getvalue()

    def _repr_html_(self) -> str:
        png = self._repr_png_()
        picture = None if png is None else f"data:image/png;base64,{base64.b64encode(png).decode()}"
        return rendered("look.html", card=facts(self.example), picture=picture)

    def __repr__(self) -> str:
        known = facts(self.example)
        return f"sample {known['sample']}: {len(self.example['faces'])} faces, {known['size']}, {known['caption']!r}"


def look(example: Mapping[str, Any]) -> Look:
    """Look at an example: as the last line of a notebook's cell it shows the picture with its faces.

        laion_face.look(next(iter(ds)))

    Args:
        example: what a dataset of this builder yields, its picture decoded or not (`.decode(False)`).

    Raises:
        OptionError: it lacks columns of an example, such as after `.remove_columns`.
    """
    if missing := [name for name in _SHOWN if name not in example]:
        raise OptionError(
            f"look: the example has no {', '.join(missing)}; expected one with all columns of this dataset"
        )
    return Look(example)


def _decoded(image: Any) -> Image.Image | None:
    if isinstance(image, Mapping):
        if image.get("bytes") is None:
            return None
        with Image.open(BytesIO(image["bytes"])) as opened:
            return to_rgb(opened)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return None if image is None else to_rgb(image)
