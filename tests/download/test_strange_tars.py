"""Tars of strangers say odd things of their samples: each counts, with what can be used of it, or is passed over."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_face_builder.download.foreign import LookJob
from laion_face_builder.errors import BadFile

ID = {"sample_id": 7}
#: What a sample's JSON says, and the id that it is found under; None where it has none.
SAID: dict[str, tuple[bytes, int | None]] = {
    "an id": (json.dumps(ID).encode(), 7),
    "an id in words": (b'{"SAMPLE_ID": "7.0"}', 7),
    "an id of more than 64 bits": (b'{"sample_id": 18446744073709551616}', None),
    "an id of 5,000 digits": (b'{"sample_id": "' + b"9" * 5000 + b'"}', None),
    "an endless id": (b'{"sample_id": 1e999}', None),
    "no JSON": (b"{", None),
    "JSON too deep": (b"[" * 100_000, None),
    "JSON that is not UTF-8": (b'{"sample_id": "\xff"}', None),
    "a size of 41 bits": (json.dumps({**ID, "original_width": 1 << 40, "original_height": 1}).encode(), 7),
    "a size of 71 bits": (json.dumps({**ID, "original_width": 1 << 70, "original_height": 1}).encode(), 7),
    "a digest that is half a character": (
        json.dumps({**ID, "sha256": "\ud800", "original_width": 1, "original_height": 1}).encode(),
        7,
    ),
    "a message that is a list": (json.dumps({**ID, "error_message": [1]}).encode(), 7),
}


def checked(folder: Path, text: bytes, with_picture: bool = True) -> list[dict[str, Any]]:
    """Write a tar with one sample, check it, and return the rows."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for ending, content in ((".png", picture.getvalue()), (".json", text))[not with_picture :]:
            member = tarfile.TarInfo("000000000" + ending)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    out = folder / "out.parquet"
    LookJob(str(folder / "00000.tar"), str(out), 1000, {"kind": "tried"}).run()
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


@pytest.mark.parametrize("name", SAID)
def test_whatever_its_json_says_a_sample_is_counted_or_passed_over(tmp_path: Path, name: str) -> None:
    text, number = SAID[name]
    if number is None:
        with pytest.raises(BadFile, match=r"00000\.tar: found pictures of samples without names"):
            checked(tmp_path, text)
    else:
        assert [(row["id"], row["status"]) for row in checked(tmp_path, text)] == [(number, "ok")]


@pytest.mark.parametrize("message", [None, [1], {"a": 1}, 7.5, "\ud800", "HTTP Error 404: Not Found"])
def test_a_sample_without_a_picture_has_a_reason(tmp_path: Path, message: object) -> None:
    (row,) = checked(tmp_path, json.dumps({**ID, "error_message": message}).encode(), with_picture=False)
    is_text = isinstance(message, str)
    assert row["status"] == (("http_404" if "404" in str(message) else "other") if is_text else "missing_in_tar")


@pytest.mark.parametrize(
    "columns",
    [
        {"key": [[1]], "sample_id": [9], "error_message": ["x"]},
        {"key": [b"\xff"], "sample_id": [9], "error_message": ["x"]},
        {"key": ["000000000"], "sample_id": pa.array([1 << 63], pa.uint64()), "error_message": ["x"]},
        {
            "key": ["000000000"],
            "sample_id": [9],
            "error_message": pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()),
        },
    ],
    ids=["keys that are lists", "keys that are bytes", "an id beyond int64", "a message that is not UTF-8"],
)
def test_where_the_table_beside_it_is_odd_the_json_counts(tmp_path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    assert [(row["id"], row["status"]) for row in checked(tmp_path, json.dumps(ID).encode())] == [(7, "ok")]
