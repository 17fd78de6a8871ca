"""The tars of a part, read by webdataset as they lie there: every picture once and none broken, whatever happened."""

from __future__ import annotations

import copy
import gc
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_download import OPTIONS as QUICK
from test_download import make_host, stored, write_index

from laion_face_builder.download.part import PartResult, download_part
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Answer

#: No picture is slow here; the machine may be.
OPTIONS = replace(QUICK, timeout=60.0)
pytestmark = pytest.mark.filterwarnings("ignore")  # webdataset leaves the tars to be closed by the garbage collector


def rows_read(data: DataDir) -> list[int]:
    """The index rows of all samples that webdataset finds in the part's tars, decoded."""
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
    """A copy of the part for each test; the host is one for all."""
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
    """A shard that left a sample to a later round takes it back when it is made again without that round."""
    healed.lose("00001.tar")
    healed.download()
    healed.lose("retry-1/00000.tar", "00001.tar")
    healed.host.answers[healed.late.path] = Answer(status=410)
    assert healed.download().failures == {"http_410": 1}
    healed.host.answers[healed.late.path] = healed.answer
    assert healed.download(retry_failed=2) == replace(healed.all, rounds=2)
    assert rows_read(healed.data) == usable(healed.data) == [*range(len(healed.truths))]
