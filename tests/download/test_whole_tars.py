"""The tars of a part, read by webdataset as they lie there: every picture once and none broken, whatever happened."""

from __future__ import annotations

import copy
import gc
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from laion_face_builder.download.part import PartResult, download_part
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.shard_files import ShardFiles
from laion_face_builder.files import put_in_place
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Answer
from laion_face_builder.verify.verify_data import picture_problems
from tests.download.test_download import OPTIONS as QUICK
from tests.download.test_download import make_host, stored, write_index
from tests.support.nested import but

#: No picture is slow here; the machine may be.
OPTIONS = but(QUICK, timeout=60.0)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # webdataset leaves the tars to be closed by the garbage collector
]


def rows_read(data: DataDir) -> list[int]:
    """Return the index rows of all samples that webdataset finds in the part's tars, decoded."""
    import webdataset

    tars = sorted(map(str, data.tars(0).rglob("*.tar")))
    rows = [sample["json"]["row"] for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("pil")]
    gc.collect()
    return sorted(rows)


def usable(data: DataDir) -> list[int]:
    return [row for row, one in enumerate(stored(data)) if one.status == "ok"]


class Healed:
    """A part of three shards, one of whose samples came with a retry round."""

    def __init__(self, root: Path) -> None:
        self.data = DataDir.at(root / "data")
        self.host, truths = make_host(300, root / "none", failing=0, twisted=0)
        self.truths = truths[:50]
        self.late = self.truths[25]
        self.answer = self.host.answers.pop(self.late.path)
        write_index(self.data, self.truths)
        assert self.download().failures == {"http_404": 1}
        self.host.answers[self.late.path] = self.answer
        self.all = self.download(retry_failed=1)
        assert not self.all.failures

    def download(self, retry_failed: int = 0) -> PartResult:
        return download_part(self.data, 0, OPTIONS, retry_failed=retry_failed)

    def lose(self, *names: str) -> None:
        for name in names:
            (self.data.tars(0) / name).unlink()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Healed]:
    made = Healed(tmp_path_factory.mktemp("healed"))
    yield made
    made.host.stop()


@pytest.fixture
def healed(story: Healed, tmp_path: Path) -> Iterator[Healed]:
    """Copy the part for each test; the host is one for all."""
    mine = copy.copy(story)
    mine.data = DataDir.at(tmp_path / "data")
    shutil.copytree(story.data.root, mine.data.root)
    yield mine
    story.host.answers[story.late.path] = story.answer


@pytest.mark.parametrize("lost", [["00001.tar"], ["00001_stats.json", "retry-1/00000.tar"], ["retry-1/00000.tar"]])
def test_a_shard_that_is_made_again_repeats_nothing_of_later_rounds(healed: Healed, lost: list[str]) -> None:
    before = stored(healed.data)
    asked = healed.host.count(healed.late.path)
    healed.lose(*lost)
    assert healed.download() == healed.all
    assert rows_read(healed.data) == usable(healed.data) == [*range(len(healed.truths))]
    assert [one.data for one in stored(healed.data)] == [one.data for one in before]
    # It is fetched if it was lost, and once.
    assert healed.host.count(healed.late.path) == asked + ("retry-1/00000.tar" in lost)


def test_what_no_round_has_any_more_is_asked_for_again(healed: Healed) -> None:
    # A shard that left a sample to a later round takes it back when it is made again without that round.
    healed.lose("00001.tar")
    healed.download()
    healed.lose("retry-1/00000.tar", "00001.tar")
    healed.host.answers[healed.late.path] = Answer(status=410)
    assert healed.download().failures == {"http_410": 1}
    healed.host.answers[healed.late.path] = healed.answer
    assert healed.download(retry_failed=2) == replace(healed.all, rounds=2)
    assert rows_read(healed.data) == usable(healed.data) == [*range(len(healed.truths))]


#: What an earlier version kept of hosts that sent something else.
BROKEN = (b"<html>gone</html>", b"\xff\xd8\xff half a JPEG")


class Earlier:
    """A part as an earlier version left it: broken pictures among img2dataset's successes, known to the sidecar alone.

    And one sample twice, since its shard was lost after a retry round had got it.
    """

    def __init__(self, healed: Healed) -> None:
        self.data = healed.data
        self.files = PartFiles(self.data, 0)
        rows = [row for row in (0, 3, 21) if row != healed.truths.index(healed.late)]
        self.changed = dict(zip(rows, (*BROKEN, BROKEN[0]), strict=True)) | {25: healed.late.served}
        for shard in (0, 1):
            self._make(ShardFiles(self.data.tars(0), shard))

    def _make(self, shard: ShardFiles) -> None:
        table = pq.read_table(shard.parquet)
        keys = dict(zip(table["row"].to_pylist(), table["key"].to_pylist(), strict=True))
        mine = {keys[row]: (row, data) for row, data in self.changed.items() if row in keys}
        old = shard.tar.rename(shard.tar.with_suffix(".old"))
        with tarfile.open(old) as read, tarfile.open(shard.tar, "w") as write:
            names = {f"{key}.jpg" for key in mine}
            for member in read:
                if member.name not in names:
                    write.addfile(member, read.extractfile(member))
            for key, (row, data) in mine.items():
                for name, content in ((f"{key}.jpg", data), (f"{key}.json", json.dumps({"row": row}).encode())):
                    if name.endswith(".jpg") or row == 25:
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        write.addfile(member, io.BytesIO(content))
        old.unlink()
        message = pc.if_else(pc.equal(table["row"], 25), None, table["error_message"])
        table = table.set_column(table.schema.get_field_index("error_message"), "error_message", message)
        pq.write_table(table, shard.parquet)
        stats = json.loads(shard.stats.read_text())
        shard.stats.write_text(json.dumps(stats | {"successes": stats["count"]}))


@pytest.fixture
def earlier(healed: Healed) -> Earlier:
    made = Earlier(healed)
    result = healed.download()
    assert (result.ok, result.failures.total()) == (len(healed.truths) - 3, 3)
    return made


def test_tars_of_an_earlier_version_are_cleaned_when_that_is_asked_for(healed: Healed, earlier: Earlier) -> None:
    data, asked, before = healed.data, len(healed.host.log), stored(healed.data)
    said = [line for line in picture_problems(data, 0, deep=True) if "--clean-tars" in line]
    assert len(said) == 1
    assert "hold 4 pictures more" in said[0]
    result = healed.download()
    assert download_part(data, 0, OPTIONS, clean=True) == result
    assert len(healed.host.log) == asked
    assert rows_read(data) == usable(data) == sorted({*range(len(healed.truths))} - {0, 3, 21})
    assert [(one.status, one.data) for one in stored(data)] == [(one.status, one.data) for one in before]
    assert not list(picture_problems(data, 0, deep=True))
    times = {path: path.stat().st_mtime_ns for path in data.tars(0).rglob("*.tar")}
    assert download_part(data, 0, OPTIONS, clean=True) == result
    assert {path: path.stat().st_mtime_ns for path in data.tars(0).rglob("*.tar")} == times


@pytest.mark.parametrize("moved", [1, 2])
def test_a_kill_while_a_clean_shard_goes_into_its_place_loses_nothing(
    moved: int, healed: Healed, earlier: Earlier, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, asked, result, before = healed.data, len(healed.host.log), healed.download(), stored(healed.data)
    calls: list[Path] = []

    def killed(source: Path, target: Path) -> None:
        if len(calls) == moved:
            raise KeyboardInterrupt
        calls.append(source)
        put_in_place(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("laion_face_builder.download.rewriting.put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            download_part(data, 0, OPTIONS, clean=True)
    assert not data.sidecar(0).exists()
    assert healed.download() == result
    assert len(healed.host.log) == asked
    assert [(one.status, one.data) for one in stored(data)] == [(one.status, one.data) for one in before]
