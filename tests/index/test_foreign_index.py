"""An index may be written by any program: the same rows come from every program, every layout, every Arrow type."""

import contextlib
import itertools
import math
import pickle
import random
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import laion_face
from laion_face_builder.errors import BadFile, SourceError, SourceNotFound
from laion_face_builder.files import FINGERPRINT_KEY, read_fingerprint, stamped
from laion_face_builder.index import index_file
from laion_face_builder.index.copying import copy_index
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.index_file import Doubtful, faces_of, spans_of
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.sandbox import TOKEN, WRITER, FolderHost
from laion_face_builder.schema import FACES, INDEX

PARTS = (0, 2)
ROWS = {0: 275, 2: 190}
_names = itertools.count(1)


def plain_rows(part: int) -> list[dict]:
    """Return the rows of a part as they are meant; every third has no face, some have nulls."""
    draw = random.Random(part)
    return [plain_row(part, number, draw) for number in range(ROWS[part])]


def single(value: float) -> float:
    return float(np.float32(value))


def plain_row(part: int, number: int, draw: random.Random) -> dict:
    faces = [plain_face(draw) for _ in range(draw.randint(1, 3) if number % 3 else 0)]
    short = [min(single(b[2] - b[0]), single(b[3] - b[1])) for b in (face["box"] for face in faces)]
    return {
        "sample_id": part * 10_000 + number * 7 % 1009,
        "part": part,
        "url": f"http://h{number % 5}.example/{part}/{number}.jpg",
        "caption": None if number % 11 == 0 else f"Größe {number}",
        "width": None if number % 13 == 0 else 600 + number,
        "height": 500,
        "license": "?",
        "nsfw": [None, "UNLIKELY", "NSFW"][number % 3],
        "similarity": 0.3 + number / 1000,
        "faces": faces,
        "n_faces": len(faces),
        "max_face_score": max((face["score"] for face in faces), default=None),
        "max_face_size": max(short, default=None),
    }


def plain_face(draw: random.Random) -> dict:
    x, y, side = (single(draw.uniform(0, 300)) for _ in range(3))
    return {
        "box": [x, y, single(x + side), single(y + side * 1.5)],
        "landmarks": [[single(draw.uniform(0, 600)), single(draw.uniform(0, 500))] for _ in range(5)],
        "score": single(draw.uniform(0.5, 1)),
    }


TRUTH = {part: plain_rows(part) for part in PARTS}


def table_of(*parts: int) -> pa.Table:
    return pa.Table.from_pylist([row for part in parts for row in TRUTH[part]], schema=INDEX)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Write the index as laion-face does."""
    folder, raw = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("raw") / "all.parquet"
    pq.write_table(table_of(*PARTS), raw)
    for part in PARTS:
        copy_index(folder / f"part-{part:05d}.parquet", str(raw), part)
    return folder


def sources(folder: Path) -> list[str]:
    return [str(folder / f"part-{part:05d}.parquet") for part in PARTS]


# Who wrote it, and into which files


def by_polars(files, target):
    pl.read_parquet(files).write_parquet(target, row_group_size=100)


def by_polars_streaming(files, target):
    pl.scan_parquet(files).sink_parquet(target)


def by_polars_with_null_faces(files, target):
    faces = pl.when(pl.col("faces").list.len() > 0).then("faces")
    pl.read_parquet(files).with_columns(faces).write_parquet(target)


def by_polars_with_categories(files, target):
    small = [pl.col("nsfw", "license").cast(pl.Categorical), pl.col("part").cast(pl.UInt8)]
    pl.read_parquet(files).with_columns(small).write_parquet(target)


def by_duckdb(files, target):
    duckdb.sql(f"COPY (SELECT * FROM read_parquet({files})) TO '{target}' (FORMAT parquet)")


def by_duckdb_sorted_columns(files, target):
    """Write by DuckDB in another order, with other widths, no flat columns, one more column."""
    columns = ", ".join(sorted(set(INDEX.names) - {"width", "n_faces", "max_face_score", "max_face_size"}))
    query = f"SELECT 1 AS zz, width::BIGINT AS width, {columns} FROM read_parquet({files})"
    duckdb.sql(f"COPY ({query}) TO '{target}' (FORMAT parquet, ROW_GROUP_SIZE 2048)")


def by_pandas(files, target):
    pd.concat([pd.read_parquet(file) for file in files]).to_parquet(target)


def by_pandas_with_null_faces(files, target):
    frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    frame["faces"] = frame["faces"].map(lambda faces: faces if len(faces) else None)
    frame.to_parquet(target, index=False)


def by_pyarrow(files, target):
    """Write by pyarrow, which hands on the fingerprint of the first file."""
    first, *others = [pq.read_table(file) for file in files]
    pq.write_table(pa.concat_tables([first, *others]), target, row_group_size=50)


def by_pyarrow_like_us(files, target):
    first, *others = [pq.read_table(file) for file in files]
    pq.write_table(pa.concat_tables([first, *others]), target, compression="zstd")


def by_datasets(files, target):
    datasets.Dataset.from_parquet(files, cache_dir=str(target.parent / "cache")).to_parquet(str(target), batch_size=60)


WRITERS = [value for name, value in sorted(globals().items()) if name.startswith("by_")]


def one_file(files, folder, write):
    write(files, folder / "train-00000-of-00001.parquet")


def a_file_a_part(files, folder, write):
    for number, file in enumerate(files):
        write([file], folder / f"train-{number:05d}-of-{len(files):05d}.parquet")


def cut_anywhere(files, folder, write):
    """Write three files, of which the middle one has rows of both parts, named so that text sorts them wrong."""
    rows = pa.concat_tables([pq.read_table(file).replace_schema_metadata(None) for file in files])
    with contextlib.ExitStack() as stack:
        for name, start, stop in (("data_2", 0, 100), ("data_9", 100, 300), ("data_10", 300, rows.num_rows)):
            cut = folder / f"{name}.cut"
            stack.callback(cut.unlink)
            pq.write_table(rows.slice(start, stop - start), cut)
            write([str(cut)], folder / f"{name}.parquet")


def shuffled_together(files, folder, write):
    """Write rows of the parts in turns: in order within each."""
    rows = pa.concat_tables([pq.read_table(file).replace_schema_metadata(None) for file in files])
    order = np.argsort(np.concatenate([np.arange(ROWS[part]) for part in PARTS]), kind="stable")
    mixed = folder / "mixed.cut"
    pq.write_table(rows.take(pa.array(order)), mixed)
    write([str(mixed)], folder / "everything.parquet")
    mixed.unlink()


LAYOUTS = [one_file, a_file_a_part, cut_anywhere, shuffled_together]


def all_rows(place, part, token=None):
    with IndexPart.open(find_published(str(place), part, token), token) as index:
        return index.read(0, index.num_rows).to_pylist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("write", WRITERS)
def test_the_same_rows_whoever_wrote_them(ours, tmp_path, write, layout):
    folder = tmp_path / "index"
    folder.mkdir()
    layout(sources(ours), folder, write)
    for part in PARTS:
        assert all_rows(folder, part) == TRUTH[part]
        with IndexPart.open(find_published(str(folder), part)) as index:
            assert index.read(0, index.num_rows).schema.equals(INDEX)
            groups = index.row_groups
            assert [stop for _, stop in groups] == [*[start for start, _ in groups][1:], ROWS[part]]
            assert len(index.row_group_bytes) == len(groups)
            for start, stop in ((0, 1), (98, 103), (150, 190), (5, 5)):
                assert index.read(start, stop).to_pylist() == TRUTH[part][start:stop]


FILTERS: list[dict[str, Any]] = [
    {"min_faces": 2},
    {"max_faces": 1},
    {"min_face_size": 150.0},
    {"min_score": 0.9, "min_faces": 1},
    {"min_face_area": 0.1},
    {"nsfw": ["UNLIKELY"], "min_width": 620},
]
SHARED = ("sample_id", "url", "caption", "part", "nsfw", "similarity", "license", "faces")


def streamed(place, **options):
    ds = laion_face.load_dataset(
        "20M", index=str(place), images="none", streaming=True, split="train", shards_per_part=4, **options
    )
    return [{name: example[name] for name in SHARED} for example in ds]


@pytest.mark.parametrize(
    ("layout", "write"),
    [
        (one_file, by_pandas),
        (a_file_a_part, by_datasets),
        (cut_anywhere, by_duckdb_sorted_columns),
        (shuffled_together, by_polars_with_null_faces),
    ],
)
def test_load_dataset_gives_the_same_examples(ours, tmp_path, layout, write):
    folder = tmp_path / "index"
    folder.mkdir()
    layout(sources(ours), folder, write)
    examples = streamed(folder, parts="0,2")
    assert examples == [{name: row[name] for name in SHARED} for part in PARTS for row in TRUTH[part]]
    for filters in FILTERS:
        kept = streamed(folder, parts="0,2", **filters)
        assert kept == streamed(ours, parts="0,2", **filters)
        assert 0 < len(kept) < len(examples)


@pytest.mark.parametrize("config", ["default", "20M"])
def test_what_push_to_hub_wrote(ours, hub, tmp_path, config):
    repo = f"{WRITER}/pushed-{next(_names)}"
    rows = datasets.Dataset.from_parquet(sources(ours), cache_dir=str(tmp_path))
    rows.push_to_hub(repo, config_name=config, token=TOKEN, num_shards=3)
    for part in PARTS:
        assert all_rows(repo, part, TOKEN) == TRUTH[part]
    examples = streamed(repo, parts="0,2", token=TOKEN, min_score=0.8)
    assert examples == streamed(ours, parts="0,2", min_score=0.8)


def test_several_processes_read_it(ours, tmp_path):
    from torch.utils.data import DataLoader

    cut_anywhere(sources(ours), tmp_path, by_polars)
    ds = laion_face.load_dataset("20M", index=str(tmp_path), parts="0,2", images="none", streaming=True, split="train")
    found = [example["sample_id"] for batch in DataLoader(ds, num_workers=2, collate_fn=list) for example in batch]
    assert sorted(found) == sorted(row["sample_id"] for part in PARTS for row in TRUTH[part])


# Types


def list_kinds():
    yield pa.list_
    yield pa.large_list
    with contextlib.suppress(pa.ArrowNotImplementedError):  # Parquet has had them since pyarrow 22
        pq.write_table(pa.table({"a": pa.array([], pa.list_view(pa.int8()))}), pa.BufferOutputStream())
        yield pa.list_view


def faces_type(number, some, fixed):
    """Return a type of faces: lists by `some`, or of a `fixed` size; fields in another order, and one more."""

    def known(kind, size):
        return pa.list_(kind, size) if fixed else some(kind)

    face = [("score", number), ("landmarks", known(known(number, 2), 5)), ("box", known(number, 4)), ("x", pa.int8())]
    return some(pa.struct(face))


FACE_TYPES = [
    faces_type(number, some, fixed)
    for number in (pa.float32(), pa.float64())
    for some in list_kinds()
    for fixed in (False, True)
]


@pytest.mark.parametrize("kind", FACE_TYPES, ids=str)
@pytest.mark.parametrize("size", [7, 300])
def test_faces_of_any_lists(tmp_path, kind, size):
    faces = pa.array([row["faces"] or None for row in TRUTH[0]], kind)
    pq.write_table(table_of(0).set_column(9, "faces", faces), tmp_path / "any.parquet", row_group_size=size)
    assert all_rows(tmp_path, 0) == TRUTH[0]


def test_faces_of_a_slice_are_not_those_of_other_rows():
    # pyarrow's own cast of these lists, and then `filter`, gives row 0's landmarks for row 2's, without an error.
    rows = [[plain_face(random.Random(k))] for k in range(4)]
    column = pa.array(rows, faces_type(pa.float32(), pa.list_, False)).slice(2)
    assert faces_of(column).filter(pa.array([True, False])).to_pylist() == rows[2:3]


@settings(max_examples=60)
@given(st.data(), st.sampled_from(FACE_TYPES))
def test_faces_may_be_sliced_filtered_taken_and_joined(data, kind):
    # Plain lists say what is right: where pyarrow goes wrong it gives no error.
    none = data.draw(st.sampled_from([None, []]))
    rows = [row["faces"] or none for row in TRUTH[0][:40]]
    start = data.draw(st.integers(0, 40))
    stop = data.draw(st.integers(start, 40))
    chosen = data.draw(st.lists(st.booleans(), min_size=stop - start, max_size=stop - start))
    faces = faces_of(pa.array(rows, kind).slice(start, stop - start))
    expected = [row or [] for row in rows[start:stop]]
    assert faces.type == FACES
    assert faces.to_pylist() == expected
    cut = data.draw(st.integers(0, stop - start))
    places = pa.array([place for place, keep in enumerate(chosen[cut:]) if keep], pa.int64())
    kept = [row for row, keep in zip(expected[cut:], chosen[cut:], strict=True) if keep]
    for array in (faces, pa.concat_arrays([faces.slice(0, cut), faces.slice(cut)])):
        rest = array.slice(cut)
        assert rest.filter(pa.array(chosen[cut:], pa.bool_())).to_pylist() == kept
        assert rest.take(places).to_pylist() == kept
        assert rest.take(places).flatten().field("landmarks").to_pylist() == [
            f["landmarks"] for row in kept for f in row
        ]


def test_faces_of_which_there_are_none():
    for column in (pa.nulls(3), pa.array([[], [], None], pa.list_(pa.null()))):
        assert faces_of(column).to_pylist() == [[], [], []]
        assert faces_of(column).type == FACES


TEXTS = [pa.large_string(), pa.string_view(), pa.binary()]
WHOLE = [pa.int64(), pa.uint32(), pa.float64(), pa.decimal128(20, 0)]
OTHER_TYPES = {
    **dict.fromkeys(("url", "caption", "license", "nsfw"), TEXTS),
    **dict.fromkeys(("sample_id", "width", "height"), WHOLE),
    "part": [pa.int64(), pa.int8(), pa.uint16(), pa.float64(), pa.string()],
    "n_faces": [pa.int64()],
    "max_face_score": [pa.float64()],
}


@pytest.mark.parametrize("is_dictionary", [False, True])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in OTHER_TYPES.items() for kind in kinds])
def test_columns_of_any_type(tmp_path, name, kind, is_dictionary):
    table = table_of(*PARTS)
    column = table[name].combine_chunks().cast(kind)
    if is_dictionary and kind != pa.string_view():
        column = column.dictionary_encode()
    table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, tmp_path / "any.parquet", row_group_size=70)
    assert [all_rows(tmp_path, part) for part in PARTS] == [TRUTH[part] for part in PARTS]


def with_rows(table, name, values):
    """Return `table` with other values of a column in some rows."""
    rows = table.column(name).to_pylist()
    for row, value in values.items():
        rows[row] = value
    kind = FACES_AS_LISTS if name == "faces" else table[name].type
    return table.set_column(table.schema.get_field_index(name), name, pa.array(rows, kind))


FACES_AS_LISTS = faces_type(pa.float32(), pa.list_, False)


def test_flat_columns_that_contradict_the_faces_are_made_anew(tmp_path):
    table = table_of(0)
    table = with_rows(table, "n_faces", {1: 0, 2: None, 3: 7})
    table = with_rows(table, "max_face_score", {1: 0.1, 2: None, 3: 0.9})
    table = with_rows(table, "max_face_size", {1: 1e6, 2: None, 4: -1.0})
    pq.write_table(table, tmp_path / "any.parquet")
    assert all_rows(tmp_path, 0) == TRUTH[0]
    with IndexPart.open(tmp_path / "any.parquet") as index:
        found = index.read(1, 4, ["max_face_size", "n_faces"])
        assert found.column_names == ["max_face_size", "n_faces"]
        assert found.to_pylist() == [{name: row[name] for name in found.column_names} for row in TRUTH[0][1:4]]


GOOD = plain_face(random.Random(9))
BAD_FACES = {
    "a face that is null": None,
    "a face whose box is null": {**GOOD, "box": None},
    "a face whose landmarks is null": {**GOOD, "landmarks": [[1.0, 2.0]] * 4 + [None]},
    "a face whose score is null": {**GOOD, "score": None},
    "box of 3 where 4 are needed": {**GOOD, "box": [1.0, 2.0, 3.0]},
    "landmarks of 4 where 5 are needed": {**GOOD, "landmarks": [[1.0, 2.0]] * 4},
    "landmarks of 3 where 2 are needed": {**GOOD, "landmarks": [[1.0, 2.0]] * 4 + [[1.0, 2.0, 3.0]]},
    "score with nan": {**GOOD, "score": math.nan},
    "box with inf": {**GOOD, "box": [1.0, 2.0, 3.0, math.inf]},
}


@pytest.mark.parametrize("found", BAD_FACES)
def test_a_face_that_is_not_whole_is_refused_with_its_row(tmp_path, found):
    # The bad face is in row 150 of the file, which is row 50 of its row group.
    table = with_rows(table_of(0), "faces", {150: [GOOD, BAD_FACES[found]]})
    pq.write_table(table, tmp_path / "any.parquet", row_group_size=100)
    with IndexPart.open(tmp_path / "any.parquet") as index:
        assert index.read(0, 100).to_pylist() == TRUTH[0][:100]
        with pytest.raises(BadFile, match=rf"any.parquet: found {found} in row 150, expected an index part"):
            index.read(149, 152)


@pytest.mark.parametrize(("name", "kind"), [("sample_id", pa.int64()), ("part", pa.int16())])
def test_a_row_without_an_id_or_a_part_is_refused(tmp_path, name, kind):
    pq.write_table(with_rows(table_of(0), name, {150: None}), tmp_path / "any.parquet", row_group_size=100)
    with pytest.raises(BadFile, match=f"no {name} in row 150"):
        all_rows(tmp_path, 0)


def test_values_that_do_not_fit_are_refused(tmp_path):
    for name, column in (("width", [0.5] * 275), ("height", [1 << 40] * 275), ("faces", ["a"] * 275)):
        table = table_of(0)
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(column))
        pq.write_table(table, tmp_path / "any.parquet")
        with pytest.raises(BadFile, match=r"any.parquet: found (column (width|height)|string where lists)"):
            all_rows(tmp_path, 0)
    with pytest.raises(Doubtful, match="faces without landmarks, score"):
        faces_of(pa.array([[{"box": [1.0]}]]))


# Layouts


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 12), st.booleans(), st.data())
def test_a_part_is_the_rows_with_its_number(tmp_path_factory, numbers, size, has_statistics, data):
    # Any order of parts, any row groups, with statistics or without, over one file or two.
    folder = tmp_path_factory.mktemp("parts")
    table = pa.Table.from_pylist([{**TRUTH[0][k], "part": part} for k, part in enumerate(numbers)], schema=INDEX)
    cut = data.draw(st.integers(0, len(numbers)))
    for name, piece in (("a", table.slice(0, cut)), ("b", table.slice(cut))):
        pq.write_table(piece, folder / f"{name}.parquet", row_group_size=size, write_statistics=has_statistics)
    for part in range(4):
        expected = [{**TRUTH[0][k], "part": part} for k, one in enumerate(numbers) if one == part]
        if not expected:
            with pytest.raises(SourceNotFound):
                find_published(str(folder), part)
            continue
        start = data.draw(st.integers(0, len(expected)))
        stop = data.draw(st.integers(start, len(expected)))
        with IndexPart.open(find_published(str(folder), part)) as index:
            assert index.num_rows == len(expected)
            assert index.read(start, stop).to_pylist() == expected[start:stop]
            ends = [0, *(end for _, end in index.row_groups)]
            assert index.row_groups == list(itertools.pairwise(ends))
            assert ends[-1] == len(expected)
            assert all(end > begin for begin, end in index.row_groups)


def test_statistics_spare_reading_the_column():
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return np.array([1, 2] * 5, np.int16)

    known = [(0, 0), (1, 1), (1, 2), (3, 9), (1, 1)]
    bounds = [(10 * k, 10 * k + 10) for k in range(5)]
    assert spans_of(1, bounds, known, read).tolist() == [[10, 21], [22, 23], [24, 25], [26, 27], [28, 29], [40, 50]]
    assert asked == [(20, 30)]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Write 40,000 rows of part 0 in one row group, and one more of part 2 before them."""
    folder = tmp_path_factory.mktemp("large")
    rows = [{**TRUTH[0][k % 275], "sample_id": k} for k in range(40_000)]
    table = pa.Table.from_pylist([{**TRUTH[2][0], "part": 2}, *rows], schema=INDEX)
    pl.DataFrame(table).write_parquet(folder / "large.parquet", row_group_size=50_000)
    return folder, rows


def test_a_large_row_group_is_read_a_batch_at_a_time(large):
    folder, rows = large
    with IndexPart.open(find_published(str(folder), 0)) as index:
        assert len(index.row_groups) == 3
        assert max(stop - start for start, stop in index.row_groups) == index_file.ROWS_AT_ONCE
        for start, stop in [*row_group_bounds(40_000, 50), (39_990, 40_000), (16_380, 33_000), (5, 8), (0, 1)]:
            assert index.read(start, stop).to_pylist() == rows[start:stop]
        assert index.read(300, 303, ["n_faces"]).to_pylist() == [{"n_faces": row["n_faces"]} for row in rows[300:303]]


def test_reading_on_decodes_nothing_twice(large, monkeypatch):
    folder, rows = large
    decoded = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self, *args, **kwargs):
        for batch in iter_batches(self, *args, **kwargs):
            decoded.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    with IndexPart.open(find_published(str(folder), 0)) as index:
        assert index.num_rows == 40_000
        decoded.clear()
        ids = [i for bound in row_group_bounds(40_000) for i in index.read(*bound)["sample_id"].to_pylist()]
    assert ids == [row["sample_id"] for row in rows]
    assert sum(decoded) == 40_001


# Which files


def test_files_of_ours_are_known_by_their_name_and_carry_their_fingerprint(ours):
    for part in PARTS:
        found = find_published(str(ours), part)
        assert found.files == (str(ours / f"part-{part:05d}.parquet"),)
        with IndexPart.open(found) as index:
            assert index.fingerprint == read_fingerprint(Path(found.files[0]))
            assert index.row_groups == row_group_bounds(ROWS[part])


def test_a_part_without_rows_is_there(tmp_path):
    pq.write_table(INDEX.empty_table(), tmp_path / "part-00005.parquet")
    assert all_rows(tmp_path, 5) == []
    assert copy_index(tmp_path / "copy", str(tmp_path), 5) == 0


def test_a_number_in_a_name_is_no_part(tmp_path):
    # Spark, and whoever counts pieces, call them part-0000N.
    pq.write_table(table_of(2), tmp_path / "part-00000.parquet")
    pq.write_table(table_of(0), tmp_path / "part-00001-9f3c.c000.snappy.parquet")
    assert [all_rows(tmp_path, part) for part in PARTS] == [TRUTH[part] for part in PARTS]


def test_a_single_file_is_a_place_too(tmp_path):
    pq.write_table(table_of(*PARTS), tmp_path / "all.parquet")
    with FolderHost(tmp_path) as host:
        for place in (tmp_path / "all.parquet", f"{host.url()}/all.parquet"):
            assert all_rows(place, 2) == TRUTH[2]
            assert streamed(place, parts="2") == [{name: row[name] for name in SHARED} for row in TRUTH[2]]


def test_other_tables_beside_an_index_are_passed_over(tmp_path):
    pq.write_table(table_of(*PARTS), tmp_path / "all.parquet")
    pq.write_table(pa.table({"part": [0]}), tmp_path / "counts.parquet")
    pq.write_table(table_of(0).append_column("original_width", pa.nulls(275)), tmp_path / "pictures.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"")
    assert all_rows(tmp_path, 0) == TRUTH[0]


def test_what_is_no_index_is_named(tmp_path):
    pq.write_table(pa.table({"part": [0]}), tmp_path / "counts.parquet")
    with pytest.raises(SourceNotFound, match=r"counts.parquet \(no column sample_id, url, .*\); expected"):
        find_published(str(tmp_path / "counts.parquet"), 0)


def test_a_part_that_is_not_there(tmp_path):
    pq.write_table(table_of(*PARTS), tmp_path / "all.parquet", row_group_size=5)
    (empty := tmp_path / "empty").mkdir()
    message = r"all.parquet with parts 0, 2; expected one part-00007.parquet, or files whose column part has 7"
    with pytest.raises(SourceNotFound, match=message):
        find_published(str(tmp_path), 7)
    with pytest.raises(SourceNotFound, match="found no files; expected"):
        find_published(str(empty), 7)


def write_all(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        pq.write_table(table_of(*PARTS).slice(len(name) % 3), folder / name)
    return str(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["20M/train-00000-of-00001.parquet", "50M/train-00000-of-00001.parquet"], "2 sets of files have part 2"),
        (["data/train-00000-of-00001.parquet", "data/tests-00000-of-00001.parquet"], "2 sets of files"),
        (["data/train-00000-of-00001.parquet", "data/train-00000-of-00002.parquet"], "2 sets of files"),
        (["train-00001-of-00003.parquet"], r"train-00000-of-00003.parquet, train-00002-of-00003.parquet is missing"),
        (["a.parquet", "b.parquet"], "rows twice: of .*a.parquet, .*b.parquet some are the same"),
        (["a/part-00002.parquet", "b/part-00002.parquet"], "2 sets of files"),
    ],
)
def test_rows_are_never_doubled_or_lost_in_silence(tmp_path, names, message):
    with pytest.raises(SourceError, match=message):
        find_published(write_all(tmp_path, *names), 2)


# Fingerprints


def fingerprint_of(place, part=0):
    with IndexPart.open(find_published(str(place), part)) as index:
        return index.fingerprint


def test_a_fingerprint_is_the_contents(tmp_path):
    # The fingerprint differs even where the file's size and statistics stay the same.
    for name, nose in (("one", 100.0), ("same", 100.0), ("other", 101.0)):
        faces = {150: [{**GOOD, "landmarks": [[1.0, 2.0], [nose, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]}]}
        (tmp_path / name).mkdir()
        table = with_rows(table_of(*PARTS), "faces", faces)
        pq.write_table(table, tmp_path / name / "all.parquet", compression="none", use_dictionary=False)
    sizes = {(tmp_path / name / "all.parquet").stat().st_size for name in ("one", "same", "other")}
    assert len(sizes) == 1
    one, same, other = (fingerprint_of(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    assert one != fingerprint_of(tmp_path / "one", 2)
    assert one["kind"] == "foreign index"


def test_a_fingerprint_follows_the_file(tmp_path):
    for nose in (100.0, 101.0):
        faces = {150: [{**GOOD, "landmarks": [[nose, 3.0]] * 5}]}
        pq.write_table(with_rows(table_of(0), "faces", faces), tmp_path / "all.parquet", compression="none")
        with FolderHost(tmp_path) as host:
            found = fingerprint_of(f"{host.url()}/all.parquet"), fingerprint_of(tmp_path / "all.parquet")
        if nose == 100.0:
            before = found
    assert not set(map(str, before)) & set(map(str, found))


def test_a_part_that_was_closed_is_read_as_it_is_now(tmp_path):
    part = IndexPart.open(tmp_path / "all.parquet")
    for rows in (TRUTH[0][:9], TRUTH[2][:20]):
        pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), tmp_path / "all.parquet")
        with part as index:
            assert index.read(0, index.num_rows).to_pylist() == rows


def test_the_hub_and_a_local_copy_are_the_same(hub, tmp_path):
    pq.write_table(table_of(*PARTS), tmp_path / "all.parquet")
    repo = f"{WRITER}/copied-{next(_names)}"
    hub.add_repo(repo, {"data/all.parquet": tmp_path / "all.parquet"})
    assert fingerprint_of(repo) == fingerprint_of(tmp_path)


def test_a_stamp_that_was_handed_on_is_not_believed(ours, tmp_path):
    first = read_fingerprint(ours / "part-00000.parquet")
    by_pyarrow(sources(ours), tmp_path / "all.parquet")
    assert pq.read_schema(tmp_path / "all.parquet").metadata[FINGERPRINT_KEY]
    assert fingerprint_of(tmp_path)["kind"] == "foreign index"
    with IndexPart.open(tmp_path / "all.parquet") as index:
        assert index.fingerprint != first
        assert index.num_rows == sum(ROWS.values())


def test_a_part_of_several_files_travels(ours, tmp_path):
    cut_anywhere(sources(ours), tmp_path, by_duckdb)
    with IndexPart.open(find_published(str(tmp_path), 2)) as index:
        expected = index.read(20, 150).to_pylist()
        with pickle.loads(pickle.dumps(index)) as copy:
            assert copy.read(20, 150).to_pylist() == expected == TRUTH[2][20:150]
            assert (copy.address, copy.fingerprint) == (index.address, index.fingerprint)
        assert repr(index).endswith("and 1 more')")


# Copying


def test_a_copy_of_ours_is_the_same_file(ours, tmp_path, hub):
    repo = f"{WRITER}/ours-{next(_names)}"
    hub.add_repo(repo, {f"data/{file.name}": file for file in ours.iterdir()})
    for place in (str(ours), repo):
        for part in PARTS:
            assert copy_index(tmp_path / "copy.parquet", place, part) == ROWS[part]
            assert (tmp_path / "copy.parquet").read_bytes() == (ours / f"part-{part:05d}.parquet").read_bytes()


@pytest.mark.parametrize("write", [by_polars_with_null_faces, by_duckdb_sorted_columns, by_pandas])
def test_a_copy_of_a_foreign_index_is_one_of_ours(ours, tmp_path, write):
    cut_anywhere(sources(ours), tmp_path, write)
    for part in PARTS:
        target = tmp_path / "index" / f"part-{part:05d}.parquet"
        assert copy_index(target, str(tmp_path / "."), part) == ROWS[part]
        fingerprint = read_fingerprint(target)
        assert (fingerprint["kind"], fingerprint["part"]) == ("index", part)
        with IndexPart.open(target) as index:
            assert index.fingerprint == fingerprint
            assert index.row_groups == row_group_bounds(ROWS[part])
            assert index.read(0, ROWS[part]).to_pylist() == TRUTH[part]
        target.rename(tmp_path / f"{part}.ours")
        (tmp_path / "index").rmdir()


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    pq.write_table(with_rows(table_of(0), "faces", {250: [None]}), tmp_path / "any.parquet")
    with pytest.raises(BadFile, match="a face that is null in row 250"):
        copy_index(tmp_path / "index" / "part-00000.parquet", str(tmp_path / "any.parquet"), 0)
    assert list((tmp_path / "index").iterdir()) == []


def test_null_faces_in_a_file_with_our_stamp(tmp_path):
    table = table_of(0).replace_schema_metadata(stamped(INDEX, {"kind": "index", "part": 0}).metadata)
    faces = pa.array([row["faces"] or None for row in TRUTH[0]], FACES)
    pq.write_table(table.set_column(9, "faces", faces), tmp_path / "part-00000.parquet", compression="zstd")
    assert all_rows(tmp_path, 0) == TRUTH[0]
    with IndexPart.open(tmp_path / "part-00000.parquet") as index:
        assert Filters(min_faces=1).mask(index.read(0, 275)).sum() == sum(bool(row["faces"]) for row in TRUTH[0])
