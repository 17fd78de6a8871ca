"""Rows leave the index, and a download's numbers stay: which is which, after any removals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.download.numbering import NOWHERE, Numbering, listed_rows, without_removed
from laion_face_builder.download.plan import PLAN, PartFiles, listed, save_plan
from laion_face_builder.errors import StateConflict
from laion_face_builder.files import make_fingerprint, stamped
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removed import Removed, hash_of
from laion_face_builder.layout import DataDir
from laion_face_builder.schema import INDEX
from tests.download.test_download import make_host, write_index


def planned(folder: Path, ids: list[int | None]) -> PartFiles:
    files = PartFiles(DataDir.at(folder), 0)
    files.checked.mkdir(parents=True, exist_ok=True)
    save_plan(files, pa.table([pa.nulls(len(ids), pa.string()), pa.array(ids, pa.int64())], schema=PLAN), {})
    return files


def indexed(folder: Path, ids: list[int]) -> IndexPart:
    """Give an index with these samples, without anything else."""
    path = folder / "index.parquet"
    pq.write_table(rows_of(ids), path)
    return IndexPart.open(path)


def rows_of(ids: list[int]) -> pa.Table:
    values = [{"sample_id": number, "part": 0, "faces": [], "n_faces": 0} for number in ids]
    return pa.Table.from_pylist(values, schema=stamped(INDEX, make_fingerprint("index", part=0)))


@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=20), data=st.data())
@settings(max_examples=60)
def test_each_row_is_found_whatever_was_taken_down_here_or_there(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], data: st.DataObject
) -> None:
    folder, rows = tmp_path_factory.getbasetemp() / "numbering", range(len(ids))
    gone, lost = (data.draw(st.sets(st.sampled_from(rows))) if ids else set() for _ in range(2))
    files = planned(folder, [None if row in gone else one for row, one in enumerate(ids)])
    kept = [row for row in rows if row not in lost]
    with indexed(folder, [ids[row] for row in kept]) as index:
        found = Numbering.of(files, index)
    places = [kept.index(row) if row in kept and row not in gone else NOWHERE for row in rows]
    assert found.rows_of(np.arange(len(ids))).tolist() == places
    assert found.is_gone.tolist() == [row in gone for row in kept]
    assert [row for row, one in zip(found.of_index.tolist(), kept, strict=True) if one not in gone] == [
        row for row in kept if row not in gone
    ]
    assert found.gone.tolist() == sorted(gone)
    assert {*found.lacks.tolist()} - gone == lost - gone


@given(ids=st.lists(st.integers(0, 99), unique=True, min_size=2, max_size=12), data=st.data())
@settings(max_examples=30)
def test_an_index_with_rows_that_are_not_the_downloads_is_refused(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "numbering"
    kept = data.draw(st.lists(st.sampled_from(ids), unique=True, max_size=len(ids) - 2))
    place = data.draw(st.integers(0, len(kept)))
    others = [*kept[:place], 100, *kept[place:]]
    with indexed(folder, others) as index, pytest.raises(StateConflict, match="others among them"):
        Numbering.of(planned(folder, list(ids)), index)


def test_what_is_gone_is_neither_read_nor_carried(tmp_path: Path) -> None:
    host, truths = make_host(100, tmp_path / "none")
    host.stop()
    ids = [truth.sample_id for truth in truths[:20]]
    write_index(data := DataDir.at(tmp_path / "data"), truths[:20])
    with IndexPart.open(data.index(0)) as whole:
        before = listed(whole, np.arange(20), blur_faces=True).to_pylist()
    gone = [0, 7, 8, 19]
    files = planned(data.root, [None if row in gone else one for row, one in enumerate(ids)])
    write_index(files.data, [truth for row, truth in enumerate(truths[:20]) if row not in gone])
    rows = np.array([0, 1, 6, 7, 8, 9, 18, 19])
    with IndexPart.open(files.data.index(0)) as index:
        numbering = Numbering.of(files, index)
        found = listed_rows(index, numbering, rows, blur_faces=True)
        none = listed_rows(index, numbering, np.array(gone), blur_faces=True)
    blank = dict.fromkeys(found.column_names)
    assert found.to_pylist() == [{**blank, "row": row} if row in gone else before[row] for row in rows.tolist()]
    assert none.to_pylist() == [{**blank, "row": row} for row in gone]

    removed = Removed(
        frozenset({hash_of("sample_ids", truths[6].sample_id)}), frozenset({hash_of("urls", truths[9].url)})
    )
    left, is_named = without_removed(found, removed)
    assert rows[is_named].tolist() == [6, 9]
    gone += [6, 9]
    assert left.to_pylist() == [{**blank, "row": row} if row in gone else before[row] for row in rows.tolist()]
