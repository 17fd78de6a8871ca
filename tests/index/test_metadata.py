"""Metadata as it is found in the wild: types, names, nulls, damage."""

import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile, DiskError
from laion_face_builder.index.metadata import ROW_SCHEMA, as_floats, as_sizes, as_text, open_metadata, parse_ids


def write(path: Path, columns: dict[str, object], **options) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def ids_of(path: Path) -> list[int]:
    return [one for values, _ in open_metadata(path).batches() for one in values.tolist()]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, 2**53 - 1]),
        pa.array([1.0, None, float(2**53 - 1)]),
        pa.array([1.0, math.nan, float(2**53 - 1)]),
        pa.array(["1", None, "9007199254740991"]),
        pa.array([" 1.0", "NaN", "9007199254740991."], pa.large_string()),
        pa.array(["1e0", "", "9.007199254740991E15"]),
        pa.array([b"+1", b"null", b"9007199254740991.000"]),
        pa.array(["1", None, "9007199254740991"]).dictionary_encode(),
        pa.array([1, None, 2**53 - 1], pa.uint64()),
        pa.array([1, None, 2**53 - 1]).dictionary_encode(),
        pa.array([Decimal(1), None, Decimal(2**53 - 1)], pa.decimal128(16, 0)),
        pa.array([Decimal(1), None, Decimal(2**53 - 1)], pa.decimal256(60, 20)),
        pa.array(["1", " None ", "9007199254740991"], pa.string_view()),
        pa.array([b"000000001", b"<NA>", b"9.007199254740991e15"], pa.binary_view()),
        pa.array([b"1", None, b"9007199254740991"], pa.large_binary()),
    ],
    ids=lambda column: str(column.type),
)
def test_ids_of_every_type(tmp_path, column):
    assert ids_of(write(tmp_path / "m.parquet", {"SAMPLE_ID": column, "URL": ["a"] * 3})) == [1, 2**53 - 1]


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([1, 2**53]), "9007199254740992"),
        (pa.array([-(2**53)]), "-9007199254740992"),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array([1.5]), "1.5"),
        (pa.array([math.inf]), "inf"),
        (pa.array([2.0**53]), "9007199254740992.0"),
        (pa.array(["1", "x7"]), "'x7'"),
        (pa.array(["12.5"]), "'12.5'"),
        (pa.array(["9007199254740992"]), "9007199254740992"),
        (pa.array(["9" * 30]), "'999"),
        (pa.array(["Infinity"]), "'Infinity'"),
        (pa.array([1.0, 2.0**24], pa.float32()), "type float, such as 16777216"),
        (pa.array([None, 2.0**11], pa.float16()), "type halffloat, such as 2048"),
        (pa.array([1.5], pa.float32()), "1.5"),
        (pa.array([math.inf], pa.float32()), "inf"),
        (pa.array([Decimal("1.5")]), "'1.5'"),
        (pa.array([Decimal(10**40)], pa.decimal256(50, 0)), "'1000"),
        (pa.array(["1", "x7"], pa.string_view()), "'x7'"),
        (pa.array(["-inf"]).dictionary_encode(), "'-inf'"),
        (pa.array([[1]]), "type list"),
        (pa.array([True]), "type bool"),
    ],
)
def test_what_is_no_id_is_named(tmp_path, column, named):
    path = write(tmp_path / "m.parquet", {"SAMPLE_ID": column, "URL": ["a"] * len(column)})
    with pytest.raises(BadFile) as caught:
        ids_of(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "largest"),
    [
        *((pa.int8(), 2**7 - 1), (pa.int16(), 2**15 - 1), (pa.int32(), 2**31 - 1), (pa.int64(), 2**53 - 1)),
        *((pa.uint8(), 2**8 - 1), (pa.uint16(), 2**16 - 1), (pa.uint32(), 2**32 - 1), (pa.uint64(), 2**53 - 1)),
        *((pa.float16(), 2**11 - 1), (pa.float32(), 2**24 - 1), (pa.float64(), 2**53 - 1)),
    ],
    ids=str,
)
def test_ids_up_to_the_largest_of_their_type(tmp_path, kind, largest):
    array = pa.array([0, largest, None] if pa.types.is_integer(kind) else [0.0, float(largest), None], pa.float64())
    column = array.cast(kind)
    assert ids_of(write(tmp_path / "m.parquet", {"SAMPLE_ID": column, "URL": ["a"] * 3})) == [0, largest]


def test_a_dictionary_of_views_has_ids_and_text():
    column = pa.DictionaryArray.from_arrays(pa.array([1, None, 0]), pa.array(["7", "8"], pa.string_view()))
    assert parse_ids(column, "f").values.tolist() == [8, 0, 7]
    assert as_text(column, "f", "TEXT")[0].to_pylist() == ["8", None, "7"]
    assert as_sizes(column, "f", "WIDTH").to_pylist() == [8, None, 7]


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 2**53 - 1)), max_size=30), st.sampled_from(["int", "float", "text"])
)
def test_ids_survive_every_form(ids, form):
    forms = {
        "int": lambda: pa.array(ids, pa.int64()),
        "float": lambda: pa.array([None if one is None else float(one) for one in ids], pa.float64()),
        "text": lambda: pa.array([None if one is None else f"{one}.0" for one in ids], pa.string()),
    }
    values, valid = parse_ids(forms[form](), "file")
    assert [int(value) if ok else None for value, ok in zip(values, valid, strict=True)] == ids


def test_rows_under_the_indexs_names_and_types(tmp_path):
    path = write(
        tmp_path / "m.parquet",
        {
            "similarity": pa.array([0.25, math.nan], pa.float32()),
            "Sample_Id": [7.0, 8.0],
            "url": pa.array(["u1", "u2"], pa.large_string()),
            "caption": pa.array(["Ä", None]).dictionary_encode(),
            "HEIGHT": [10.0, math.nan],
            "width": pa.array([20, None], pa.int64()),
            "NSFW": pa.array([b"UNLIKELY", None]),
            "__index_level_0__": [5, 6],
        },
    )
    (batch,) = open_metadata(path).batches()
    ids, rows = batch
    assert ids.tolist() == [7, 8]
    assert rows.schema == ROW_SCHEMA
    assert rows.to_pydict() == {
        "url": ["u1", "u2"],
        "caption": ["Ä", None],
        "width": [20, None],
        "height": [10, None],
        "license": [None, None],
        "nsfw": ["UNLIKELY", None],
        "similarity": [0.25, None],
    }


def test_wanted_rows_only_and_null_ids_never(tmp_path):
    path = write(tmp_path / "m.parquet", {"SAMPLE_ID": [1, None, 3, 4], "URL": list("abcd")})
    metadata = open_metadata(path)
    assert metadata.num_rows == 4
    found = [(ids.tolist(), rows["url"].to_pylist()) for ids, rows in metadata.batches(lambda ids: ids != 3)]
    assert found == [([1, 4], ["a", "d"])]


def test_sizes_that_no_picture_has_are_unknown():
    given_sizes = pa.array([1.0, 0.0, -5.0, 640.5, 2.0**31, math.inf, None, 2.0**31 - 1])
    assert as_sizes(given_sizes, "f", "WIDTH").to_pylist() == [1, None, None, None, None, None, None, 2**31 - 1]
    assert as_sizes(pa.nulls(2), "f", "WIDTH").to_pylist() == [None, None]
    decimals = pa.array([Decimal("640.00"), Decimal("640.50"), None], pa.decimal128(9, 2))
    assert as_sizes(decimals, "f", "WIDTH").to_pylist() == [640, None, None]


NUMBERS = ["640", " 640.0 ", "6.4e2", "+640"]
NONE_AT_ALL = [
    "",
    " ",
    "None",
    "null",
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "abc",
    "640px",
    "6,40",
    "1e999",
    "0x10",
    ".",
    None,
]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), "dictionary"])
def test_numbers_as_text(kind):
    texts = pa.array(NUMBERS + NONE_AT_ALL)
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    assert as_sizes(texts, "f", "WIDTH").to_pylist() == [640] * 4 + [None] * len(NONE_AT_ALL)
    assert as_floats(texts, "f", "similarity").to_pylist() == [640.0] * 4 + [None] * len(NONE_AT_ALL)


def test_similarities_are_exact_and_finite():
    assert as_floats(pa.array([0.25, math.nan, math.inf, None]), "f", "similarity").to_pylist() == [
        0.25,
        None,
        None,
        None,
    ]
    hundredths = [Decimal(n) / 100 for n in range(100)]
    assert as_floats(pa.array(hundredths), "f", "similarity").to_pylist() == [n / 100 for n in range(100)]
    assert as_floats(pa.array(map(str, hundredths)), "f", "similarity").to_pylist() == [n / 100 for n in range(100)]


@pytest.mark.parametrize("convert", [as_sizes, as_floats])
@pytest.mark.parametrize("column", [pa.array([[1]]), pa.array([True]), pa.array([0], pa.timestamp("s"))])
def test_numbers_that_are_none(convert, column):
    with pytest.raises(BadFile, match="column WIDTH of type"):
        convert(column, "f", "WIDTH")


def test_texts_that_are_none():
    with pytest.raises(BadFile, match="column TEXT of type list"):
        as_text(pa.array([["a"]]), "f", "TEXT")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()], ids=str)
def test_bad_utf8_is_mended_and_counted(tmp_path, caplog, kind):
    raw = pa.array([b"good \xc3\xa4", b"bad \xff\xfe", None, b"\xed\xa0\x80"])
    broken = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:], raw.buffers()[0]).cast(kind)
    path = write(tmp_path / "m.parquet", {"SAMPLE_ID": [1, 2, 3, 4], "URL": list("abcd"), "TEXT": broken})
    ((_, rows),) = open_metadata(path).batches()
    rows.validate(full=True)
    assert rows["caption"].to_pylist() == ["good ä", "bad \ufffd\ufffd", None, "\ufffd\ufffd\ufffd"]
    assert "2 texts were not UTF-8" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_what_is_no_parquet_is_named(tmp_path, damage):
    path = write(tmp_path / "m.parquet", {"SAMPLE_ID": range(100), "URL": ["a"] * 100})
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>not found</html>", "cut": whole[:-30]}[damage])
    with pytest.raises(BadFile, match="expected a whole Parquet file") as caught:
        open_metadata(path)
    assert str(path) in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DiskError, match="cannot be read") as caught:
        open_metadata(tmp_path / "m.parquet")
    assert str(tmp_path / "m.parquet") in str(caught.value)


def test_damaged_pages_are_named(tmp_path):
    rows = 20_000
    path = write(tmp_path / "m.parquet", {"SAMPLE_ID": np.random.default_rng(0).permutation(rows), "URL": ["a"] * rows})
    raw = bytearray(path.read_bytes())
    raw[100:60_000] = bytes(59_900)
    path.write_bytes(raw)
    with pytest.raises(BadFile, match=r"m\.parquet"):
        list(open_metadata(path).batches())


def test_batches_are_bounded(tmp_path):
    rows = 150_000
    path = write(tmp_path / "m.parquet", {"SAMPLE_ID": range(rows), "URL": ["a"] * rows}, row_group_size=rows)
    sizes = [len(ids) for ids, _ in open_metadata(path).batches()]
    assert sum(sizes) == rows
    assert max(sizes) <= 1 << 16
