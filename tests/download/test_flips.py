"""Bits that flip on a disk or on the way: all is as without them, or an error names the file, or a status counts them.

The bits are drawn from seeds, over whole files. Nothing may be different in silence. `make faults` has more of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder import cli
from laion_face_builder.download.tar_reader import PartPictures, StoredPicture
from laion_face_builder.errors import BadFile, LaionFaceError
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import FolderHost
from laion_face_builder.sandbox.serving import Answer, Request
from tests.support import mutations
from tests.support.kept_files import OF_DATA_DIR

FLIPS = 60


@pytest.fixture(scope="module")
def data(prepared, tmp_path_factory) -> DataDir:
    """Copy what is prepared: each test leaves it as it was."""
    folder = tmp_path_factory.mktemp("flips") / "data"
    shutil.copytree(prepared.data.root, folder, ignore=shutil.ignore_patterns("sources", "publish"))
    return DataDir.at(folder)


def places(size: int, count: int, seed: str) -> list[tuple[int, int]]:
    """Draw bytes of a file, and a bit of each."""
    draw = random.Random(seed)
    return [(draw.randrange(size), draw.randrange(8)) for _ in range(count)]


def flipped(path: Path, count: int, seed: str) -> Iterator[tuple[int, int]]:
    """Yield with one bit after the other flipped; the file is whole in the end."""
    whole = path.read_bytes()
    try:
        for at, bit in places(len(whole), count, seed):
            path.write_bytes(mutations.flipped(whole, at, bit))
            yield at, bit
    finally:
        path.write_bytes(whole)


def outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    """Return what `read` gives, or None and the words of its error."""
    try:
        return read(), ""
    except LaionFaceError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", OF_DATA_DIR)
def test_a_flipped_bit_changes_nothing_in_silence(data: DataDir, kind: str) -> None:
    path: Path = getattr(data, kind)(0)
    true, named = OF_DATA_DIR[kind](data), 0
    for at, bit in flipped(path, FLIPS, kind):
        found, said = outcome(lambda: OF_DATA_DIR[kind](data))
        assert found == true or str(path) in said, f"bit {bit} of byte {at}: {said}"
        assert "\n" not in said
        named += bool(said)
    assert named > FLIPS // 4
    assert OF_DATA_DIR[kind](data) == true


class FlippingHost(FolderHost):
    """Flips a bit of the byte `at` the first `times` times that it is sent."""

    at, times = 0, 0

    def answer(self, request: Request) -> Answer:
        answer = super().answer(request)
        start, stop = answer.span or (0, answer.whole)
        if request.method == "GET" and self.times > 0 and start <= self.at < stop:
            self.times -= 1
            return dataclasses.replace(answer, flip=self.at)
        return answer


def pages(path: Path) -> tuple[int, int]:
    """Return where the first column chunk begins, and where the last ends."""
    metadata = pq.read_metadata(path)
    chunks = [metadata.row_group(group).column(0) for group in range(metadata.num_row_groups)]
    last = metadata.row_group(metadata.num_row_groups - 1)
    end = last.column(last.num_columns - 1)
    return min(chunk.data_page_offset for chunk in chunks[1:]), end.data_page_offset + 1


def test_a_bit_that_flips_on_its_way_is_asked_for_again(data: DataDir) -> None:
    path = data.index(0)
    true = pq.read_table(path).to_pylist()
    draw, asked = random.Random(5), 0
    with FolderHost(path.parent) as plain, IndexPart.open(f"{plain.url()}/{path.name}") as part:
        assert part.read(0, part.num_rows).to_pylist() == true
        requests = len(plain.log)
    with FlippingHost(path.parent) as host:
        for _ in range(16):
            host.at, host.times = draw.randrange(*pages(path)), 1
            host.log.clear()
            with IndexPart.open(f"{host.url()}/{path.name}") as part:
                assert part.read(0, part.num_rows).to_pylist() == true
            assert host.times == 0
            asked += len(host.log) > requests
    assert asked >= 12  # The rest are headers' statistics and the like, which nobody needs.


def test_a_bit_that_is_flipped_whenever_it_is_asked_for_is_blamed_on_the_file(data: DataDir) -> None:
    metadata = pq.read_metadata(data.index(0))
    chunk = metadata.row_group(64).column(2)
    with FlippingHost(data.index(0).parent) as host:
        host.at, host.times = chunk.data_page_offset + chunk.total_compressed_size - 2, 100
        address = f"{host.url()}/{data.index(0).name}"
        with IndexPart.open(address) as part, pytest.raises(BadFile, match=f"{data.index(0).name}: found .*CRC"):
            part.read(0, part.num_rows)
    assert host.times == 98


def test_a_footer_that_comes_damaged_is_asked_for_again(data: DataDir) -> None:
    path = data.index(0)
    with FlippingHost(path.parent) as host:
        host.at, host.times = path.stat().st_size - 2, 1  # of the magic bytes at its end
        with IndexPart.open(f"{host.url()}/{path.name}") as part:
            assert part.num_rows == pq.read_metadata(path).num_rows


def test_a_published_index_with_a_flipped_bit(published, tmp_path: Path, capsys) -> None:
    place = tmp_path / "published"
    shutil.copytree(published.folder, place)
    (path,) = place.rglob("part-00000.parquet")

    def read() -> list[Any]:
        with IndexPart.open(find_published(str(place), 0)) as part:
            return part.read(0, part.num_rows).to_pylist()

    true = read()
    for number, (at, bit) in enumerate(flipped(path, FLIPS // 3, "published")):
        found, said = outcome(read)
        assert found == true or path.name in said, f"bit {bit} of byte {at}: {said}"
        if number % 10 == 0:
            assert cli.main(["verify", str(place)]) == 1
            assert path.name in capsys.readouterr().out


# Pictures


@pytest.fixture(params=["xxh3", "sha256"])
def checked_by(request, data: DataDir) -> Iterator[str]:
    """Give the sidecar as this version writes it, and as earlier ones did, without the quick checksum."""
    sidecar = data.sidecar(0)
    whole = sidecar.read_bytes()
    if request.param == "sha256":
        table = pq.read_table(sidecar)
        pq.write_table(table.drop_columns(["xxh3"]), sidecar, row_group_size=100)
    yield request.param
    sidecar.write_bytes(whole)


def test_a_picture_that_has_changed_in_its_tar_is_counted(data: DataDir, checked_by: str) -> None:
    tars = sorted(data.tars(0).rglob("*.tar"))
    whole = {tar: tar.read_bytes() for tar in tars}
    with PartPictures(data.tars(0), data.sidecar(0)) as pictures:
        true = list(pictures.read(0, pictures.num_rows))
    listed = pq.read_table(data.sidecar(0), columns=["tar", "offset", "length"]).to_pylist()
    hit: set[int] = set()
    for tar in tars:
        with tar.open("r+b") as file:
            for at, bit in places(tar.stat().st_size, 40, tar.name):
                file.seek(at)
                file.write(bytes([whole[tar][at] ^ 1 << bit]))
                mine = tar.relative_to(data.tars(0)).as_posix()
                hit |= {
                    row
                    for row, place in enumerate(listed)
                    if place["tar"] == mine and 0 <= at - place["offset"] < place["length"]
                }
    try:
        with PartPictures(data.tars(0), data.sidecar(0)) as pictures:
            found = list(pictures.read(0, pictures.num_rows))
            assert [pictures.get(row) for row in range(len(found))] == found
        how: dict[str, Any] = {"parts": "0", "data_dir": str(data.root), "split": "train", "streaming": True}
        ds = laion_face.load_dataset("20M", **how)
        assert sum(1 for _ in ds) == sum(one.status == "ok" for one in true) - len(hit)
        assert laion_face.report(ds).failed["tar_changed"] == len(hit)
    finally:
        for tar, content in whole.items():
            tar.write_bytes(content)
    assert len(hit) > 10
    assert {row for row, one in enumerate(found) if one != true[row]} == hit
    assert all(found[row] == StoredPicture("tar_changed") for row in hit)


def test_the_checksums_are_of_the_stored_bytes(data: DataDir) -> None:
    with PartPictures(data.tars(0), data.sidecar(0)) as pictures:
        for one in pictures.read(0, pictures.num_rows):
            assert one.data is None or hashlib.sha256(one.data).hexdigest() == one.sha256
    assert pq.read_table(data.sidecar(0), columns=["xxh3"])["xxh3"].drop_null().to_pylist()


# What is made of them


@pytest.mark.parametrize("kind", ["ids", "faces"])
def test_an_index_is_never_made_of_what_has_changed(data: DataDir, kind: str, capsys) -> None:
    path: Path = getattr(data, kind)(0)
    index, true = data.index(0), data.index(0).read_bytes()
    pictures = data.root / "images"
    away = pictures.rename(data.root.parent / "images")  # An index that has pictures is not replaced.
    outcomes = []
    try:
        for _ in flipped(path, 4, f"joined {kind}"):
            index.unlink(missing_ok=True)
            capsys.readouterr()
            words = ["prepare", "20M", "--parts", "0", "--data-dir", str(data.root), "--processes", "1"]
            outcomes.append(cli.main(words))
            said = capsys.readouterr().err
            if outcomes[-1]:
                assert str(path) in said.splitlines()[-1]
                assert "Traceback" not in said
            else:
                assert index.read_bytes() == true
    finally:
        index.write_bytes(true)
        away.rename(pictures)
    assert 1 in outcomes
