"""Parquet files by strangers, in the place of an index or of metadata: one error that names it, or a counted row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder import cli
from laion_face_builder.errors import BadFile, LaionFaceError, PictureError
from laion_face_builder.files import FINGERPRINT_KEY, canonical_json, make_fingerprint
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import FolderHost
from laion_face_builder.schema import INDEX

Write = Callable[[Path], None]

ROWS = 40
STAMP = canonical_json(make_fingerprint("index", part=0, ids="a", faces="b", metadata="c", join=2)).encode()
FACE = {"box": [1.0, 2.0, 31.0, 42.0], "landmarks": [[1.0, 2.0]] * 5, "score": 0.5}


def row(number: int) -> dict[str, Any]:
    """Make one row of an index with a face."""
    return {
        **{"sample_id": number, "part": 0, "url": f"http://a.example/{number}.jpg", "caption": f"Größe {number}"},
        **{"width": 640, "height": 480, "license": "?", "nsfw": "UNLIKELY", "similarity": 0.5, "faces": [FACE]},
        **{"n_faces": 1, "max_face_score": 0.5, "max_face_size": 30.0},
    }


TABLE = pa.Table.from_pylist([row(number) for number in range(ROWS)], schema=INDEX)


def with_column(name: str, values: Any, table: pa.Table = TABLE) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def with_faces(changed: list[Any]) -> pa.Table:
    """Put other faces into the first row."""
    return with_column("faces", pa.array([changed, *[[FACE]] * (ROWS - 1)], INDEX.field("faces").type))


def texts(name: str, first: bytes) -> pa.Table:
    """Put other bytes into the first row's text."""
    raw = TABLE[name].combine_chunks().cast(pa.binary()).to_pylist()
    held = pa.array([first, *raw[1:]], pa.binary())
    return with_column(name, pa.Array.from_buffers(pa.string(), ROWS, held.buffers()))


def stamped_with(stamp: bytes, table: pa.Table = TABLE) -> Write:
    """Write the table as this project would, with this for a fingerprint."""
    made = table.replace_schema_metadata({FINGERPRINT_KEY: stamp})
    return lambda path: pq.write_table(made, path, compression="zstd")


def plain(table: pa.Table) -> Write:
    return lambda path: pq.write_table(table, path)


def not_utf8_name(path: Path) -> None:
    """Write a column whose name is no UTF-8, which no library would write."""
    pq.write_table(TABLE.append_column("QQQQ", pa.nulls(ROWS, pa.int8())), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))


def many_columns(path: Path) -> None:
    columns = {f"c{number}": pa.nulls(ROWS, pa.int8()) for number in range(20_000)}
    pq.write_table(pa.table({**dict(zip(TABLE.column_names, TABLE.columns, strict=True)), **columns}), path)


def doubled(path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([*TABLE.columns, TABLE["caption"]], [*TABLE.column_names, "url"]), path)


def bytes_of(content: bytes) -> Write:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def cut(path: Path) -> None:
    pq.write_table(TABLE, path)
    path.write_bytes(path.read_bytes()[:-100])


RAW_URLS = TABLE["url"].cast(pa.binary()).to_pylist()
BOXLESS = [FACE, {**FACE, "box": None}]
#: What is refused, and what the error says.
REFUSED: dict[str, tuple[Write, str]] = {
    "fingerprint: no JSON": (stamped_with(b"{no"), "a fingerprint that is no JSON"),
    "fingerprint: a list": (stamped_with(b'[["kind", "index"]]'), "a fingerprint that is a list"),
    "fingerprint: not UTF-8": (stamped_with(b"\xff\xfe\xfd"), "a fingerprint that is no JSON"),
    "fingerprint: deep": (stamped_with(b"[" * 200_000), "a fingerprint that is no JSON"),
    "a column twice": (doubled, "2 columns url"),
    "a column's name that is not UTF-8": (not_utf8_name, "decode byte"),
    "faces that are text": (plain(with_column("faces", pa.array(["a"] * ROWS))), "where lists are needed"),
    "faces without boxes": (
        plain(with_column("faces", pa.array([[{"score": 0.5}]] * ROWS))),
        "faces without box, landmarks",
    ),
    "no ids": (plain(TABLE.drop_columns(["sample_id"])), "no column sample_id"),
    "a folder": (lambda path: path.mkdir(), "part-00000.parquet"),
    "nothing in it": (bytes_of(b""), "part-00000.parquet"),
    "a web page": (bytes_of(b"<html>" * 100), "part-00000.parquet"),
    "cut": (cut, "part-00000.parquet"),
}
#: What is read but for so many rows.
READ: dict[str, tuple[Write, int]] = {
    "null faces": (plain(with_faces(None)), 0),
    "null faces, as if ours": (stamped_with(STAMP, with_faces(None)), 0),
    "a null face": (plain(with_faces([FACE, None])), 1),
    "a null face, as if ours": (stamped_with(STAMP, with_faces([FACE, None])), 1),
    "a null box": (plain(with_faces(BOXLESS)), 1),
    "a null box, as if ours": (stamped_with(STAMP, with_faces(BOXLESS)), 1),
    "a null number, as if ours": (stamped_with(STAMP, with_faces([{**FACE, "box": [1.0, None, 3.0, 4.0]}])), 1),
    "a null score, as if ours": (stamped_with(STAMP, with_faces([{**FACE, "score": None}])), 1),
    "a box of two": (plain(with_column("faces", pa.array([[{**FACE, "box": [1.0]}], *[[FACE]] * (ROWS - 1)]))), 1),
    "an address that is not UTF-8": (plain(texts("url", b"http://\xff\xfe/")), 1),
    "an address that is not UTF-8, as if ours": (stamped_with(STAMP, texts("url", b"http://\xff\xfe/")), 1),
    "a caption that is not UTF-8": (plain(texts("caption", b"Gr\xf6\xdfe")), 1),
    "bytes that are not UTF-8": (
        plain(with_column("url", pa.array([b"\xff", *TABLE["url"].cast(pa.binary()).to_pylist()[1:]]))),
        1,
    ),
    "a caption of 100 MB": (plain(texts("caption", b"x" * 100_000_000)), 1),
    "an address of 100 MB, as if ours": (stamped_with(STAMP, texts("url", b"x" * 100_000_000)), 1),
    "a width that is none": (plain(with_column("width", pa.array([1 << 40, *[640] * (ROWS - 1)]))), 1),
    "no sample id": (plain(with_column("sample_id", pa.array([None, *range(1, ROWS)], pa.int64()))), 1),
    "every row": (plain(with_column("width", pa.array([1 << 40] * ROWS))), ROWS),
    "20,000 columns": (many_columns, 0),
}


def place(tmp_path: Path, write: Write) -> Path:
    """Write the file as part 0 of a published index; return the folder."""
    folder = tmp_path / "published"
    folder.mkdir()
    write(folder / "part-00000.parquet")
    return folder


def stream(folder: Path | str, **how: Any) -> Any:
    options = {"parts": "0", "images": "none", "split": "train", "streaming": True}
    return laion_face.load_dataset("20M", index=str(folder), **options, **how)


def in_one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line on stderr, where an error stands; check that there is no traceback."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_index_is_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write, found = REFUSED[name]
    folder = place(tmp_path, write)
    with pytest.raises(LaionFaceError, match=r"part-00000\.parquet") as caught:
        list(stream(folder))
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)
    with IndexPart.open(folder / "part-00000.parquet") as part, pytest.raises(BadFile, match=r"part-00000.parquet"):
        part.read(0, part.num_rows)
    for words in (
        ["stats", "20M", "--parts", "0", "--index", str(folder), "--out", str(tmp_path / "stats.html")],
        ["prepare", "20M", "--parts", "0", "--index", str(folder), "--data-dir", str(tmp_path / "data")],
    ):
        assert cli.main(words) == 1
        assert "part-00000.parquet" in in_one_line(capsys)


@pytest.mark.parametrize("name", READ)
def test_a_bad_row_is_counted_and_the_others_come(tmp_path: Path, name: str) -> None:
    write, bad = READ[name]
    folder = place(tmp_path, write)
    ds = stream(folder)
    found = list(ds)
    expected = TABLE.slice(bad if bad < ROWS else ROWS).to_pylist()
    assert [one["sample_id"] for one in found] == [one["sample_id"] for one in expected]
    if bad:
        assert found == list(stream(place_of_rest(tmp_path, bad)))
        assert laion_face.report(ds).failed == {"bad_row": bad}
        with pytest.raises(PictureError, match="bad_row"):
            list(stream(folder, on_error="raise"))
        with (
            IndexPart.open(folder / "part-00000.parquet") as part,
            pytest.raises(BadFile, match=r"part-00000\.parquet: found"),
        ):
            part.read(0, part.num_rows)


def place_of_rest(tmp_path: Path, bad: int) -> Path:
    """Write the rows that are left, as they should be."""
    folder = tmp_path / "rest"
    folder.mkdir()
    pq.write_table(TABLE.slice(bad), folder / "part-00000.parquet")
    return folder


def test_a_stream_goes_on_behind_a_bad_row(tmp_path: Path) -> None:
    ids = pa.array([None, *range(1, ROWS)], pa.int64())
    folder = place(tmp_path, plain(with_column("sample_id", ids)))
    ds = stream(folder, shards_per_part=2)
    rows = iter(ds)
    first = [next(rows)["sample_id"] for _ in range(5)]
    state = ds.state_dict()
    again = stream(folder, shards_per_part=2)
    again.load_state_dict(state)
    assert [*first, *(one["sample_id"] for one in again)] == list(range(1, ROWS))


@pytest.mark.parametrize("name", ["fingerprint: a list", "a column twice", "a web page", "cut"])
def test_a_file_from_afar_is_asked_for_again_before_it_is_blamed(tmp_path: Path, name: str) -> None:
    folder = place(tmp_path, REFUSED[name][0])
    with FolderHost(folder) as host, IndexPart.open(f"{host.url()}/part-00000.parquet") as part:
        with pytest.raises(BadFile, match=r"part-00000\.parquet"):
            part.read(0, 1)
        opened = sum("bytes" in request.headers.get("range", "") for request in host.log)
    assert opened >= (2 if name in ("a web page", "cut") else 1)


@pytest.mark.parametrize("name", [*REFUSED, *READ])
def test_verify_says_what_is_wrong(
    published: Any, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write = (REFUSED.get(name) or READ[name])[0]
    shutil.copytree(published.folder, tmp_path / "published")
    (path,) = (tmp_path / "published").rglob("part-00000.parquet")
    path.unlink()
    write(path)
    assert cli.main(["verify", str(tmp_path / "published"), "--deep"]) == 1
    said = capsys.readouterr()
    assert "part-00000.parquet" in said.out
    assert "Traceback" not in said.err
    data = DataDir.at(tmp_path / "data")
    for kind in (data.ids(0), data.faces(0), data.index(0), data.sidecar(0)):
        kind.parent.mkdir(parents=True)
        write(kind)
    assert cli.main(["verify", str(data.root)]) == 1
    said = capsys.readouterr()
    for folder in ("ids", "faces", "index", "images"):
        assert f"{folder}/part-00000.parquet: " in said.out
    assert "Traceback" not in said.err


# Metadata

COLUMNS: dict[str, Any] = {
    "key": pa.array(range(1, 4)),
    "url": pa.array(["http://a/1", "http://a/2", "http://a/3"]),
    "caption": pa.array(["one", "two", "three"]),
    "original_width": pa.array([640] * 3),
    "original_height": pa.array([480] * 3),
}


def metadata(path: Path, **changed: Any) -> None:
    pq.write_table(pa.table({**COLUMNS, **changed}), path, store_schema=False)


def raw(*values: bytes) -> pa.Array:
    """Make texts of bytes that need not be UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def not_utf8_metadata(path: Path) -> None:
    metadata(path, QQQQ=pa.nulls(3, pa.int8()))
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))


BAD_METADATA: dict[str, Write] = {
    "a column twice": lambda path: pq.write_table(
        pa.Table.from_arrays([*COLUMNS.values(), COLUMNS["url"]], [*COLUMNS, "url"]), path
    ),
    "a column's name that is not UTF-8": not_utf8_metadata,
    "ids that are lists": lambda path: metadata(path, key=pa.array([[1], [2], [3]])),
    "addresses that are structs": lambda path: metadata(path, url=pa.array([{"a": "b"}] * 3)),
    "nothing in it": bytes_of(b""),
    "a web page": bytes_of(b"<html>" * 100),
    "cut": cut,
}
ODD_METADATA: dict[str, Write] = {
    "an address that is not UTF-8": lambda path: metadata(path, url=raw(b"http://\xff/", b"b", b"c")),
    "a caption of 100 MB": lambda path: metadata(path, caption=raw(b"x" * 100_000_000, b"b", b"c")),
    "100,000 columns": lambda path: metadata(
        path, **{f"c{number}": pa.nulls(3, pa.int8()) for number in range(100_000)}
    ),
    "a fingerprint of ours": lambda path: pq.write_table(
        pa.table(COLUMNS).replace_schema_metadata({FINGERPRINT_KEY: b"\xff"}), path
    ),
}


@pytest.mark.parametrize("name", [*BAD_METADATA, *ODD_METADATA])
def test_prepare_reads_metadata_or_names_it(
    prepared: Any, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # Beside the true files lies a stranger's, which has none of the ids: the index is the same, or there is none.
    copy, data = tmp_path / "metadata", DataDir.at(tmp_path / "data")
    shutil.copytree(prepared.sandbox.metadata_folder, copy)
    for kind in (data.ids(0).parent, data.faces(0).parent):
        shutil.copytree(prepared.data.root / kind.name, kind)
    (BAD_METADATA.get(name) or ODD_METADATA[name])(copy / "part-00099-of-00100.parquet")
    (copy / "a-folder.parquet").mkdir()
    words = ["prepare", "20M", "--parts", "0", "--data-dir", str(data.root), "--metadata", str(copy)]
    code = cli.main([*words, "--processes", "1"])
    said = in_one_line(capsys)
    if name in BAD_METADATA:
        assert code == 1
        assert "part-00099-of-00100.parquet: found" in said
        assert not data.index(0).exists()
    else:
        assert code == 0
        assert pq.read_table(data.index(0)).equals(pq.read_table(prepared.data.index(0)))


def test_a_mirrors_corrupt_copy_is_fetched_again_by_the_next_run(
    prepared: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, data = tmp_path / "metadata", DataDir.at(tmp_path / "data")
    shutil.copytree(prepared.sandbox.metadata_folder, copy)
    for kind in (data.ids(0).parent, data.faces(0).parent):
        shutil.copytree(prepared.data.root / kind.name, kind)
    file = sorted(copy.glob("*.parquet"))[3]
    chunk = pq.read_metadata(file).row_group(0).column(0)
    with FolderHost(copy) as host:
        # As long as it should be, with a footer as it should be: only reading finds what is wrong.
        host.plant(file.name, calls=range(1, 100), flip=(chunk.dictionary_page_offset or chunk.data_page_offset) + 1)
        words = ["prepare", "20M", "--parts", "0", "--data-dir", str(data.root), "--metadata", host.url()]
        assert cli.main([*words, "--processes", "1"]) == 1
        assert file.name in in_one_line(capsys)
        assert not list(data.sources.rglob(file.name))
        host.faults.clear()
        assert cli.main([*words, "--processes", "1"]) == 0
    made, true = (json.loads(one.with_suffix(".json").read_text()) for one in (data.index(0), prepared.data.index(0)))
    assert {**made, "made_from": None} == {**true, "made_from": None}
    assert pq.read_table(data.index(0)).equals(pq.read_table(prepared.data.index(0)))
