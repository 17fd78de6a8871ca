"""Crops and alignments a CPU second, against the obvious loops with OpenCV and Pillow; and how true their pixels are.

    python benchmarks/bench_transforms.py [--seconds 2] [--repeats 5]

One core, pictures decoded beforehand, one face after the other: 224 x 224 crops with a margin of a quarter, 112 x 112
alignments. The pictures are noise blurred by a pixel or so, which is what shows aliasing.

- OpenCV crop: slice, copyMakeBorder, resize(INTER_AREA). Alignment: estimateAffinePartial2D, warpAffine.
- Pillow crop: crop, resize. Alignment: least squares by NumPy, transform(AFFINE, BILINEAR).
- Error: root of the mean square against the average over 8 x 8 samples of each pixel, of 255.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

import laion_face
from laion_face_builder.transforms.alignment import ARCFACE_112, similarity

_CROP, _ALIGNED, _MARGIN, _FACES = 224, 112, 0.25, 32

Array = np.ndarray[Any, np.dtype[Any]]
Transform = Callable[[Any, dict[str, Any]], Array]


@dataclass(frozen=True)
class Scene:
    """A picture and its faces."""

    name: str
    pixels: Array
    faces: list[dict[str, Any]]


def scene(width: int, height: int, face: int) -> Scene:
    """Make a picture of that size with faces of about `face` pixels, some of which stick out a little."""
    rng = np.random.default_rng(face)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    faces = []
    for _ in range(_FACES):
        side = face * rng.uniform(0.8, 1.2)
        x, y = rng.uniform(-0.05 * side, width - 0.95 * side), rng.uniform(-0.05 * side, height - 0.95 * side)
        spots = (ARCFACE_112 / 112 + rng.normal(0, 0.01, (5, 2))) * side + (x, y)
        faces.append({"box": [x, y, x + side, y + side], "landmarks": spots.tolist(), "score": 0.9})
    return Scene(f"{width} x {height}, faces of {face}", cv2.GaussianBlur(noise, (0, 0), 1.2), faces)


def our_crop(image: Any, face: dict[str, Any]) -> Array:
    """Crop by `laion_face.crop_face`."""
    return np.asarray(laion_face.crop_face(image, face, _MARGIN, _CROP).image)


def our_alignment(image: Any, face: dict[str, Any]) -> Array:
    """Align by `laion_face.align_face`."""
    return np.asarray(laion_face.align_face(image, face["landmarks"], _ALIGNED).image)


def square(face: dict[str, Any]) -> tuple[int, int, int]:
    """Return left, top and side of the crop."""
    x1, y1, x2, y2 = face["box"]
    side = round(max(x2 - x1, y2 - y1) * (1 + 2 * _MARGIN))
    return round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2), side


def opencv_crop(pixels: Any, face: dict[str, Any]) -> Array:
    """Crop by OpenCV: the obvious loop's body."""
    left, top, side = square(face)
    height, width = pixels.shape[:2]
    cut = pixels[max(top, 0) : top + side, max(left, 0) : left + side]
    above, before = max(-top, 0), max(-left, 0)
    below, after = max(top + side - height, 0), max(left + side - width, 0)
    cut = cv2.copyMakeBorder(cut, above, below, before, after, cv2.BORDER_CONSTANT)
    return np.asarray(cv2.resize(cut, (_CROP, _CROP), interpolation=cv2.INTER_AREA))


def opencv_alignment(pixels: Any, face: dict[str, Any]) -> Array:
    """Align by OpenCV: the obvious loop's body."""
    matrix, _ = cv2.estimateAffinePartial2D(np.array(face["landmarks"]), ARCFACE_112)
    return np.asarray(cv2.warpAffine(pixels, matrix, (_ALIGNED, _ALIGNED)))


def pillow_crop(image: Any, face: dict[str, Any]) -> Array:
    """Crop by Pillow: the obvious loop's body."""
    left, top, side = square(face)
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((_CROP, _CROP)))


def pillow_alignment(image: Any, face: dict[str, Any]) -> Array:
    """Align by Pillow: the obvious loop's body, with the matrix inverted as Pillow wants it."""
    rows = [row for x, y in ARCFACE_112 for row in ([x, -y, 1, 0], [y, x, 0, 1])]
    (a, b, right, down), *_ = np.linalg.lstsq(np.array(rows), np.array(face["landmarks"]).ravel(), rcond=None)
    back = (a, -b, right, b, a, down)
    return np.asarray(
        image.transform((_ALIGNED, _ALIGNED), Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR)
    )


def exact(found: Scene, matrix: Array, size: int, fine: int = 8) -> Array:
    """Return what the pixels should be: each the average of `fine` x `fine` samples."""
    up = np.array([[fine, 0, (fine - 1) / 2], [0, fine, (fine - 1) / 2], [0, 0, 1]])
    whole = (up @ np.vstack([matrix, [0, 0, 1]]))[:2]
    many = cv2.warpAffine(found.pixels, whole, (size * fine, size * fine), flags=cv2.INTER_LINEAR)
    return np.asarray(many.reshape(size, fine, size, fine, 3).mean(axis=(1, 3)))


def crop_matrix(face: dict[str, Any]) -> Array:
    """Return the matrix from the picture's frame to the crop's."""
    left, top, side = square(face)
    scale = _CROP / side
    shift = scale * (0.5 - np.array([left, top])) - 0.5
    return np.column_stack([np.eye(2) * scale, shift])


def error(transform: Transform, given: Any, found: Scene, *, is_crop: bool) -> float:
    """Return the root-mean-square error of a transform on all faces of a scene."""
    errors = []
    for face in found.faces:
        matrix = crop_matrix(face) if is_crop else similarity(np.array(face["landmarks"]), ARCFACE_112)
        if transform is our_crop:  # it rounds the corner to pixels' centres
            matrix = laion_face.crop_face(given, face, _MARGIN, _CROP).matrix
        wanted = exact(found, matrix, _CROP if is_crop else _ALIGNED)
        errors.append(((transform(given, face) - wanted) ** 2).mean())
    return float(np.sqrt(np.mean(errors)))


def per_second(transform: Transform, given: Any, faces: list[dict[str, Any]], seconds: float) -> float:
    """Measure faces a CPU second, which other work on the machine disturbs less than wall time."""
    start = time.process_time()
    for done, face in enumerate(itertools.cycle(faces), 1):
        transform(given, face)
        if (passed := time.process_time() - start) >= seconds:
            return done / passed
    raise AssertionError("a cycle has no end")


def lines(seconds: float, repeats: int) -> Iterator[str]:
    """Yield the lines of the table, Markdown."""
    crops: dict[str, Transform] = {"ours": our_crop, "OpenCV": opencv_crop, "Pillow": pillow_crop}
    alignments: dict[str, Transform] = {
        "ours": our_alignment,
        "OpenCV": opencv_alignment,
        "Pillow": pillow_alignment,
    }
    yield (
        "| picture, pixels | transform | faces/CPU s: ours | OpenCV | Pillow | ours : OpenCV | ours : Pillow "
        "| error: ours | OpenCV | Pillow |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for found in (scene(640, 480, 90), scene(1280, 960, 260), scene(4000, 3000, 1200)):
        for name, is_crop, ways in (("crop", True, crops), ("alignment", False, alignments)):
            given = {way: found.pixels if way != "Pillow" else Image.fromarray(found.pixels) for way in ways}
            runs: dict[str, list[float]] = {way: [] for way in ways}
            for _, (way, transform) in itertools.product(range(repeats), ways.items()):
                runs[way].append(per_second(transform, given[way], found.faces, seconds))
            speeds = [statistics.median(run) for run in runs.values()]
            errors = [error(transform, given[way], found, is_crop=is_crop) for way, transform in ways.items()]
            ratios = [speeds[0] / speed for speed in speeds[1:]]
            cells = [
                *(f"{speed:,.0f}" for speed in speeds),
                *(f"{ratio:.2f}" for ratio in ratios),
                *(f"{off:.1f}" for off in errors),
            ]
            yield f"| {found.name} | {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    for line in lines(given.seconds, given.repeats):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
