"""Law 1: an index part holds the rows of a plain, slow join, whatever form the metadata has; and the proof of it."""

import dataclasses
import itertools
import json
import random
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import JoinRefused
from laion_face_builder.index import staged as staging
from laion_face_builder.index.faces import FaceTable
from laion_face_builder.index.ids import PartIds
from laion_face_builder.index.join import Proof, join
from laion_face_builder.index.staged import (
    rows_of_part,
    stage,
    staged_file,
    staged_fingerprint,
    staged_rows,
    staging_folder,
)
from laion_face_builder.index.writer import index_fingerprint, proof_path, write_index
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Face
from laion_face_builder.sandbox.plain_join import plain_join
from laion_face_builder.schema import DETECTIONS

FIELDS = ("sample_id", "url", "caption", "width", "height", "license", "nsfw", "similarity")
NAMES = {
    "2021": ("SAMPLE_ID", "URL", "TEXT", "WIDTH", "HEIGHT", "LICENSE", "NSFW", "similarity"),
    "today": ("key", "url", "caption", "original_width", "original_height", "LICENSE", "NSFW", "similarity"),
}
ids = st.integers(0, 12)
# Few values, so that rows repeat, differ in one field only, fit, fit the other way up, or do not fit.
sizes = st.sampled_from([None, 40, 60, 100])
rows = st.fixed_dictionaries(
    {
        "sample_id": st.one_of(st.none(), ids),
        "url": st.sampled_from([None, "http://a/1", "http://a/2", "http://b/1"]),
        "caption": st.sampled_from([None, "", "a", "b"]),
        "width": sizes,
        "height": sizes,
        "license": st.sampled_from([None, "?"]),
        "nsfw": st.sampled_from([None, "UNLIKELY"]),
        "similarity": st.sampled_from([None, 0.25, 0.5]),
    }
)
places = st.tuples(*[st.sampled_from([-20.0, 0.0, 30.0, 50.0, 80.0, 120.0])] * 2)
faces = st.builds(
    lambda at, score: Face((*at, at[0] + 20.0, at[1] + 20.0), ((1.0, 2.0),) * 5, score),
    places,
    st.sampled_from([0.5, 0.75, 1.0]),
)
worlds = st.fixed_dictionaries(
    {
        "rows": st.lists(rows, max_size=40),
        "asked": st.tuples(st.sets(ids), st.sets(ids)),
        "faces": st.dictionaries(ids, st.lists(faces, max_size=3), max_size=12),
        "files": st.integers(1, 4),
        "names": st.sampled_from(sorted(NAMES)),
    }
)


def write_files(folder: Path, table_rows: list[dict], count: int, names: tuple[str, ...]) -> list[Path]:
    kinds = (pa.int64(), *[pa.string()] * 2, *[pa.int64()] * 2, *[pa.string()] * 2, pa.float64())
    paths = []
    for number in range(count):
        mine = table_rows[len(table_rows) * number // count : len(table_rows) * (number + 1) // count]
        columns = {
            name: pa.array([row[field] for row in mine], kind)
            for field, name, kind in zip(FIELDS, names, kinds, strict=True)
        }
        paths.append(folder / f"{number:05d}.parquet")
        pq.write_table(pa.table(columns), paths[-1], row_group_size=7)
    return paths


def write_faces(path: Path, found: dict[int, list[Face]]) -> Path:
    table = [{"sample_id": one, "faces": [face.as_dict() for face in found[one]]} for one in sorted(found)]
    pq.write_table(pa.Table.from_pylist(table, schema=DETECTIONS), path, row_group_size=5)
    return path


def expected(world: dict, part: int) -> tuple[list[dict], dict[str, int]]:
    return plain_join(world["rows"], world["asked"][part], world["faces"])


def check(table_rows: pa.Table, world: dict, part: int, folder: Path) -> None:
    joined = join(part, len(world["asked"][part]), table_rows, FaceTable.read(folder / "faces.parquet"))
    kept, proof = expected(world, part)
    fingerprint = index_fingerprint(part, ids="sha256:i", faces="sha256:f", metadata="sha256:m")
    write_index(folder / f"part-{part}.parquet", joined, fingerprint)
    written = pq.read_table(folder / f"part-{part}.parquet").to_pylist()
    assert [{name: row[name] for name in FIELDS} for row in written] == kept
    assert [row["faces"] for row in written] == [
        [face.as_dict() for face in world["faces"].get(row["sample_id"], [])] for row in kept
    ]
    assert {row["part"] for row in written} <= {part}
    for row in written:
        sides = [np.float32(face["box"][k + 2]) - np.float32(face["box"][k]) for face in row["faces"] for k in (0, 1)]
        short = [float(min(pair)) for pair in zip(sides[::2], sides[1::2], strict=True)]
        scores = [face["score"] for face in row["faces"]]
        flat = (row["n_faces"], row["max_face_score"], row["max_face_size"])
        assert flat == (len(row["faces"]), max(scores, default=None), max(short, default=None))
    ours = json.loads(proof_path(folder / f"part-{part}.parquet").read_text())
    assert proof == {
        "asked": ours["ids_asked"],
        "found": ours["ids_found"],
        "merged": ours["repeated_rows"],
        "ambiguous": ours["ambiguous_ids"],
        "swapped": ours["swapped_rows"],
        "faces_with_sizes": ours["faces_with_size"],
        "faces_that_fit": ours["faces_that_fit"],
    }
    # Nothing vanishes without being counted.
    asked_rows = sum(row["sample_id"] in world["asked"][part] for row in world["rows"])
    left_out = ours["repeated_rows"] + ours["ambiguous_rows"] + ours["disproved_rows"]
    assert ours["rows"] + left_out == asked_rows
    assert ours["made_from"] == fingerprint


@settings(max_examples=60)
@given(worlds)
def test_law_1_by_part_the_index_is_the_plain_join(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("law1")
    (path,) = write_files(folder, world["rows"], 1, NAMES[world["names"]])
    write_faces(folder / "faces.parquet", world["faces"])
    for part, asked in enumerate(world["asked"]):
        wanted = PartIds.of({part: np.array(sorted(asked), np.int64)})
        check(rows_of_part(path, wanted, threads=1 + part), world, part, folder)


@settings(max_examples=60)
@given(worlds, st.sampled_from([3, 1 << 16]))
def test_law_1_of_whole_metadata_the_index_is_the_plain_join(tmp_path_factory, world, held):
    folder = tmp_path_factory.mktemp("law1")
    paths = write_files(folder, world["rows"], world["files"], NAMES[world["names"]])
    write_faces(folder / "faces.parquet", world["faces"])
    wanted = PartIds.of({part: np.array(sorted(asked), np.int64) for part, asked in enumerate(world["asked"])})
    staged = [folder / "staged" / path.name for path in paths]
    with mock.patch.object(staging, "_MOST_HELD", held):
        for target, path in zip(staged, paths, strict=True):
            stage(target, path, wanted, staged_fingerprint("sha256:i", [0, 1], path.name))
    for part in (0, 1):
        check(staged_rows(DataDir.at(folder), staged, part), world, part, folder)


@given(
    st.dictionaries(st.integers(0, 31), st.sets(st.integers(0, 2**53 - 1), max_size=30), max_size=5),
    st.lists(st.integers(0, 2**53 - 1), max_size=30),
    st.randoms(use_true_random=False),
)
def test_ids_are_found_in_every_part_that_lists_them(lists, others, rng):
    shared = [one for listed in lists.values() for one in listed]
    values = [*others, *shared, *shared[:3]]
    rng.shuffle(values)
    found = PartIds.of({part: np.array(sorted(listed), np.int64) for part, listed in lists.items()})
    array = np.array(values, np.int64)
    which, parts = found.find(array)
    assert list(zip(which.tolist(), parts.tolist(), strict=True)) == [
        (row, part) for row, value in enumerate(values) for part in sorted(lists) if value in lists[part]
    ]
    maybe = found.maybe(array)
    assert all(maybe[row] for row in which)


def test_few_foreign_ids_are_searched_for_in_vain():
    rng = np.random.default_rng(0)
    found = PartIds.of({0: np.sort(rng.integers(0, 1 << 41, 100_000))})
    assert found.maybe(rng.integers(0, 1 << 41, 100_000)).mean() < 0.08


def test_a_pass_for_more_parts_is_taken_up_again(tmp_path):
    data = DataDir.at(tmp_path)
    folder, parts = staging_folder(data, "sha256:i", [5, 0, 31])
    assert parts == (0, 5, 31)
    folder.mkdir(parents=True)
    staged_file(folder, 0).touch()
    assert staging_folder(data, "sha256:i", [5]) == (folder, (0, 5, 31))
    assert staging_folder(data, "sha256:i", [5, 6])[1] == (5, 6)
    assert staging_folder(data, "sha256:other", [5])[1] == (5,)


# Refusals

PROOF = Proof(3, 1000, 870, 860, 4, 6, 12, 2, 1, 2000, 1960)


def test_the_proof_says_its_figures():
    assert str(PROOF) == (
        "part 3: 860 rows; 87.0 % of 1,000 ids found; 98.0 % of 2,000 faces fit; 4 repeated, 12 ambiguous and "
        "2 disproved rows left out; 1 swapped sizes"
    )
    PROOF.refuse_wrong("there")
    assert PROOF.warnings() == []


@pytest.mark.parametrize(
    ("changed", "refused", "warned"),
    [
        ({"ids_found": 9}, "there: has 9 of the 1,000 sample ids of part 3 (0.9 %", None),
        ({"ids_found": 10}, None, "only 1.0 % of its 1,000 ids"),
        ({"ids_found": 799}, None, "only 79.9 % of its 1,000 ids"),
        ({"ids_found": 800}, None, None),
        ({"ids_asked": 0, "ids_found": 0}, None, None),
        ({"faces_that_fit": 1699}, "there: 1,699 of 2,000 faces of part 3 lie in their pictures (85.0 %", None),
        ({"faces_that_fit": 1700}, None, "only 85.0 % of 2,000 faces"),
        ({"faces_that_fit": 1899}, None, "only 95.0 % of 2,000 faces"),
        ({"faces_that_fit": 1900}, None, None),
        ({"faces_with_size": 99, "faces_that_fit": 0}, None, None),
        ({"faces_with_size": 100, "faces_that_fit": 84}, "84 of 100 faces", None),
        ({"faces_with_size": 0, "faces_that_fit": 0}, None, None),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused_and_what_is_doubtful_is_said(changed, refused, warned):
    proof = dataclasses.replace(PROOF, **changed)
    said = [text for text in (refused,) if text]
    if refused:
        with pytest.raises(JoinRefused) as caught:
            proof.refuse_wrong("there")
        assert all(text in str(caught.value) for text in [*said, "Name other metadata with metadata="])
    else:
        proof.refuse_wrong("there")
        assert [warned in line for line in proof.warnings()] == ([True] if warned else [])


def test_wrongly_joined_rows_of_real_like_sizes_are_refused():
    rng = random.Random(0)
    table_rows, found = [], {}
    for one in range(600):
        width, height = rng.choice([(600, 400), (400, 600), (1024, 768), (300, 300), (1600, 900)])
        x, y = rng.uniform(0, width), rng.uniform(0, height * 0.7)
        found[one] = [Face((x - 9, y - 9, x + 9, y + 9), ((x, y),) * 5, 0.9)]
        table_rows.append({"sample_id": one, "url": f"http://a/{one}", "width": width, "height": height})
    right = _table(table_rows)
    assert join(0, 600, right, _face_table(found)).proof.fit == 1.0
    shuffled = [{**row, "sample_id": one} for row, one in zip(table_rows, rng.sample(range(600), 600), strict=True)]
    proof = join(0, 600, _table(shuffled), _face_table(found)).proof
    assert proof.coverage == 1.0
    with pytest.raises(JoinRefused, match="its rows are of other pictures"):
        proof.refuse_wrong("there")


def _table(table_rows: list[dict]) -> pa.Table:
    schema = pa.schema([(name, staging.STAGED.field(name).type) for name in FIELDS])
    return pa.Table.from_pylist([{name: row.get(name) for name in FIELDS} for row in table_rows], schema=schema)


def _face_table(found: dict[int, list[Face]]) -> FaceTable:
    listed = [face for one in sorted(found) for face in found[one]]
    counts = [len(found[one]) for one in sorted(found)]
    return FaceTable(
        np.array(sorted(found), np.int64),
        np.array([0, *itertools.accumulate(counts)], np.int64),
        np.array([face.box for face in listed], np.float32),
        np.array([face.landmarks for face in listed], np.float32).reshape(-1, 10),
        np.array([face.score for face in listed], np.float32),
    )
