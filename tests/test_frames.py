"""Faces follow a resized copy of their picture."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laion_face_builder.examples.frames import Frame, rescaled

side = st.integers(32, 4000)


@settings(deadline=None)
@given(side, side, st.floats(0.1, 3), st.sampled_from([int, round, lambda v: int(v) + 1]))
def test_a_copy_that_was_rounded_to_whole_pixels_is_recognised(width, height, scale, rounding):
    now = rounding(width * scale), rounding(height * scale)
    assume(min(now) >= 60)
    frame = rescaled((width, height), now)
    assert frame is not None
    assert frame.scale_x * width == now[0] or abs(frame.scale_x * width - now[0]) < 1e-6


def test_another_aspect_is_not_guessed():
    assert rescaled((400, 300), (300, 400)) is None
    assert rescaled((400, 300), (400, 310)) is None
    assert rescaled((400, 300), (0, 0)) is None


def test_points_move_with_both_axes():
    face = {"box": [10.0, 20.0, 30.0, 40.0], "landmarks": [[1.0, 2.0]] * 5, "score": 0.5}
    moved = Frame(0.5, 2.0, 1.0, -1.0).faces([face])
    assert moved == [{"box": [6.0, 39.0, 16.0, 79.0], "landmarks": [[1.5, 3.0]] * 5, "score": 0.5}]
    assert Frame().faces([face]) == [face]
