"""Faces follow their picture: pure geometry from the original frame to the frame of the picture that is yielded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Two scales may differ by this share where rounding to whole pixels does not explain more.
ASPECT_TOLERANCE = 0.02

Face = dict[str, Any]


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

    def faces(self, faces: Sequence[Face]) -> list[Face]:
        """`faces` (box x1, y1, x2, y2; landmarks (x, y) each; score) in the new frame, rounded through float32."""
        if self.is_identity:
            return list(faces)
        return [
            {"box": self._points(f["box"]), "landmarks": [self._points(p) for p in f["landmarks"]], "score": f["score"]}
            for f in faces
        ]

    def _points(self, numbers: Sequence[float]) -> list[float]:
        """Alternating x and y."""
        scale = np.resize([self.scale_x, self.scale_y], len(numbers))
        offset = np.resize([self.offset_x, self.offset_y], len(numbers))
        moved: list[float] = (np.asarray(numbers, np.float64) * scale + offset).astype(np.float32).tolist()
        return moved


def rescaled(original: tuple[int, int], now: tuple[int, int]) -> Frame | None:
    """The frame of a copy of another size (width, height), None if the aspect is another and nothing can be known.

    Widths and heights of resized copies are whole pixels: a scale that explains both sides to less than one pixel must
    exist, and the two sides' scales must agree to `ASPECT_TOLERANCE`.
    """
    if min(*original, *now) <= 0:
        return None
    scale_x, scale_y = now[0] / original[0], now[1] / original[1]
    slack = 1 / original[0] + 1 / original[1]
    if abs(scale_x - scale_y) >= slack or abs(scale_x / scale_y - 1) > ASPECT_TOLERANCE:
        return None
    return Frame(scale_x, scale_y)
