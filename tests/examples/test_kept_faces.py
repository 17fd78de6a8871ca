"""Which faces an example has: filters, examples, crops and drawings agree on which of them count."""

import pytest

import laion_face
from laion_face_builder.options import KEEP_FACES

LEAST = 65


def load(prepared, **given):
    how = {"split": "train", "parts": "0,2", "data_dir": str(prepared.data.root), "streaming": True}
    return laion_face.load_dataset("20M", **{**how, **given})


def short_side(face):
    x1, y1, x2, y2 = face.box
    return min(x2 - x1, y2 - y1)


def area(face):
    x1, y1, x2, y2 = face.box
    return (x2 - x1) * (y2 - y1)


@pytest.mark.parametrize("streaming", [True, False])
def test_an_example_has_the_faces_that_are_asked_for(prepared, tmp_path, streaming):
    truth = [one for one in prepared.truth if one.ok]
    some = [one for one in truth if any(short_side(face) >= LEAST for face in one.faces)]
    wanted = {
        "all": lambda one: one.faces,
        "counting": lambda one: [face for face in one.faces if short_side(face) >= LEAST],
        "largest": lambda one: [max((face for face in one.faces if short_side(face) >= LEAST), key=area)],
    }
    assert any(len(wanted["counting"](one)) < len(one.faces) for one in some)
    for keep in KEEP_FACES:
        how = {"min_face_size": LEAST, "keep_faces": keep, "streaming": streaming, "cache_dir": str(tmp_path)}
        found = list(load(prepared, **how, images="none"))
        assert {row["sample_id"] for row in found} >= {one.sample_id for one in some}
        faces = {row["sample_id"]: [face["score"] for face in row["faces"]] for row in found}
        for one in some:
            assert faces[one.sample_id] == pytest.approx([face.score for face in wanted[keep](one)])


def test_crops_are_of_the_faces_that_count(prepared):
    truth = [one for one in prepared.truth if one.ok]
    counting = sum(short_side(face) >= LEAST for one in truth for face in one.faces)
    some = sum(any(short_side(face) >= LEAST for face in one.faces) for one in truth)
    every = sum(len(one.faces) for one in truth if any(short_side(face) >= LEAST for face in one.faces))
    assert some < counting < every
    crops = {"batched": True, "batch_size": 16}
    for keep, how, number in (
        ("all", {}, every),
        ("counting", {}, counting),
        ("largest", {}, some),
        ("counting", {"largest_face_only": True}, some),
    ):
        ds = load(prepared, min_face_size=LEAST, keep_faces=keep)
        found = list(ds.map(laion_face.crop_faces, **crops, fn_kwargs={"size": 64, **how}))
        assert 0.9 * number <= len(found) <= number, "but for those that may not fit, or lie outside"
        if keep == "counting":
            scale = {len(row["faces"]) for row in found}
            assert scale == {1}


def test_one_face_may_mean_one_in_the_picture(prepared):
    one_that_counts = list(load(prepared, min_face_size=LEAST, max_faces=1, images="none"))
    one_at_all = list(load(prepared, min_face_size=LEAST, max_faces_in_picture=1, images="none"))
    assert {len(row["faces"]) for row in one_at_all} == {1}
    assert {len(row["faces"]) for row in one_that_counts} > {1}
    expected = {r["sample_id"] for r in one_that_counts if len(r["faces"]) == 1}
    assert {row["sample_id"] for row in one_at_all} == expected


def test_faces_that_are_not_kept_are_blurred_all_the_same(prepared):
    how = {"blur_faces": True, "images": "fetch", "allow_private_hosts": True, "parts": "0", "min_faces": 2}
    pairs = zip(load(prepared, **how), load(prepared, keep_faces="largest", **how), strict=True)
    for number, (every, one) in enumerate(pairs):
        assert every["image"].tobytes() == one["image"].tobytes()
        if number == 5:
            break
