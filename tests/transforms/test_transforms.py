"""Crops, alignments and drawings: annotations stay on what they mark, found again in the pixels."""

import math
import random

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import laion_face
from laion_face_builder.errors import LaionFaceError, TransformError
from laion_face_builder.sandbox import find_landmarks
from laion_face_builder.sandbox.cartoons import draw, plan
from laion_face_builder.transforms import alignment
from laion_face_builder.transforms.affine import MOST_PIXELS_A_SIDE
from laion_face_builder.transforms.drawing import POINTS, SURE, UNSURE

seeds = st.integers(0, 10_000)
quick = settings(max_examples=40)


def drawn(seed, faces=1, enlarged=3):
    """Draw discs on landmarks, enlarged so that they survive scaling down; return the picture and its faces."""
    scene = plan(random.Random(seed), faces)
    picture = draw(scene, plain=True).resize(
        (scene.width * enlarged, scene.height * enlarged), Image.Resampling.NEAREST
    )
    half = (enlarged - 1) / 2
    moved = [face.as_dict() for face in scene.faces]
    for face in moved:
        # The discs are drawn around whole pixels.
        face["landmarks"] = [[round(x) * enlarged + half, round(y) * enlarged + half] for x, y in face["landmarks"]]
        face["box"] = [edge * enlarged + half for edge in face["box"]]
    return picture, moved


def assert_found(before, face, image, landmarks, scale):
    """Require that discs that are whole, before and after, are within a pixel of `landmarks`; count them."""
    reach = 18 * scale + 2
    seen = 0
    for number, (old, (x, y)) in enumerate(zip(face["landmarks"], landmarks, strict=True)):
        if is_inside(old, before.size, reach / scale) and is_inside((x, y), image.size, reach):
            found = find_landmarks(image, (x - reach, y - reach, x + reach, y + reach))[number]
            assert math.hypot(*(found - (x, y))) <= 1, (number, found, (x, y))
            seen += 1
    return seen


def is_inside(point, size, reach):
    return all(reach < at < side - reach for at, side in zip(point, size, strict=True))


@quick
@given(seeds, st.floats(0, 0.6), st.sampled_from([None, 96, 160, 224, 900, (120, 200), (200, 96)]))
def test_a_crop_has_the_landmarks_where_it_says(seed, margin, size):
    # Enlarging much tells a pixel's centre from its corner.
    picture, (face,) = drawn(seed, enlarged=1 if size == 900 else 3)
    crop = laion_face.crop_face(picture, face, margin, size)
    if size is not None:
        assert crop.image.size == ((size, size) if isinstance(size, int) else size)
    scale = crop.matrix[0, 0]
    seen = assert_found(picture, face, crop.image, crop.landmarks, scale)
    assert (
        seen > 1 or not is_inside(face["box"][:2], picture.size, 0) or not is_inside(face["box"][2:], picture.size, 0)
    )
    x1, y1, x2, y2 = crop.face["box"]
    assert x1 < crop.image.width / 2 < x2
    assert abs((x1 + x2 + 1) / 2 - crop.image.width / 2) <= scale + 0.5
    assert abs((y1 + y2 + 1) / 2 - crop.image.height / 2) <= scale + 0.5


@quick
@given(seeds, st.sampled_from([96, 112, 224, 448]), st.sampled_from(["arcface", "farl"]), st.floats(-180, 180))
def test_an_alignment_has_the_landmarks_where_it_says_and_where_the_template_wants_them(seed, size, template, degrees):
    picture, (face,) = drawn(seed)
    turned, landmarks = turned_by(picture, np.array(face["landmarks"]), degrees)
    aligned = laion_face.align_face(turned, landmarks, size, template)
    scale = math.hypot(*aligned.matrix[:, 0])
    assert aligned.image.size == (size, size)
    assert_found(picture, face, aligned.image, aligned.landmarks, scale)
    away = np.linalg.norm(aligned.landmarks - alignment.template_points(template, size), axis=1)
    assert away.max() < size * 0.09, "a drawn face is nearly the template's"


def turned_by(picture, landmarks, degrees):
    """Turn the picture about its middle, and the landmarks with it."""
    turned = picture.rotate(degrees, Image.Resampling.NEAREST, expand=True, fillcolor="white")
    angle = math.radians(-degrees)
    middle, new_middle = ((np.array(image.size) - 1) / 2 for image in (picture, turned))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turned, (landmarks - middle) @ turn.T + new_middle


points = st.lists(st.tuples(st.floats(-500, 2000), st.floats(-500, 2000)), min_size=5, max_size=5).map(np.array)


@settings(max_examples=200)
@given(points, st.sampled_from(["arcface", "farl"]))
def test_the_similarity_is_the_least_squares_one_without_shear_or_reflection(source, template):
    target = alignment.template_points(template, 112)
    try:
        matrix = alignment.similarity(source, target)
    except TransformError:
        spread = np.linalg.norm(source - source.mean(axis=0))
        assert spread < 1e-3 or least_squares(source, target)[1] < 1e-2
        return
    (a, minus_b), (b, also_a) = matrix[:, :2]
    assert a == also_a
    assert b == -minus_b
    assert np.linalg.det(matrix[:, :2]) > 0
    expected, _ = least_squares(source, target)
    moved = source @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(moved, source @ expected[:, :2].T + expected[:, 2], atol=1e-4)


def least_squares(source, target):
    """Solve for the four numbers of a similarity by NumPy; add the size of its linear part at the source's size."""
    rows = []
    for x, y in source:
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
    (a, b, right, down), *_ = np.linalg.lstsq(np.array(rows), target.ravel(), rcond=None)
    size = np.linalg.norm(source - source.mean(axis=0))
    return np.array([[a, -b, right], [b, a, down]]), math.hypot(a, b) * size


@quick
@given(seeds, st.sampled_from(["L", "RGB"]), st.integers(40, 300), st.booleans())
def test_numpy_and_pillow_give_the_same(seed, mode, size, contiguous):
    picture, (face,) = drawn(seed, enlarged=1)
    picture = picture.convert(mode)
    array = np.asarray(picture)
    if not contiguous:
        array = np.asfortranarray(array)
    before = array.copy()
    for transform in (
        lambda image: laion_face.crop_face(image, face, size=size),
        lambda image: laion_face.crop_face(image, face),
        lambda image: laion_face.align_face(image, face["landmarks"], size),
    ):
        by_pillow, by_numpy = transform(picture), transform(array)
        assert (type(by_numpy.image), by_pillow.image.mode) == (np.ndarray, mode)
        assert np.array_equal(np.asarray(by_pillow.image), by_numpy.image)
        assert np.array_equal(by_pillow.matrix, by_numpy.matrix)
        assert np.array_equal(by_pillow.landmarks, by_numpy.landmarks)
    painted = laion_face.draw_faces(picture, [face])
    assert np.array_equal(np.asarray(painted), laion_face.draw_faces(array, [face]))
    assert np.array_equal(array, before), "the picture that was given is left as it was"


@quick
@given(seeds)
def test_a_crop_on_its_own_pixels_is_a_cut(seed):
    picture, (face,) = drawn(seed, enlarged=1)
    pixels = np.asarray(picture)
    crop = laion_face.crop_face(pixels, face, margin=0.3)
    assert np.array_equal(crop.matrix[:, :2], np.eye(2))
    left, top = (-crop.matrix[:, 2]).astype(int)
    padded = np.pad(pixels, ((200, 200), (200, 200), (0, 0)))
    cut = padded[top + 200 : top + 200 + crop.image.shape[0], left + 200 : left + 200 + crop.image.shape[1]]
    assert np.array_equal(crop.image, cut)


@quick
@given(seeds, st.sampled_from([64, 150, 333]))
def test_points_go_there_and_back(seed, size):
    picture, faces = drawn(seed, faces=3)
    for face in faces:
        try:
            made = [laion_face.crop_face(picture, face, size=size)]
        except TransformError:
            made = []
        for moved in [*made, laion_face.align_face(picture, face["landmarks"], size)]:
            inverse = np.linalg.inv(np.vstack([moved.matrix, [0, 0, 1]]))[:2]
            assert np.allclose(moved.points(moved.points(face["landmarks"])), moved.points(moved.landmarks))
            assert np.allclose(moved.landmarks @ inverse[:, :2].T + inverse[:, 2], face["landmarks"], atol=1e-6)
            assert np.allclose(moved.moved(face)["landmarks"], moved.landmarks, atol=1e-3)


def test_landmarks_on_the_template_stay_and_so_does_the_picture():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (112, 112, 3), np.uint8)
    aligned = laion_face.align_face(picture, alignment.ARCFACE_112)
    assert np.allclose(aligned.matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    assert np.array_equal(aligned.image, picture)


def test_templates_at_other_sizes():
    assert np.allclose(alignment.template_points("arcface", 224), 2 * alignment.ARCFACE_112)
    inner = alignment.template_points("farl", 513)
    assert np.allclose(
        inner, (np.array([[196, 226], [316, 226], [256, 286], [220, 360.4], [292, 360.4]]) - 256) * 0.8 + 256
    )


@pytest.mark.parametrize("shrink", [2, 3, 5, 8])
def test_fine_patterns_are_averaged_when_scaled_down(shrink):
    # A checkerboard of single pixels is grey from afar; without averaging it is not.
    side = 112 * shrink
    board = (np.indices((side + 60, side + 60)).sum(axis=0) % 2 * 255).astype(np.uint8)
    landmarks = alignment.ARCFACE_112 * shrink + 13.5
    aligned = laion_face.align_face(board, landmarks).image[4:-4, 4:-4]
    box = [13.0, 13.0, 13.0 + side, 13.0 + side]
    crop = laion_face.crop_face(board, {"box": box, "landmarks": landmarks, "score": 1.0}, 0, 112).image[4:-4, 4:-4]
    for image in (aligned, crop):
        assert abs(image.mean() - 127.5) < 2
        assert image.std() < 16


@pytest.mark.parametrize("shrink", [1, 2, 3.4, 5, 8])
def test_scaling_down_moves_nothing_by_a_part_of_a_pixel(shrink):
    side = round(112 * shrink) + 60
    landmarks = alignment.ARCFACE_112 * shrink + 13.5
    away = np.indices((side, side)).transpose(1, 2, 0)[..., ::-1] - landmarks[2]
    blob = (255 * np.exp(-(away**2).sum(axis=-1) / (2 * (5 * shrink) ** 2))).round().astype(np.uint8)
    box = [13.0, 13.0, 13.0 + 112 * shrink, 13.0 + 112 * shrink]
    face = {"box": box, "landmarks": landmarks, "score": 1.0}
    for moved in (laion_face.align_face(blob, landmarks), laion_face.crop_face(blob, face, 0, 112)):
        weights = moved.image / moved.image.sum()
        rows, columns = np.indices(weights.shape)
        centre = (columns * weights).sum(), (rows * weights).sum()
        assert math.hypot(*(moved.landmarks[2] - centre)) < 0.1


def test_a_face_that_sticks_out_is_filled():
    picture = np.full((100, 100, 3), 200, np.uint8)
    face = {"box": [-40.0, 20.0, 40.0, 80.0], "landmarks": [[-20, 40], [20, 40], [0, 50], [-15, 65], [15, 65]]}
    crop = laion_face.crop_face(picture, {**face, "score": 0.9}, margin=0, size=80, fill=7)
    assert (crop.image[:, :38] == 7).all()
    assert (crop.image[:, 42:] == 200).all()
    aligned = laion_face.align_face(picture, face["landmarks"], fill=7)
    assert {7, 200} <= set(np.unique(aligned.image))


LANDMARKS = [[30, 40], [60, 40], [45, 55], [33, 70], [57, 70]]


@pytest.mark.parametrize(
    ("face", "said"),
    [
        ({"box": [10, 10, 10, 50]}, "x1 < x2"),
        ({"box": [50, 10, 10, 50]}, "x1 < x2"),
        ({"box": [10, math.nan, 20, 50]}, "finite"),
        ({"box": [10, 10, 20]}, "x1 < x2"),
        ({"box": [500, 500, 600, 600]}, "outside of the picture of 100 x 90"),
        ({"box": [-1e6, -1e6, 1e6, 1e6]}, "more than 64,000,000"),
        ({"landmarks": [[1, 2]] * 4}, "five"),
        ({"landmarks": [[math.inf, 2]] * 5}, "finite"),
        ({"landmarks": "no points"}, "five points"),
    ],
)
def test_a_face_that_cannot_be_cropped_is_a_clear_error(face, said):
    good = {"box": [20.0, 20.0, 70.0, 80.0], "landmarks": LANDMARKS, "score": 0.9}
    picture = np.zeros((90, 100, 3), np.uint8)
    assert laion_face.crop_face(picture, good).image.size
    with pytest.raises(TransformError, match=said) as raised:
        laion_face.crop_face(picture, {**good, **face})
    assert isinstance(raised.value, (ValueError, LaionFaceError))


@pytest.mark.parametrize(
    ("landmarks", "said"),
    [
        ([[5, 5]] * 5, "fall together"),
        ([[1e7 + 5, 5]] * 5, "fall together"),
        ([[30, 40], [60, 40]], "five"),
        ((np.array(LANDMARKS) + 5000).tolist(), "outside of the picture"),
        (None, "five"),
    ],
)
def test_landmarks_that_cannot_be_aligned_are_a_clear_error(landmarks, said):
    with pytest.raises(TransformError, match=said):
        laion_face.align_face(np.zeros((90, 100, 3), np.uint8), landmarks)


@pytest.mark.parametrize("size", [0, -3, 2.5, (10, 0), (1, 2, 3), MOST_PIXELS_A_SIDE + 1])
def test_sizes_are_checked(size):
    face = {"box": [20.0, 20.0, 70.0, 80.0], "landmarks": LANDMARKS, "score": 0.9}
    with pytest.raises(TransformError, match="size"):
        laion_face.crop_face(np.zeros((90, 100), np.uint8), face, size=size)


@pytest.mark.parametrize("picture", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4)), np.zeros((0, 4), np.uint8), "x"])
def test_what_is_no_picture_is_a_clear_error(picture):
    with pytest.raises(TransformError, match=r"picture: found .*expected a PIL picture, uint8"):
        laion_face.draw_faces(picture, [])
    with pytest.raises(TransformError, match="valid are 'arcface', 'farl', 'ffhq'"):
        laion_face.align_face(np.zeros((9, 9), np.uint8), LANDMARKS, template="dlib")


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_pictures_of_other_modes_come_back_as_rgb(mode):
    face = {"box": [20.0, 20.0, 70.0, 80.0], "landmarks": LANDMARKS, "score": 0.9}
    picture = Image.new(mode, (100, 90))
    assert laion_face.crop_face(picture, face).image.mode == "RGB"
    assert laion_face.align_face(picture, LANDMARKS).image.mode == "RGB"
    assert laion_face.draw_faces(picture, [face]).mode == "RGB"


@quick
@given(seeds, st.booleans())
@example(0, True)
def test_drawn_marks_are_where_the_annotations_are(seed, aligned):
    picture, faces = drawn(seed, faces=2, enlarged=2)
    blank = Image.new("RGB", picture.size, "white")
    painted = np.asarray(laion_face.draw_faces(blank, faces[:1], aligned=aligned))
    box, landmarks = faces[0]["box"], faces[0]["landmarks"]
    colour = SURE if aligned else UNSURE
    rows, columns = np.nonzero((painted == colour).all(axis=-1))
    assume(min(box) > 0 and box[2] < picture.width - 1 and box[3] < picture.height - 1)
    assert np.abs(np.array([columns.max(), rows.max()]) - box[2:]).max() <= 1.5
    assert np.abs(np.array([columns.min(), rows.min()]) - box[:2]).max() <= 2.5
    for (x, y), fill in zip(landmarks, POINTS, strict=True):
        rows, columns = np.nonzero((painted == fill).all(axis=-1))
        assert math.hypot(columns.mean() - x, rows.mean() - y) < 1.5


def test_what_is_drawn_can_be_chosen():
    picture, faces = drawn(5, faces=2, enlarged=2)
    pixels = np.asarray(picture)
    nothing = {"boxes": False, "landmarks": False, "mesh": False, "scores": False}
    assert np.array_equal(laion_face.draw_faces(pixels, faces, **nothing), pixels)
    assert not laion_face.draw_faces(pixels, faces, blank=True, **nothing).any()

    def colours(**marks):
        seen = laion_face.draw_faces(pixels, faces, blank=True, **{**nothing, **marks}).reshape(-1, 3)
        return set(map(tuple, np.unique(seen, axis=0).tolist()))

    black, white = (0, 0, 0), (255, 255, 255)
    assert colours(boxes=True) == {black, SURE}
    assert colours(landmarks=True) == {black, white, *POINTS}
    assert colours(mesh=True) == {black, *POINTS}
    assert {black, SURE} < colours(scores=True)
    assert len({frozenset(colours(**{mark: True})) for mark in nothing}) == 4
    for face in faces:
        alone = laion_face.draw_faces(picture, [face], blank=True, boxes=False, scores=False)
        assert alone.size == picture.size
        for x, y in face["landmarks"]:
            assert min(x, y) < 0 or alone.getpixel((round(x), round(y))) in POINTS


def test_hostile_boxes_are_drawn_at_once():
    far = {"box": [-1e30, -1e30, 1e30, 1e30], "landmarks": [[1e30, -1e30]] * 5, "score": 0.5}
    assert laion_face.draw_faces(np.zeros((50, 60, 3), np.uint8), [far]).shape == (50, 60, 3)


def test_one_example_a_face():
    picture, faces = drawn(3, faces=3)
    outside = {"box": [9000.0, 0.0, 9100.0, 50.0], "landmarks": LANDMARKS, "score": 0.6}
    batch = {
        "sample_id": [1, 2, 3, 4],
        "image": [picture, picture, None, picture],
        "faces": [[*faces, outside], [], faces, faces],
        "faces_aligned": [True, True, False, False],
        "width": [picture.width] * 4,
        "height": [picture.height] * 4,
        "caption": ["a", "b", "c", "d"],
    }
    crops = laion_face.crop_faces(batch, size=128)
    assert list(crops) == list(batch)
    assert crops["sample_id"] == [1, 1, 1]
    assert crops["caption"] == ["a"] * 3
    assert [image.size for image in crops["image"]] == [(128, 128)] * 3
    assert crops["width"] == crops["height"] == [128] * 3
    for face, (moved,) in zip(faces, crops["faces"], strict=True):
        assert moved == laion_face.crop_face(picture, face, size=128).face
    (largest,) = laion_face.crop_faces(batch, size=128, largest_face_only=True)["faces"]
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (face["box"] for face in [*faces, outside])]
    expected = [*faces, outside][int(np.argmax(areas))]
    assert expected != outside
    assert largest == [laion_face.crop_face(picture, expected, size=128).face]
    (moved,) = laion_face.crop_faces(batch, size=112, template="arcface")["faces"][0]
    assert np.abs(np.array(moved["landmarks"]) - alignment.ARCFACE_112).max() < 10
    for wrong in ({"template": "dlib"}, {"size": 0}, {"size": (10, 20), "template": "farl"}):
        with pytest.raises(TransformError):
            laion_face.crop_faces({name: [] for name in batch}, **wrong)
