"""Downloads from a real host on loopback: killed, damaged, retried, with pictures that kill, without a network.

img2dataset takes seconds to be imported, so one story is lived through once and each test looks at a moment of it.
"""

from __future__ import annotations

import base64
import dataclasses
import gc
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_face_builder.download.part import DownloadOptions, PartResult, download_part
from laion_face_builder.download.plan import CARRIED, PartFiles, listed
from laion_face_builder.download.round import Attempts, Sight, Stage
from laion_face_builder.download.shard_files import read_members, remove_unfinished, shard_sizes
from laion_face_builder.download.sidecar import sidecar_made_from
from laion_face_builder.download.tar_reader import PartPictures, StoredPicture
from laion_face_builder.download.task import ShardResult
from laion_face_builder.download.workers import Workers, environment
from laion_face_builder.errors import DownloadError, NetworkOutage, NotPrepared, OptionError, StateConflict
from laion_face_builder.files import locked, make_fingerprint, stamped
from laion_face_builder.images.reasons import FINAL, proxy_was_gone, short_name
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.progress.base import Bar
from laion_face_builder.sandbox import Answer, PictureHost, SandboxSpec, Truth, make_content
from laion_face_builder.sandbox.serving import Request
from laion_face_builder.schema import INDEX
from tests.support.nested import but
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SHARD = 20
OPTIONS = but(
    DownloadOptions(),
    processes_count=1,
    concurrency=8,
    samples_per_shard=SHARD,
    timeout=3.0,
    retries=0,
    allow_private_hosts=True,
)
#: What each fate of the sandbox is called.
NAMES = {
    "ok": {"ok"},
    "html": {"not_an_image"},
    "opted_out": {"opt_out"},
    "truncated": {"truncated"},
    "cut": {"reset", "incomplete"},
    "empty": {"empty"},
    "other_scheme": {"bad_redirect"},
    "ftp_url": {"bad_url"},
    "file_url": {"bad_url"},
    "http_404": {"http_404"},
    "http_410": {"http_410"},
    "http_500": {"http_500"},
}
SCRIPT = """
import base64, pickle, sys
from laion_face_builder.download.part import download_part
from laion_face_builder.layout import DataDir
download_part(DataDir.at(sys.argv[1]), 0, pickle.loads(base64.b64decode(sys.argv[2])))
"""


def write_index(data: DataDir, truths: list[Truth], **fields: list[Any]) -> None:
    rows = [
        {
            **{name: getattr(truth, name) for name in INDEX.names if hasattr(truth, name)},
            "faces": [face.as_dict() for face in truth.faces],
            "n_faces": len(truth.faces),
        }
        for truth in truths
    ]
    for name, values in fields.items():
        rows = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
    schema = stamped(INDEX, make_fingerprint("index", part=0))
    table = pa.Table.from_pylist(rows, schema=schema)
    data.index(0).parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(data.index(0), schema) as writer:
        for start, stop in row_group_bounds(len(rows)):
            writer.write_table(table.slice(start, stop - start))


def make_host(rows: int, forbidden: Path, **spec: Any) -> tuple[PictureHost, list[Truth]]:
    host = PictureHost().start()
    content = make_content(SandboxSpec(parts=(0,), rows=rows, slow=0.1, **spec), [host.url()], str(forbidden))
    host.answers.update(content.answers)
    return host, list(content.truth)


def children(mark: str) -> list[int]:
    """List our child processes whose command line has `mark` in it."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(pid) for pid, parent, *command in rows if int(parent) == os.getpid() and mark in "".join(command)]


def stored(data: DataDir) -> list[StoredPicture]:
    with PartPictures.open(data, 0) as pictures:
        return list(pictures.read(0, pictures.num_rows))


@dataclasses.dataclass
class Story:
    """A download: what was seen on the way, and where it ended."""

    data: DataDir
    host: PictureHost
    truths: list[Truth]
    hanging: Truth
    seen: dict[str, Any]

    @property
    def files(self) -> PartFiles:
        return PartFiles(self.data, 0)

    @property
    def folder(self) -> Path:
        return self.data.tars(0)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    root = tmp_path_factory.mktemp("download")
    (root / "forbidden.png").write_bytes(b"\x89PNG")
    host, truths = make_host(490, root / "forbidden.png")
    hanging = next(truth for truth in truths if truth.ok and not truth.twist)
    story = Story(DataDir.at(root / "data"), host, truths, hanging, {})
    write_index(story.data, truths)
    try:
        _kill_the_parent(story)
        _damage(story)
        _resume_and_kill_a_worker(story)
        _retry(story)
        yield story
    finally:
        host.stop()


def _kill_the_parent(story: Story) -> None:
    story.host.plant("/", calls=range(1, 10_000), delay=0.5)
    log = (story.data.root / "parent.log").open("wb")
    arguments = [str(story.data.root), base64.b64encode(pickle.dumps(OPTIONS)).decode()]
    with log, subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=log) as parent:
        finished = [story.folder / f"0000{shard}_stats.json" for shard in (0, 1)]  # made side by side
        wait_until(lambda: all(map(Path.exists, finished)) and any(story.folder.glob("_tmp/*/*.tar")))
        parent.kill()
    with Workers(0, lock=story.files.writers):  # waits for the last of them
        pass
    story.seen["tars"] = count_of(story, ".tar")
    story.seen["stats"] = count_of(story, "_stats.json")
    story.seen["asked"] = len(story.host.log)
    story.host.faults.clear()


def count_of(story: Story, ending: str) -> int:
    return len([*story.folder.glob(f"*{ending}")])


def _damage(story: Story) -> None:
    """Cut a finished tar to half beside its stats; lay out the stump of a tar, lone stats and a partial file."""
    story.seen["asked_later"] = len(story.host.log)
    tar = story.folder / "00000.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    (story.folder / "00006.tar").write_bytes(tar.read_bytes()[:5000])
    (story.folder / "00007_stats.json").write_text('{"count": 20, "successes": 20}')
    (story.files.checked / ".0-00000.parquet.0.partial").write_bytes(b"half")
    story.seen["kept"] = (story.folder / "00001.tar").stat().st_mtime_ns


def _resume_and_kill_a_worker(story: Story) -> None:
    story.host.plant(story.hanging.path, calls=range(1, 10_000), delay=30)
    killed: list[int] = []

    asked = story.host.count(story.hanging.path)

    def kill() -> None:
        # While it waits for the host that hangs it is surely there to be killed.
        wait_until(lambda: story.host.count(story.hanging.path) > asked and children("download.worker"))
        killed.extend(children("download.worker"))
        os.kill(killed[0], signal.SIGKILL)

    (story.folder / "00002_stats.json").unlink(missing_ok=True)
    killer = threading.Thread(target=kill)
    killer.start()
    story.seen["first"] = download_part(story.data, 0, OPTIONS)
    killer.join()
    story.seen["killed"] = killed
    story.seen["stored"] = stored(story.data)
    story.seen["made_from"] = sidecar_made_from(story.data.sidecar(0))
    story.seen["counts"] = Counter(request.path for request in story.host.log)


def _retry(story: Story) -> None:
    """Have the hosts answer as they should, and retry what failed."""
    story.host.faults.clear()
    good = next(truth for truth in story.truths if truth.ok)
    for truth in story.truths:
        if truth.fate in ("http_404", "opted_out"):
            story.host.answers[truth.path] = Answer(body=good.served)
    story.seen["good"] = good
    story.seen["second"] = download_part(story.data, 0, OPTIONS, retry_failed=1)
    story.seen["retried"] = stored(story.data)
    story.seen["after"] = Counter(request.path for request in story.host.log)


def test_killed_parents_leave_no_processes(story: Story) -> None:
    assert 1 <= story.seen["stats"] <= story.seen["tars"]
    assert story.seen["asked"] == story.seen["asked_later"] < len(story.truths)


def test_a_killed_worker_costs_its_shards_alone(story: Story) -> None:
    assert len(story.seen["killed"]) == 1
    assert not children("download.worker")


def test_the_result_is_as_without_kills(story: Story) -> None:
    # Law 3 for pictures: each row has the host's own bytes, or the reason that its host gave.
    for truth, found in zip(story.truths, story.seen["stored"], strict=True):
        if truth is story.hanging:
            assert found == StoredPicture("timeout")
        else:
            assert found.status in NAMES[truth.fate], truth
            assert found.data == (truth.served if truth.ok else None), truth
            assert not truth.ok or (found.width, found.height) == truth.served_size


def test_results_add_up(story: Story) -> None:
    first: PartResult = story.seen["first"]
    ok = [truth for truth in story.truths if truth.ok and truth is not story.hanging]
    assert (first.rows, first.ok, first.rounds, first.filtered) == (len(story.truths), len(ok), 0, 0)
    assert first.bytes == sum(len(truth.served) for truth in ok)
    assert first.ok + sum(first.failures.values()) == first.rows
    assert first.success_rate == first.ok / first.rows
    assert first.failures["timeout"] == 1


def test_whole_shards_are_kept_and_half_written_ones_made_again(story: Story) -> None:
    assert (story.folder / "00001.tar").stat().st_mtime_ns == story.seen["kept"]
    for tar in story.folder.glob("*.tar"):
        assert read_members(tar)
    samples = sum(json.loads(path.read_text())["count"] for path in story.folder.glob("*_stats.json"))
    assert samples == pc.sum(pc.is_null(pq.read_table(story.files.plan)["status"])).as_py()
    assert not [*story.files.checked.glob(".*.partial")]
    assert not (story.folder / "_tmp").exists()


def test_files_and_ftp_are_never_read(story: Story) -> None:
    schemes = {truth.fate: truth.url.partition(":")[0] for truth in story.truths}
    assert (schemes["file_url"], schemes["ftp_url"], schemes["other_scheme"]) == ("file", "ftp", "http")
    for path in story.folder.glob("*.parquet"):
        assert not any(url.startswith(("file", "ftp")) for url in pq.read_table(path)["url"].to_pylist())
    ends = {truth.fate: story.seen["retried"][truth.row].status for truth in story.truths}
    assert (ends["file_url"], ends["ftp_url"], ends["other_scheme"]) == ("bad_url", "bad_url", "bad_redirect")


def test_the_tars_are_useful_by_themselves(story: Story) -> None:
    # Faces and the rest travel in each sample's .json, so that webdataset users need nothing else.
    seen = 0
    for path in story.folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for name in [name for name in tar.getnames() if name.endswith(".json")]:
                values = json.loads(tar.extractfile(name).read())
                truth = story.truths[values["row"]]
                assert values["faces"] == [face.as_dict() for face in truth.faces]
                for key in ("sample_id", "part", "url", "caption", "license", "nsfw", "similarity"):
                    assert values[key] == getattr(truth, key)
                assert (values["laion_width"], values["laion_height"]) == (truth.width, truth.height)
                caption = tar.extractfile(name.replace(".json", ".txt")).read().decode()
                assert caption == (truth.caption or "")
                seen += 1
    assert seen >= story.seen["first"].ok


def test_a_retry_asks_only_for_what_may_still_come(story: Story) -> None:
    asked = story.seen["after"] - story.seen["counts"]
    first = {truth.path: found for truth, found in zip(story.truths, story.seen["stored"], strict=True)}
    for path in asked:
        assert path not in first or first[path].status not in {"ok", *FINAL}
    second: PartResult = story.seen["second"]
    gained = sum(truth.fate == "http_404" for truth in story.truths) + 1
    assert second.ok == story.seen["first"].ok + gained
    for truth, before, after in zip(story.truths, story.seen["stored"], story.seen["retried"], strict=True):
        if truth.fate == "http_404":
            assert after.data == story.seen["good"].served
        elif truth is story.hanging:
            assert after.data == truth.served
        elif truth.fate == "opted_out":
            assert after.status == "opt_out"
        else:
            assert after.data == before.data


def test_nothing_is_done_twice(story: Story) -> None:
    requests, written = len(story.host.log), story.data.sidecar(0).stat().st_mtime_ns
    for rounds in (0, 1):
        assert download_part(story.data, 0, OPTIONS, retry_failed=rounds) == story.seen["second"]
    assert (len(story.host.log), story.data.sidecar(0).stat().st_mtime_ns) == (requests, written)


def test_other_transport_settings_are_no_conflict_other_contents_are(story: Story) -> None:
    other = but(OPTIONS, timeout=99, retries=5, per_host=1, user_agent_token="x", concurrency=1)
    assert download_part(story.data, 0, other) == story.seen["second"]
    with pytest.raises(StateConflict, match="samples_per_shard: 20 on disk, 30 now"):
        download_part(story.data, 0, but(OPTIONS, samples_per_shard=30))
    with pytest.raises(StateConflict, match=r"filters: \{\} on disk, \{'even': True\} now"):
        download_part(story.data, 0, OPTIONS, Even())


def test_a_second_process_waits_and_says_so(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    results: list[PartResult] = []
    second = threading.Thread(target=lambda: results.append(download_part(story.data, 0, OPTIONS)))
    with caplog.at_level(logging.WARNING), locked(story.data.images_fingerprint(0)):
        second.start()
        wait_until(lambda: "another process downloads it" in caplog.text)
        assert not results
    second.join()
    assert results == [story.seen["second"]]


class Even:
    """Passes every other row, as `filters.Filters` would pass some."""

    columns = ("sample_id",)

    def mask(self, table: pa.Table) -> np.ndarray:
        assert table.column_names == INDEX.names
        return table["sample_id"].to_numpy() % 2 == 0

    def as_dict(self) -> dict[str, Any]:
        return {"even": True}


def test_private_addresses_are_refused_and_filtered_rows_not_asked_for(tmp_path: Path) -> None:
    # Law 7: all that can be served here is loopback, and nothing reaches it.
    host, truths = make_host(36, tmp_path / "none", failing=0, twisted=0)
    data = DataDir.at(tmp_path / "data")
    urls = [truth.url if truth.row % 3 else truth.url.replace("127.0.0.1", "localhost") for truth in truths]
    write_index(data, truths, url=urls)
    result = download_part(data, 0, but(OPTIONS, allow_private_hosts=False), Even())
    host.stop()
    assert host.log == []
    even = [truth.sample_id % 2 == 0 for truth in truths]
    assert [one.status for one in stored(data)] == ["private_address" if kept else "filtered" for kept in even]
    assert (result.filtered, result.failures) == (even.count(False), {"private_address": even.count(True)})


@pytest.mark.parametrize("name", ["localhost", "no-such-name.invalid"])
def test_without_a_network_nothing_counts_as_failed(name: str, tmp_path: Path) -> None:
    # Wrong DNS gives private addresses, no DNS none at all. The same command goes on once names are found.
    host, truths = make_host(40, tmp_path / "none", failing=0, twisted=0)
    data = DataDir.at(tmp_path / "data")
    write_index(data, truths, url=[truth.url.replace("127.0.0.1", name) for truth in truths])
    alone = but(OPTIONS, allow_private_hosts=False)
    with pytest.raises(NetworkOutage, match="run the same command"):
        download_part(data, 0, alone)
    assert not data.sidecar(0).exists()
    assert not [*data.tars(0).glob("*.*")]
    if name == "localhost":
        assert download_part(data, 0, OPTIONS).ok == len(truths)
    host.stop()


def test_parts_without_anything_to_fetch(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path)
    with pytest.raises(NotPrepared, match="laion-face prepare"):
        download_part(data, 0)
    host, truths = make_host(18, tmp_path / "none")
    host.stop()
    write_index(data, truths, url=["ftp://a.example/b.jpg"] * len(truths))
    expected = Counter({"bad_url": len(truths)})
    assert download_part(data, 0, retry_failed=2) == PartResult(len(truths), 0, 0, expected, 0, 0)
    assert {one.status for one in stored(data)} == {"bad_url"}


@pytest.fixture
def small(tmp_path: Path) -> DataDir:
    """Make an index of a few rows whose host has gone."""
    host, truths = make_host(18, tmp_path / "none")
    host.stop()
    data = DataDir.at(tmp_path)
    write_index(data, truths)
    return data


def test_a_folder_of_unknown_making_is_left_alone(small: DataDir) -> None:
    small.tars(0).mkdir(parents=True)
    (small.tars(0) / "00000.tar").write_bytes(b"days of work")
    with pytest.raises(StateConflict, match="images=FOLDER"):
        download_part(small, 0)
    assert (small.tars(0) / "00000.tar").read_bytes() == b"days of work"


def test_what_cannot_work_is_said_at_once(small: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laion_face_builder.download.part._BYTES_A_SAMPLE", 1 << 60)
    with pytest.raises(DownloadError, match="free"):
        download_part(small, 0)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    with pytest.raises(OptionError, match="HTTPS_PROXY"):
        download_part(small, 0)
    for wrong in ({"timeout": 0}, {"samples_per_shard": 0}, {"retries": -1}, {"per_host": float("nan")}):
        with pytest.raises(OptionError):
            but(DownloadOptions(), **wrong)


def test_workers_are_not_told_what_they_need_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "no_proxy", "all_proxy", "Https_Proxy", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in environment().values()
    assert environment(keeps_token=True)["HF_TOKEN"] == "secret"
    assert environment()["PATH"] == os.environ["PATH"]


class Deadly(PictureHost):
    """Kills every worker that asks for one of some pictures, as a picture would that its decoder cannot survive."""

    paths: frozenset[str] = frozenset()

    def answer(self, request: Request) -> Answer:
        if request.path in self.paths:
            for worker in children("download.worker"):
                os.kill(worker, signal.SIGKILL)
        return super().answer(request)


def test_a_picture_that_kills_is_found_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataDir.at(tmp_path / "data")
    with Deadly() as host:
        content = make_content(SandboxSpec(parts=(0,), rows=80, failing=0, twisted=0), [host.url()], "")
        host.answers.update(content.answers)
        truths = list(content.truth)
        host.paths = frozenset(truths[row].path for row in (4, 11))
        write_index(data, truths)
        with caplog.at_level(logging.WARNING):
            result = download_part(data, 0, but(OPTIONS, samples_per_shard=6))
    assert result.failures == {"crashed_decoder": 2}
    assert [row for row, one in enumerate(stored(data)) if one.status != "ok"] == [4, 11]
    assert "sample 4 of it ends every process" in caplog.text
    asked = len(host.log)
    assert download_part(data, 0, but(OPTIONS, samples_per_shard=6), retry_failed=1).rounds == 0
    assert len(host.log) == asked


class Patient(PictureHost):
    """Answers for one picture once every other one was asked for."""

    path, others = "", 0

    def answer(self, request: Request) -> Answer:
        if request.path == self.path:
            wait_until(lambda: len({seen.path for seen in self.log} - {self.path}) == self.others)
        return super().answer(request)


def test_the_last_of_a_shard_does_not_hold_up_the_next_shard(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path / "data")
    with Patient() as host:
        content = make_content(SandboxSpec(parts=(0,), rows=80, failing=0, twisted=0), [host.url()], "")
        host.answers.update(content.answers)
        truths = list(content.truth)[:12]
        host.path, host.others = truths[2].path, len(truths) - 1
        write_index(data, truths)
        result = download_part(data, 0, but(OPTIONS, samples_per_shard=6, timeout=120.0))
    assert result.ok == len(truths)


def test_progress_is_by_pictures_and_takes_back_what_is_lost() -> None:
    bar = Bar()
    sight = Sight(bar, [])
    sight.tell(0, ShardResult(Counter(ok=3, dns=1), 30))
    sight.tell(1, ShardResult(Counter(ok=2), 20))
    sight.tell(0, ShardResult(Counter(ok=5, dns=1), 50))
    assert bar.n == 8
    sight.forget(0)
    assert bar.n == 2


@given(samples=st.integers(1, 70), data=st.data())
def test_the_search_ends_with_those_that_kill_and_no_others(samples: int, data: st.DataObject) -> None:
    deadly = data.draw(st.sets(st.integers(0, samples - 1), max_size=4))
    tried, tries = Attempts(samples), 0
    while True:
        tries += 1
        probe = tried.probe or (0, samples)
        if any(probe[0] <= one < probe[1] for one in deadly - {*tried.left_out}):
            tried.died()
        elif tried.probe is None:
            break
        else:
            tried.survived()
    assert {*tried.left_out} == deadly
    assert len(tried.left_out) == len(deadly)
    assert not tried.is_hopeless
    assert tries <= 2 + len(deadly) * (3 + 2 * samples.bit_length())


def test_a_search_that_finds_nobody_ends() -> None:
    tried, tries = Attempts(10), 0
    while not tried.is_hopeless:
        tries += 1
        tried.died() if tried.probe is None else tried.survived()
        assert tries < 100
    assert tried.left_out == []
    assert tried.stage is Stage.ALONE


def test_the_tars_are_like_img2datasets_own(tmp_path: Path) -> None:
    # Of the same list come the same members, the same keys in each .json, the same columns in the parquet.
    host, truths = make_host(40, tmp_path / "none", failing=0, twisted=0)
    host.answers.pop(truths[5].path)
    data = DataDir.at(tmp_path / "data")
    write_index(data, truths)
    result = download_part(data, 0, OPTIONS)
    with IndexPart.open(data.index(0)) as index:
        pq.write_table(listed(index, np.arange(len(truths))), tmp_path / "list.parquet")
    settings = {
        "url_list": str(tmp_path / "list.parquet"),
        "output_folder": str(tmp_path / "theirs"),
        "save_additional_columns": list(CARRIED),
        "number_sample_per_shard": SHARD,
    }
    subprocess.run([sys.executable, "-c", THEIRS, json.dumps(settings)], check=True, cwd=tmp_path, capture_output=True)
    host.stop()
    ours, theirs = data.tars(0), tmp_path / "theirs"
    assert pq.read_schema(ours / "00000.parquet") == pq.read_schema(theirs / "00000.parquet")
    assert [*stats_of(ours)] == [*stats_of(theirs)]
    assert contents(ours / "00000.tar", "json").keys() == contents(theirs / "00000.tar", "json").keys()
    for extension in ("jpg", "txt"):
        assert contents(ours / "00000.tar", extension) == contents(theirs / "00000.tar", extension)
    for name, text in contents(theirs / "00000.tar", "json").items():
        said = json.loads(contents(ours / "00000.tar", "json")[name])
        expected = json.loads(text)
        assert [*said] == [*expected]
        assert {key: said[key] for key in said if expected[key] is not None} == {
            key: expected[key] for key in said if expected[key] is not None
        }
    rows = {path: pq.read_table(path / "00000.parquet").sort_by("key").to_pylist() for path in (ours, theirs)}
    assert [row["status"] for row in rows[ours]] == [row["status"] for row in rows[theirs]]
    assert rows[ours][5]["status"] == "failed_to_download"
    # And where an earlier version had img2dataset write them, they are looked through, not fetched again.
    older = DataDir.at(tmp_path / "older")
    shutil.copytree(data.root, older.root)
    shutil.rmtree(older.tars(0))
    shutil.copytree(theirs, older.tars(0))
    PartFiles(older, 0).checked_tar(0, 0).unlink()
    older.sidecar(0).unlink()
    assert download_part(older, 0, OPTIONS) == result
    assert stored(older) == stored(data)


#: `img2dataset.download` as its users call it, with every byte kept.
THEIRS = """
import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]), input_format="parquet", url_col="url", caption_col="caption",
             output_format="webdataset", encode_format="jpg", resize_mode="no", disable_all_reencoding=True,
             compute_hash="sha256", extract_exif=False, enable_wandb=False, processes_count=1, thread_count=4)
"""


def stats_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "00000_stats.json").read_text()))


def contents(tar: Path, extension: str) -> dict[str, bytes]:
    with tarfile.open(tar) as file:
        names = [name for name in file.getnames() if name.endswith(extension)]
        return {name: file.extractfile(name).read() for name in names}


@pytest.mark.filterwarnings("ignore")  # it leaves the tars to be closed by the garbage collector
def test_webdataset_reads_all_rounds_as_they_are(story: Story) -> None:
    # No broken picture in any tar, and no sample twice.
    import webdataset

    tars = sorted(map(str, story.folder.rglob("*.tar")))
    assert any("retry-1" in tar for tar in tars)
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    gc.collect()
    rows = [sample["json"]["row"] for sample in samples]
    assert len(rows) == len({*rows}) == story.seen["second"].ok
    assert {*rows} == {row for row, one in enumerate(story.seen["retried"]) if one.status == "ok"}


def test_shards_that_are_not_finished_go(tmp_path: Path) -> None:
    for name in ("00000.tar", "00000_stats.json", "00001.tar", "00001.parquet", "00002_stats.json", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "retry-1").mkdir()
    remove_unfinished(tmp_path, {0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00000_stats.json", "notes.txt", "retry-1"]
    assert shard_sizes(45, 20) == [20, 20, 5]
    assert shard_sizes(0, 20) == []


def test_tars_carry_what_json_can_hold(tmp_path: Path) -> None:
    host, truths = make_host(30, tmp_path / "none")
    host.stop()
    count = len(truths)
    urls = ["http://bücher.example/über uns.jpg?q=ä%20b#x", *[truth.url for truth in truths[1:]]]
    write_index(DataDir.at(tmp_path), truths, url=urls, similarity=[float("nan"), None, *[0.5] * (count - 2)])
    with IndexPart.open(DataDir.at(tmp_path).index(0)) as index:
        table = listed(index, np.array([0, 1, 3, count - 1]))
    assert table["row"].to_pylist() == [0, 1, 3, count - 1]
    assert table["similarity"].to_pylist() == [None, None, 0.5, 0.5]
    assert table["url"][0].as_py() == urls[0]
    assert table["faces"].to_pylist() == [[f.as_dict() for f in truths[row].faces] for row in (0, 1, 3, count - 1)]


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("HTTP Error 404: Not Found", "http_404"),
        ("HTTP Error 429: Too Many Requests", "http_429"),
        ("HTTP Error 403: private_address", "private_address"),
        ("HTTP Error 403: Forbidden", "http_403"),
        ("HTTP Error 504: timeout", "timeout"),
        ("HTTP Error 502: too_large", "too_large"),
        ("<urlopen error Tunnel connection failed: 403 private_address>", "private_address"),
        ("<urlopen error Tunnel connection failed: 502 dns>", "dns"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get issuer>", "tls"),
        ("<urlopen error EOF occurred in violation of protocol (_ssl.c:1006)>", "tls"),
        ("[Errno 104] Connection reset by peer", "reset"),
        ("Remote end closed connection without response", "reset"),
        ("IncompleteRead(10 bytes read, 20 more expected)", "incomplete"),
        ("Use of image disallowed by X-Robots-Tag directive", "opt_out"),
        ("HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not allowed", "bad_redirect"),
        (
            "HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.\n"
            "The last 30x error message was:\nFound",
            "redirects",
        ),
        ("Image decoding error", "not_an_image"),
        ("Something new", "other"),
        ("too_many_pixels: 9 x 9, more than 80", "too_many_pixels"),
        ("http_404: http://a.example/", "http_404"),
        ("opt_out", "opt_out"),
        ("", "other"),
        (None, "other"),
    ],
)
def test_messages_get_short_names(message: str | None, name: str) -> None:
    assert short_name(message) == name


def test_only_an_earlier_versions_proxys_absence_is_no_verdict() -> None:
    assert proxy_was_gone("<urlopen error [Errno 111] Connection refused>")
    assert proxy_was_gone("[Errno 104] Connection reset by peer")
    assert proxy_was_gone("IncompleteRead(5 bytes read)")
    assert not proxy_was_gone("HTTP Error 502: reset")
    assert not proxy_was_gone("reset: connection was reset")
    assert not proxy_was_gone(None)


def test_a_check_that_crashes_is_tried_alone_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A crash is what a bug in a decoder looks like: here Python itself cannot start in the check's process.
    from laion_face_builder.download.check import CheckJob

    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    jobs = [CheckJob(str(tmp_path / f"{n}.tar"), str(tmp_path / f"{n}.parquet"), "row", 1, 1, {}) for n in range(2)]
    crew: Workers[CheckJob] = Workers(1)
    with crew as workers, pytest.raises(DownloadError, match=r"0\.tar.*ended twice with code"):
        list(workers.each(jobs))
