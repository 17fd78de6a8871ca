"""Reading pictures back in index order, and adopting folders that others made."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from laion_face_builder.download.check import CHECKED, CheckJob, check_tar, whole_number
from laion_face_builder.download.shard_files import read_members
from laion_face_builder.download.sidecar import CheckedTar, assemble, result_of, write_sidecar
from laion_face_builder.download.tar_reader import PartPictures, StoredPicture
from laion_face_builder.errors import BadFile, NotPrepared, StateConflict
from laion_face_builder.files import digest, make_fingerprint, stamped
from laion_face_builder.images.pictures import MAX_PIXELS
from laion_face_builder.index.reader import index_fingerprint_at
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.schema import INDEX, SIDECAR

PART = 3


def picture(number: int, size: tuple[int, int] = (12, 8), kind: str = "JPEG") -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number % 256)).save(held, kind)
    return held.getvalue()


def write_index(data: DataDir, sample_ids: list[int], part: int = PART, source: str = "a") -> None:
    columns = {name: pa.nulls(len(sample_ids), INDEX.field(name).type) for name in INDEX.names}
    columns["sample_id"] = pa.array(sample_ids, pa.int64())
    schema = stamped(INDEX, make_fingerprint("index", part=part, source=source))
    data.index(part).parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(data.index(part), schema) as writer:
        for start, stop in row_group_bounds(len(sample_ids)):
            writer.write_table(pa.table(columns, schema=schema).slice(start, stop - start))


def write_tar(path: Path, samples: dict[int, bytes], extension: str = "jpg", id_column: str = "SAMPLE_ID") -> None:
    """Write a tar as the original scripts' img2dataset: keys are positions, the sample id is a float in each .json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for position, (sample_id, data) in enumerate(samples.items()):
            key = f"{int(path.stem) * 10_000 + position:09d}"
            values = {"URL": "x", "key": key, id_column: float(sample_id)}
            for name, content in ((extension, data), ("json", json.dumps(values).encode()), ("txt", b"caption")):
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def statuses(pictures: PartPictures) -> list[str]:
    return [stored.status for stored in pictures.read(0, pictures.num_rows)]


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir.at(tmp_path / "data")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataDir, Path, dict[int, bytes]]:
    """Make a folder of the original scripts and adopt it: 60 samples in two tars, in another order."""
    folder = tmp_path_factory.mktemp("original")
    served = {1000 + number: picture(number, (10 + number, 9), random.Random(number).choice(["JPEG", "PNG"]))
              for number in range(60)}  # fmt: skip
    order = sorted(served, key=lambda number: hashlib.sha256(str(number).encode()).digest())
    split = folder / "laion_face_data" / f"split_{PART:05d}"
    write_tar(split / "00000.tar", {number: served[number] for number in order[:35]})
    write_tar(split / "00001.tar", {number: served[number] for number in order[35:]})
    # What img2dataset puts beside a tar: here it adds why a sample is not in it.
    table = {"key": ["000019999", "000019998"], "SAMPLE_ID": [2000.0, None], "status": ["failed_to_download"] * 2}
    pq.write_table(pa.table({**table, "error_message": ["HTTP Error 404: Not Found", "x"]}), split / "00001.parquet")
    data = DataDir.at(folder / "data")
    write_index(data, [5, *served, 2000])
    return data, folder / "laion_face_data", served


def test_a_folder_of_the_original_scripts_is_read_in_index_order(
    original: tuple[DataDir, Path, dict[int, bytes]],
) -> None:
    data, folder, served = original
    with PartPictures.adopt(folder, data, PART) as pictures:
        stored = list(pictures.read(0, pictures.num_rows))
        assert [one.data for one in stored] == [None, *served.values(), None]
        assert [one.status for one in stored] == ["not_downloaded", *["ok"] * 60, "http_404"]
        assert {one.format for one in stored[1:-1]} == {"JPEG", "PNG"}
        assert [one.width for one in stored[1:-1]] == [10 + number for number in range(60)]
        assert [one.sha256 for one in stored[1:-1]] == [hashlib.sha256(held).hexdigest() for held in served.values()]
        assert [pictures.get(row) for row in range(62)] == stored
        assert list(pictures.read(20, 45)) == stored[20:45]
        wanted = [row % 3 == 0 for row in range(62)]
        read = [one.data for one in pictures.read(0, 62, wanted)]
        assert read == [one.data if kept else None for one, kept in zip(stored, wanted, strict=True)]


def test_nothing_is_looked_through_twice(original: tuple[DataDir, Path, dict[int, bytes]]) -> None:
    data, folder, _ = original
    with PartPictures.adopt(folder, data, PART) as pictures:
        before = pictures.sidecar.stat().st_mtime_ns
        passes = {path: path.stat().st_mtime_ns for path in (data.root / "adopted" / "tars").iterdir()}
    moved = folder.rename(folder.with_name("elsewhere"))
    try:
        for given in (moved, moved / f"split_{PART:05d}"):
            with PartPictures.adopt(given, data, PART) as pictures:
                assert pictures.sidecar.stat().st_mtime_ns == before
                assert str(moved) not in json.dumps(pictures.fingerprint)
                assert pictures.get(1).status == "ok"
        assert {path: path.stat().st_mtime_ns for path in (data.root / "adopted" / "tars").iterdir()} == passes
    finally:
        moved.rename(folder)


def test_a_folder_of_another_part_is_refused(original: tuple[DataDir, Path, dict[int, bytes]]) -> None:
    data, folder, _ = original
    write_index(data, [7, 8], part=4)
    with pytest.raises(NotPrepared, match="no pictures of part 4"):
        PartPictures.adopt(folder / f"split_{PART:05d}", data, 4)
    os.symlink(folder / f"split_{PART:05d}", folder / "split_00004")
    try:
        with pytest.raises(NotPrepared, match="none of its 61 samples"):
            PartPictures.adopt(folder, data, 4)
    finally:
        (folder / "split_00004").unlink()


def _sum_in_child(pictures: PartPictures, queue: multiprocessing.queues.Queue) -> None:
    queue.put([stored.sha256 for stored in pictures.read(0, pictures.num_rows)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_readers_travel_to_workers(original: tuple[DataDir, Path, dict[int, bytes]], method: str) -> None:
    data, folder, _ = original
    context: Any = multiprocessing.get_context(method)
    with PartPictures.adopt(folder, data, PART) as pictures:
        here = [stored.sha256 for stored in pictures.read(0, pictures.num_rows)]  # open, as at a fork in mid-epoch
        queue = context.Queue()
        workers = [context.Process(target=_sum_in_child, args=(pictures, queue)) for _ in range(2)]
        for worker in workers:
            worker.start()
        found = [queue.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join()
        queue.close()
        assert found == [here, here]
        assert repr(pickle.loads(pickle.dumps(pictures))) == repr(pictures)


def test_changed_tars_are_looked_through_again(data: DataDir, tmp_path: Path) -> None:
    folder = tmp_path / f"part-{PART:05d}"
    write_index(data, [1, 2])
    write_tar(folder / "00000.tar", {1: picture(1)})
    with PartPictures.adopt(folder, data, PART) as pictures:
        assert statuses(pictures) == ["ok", "not_downloaded"]
        first = pictures.fingerprint["pictures"]
    write_tar(folder / "00001.tar", {2: picture(2)})
    with PartPictures.adopt(tmp_path, data, PART) as pictures:
        assert statuses(pictures) == ["ok", "ok"]
        assert pictures.fingerprint["pictures"] != first


def test_broken_tars_are_left_out_by_name(data: DataDir, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_index(data, [1, 2, 3])
    for number in (1, 2):
        write_tar(tmp_path / "t" / f"0000{number}.tar", {number: picture(number)})
    whole = (tmp_path / "t" / "00002.tar").read_bytes()
    (tmp_path / "t" / "00002.tar").write_bytes(whole[:700])
    (tmp_path / "t" / "00003.tar").write_bytes(b"")
    (tmp_path / "t" / "00004.tar").write_bytes(os.urandom(2048))
    with caplog.at_level(logging.WARNING), PartPictures.adopt(tmp_path / "t", data, PART) as pictures:
        assert statuses(pictures) == ["ok", "not_downloaded", "not_downloaded"]
    assert "00002.tar, 00003.tar, 00004.tar" in caplog.text


def test_doubled_and_undecodable_samples(data: DataDir, tmp_path: Path) -> None:
    # The latest success wins, wherever failures stand; an index may name a sample twice.
    write_index(data, [1, 2, 3, 1])
    write_tar(tmp_path / "00000.tar", {1: picture(1), 2: b"<html>", 3: picture(3)}, "webp", "sample_id")
    write_tar(tmp_path / "00001.tar", {1: picture(9, (4, 4)), 2: picture(2), 3: b"<html>"}, "png", "Sample_Id")
    with PartPictures.adopt(tmp_path, data, PART) as pictures:
        stored = list(pictures.read(0, 4))
    assert [one.data for one in stored] == [picture(9, (4, 4)), picture(2), picture(3), picture(9, (4, 4))]


def test_samples_without_names_are_told_with_what_is_there(
    data: DataDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_index(data, [1])
    pictures = {"000000000.jpg": picture(1), "000000000.json": b'{"key": "000000000", "size": 1}'}
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, content in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(
        NotPrepared, match="none of its 0 samples is in the index of part 3, by SAMPLE_ID, url or caption"
    ):
        PartPictures.adopt(tmp_path, data, PART)
    assert "samples without names (columns: key, size)" in caplog.text
    assert "expected SAMPLE_ID, url or caption" in caplog.text


def test_tars_that_vanish_or_shrink_are_a_status(data: DataDir, tmp_path: Path) -> None:
    write_index(data, [1, 2, 3])
    for number in (1, 2, 3):
        write_tar(tmp_path / "t" / f"0000{number}.tar", {number: picture(number, (90, 90))})
    with PartPictures.adopt(tmp_path / "t", data, PART) as pictures:
        assert statuses(pictures) == ["ok", "ok", "ok"]
        pictures.close()
        (tmp_path / "t" / "00001.tar").unlink()
        os.truncate(tmp_path / "t" / "00002.tar", 700)
        assert statuses(pictures) == ["tar_missing", "tar_cut", "ok"]
        assert [pictures.get(row).status for row in range(3)] == ["tar_missing", "tar_cut", "ok"]
        assert pictures.get(1) == StoredPicture("tar_cut")


def test_pictures_of_another_index_are_refused(data: DataDir) -> None:
    with pytest.raises(NotPrepared, match="laion-face download"):
        PartPictures.open(data, PART)
    write_index(data, [1, 2])
    table = assemble(pa.chunked_array([[1, 2]]), np.arange(2), [], pa.chunked_array([["dns", "filtered"]]))
    index = index_fingerprint_at(data.index(PART))
    write_sidecar(data.sidecar(PART), table, make_fingerprint("sidecar", index=digest(index)), [])
    with PartPictures.open(data, PART) as pictures:
        assert statuses(pictures) == ["dns", "filtered"]
        with pytest.raises(IndexError):
            pictures.get(2)
    assert result_of(data.sidecar(PART), 0).failures == {"dns": 1}
    write_index(data, [1, 2], source="b")
    with pytest.raises(StateConflict, match="another index"):
        PartPictures.open(data, PART)


CHECKED_ROWS = st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12), max_size=4)


@settings(max_examples=60)
@given(tars=CHECKED_ROWS, keys=st.lists(st.integers(0, 11), max_size=12))
def test_the_latest_success_wins(tmp_path_factory: pytest.TempPathFactory, tars: list, keys: list[int]) -> None:
    folder = tmp_path_factory.mktemp("checked")
    expected: dict[int, tuple[str, str | None, int | None]] = {}
    checked = []
    for number, rows in enumerate(tars):
        named = f"{number}.tar"
        table = [
            {"id": i, "status": "ok" if good else f"bad{number}", "offset": at} for at, (i, good) in enumerate(rows)
        ]
        pq.write_table(pa.Table.from_pylist(table, schema=CHECKED), folder / named)
        checked.append(CheckedTar(named, folder / named))
        for at, (key, good) in enumerate(rows):
            if good:
                expected[key] = ("ok", named, at)
            elif expected.get(key, ("",))[0] != "ok":
                expected[key] = (f"bad{number}", None, None)
    without = pa.chunked_array([pa.array(["none"] * len(keys), pa.string())])
    ids = pa.chunked_array([pa.array(keys, pa.int64())])
    found = assemble(ids, np.array(keys, dtype=np.int64), checked, without)
    assert found.schema == SIDECAR
    got = list(zip(*(found[name].to_pylist() for name in ("status", "tar", "offset")), strict=True))
    assert got == [expected.get(key, ("none", None, None)) for key in keys]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/\n"), min_size=1, max_size=130)


@settings(max_examples=60)
@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    cut=st.floats(0, 1, exclude_max=True),
)
def test_headers_are_read_as_by_tarfile_and_cuts_are_seen(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], form: int, cut: float
) -> None:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name[:40] if form == tarfile.USTAR_FORMAT and len(name.encode()) > 90 else name)
            if form == tarfile.USTAR_FORMAT and len(member.name.encode()) > 90:
                continue
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        there = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert [(m.name, m.offset, m.length) for m in read_members(path)] == there
    end = max([offset + -(-size // 512) * 512 for _, offset, size in there], default=0)
    path.write_bytes(data[: int(cut * (end + 512))])
    with pytest.raises(BadFile):
        read_members(path)


@pytest.mark.parametrize(
    ("value", "number"),
    [(5, 5), (5.0, 5), ("5", 5), ("5.0", 5), (2.0**52, 2**52), (5.5, None), (None, None), ("x", None), (True, None),
     (float("nan"), None), (float("inf"), None)],
)  # fmt: skip
def test_sample_ids_of_every_type(value: object, number: int | None) -> None:
    assert whole_number(value) == number


def test_a_shard_counts_only_if_its_files_agree(tmp_path: Path) -> None:
    # Stats, parquet and tar each say how many: any disagreement, or a cut tar, and there is no pass over it.
    tar = tmp_path / "00000.tar"
    write_tar(tar, {0: picture(0), 1: picture(1)}, id_column="row")
    keys, none = ["000000000", "000000001", "000000002"], None
    rows = {"key": keys, "row": [0, 1, 2], "error_message": [none, none, "HTTP Error 410: Gone"]}
    pq.write_table(pa.table(rows), tmp_path / "00000.parquet")
    stats = tmp_path / "00000_stats.json"
    job = CheckJob(str(tar), str(tmp_path / "out.parquet"), "row", 3, MAX_PIXELS, make_fingerprint("checked"))
    whole = tar.read_bytes()
    for count, successes, content in ((3, 3, whole), (2, 2, whole), (3, 2, whole[:-10240]), (3, 2, whole[:1500])):
        stats.write_text(json.dumps({"count": count, "successes": successes}))
        tar.write_bytes(content)
        with pytest.raises(BadFile):
            check_tar(job)
        assert not job.is_done
    tar.write_bytes(whole)
    for broken in ("", "{", '{"count": 3}', "[]"):
        stats.write_text(broken)
        with pytest.raises(BadFile):
            check_tar(job)
    stats.write_text('{"count": 3, "successes": 2}')
    check_tar(job)
    assert job.is_done
    assert pq.read_table(job.out)["status"].to_pylist() == ["ok", "ok", "http_410"]
    for message in ("<urlopen error [Errno 111] Connection refused>", "[Errno 104] Connection reset by peer"):
        pq.write_table(pa.table({**rows, "error_message": [none, none, message]}), tmp_path / "00000.parquet")
        with pytest.raises(BadFile, match="without the guarding proxy"):
            check_tar(job)
    pq.write_table(pa.table({**rows, "error_message": [none, none, "reset: by the host"]}), tmp_path / "00000.parquet")
    check_tar(job)
    assert pq.read_table(job.out)["status"].to_pylist() == ["ok", "ok", "reset"]
