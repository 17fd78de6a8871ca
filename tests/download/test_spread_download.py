"""`download` to an address: the files that a folder has, whoever dies, and nothing asked for twice."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from laion_face_builder import cli
from laion_face_builder.download import cluster
from laion_face_builder.download.cluster import Cluster
from laion_face_builder.download.part import download_part
from laion_face_builder.download.shard_worker import make_shard
from laion_face_builder.download.task import ShardTask
from laion_face_builder.download.workers import Died, Done, Failed
from laion_face_builder.errors import DiskError, NotPrepared, OptionError, StateConflict
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import PictureHost, Truth
from laion_face_builder.sources import data_store
from tests.download.test_download import NAMES, OPTIONS, make_host, stored, write_index
from tests.index.test_spread_prepare import kill_executor
from tests.support.nested import but

pytestmark = pytest.mark.slow

ROWS, SHARDS = 150, 3
#: The worker that finds this folder dies, and leaves a file there.
DEADLY = "LAION_FACE_TEST_DEADLY"


@dataclass
class Web:
    """A host, what it has, and a folder with an index of it."""

    host: PictureHost
    truths: list[Truth]
    folder: DataDir

    @property
    def address(self) -> DataDir:
        return DataDir.kept_at(self.folder.root.as_uri())

    @property
    def asked(self) -> Counter[str]:
        return Counter(request.path for request in self.host.log)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with web_of(tmp_path) as found:
        yield found


class web_of:
    """A context manager: a host that is up, and an index of what it has in `folder`/there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Web:
        (self._folder / "forbidden.png").write_bytes(b"\x89PNG")
        self._host, truths = make_host(ROWS, self._folder / "forbidden.png")
        web = Web(self._host, truths, DataDir.at(self._folder / "there"))
        write_index(web.folder, truths)
        return web

    def __exit__(self, *_: object) -> None:
        self._host.stop()


def require_all(web: Web, folder: DataDir) -> None:
    """Require that each row has the host's own bytes, or the reason that its host gave; and nothing else lies there."""
    for truth, found in zip(web.truths, stored(folder), strict=True):
        assert found.status in NAMES[truth.fate], truth
        assert found.data == (truth.served if truth.ok else None), truth
    shards = {f"{shard:05d}{ending}" for shard in range(SHARDS) for ending in (".tar", ".parquet", "_stats.json")}
    assert {path.name for path in folder.tars(0).iterdir()} == shards


def deadly_do(task: ShardTask) -> object:
    """Do a task as a worker does, but die once at shard 1, with the tar sent and nothing else."""
    mark = Path(os.environ[DEADLY]) / "sent"
    if task.place.shard == 1 and not mark.exists():
        real = data_store.send

        def send(data: DataDir, path: Path) -> None:
            real(data, path)
            mark.touch()
            kill_executor()

        data_store.send = send
    return cluster._do(task)


def require_one_death(web: Web) -> None:
    """Require that all of shard 1 was asked for twice, and all others once."""
    often = {truth.path: count for truth in web.truths if truth.ok and (count := web.asked[truth.path]) != 1}
    samples = OPTIONS.samples_per_shard
    assert often == {truth.path: 2 for truth in web.truths[samples : 2 * samples] if truth.ok}


def tasks_of(web: Web, monkeypatch: pytest.MonkeyPatch) -> list[ShardTask]:
    """Return what a download has its workers do; it is not done."""
    found: list[ShardTask] = []

    def note(task: ShardTask, report: object) -> None:
        found.append(task)
        raise OptionError("it is enough to know them")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.Cluster, "start", lambda self, call, alone=False: note(call, None))
        patch.setattr("laion_face_builder.download.round.Workers", lambda *a, **k: Cluster("processes", 1))
        with pytest.raises(OptionError):
            download_part(web.address, 0, OPTIONS)
    return found


def test_an_address_has_what_a_folder_has(web: Web) -> None:
    result = download_part(web.address, 0, OPTIONS)
    require_all(web, web.folder)
    assert result.ok == sum(truth.ok for truth in web.truths)
    asked = len(web.host.log)
    assert download_part(web.address, 0, OPTIONS) == result
    assert len(web.host.log) == asked, "it was there"
    assert download_part(web.folder, 0, OPTIONS) == result, "copied to a folder it goes on there"
    assert len(web.host.log) == asked


def test_what_is_lost_at_an_address_is_made_again_and_no_more(web: Web) -> None:
    download_part(web.address, 0, OPTIONS)
    (web.folder.tars(0) / "00000_stats.json").unlink()
    tar = web.folder.tars(0) / "00001.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    before = web.asked
    download_part(web.address, 0, OPTIONS)
    require_all(web, web.folder)
    again = {truth.path for truth in web.truths if truth.ok and web.asked[truth.path] > before[truth.path]}
    assert again == {truth.path for truth in web.truths[: 2 * OPTIONS.samples_per_shard] if truth.ok}


def test_other_bounds_look_through_what_is_at_an_address(web: Web) -> None:
    download_part(web.address, 0, OPTIONS)
    asked = len(web.host.log)
    result = download_part(web.address, 0, but(OPTIONS, max_pixels=1))
    assert (result.ok, len(web.host.log)) == (0, asked)
    assert result.failures["too_many_pixels"] == sum(truth.ok for truth in web.truths)


def test_tars_at_an_address_are_not_cleaned(web: Web) -> None:
    with pytest.raises(OptionError, match="copy them here first"):
        download_part(web.address, 0, OPTIONS, clean=True)
    assert not web.host.log


def test_a_retry_at_an_address(web: Web) -> None:
    first = download_part(web.address, 0, OPTIONS)
    good = next(truth for truth in web.truths if truth.ok)
    late = [truth for truth in web.truths if truth.fate == "http_500"]
    for truth in late:
        web.host.answers[truth.path] = web.host.answers[good.path]
    second = download_part(web.address, 0, OPTIONS, retry_failed=1)
    assert (second.ok, second.rounds) == (first.ok + len(late), 1)
    assert (web.folder.tars(0) / "retry-1" / "00000.tar").exists() == bool(late)


def test_a_worker_that_dies_while_it_sends_leaves_a_shard_that_is_made_again(web: Web, monkeypatch) -> None:
    (task, *_) = tasks_of(web, monkeypatch)
    real, sent = data_store.send, []

    def send(data: DataDir, path: Path) -> None:
        real(data, path)
        sent.append(path.name)
        if len(sent) == 2:
            raise DiskError("it ended here")

    with monkeypatch.context() as patch:
        patch.setattr(data_store, "send", send)
        with pytest.raises(DiskError):
            make_shard(task)
    assert sent == ["00000.tar", "00000.parquet"]
    assert not task.place.is_finished
    result = make_shard(task)
    assert task.place.is_finished
    asked = len(web.host.log)
    assert make_shard(task) == result
    assert len(web.host.log) == asked, "its files say that it is done"


def test_what_becomes_of_calls(tmp_path: Path) -> None:
    calls = [Call(name) for name in ("give", "refuse", "stumble", "die")]
    cluster: Cluster[Call] = Cluster("processes", 2)
    with cluster as crew:
        events: dict[Call, Any] = {}
        while len(events) < len(calls):
            for call in calls:
                if call not in events and call not in crew._calls.values() and crew.has_place():
                    crew.start(call, alone=True)
            events |= {event.call: event for event in crew.events(1)}
        assert not crew.is_busy
    kinds = [type(events[call]) for call in calls]
    assert kinds == [Done, Failed, Died, Died]
    assert events[calls[0]].value == "give"
    assert isinstance(events[calls[1]].error, StateConflict)
    assert (events[calls[2]].said, "SIGKILL" in events[calls[3]].said) == ("ValueError: stumble", True)


@dataclass(frozen=True)
class Call:
    """What a worker may meet."""

    name: str

    def run(self, report: object) -> str:
        if self.name == "refuse":
            raise StateConflict(self.name)
        if self.name == "stumble":
            raise ValueError(self.name)
        if self.name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.name


def test_the_command_takes_addresses(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    address = web.folder.root.as_uri()
    command = ["download", "20M", "--parts", "0", "--data-dir", address, "--allow-private-hosts", "--format", "json"]
    command += ["--samples-per-shard", str(OPTIONS.samples_per_shard), "--timeout", "3", "--retries", "0"]
    assert cli.main([*command, "--dry-run"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert (forecast["disks"], [step["deed"] for step in forecast["steps"]]) == ([], ["made"])
    assert not web.folder.tars(0).exists()
    assert cli.main([*command, "--processes", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] == sum(truth.ok for truth in web.truths)
    require_all(web, web.folder)
    assert cli.main([*command, "--dry-run"]) == 0
    assert [step["deed"] for step in json.loads(capsys.readouterr().out)["steps"]] == ["used as it is"]


def test_what_cannot_work_at_an_address_is_said(tmp_path: Path) -> None:
    nothing = DataDir.kept_at((tmp_path / "nothing").as_uri())
    with pytest.raises(NotPrepared, match=r"file://.*part-00000.parquet: there is no such index"):
        download_part(nothing, 0, OPTIONS)
    with pytest.raises(OptionError, match="distributor='slurm': expected one of processes, pyspark, ray"):
        replace(OPTIONS, distributor="slurm")
