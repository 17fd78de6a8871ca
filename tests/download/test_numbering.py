"""Rows leave the index, and a download's numbers stay: which is which, after any removals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.download.numbering import NOWHERE, GoneRows, Numbering, listed_rows, without_removed
from laion_face_builder.download.plan import PLAN, PartFiles, listed
from laion_face_builder.errors import StateConflict
from laion_face_builder.files import make_fingerprint, stamped
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removed import Removed, hash_of
from laion_face_builder.layout import DataDir
from tests.download.test_download import make_host, write_index


def planned(folder: Path, rows: int) -> PartFiles:
    files = PartFiles(DataDir.at(folder), 0)
    files.checked.mkdir(parents=True, exist_ok=True)
    files.removed.unlink(missing_ok=True)
    pq.write_table(pa.table([pa.nulls(rows, pa.string())], schema=stamped(PLAN, make_fingerprint("plan"))), files.plan)
    return files


@given(rows=st.integers(0, 30), data=st.data())
@settings(max_examples=20, deadline=None)
def test_each_row_is_found_whatever_was_taken_down(
    tmp_path_factory: pytest.TempPathFactory, rows: int, data: st.DataObject
) -> None:
    files = planned(tmp_path_factory.getbasetemp() / "numbering", rows)
    left, before = list(range(rows)), [list(range(rows))]
    for removal in range(1, data.draw(st.integers(1, 4)) + 1):
        some = data.draw(st.sets(st.sampled_from(left))) if left else set()
        if some:
            taken = GoneRows.of(files)
            taken.with_rows(np.array(sorted({*some, *taken.rows.tolist()}), np.int64), removal).write(files)
        left = [row for row in left if row not in some]
        before.append(left)
    for index in before:  # of now, and of any time between: what a kill leaves, or an index that lies elsewhere
        found = Numbering.of(files, len(index))
        assert found.of_index.tolist() == index
        assert found.is_gone.tolist() == [row not in left for row in index]
        expected = [index.index(row) if row in left else NOWHERE for row in range(rows)]
        assert found.rows_of(np.arange(rows)).tolist() == expected
    for other in {*range(rows + 2)} - {len(index) for index in before}:
        with pytest.raises(StateConflict, match="Run `laion-face remove`"):
            Numbering.of(files, other)


def test_what_is_gone_is_neither_read_nor_carried(tmp_path: Path) -> None:
    host, truths = make_host(100, tmp_path / "none")
    host.stop()
    files = planned(tmp_path / "data", 20)
    write_index(files.data, truths[:20])
    with IndexPart.open(files.data.index(0)) as whole:
        before = listed(whole, np.arange(20), blur_faces=True).to_pylist()
    gone = [0, 7, 8, 19]
    GoneRows.none().with_rows(np.array(gone), 1).write(files)
    write_index(files.data, [truth for row, truth in enumerate(truths[:20]) if row not in gone])
    rows = np.array([0, 1, 6, 7, 8, 9, 18, 19])
    with IndexPart.open(files.data.index(0)) as index:
        numbering = Numbering.of(files, index.num_rows)
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
