"""Files that vanish or are cut while a stream reads them: each sample is counted, or one error names the file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import laion_face
from laion_face_builder.errors import LaionFaceError
from laion_face_builder.layout import DataDir


def _vanish(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("harm", [_vanish, _cut, _empty])
@pytest.mark.parametrize("kind", ["tars", "sidecar", "index"])
def test_what_happens_to_a_file_in_mid_stream_is_counted_or_named(prepared, tmp_path, kind, harm):
    data = DataDir(tmp_path / "data")
    for folder in ("index", "images"):
        shutil.copytree(prepared.data.root / folder, data.root / folder, ignore=shutil.ignore_patterns("*.lock"))
    harmed = {"tars": sorted(data.tars(0).rglob("*.tar")), "sidecar": [data.sidecar(0)], "index": [data.index(0)]}[kind]
    stream = laion_face.load_dataset("20M", split="train", streaming=True, parts="0", data_dir=str(data.root))
    rows = iter(stream)
    came = [next(rows)["sample_id"] for _ in range(5)]
    for path in harmed:
        harm(path)
    said = None
    try:
        came += [row["sample_id"] for row in rows]
    except LaionFaceError as error:
        said = str(error)
    if said is not None:
        assert str(harmed[0]) in said
        assert kind != "tars", "a bad sample ends no iteration"
    else:
        # What was open already can be read to its end; all that cannot be is counted.
        counts = laion_face.report(stream)
        assert (counts.yielded, counts.rows) == (len(came), len(prepared.sandbox.truth_of(0)))
    assert len(set(came)) == len(came)
