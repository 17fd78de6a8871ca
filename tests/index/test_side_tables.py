"""What `status` says of tables that were joined, and what `verify` finds wrong with them."""

import json
import shutil
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder import cli
from laion_face_builder.files import read_fingerprint, stamped
from laion_face_builder.index.side_table import side_tables
from laion_face_builder.layout import DataDir
from laion_face_builder.verify.verify_joined import joined_problems


@pytest.fixture(scope="module")
def beside(prepared, tmp_path_factory):
    """Prepare a DATA_DIR with the index alone, and a table joined beside it that has every other sample."""
    data = DataDir.at(tmp_path_factory.mktemp("beside"))
    shutil.copytree(prepared.data.root / "index", data.root / "index")
    ids = [truth.sample_id for truth in prepared.truth][::2]
    pd.DataFrame({"sample_id": ids, "blip": [f"a picture of {i}" for i in ids]}).to_csv(data.root / "c.csv")
    how = {"parts": "0,2", "images": "none", "split": "train", "streaming": True, "data_dir": str(data.root)}
    next(iter(laion_face.load_dataset("20M", join=data.root / "c.csv", **how)))
    return data


def ran(capsys, *words):
    code = cli.main([*map(str, words)])
    return code, capsys.readouterr().out


def test_status_lists_them(beside, prepared, capsys):
    ((folder, parts),) = side_tables(beside).items()
    size = sum(path.stat().st_size for path in parts.values())
    code, out = ran(capsys, "status", "20M", "--data-dir", beside.root, "--format", "json")
    (table,) = json.loads(out)["tables"]
    assert (code, table["parts"], table["rows"], table["bytes"]) == (0, [0, 2], len(prepared.truth), size)
    assert table["folder"] == f"joined/{folder.name}"
    assert "blip" in table["columns"]
    assert "_matched" not in table["columns"]
    code, out = ran(capsys, "status", "20M", "--data-dir", beside.root)
    line = out.splitlines()[-1]
    assert line.startswith(f"joined/{folder.name}: parts 0,2, {len(prepared.truth):,} rows, ")
    assert line.endswith("blip")


def value_where_there_is_none(table):
    values = [value or "astray" for value in table["blip"].to_pylist()]
    return table.set_column(table.column_names.index("blip"), "blip", pa.array(values))


def nulls_for_matched(table):
    return table.set_column(0, "_matched", pa.array([None] * 3 + table["_matched"].to_pylist()[3:], pa.bool_()))


#: What is done to the table of part 2, or to its fingerprint, and what is said of it.
FAULTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a row too few": (lambda table: table.slice(1), {}, "rows, but the index has "),
    "no _matched": (lambda table: table.drop_columns("_matched"), {}, "expected _matched to be the first"),
    "_matched null": (nulls_for_matched, {}, "_matched is null in 3 rows"),
    "values astray": (value_where_there_is_none, {}, "values in rows that the table has nothing for"),
    "another column": (
        lambda table: table.append_column("more", table["blip"]), {}, "expected those of the other parts beside it",
    ),
    "another part": (lambda table: table, {"part": 0}, "its fingerprint says joined of part 0, expected"),
}  # fmt: skip


def test_verify_reads_them(beside, tmp_path, capsys):
    assert ran(capsys, "verify", beside.root) == (0, "")
    shutil.copytree(beside.root, tmp_path / "data")
    path = next(iter(side_tables(DataDir.at(tmp_path / "data")).values()))[0]
    path.write_bytes(path.read_bytes()[:-20])
    code, out = ran(capsys, "verify", tmp_path / "data")
    assert (code, out.count("\n")) == (1, 1)
    assert out.startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("fault", ["a flipped bit", *FAULTS])
def test_whatever_is_wrong_with_one_is_said_of_it_alone(beside, tmp_path, fault):
    shutil.copytree(beside.root, tmp_path / "data")
    data = DataDir.at(tmp_path / "data")
    ((_, parts),) = side_tables(data).items()
    path = parts[2]
    if fault in FAULTS:
        change, stamp, said = FAULTS[fault]
        table = change(pq.read_table(path).replace_schema_metadata())
        pq.write_table(table.cast(stamped(table.schema, {**read_fingerprint(path), **stamp})), path)
    else:
        content, said = bytearray(path.read_bytes()), "cannot be read: "
        content[40] ^= 0x10
        path.write_bytes(content)
    lines = list(joined_problems(data))
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any(said in line for line in lines)


def test_one_of_another_index_is_no_fault_since_it_is_joined_anew(beside, tmp_path, capsys):
    shutil.copytree(beside.root, tmp_path / "data")
    path = next(iter(side_tables(DataDir.at(tmp_path / "data")).values()))[2]
    table = pq.read_table(path)
    stamp = {**read_fingerprint(path), "index": "sha256:x"}
    pq.write_table(table.cast(stamped(table.schema.remove_metadata(), stamp)), path)
    assert cli.main(["verify", str(tmp_path / "data")]) == 0
    assert f"{path}: joined with another index than " in capsys.readouterr().err
