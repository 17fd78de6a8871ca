"""Faces follow a picture that was resized by its host, or by img2dataset's own resizer."""

import io
import random
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from laion_face_builder.images.geometry import RESIZE_MODES, Frame, Resizing, rescaled
from laion_face_builder.sandbox.cartoons import draw, encode, find_landmarks, plan

#: img2dataset's own, from imghdr and from the way in which it calls albumentations.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

side = st.integers(32, 4000)
sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))
resizings = st.builds(Resizing, st.sampled_from(RESIZE_MODES), st.integers(8, 500), st.booleans())


@given(side, side, st.floats(0.1, 3), st.sampled_from([int, round, lambda v: int(v) + 1]))
def test_a_copy_that_was_rounded_to_whole_pixels_is_recognised(width, height, scale, rounding):
    now = rounding(width * scale), rounding(height * scale)
    assume(min(now) >= 60)
    frame = rescaled((width, height), now)
    assert frame is not None
    corners = {"box": [-0.5, -0.5, width - 0.5, height - 0.5], "landmarks": [], "score": 1.0}
    assert np.allclose(frame.faces([corners])[0]["box"], [-0.5, -0.5, now[0] - 0.5, now[1] - 0.5], rtol=1e-6)


def test_another_aspect_is_not_guessed():
    assert rescaled((400, 300), (300, 400)) is None
    assert rescaled((400, 300), (400, 310)) is None
    assert rescaled((400, 300), (0, 0)) is None


def test_points_move_with_both_axes():
    face = {"box": [10.0, 20.0, 30.0, 40.0], "landmarks": [[1.0, 2.0]] * 5, "score": 0.5}
    moved = Frame(0.5, 2.0, 1.0, -1.0).faces([face])
    assert moved == [{"box": [6.0, 39.0, 16.0, 79.0], "landmarks": [[1.5, 3.0]] * 5, "score": 0.5}]
    assert Frame().faces([face]) == [face]


frames = st.builds(Frame, *[st.floats(0.1, 9)] * 2, *[st.floats(-99, 99)] * 2)


@given(frames, frames, st.tuples(st.floats(-999, 999), st.floats(-999, 999)))
def test_frames_compose(first, later, point):
    face = {"box": [], "landmarks": [list(point)], "score": 1.0}
    apart = later.faces(first.faces([face]))[0]["landmarks"]
    assert np.allclose(first.then(later).faces([face])[0]["landmarks"], apart, rtol=1e-4, atol=1e-2)


def resize(data, resizing, **settings):
    """Resize by img2dataset's own resizer; return bytes, (width, height) and the original's."""
    from img2dataset.resizer import Resizer

    given = {"encode_format": "png", "encode_quality": 1, **settings}
    resizer = Resizer(resizing.size, resizing.mode, resizing.only_if_bigger, **given)
    out, width, height, *original, error = resizer(io.BytesIO(data))
    assert error is None
    return out, (width, height), tuple(original)


def as_png(array):
    return cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


@settings(max_examples=150)
@given(sizes, resizings, st.booleans(), st.sampled_from([(), (3,), (4,)]))
def test_the_size_is_exactly_what_img2dataset_makes(size, resizing, skip, channels):
    data = as_png(np.zeros((*size[::-1], *channels), np.uint8))
    out, now, original = resize(data, resizing, skip_reencode=skip)
    assert now == resizing.of(size).size == Image.open(io.BytesIO(out)).size
    assert original == size


@settings(max_examples=150)
@given(st.tuples(st.integers(40, 500), st.integers(40, 500)), resizings, st.floats(0.4, 0.6), st.floats(0.4, 0.6))
def test_a_spot_is_found_where_the_frame_says(size, resizing, across, down):
    # The centre of weight of a soft spot is exact to a tenth of a pixel: no other convention passes this.
    width, height = size
    x, y, spread = across * (width - 1), down * (height - 1), min(size) / 14
    rows, columns = np.mgrid[:height, :width]
    spot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
    resized = resizing.of(size)
    frame = resized.frame
    mapped = np.array([x * frame.scale_x + frame.offset_x, y * frame.scale_y + frame.offset_y])
    reach = 3 * spread * max(frame.scale_x, frame.scale_y)
    assume(reach >= 3)
    assume(all(reach < at < length - reach for at, length in zip(mapped, resized.size, strict=True)))  # not cut off
    out, _, _ = resize(as_png((255 - 255 * spot).round().astype(np.uint8)), resizing)
    drawn = cv2.imdecode(np.frombuffer(out, np.uint8), cv2.IMREAD_UNCHANGED)
    weight = np.subtract(255.0, drawn)
    weight[weight < 20] = 0
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]]
    found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    assert np.abs(found - mapped).max() < 0.15


@cache
def scene(seed):
    planned = plan(random.Random(seed), 1 + seed % 3)
    return planned, draw(planned)


def found_near(picture, point, number, scale):
    """Find landmark `number` in a window around its disc: elsewhere, a rim between two colours can look like one."""
    reach = 9 * max(scale, 0.5)
    return find_landmarks(picture, [*(at - reach for at in point), *(at + reach for at in point)])[number]


def found_finely(picture, point, number, scale):
    """Find a landmark in a picture that was scaled down: enlarged, since few whole pixels are left of its disc."""
    times = 1 if scale >= 1 else 4
    large = picture.resize((times * picture.width, times * picture.height), Image.Resampling.BICUBIC)
    return (found_near(large, (np.asarray(point) + 0.5) * times - 0.5, number, times * scale) + 0.5) / times - 0.5


@example(5, "keep_ratio", 0.40234375, False, False)
@settings(max_examples=60)
@given(st.integers(0, 11), st.sampled_from(RESIZE_MODES), st.floats(0.4, 4), st.booleans(), st.booleans())
def test_drawn_faces_are_found_again_where_the_frame_says(seed, mode, scale, bigger, skip):
    # A face is found within one pixel; when scaling down, within the width of one pixel of the original.
    planned, picture = scene(seed)
    size = (planned.width, planned.height)
    side = min(size) if mode in ("keep_ratio", "center_crop") else max(size)
    resizing = Resizing(mode, max(8, round(side * scale)), bigger)
    out, now, _ = resize(encode(picture, "png"), resizing, skip_reencode=skip)
    resized = resizing.of(size)
    frame = resized.frame
    assert now == resized.size
    after = Image.open(io.BytesIO(out)).convert("RGB")
    for face in planned.faces:
        seen = [found_near(picture, point, number, 1) for number, point in enumerate(face.landmarks)]
        for number, mapped in enumerate(frame.faces([{"box": [], "landmarks": seen, "score": 0.0}])[0]["landmarks"]):
            reach = 12 * frame.scale_x
            if all(reach < at < length - reach for at, length in zip(mapped, now, strict=True)):  # not cut off
                found = found_finely(after, mapped, number, frame.scale_x)
                assert np.abs(found - mapped).max() <= min(1, frame.scale_x, frame.scale_y)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_a_resizing_survives_its_fingerprint(mode):
    resizing = Resizing(mode, 100, True)
    assert Resizing.from_dict(resizing.as_dict()) == (resizing if mode != "no" else Resizing())
    assert bool(resizing) == (mode != "no")
