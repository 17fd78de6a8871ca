"""From upstream to the index: law 3 (kill -9), two processes at once, reuse, discarding, and what stops it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder.errors import BadFile, GatedSource, LaionFaceError, SourceError, StateConflict
from laion_face_builder.files import read_fingerprint
from laion_face_builder.index.prepare import prepare, prepare_part
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import FolderHost, Sandbox, SandboxSpec
from laion_face_builder.upstream.sources import CANONICAL, Upstream

CHILD = """
import sys
from laion_face_builder.layout import DataDir
from laion_face_builder.index.prepare import prepare
from laion_face_builder.upstream.sources import Upstream
folder, repo, metadata, parts = sys.argv[1:]
prepare(DataDir.at(folder), [int(part) for part in parts], Upstream(repo, None, metadata))
"""


def start(folder: Path, box: Sandbox, parts: str, metadata: str | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, str(folder), box.repo, metadata or box.metadata_repo, parts]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def finish(child: subprocess.Popen[bytes]) -> None:
    _, talk = child.communicate(timeout=120)
    assert child.returncode == 0, talk.decode()


def made(folder: Path) -> dict[str, bytes]:
    """Bytes of all that prepare makes."""
    paths = [path for kind in ("ids", "faces", "index") for path in sorted((folder / kind).glob("part-*"))]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def hidden(folder: Path) -> list[str]:
    """What a killed run may leave and a finished one must not."""
    return [str(path) for pattern in ("*.partial", "*.incomplete") for path in folder.rglob(pattern)]


@pytest.fixture
def box(make_sandbox) -> Sandbox:
    return make_sandbox(SandboxSpec(parts=(0, 1), rows=90))


@pytest.fixture
def data(tmp_path) -> DataDir:
    return DataDir.at(tmp_path / "data")


def upstream(box: Sandbox, metadata: object = None) -> Upstream:
    return Upstream(box.repo, None, metadata or box.metadata_folder)


def test_prepare_makes_the_true_index_and_says_sizes_first(box: Sandbox, data: DataDir, caplog):
    caplog.set_level("INFO", "laion_face")
    prepare(data, [0, 1], upstream(box, box.metadata_repo))
    for part in (0, 1):
        with IndexPart.open(data.index(part)) as index:
            table = index.read(0, index.num_rows).to_pylist()
        truth = box.truth_of(part)
        assert [row["sample_id"] for row in table] == [true.sample_id for true in truth]
        assert [row["faces"] for row in table] == [[face.as_dict() for face in true.faces] for true in truth]
        assert {row["part"] for row in table} == {part}
    said = [record.getMessage() for record in caplog.records]
    sizes = next(number for number, text in enumerate(said) if "to download" in text)
    assert sizes < next(number for number, text in enumerate(said) if text.startswith("fetching"))
    for piece in ("parts 0, 1: ids ", "detections ", "metadata ", "free at"):
        assert piece in said[sizes]


def test_what_is_there_is_used_without_a_download(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box))
    before, sent = made(data.root), box.hub.bytes_sent("/lfs/")
    assert prepare_part(data, 0, upstream(box)) == data.index(0)
    assert (made(data.root), box.hub.bytes_sent("/lfs/")) == (before, sent)


def test_only_what_is_missing_is_made_again(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box))
    before, changed = made(data.root), data.index(0).stat().st_mtime_ns
    data.faces(0).unlink()
    prepare(data, [0], upstream(box))
    assert (made(data.root), data.index(0).stat().st_mtime_ns) == (before, changed)


def test_every_place_of_the_metadata_gives_the_same_rows(box: Sandbox, tmp_path):
    tables = []
    for number, place in enumerate((box.metadata_folder, box.metadata_repo, box.metadata_url)):
        data = DataDir.at(tmp_path / str(number))
        prepare(data, [0], upstream(box, place))
        tables.append(pq.read_table(data.index(0)).replace_schema_metadata(None))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


# Law 3


def kill_when(child: subprocess.Popen[bytes], happened) -> bool:
    """Kills the child as soon as `happened()`; False if it ended before that."""
    deadline = time.monotonic() + 60
    while child.poll() is None and not happened():
        assert time.monotonic() < deadline, "it neither ended nor came that far"
        time.sleep(0.001)
    alive = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return alive


def test_law_3_killed_at_every_file_and_started_again(box: Sandbox, tmp_path):
    reference, folder = tmp_path / "reference", tmp_path / "killed"
    finish(start(reference, box, "01", box.metadata_url))
    milestones = [
        "sources/**/.laion_face_ids.pth.*.incomplete",
        "ids/.part-00000.*.partial",
        "sources/**/.sample2detect_0.pth.*.incomplete",
        "faces/part-00000.parquet",
        "sources/**/.*snappy.parquet.*.incomplete",
        "index/.part-00000.*.partial",
        "index/part-00000.parquet",
        "faces/.part-00001.*.partial",
    ]
    killed = 0
    for milestone in milestones:
        killed += kill_when(start(folder, box, "01", box.metadata_url), lambda m=milestone: any(folder.glob(m)))
    assert killed >= len(milestones) // 2
    finish(start(folder, box, "01", box.metadata_url))
    assert made(folder) == made(reference)
    assert len(made(folder)) == 6
    assert hidden(folder) == []


def test_law_3_killed_at_any_time_and_started_again(box: Sandbox, tmp_path):
    reference, folder = tmp_path / "reference", tmp_path / "killed"
    begun = time.monotonic()
    finish(start(reference, box, "0"))
    whole = time.monotonic() - begun
    for share in random.Random(3).choices([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], k=3):
        until = time.monotonic() + share * whole
        kill_when(start(folder, box, "0"), lambda until=until: time.monotonic() > until)
    finish(start(folder, box, "0"))
    assert made(folder) == made(reference)
    assert hidden(folder) == []


def test_what_another_run_left_half_written_is_nobodys(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box))
    expected = made(data.root)
    for ours in (data.ids(0), data.faces(0), data.index(0)):
        ours.unlink()
        ours.with_name(f".{ours.name}.0badc0de.partial").write_bytes(b"half")
    prepare(data, [0], upstream(box))
    assert made(data.root) == expected
    assert hidden(data.root) == []


def test_two_processes_at_once_do_each_part_once(box: Sandbox, data: DataDir):
    box.hub.plant("/lfs/", calls=range(1, 99), delay=0.2)
    files = ["laion_face_ids.pth", "sample2detect_0.pth", "sample2detect_1.pth"]
    before = {file: sum(r.sent for r in box.hub.log if box.repo in r.path and file in r.path) for file in files}
    children = [start(data.root, box, parts) for parts in ("01", "10")]
    for child in children:
        finish(child)
    for file in files:
        sent = sum(request.sent for request in box.hub.log if box.repo in request.path and file in request.path)
        assert sent - before[file] == (box.folder / "laion-face" / file).stat().st_size
    assert len(made(data.root)) == 6


# Sources


def test_discarded_sources_are_freed_and_local_files_stay(box: Sandbox, data: DataDir):
    prepare(data, [0, 1], upstream(box), discard_sources=True)
    assert copies(data) == []
    assert len(list(box.metadata_folder.glob("*.parquet"))) == 2
    sent = box.hub.bytes_sent("/lfs/")
    prepare(data, [0, 1], upstream(box), discard_sources=True)
    assert box.hub.bytes_sent("/lfs/") == sent


def test_sources_that_a_killed_run_left_are_discarded_later(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box, box.metadata_url))
    assert any(data.sources.rglob("*.parquet"))
    prepare(data, [0], upstream(box, box.metadata_url), discard_sources=True)
    assert copies(data) == []


def copies(data: DataDir) -> list[Path]:
    """What lies among the sources apart from locks and notes."""
    return [
        path for path in data.sources.rglob("*") if path.is_file() and path.suffix not in (".lock", ".checked", ".json")
    ]


def change_metadata(box: Sandbox, part: int) -> Path:
    """A folder with the part's metadata, but for the last row."""
    (old,) = box.metadata_folder.glob(f"part-{part:05d}-*")
    folder = box.folder / "changed"
    folder.mkdir(exist_ok=True)
    table = pq.read_table(old)
    pq.write_table(table.slice(0, table.num_rows // 2), folder / old.name)
    return folder


def test_other_sources_mean_another_index(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box))
    before = read_fingerprint(data.index(0))
    prepare(data, [0], upstream(box, change_metadata(box, 0)))
    after = read_fingerprint(data.index(0))
    assert {key for key in before if before[key] != after[key]} == {"metadata"}
    assert pq.read_metadata(data.index(0)).num_rows < len(box.truth_of(0))


@pytest.mark.parametrize("sign", ["fingerprint", "tar"])
def test_pictures_of_the_old_index_are_never_orphaned(box: Sandbox, data: DataDir, sign):
    prepare(data, [0, 1], upstream(box))
    before = made(data.root)
    here = data.images_fingerprint(0) if sign == "fingerprint" else data.tars(0) / "retry-1" / "00000.tar"
    here.parent.mkdir(parents=True)
    here.write_text("{}")
    with pytest.raises(StateConflict) as caught:
        prepare(data, [0], upstream(box, change_metadata(box, 0)))
    for piece in (str(data.index(0)), "metadata sha256:", "name the old sources again", "move", str(data.tars(0))):
        assert piece in str(caught.value)
    assert made(data.root) == before
    prepare(data, [0], upstream(box))


def test_a_prepared_part_is_used_when_upstream_is_gone(box: Sandbox, data: DataDir, caplog):
    prepare(data, [0], upstream(box))
    before = made(data.root)
    box.hub.plant(box.repo, calls=range(1, 999), status=503)
    box.hub.plant(box.repo, method="HEAD", calls=range(1, 999), status=503)
    prepare(data, [0], upstream(box))
    assert "part 0 is prepared and is used as it is" in caplog.text
    assert made(data.root) == before
    with pytest.raises(SourceError, match="HTTP 503"):
        prepare(data, [1], upstream(box))


def test_gated_metadata_stops_before_anything_is_downloaded(box: Sandbox, data: DataDir, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    sent = box.hub.bytes_sent("/lfs/")
    with pytest.raises(GatedSource, match="Accept its terms"):
        prepare(data, [0], upstream(box, box.metadata_repo))
    assert box.hub.bytes_sent("/lfs/") == sent


def test_a_part_from_other_ids_is_not_passed_off_when_the_metadata_is_gated(box: Sandbox, data: DataDir, monkeypatch):
    prepare(data, [0], upstream(box, box.metadata_repo))
    monkeypatch.delenv("HF_TOKEN")
    prepare(data, [0], upstream(box, box.metadata_repo))
    box.hub.repos[box.repo].commit({"sample2detect_0.pth": b"other faces"})
    with pytest.raises(GatedSource):
        prepare(data, [0], upstream(box, box.metadata_repo))


def test_a_disk_without_the_room_stops_it_before_anything_is_downloaded(box: Sandbox, data: DataDir, tmp_path):
    huge = tmp_path / "web" / CANONICAL.format(part=0)
    huge.parent.mkdir()
    with huge.open("wb") as file:
        file.truncate(8 << 40)
    sent = box.hub.bytes_sent("/lfs/")
    with FolderHost(huge.parent) as host, pytest.raises(LaionFaceError, match=r"are needed .* are free\. Name another"):
        prepare(data, [0], upstream(box, host.url()))
    assert box.hub.bytes_sent("/lfs/") == sent


def test_metadata_that_cannot_be_used_leaves_no_index(box: Sandbox, data: DataDir, tmp_path):
    (tmp_path / "bad").mkdir()
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "bad" / CANONICAL.format(part=0))
    with pytest.raises(BadFile, match="SAMPLE_ID"):
        prepare(data, [0], upstream(box, tmp_path / "bad"))
    assert sorted(made(data.root)) == ["faces/part-00000.parquet", "ids/part-00000.parquet"]
    assert os.listdir(data.root / "index") == [".part-00000.parquet.lock"]
