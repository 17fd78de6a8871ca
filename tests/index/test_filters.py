"""Filters against a plain loop over faces, and a row's own values as thresholds."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laion_face_builder.images.geometry import area_of, largest
from laion_face_builder.index.exclusion import parse_exclusion
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.reader import in_batches
from laion_face_builder.schema import INDEX

f32 = np.float32
sides = st.floats(-20, 300, width=32)
scores = st.sampled_from([0.5, 0.75, 0.9, 0.99]).map(lambda value: float(f32(value)))
faces = st.builds(
    lambda x, y, w, h, score: {"box": [x, y, float(f32(x) + f32(w)), float(f32(y) + f32(h))], "score": score},
    sides, sides, sides, sides, scores,
)  # fmt: skip
rows = st.fixed_dictionaries(
    {
        "sample_id": st.integers(0, 30),
        "url": st.sampled_from(["http://a.example/1.jpg", "http://b.a.example/2.jpg", "https://c.example:8/x", None]),
        "width": st.one_of(st.none(), st.integers(1, 400)),
        "height": st.one_of(st.none(), st.integers(1, 400)),
        "nsfw": st.sampled_from(["UNLIKELY", "UNSURE", "NSFW", None]),
        "caption": st.one_of(st.none(), st.text("aB \u2003\n", max_size=6), st.just("A smile, à la")),
        "similarity": st.one_of(st.none(), st.sampled_from([0.3, float(f32(0.3)), 0.31, 0.29999999])),
        "faces": st.lists(faces, max_size=3),
    }
)
listed = st.sampled_from(["1", "7", "a.example", "https://c.example:8/x", "ab" * 32])
maybe = lambda values: st.one_of(st.none(), values)  # noqa: E731 a name for a strategy
some_filters = st.builds(
    Filters,
    min_score=maybe(st.sampled_from([0.75, 0.9])),
    min_face_size=maybe(st.sampled_from([10, 64.5])),
    min_face_area=maybe(st.sampled_from([0.01, 0.2])),
    min_face_share=maybe(st.sampled_from([0.1, 0.5])),
    min_faces=maybe(st.integers(0, 2)),
    max_faces=maybe(st.integers(0, 3)),
    max_faces_in_picture=maybe(st.integers(0, 3)),
    min_width=maybe(st.integers(1, 300)),
    min_height=maybe(st.integers(1, 300)),
    nsfw=maybe(st.sampled_from([("UNLIKELY",), ("UNLIKELY", "UNSURE")])),
    min_similarity=maybe(st.sampled_from([0.3, float(f32(0.3))])),
    min_caption_words=maybe(st.integers(0, 3)),
    caption_matches=maybe(st.sampled_from(["a", "(?i)b", r"\bla\b"])),
    caption_excludes=maybe(st.sampled_from(["B", "^a"])),
    include=maybe(st.builds(parse_exclusion, st.lists(listed, max_size=3))),
    exclude=maybe(st.builds(parse_exclusion, st.lists(listed, max_size=3))),
)


def table_of(rows):
    """Make index rows with the flat columns derived from the faces by hand."""
    full = []
    for row in rows:
        found = [{**face, "landmarks": [[0.0, 0.0]] * 5} for face in row["faces"]]
        short = [min(f32(b[2]) - f32(b[0]), f32(b[3]) - f32(b[1])) for b in (f["box"] for f in found)]
        flat = {
            "faces": found,
            "n_faces": len(found),
            "max_face_score": max((f["score"] for f in found), default=None),
            "max_face_size": float(max(short)) if short else None,
        }
        full.append(dict.fromkeys(INDEX.names) | row | flat)
    return pa.Table.from_pylist(full, schema=INDEX)


def counts(face, row, filters):
    """Say whether one face counts, as the design words it."""
    x1, y1, x2, y2 = (f32(value) for value in face["box"])
    width, height = x2 - x1, y2 - y1
    if filters.min_score is not None and not f32(face["score"]) >= f32(filters.min_score):
        return False
    if filters.min_face_size is not None and not min(width, height) >= f32(filters.min_face_size):
        return False
    if filters.min_face_area is not None:
        if row["width"] is None or row["height"] is None:
            return False
        if not row["width"] * row["height"]:
            return False
        left, top, right, bottom = map(float, face["box"])
        area = max(right - left, 0.0) * max(bottom - top, 0.0)
        if not area / (row["width"] * row["height"]) >= filters.min_face_area:
            return False
    if filters.min_face_share is not None:
        if row["width"] is None or row["height"] is None:
            return False
        left, top, right, bottom = map(float, face["box"])
        return min((right - left) / row["width"], (bottom - top) / row["height"]) >= filters.min_face_share
    return True


def passes_by_caption(caption, filters):
    words, wanted, unwanted = filters.min_caption_words, filters.caption_matches, filters.caption_excludes
    if caption is None:
        return words is wanted is unwanted is None
    return (
        (words is None or len(caption.split()) >= words)
        and (wanted is None or re.search(wanted, caption) is not None)
        and (unwanted is None or re.search(unwanted, caption) is None)
    )


def passes_by_lists(row, filters):
    include, exclude = filters.include, filters.exclude
    named = [one is not None and one.names_row(row["sample_id"], row["url"]) for one in (include, exclude)]
    # What is named by its bytes is known once they are there.
    return (include is None or named[0] or include.has_hashes) and not named[1]


def passes(row, filters):
    """Say whether one row passes, as the design words it."""
    if filters.max_faces_in_picture is not None and len(row["faces"]) > filters.max_faces_in_picture:
        return False
    number = sum(counts(face, row, filters) for face in row["faces"])
    if number < filters.fewest_faces or (filters.max_faces is not None and number > filters.max_faces):
        return False
    for column in ("width", "height"):
        least = getattr(filters, f"min_{column}")
        if least is not None and (row[column] is None or row[column] < least):
            return False
    if filters.nsfw is not None and row["nsfw"] not in filters.nsfw:
        return False
    if not passes_by_caption(row["caption"], filters) or not passes_by_lists(row, filters):
        return False
    least = filters.min_similarity
    return least is None or (row["similarity"] is not None and row["similarity"] >= least)


@settings(max_examples=300)
@given(st.lists(rows, max_size=8), some_filters)
def test_the_mask_equals_a_plain_loop(rows, filters):
    table = table_of(rows)
    assert filters.mask(table).tolist() == [passes(row, filters) for row in rows]


@settings(max_examples=300)
@given(rows, some_filters)
def test_the_faces_that_count_are_those_of_the_loop_and_the_largest_is_one_of_them(row, filters):
    shown = next(iter(in_batches(table_of([row]))))[0]
    counting = filters.counting(shown)
    assert counting == [place for place, face in enumerate(row["faces"]) if counts(face, row, filters)]
    found = largest(shown["faces"], counting)
    assert len(found) == min(1, len(counting))
    for place in found:
        assert area_of(shown["faces"][place]) == max(area_of(shown["faces"][one]) for one in counting)


@settings(max_examples=100)
@given(st.lists(rows, max_size=8), some_filters, st.integers(0, 8))
def test_flat_columns_never_drop_a_row_that_passes_also_in_slices(rows, filters, start):
    table = table_of(rows).slice(start)
    assert not np.any(filters.mask(table) & ~filters.flat_mask(table))
    assert filters.mask(table).tolist() == [passes(row, filters) for row in rows[start:]]


def test_scores_and_sides_mean_what_the_detector_wrote_and_the_rest_means_what_it_says():
    row = {"sample_id": 1, "url": None, "width": 10, "height": 10, "nsfw": None}
    boxes = [{"box": [0, 0, f32(0.7), f32(0.7)], "score": f32(0.9)}]
    table = table_of([{**row, "similarity": value, "faces": boxes} for value in (0.3, float(f32(0.3)))])
    assert Filters(min_score=0.9, min_face_size=0.7).mask(table).tolist() == [True, True]
    assert not Filters(min_score=0.9001).mask(table).any()
    assert not Filters(min_face_size=0.7001).mask(table).any()
    assert float(f32(0.3)) > 0.3
    assert Filters(min_similarity=0.3).mask(table).tolist() == [True, True]
    assert Filters(min_similarity=float(f32(0.3))).mask(table).tolist() == [False, True]
    # 2**24 + 1 is no float32: whole numbers are compared as they are.
    wide = table_of([{**row, "width": 2**24 + extra, "similarity": None, "faces": []} for extra in (0, 1)])
    assert Filters(min_width=2**24 + 1).mask(wide).tolist() == [False, True]


coordinates = st.floats(-100, 20_000, width=32)
real_faces = st.builds(
    lambda x1, y1, x2, y2, score: {"box": [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], "score": score},
    coordinates, coordinates, coordinates, coordinates, st.floats(0, 1, width=32),
)  # fmt: skip
real_rows = st.fixed_dictionaries(
    {
        "sample_id": st.just(1),
        "url": st.none(),
        "width": st.integers(1, 30_000),
        "height": st.integers(1, 30_000),
        "nsfw": st.none(),
        "similarity": st.floats(-1, 1),
        "faces": st.lists(real_faces, min_size=1, max_size=3),
    }
)


@settings(max_examples=300)
@given(real_rows, st.integers(0, 2))
def test_a_row_passes_with_its_own_values_as_thresholds(row, which):
    table = table_of([row])
    shown = next(iter(in_batches(table)))[0]  # as examples have it: Python's own numbers
    face = shown["faces"][which % len(shown["faces"])]
    (x1, y1, x2, y2), picture = face["box"], shown["width"] * shown["height"]
    area = (x2 - x1) * (y2 - y1) / picture
    own: dict[str, Any] = {
        "min_score": face["score"],
        "min_face_size": min(x2 - x1, y2 - y1),
        "min_face_area": area,
        "min_width": shown["width"],
        "min_height": shown["height"],
        "min_similarity": shown["similarity"],
    }
    for name, value in own.items():
        assert Filters(**{name: value}).mask(table).tolist() == [True], name
    assert Filters(**own).mask(table).tolist() == [True]
    for name in ("max_face_score", "max_face_size"):
        assert Filters(**{name.replace("max", "min").replace("face_score", "score"): shown[name]}).mask(table).all()
    assume(area > 0)
    lone = table_of([{**row, "faces": [face]}])
    for name in ("min_face_area", "min_similarity"):
        assert not Filters(**{name: np.nextafter(own[name], np.inf)}).mask(lone).any(), name
    for name in ("min_score", "min_face_size"):
        more: dict[str, Any] = {name: float(np.nextafter(f32(own[name]), f32(np.inf)))}
        assert not Filters(**more).mask(lone).any(), name


def test_a_face_threshold_alone_asks_for_one_face():
    assert Filters().fewest_faces == 0
    assert Filters(min_face_size=64).fewest_faces == 1
    assert Filters(min_face_size=64, min_faces=0).fewest_faces == 0
