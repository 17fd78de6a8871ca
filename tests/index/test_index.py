"""The index, one table: its row groups, and reading it by row range."""

import json
import multiprocessing
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile, NotPrepared, OptionError, SourceNotFound
from laion_face_builder.files import FINGERPRINT_KEY
from laion_face_builder.index.faces import FaceTable
from laion_face_builder.index.ids import PartIds
from laion_face_builder.index.join import join
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart, in_batches
from laion_face_builder.index.staged import rows_of_part
from laion_face_builder.index.writer import index_fingerprint, write_index
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.sandbox import FolderHost, Sandbox
from laion_face_builder.schema import DETECTIONS, INDEX

FINGERPRINT = index_fingerprint(3, ids="sha256:i", faces="sha256:f", metadata="etag:m")


def face(score: float, box: list[float]) -> dict:
    return {"box": box, "landmarks": [[float(k), 0.5] for k in range(5)], "score": float(np.float32(score))}


COLUMNS = ("SAMPLE_ID", "URL", "TEXT", "WIDTH", "HEIGHT", "LICENSE", "NSFW", "similarity")


def write_metadata(path: Path, table_rows) -> Path:
    keys = ("id", "url", "caption", "width", "height", "license", "nsfw", "similarity")
    kinds = (pa.int64(), *[pa.string()] * 2, *[pa.int64()] * 2, *[pa.string()] * 2, pa.float64())
    arrays = [pa.array([row[key] for row in table_rows], kind) for key, kind in zip(keys, kinds, strict=True)]
    table = pa.table(dict(zip(COLUMNS, arrays, strict=True))).append_column("__index_level_0__", arrays[0])
    pq.write_table(table, path, row_group_size=7)
    return path


def write_part(target: Path, face_ids, detections, metadata: Path) -> None:
    table = [{"sample_id": key, "faces": detections[key]} for key in sorted(detections)]
    faces = target.parent / "faces.parquet"
    pq.write_table(pa.Table.from_pylist(table, schema=DETECTIONS), faces, row_group_size=5)
    found = rows_of_part(metadata, PartIds.of({3: np.array(sorted(face_ids), np.int64)}), threads=1)
    write_index(target, join(3, len(face_ids), found, FaceTable.read(faces)), FINGERPRINT)


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path, 300)


def make_index(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    table_rows = [
        {"id": 7 * k % 1009, "url": f"http://x/{k}", "caption": "c", "width": 5, "height": 6}
        | {"license": "?", "nsfw": None, "similarity": 0.5}
        for k in range(count + 10)
    ]
    face_ids = {row["id"] for row in table_rows[:count]}
    metadata = write_metadata(folder / "metadata.parquet", table_rows)
    detections = {key: [face(0.75, [0.0, 0.0, 10.0, 5.0])] for key in list(face_ids)[::2]}
    write_part(folder / "part-00003.parquet", face_ids, detections, metadata)
    return folder / "part-00003.parquet"


@pytest.mark.parametrize("count", [0, 1, 127, 128, 300])
def test_row_groups_are_those_of_the_contract(tmp_path, count):
    with IndexPart.open(make_index(tmp_path, count)) as part:
        assert part.row_groups == row_group_bounds(count)
        assert len(part.row_groups) == min(count, 128)


def test_the_file_is_as_the_contract_says(index, tmp_path):
    with pq.ParquetFile(index) as file:
        assert file.schema_arrow.remove_metadata() == INDEX
        column = file.metadata.row_group(0).column(0)
        assert (column.compression, column.has_column_index, column.has_offset_index) == ("ZSTD", True, True)
        assert json.loads(file.metadata.metadata[FINGERPRINT_KEY]) == FINGERPRINT
    assert index.read_bytes() == make_index(tmp_path / "again", 300).read_bytes()


# Reading


@settings(max_examples=15)
@given(st.data())
def test_any_row_range_is_the_slice(tmp_path_factory, data):
    index = tmp_path_factory.getbasetemp() / "any-range"
    path = index / "part-00003.parquet" if index.exists() else make_index(index, 300)
    start = data.draw(st.integers(0, 300))
    stop = data.draw(st.integers(start, 300))
    columns = data.draw(st.one_of(st.none(), st.lists(st.sampled_from(INDEX.names), unique=True, min_size=1)))
    with IndexPart.open(path) as part:
        found = part.read(start, stop, columns)
    assert found.equals(pq.read_table(path).replace_schema_metadata(None).select(columns or INDEX.names)[start:stop])


def test_rows_that_are_not_there(index):
    with IndexPart.open(index) as part:
        for start, stop in ((-1, 5), (5, 4), (0, 301)):
            with pytest.raises(IndexError):
                part.read(start, stop)


def test_nothing_is_opened_before_it_is_read(tmp_path):
    part = IndexPart.open(tmp_path / "absent.parquet")
    with pytest.raises(NotPrepared, match=r"absent.parquet: there is no index there"):
        _ = part.num_rows


def test_a_file_that_is_no_index(tmp_path):
    pq.write_table(pa.table({"sample_id": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(BadFile, match="no column part, url"):
        _ = IndexPart.open(tmp_path / "other.parquet").num_rows
    with pytest.raises(BadFile, match=r"text.parquet"):
        _ = IndexPart.open(tmp_path / "text.parquet").num_rows


def test_a_foreign_file_has_a_fingerprint_of_its_own(index, tmp_path):
    table = pq.read_table(index).replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.slice(1), tmp_path / "b.parquet")
    one, same, other = (IndexPart.open(tmp_path / name).fingerprint for name in ("a.parquet", "a.parquet", "b.parquet"))
    assert one == same != other
    assert IndexPart.open(index).fingerprint == FINGERPRINT


def _read_in_child(part, queue):
    queue.put(part.read(290, 300, ["url"])["url"].to_pylist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("remote", [False, True])
def test_an_open_part_travels_to_other_processes(index, method, remote):
    with FolderHost(index.parent) as host:
        part = IndexPart.open(f"{host.url()}/{index.name}" if remote else index)
        expected = part.read(290, 300, ["url"])["url"].to_pylist()
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=_read_in_child, args=(part, queue), daemon=True)
        child.start()
        assert queue.get(timeout=60) == expected
        child.join()
        assert part.read(290, 300, ["url"])["url"].to_pylist() == expected
        part.close()
    assert pickle.loads(pickle.dumps(part)).address == part.address


def test_a_remote_part_costs_few_requests_a_row_group(index):
    with FolderHost(index.parent) as host, IndexPart.open(f"{host.url()}/{index.name}") as part:
        expected = pq.read_table(index)
        _ = part.num_rows
        before = len(host.log)
        group = part.row_groups[40]
        assert part.read(*group).to_pylist() == expected.slice(group[0], group[1] - group[0]).to_pylist()
        assert len(host.log) - before <= 3


def test_a_remote_part_survives_a_busy_host(index):
    with FolderHost(index.parent) as host, IndexPart.open(f"{host.url()}/{index.name}") as part:
        _ = part.num_rows
        host.plant(index.name, status=503)
        assert part.read(10, 11, ["url"])["url"].to_pylist() == pq.read_table(index)["url"][10:11].to_pylist()


def test_an_absent_remote_part(index):
    with FolderHost(index.parent) as host, pytest.raises(SourceNotFound, match="no such file"):
        _ = IndexPart.open(f"{host.url()}/absent.parquet").num_rows


# A published index


def test_a_published_index_is_found_in_a_folder_and_on_the_hub(sandbox: Sandbox, index):
    files = {"data/part-00003.parquet": index, "README.md": b"#"}
    sandbox.hub.add_repo("tests/published", files)
    expected = pq.read_table(index)["url"].to_pylist()
    for place in ("tests/published", "tests/published@main", str(index.parent), "hf://datasets/tests/published"):
        with IndexPart.open(find_published(place, 3)) as part:
            assert part.read(0, 300, ["url"])["url"].to_pylist() == expected
    with pytest.raises(SourceNotFound, match=r"part-00003.parquet.*expected one part-00007.parquet"):
        find_published("tests/published", 7)
    with pytest.raises(OptionError, match="owner/name"):
        find_published("nowhere", 7)


def test_a_published_index_in_memory(index):
    fsspec.filesystem("memory").pipe(f"/published/{index.name}", index.read_bytes())
    with IndexPart.open(find_published("memory://published", 3)) as part:
        assert part.num_rows == 300


def test_rows_in_batches_are_what_arrow_says(tmp_path):
    face = {"box": [1.5, 2.0, 3.25, 0.1], "landmarks": [[float(i), 0.7] for i in range(5)], "score": 0.9}
    rows = [
        dict.fromkeys(INDEX.names) | {"sample_id": i, "url": f"http://h/{i}", "faces": [face] * (i % 3)}
        for i in range(700)
    ]
    table = pa.Table.from_pylist(rows, schema=INDEX)
    for part in (
        table,
        table.slice(5, 300),
        table.filter(pa.array([i % 2 == 0 for i in range(700)])),
        table.slice(0, 0),
    ):
        batches = list(in_batches(part))
        assert [url for batch in batches for url in batch.urls] == part["url"].to_pylist()
        assert [batch[place] for batch in batches for place in range(len(batch))] == part.to_pylist()


def test_a_data_dir_is_a_published_index_too(tmp_path):
    for folder in ("ids", "faces"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part-00003.parquet").touch()
    index = make_index(tmp_path / "index", 5)
    assert find_published(str(tmp_path), 3).files == (str(index),)
