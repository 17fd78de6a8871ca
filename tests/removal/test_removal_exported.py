"""Samples leave the folder of an export in every layout; what stays is as it was, and the next export goes on."""

import hashlib
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder.errors import NotPrepared, StateConflict
from laion_face_builder.export.export_ledger import Ledger
from laion_face_builder.removal.exported import remove_from_export
from tests.support.taken_down import copy_of, removal_of, tree, without_rows
from tests.support.waiting import wait_until

SHARDS = 6
KINDS: dict[str, dict[str, Any]] = {
    "files": {},
    "webdataset": {"layout": "webdataset"},
    "webdataset of faces": {"layout": "webdataset", "align": "arcface", "draw": "landmarks", "min_face_size": 80},
    "jsonl": {"layout": "jsonl"},
    "parquet": {"layout": "parquet"},
}


def export(data, out, **given):
    how = {"parts": "0", "data_dir": data.root, "shards_per_part": SHARDS, "processes": 1}
    return laion_face.export("20M", out, **{**how, **given})


@pytest.fixture(scope="module")
def named(prepared):
    """Give rows of part 0 that are near one another, with and without a picture."""
    return prepared.sandbox.truth_of(0)[20:32]


@pytest.fixture(scope="module")
def purged(prepared, named, tmp_path_factory):
    """Give a DATA_DIR that the rows have left, and its removals: named by id, address and picture."""
    data = copy_of(prepared.data, tmp_path_factory.mktemp("purged"))
    return data, without_rows(data, *(one.sample_id for one in named[:6]), *(one.url for one in named[6:]))


def written(content, name):
    """Return the bytes of a file as they can be searched: Parquet is compressed."""
    if not name.endswith(".parquet"):
        return content
    return "\n".join(map(str, pq.read_table(pa.BufferReader(content)).to_pylist())).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_leave_and_the_next_export_has_nothing_to_do(prepared, purged, named, tmp_path, kind):
    data, removals = purged
    out = tmp_path / "out"
    export(prepared.data, out, **KINDS[kind])
    before, when = tree(out), {path: path.stat().st_mtime_ns for path in out.rglob("part-*") if path.is_file()}
    with pytest.raises(StateConflict, match="laion-face remove --export"):
        export(data, out, **KINDS[kind])
    result = remove_from_export(out, data, removals)
    after = tree(out)
    assert (result.rewritten, result.anew) == (1, 0)
    assert result.samples > 0
    changed = {name for name in before if after.get(name) != before[name]}
    assert len({name[:16] for name in changed if name.startswith("part-")}) == 1
    for path, then in when.items():
        name = path.relative_to(out).as_posix()
        if name in after and name not in changed:
            assert path.stat().st_mtime_ns == then, name
    for one in named:
        for name, content in after.items():
            assert str(one.sample_id).encode() not in written(content, name), name
            assert one.url.encode() not in written(content, name), name
    # As if it had been exported without them, but for rows that gave nothing.
    counts = export(data, out, **KINDS[kind])
    assert tree(out) == after
    assert json.loads(after["__export__/manifest.json"])["counts"]["pieces"] == counts.pieces
    if "align" not in KINDS[kind]:
        fresh = export(data, tmp_path / "fresh", **KINDS[kind])
        assert (counts.pieces, counts.pictures, counts.bytes) == (fresh.pieces, fresh.pictures, fresh.bytes)
    again = remove_from_export(out, data, removals)
    assert (again.samples, tree(out)) == (0, after)


def test_a_part_that_is_not_whole_is_made_anew_no_row_twice_and_none_lost(prepared, purged, tmp_path):
    data, removals = purged
    export(prepared.data, tmp_path / "out", layout="jsonl", shards="0/2")
    result = remove_from_export(tmp_path / "out", data, removals)
    assert (result.rewritten, result.anew) == (0, 3)
    assert not list((tmp_path / "out").glob("*.jsonl"))
    export(data, tmp_path / "out", layout="jsonl", shards="1/2")
    assert remove_from_export(tmp_path / "out", data, removals).anew == 0
    export(data, tmp_path / "out", layout="jsonl")
    export(data, tmp_path / "fresh", layout="jsonl")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_picture_is_known_by_its_exported_bytes_without_its_data_dir(prepared, tmp_path):
    export(prepared.data, tmp_path / "out", crop=True, crop_format="png", min_face_size=65)
    picture = sorted((tmp_path / "out").glob("part-*/*.png"))[0]
    result = remove_from_export(tmp_path / "out", None, removal_of(hashlib.sha256(picture.read_bytes()).hexdigest()))
    assert (result.samples, picture.exists()) == (1, False)
    assert not list(picture.parent.glob(f"{picture.stem.partition('-')[0]}-*"))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["files", "webdataset"])
def test_killed_before_any_write_it_ends_as_without_the_kill(prepared, purged, tmp_path, monkeypatch, kind):
    from laion_face_builder import files

    data, removals = purged
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        export(prepared.data, out, **KINDS[kind])
    remove_from_export(whole, data, removals)
    in_place = files.put_in_place
    for stop in itertools.count():
        done = itertools.count()

        def fail_at(partial, path, stop=stop, done=done):
            if next(done) == stop:
                raise Killed
            in_place(partial, path)

        monkeypatch.setattr(files, "put_in_place", fail_at)
        try:
            remove_from_export(killed, data, removals)
        except Killed:
            continue
        break
    assert stop > 1
    assert tree(killed) == tree(whole)


@pytest.mark.parametrize("shards", [None, "0/2"])
def test_an_export_that_is_going_on_is_waited_for(prepared, named, tmp_path, monkeypatch, caplog, shards):
    data, out, finish = copy_of(prepared.data, tmp_path), tmp_path / "out", Ledger.finish
    is_last, gate, last = threading.Event(), threading.Event(), SHARDS if shards is None else SHARDS // 2
    number = itertools.count(1)

    def held(*of):
        if next(number) == last:
            is_last.set()
            gate.wait()
        finish(*of)

    monkeypatch.setattr(Ledger, "finish", held)
    with ThreadPoolExecutor(2) as pool:
        exporting = pool.submit(export, data, out, shards=shards)
        try:
            assert is_last.wait(120)
            removals = without_rows(data, *(one.sample_id for one in named))
            removing = pool.submit(remove_from_export, out, data, removals)
            wait_until(lambda: f"{out}: in use; waiting" in caplog.text or removing.done())
            assert not removing.done()
        finally:
            gate.set()
        exporting.result(60)
        assert removing.result(60).samples
    for name, content in tree(out).items():
        assert not [one for one in named if one.url.encode() in written(content, name)], name


def test_a_folder_without_an_export_is_said(tmp_path):
    with pytest.raises(NotPrepared, match="there is no export"):
        remove_from_export(tmp_path, None, removal_of(1))
