"""The alignment of the FFHQ data set: a square around eyes and mouth, and what is put where the picture ends.

The rule is published. The square: Karras et al., "Progressive Growing of GANs" (arXiv:1710.10196), appendix C. What is
put outside of the picture: NVlabs/ffhq-dataset, download_ffhq.py, `recreate_aligned_images` with its padding. With eyes
e0, e1 and mouth corners m0, m1:

    across = e1 - e0                     down = (m0 + m1) / 2 - (e0 + e1) / 2
    x = across + (down turned a quarter, so that it points as `across` does), at the length
        max(2 |across|, 1.8 |down|); y = x turned a quarter
    the square has its middle at (e0 + e1) / 2 + down / 10, and its corners at middle - x - y … middle + x + y

Where the square comes within 4 pixels of the picture's edge, the picture is continued as in a mirror; from a tenth of
the square inside of its edge on it is blurred, and outside of it faded to the picture's median colour.

FFHQ works in the picture's pixels, at 4,096 pixels a face. Here the same is done in pixels of the result: a similarity
keeps a round blur round, and where a pixel lies in the picture is known of each. So it takes memory for the result, not
for the picture. Only the median is taken from a small copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laion_face_builder.errors import TransformError
from laion_face_builder.transforms.affine import Floats, Pixels, moved_points

#: All as shares of the square's side: what is kept around it, the least padding, and the spread of the blur.
_BORDER, _PADDING, _BLUR = 0.1, 0.3, 0.02
#: Pixels that the square keeps from the picture's edge, if nothing is padded.
_NEAR = 4
#: How far a blur reaches, in spreads.
_REACH = 4
#: Pixels of the longer side of the copy that the median is taken from.
_COPY = 256


def ffhq_matrix(landmarks: Floats, size: int) -> Floats:
    """Return the similarity, float64[2, 3], from the picture to a result of `size` x `size` pixels.

    Args:
        landmarks: float64[5, 2]: left eye, right eye, nose, which does not matter, left and right mouth corner.
        size: pixels.

    Raises:
        TransformError: eyes and mouth fall together.
    """
    eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
    across, down = landmarks[1] - landmarks[0], mouth - eyes
    x = across + np.array([down[1], -down[0]])
    length, farthest = float(np.hypot(*x)), float(np.abs(landmarks).max())
    if length <= 1e-6 * (1 + farthest):
        raise TransformError(f"landmarks: they fall together or fit no face: {np.round(landmarks, 3).tolist()}")
    half = max(2.0 * float(np.hypot(*across)), 1.8 * float(np.hypot(*down)))
    cosine, sine = x / length
    scale = size / (2 * half)
    turn = scale * np.array([[cosine, sine], [-sine, cosine]])
    # The square's corner lies at the corner of the first pixel, half a pixel from its centre.
    shift = (size - 1) / 2 - turn @ (eyes + 0.1 * down)
    return np.column_stack([turn, shift])


@dataclass(frozen=True)
class _Padding:
    """The part of the picture around a square, and how far it is padded.

    Attributes:
        part: left, top, right, bottom in the picture; right and bottom are the ones after the last.
        widths: left, top, right, bottom, pixels.
        side: of the square, pixels of the picture.
    """

    part: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    side: float

    @classmethod
    def around(cls, matrix: Floats, size: int, shape: tuple[int, ...]) -> _Padding | None:
        """Give the padding for the square that `matrix` brings to `size` pixels; None if it lies inside the picture."""
        side = size / float(np.hypot(*matrix[:, 0]))
        corners = np.array([(-0.5, -0.5), (size - 0.5, -0.5), (-0.5, size - 0.5), (size - 0.5, size - 0.5)])
        corners = moved_points(corners, inverse(matrix))
        border = max(round(side * _BORDER), 3)
        near, far = np.floor(corners.min(axis=0)) - border, np.ceil(corners.max(axis=0)) + border
        picture = np.array(shape[1::-1])
        beyond = np.concatenate([np.maximum(-near, 0), np.maximum(far - picture, 0)])
        if beyond.max() <= border - _NEAR:
            return None
        part = np.concatenate([np.maximum(near, 0), np.minimum(far, picture)])
        if (part[:2] >= part[2:]).any():
            raise TransformError(f"landmarks: the aligned face lies outside of the picture of {shape[1]} x {shape[0]}")
        left, top, right, bottom = part.astype(int).tolist()
        widths = np.maximum(beyond, max(round(side * _PADDING), 1)).astype(int).tolist()
        return cls((left, top, right, bottom), tuple(widths), side)

    def depth(self, x: Floats, y: Floats) -> Floats:
        """Tell of points of the picture how far outside they are: 0 at the edge of the part, 1 where padding ends."""
        left, top, right, bottom = self.part
        pads = self.widths
        across = np.minimum((x - left + pads[0]) / pads[0], (right - 1 + pads[2] - x) / pads[2])
        down = np.minimum((y - top + pads[1]) / pads[1], (bottom - 1 + pads[3] - y) / pads[3])
        return np.asarray(1 - np.minimum(across, down), np.float32)


def inverse(matrix: Floats) -> Floats:
    """Return the similarity that undoes `matrix`."""
    return np.asarray(np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2], np.float64)


def padded_square(pixels: Pixels, matrix: Floats, size: int) -> Pixels | None:
    """Return the aligned face, with its padding; None if its square lies inside the picture and needs none.

    Raises:
        TransformError: nothing of the picture would be seen.
    """
    padding = _Padding.around(matrix, size, pixels.shape)
    if padding is None:
        return None
    import cv2

    left, top, right, bottom = padding.part
    part = pixels[top:bottom, left:right]
    spread = size * _BLUR
    room = round(spread * _REACH) + 1
    # One margin more than the result: the blur looks there.
    wide = matrix @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]]) + [[0, 0, room], [0, 0, room]]
    square = _mirrored(part, wide, size + 2 * room)
    soft = cv2.GaussianBlur(square, (2 * room - 1, 2 * room - 1), spread, borderType=cv2.BORDER_REFLECT)
    inside = (slice(room, room + size),) * 2
    back = inverse(matrix)
    rows, columns = np.indices((size, size), dtype=np.float32)
    x = back[0, 0] * columns + back[0, 1] * rows + back[0, 2]
    y = back[1, 0] * columns + back[1, 1] * rows + back[1, 2]
    depth = padding.depth(x, y)[..., None]
    result = square[inside].reshape(size, size, -1)
    result += (soft[inside].reshape(size, size, -1) - result) * np.clip(3 * depth + 1, 0, 1)
    result += (_median(part, padding) - result) * np.clip(depth, 0, 1)
    shape = (size, size) if pixels.ndim == 2 else (size, size, 3)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8).reshape(shape)


def _mirrored(part: Pixels, matrix: Floats, size: int) -> Floats:
    """Warp the part, continued as in a mirror, to float32[size, size(, 3)]; blocks are averaged as `alignment.warp`."""
    import cv2

    factor = max(1, int(1 / float(np.hypot(*matrix[:, 0])) + 1e-9))
    below, right = -part.shape[0] % factor, -part.shape[1] % factor
    whole = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_REFLECT_101) if below or right else part
    smaller = (whole.shape[1] // factor, whole.shape[0] // factor)
    reduced = whole if factor == 1 else cv2.resize(whole, smaller, interpolation=cv2.INTER_AREA)
    back = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1.0]])
    warped = cv2.warpAffine(
        reduced, matrix @ back, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(warped, np.float32)


def _median(part: Pixels, padding: _Padding) -> Floats:
    """Return the median colour of the part with its padding, blurred where FFHQ blurs it: float32[1 or 3]."""
    import cv2

    (left, top, right, bottom), pads = padding.part, padding.widths
    wide = max(part.shape[1] + pads[0] + pads[2], part.shape[0] + pads[1] + pads[3])
    scale = min(1.0, _COPY / wide)
    small = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    copy = cv2.resize(part, small, interpolation=cv2.INTER_AREA) if scale < 1 else part
    before, after = ([round(pads[side] * scale) for side in sides] for sides in ((0, 1), (2, 3)))
    border = cv2.BORDER_REFLECT_101
    copy = cv2.copyMakeBorder(copy, before[1], after[1], before[0], after[0], border).astype(np.float32)
    copy = copy.reshape(*copy.shape[:2], -1)
    x = left + (np.arange(copy.shape[1]) - before[0] + 0.5) * ((right - left) / small[0]) - 0.5
    y = top + (np.arange(copy.shape[0]) - before[1] + 0.5) * ((bottom - top) / small[1]) - 0.5
    spread = max(1e-3, padding.side * scale * _BLUR)
    soft = cv2.GaussianBlur(copy, (0, 0), spread, borderType=cv2.BORDER_REFLECT).reshape(copy.shape)
    copy += (soft - copy) * np.clip(3 * padding.depth(x[None, :], y[:, None])[..., None] + 1, 0, 1)
    return np.asarray(np.median(copy, axis=(0, 1)), np.float32)
