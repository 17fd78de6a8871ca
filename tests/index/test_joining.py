"""Joining a table to the index: whatever the table, it is pandas' left merge; made again only when it has to be."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile, NotPrepared, OptionError, SourceNotFound
from laion_face_builder.index.joined_columns import MATCHED, JoinSource
from laion_face_builder.index.joined_part import JoinedPart
from laion_face_builder.index.joined_rows import KeyPlaces
from laion_face_builder.index.joining import Joining
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.schema import INDEX


def written_index(folder, parts):
    """Write an index: of each part its rows' (sample_id, url)."""
    for part, rows in parts.items():
        full = [
            dict.fromkeys(INDEX.names) | {"sample_id": number, "url": url, "part": part, "faces": [], "n_faces": 0}
            for number, url in rows
        ]
        path = folder / "index" / f"part-{part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(full, schema=INDEX), path, row_group_size=3)
    return DataDir.at(folder)


def joining(data, place, parts, name=None, **more):
    opened = lambda part: IndexPart.open(data.index(part))  # noqa: E731 a name for a way to open
    return Joining(data, JoinSource(str(place), name), tuple(parts), opened, **more)


def joined(data, table, parts):
    """Read all rows of all parts with their columns of the table."""
    found = []
    for part in parts:
        with JoinedPart.beside(data.index(part), part, [table]) as index:
            names = ["sample_id", "url", *table.schema.names, MATCHED]
            cut = index.num_rows // 3  # two reads, one of which begins inside a row group
            found += index.read(0, cut, names).to_pylist() + index.read(cut, index.num_rows, names).to_pylist()
    return found


ours = st.dictionaries(
    st.sampled_from([0, 1, 5]),
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([None, *"abcdefgh"])), max_size=25, unique_by=lambda r: r[0]
    ),
    min_size=1,
)
values = st.fixed_dictionaries(
    {
        "text": st.one_of(st.none(), st.text("xyé", max_size=3)),
        "number": st.one_of(st.none(), st.integers(-9, 9)),
        "boxes": st.one_of(st.none(), st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), max_size=3)),
        "deep": st.one_of(st.none(), st.fixed_dictionaries({"a": st.one_of(st.none(), st.floats(0, 1, width=32))})),
    }
)
#: Types in which theirs may come: those of nested lists of a fixed size are what pyarrow mixes up in slices.
KINDS = {
    "plain": {"boxes": pa.list_(pa.list_(pa.int16())), "text": pa.string()},
    "fixed": {"boxes": pa.list_(pa.list_(pa.int16(), 2)), "text": pa.large_string()},
    "words": {"boxes": pa.large_list(pa.list_(pa.int16())), "text": pa.dictionary(pa.int8(), pa.string())},
}
IDS = [pa.int64(), pa.int32(), pa.float64(), pa.string()]


@settings(max_examples=60)
@given(
    ours,
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 60)), values), max_size=30, unique_by=lambda row: row[0]),
    st.integers(1, 3),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(IDS),
    st.booleans(),
    st.sampled_from([1, 300, 10**6]),
)
def test_a_join_is_the_left_merge_of_pandas(ours, theirs, files, kind, of_ids, by_url, run_bytes):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = written_index(folder / "data", ours)
        keys = [None if key is None else (chr(97 + key % 26) * (1 + key // 26) if by_url else key) for key, _ in theirs]
        schema = pa.schema(
            [
                ("url", pa.string()) if by_url else ("SAMPLE_ID", of_ids),
                ("text", KINDS[kind]["text"]),
                ("number", pa.int8()),
                ("boxes", KINDS[kind]["boxes"]),
                ("deep", pa.struct([("a", pa.float32())])),
            ]
        )
        if not by_url and of_ids == pa.string():
            keys = [None if key is None else str(key) for key in keys]
        rows = [{schema.names[0]: key, **value} for key, (_, value) in zip(keys, theirs, strict=True)]
        (folder / "table").mkdir()
        for number in range(files):
            table = pa.Table.from_pylist(rows[number::files], schema=schema)
            pq.write_table(table, folder / "table" / f"{number}.parquet", row_group_size=4)
        made = joining(data, folder / "table", ours, run_bytes=run_bytes).made()
        found = joined(data, made, ours)

        mine = pd.DataFrame([row for part in ours for row in ours[part]], columns=["sample_id", "url"], dtype=object)
        known = pd.DataFrame({"key": keys, "at": range(len(keys))}, dtype=object).dropna(subset="key")
        known["key"] = known["key"].map(str)
        mine["key"] = mine["url" if by_url else "sample_id"].map(lambda key: None if key is None else str(key))
        # Nulls are no key, where pandas would merge null with null.
        merged = mine.merge(known, on="key", how="left")
        assert len(merged) == len(found)
        for row, at in zip(found, merged["at"], strict=True):
            expected = dict.fromkeys(schema.names[1:]) if pd.isna(at) else theirs[int(at)][1]
            assert {name: row[name] for name in schema.names[1:]} == expected
            assert row[MATCHED] == (not pd.isna(at))
        assert [row["sample_id"] for row in found] == mine["sample_id"].tolist()


def test_addresses_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("laion_face_builder.index.joining.keys_of_texts", lambda texts: np.zeros(len(texts), np.int64))
    data = written_index(tmp_path / "data", {0: [(1, "a"), (2, "b"), (3, "a"), (4, None)]})
    pq.write_table(pa.table({"url": ["b", "a", "c"], "x": [1, 2, 3]}), tmp_path / "t.parquet")
    found = joined(data, joining(data, tmp_path / "t.parquet", [0]).made(), [0])
    assert [row["x"] for row in found] == [2, 1, 2, None]


@settings(max_examples=100)
@given(st.lists(st.integers(-5, 5), max_size=30), st.lists(st.integers(-7, 7), max_size=10), st.integers(1, 4))
def test_places_find_every_row_of_a_key(keys, asked, pieces):
    places = KeyPlaces()
    all_keys, rows = np.array(keys, np.int64), np.arange(len(keys), dtype=np.uint32)
    for number in range(pieces):
        places.add(all_keys[number::pieces], rows[number::pieces])
    places.sort()
    which, found = places.find(np.array(asked, np.int64))
    pairs = sorted(zip(which.tolist(), found.tolist(), strict=True))
    assert pairs == sorted((i, row) for i, key in enumerate(asked) for row, known in enumerate(keys) if key == known)


ROWS: dict[int, list[tuple[int, str]]] = {0: [(1, "u1"), (2, "u2"), (3, "u3")], 2: [(4, "u4"), (2, "u5")]}


@pytest.fixture
def data(tmp_path):
    return written_index(tmp_path / "data", ROWS)


def values_of(data, table, column, parts=(0, 2)):
    return [row[column] for row in joined(data, table, parts)]


@pytest.mark.parametrize("key", ["sample_id", "url"])
def test_a_row_that_is_there_twice_is_named(data, tmp_path, key):
    of_keys: dict[str, list[Any]] = {"sample_id": [9, 9, 2, 1, 2], "url": ["x", "x", "u2", "u1", "u2"]}
    keys = of_keys[key]
    pq.write_table(pa.table({key: keys, "x": range(5)}), tmp_path / "t.parquet")
    with pytest.raises(BadFile, match=f"t.parquet: found several rows of {key} {keys[2]}, expected at most one"):
        joining(data, tmp_path / "t.parquet", [0, 2]).made()
    left = [path for path in data.joined("").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []


def test_csv_and_its_empty_fields(data, tmp_path):
    (tmp_path / "t.csv").write_text('sample_id,url,text,n\n2,elsewhere,"two, words\nand a line",5\n4,x,NA,\n', "utf-8")
    table = joining(data, tmp_path / "t.csv", [0, 2], name="my").made()
    assert table.schema.names == ["my_text", "my_n"]
    assert values_of(data, table, "my_text") == [None, "two, words\nand a line", None, "NA", "two, words\nand a line"]
    assert values_of(data, table, "my_n") == [None, 5, None, None, 5]
    (tmp_path / "p.csv").write_text("sample_id,part\n1,2\n")
    with pytest.raises(OptionError, match="would be 'part', which the index has too"):
        joining(data, tmp_path / "p.csv", [0]).made()


def test_it_is_made_again_only_if_its_content_changes(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="laion_face")
    file = tmp_path / "t.parquet"

    def times_joined():
        found = [record for record in caplog.records if "samples of parts" in record.getMessage()]
        caplog.clear()
        return len(found)

    pq.write_table(pa.table({"sample_id": [1, 7], "x": [1, 7]}), file)
    table = joining(data, file, [0]).made()
    assert times_joined() == 1
    os.utime(file, ns=(1, 1))
    assert joining(data, file, [0]).made() == table
    assert times_joined() == 0
    # Another part: only that one is made.
    before = table.path(0).stat().st_ino
    joining(data, file, [0, 2]).made()
    assert (times_joined(), table.path(0).stat().st_ino) == (1, before)
    pq.write_table(pa.table({"sample_id": [1, 4], "y": [3, 4]}), file)
    with pytest.raises(NotPrepared, match="is not joined there with parts 0, 2"):
        joining(data, file, [0, 2]).there()
    table = joining(data, file, [0, 2]).made()
    assert values_of(data, table, "y") == [3, None, None, 4, None]
    written_index(data.root, {0: [(4, "u4")]})
    with pytest.raises(NotPrepared, match="was joined with another index"):
        joined(data, table, [0])
    assert values_of(data, joining(data, file, [0]).made(), "y", [0]) == [4]


def test_a_side_table_that_is_damaged_is_found_and_says_what_to_do(data, tmp_path):
    pq.write_table(pa.table({"sample_id": [1, 2], "x": ["some text", "more text"]}), tmp_path / "t.parquet")
    table = joining(data, tmp_path / "t.parquet", [0]).made()
    bytes_there = bytearray(table.path(0).read_bytes())
    column = pq.read_metadata(table.path(0)).row_group(0).column(1)
    bytes_there[column.data_page_offset + column.total_compressed_size // 2] ^= 255
    table.path(0).write_bytes(bytes_there)
    with pytest.raises(BadFile, match="expected a table as it was joined"):
        joined(data, table, [0])
    table.path(0).unlink()
    with pytest.raises(NotPrepared, match="which joins it anew"):
        joined(data, table, [0])


def test_what_cannot_be_joined_says_why(data, tmp_path):
    def refusal(kind, table, parts=(0,)):
        pq.write_table(table, tmp_path / "t.parquet")
        with pytest.raises(kind) as caught:
            joining(data, tmp_path / "t.parquet", parts).made()
        return str(caught.value)

    assert "expected a column sample_id or url" in refusal(BadFile, pa.table({"id": [1], "x": [1]}))
    assert "no column besides sample_id" in refusal(OptionError, pa.table({"sample_id": [1], "url": ["x"]}))
    of_map = pa.table({"sample_id": [1], "x": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))})
    assert "column 'x' of type map" in refusal(BadFile, of_map)
    assert "sample id 1.5" in refusal(BadFile, pa.table({"sample_id": [1.5], "x": [1]}))
    (tmp_path / "t.parquet").write_bytes(b"nothing")
    with pytest.raises(BadFile, match="expected a whole Parquet file"):
        joining(data, tmp_path / "t.parquet", [0]).made()
    with pytest.raises(SourceNotFound, match="found nothing there"):
        joining(data, tmp_path / "none.parquet", [0]).made()
    with pytest.raises(OptionError, match="expected a Parquet or CSV file"):
        joining(data, "what is this", [0]).made()


def test_files_of_several_schemas_are_one_table(data, tmp_path):
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"sample_id": [1], "x": pa.array([1], pa.int8())}), tmp_path / "t" / "a.parquet")
    pq.write_table(pa.table({"sample_id": [4], "x": [2**40], "y": ["z"]}), tmp_path / "t" / "b.parquet")
    table = joining(data, tmp_path / "t", [0, 2]).made()
    assert table.schema == pa.schema([("x", pa.int64()), ("y", pa.string())])
    assert values_of(data, table, "x") == [1, None, None, 2**40, None]
    pq.write_table(pa.table({"sample_id": [4], "x": ["text"]}), tmp_path / "t" / "b.parquet")
    with pytest.raises(OptionError, match="other columns each"):
        joining(data, tmp_path / "t", [0, 2]).made()
    assert values_of(data, joining(data, tmp_path / "t" / "a*.parquet", [0]).made(), "x", [0]) == [1, None, None]
