"""Alignment: five landmarks brought onto a template by a similarity (turn, scale, shift), as models want it.

Recognisers' templates are five points. That of FFHQ, which generators are trained on, is a rule: see `ffhq`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laion_face_builder.errors import TransformError
from laion_face_builder.transforms.affine import (
    Floats,
    Picture,
    Pixels,
    Transformed,
    checked_landmarks,
    checked_size,
    moved_points,
    opened,
)
from laion_face_builder.transforms.ffhq import ffhq_matrix, inverse, padded_square

#: Left eye, right eye, nose, left and right mouth corner, pixels of a picture 112 x 112: what ArcFace models are
#: trained on. Source: deepinsight/insightface, python-package/insightface/utils/face_align.py, `arcface_src`.
ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
#: The same points as shares of the half picture from its middle, -1 to 1. Source: FacePerceiver/facer (by FaRL's
#: authors), facer/transform.py, `_standard_face_pts`: pixels of 512 x 512, divided by 256, less 1.
FARL = np.array([[196.0, 226.0], [316.0, 226.0], [256.0, 286.0], [220.0, 360.4], [292.0, 360.4]]) / 256.0 - 1.0
#: How much of the picture FaRL's face takes: `target_face_scale` of its models without a tanh warp, such as
#: "ibug300w/448" (facer/face_alignment/farl.py) and "celebm/448" (facer/face_parsing/farl.py).
FARL_FACE_SCALE = 0.8

#: Templates of five points, and FFHQ's square; and the size of a result that each is mostly wanted in, pixels.
TEMPLATES = POINTS_ARCFACE, POINTS_FARL, SQUARE_FFHQ = "arcface", "farl", "ffhq"
USUAL_SIZES = {POINTS_ARCFACE: 112, POINTS_FARL: 448, SQUARE_FFHQ: 1024}


def align_face(
    image: Picture, landmarks: Any, size: int = 112, template: str = "arcface", *, fill: int = 0
) -> Transformed[Picture]:
    """Turn, scale and shift the face so that its landmarks lie, by least squares, on the template's.

    What is scaled down is averaged first, so that it does not alias. Parts outside the picture are filled; with "ffhq"
    they are mirrored, blurred and faded, as that data set has it.

    Args:
        image: a PIL picture, or uint8[height, width(, 3)]; the aligned one is of the same kind.
        landmarks: [5, 2], left eye, right eye, nose, left and right mouth corner, (x, y) in pixels of `image`.
        size: width and height of the result, pixels: 112 for ArcFace's models, 448 for FaRL's, 1,024 for FFHQ.
        template: "arcface", "farl" or "ffhq"; for their sources see `ARCFACE_112`, `FARL` and the module `ffhq`.
        fill: 0 to 255, of what lies outside; of no meaning for "ffhq".

    Raises:
        TransformError: landmarks that fall together or are not finite, an unknown template, no such picture.
    """
    width, height = checked_size(size)
    points = checked_landmarks(landmarks)
    matrix = template_matrix(template, points, width)
    pixels, give_back = opened(image)
    padded = padded_square(pixels, matrix, width) if template == SQUARE_FFHQ else None
    warped = warp(pixels, matrix, (width, height), fill) if padded is None else padded
    return Transformed(give_back(warped), matrix, moved_points(points, matrix))


def check_template(template: str) -> None:
    """Raise TransformError if there is no such template."""
    if template not in TEMPLATES:
        raise TransformError(f"template: found {template!r}, valid are {', '.join(map(repr, TEMPLATES))}")


def template_matrix(template: str, landmarks: Floats, size: int) -> Floats:
    """Return the similarity, float64[2, 3], that aligns `landmarks` [5, 2] in a picture of `size` x `size` pixels.

    Raises:
        TransformError: there is no such template, or the landmarks fall together.
    """
    check_template(template)
    if template == SQUARE_FFHQ:
        return ffhq_matrix(landmarks, size)
    return similarity(landmarks, template_points(template, size))


def template_points(template: str, size: int) -> Floats:
    """Return the landmarks of a template of points in a picture of `size` x `size` pixels, float64[5, 2].

    Raises:
        TransformError: there is no such template of points.
    """
    if template == POINTS_ARCFACE:
        # As insightface scales it; a pixel's centre at 0 stays there.
        return np.asarray(ARCFACE_112 * (size / 112), np.float64)
    if template == POINTS_FARL:
        return np.asarray((FARL * FARL_FACE_SCALE + 1) * ((size - 1) / 2), np.float64)
    raise TransformError(f"template: found {template!r}, of points are {POINTS_ARCFACE!r} and {POINTS_FARL!r}")


def similarity(source: Floats, target: Floats) -> Floats:
    """Return the similarity without reflection, float64[2, 3], that brings `source` [n, 2] nearest to `target`.

    Nearest by least squares: Umeyama's (1991) transform, which in the plane is a regression with one complex factor: a
    turn by its angle, a scale by its length.

    Raises:
        TransformError: the points fall together, or fit no turn better than another.
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    middle, onto = z.mean(), w.mean()
    spread = float((abs(z - middle) ** 2).sum())
    # Relative to how large the numbers are: five equal points far out are not five points by rounding.
    factor = (np.conj(z - middle) * (w - onto)).sum() / spread if spread > 1e-9 * (1 + abs(middle)) ** 2 else 0j
    if abs(factor) * np.sqrt(spread) <= 1e-6 * np.linalg.norm(w - onto):
        raise TransformError(f"landmarks: they fall together or fit no face: {np.round(source, 3).tolist()}")
    shift = onto - factor * middle
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def warp(pixels: Pixels, matrix: Floats, size: tuple[int, int], fill: int) -> Pixels:
    """Warp `pixels` by the similarity `matrix` to a picture of width and height `size`, without aliasing.

    Raises:
        TransformError: nothing of the picture would be seen.
    """
    import cv2

    left, top, right, bottom = _seen(matrix, size, pixels.shape)
    # Down to twice the final size at least: measured against exact averages, more blurs and less aliases.
    factor = max(1, int(1 / float(np.hypot(*matrix[:, 0])) + 1e-9))
    # Whole blocks, where the picture has them: nothing then has to be filled up, and so copied.
    part = pixels[top : bottom + -(bottom - top) % factor, left : right + -(right - left) % factor]
    part = _reduced(part, factor, fill)
    # From the reduced part's frame to the picture's: pixels are averaged around their middle.
    back = np.array([[factor, 0, left + (factor - 1) / 2], [0, factor, top + (factor - 1) / 2], [0, 0, 1.0]])
    return np.asarray(
        cv2.warpAffine(
            part, matrix @ back, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=[fill] * 3
        ),
        np.uint8,
    )


def _seen(matrix: Floats, size: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the part of the picture that the warp reads: left, top, right, bottom."""
    back = inverse(matrix)
    corners = moved_points([(-1, -1), (size[0], -1), (-1, size[1]), size], back)
    around = 2 + round(float(np.hypot(*back[:, 0])))
    left, top = np.clip(np.floor(corners.min(axis=0)) - around, 0, shape[1::-1]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)) + around, 0, shape[1::-1]).astype(int).tolist()
    if right <= left or bottom <= top:
        raise TransformError(f"landmarks: the aligned face lies outside of the picture of {shape[1]} x {shape[0]}")
    return left, top, right, bottom


def _reduced(part: Pixels, factor: int, fill: int) -> Pixels:
    """Average blocks of `factor` x `factor` pixels, filling the picture up to whole blocks."""
    import cv2

    if factor == 1:
        return part
    height, width = part.shape[:2]
    below, right = -height % factor, -width % factor
    if below or right:
        part = np.asarray(cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=[fill] * 3), np.uint8)
    smaller = ((width + right) // factor, (height + below) // factor)
    return np.asarray(cv2.resize(part, smaller, interpolation=cv2.INTER_AREA), np.uint8)
