"""Filters against a plain loop over faces, and the exclusion file."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile
from laion_face_builder.index.filters import Filters, host_of, parse_exclusion
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
        "similarity": st.one_of(st.none(), st.sampled_from([0.3, float(f32(0.3)), 0.31])),
        "faces": st.lists(faces, max_size=3),
    }
)
maybe = lambda values: st.one_of(st.none(), values)  # noqa: E731 a name for a strategy
some_filters = st.builds(
    Filters,
    min_score=maybe(st.sampled_from([0.75, 0.9])),
    min_face_size=maybe(st.sampled_from([10, 64.5])),
    min_face_area=maybe(st.sampled_from([0.01, 0.2])),
    min_faces=maybe(st.integers(0, 2)),
    max_faces=maybe(st.integers(0, 3)),
    min_width=maybe(st.integers(1, 300)),
    min_height=maybe(st.integers(1, 300)),
    nsfw=maybe(st.sampled_from([("UNLIKELY",), ("UNLIKELY", "UNSURE")])),
    min_similarity=maybe(st.just(0.3)),
)


def table_of(rows):
    """Index rows with the flat columns derived from the faces by hand."""
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
    """Whether one face counts, as the design words it."""
    x1, y1, x2, y2 = (f32(value) for value in face["box"])
    width, height = x2 - x1, y2 - y1
    if filters.min_score is not None and not f32(face["score"]) >= f32(filters.min_score):
        return False
    if filters.min_face_size is not None and not min(width, height) >= f32(filters.min_face_size):
        return False
    if filters.min_face_area is not None:
        if row["width"] is None or row["height"] is None:
            return False
        area = float(max(width, 0)) * float(max(height, 0))
        return area >= float(f32(filters.min_face_area)) * (row["width"] * row["height"])
    return True


def passes(row, filters):
    """Whether one row passes, as the design words it."""
    number = sum(counts(face, row, filters) for face in row["faces"])
    if number < filters.fewest_faces or (filters.max_faces is not None and number > filters.max_faces):
        return False
    for column in ("width", "height"):
        least = getattr(filters, f"min_{column}")
        if least is not None and (row[column] is None or row[column] < least):
            return False
    if filters.nsfw is not None and row["nsfw"] not in filters.nsfw:
        return False
    least = filters.min_similarity
    return least is None or (row["similarity"] is not None and row["similarity"] >= float(f32(least)))


@settings(deadline=None, max_examples=300)
@given(st.lists(rows, max_size=8), some_filters)
def test_the_mask_equals_a_plain_loop(rows, filters):
    table = table_of(rows)
    assert filters.mask(table).tolist() == [passes(row, filters) for row in rows]


@settings(deadline=None, max_examples=100)
@given(st.lists(rows, max_size=8), some_filters, st.integers(0, 8))
def test_flat_columns_never_drop_a_row_that_passes_also_in_slices(rows, filters, start):
    table = table_of(rows).slice(start)
    assert not np.any(filters.mask(table) & ~filters.flat_mask(table))
    assert filters.mask(table).tolist() == [passes(row, filters) for row in rows[start:]]


def test_thresholds_are_rounded_to_float32_first():
    row = {"sample_id": 1, "url": None, "width": 9, "height": 9, "nsfw": None, "similarity": None}
    score = float(f32(0.9))
    assert score < 0.9 or f32(0.9) == f32(score)
    table = table_of([{**row, "faces": [{"box": [0, 0, 5, 5], "score": score}]}])
    assert Filters(min_score=0.9).mask(table).tolist() == [True]
    assert Filters(min_score=0.9001).mask(table).tolist() == [False]


def test_a_face_threshold_alone_asks_for_one_face():
    assert Filters().fewest_faces == 0
    assert Filters(min_face_size=64).fewest_faces == 1
    assert Filters(min_face_size=64, min_faces=0).fewest_faces == 0


def test_exclusion_by_id_url_host_and_subdomain(tmp_path):
    listed = tmp_path / "exclude.txt"
    listed.write_text(f"# withdrawn\n7\n\nhttps://x.example/one.jpg\nBad.Example.\n{'AB' * 32}\n")
    urls = ["http://ok.example/", "https://x.example/one.jpg", "http://cdn.bad.example:80/", "http://notbad.example/"]
    row = {"width": 1, "height": 1, "nsfw": None, "similarity": None, "faces": []}
    table = table_of([{**row, "sample_id": i, "url": url} for i, url in zip([7, 8, 9, 10], urls, strict=True)])
    filters = Filters(exclude=str(listed))
    assert filters.mask(table).tolist() == [False, False, False, True]
    before = filters.as_dict()
    listed.write_text(f"bad.example\n{'ab' * 32}\nhttps://x.example/one.jpg\n7")
    assert filters.as_dict() == before
    listed.write_text("7\n8\n")
    assert filters.as_dict() != before


def test_an_unreadable_exclusion_file_is_named(tmp_path):
    (tmp_path / "e").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match=r"e: found no readable text"):
        Filters(exclude=str(tmp_path / "e")).as_dict()


def test_hosts_of_odd_urls():
    assert host_of("http://User:pw@Host.Example.:8080/p@q") == "host.example"
    assert host_of("http://[::1]:80/") == "::1"
    assert host_of("http://[broken") == host_of(None) == ""
    assert parse_exclusion(["0" * 64]).sha256s == {"0" * 64}
