"""A removal while the same rows are downloaded: nothing of them is left once both have ended, however they meet."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder.download import adopt, plan
from laion_face_builder.download.part import download_part
from laion_face_builder.errors import StateConflict
from laion_face_builder.files import locked
from laion_face_builder.images.geometry import Resizing
from laion_face_builder.index import copying, joining
from laion_face_builder.index.exclusion import exclusion_of
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import Removals
from laion_face_builder.layout import DataDir
from laion_face_builder.removal.removal_request import RemovalRequest
from laion_face_builder.removal.remove import remove
from laion_face_builder.sandbox import PictureHost, Truth
from laion_face_builder.sandbox.serving import Answer, Request
from laion_face_builder.verify.verify_removed import verify_removed
from tests.download.test_download import OPTIONS, make_host, write_index
from tests.support.taken_down import removal_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "laion_face")
DOWNLOAD = (
    *("download", "20M", "--parts", "0", "--samples-per-shard", "10", "--processes", "1", "--concurrency", "4"),
    *("--allow-private-hosts", "--timeout", "600"),
)


class HeldHost:
    """Gives the first pictures at once, and the others when `gate` is set.

    Attributes:
        waiting: how many were asked for that have to wait.
    """

    def __init__(self, host: PictureHost, at_once: int) -> None:
        self.gate, self._answer, self.waiting = threading.Event(), host.answer, -at_once
        host.answer = self.answer  # type: ignore[method-assign] # the servers of all requests ask for it there

    def answer(self, request: Request) -> Answer:
        self.waiting += 1
        if self.waiting > 0:
            self.gate.wait()
        return self._answer(request)


@contextmanager
def started(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen((*COMMAND, *words), stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.kill()


def lines_for(named: list[Truth]) -> list[str]:
    """Name a third by their ids, one by their addresses, and one by their pictures."""
    by_hash = [hashlib.sha256(one.served).hexdigest() for one in named[2::3]]
    return [*(str(one.sample_id) for one in named[::3]), *(one.url for one in named[1::3]), *by_hash]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_what_is_on_its_way_is_taken_out_once_it_has_come(tmp_path: Path, where: str) -> None:
    host, truths = make_host(150, tmp_path / "none")
    held, data = HeldHost(host, at_once=15), DataDir.at(tmp_path / "data")
    index_in = data if where == "here" else DataDir.at(tmp_path / "other")
    write_index(index_in, truths)
    named = [one for one in truths if one.ok][1::2]
    (tmp_path / "list").write_text("\n".join(lines_for(named)))
    logs, to = [tmp_path / "download.log", tmp_path / "removal.log"], ("--data-dir", str(data.root))
    index = () if where == "here" else ("--index", str(index_in.root))
    with started(logs[0], *DOWNLOAD, *to, *index) as download:
        wait_until(lambda: held.waiting > 0)
        with started(logs[1], "remove", str(tmp_path / "list"), *to) as removal:
            wait_until(lambda: "another process downloads it; waiting for that" in logs[1].read_text())
            held.gate.set()
    host.stop()
    assert (download.returncode, removal.returncode) == (0, 0), [log.read_text() for log in logs]
    everything = exclusion_of([*lines_for(named), *(one.sample_id for one in named)])
    assert list(verify_removed(str(data.root), everything, deep=True).problems) == []


def test_a_download_that_waited_while_a_removal_began_does_not_begin(tmp_path: Path) -> None:
    host, truths = make_host(20, tmp_path / "none")
    data = DataDir.at(tmp_path / "data")
    write_index(data, truths)
    with ThreadPoolExecutor(1) as pool:
        with locked(data.images_fingerprint(0)):
            waiting = pool.submit(download_part, data, 0, OPTIONS)
            removals = removal_of(truths[0].sample_id)
            Removals((replace(removals.done[0], is_done=False),)).write(data)
        with pytest.raises(StateConflict, match="was begun and is not finished"):
            waiting.result(60)
    host.stop()
    assert not host.log


@contextmanager
def held_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Iterator[threading.Event]:
    """Hold whoever calls a function of a module, after what it was given is made, until the block ends."""
    comes, gate, called = threading.Event(), threading.Event(), getattr(module, name)

    def held(*of: Any, **how: Any) -> Any:
        comes.set()
        gate.wait()
        return called(*of, **how)

    monkeypatch.setattr(module, name, held)
    try:
        yield comes
    finally:
        gate.set()


@dataclass
class Maker:
    """Makes the first file of part 0 in `data`, from an index that lies elsewhere."""

    data: DataDir
    other: DataDir

    def index(self) -> None:
        copying.copy_parts(self.data, [0], str(self.other.root))

    def plan(self) -> None:
        with IndexPart.open(self.other.index(0)) as index:
            download_part(self.data, 0, OPTIONS, index=index)

    def joined(self) -> None:
        ids = pq.read_table(self.other.index(0), columns=["sample_id"])["sample_id"]
        table = self.other.root / "mine.parquet"
        pq.write_table(pa.table({"sample_id": ids, "mine": pc.cast(ids, pa.string())}), table)
        given: dict[str, Any] = {"index": str(self.other.root), "join": str(table), "data_dir": self.data.root}
        laion_face.load_dataset("20M", split="train", streaming=True, parts=0, images="none", **given)


@pytest.mark.parametrize(
    ("make", "module", "name"),
    [
        (Maker.index, copying, "write_kept"),
        (Maker.plan, plan, "save_plan"),
        (Maker.joined, joining, "written_whole"),
    ],
    ids=["an index", "a plan", "a joined table"],
)
def test_the_first_file_of_a_part_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Maker], None], module: Any, name: str
) -> None:
    # Until then nothing in DATA_DIR speaks of the part.
    host, truths = make_host(40, tmp_path / "none")
    maker = Maker(DataDir.at(tmp_path / "data"), DataDir.at(tmp_path / "other"))
    write_index(maker.other, truths)
    named = [one for one in truths if one.ok][1::3]
    listed = exclusion_of([one.sample_id for one in named])
    with ThreadPoolExecutor(2) as pool:
        with held_at(monkeypatch, module, name) as comes:
            making = pool.submit(make, maker)
            wait_until(lambda: comes.is_set() or making.done())
            removing = pool.submit(remove, RemovalRequest(maker.data, listed))
            wait_until(lambda: maker.data.removed.exists() or removing.done())
            wait([removing], 1)  # as long as it would take if it did not wait
        making.result(60)
        removing.result(60)
    host.stop()
    assert list(verify_removed(str(maker.data.root), listed, deep=True).problems) == []
    joined = [pq.read_table(path)["mine"].to_pylist() for path in maker.data.root.glob("joined/*/part-*.parquet")]
    assert not {str(one.sample_id) for one in named}.intersection(itertools.chain(*joined))


def test_pictures_of_a_folder_that_is_being_adopted_are_known_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, truths = make_host(60, tmp_path / "none")
    first, data = DataDir.at(tmp_path / "first"), DataDir.at(tmp_path / "data")
    for place in (first, data):
        write_index(place, truths)
    download_part(first, 0, OPTIONS)
    host.stop()
    named = [one for one in truths if one.ok][:3]
    listed = exclusion_of([hashlib.sha256(one.served).hexdigest() for one in named])
    adopts = partial(adopt.adopted, max_pixels=10**9, resizing=Resizing())
    with ThreadPoolExecutor(2) as pool:
        with held_at(monkeypatch, adopt, "write_sidecar") as comes:
            adopting = pool.submit(adopts, first.tars(0).parent, data, 0, None)
            wait_until(lambda: comes.is_set() or adopting.done())
            removing = pool.submit(remove, RemovalRequest(data, listed))
            wait_until(lambda: data.removed.exists() or removing.done())
            wait([removing], 1)
        adopting.result(60)
        removing.result(60)
    left = set(pq.read_table(data.index(0), columns=["sample_id"])["sample_id"].to_pylist())
    assert left == {one.sample_id for one in truths} - {one.sample_id for one in named}
