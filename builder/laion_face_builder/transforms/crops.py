"""Crops: a face with some room around it, not turned, in any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from laion_face_builder.errors import TransformError
from laion_face_builder.images.geometry import largest
from laion_face_builder.transforms.affine import (
    Face,
    Floats,
    Picture,
    Pixels,
    Transformed,
    checked_box,
    checked_landmarks,
    checked_size,
    moved_face,
    moved_points,
    opened,
)
from laion_face_builder.transforms.alignment import align_face, check_template

#: A crop may reach far outside of the picture, as boxes are not clipped; but not over more source pixels than this.
MOST_PIXELS = 64_000_000

Rect = tuple[int, int, int, int]


def crop_face(
    image: Picture,
    face: Face,
    margin: float = 0.25,
    size: int | tuple[int, int] | None = None,
    *,
    fill: int = 0,
) -> Transformed[Picture]:
    """Cut out the face's box with a margin around it, and scale it.

    The cut lies on whole pixels of the picture. With a size it is widened around the face's middle to the shape of that
    size, so that nothing is distorted. What is scaled down is averaged, which does not alias. Parts outside the picture
    are filled.

    Args:
        image: a PIL picture, or uint8[height, width(, 3)]; the crop is of the same kind.
        face: box x1, y1, x2, y2, landmarks [5, 2] and score, in pixels of `image`, as in an example's `faces`.
        margin: on each side, as a share of the box's longer side.
        size: pixels of a square, or (width, height); None leaves the picture's own pixels.
        fill: 0 to 255, of what lies outside.

    Raises:
        TransformError: a box without area or outside of the picture, a crop too large, no such picture.
    """
    points = checked_landmarks(face["landmarks"])
    pixels, give_back = opened(image)
    rect = _rect(checked_box(face["box"]), margin, checked_size(size) if size is not None else None)
    cut = _cut(pixels, rect, fill)
    cropped, matrix = _scaled(cut, rect, checked_size(size) if size is not None else cut.shape[1::-1])
    return Transformed(give_back(cropped), matrix, moved_points(points, matrix), moved_face(face, matrix))


def _rect(box: tuple[float, float, float, float], margin: float, size: tuple[int, int] | None) -> Rect:
    """Return left, top, right, bottom of the cut, in whole pixels; right and bottom are the ones after the last."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    room = margin * max(width, height)
    width, height = width + 2 * room, height + 2 * room
    if not (np.isfinite(margin) and width > 0 and height > 0):
        raise TransformError(f"margin: found {margin!r}, which leaves nothing of a box of {x2 - x1} x {y2 - y1} pixels")
    if size is not None:
        scale = max(width / size[0], height / size[1])
        width, height = scale * size[0], scale * size[1]
    if width * height > MOST_PIXELS:
        raise TransformError(f"box: a crop of {width:.0f} x {height:.0f} pixels is more than {MOST_PIXELS:,} pixels")
    across, down = max(1, round(width)), max(1, round(height))
    left, top = round((x1 + x2 - across + 1) / 2), round((y1 + y2 - down + 1) / 2)
    return left, top, left + across, top + down


def _cut(pixels: Pixels, rect: Rect, fill: int) -> Pixels:
    import cv2

    left, top, right, bottom = rect
    height, width = pixels.shape[:2]
    inside = pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if 0 in inside.shape:
        raise TransformError(f"box: it lies outside of the picture of {width} x {height} pixels, at {list(rect)}")
    borders = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    if not any(borders):
        return inside
    return np.asarray(cv2.copyMakeBorder(inside, *borders, cv2.BORDER_CONSTANT, value=[fill] * 3), np.uint8)


def _scaled(cut: Pixels, rect: Rect, size: tuple[int, ...]) -> tuple[Pixels, Floats]:
    """Return the cut in its final size, and the matrix from the picture to it."""
    import cv2

    scale = np.array([size[0] / cut.shape[1], size[1] / cut.shape[0]])
    # A pixel is moved by its edges, not by its centre: hence the half pixels.
    shift = scale * (0.5 - np.array(rect[:2])) - 0.5
    matrix = np.column_stack([np.diag(scale), shift])
    if tuple(size) == cut.shape[1::-1]:
        return cut.copy(), matrix
    how = cv2.INTER_AREA if scale.min() < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (size[0], size[1]), interpolation=how), np.uint8), matrix


def crop_faces(
    batch: Mapping[str, list[Any]],
    size: int | tuple[int, int] = 224,
    margin: float = 0.25,
    template: str | None = None,
    largest_face_only: bool = False,
) -> dict[str, list[Any]]:
    """Make one example of each face, cropped, or aligned to a template; for `.map(batched=True)`.

        faces = ds.map(laion_face.crop_faces, batched=True, batch_size=16, fn_kwargs={"size": 224})

    Every column stays what it is: `image` is the crop, `width` and `height` its size, `faces` holds the one face in the
    crop's frame; the sample's other columns are repeated. So `collate` and everything else go on working. It is a
    function for `.map` and not an option of the config, so that crops can be made from any dataset of this builder,
    stream or Arrow, old or new `datasets`, published or not, and changed without preparing anything again.

    Which faces those are, the dataset says: with `keep_faces="counting"` they are those that its limits on faces
    (`min_face_size` and the like) count, by the original picture's pixels.

    There is no example for a picture without faces, without a picture, or whose faces are not known to fit it
    (`faces_aligned`), nor for a face that cannot be cropped, such as one wholly outside of the picture.

    Args:
        batch: columns of examples.
        size: of the crops, as in `crop_face`; with a template one number.
        margin: as in `crop_face`; a template has its own.
        template: "arcface", "farl" or "ffhq" aligns the faces, see `align_face`.
        largest_face_only: make one example of each picture, of the face with the largest box.
    """
    columns: dict[str, list[Any]] = {name: [] for name in batch}
    how = _CropSettings.checked(size, margin, template, largest_face_only)
    for number in range(len(batch["image"])):
        example = {name: column[number] for name, column in batch.items()}
        for crop in how.crops(example):
            for name, column in columns.items():
                column.append(crop[name])
    return columns


@dataclass(frozen=True)
class _CropSettings:
    """How `crop_faces` makes its crops."""

    size: tuple[int, int]
    margin: float
    template: str | None
    largest_face_only: bool

    @classmethod
    def checked(
        cls, size: int | tuple[int, int], margin: float, template: str | None, largest_face_only: bool
    ) -> _CropSettings:
        """Check the options once: wrong ones are an error, not a face after the other that cannot be cropped."""
        width, height = checked_size(size)
        if template is not None:
            check_template(template)
            if width != height:
                raise TransformError(f"size: found {size!r}, expected one number, since a template is square")
        return cls((width, height), margin, template, largest_face_only)

    def crops(self, example: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield an example for each face of `example` that can be cropped."""
        if example["image"] is None or not example["faces_aligned"]:
            return
        faces = example["faces"]
        places = range(len(faces))
        for face in (faces[place] for place in (largest(faces, places) if self.largest_face_only else places)):
            try:
                crop = self._crop(example["image"], face)
            except TransformError:
                continue  # the detector's boxes are not clipped: some lie outside
            width, height = self.size
            moved = {"image": crop.image, "faces": [crop.moved(face)], "width": width, "height": height}
            yield {**example, **moved}

    def _crop(self, image: Picture, face: Face) -> Transformed[Picture]:
        if self.template is None:
            return crop_face(image, face, self.margin, self.size)
        return align_face(image, face["landmarks"], self.size[0], self.template)
