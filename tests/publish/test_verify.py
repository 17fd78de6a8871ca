"""`verify` finds and names what is wrong, and leaves in peace what is right."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder import cli
from laion_face_builder.files import read_fingerprint, sha256_of, stamped
from laion_face_builder.index.writer import open_writer as index_writer
from laion_face_builder.index.writer import proof_path
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.publish.destination import destination_at
from laion_face_builder.publish.manifest import MANIFEST
from laion_face_builder.publish.published_files import measured
from laion_face_builder.publish.targets import PublishedPlace
from laion_face_builder.schema import INDEX, SIDECAR_LATER
from laion_face_builder.verify.verify import place_problems


def verified(capsys, *arguments):
    """Run `verify`; return its exit code and lines on stdout."""
    capsys.readouterr()
    code = cli.main(["verify", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


def flip(path, at):
    with Path(path).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


@pytest.fixture
def data(prepared, tmp_path):
    shutil.copytree(prepared.data.root, tmp_path / "data", ignore=shutil.ignore_patterns("sources", "publish"))
    return DataDir.at(tmp_path / "data")


def rewritten(path, change, fingerprint=None):
    """Rewrite the index part at `path` with other rows, or another fingerprint, and the rest as `prepare` writes it."""
    fingerprint = fingerprint or read_fingerprint(path)
    table = change(pq.read_table(path).replace_schema_metadata())
    schema = stamped(INDEX, fingerprint)
    with index_writer(path, schema) as writer:
        for start, stop in row_group_bounds(table.num_rows):
            writer.write_table(table.slice(start, stop - start).cast(schema), row_group_size=stop - start)


# A DATA_DIR.


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_what_prepare_and_download_made_is_right(prepared, capsys, deep):
    assert verified(capsys, prepared.data.root, *deep) == (0, [])
    assert verified(capsys, "--data-dir", prepared.data.root, *deep) == (0, [])


def last_page_byte(path, column):
    """Return the place of the last byte of a column's data in the middle row group."""
    metadata = pq.read_metadata(path)
    chunk = metadata.row_group(metadata.num_row_groups // 2).column(column)
    return (
        chunk.data_page_offset
        + chunk.total_compressed_size
        - (chunk.data_page_offset - chunk.dictionary_page_offset if chunk.has_dictionary_page else 0)
        - 1
    )


@pytest.mark.parametrize("kind", ["ids", "faces", "index", "sidecar"])
def test_a_flipped_bit_in_any_column_is_found(data, capsys, kind):
    path = getattr(data, kind)(0)
    whole = path.read_bytes()
    for other in (data.ids(2), data.faces(2), data.index(2), data.sidecar(2)):
        other.unlink()
    if kind != "sidecar":
        data.sidecar(0).unlink()
    for column in range(pq.read_metadata(path).num_columns):
        path.write_bytes(whole)
        flip(path, last_page_byte(path, column))
        code, lines = verified(capsys, data.root)
        assert code == 1
        assert any(str(path) in line for line in lines), column
        assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("kind", ["ids", "faces", "index", "sidecar"])
def test_a_cut_file_is_found(data, capsys, kind):
    path = getattr(data, kind)(2)
    os.truncate(path, path.stat().st_size // 2)
    code, lines = verified(capsys, data.root)
    assert code == 1
    assert any(line.startswith(f"{path}: cannot be read") for line in lines)


def test_rows_in_another_order_are_found(data, capsys):
    rewritten(data.index(0), lambda table: table.take(pa.array([1, 0, *range(2, table.num_rows)])))
    code, lines = verified(capsys, data.root)
    assert code == 1
    assert lines == [f"{data.sidecar(0)}: its rows are in another order than the index's"]


def group_of(path, row):
    """Return the row group that a row lies in."""
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return int(np.searchsorted(np.cumsum(sizes), row, side="right"))


@pytest.mark.parametrize("name", ["n_faces", "max_face_score", "max_face_size"])
def test_a_flat_column_that_does_not_follow_from_faces_is_found(data, capsys, name):
    def change(table):
        place = table.schema.get_field_index(name)
        values = table[name].to_pylist()
        values[200] = (values[200] or 0) + 1
        return table.set_column(place, name, pa.array(values, table.schema.field(name).type))

    rewritten(data.index(0), change)
    code, lines = verified(capsys, data.root)
    assert code == 1
    (line,) = lines
    assert line == f"{data.index(0)}: row group {group_of(data.index(0), 200)}: {name} is not what the faces give"


def test_faces_that_are_not_the_faces_part_are_found(data, capsys):
    def change(table):
        faces = table["faces"].to_pylist()
        place = next(row for row, some in enumerate(faces) if some)
        faces[place][0]["box"][0] -= 1
        column = pa.array(faces, table.schema.field("faces").type)
        return table.set_column(table.schema.get_field_index("faces"), "faces", column)

    rewritten(data.index(0), change)
    code, lines = verified(capsys, data.root)
    assert code == 1
    assert any("faces is not what the faces part says" in line for line in lines)


def test_files_of_another_part_are_found(data, capsys):
    for kind in ("ids", "faces", "index"):
        shutil.copyfile(getattr(data, kind)(2), getattr(data, kind)(0))
    code, lines = verified(capsys, data.root)
    assert code == 1
    for kind in ("ids", "faces", "index"):
        said = f"{getattr(data, kind)(0)}: its fingerprint says {kind} of part 2, expected {kind} of part 0"
        assert said in lines


def test_an_index_from_other_sources_is_found(data, capsys):
    path = data.faces(0)
    table = pq.read_table(path)
    stamp = {**read_fingerprint(path), "source": "sha256:other"}
    pq.write_table(table.cast(stamped(table.schema.remove_metadata(), stamp)), path)
    code, lines = verified(capsys, data.root)
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"{data.index(0)}: made from faces of version")


def test_uneven_row_groups_are_found(data, capsys):
    table = pq.read_table(data.index(0))
    pq.write_table(table, data.index(0), row_group_size=100, write_page_index=True, compression="zstd")
    code, lines = verified(capsys, data.root)
    assert code == 1
    sizes = [len(range(table.num_rows)[start : start + 100]) for start in range(0, table.num_rows, 100)]
    said = f"{len(sizes)} row groups of {min(sizes)} to 100 rows; expected 128 even ones"
    assert lines == [f"{data.index(0)}: {said}"]


def has_problem(capsys, data, part):
    """Return the problem that the one line about an index part names."""
    code, lines = verified(capsys, data.root)
    assert (code, len(lines)) == (1, 1)
    start = f"{data.index(part)}: "
    assert lines[0].startswith(start)
    return lines[0].removeprefix(start)


def test_a_proof_of_another_index_is_found(data, capsys):
    path = proof_path(data.index(0))
    proof = json.loads(path.read_text())
    rows, made_from = proof["rows"], proof["made_from"]
    path.write_text(json.dumps({**proof, "rows": rows - 1}))
    assert has_problem(capsys, data, 0) == f"has {rows} rows; its proof part-00000.json is of {rows - 1}"
    for other, said in [
        ({**made_from, "metadata": "sha256:other", "part": 2}, "metadata, part"),
        ({**made_from, "filters": {}}, "filters"),
        (None, ", ".join(sorted(made_from))),
    ]:
        path.write_text(json.dumps({**proof, "made_from": other}))
        assert has_problem(capsys, data, 0) == f"its proof part-00000.json is of an index made from other {said}"


@pytest.mark.parametrize("text", [b"", b"{", b"3", b'"x"', b"\xff\xfe"])
def test_a_proof_that_is_none_is_found(data, capsys, text):
    proof_path(data.index(2)).write_bytes(text)
    assert has_problem(capsys, data, 2).startswith("its proof part-00002.json cannot be read: ")


def test_a_proof_that_is_gone_is_found(data, capsys):
    proof_path(data.index(2)).unlink()
    assert has_problem(capsys, data, 2).startswith("has no proof of its join, part-00002.json, beside it")


def test_an_index_made_elsewhere_needs_no_proof(data, capsys):
    proof_path(data.index(0)).unlink()
    data.faces(0).unlink()
    assert verified(capsys, data.root) == (0, [])


@pytest.mark.parametrize("change", [{"copy": "0" * 64}, {"filters": {"min_faces": 1}}, {"join": None}])
def test_a_copy_and_an_index_of_an_earlier_version_need_no_proof(data, capsys, change):
    path = data.index(0)
    stamp = {key: value for key, value in {**read_fingerprint(path), **change}.items() if value is not None}
    rewritten(path, lambda table: table, stamp)
    data.sidecar(0).unlink()
    said = f"its proof part-00000.json is of an index made from other {next(iter(change))}"
    assert has_problem(capsys, data, 0) == said
    proof_path(path).unlink()
    assert verified(capsys, data.root) == (0, [])


def test_a_sidecar_from_before_there_was_resizing_is_right(data, capsys):
    older = pq.read_table(data.sidecar(0)).drop_columns(list(SIDECAR_LATER))
    pq.write_table(older, data.sidecar(0))
    assert verified(capsys, data.root)[0] == 0
    pq.write_table(older.drop_columns(["tar"]), data.sidecar(0))
    code, lines = verified(capsys, data.root)
    assert code == 1
    assert "expected those of a sidecar" in lines[0]


def stored(data, part):
    rows = pq.read_table(data.sidecar(part)).to_pylist()
    return [row for row in rows if row["status"] == "ok"]


def test_a_flipped_bit_in_a_picture_is_found_by_looking_deep(data, capsys):
    row = stored(data, 0)[17]
    flip(data.tars(0) / row["tar"], row["offset"] + row["length"] // 2)
    code, lines = verified(capsys, data.root, "--deep")
    assert code == 1
    assert lines == [
        f"{data.sidecar(0)}: {row['tar']}: sample {row['sample_id']}: another SHA-256 than when it was downloaded"
    ]


def test_a_sample_of_pictures_is_hashed_without(data, capsys):
    for row in stored(data, 0):
        flip(data.tars(0) / row["tar"], row["offset"] + row["length"] // 2)
    code, lines = verified(capsys, data.root)
    assert code == 1
    assert 5 <= len(lines) < len(stored(data, 0))


def test_tars_that_are_gone_cut_or_changed_are_found(data, capsys):
    tars = sorted({row["tar"] for row in stored(data, 0)})
    (data.tars(0) / tars[0]).unlink()
    cut = data.tars(2) / stored(data, 2)[0]["tar"]
    os.truncate(cut, cut.stat().st_size // 2)
    code, lines = verified(capsys, data.root)
    assert code == 1
    assert any(f"{tars[0]}: is missing" in line for line in lines)
    assert any(str(data.sidecar(2)) in line and "expected a whole tar" in line for line in lines)


def test_an_index_alone_is_enough(data, capsys):
    for folder in ("ids", "faces", "images"):
        shutil.rmtree(data.root / folder)
    assert verified(capsys, data.root) == (0, [])


def test_nothing_to_verify_is_an_error(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "nothing is prepared or published there" in capsys.readouterr().err


# A published place.


@pytest.fixture(params=["published", "published_pictures"])
def copy(request, tmp_path):
    shutil.copytree(request.getfixturevalue(request.param).folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_what_was_published_is_right(copy, capsys):
    assert verified(capsys, copy) == (0, [])
    assert verified(capsys, copy, "--deep") == (0, [])


def problems_of(folder):
    return list(place_problems(PublishedPlace.at(str(folder)), destination_at(str(folder)), deep=False))


@settings(max_examples=25)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_in_any_published_file_is_found(published, tmp_path_factory, place, bit):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        shutil.copytree(published.folder, folder)
    paths = sorted(folder.rglob("*.parquet"))
    at = int(place * sum(path.stat().st_size for path in paths))
    for path in paths:
        if at < path.stat().st_size:
            break
        at -= path.stat().st_size
    before = path.read_bytes()
    path.write_bytes(before[:at] + bytes([before[at] ^ (1 << bit)]) + before[at + 1 :])
    try:
        assert any(path.name in line for line in problems_of(folder))
    finally:
        path.write_bytes(before)


def test_missing_and_foreign_files_are_found(copy, capsys):
    first, *_ = sorted((copy / "data").iterdir())
    first.rename(copy / "data" / "part-00031.parquet")
    (copy / "LICENSE.md").unlink()
    code, lines = verified(capsys, copy)
    assert code == 1
    assert any(line.startswith(f"data/{first.name}:") for line in lines)
    assert "data/part-00031.parquet: is not in the manifest" in lines
    assert "README.md: links to LICENSE.md, which is missing" in lines


def changed_manifest(folder, name, **values):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] |= values
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_other_rows_than_the_manifest_says_are_found(published, tmp_path, capsys):
    # A part that was written anew, in another order and with its hash and size put right.
    folder, name = tmp_path / "copy", "data/part-00000.parquet"
    shutil.copytree(published.folder, folder)
    path = folder / name
    rewritten(path, lambda table: table.take(pa.array(np.arange(table.num_rows)[::-1])))
    changed_manifest(folder, name, sha256=sha256_of(path), size=path.stat().st_size)
    code, lines = verified(capsys, folder)
    assert code == 1
    assert f"{name}: its sample ids, or their order, are not those of the manifest" in lines


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            lambda rows: {"rows": rows - 1},
            lambda rows: f"{rows} rows in 32 row groups; the manifest has {rows - 1} in 32",
        ),
        (lambda rows: {"row_groups": 1}, lambda rows: f"{rows} rows in 32 row groups; the manifest has {rows} in 1"),
        (lambda rows: {"fingerprint": {"kind": "index"}}, lambda rows: "its fingerprint is"),
        (lambda rows: {"sha256": "0" * 64}, lambda rows: "0000"),
    ],
)
def test_a_manifest_that_says_something_else_is_found(published, true_rows, tmp_path, capsys, values, said):
    rows = len(true_rows(0))
    shutil.copytree(published.folder, tmp_path / "copy")
    changed_manifest(tmp_path / "copy", "data/part-00000.parquet", **values(rows))
    code, lines = verified(capsys, tmp_path / "copy")
    assert code == 1
    assert any(line.startswith("data/part-00000.parquet: ") and said(rows) in line for line in lines)


def test_a_card_that_names_something_else_is_found(copy, capsys):
    text = (copy / "README.md").read_text()
    (size, *_) = re.findall(r"dataset_size: (\d+)", text)
    (copy / "README.md").write_text(text.replace(f"dataset_size: {size}", f"dataset_size: {int(size) + 1}"))
    assert verified(capsys, copy) == (1, ["README.md: dataset_info is not what the manifest gives"])
    (copy / "README.md").write_text("no head")
    assert verified(capsys, copy) == (1, ["README.md: has no YAML head"])
    (copy / "README.md").unlink()
    assert verified(capsys, copy) == (1, ["README.md: is missing"])


@pytest.mark.parametrize("name", ["data/part-00002.parquet", "preview/preview-00000.parquet"])
def test_a_file_that_lost_its_form_is_found(published, tmp_path, capsys, name):
    # As another program saves it, in one row group, and what the manifest says of it put right.
    copy = tmp_path / "copy"
    shutil.copytree(published.folder, copy)
    stamp = read_fingerprint(copy / name)
    table = pq.read_table(copy / name)
    pq.write_table(table.cast(stamped(table.schema, stamp)), copy / name)
    entry = measured(copy / name, name, 2, (0, table.num_rows))
    values = {key: getattr(entry, key) for key in ("size", "sha256", "row_groups", "arrow_bytes")}
    changed_manifest(copy, name, **values)
    code, lines = verified(capsys, copy)
    said = [line.removeprefix(f"{name}: ") for line in lines if line.startswith(name)]
    expected = ["has no key use_content_defined_chunking", "row group 0 has no page index for sample_id, "]
    if name.startswith("data"):
        expected.insert(1, f"1 row groups of {table.num_rows} to {table.num_rows} rows; expected 32 even ones")
    assert code == 1
    assert [line[: len(start)] for line, start in zip(said, expected, strict=True)] == expected


def test_a_manifest_that_is_none_is_found(copy, capsys):
    (copy / MANIFEST).write_text('{"format": 99}')
    code, lines = verified(capsys, copy)
    assert code == 1
    assert "expected a manifest of format 1" in lines[0]
    (copy / MANIFEST).unlink()
    code, lines = verified(capsys, copy)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"{MANIFEST}: is missing")
