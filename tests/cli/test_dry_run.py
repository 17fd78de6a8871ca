"""`--dry-run` says what the real run then does, refuses what it refuses, and touches nothing."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_face_builder import cli
from laion_face_builder.cli.arguments import make_parser
from laion_face_builder.download.download_forecast import forecast_part
from laion_face_builder.download.part import DownloadOptions, download_part
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.shard_files import ShardFiles
from laion_face_builder.errors import DownloadError, OptionError
from laion_face_builder.examples import parts as example_parts
from laion_face_builder.forecast import Amount, Disk, Forecast, Step
from laion_face_builder.index.copying import copy_parts
from laion_face_builder.index.prepare import prepare
from laion_face_builder.index.prepare_forecast import forecast_copy, forecast_prepare
from laion_face_builder.inspect.inspect_forecast import forecast_show, forecast_stats
from laion_face_builder.inspect.show import Sheet, show
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.publish.manifest import MANIFEST
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.publish_forecast import forecast_publish
from laion_face_builder.publish.published_files import Bounds
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.sandbox import STRANGER, WRITER, Sandbox, SandboxSpec
from laion_face_builder.sandbox.demo import forecast_demo
from laion_face_builder.shown import ranges
from laion_face_builder.sources.metadata_kinds import CANONICAL
from laion_face_builder.sources.sources import Upstream
from tests.support.nested import but

# huggingface_hub's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

_FREE = re.compile(r"[0-9.]+ .?B(?= free)")
SMALL = SandboxSpec(parts=(0, 2), rows=90, metadata_files=3, slow=0.0)


def tree(*folders: Path) -> dict[str, tuple[int, int, int]]:
    """List all that is there: kind, size and time of change. A file that came and went changes those of its folder."""
    found = {}
    for path in itertools.chain.from_iterable((folder, *folder.rglob("*")) for folder in folders if folder.exists()):
        state = path.lstat()
        found[str(path)] = (state.st_mode, state.st_size, state.st_mtime_ns)
    return found


def caches() -> list[Path]:
    return [Path(os.environ[name]) for name in ("HF_HOME", "XDG_CACHE_HOME", "LAION_FACE_DATA_DIR")]


def deeds(forecast: Forecast) -> dict[str, str]:
    return {step.what: step.deed for step in forecast.steps}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def bytes_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def untouched(tmp_path: Path) -> Callable[[Callable[[], Any]], Any]:
    """Give `untouched(work)`: it calls work(), which may not change anything in `tmp_path`, its folder, or a cache."""

    def run(work: Callable[[], Any]) -> Any:
        before = tree(tmp_path.parent, *caches())
        try:
            return work()
        finally:
            assert changed(before, tree(tmp_path.parent, *caches())) == set()

    return run


# Preparing: what is said is what then happens.


class Job(NamedTuple):
    """Where a test prepares from, and to."""

    box: Sandbox
    data: DataDir
    other: Sandbox

    def upstream(self, **other: Any) -> Upstream:
        return Upstream(**{"source_repo": self.box.repo, "metadata_place": self.box.metadata_repo, **other})

    def prepare(self, *parts: int, **how: Any) -> None:
        prepare(self.data, parts, self.upstream(), processes=1, **how)

    def sent(self) -> int:
        """Count the bytes of files that the servers have sent so far."""
        hub = self.box.hub
        return hub.bytes_sent("/lfs/") + hub.bytes_sent("/resolve/") + self.box.metadata.bytes_sent(".parquet")


@pytest.fixture
def job(make_sandbox: Callable[[SandboxSpec], Sandbox], tmp_path: Path) -> Job:
    other = SandboxSpec(parts=(0, 2), rows=90, metadata_files=3, slow=0.0, seed=5)
    return Job(make_sandbox(SMALL), DataDir.at(tmp_path / "data"), make_sandbox(other))


def _half(job: Job) -> None:
    job.prepare(0)


def _all(job: Job) -> None:
    job.prepare(0, 2)


def _all_but_sources(job: Job) -> None:
    job.prepare(0, 2, discard_sources=True)


def _no_index_of_one(job: Job) -> None:
    job.prepare(0, 2, discard_sources=True)
    job.data.index(2).unlink()


def _no_faces_of_one(job: Job) -> None:
    job.prepare(0, 2)
    job.data.faces(0).unlink()


def _cut(job: Job) -> None:
    """Leave one source half-fetched, as if the program had been killed, and put another there by hand, cut."""
    file: Any = job.upstream().detections(0)
    place = file.place(job.data.sources)
    place.parent.mkdir(parents=True)
    whole = (job.box.folder / "laion-face" / place.name).read_bytes()
    file._incomplete(place).write_bytes(whole[: len(whole) // 2])
    file = job.upstream().detections(2)
    cut = file.place(job.data.sources)
    cut.write_bytes((job.box.folder / "laion-face" / cut.name).read_bytes()[:-1])


def _staged(job: Job) -> None:
    """End the pass over the metadata at its last file; what was read is staged, and its copies are freed."""
    last = sorted(path.name for path in job.box.metadata_folder.iterdir())[-1]
    fault = job.box.hub.plant(f"/lfs/{job.box.metadata_repo}", calls=range(3, 99), status=404)
    with pytest.raises(Exception, match=last):
        job.prepare(0, 2, discard_sources=True)
    job.box.hub.faults.remove(fault)
    assert len(list(job.data.staging.rglob("*.parquet"))) == 2


def _of_other_sources(job: Job) -> None:
    prepare(job.data, (0, 2), Upstream(job.other.repo, None, job.other.metadata_repo), processes=1)


def _of_other_metadata(job: Job) -> None:
    prepare(job.data, (0, 2), job.upstream(metadata_place=str(job.box.metadata_folder)), processes=1)
    shutil.rmtree(job.data.sources)
    path = next(job.data.index(2).parent.glob("part-00002.parquet"))
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"laion_face.fingerprint"]) | {"metadata": "sha256:00"}
    pq.write_table(table.replace_schema_metadata({b"laion_face.fingerprint": json.dumps(about)}), path)


PREPARED = [
    lambda job: None,
    _half,
    _all,
    _all_but_sources,
    _no_index_of_one,
    _no_faces_of_one,
    _cut,
    _staged,
    _of_other_sources,
    _of_other_metadata,
]


@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize("state", PREPARED)
def test_prepare_does_what_was_said(job: Job, untouched: Any, state: Callable[[Job], None], discard: bool):
    state(job)
    how: dict[str, Any] = {"discard_sources": discard, "processes": 1}
    sent = job.sent()
    said = untouched(lambda: forecast_prepare(job.data, (0, 2), job.upstream(), **how))
    assert job.sent() == sent, "no content is asked for"
    before, sources = tree(job.data.root), [path for path in job.data.sources.rglob("*.*") if path.is_file()]
    prepare(job.data, (0, 2), job.upstream(), **how)
    assert (said.fetch, said.refusal) == (Amount(job.sent() - sent), None)
    touched = changed(before, tree(job.data.root))
    for part in (0, 2):
        ours = {str(path) for path in (job.data.ids(part), job.data.faces(part), job.data.index(part))}
        was_there = bool(ours & before.keys())
        deed = (
            ("made anew" if was_there and not _only_added(ours, before, touched) else "made") if ours & touched else ""
        )
        assert deeds(said)[f"part {part}"] == (deed or "used as it is")
    others = {part for part in ALL_PARTS if part not in (0, 2) and str(job.data.ids(part)) in touched}
    named = {step.what for step in said.steps if step.what.startswith("ids of")}
    assert named == ({f"ids of parts {ranges(sorted(others), ', ')}"} if others else set())
    removed = {str(job.data.root / step.what) for step in said.steps if step.deed == "removed"}
    gone = {name for name in before if not Path(name).exists()}
    assert removed <= gone
    assert {str(path) for path in sources if not path.name.startswith(".")} & gone <= removed
    (disk,) = said.disks
    assert (disk.write.count == 0) == (not touched & _ours(job.data))


def _only_added(ours: set[str], before: dict[str, Any], touched: set[str]) -> bool:
    """Say whether none of the files that were there has changed."""
    return not any(name in before for name in ours & touched)


def _ours(data: DataDir) -> set[str]:
    return {str(path(part)) for path in (data.ids, data.faces, data.index) for part in ALL_PARTS}


@pytest.mark.parametrize("place", ["folder", "by part", "url"])
def test_metadata_from_anywhere(make_sandbox: Any, tmp_path: Path, untouched: Any, place: str):
    # A local folder is not fetched; what is behind an address without a hash depends on what comes.
    spec = SandboxSpec(parts=(0, 2), rows=90, slow=0.0, world="2021" if place == "by part" else "today")
    box, data = make_sandbox(spec), DataDir.at(tmp_path / "data")
    where = box.metadata_url if place == "url" else str(box.metadata_folder)
    job = Job(box, data, box)
    upstream = job.upstream(metadata_place=where)
    for parts in ((0,), (0, 2), (0, 2)):
        sent = job.sent()
        said = untouched(lambda parts=parts: forecast_prepare(data, parts, job.upstream(metadata_place=where)))
        assert job.sent() == sent
        before = tree(data.root)
        prepare(data, parts, job.upstream(metadata_place=where), processes=1)
        assert said.fetch == Amount(job.sent() - sent)
        touched = changed(before, tree(data.root))
        made = {part for part in parts if deeds(said)[f"part {part}"] == "made"}
        assert made == {part for part in parts if str(data.index(part)) in touched}
    shutil.rmtree(data.sources)  # Nothing is known of the sources' contents any more.
    said = untouched(lambda: forecast_prepare(data, (0, 2), upstream))
    expected = "depends" if place == "url" else "used as it is"
    assert deeds(said) == {"part 0": expected, "part 2": expected}


def test_a_part_of_which_upstream_says_nothing_is_used(job: Job, untouched: Any):
    job.prepare(0)
    gone = Upstream("nobody/nothing", None, job.box.metadata_repo)
    said = untouched(lambda: forecast_prepare(job.data, (0,), gone))
    (step,) = said.steps
    assert (step.deed, said.fetch) == ("used as it is", Amount())
    assert "no such repo" in step.why


_FOOTER_BYTES = 128 * 4000


@pytest.mark.parametrize("remote", [False, True])
def test_a_copied_index(published: Any, hub: Any, tmp_path: Path, untouched: Any, remote: bool):
    place = str(published.folder)
    if remote:
        place = f"{WRITER}/index-to-copy"
        hub.add_repo(place, published.files)
    data, sent = DataDir.at(tmp_path / "data"), hub.bytes_sent("/lfs/")
    for parts in ((0,), (0, 2), (0, 2)):
        said = untouched(lambda parts=parts: forecast_copy(data, parts, place))
        footers, before = hub.bytes_sent("/lfs/") - sent, tree(data.root)
        copy_parts(data, parts, place)
        made = {part for part in parts if str(data.index(part)) in changed(before, tree(data.root))}
        assert made == {part for part in parts if deeds(said)[f"part {part}"] == "made"}
        # Rows are reckoned with; of so few of them the footers are the larger part.
        write, size = said.disks[0].write.count, sum(data.index(part).stat().st_size for part in made)
        assert write <= size <= write + len(made) * _FOOTER_BYTES
        fetched = hub.bytes_sent("/lfs/") - sent - footers
        assert said.fetch == (Amount(write, is_exact=not made) if remote else Amount())
        assert said.fetch.count <= fetched <= said.fetch.count + 2 * len(parts) * _FOOTER_BYTES
        sent = hub.bytes_sent("/lfs/")


def test_a_copy_stops_at_the_first_refusal(published: Any, tmp_path: Path, untouched: Any):
    said = untouched(lambda: forecast_copy(DataDir.at(tmp_path / "data"), (0, 1, 2), str(published.folder)))
    assert deeds(said) == {"part 0": "made", "part 1": "refused"}
    assert "expected one part-00001.parquet" in str(said.refusal)


# Downloading: pictures are counted.

OPTIONS = but(
    DownloadOptions(),
    processes_count=1,
    concurrency=8,
    samples_per_shard=15,
    timeout=30.0,
    retries=0,
    allow_private_hosts=True,
)


def test_download_asks_for_what_was_said(make_sandbox: Any, tmp_path: Path, untouched: Any):
    # One story, since img2dataset takes seconds to start.
    box, data = make_sandbox(SandboxSpec(parts=(0,), rows=150, slow=0.0)), DataDir.at(tmp_path / "data")
    prepare(data, (0,), Upstream(box.repo, None, box.metadata_repo), processes=1)
    files = PartFiles(data, 0)

    def forecast(retry_failed: int = 0) -> Any:
        said = untouched(lambda: forecast_part(data, 0, OPTIONS, None, retry_failed))
        assert said.refusal is None
        return said

    def download(retry_failed: int = 0) -> int:
        """Return how many samples the real run has asked for: those of the shards that it made."""
        before = tree(data.tars(0))
        download_part(data, 0, OPTIONS, None, retry_failed)
        made = [Path(name) for name in changed(before, tree(data.tars(0))) if name.endswith("_stats.json")]
        return sum(json.loads(path.read_text())["count"] for path in made)

    nothing = forecast(retry_failed=1)
    assert [one.pictures is None for one in nothing.rounds] == [False, True]
    assert (nothing.is_begun, nothing.is_exact) == (False, False)
    first = forecast()
    wanted = {truth.path.split("?")[0] for truth in box.truth_of(0) if truth.url.startswith("http")}
    log = len(box.pictures.log)
    assert (first.pictures, first.is_exact) == (download(), True)
    assert first.pictures == first.wanted == nothing.pictures
    assert wanted <= {request.path for request in box.pictures.log[log:]}

    assert forecast().pictures == 0
    log = len(box.pictures.log)
    assert download() == 0
    assert len(box.pictures.log) == log

    ShardFiles(data.tars(0), 1).remove()
    half = forecast()
    assert (half.pictures, half.rounds[0].shards, half.is_exact) == (15, 1, True)
    assert half.pictures == download()

    files.checked_tar(0, 0).unlink()
    unchecked = forecast()
    assert (unchecked.pictures, unchecked.unchecked, unchecked.is_exact) == (0, 15, False)
    assert download() == 0

    again = forecast(retry_failed=1)
    assert (again.is_exact, again.rounds[0].pictures) == (True, 0)
    assert again.pictures == download(retry_failed=1) > 0
    assert forecast(retry_failed=1).pictures == 0

    files.data.sidecar(0).unlink()
    options = Options.of("20M", OptionFields(parts="0", allow_private_hosts=True), data.root)
    said = untouched(lambda: example_parts.forecast_download(options, OPTIONS, 1))
    assert [(step.deed, step.why) for step in said.steps] == [
        ("made", "all pictures are there, the list of them is not")
    ]


def test_filters_leave_pictures_out(prepared: Any, tmp_path: Path, untouched: Any):
    shutil.copytree(prepared.data.root / "index", tmp_path / "data" / "index")
    wide = sorted(truth.width or 0 for truth in prepared.truth)[len(prepared.truth) // 2]
    options = Options.of("20M", OptionFields(parts="0,2", min_width=wide), tmp_path / "data")
    said = untouched(lambda: example_parts.forecast_download(options, DownloadOptions()))
    true = sum((truth.width or 0) >= wide and truth.url.startswith("http") for truth in prepared.truth)
    assert said.pictures == Amount(true)
    assert deeds(said) == {"part 0": "made", "part 2": "made"}


def test_a_remote_index_is_not_read(published: Any, hub: Any, tmp_path: Path, untouched: Any):
    repo = f"{WRITER}/index-to-count"
    hub.add_repo(repo, published.files)
    options = Options.of("20M", OptionFields(parts="0", index=repo, min_width=100), tmp_path / "data")
    log = len(hub.log)
    said = untouched(lambda: example_parts.forecast_download(options, DownloadOptions()))
    footer = pq.read_metadata(published.folder / "data/part-00000.parquet")
    assert said.pictures == Amount(footer.num_rows, is_exact=False)
    chunks = [footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns)]
    end_of_rows = max(chunk.data_page_offset + chunk.total_compressed_size for chunk in chunks)
    asked = [request for request in hub.log[log:] if "/lfs/" in request.path and request.sent]
    starts = [int(request.headers["range"].removeprefix("bytes=").partition("-")[0]) for request in asked]
    assert starts
    assert min(starts) > end_of_rows - 5000, "footers only"


# Publishing.


@pytest.fixture
def data(prepared: Any, tmp_path: Path) -> DataDir:
    """Copy the prepared DATA_DIR for this test alone."""
    others = shutil.ignore_patterns("sources", "publish", "adopted")
    shutil.copytree(prepared.data.root, tmp_path / "data", ignore=others)
    return DataDir.at(tmp_path / "data")


class Target(NamedTuple):
    """A place to publish to: a folder, or a repo on the Hub."""

    name: str
    now: Callable[[], dict[str, bytes]]


@pytest.fixture(params=["folder", "hub"])
def target(request: Any, hub: Any, tmp_path: Path) -> Target:
    if request.param == "folder":
        return Target(str(tmp_path / "out"), lambda: bytes_of(tmp_path / "out"))
    repo = f"{WRITER}/dry-{next(_names)}"

    def now() -> dict[str, bytes]:
        files = hub.repos[repo].tree("main") if repo in hub.repos else {}
        return {name: b"".join(file.data.pieces()) for name, file in files.items() if not name.startswith(".")}

    return Target(repo, now)


_names = itertools.count(1)
_BOUNDS = Bounds(row_group_bytes=300_000, row_group_rows=40, file_bytes=900_000)
#: Earlier publishes, and the one that is looked at.
PUBLISHES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "nothing there": ([], {}),
    "all there": ([{}], {}),
    "one part there": ([{"parts": "0"}], {"parts": "2"}),
    "a preview too": ([{}], {"preview": 5}),
    "all there with a preview": ([{"preview": 5}], {"preview": 5}),
    "rows left out": ([{}], {"exclude": True}),
    "rows left out, again": ([{"exclude": True}], {"exclude": True}),
    "pictures": ([], {"with_images": True, "bounds": _BOUNDS}),
    "pictures there": ([{"with_images": True, "bounds": _BOUNDS}], {"with_images": True, "bounds": _BOUNDS}),
    "pictures in larger files": ([{"with_images": True, "bounds": _BOUNDS}], {"with_images": True}),
}


@pytest.mark.parametrize("state", PUBLISHES)
def test_publish_does_what_was_said(data: DataDir, target: Target, untouched: Any, tmp_path: Path, state: str):
    earlier, asked = PUBLISHES[state]
    listed = tmp_path / "exclude.txt"
    ids = pq.read_table(data.index(0), columns=["sample_id"])["sample_id"].to_pylist()
    listed.write_text("\n".join(map(str, ids[:20])))

    def request(how: dict[str, Any]) -> PublishRequest:
        how = {**how, "exclude": str(listed)} if how.get("exclude") else how
        is_private = not target.name.startswith("/")
        return PublishRequest(data, target.name, private=is_private, **how)

    for how in earlier:
        publish(request(how))
    said = untouched(lambda: forecast_publish(request(asked)))
    before = target.now()
    manifest = publish(request(asked))
    after = target.now()
    sent = {name for name in after if before.get(name) != after[name]}
    foretold = {step.what for step in said.steps if step.deed == "sent"}
    unsure = {step.what for step in said.steps if "those that follow" in step.why}
    assert foretold <= {*sent, MANIFEST, "croissant.json", "LICENSE.md", "README.md"} | unsure
    assert sent - foretold == {name for name in sent if name not in foretold and _follows(name, unsure)}
    gone = before.keys() - after.keys()
    removed = {step.what for step in said.steps if step.deed == "removed"}
    assert removed <= gone
    assert gone - removed == {name for name in gone if _follows(name, unsure)}
    for step in said.steps:
        if step.size is not None and step.size.is_exact and step.deed != "removed":
            assert step.size.count == len(after[step.what])
    total = said.send if not target.name.startswith("/") else said.disks[-1].write
    if total.is_exact:
        assert total.count == sum(len(after[name]) for name in sent)
    assert manifest.entries.keys() >= {name for name in foretold if name.startswith("data/")} - unsure


def _follows(name: str, unsure: set[str]) -> bool:
    """Say whether the file belongs to a row of files of which only the first is foretold."""
    return any(name.startswith(first[: len("data/part-00000-")]) for first in unsure)


def test_a_file_that_was_damaged_or_is_gone_is_sent_again(data: DataDir, untouched: Any, tmp_path: Path):
    out = tmp_path / "out"
    publish(PublishRequest(data, str(out)))
    (out / "data/part-00000.parquet").unlink()
    whole = (out / "data/part-00002.parquet").read_bytes()
    (out / "data/part-00002.parquet").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    said = untouched(lambda: forecast_publish(PublishRequest(data, str(out))))
    assert {step.what for step in said.steps if step.deed == "sent"} == {
        "data/part-00000.parquet",
        "data/part-00002.parquet",
    }
    publish(PublishRequest(data, str(out)))
    sent = sum((out / f"data/part-{part:05d}.parquet").stat().st_size for part in (0, 2))
    assert said.disks[-1].write == Amount(sent, is_exact=False)
    assert deeds(forecast_publish(PublishRequest(data, str(out)))).keys() >= {"README.md"}
    assert set(deeds(forecast_publish(PublishRequest(data, str(out)))).values()) == {"used as it is"}


# Looking.


@pytest.mark.parametrize(
    ("fields", "asked"),
    [({}, 0), ({"images": "none"}, 0), ({"images": "fetch"}, 6), ({"images": "fetch", "min_score": 0.99}, None)],
)
def test_show_asks_for_what_was_said(
    data: DataDir, sandbox: Sandbox, untouched: Any, tmp_path: Path, fields: Any, asked: Any
):
    options = Options.of("20M", OptionFields(parts="0,2", allow_private_hosts=True, **fields), data.root)
    wanted = Sheet(tmp_path / "sheet", count=6)
    said = untouched(lambda: forecast_show(options, wanted))
    log = len(sandbox.pictures.log)
    written = show(options, wanted)
    seen = {request.path for request in sandbox.pictures.log[log:]}
    passing = [truth for truth in sandbox.truth_of(0) if any(face.score >= 0.99 for face in truth.faces)]
    assert said.pictures.count == (min(6, len(passing)) if asked is None else asked)
    assert said.pictures.count <= len(seen) if said.pictures.count else not seen
    assert {step.what for step in said.steps if step.what.startswith("/")} == {str(path) for path in written}
    assert {deeds(said)[str(path)] for path in written} == {"made"}
    assert {deeds(forecast_show(options, wanted))[str(path)] for path in written} == {"made anew"}


@pytest.mark.parametrize(
    "command", [lambda o, p: forecast_show(o, Sheet(p / "s")), lambda o, p: forecast_stats(o, p / "s.html")]
)
def test_a_folder_of_pictures_is_not_looked_through(data: DataDir, untouched: Any, tmp_path: Path, command: Any):
    folder = tmp_path / "theirs"
    shutil.copytree(data.tars(0), folder / "split_00000")
    options = Options.of("20M", OptionFields(parts="0", images=str(folder)), data.root)
    tars = len(list(folder.rglob("*.tar")))
    said = untouched(lambda: command(options, tmp_path))
    assert (said.steps[0].deed, said.steps[0].why) == ("made", f"{tars} tars of the folder are looked through, once")
    example_parts.adopt(options)
    said = untouched(lambda: command(options, tmp_path))
    assert said.steps[0].deed == "used as it is"


def test_the_demo_names_what_it_would_remove(tmp_path: Path, untouched: Any):
    folder = tmp_path / "demo"
    said = untouched(lambda: forecast_demo(folder))
    assert [step.deed for step in said.steps] == ["made"]
    folder.mkdir()
    (folder / ".laion-face-demo").touch()
    said = untouched(lambda: forecast_demo(folder))
    assert [step.deed for step in said.steps] == ["removed", "made"]
    (folder / ".laion-face-demo").rename(folder / "mine")
    with pytest.raises(OptionError, match="not from an earlier demo"):
        untouched(lambda: forecast_demo(folder))


# Refusals, on the command line: the same words and exit code, and nothing is touched.


def _run(command: list[str], capsys: Any) -> tuple[int, str]:
    """Run a command; return its exit code and its error."""
    capsys.readouterr()
    code = cli.main(command)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("laion-face: error: ")]
    return code, "\n".join(lines)


def _gated(job: Any, folder: Path) -> list[str]:
    return [*job.command("prepare"), "--token", STRANGER]


def _no_such_repo(job: Any, folder: Path) -> list[str]:
    return ["prepare", "20M", "--data-dir", str(folder / "new"), "--source-repo", "nobody/nothing"]


def _processes(job: Any, folder: Path) -> list[str]:
    return [*job.command("prepare"), "--processes", "0"]


def _parts(job: Any, folder: Path) -> list[str]:
    return ["prepare", "20M", "--data-dir", str(folder / "new"), "--parts", "1"]


def _pictures_of_other_sources(job: Any, folder: Path) -> list[str]:
    job.box.hub.add_repo(f"{WRITER}/other", {"part-x.parquet": _parquet(folder)})
    return [*job.command("prepare", job.pictures), "--metadata", f"{WRITER}/other"]


def _no_room(job: Any, folder: Path) -> list[str]:
    """Make a sparse file of some TB, which no disk here has room for; return the command that prepares from it."""
    huge = folder / "huge" / CANONICAL.format(part=0)
    huge.parent.mkdir()
    with huge.open("wb") as file:
        file.truncate(8 << 40)
        file.seek(-8, os.SEEK_END)
        file.write((100).to_bytes(4, "little") + b"PAR1")
    return [*job.command("prepare", folder / "new"), "--metadata", str(huge.parent), "--parts", "0"]


def _index_of_another(job: Any, folder: Path) -> list[str]:
    return ["prepare", "20M", "--parts", "0", "--data-dir", str(job.pictures), "--index", str(job.foreign(folder))]


def _index_without_the_part(job: Any, folder: Path) -> list[str]:
    return ["prepare", "20M", "--parts", "5", "--data-dir", str(folder / "new"), "--index", str(job.foreign(folder))]


def _not_prepared(job: Any, folder: Path) -> list[str]:
    return ["download", "20M", "--data-dir", str(folder / "new")]


def _other_filters(job: Any, folder: Path) -> list[str]:
    return ["download", "20M", "--parts", "0", "--data-dir", str(job.pictures), "--min-width", "9000"]


def _nobodys_pictures(job: Any, folder: Path) -> list[str]:
    (job.pictures / "images" / "part-00000.fingerprint").unlink()
    return ["download", "20M", "--parts", "0", "--data-dir", str(job.pictures)]


def _bad_encoding(job: Any, folder: Path) -> list[str]:
    return ["download", "20M", "--parts", "0", "--data-dir", str(job.pictures), "--encode-format", "gif"]


def _public_pictures(job: Any, folder: Path) -> list[str]:
    return ["publish", "--data-dir", str(job.pictures), "me/faces", "--with-images"]


def _nothing_to_publish(job: Any, folder: Path) -> list[str]:
    return ["publish", "--data-dir", str(folder / "new"), str(folder / "out")]


def _the_other_kind(job: Any, folder: Path) -> list[str]:
    publish(PublishRequest(DataDir.at(job.pictures), str(folder / "out")))
    return ["publish", "--data-dir", str(job.pictures), str(folder / "out"), "--with-images"]


def _private_folder(job: Any, folder: Path) -> list[str]:
    return ["publish", "--data-dir", str(job.pictures), str(folder / "out"), "--private"]


def _public_repo(job: Any, folder: Path) -> list[str]:
    job.box.hub.add_repo(f"{WRITER}/public", {"README.md": b"# public"})
    return ["publish", "--data-dir", str(job.pictures), f"{WRITER}/public", "--private"]


def _too_long_a_preview(job: Any, folder: Path) -> list[str]:
    return ["publish", "--data-dir", str(job.pictures), str(folder / "out"), "--preview", "5000"]


def _bad_suffix(job: Any, folder: Path) -> list[str]:
    return ["show", "20M", "--data-dir", str(job.pictures), "--out", str(folder / "sheet.gif")]


def _nothing_to_show(job: Any, folder: Path) -> list[str]:
    return ["show", "20M", "--data-dir", str(folder / "new"), "--out", str(folder / "sheet")]


def _nothing_to_count(job: Any, folder: Path) -> list[str]:
    return ["stats", "20M", "--parts", "5", "--data-dir", str(job.pictures), "--out", str(folder / "stats.html")]


def _not_a_demo(job: Any, folder: Path) -> list[str]:
    (folder / "demo").mkdir()
    (folder / "demo" / "mine").touch()
    return ["demo", str(folder / "demo")]


class Refused(NamedTuple):
    """Where the refusals happen: `pictures` is a DATA_DIR with pictures, prepared from `box`."""

    box: Sandbox
    folder: Path
    pictures: Path

    def command(self, name: str, data: Path | None = None) -> list[str]:
        return [name, "20M", "--parts", "0", "--data-dir", str(data or self.folder / "new")]

    def foreign(self, folder: Path) -> Path:
        """Save the same part as another program would; return its folder."""
        path = folder / "foreign" / "part-00000.parquet"
        path.parent.mkdir()
        pq.write_table(pq.read_table(self.pictures / "index" / "part-00000.parquet").slice(0, 50), path)
        return path.parent


def _parquet(folder: Path) -> Path:
    path = folder / "x.parquet"
    pq.write_table(pa.table({"key": np.arange(5), "url": ["x"] * 5}), path)
    return path


REFUSALS = [
    *(_gated, _no_such_repo, _processes, _parts, _pictures_of_other_sources, _no_room, _index_of_another),
    *(_index_without_the_part, _not_prepared, _other_filters, _nobodys_pictures, _bad_encoding),
    *(_public_pictures, _nothing_to_publish, _the_other_kind, _private_folder, _public_repo),
    *(_too_long_a_preview, _bad_suffix, _nothing_to_show, _nothing_to_count, _not_a_demo),
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_is_refused_is_refused_alike(
    sandbox: Sandbox, data: DataDir, tmp_path: Path, untouched: Any, capsys: Any, refusal: Any
):
    command = refusal(Refused(sandbox, tmp_path, data.root), tmp_path)
    code, error = untouched(lambda: _run([*command, "--dry-run"], capsys))
    assert code == 1
    assert error.startswith("laion-face: error: ")
    assert _run(command, capsys) == (code, error)


def test_a_proxy_is_refused_alike(data: DataDir, untouched: Any, capsys: Any, monkeypatch: Any):
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
    command = ["download", "20M", "--parts", "0", "--data-dir", str(data.root)]
    said = untouched(lambda: _run([*command, "--dry-run"], capsys))
    assert said[0] == 1
    assert _run(command, capsys) == said


def test_a_disk_that_is_too_small_for_pictures(prepared: Any, tmp_path: Path, untouched: Any, monkeypatch: Any):
    shutil.copytree(prepared.data.root / "index", tmp_path / "data" / "index")
    monkeypatch.setattr("laion_face_builder.download.part._BYTES_A_SAMPLE", 1 << 50)
    data = DataDir.at(tmp_path / "data")
    said = untouched(lambda: forecast_part(data, 0, DownloadOptions()))
    with pytest.raises(DownloadError) as real:
        download_part(data, 0, DownloadOptions())
    # Others use the disk meanwhile.
    assert _FREE.sub("", str(said.refusal)) == _FREE.sub("", str(real.value))


def test_a_part_that_is_refused_comes_after_those_that_are_downloaded(data: DataDir, capsys: Any, untouched: Any):
    shutil.rmtree(data.tars(0))
    data.sidecar(0).unlink()
    (data.root / "images" / "part-00002.fingerprint").unlink()
    command = ["download", "20M", "--parts", "0,2", "--data-dir", str(data.root), "--dry-run"]
    assert untouched(lambda: cli.main(command)) == 1
    said = capsys.readouterr()
    assert [line.split(" (")[0] for line in said.out.splitlines()[1:3]] == ["part 0: made", "part 2: refused"]
    assert "nothing says what they were made with" in said.err


# Every command, on the command line.


def _commands(data: Path, sandbox: Sandbox, out: Path) -> list[list[str]]:
    at = ["--data-dir", str(data)]
    return [
        ["prepare", "20M", "--parts", "0,2", *at],
        ["prepare", "20M", "--parts", "0,2", *at, "--discard-sources", "--metadata", str(sandbox.metadata_folder)],
        ["download", "20M", "--parts", "0,2", *at, "--allow-private-hosts"],
        ["download", "20M", "--parts", "0,2", *at, "--allow-private-hosts", "--retry-failed", "2"],
        ["publish", *at, str(out / "published")],
        ["publish", *at, str(out / "published"), "--with-images"],
        ["publish", *at, f"{WRITER}/never-made", "--private", "--preview", "3"],
        ["show", "20M", *at, "--out", str(out / "sheet")],
        ["show", "20M", *at, "--out", str(out / "sheet"), "--images", "fetch", "--allow-private-hosts"],
        ["stats", "20M", *at, "--out", str(out / "stats.html")],
        ["export", str(out / "exported"), *at, "--align", "ffhq", "--min-face-size", "64", "--draw", "boxes"],
        ["export", str(out / "exported"), *at, "--as", "jsonl"],
        ["export", str(out / "exported"), *at, "--images", "fetch", "--allow-private-hosts"],
        ["demo", str(out / "demo")],
    ]


def test_every_command_that_writes_has_it(data: DataDir, sandbox: Sandbox, tmp_path: Path, untouched: Any, capsys: Any):
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    have = {name for name, command in commands.choices.items() if "--dry-run" in command.format_help()}
    assert have >= {"prepare", "download", "publish", "show", "stats", "export", "demo"}
    pictures = len(sandbox.pictures.log)
    for command in _commands(data.root, sandbox, tmp_path):
        assert untouched(lambda command=command: cli.main([*command, "--dry-run"])) == 0, command
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"dry run of {command[0]}: nothing is touched"
        assert any(line.startswith("to write: ") and "free)" in line for line in lines) or command[0] == "publish"
    assert len(sandbox.pictures.log) == pictures
    assert f"{WRITER}/never-made" not in sandbox.hub.repos


_CHILD = """
import json, os, sys
from laion_face_builder import cli
commands, folder = json.loads(sys.argv[1]), sys.argv[2]
try:
    open(os.path.join(folder, "x"), "w")
except PermissionError:
    print(json.dumps([cli.main(command) for command in commands]), file=sys.stderr)
"""


def test_it_works_where_nothing_can_be_written(data: DataDir, sandbox: Sandbox, tmp_path: Path, untouched: Any):
    # Root may write anywhere, unless it gives that up.
    commands = [[*command, "--dry-run"] for command in _commands(data.root, sandbox, tmp_path / "out")]
    give_up = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    (tmp_path / "out").mkdir()
    folders = [path for path in (tmp_path, *tmp_path.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        done = untouched(
            lambda: subprocess.run(
                [*give_up, sys.executable, "-c", _CHILD, json.dumps(commands), str(tmp_path)],
                capture_output=True,
                text=True,
                timeout=600,
                check=True,
            )
        )
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert json.loads(done.stderr.splitlines()[-1]) == [0] * len(commands), done.stderr


# What is printed.

_AMOUNTS = st.builds(Amount, st.integers(0, 10**14), st.booleans())


@given(_AMOUNTS, _AMOUNTS, _AMOUNTS, st.lists(st.builds(Step, st.text(), st.just("made"), st.text()), max_size=3))
def test_programs_get_what_people_get(fetch: Amount, write: Amount, pictures: Amount, steps: list[Step]):
    forecast = Forecast("download", tuple(steps), (Disk(Path("/data"), write, 5),), fetch, pictures=pictures)
    told = json.loads(json.dumps(forecast.as_dict()))
    assert told["fetch_bytes"] == {"count": fetch.count, "exact": fetch.is_exact}
    assert told["disks"] == [{"folder": "/data", "write_bytes": write.as_dict(), "free_bytes": 5}]
    assert [step["what"] for step in told["steps"]] == [step.what for step in steps]
    hours = {time["to"]: time for time in told["hours"]}
    assert ("fetch" in hours) == (fetch.count > 0)
    if fetch.count:
        assert (hours["fetch"]["hours"], hours["fetch"]["at"]) == (fetch.count / 50e6 / 3600, "50 MB/s")
    if pictures.count:
        assert hours["ask for pictures"]["at"] == "100 pictures/s"
    lines = "\n".join(forecast.lines())
    assert f"to fetch: {fetch.of_bytes()}\n" in lines
    assert all(str(step) in lines for step in steps)


def test_parts_with_which_the_same_is_done_share_a_line():
    steps = [Step("part 0", "made"), *(Step(f"part {part}", "used as it is", "all there") for part in (1, 2, 3, 8))]
    said = list(Forecast("prepare", (*steps, Step("README.md", "sent"), Step("part 9", "removed")), ()).lines())
    assert said[1:5] == [
        "part 0: made",
        "parts 1-3, 8: used as it is (all there)",
        "README.md: sent",
        "part 9: removed",
    ]
