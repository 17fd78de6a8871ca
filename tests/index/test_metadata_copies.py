"""Copies of the metadata: other names, other types, other writers, the same rows."""

import logging
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile
from laion_face_builder.index.metadata import ROW_SCHEMA, open_metadata

RELEASE_2021 = ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]
RELEASE_TODAY = ["NSFW", "similarity", "LICENSE", "caption", "url", "key", "original_width", "original_height"]
IMG2DATASET = [
    *("url", "caption", "key", "status", "error_message", "width", "height"),
    *("original_width", "original_height", "exif", "sha256"),
]


def columns_of(path: Path, names: list[str]) -> dict[str, str]:
    arrays = [pa.array([1], pa.int64()) for _ in names]
    pq.write_table(pa.Table.from_arrays(arrays, names), path)
    return dict(open_metadata(path).columns)


def read(path: Path) -> list[dict[str, object]]:
    """Read all rows that have an id, as plain values."""
    found = []
    for ids, rows in open_metadata(path).batches():
        assert rows.schema == ROW_SCHEMA
        rows.validate(full=True)
        found += [{"sample_id": int(one), **row} for one, row in zip(ids, rows.to_pylist(), strict=True)]
    return found


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            RELEASE_2021,
            {"sample_id": "SAMPLE_ID", "url": "URL", "caption": "TEXT", "width": "WIDTH", "height": "HEIGHT"},
        ),
        (RELEASE_TODAY, {"sample_id": "key", "url": "url", "caption": "caption", "width": "original_width"}),
        (IMG2DATASET, {"sample_id": "key", "width": "original_width", "height": "original_height"}),
        ([*IMG2DATASET, "SAMPLE_ID"], {"sample_id": "SAMPLE_ID"}),
        ([*IMG2DATASET, "sample_id", "TEXT"], {"sample_id": "sample_id", "caption": "TEXT"}),
        ([*IMG2DATASET, "WIDTH"], {"width": "original_width"}),
        (["id", "key", "url"], {"sample_id": "key"}),
        (["image", "id", "url", "text"], {"sample_id": "id", "caption": "text"}),
        (["url", "Url", "URL", "key"], {"url": "URL"}),
        (["Url", "url", "key"], {"url": "url"}),
        ([" URL ", "url", "key"], {"url": "url"}),
        ([" Url ", "\tKEY"], {"url": " Url ", "sample_id": "\tKEY"}),
        (["caption", "Text", "url", "key"], {"caption": "Text"}),
        (["width", "WIDTH", "url", "key"], {"width": "WIDTH"}),
        (["Original_Width", "WIDTH", "url", "key"], {"width": "Original_Width"}),
        (["URL", "SAMPLE_ID", "__index_level_0__", "hash"], {"url": "URL", "sample_id": "SAMPLE_ID"}),
    ],
    ids=lambda names: " ".join(names) if isinstance(names, list) else "",
)
def test_columns_by_precedence(tmp_path, names, expected):
    for order in (names, names[::-1]):
        found = columns_of(tmp_path / "m.parquet", order)
        assert {name: found[name] for name in expected} == expected


def test_of_two_odd_spellings_the_first_in_the_file_counts(tmp_path):
    assert columns_of(tmp_path / "m.parquet", ["uRL", "Url", "key"])["url"] == "uRL"
    assert columns_of(tmp_path / "m.parquet", ["Url", "uRL", "key"])["url"] == "Url"


def test_a_choice_is_logged_once_for_all_files_of_the_same_columns(tmp_path, caplog):
    caplog.set_level(logging.INFO, "laion_face")
    names = ["key", "SAMPLE_ID", "url", "URL", "only in this test"]
    for number in range(3):
        columns_of(tmp_path / f"{number}.parquet", names)
    (record,) = caplog.records
    assert "sample_id from 'SAMPLE_ID', not 'key'; url from 'URL', not 'url'" in record.getMessage()
    columns_of(tmp_path / "m.parquet", ["key", "url", "no choice in this one"])
    assert len(caplog.records) == 1


def test_a_name_that_is_there_twice(tmp_path):
    with pytest.raises(BadFile, match=r"m\.parquet: found 2 columns named 'URL', expected one"):
        columns_of(tmp_path / "m.parquet", ["URL", "key", "URL"])
    path = tmp_path / "m.parquet"
    assert columns_of(path, ["url", "URL", "url", "SAMPLE_ID", "key", "key", "exif", "exif"])["url"] == "URL"


@pytest.mark.parametrize(
    ("names", "pieces"),
    [
        (["url", "caption", "hash"], ("found the columns url, caption, hash", "SAMPLE_ID, key or id")),
        (["SAMPLE_ID", "TEXT"], ("found the columns SAMPLE_ID, TEXT", "a column URL")),
        ([], ("(none)",)),
    ],
)
def test_no_id_or_no_url_says_what_is_there_and_what_would_do(tmp_path, names, pieces):
    with pytest.raises(BadFile) as caught:
        columns_of(tmp_path / "m.parquet", names)
    for piece in (*pieces, "m.parquet", "another copy", "metadata=", "index=", "images="):
        assert piece in str(caught.value)


def test_shards_of_img2dataset_with_their_failed_rows(tmp_path):
    path = tmp_path / "00000.parquet"
    shard = {
        "url": ["http://a/1", "http://a/2", "http://a/3"],
        "caption": ["one", None, "three"],
        "key": ["000000000", "000000001", "000000012"],
        "status": ["success", "failed_to_download", "success"],
        "error_message": [None, "HTTP Error 404: Not Found", None],
        "width": pa.array([256, None, 256], pa.int32()),
        "height": pa.array([256, None, 256], pa.int32()),
        "original_width": pa.array([1024, None, 640], pa.int32()),
        "original_height": pa.array([768, None, 480], pa.int32()),
        "exif": ["{}", None, None],
        "sha256": ["ab", None, "cd"],
    }
    pq.write_table(pa.table(shard), path)
    rows = read(path)
    assert [row["sample_id"] for row in rows] == [0, 1, 12]
    assert [(row["width"], row["height"]) for row in rows] == [(1024, 768), (None, None), (640, 480)]
    assert [row["caption"] for row in rows] == ["one", None, "three"]
    pq.write_table(pa.table({**shard, "SAMPLE_ID": [7.0, 8.0, math.nan]}), path)
    assert [(row["sample_id"], row["url"]) for row in read(path)] == [(7, "http://a/1"), (8, "http://a/2")]


def test_pictures_inside_are_never_read(tmp_path):
    path = tmp_path / "train-00000-of-00001.parquet"
    pictures = pa.array([{"bytes": bytes([n]) * 5_000, "path": None} for n in range(100)])
    table = pa.table(
        {"id": range(100), "image": pictures, "url": [f"u{n}" for n in range(100)], "caption": ["c"] * 100}
    )
    pq.write_table(table, path, compression="none", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert chunk.path_in_schema == "image.bytes"
    raw = bytearray(path.read_bytes())
    raw[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = bytes(
        chunk.total_compressed_size
    )
    path.write_bytes(raw)
    assert [(row["sample_id"], row["url"]) for row in read(path)] == [(n, f"u{n}") for n in range(100)]


PLAIN: list[dict[str, Any]] = [
    {"sample_id": 1, "url": "http://a/ä?x=1", "caption": "one", "width": 640, "height": 480, "similarity": 0.3125},
    {"sample_id": 2**53 - 1, "url": "http://a/2", "caption": None, "width": None, "height": 1, "similarity": None},
    {"sample_id": None, "url": "http://a/3", "caption": "no id", "width": 9, "height": 9, "similarity": 0.5},
    {"sample_id": 4, "url": "http://a/4", "caption": "", "width": 2**31 - 1, "height": None, "similarity": 1.0},
]
ROWS: list[dict[str, Any]] = [
    {**row, "license": "?", "nsfw": nsfw} for row, nsfw in zip(PLAIN, ("UNLIKELY", None, "NSFW", "NSFW"), strict=True)
]
NAMED = {
    "sample_id": "SAMPLE_ID",
    "url": "URL",
    "caption": "TEXT",
    "width": "WIDTH",
    "height": "HEIGHT",
    "nsfw": "NSFW",
}
COLUMNS = {NAMED.get(name, name): [row[name] for row in ROWS] for name in ROWS[0]}


def by_pyarrow(path):
    pq.write_table(pa.table(COLUMNS), path)


def by_pyarrow_as_views(path):
    table = pa.table(COLUMNS)
    view = [field.with_type(pa.string_view()) if field.type == pa.string() else field for field in table.schema]
    pq.write_table(table.cast(pa.schema(view)), path)


def by_polars(path):
    pl.DataFrame(COLUMNS).write_parquet(path)


def by_polars_with_categories(path):
    frame = pl.DataFrame(COLUMNS).with_columns(
        pl.col("NSFW").cast(pl.Categorical), pl.col("license").cast(pl.Enum(["?"])), pl.col("SAMPLE_ID").cast(pl.UInt64)
    )
    frame.write_parquet(path)


def by_polars_through_arrow(path):
    table = pl.DataFrame(COLUMNS).to_arrow(compat_level=pl.CompatLevel.newest())
    assert pa.string_view() in table.schema.types
    pq.write_table(table, path)


def by_duckdb(path):
    duckdb.from_arrow(pa.table(COLUMNS)).write_parquet(str(path))


def by_duckdb_with_its_types(path):
    typed = """SAMPLE_ID::decimal(38,0) as SAMPLE_ID, encode(URL) as URL, TEXT, WIDTH::double as WIDTH,
        HEIGHT::varchar as HEIGHT, NSFW::enum('UNLIKELY', 'NSFW') as NSFW, license,
        similarity::decimal(18,4) as similarity"""
    duckdb.from_arrow(pa.table(COLUMNS)).project(typed).write_parquet(str(path))


def by_pandas(path):
    pd.DataFrame(COLUMNS).to_parquet(path)


def by_pandas_with_its_types(path):
    frame = pd.DataFrame(COLUMNS, index=[5, 6, 7, 9])
    frame["NSFW"] = frame["NSFW"].astype("category")
    frame["SAMPLE_ID"] = pd.array(COLUMNS["SAMPLE_ID"], dtype="Int64")
    frame["WIDTH"] = frame["WIDTH"].astype(str)
    frame.to_parquet(path)


def by_pandas_from_csv(path):
    csv = path.with_suffix(".csv")
    pd.DataFrame(COLUMNS).fillna({"TEXT": ""}).to_csv(csv, index=False)
    pd.read_csv(csv, dtype=str, keep_default_na=False, na_values={"NSFW": [""]}).to_parquet(path)


WRITERS = [
    *(by_pyarrow, by_pyarrow_as_views, by_polars, by_polars_with_categories, by_polars_through_arrow, by_duckdb),
    *(by_duckdb_with_its_types, by_pandas, by_pandas_with_its_types, by_pandas_from_csv),
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_writer_gives_the_same_rows(tmp_path, write):
    write(tmp_path / "m.parquet")
    rows = read(tmp_path / "m.parquet")
    expected = [row for row in ROWS if row["sample_id"] is not None]
    if write is by_pandas_from_csv:  # CSV has no null texts.
        expected = [{**row, "caption": row["caption"] or ""} for row in expected]
    assert rows == expected


def _optional(values):
    return st.one_of(st.none(), values)


LOGICAL = st.lists(
    st.fixed_dictionaries(
        {
            "sample_id": _optional(st.integers(0, 2**53 - 1)),
            "url": _optional(st.text(max_size=20)),
            "caption": _optional(st.text(max_size=20)),
            "width": _optional(st.integers(1, 2**31 - 1)),
            "height": _optional(st.integers(1, 2**31 - 1)),
            "license": _optional(st.sampled_from(["?", "cc"])),
            "nsfw": _optional(st.sampled_from(["UNLIKELY", "NSFW"])),
            "similarity": _optional(st.floats(-1, 1).map(lambda value: round(value, 6))),
        }
    ),
    max_size=12,
)
ABSENT = st.sampled_from(["", " ", "None", "nan", "NaN", "null", None])
NAMES = {
    "sample_id": ["SAMPLE_ID", "sample_id", " Key", "id"],
    "url": ["URL", "url", "Url "],
    "caption": ["TEXT", "caption", "text"],
    "width": ["WIDTH", "original_width", "width"],
    "height": ["HEIGHT", "Original_Height", "height"],
    "license": ["LICENSE", "license"],
    "nsfw": ["NSFW", "nsfw"],
    "similarity": ["similarity", "SIMILARITY"],
}


def texts(data, values):
    """Make text of one of Arrow's types that Parquet keeps."""
    array = pa.array(values, pa.string())
    form = data.draw(
        st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view(), "dictionary"])
    )
    return array.dictionary_encode() if form == "dictionary" else array.cast(form)


def whole_numbers(data, values):
    form = data.draw(st.sampled_from(["int64", "uint64", "float64", "decimal", "text"]))
    if form == "decimal":
        scale = data.draw(st.integers(0, 12))
        return pa.array([None if one is None else Decimal(one) for one in values], pa.decimal128(38, scale))
    if form == "text":
        spelling = data.draw(st.sampled_from(["{}", " {}", "{}.0", "000{}", "+{} ", "{}e0"]))
        return texts(data, [data.draw(ABSENT) if one is None else spelling.format(one) for one in values])
    array = pa.array(values, pa.int64()).cast(form)
    return array.fill_null(math.nan) if form == "float64" and data.draw(st.booleans()) else array


def numbers(data, values):
    form = data.draw(st.sampled_from(["float64", "nan", "decimal", "text"]))
    if form == "text":
        return texts(data, [data.draw(ABSENT) if one is None else repr(one) for one in values])
    if form == "decimal":
        return pa.array([None if one is None else Decimal(f"{one:.6f}") for one in values], pa.decimal128(20, 9))
    array = pa.array(values, pa.float64())
    return array.fill_null(math.nan) if form == "nan" else array


FORMS = {"sample_id": whole_numbers, "width": whole_numbers, "height": whole_numbers, "similarity": numbers}


@settings(max_examples=80)
@given(LOGICAL, st.data())
def test_the_same_rows_whatever_their_form(tmp_path_factory, logical, data):
    path = tmp_path_factory.mktemp("copy") / "m.parquet"
    columns = {}
    for name in data.draw(st.permutations(list(NAMES))):
        own = data.draw(st.sampled_from(NAMES[name]))
        columns[own] = FORMS.get(name, texts)(data, [row[name] for row in logical])
    pq.write_table(pa.table({"__index_level_0__": range(len(logical)), **columns}), path)
    assert read(path) == [row for row in logical if row["sample_id"] is not None]
