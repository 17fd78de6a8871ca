"""From upstream to the index, of today and of 2021: law 3 (kill -9), reuse, discarding, and what stops it."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder.errors import BadFile, GatedSource, JoinRefused, LaionFaceError, SourceError, StateConflict
from laion_face_builder.files import human_size, read_fingerprint, stamped
from laion_face_builder.index import steps
from laion_face_builder.index.prepare import prepare
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.staged import stage
from laion_face_builder.index.writer import proof_path
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import FolderHost, Sandbox, SandboxSpec
from laion_face_builder.sandbox.spec import RELEASES
from laion_face_builder.sources.sources import Upstream

CHILD = """
import sys
from laion_face_builder.layout import DataDir
from laion_face_builder.index.prepare import prepare
from laion_face_builder.sources.sources import Upstream
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
    """Return the bytes of all that prepare makes."""
    paths = [path for kind in ("ids", "faces", "index") for path in sorted((folder / kind).glob("part-*"))]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def hidden(folder: Path) -> list[str]:
    """List what a killed run may leave and a finished one must not."""
    return [str(path) for pattern in ("*.partial", "*.incomplete") for path in folder.rglob(pattern)]


@pytest.fixture(params=["today", "2021"])
def box(request, make_sandbox) -> Sandbox:
    return make_sandbox(SandboxSpec(parts=(0, 1), rows=90, world=request.param, metadata_files=3))


@pytest.fixture
def today(make_sandbox) -> Sandbox:
    return make_sandbox(SandboxSpec(parts=(0, 1), rows=90, metadata_files=5))


@pytest.fixture
def data(tmp_path) -> DataDir:
    return DataDir.at(tmp_path / "data")


def upstream(box: Sandbox, metadata: str | Path | None = None) -> Upstream:
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
        assert [(row["url"], row["width"], row["height"]) for row in table] == [
            (true.url, true.width, true.height) for true in truth
        ]
        assert {row["part"] for row in table} == {part}
        check_proof(data, part, box.content.proof[part])
    said = [record.getMessage() for record in caplog.records]
    sizes = next(number for number, text in enumerate(said) if "to download" in text)
    assert sizes < next(number for number, text in enumerate(said) if text.startswith("fetching"))
    for piece in ("parts 0, 1: ids ", "detections ", "metadata ", "free at"):
        assert piece in said[sizes]


def check_proof(data: DataDir, part: int, true: dict[str, int]) -> None:
    proof = json.loads(proof_path(data.index(part)).read_text())
    found = {"asked": "ids_asked", "found": "ids_found", "merged": "repeated_rows", "ambiguous": "ambiguous_ids"}
    found |= {"swapped": "swapped_rows", "faces_with_sizes": "faces_with_size", "faces_that_fit": "faces_that_fit"}
    assert {name: proof[found[name]] for name in true} == true
    assert proof["coverage"] == true["found"] / true["asked"]
    assert proof["made_from"] == read_fingerprint(data.index(part))


def test_whole_metadata_is_said_to_be_read_once(today: Sandbox, data: DataDir, caplog):
    caplog.set_level("INFO", "laion_face")
    prepare(data, [0], upstream(today))
    size = human_size(sum(path.stat().st_size for path in today.metadata_folder.glob("*.parquet")))
    assert f"{size} in 5 files of metadata are read for 1 part; all 32 cost no more" in caplog.text
    assert "% of 31 ids found; 100.0 % of" in caplog.text


def test_the_same_rows_come_with_any_number_of_threads(today: Sandbox, tmp_path):
    results = []
    for processes in (1, 5):
        data = DataDir.at(tmp_path / str(processes))
        prepare(data, [0, 1], upstream(today), processes=processes)
        results.append(made(data.root))
    assert results[0] == results[1]


def test_what_is_there_is_used_without_a_download(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box))
    before, sent = made(data.root), box.hub.bytes_sent("/lfs/")
    prepare(data, [0], upstream(box))
    assert (made(data.root), box.hub.bytes_sent("/lfs/")) == (before, sent)


def test_only_what_is_missing_is_made_again(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box))
    before, changed = made(data.root), data.index(0).stat().st_mtime_ns
    data.faces(0).unlink()
    prepare(data, [0], upstream(box))
    assert (made(data.root), data.index(0).stat().st_mtime_ns) == (before, changed)


def test_every_place_of_the_metadata_gives_the_same_rows(box: Sandbox, tmp_path):
    tables = []
    places: list[str | Path] = [box.metadata_folder, box.metadata_repo, box.metadata_url]
    for number, place in enumerate(places):
        data = DataDir.at(tmp_path / str(number))
        prepare(data, [0], upstream(box, place))
        tables.append(pq.read_table(data.index(0)).replace_schema_metadata(None))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


# Law 3


def kill_when(child: subprocess.Popen[bytes], happened) -> bool:
    """Kill the child as soon as `happened()`; False if it ended before that."""
    deadline = time.monotonic() + 60
    while child.poll() is None and not happened():
        assert time.monotonic() < deadline, "it neither ended nor came that far"
        time.sleep(0.001)
    alive = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return alive


@pytest.mark.slow
def test_law_3_killed_at_every_file_and_started_again(box: Sandbox, tmp_path):
    reference, folder = tmp_path / "reference", tmp_path / "killed"
    finish(start(reference, box, "01", box.metadata_url))
    staged = ["staging/*/00000.parquet", "staging/*/00001.parquet", "staging/*/00002.parquet"]
    # Files that stay, in the order in which they come: each run is killed further on than the one before.
    milestones = [
        "sources/**/laion_face_ids.pth",
        "ids/part-00003.parquet",
        "ids/part-00030.parquet",
        *(staged if box.content.spec.world == "today" else ["sources/**/part-00000*.parquet"]),
        "faces/part-00000.parquet",
        "index/part-00000.json",
        "index/part-00000.parquet",
    ]
    killed = 0
    for milestone in milestones:
        killed += kill_when(start(folder, box, "01", box.metadata_url), lambda m=milestone: any(folder.glob(m)))
    assert killed >= len(milestones) // 2
    finish(start(folder, box, "01", box.metadata_url))
    assert made(folder) == made(reference)
    assert len(made(folder)) == 32 + 2 + 4
    assert hidden(folder) == []
    assert list((folder / "staging").glob("*")) == []


@pytest.mark.slow
def test_law_3_a_killed_pass_goes_on_with_the_next_file(today: Sandbox, tmp_path):
    reference, folder = tmp_path / "reference", tmp_path / "killed"
    finish(start(reference, today, "01"))
    assert kill_when(start(folder, today, "01"), lambda: any(folder.glob("staging/*/00001.parquet")))
    staged = {path.name for path in folder.glob("staging/*/0*.parquet")}
    shutil.rmtree(folder / "sources")
    before = len(today.hub.log)
    finish(start(folder, today, "01"))
    fetched = {f"{int(found[1]):05d}.parquet" for r in today.hub.log[before:] if (found := _METADATA.search(r.path))}
    assert fetched == {f"{number:05d}.parquet" for number in range(5)} - staged
    assert made(folder) == made(reference)


_METADATA = re.compile(r"/lfs/.*/part-(\d{5})-4227e361")


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


@pytest.mark.slow
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
    assert len(made(data.root)) == 32 + 2 + 4


# Sources


def test_discarded_sources_are_freed_and_local_files_stay(box: Sandbox, data: DataDir):
    prepare(data, [0, 1], upstream(box), discard_sources=True)
    assert copies(data) == []
    assert len(list(box.metadata_folder.glob("*.parquet"))) == len(box.content.files)
    sent = box.hub.bytes_sent("/lfs/")
    prepare(data, [0, 1], upstream(box), discard_sources=True)
    assert box.hub.bytes_sent("/lfs/") == sent


def test_the_id_list_is_fetched_once_for_all_parts(box: Sandbox, data: DataDir):
    for part in (0, 1):
        prepare(data, [part], upstream(box), discard_sources=True)
    requests = [r for r in box.hub.log if "/lfs/" in r.path and box.repo in r.path and "laion_face_ids" in r.path]
    assert (
        sum(request.sent for request in requests) == (box.folder / "laion-face" / "laion_face_ids.pth").stat().st_size
    )


def test_each_metadata_file_is_freed_once_it_is_read(today: Sandbox, data: DataDir):
    there = 0

    def count(*_: object) -> object:
        nonlocal there
        there = max(there, len(list(data.sources.rglob("part-*.parquet"))))
        return mock.DEFAULT  # then the real one is called

    with mock.patch.object(steps, "stage", side_effect=count, wraps=stage):
        prepare(data, [0, 1], upstream(today, today.metadata_repo), discard_sources=True, processes=2)
    assert 1 <= there <= 2
    assert copies(data) == []


def test_sources_that_a_killed_run_left_are_discarded_later(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box, box.metadata_url))
    assert any(data.sources.rglob("*.parquet"))
    prepare(data, [0], upstream(box, box.metadata_url), discard_sources=True)
    assert copies(data) == []


def copies(data: DataDir) -> list[Path]:
    """List what lies among the sources apart from locks and notes."""
    return [
        path for path in data.sources.rglob("*") if path.is_file() and path.suffix not in (".lock", ".checked", ".json")
    ]


def change_metadata(box: Sandbox) -> Path:
    """Copy the metadata to a folder, but for the half of its first file."""
    folder = box.folder / "changed"
    shutil.copytree(box.metadata_folder, folder, dirs_exist_ok=True)
    first = sorted(folder.iterdir())[0]
    table = pq.read_table(first)
    pq.write_table(table.slice(0, table.num_rows // 2), first)
    return folder


def test_other_sources_mean_another_index(box: Sandbox, data: DataDir):
    prepare(data, [0], upstream(box))
    before = read_fingerprint(data.index(0))
    prepare(data, [0], upstream(box, change_metadata(box)))
    after = read_fingerprint(data.index(0))
    assert {key for key in before if before[key] != after[key]} == {"metadata"}
    assert pq.read_metadata(data.index(0)).num_rows < len(box.truth_of(0))


def test_an_index_of_an_earlier_version_with_pictures_is_used_as_it_is(box: Sandbox, data: DataDir, caplog):
    prepare(data, [0], upstream(box))
    table = pq.read_table(data.index(0))
    earlier = {key: value for key, value in read_fingerprint(data.index(0)).items() if key != "join"}
    pq.write_table(table.replace_schema_metadata(stamped(table.schema, earlier).metadata), data.index(0))
    before = made(data.root)
    data.tars(0).mkdir(parents=True)
    (data.tars(0) / "00000.tar").touch()
    prepare(data, [0], upstream(box))
    assert made(data.root) == before
    assert "was prepared by an earlier version and has pictures" in caplog.text
    with pytest.raises(StateConflict):
        prepare(data, [0], upstream(box, change_metadata(box)))
    (data.tars(0) / "00000.tar").unlink()
    prepare(data, [0], upstream(box))
    assert read_fingerprint(data.index(0))["join"] == 2


@pytest.mark.parametrize("sign", ["fingerprint", "tar"])
def test_pictures_of_the_old_index_are_never_orphaned(box: Sandbox, data: DataDir, sign):
    prepare(data, [0, 1], upstream(box))
    before = made(data.root)
    here = data.images_fingerprint(0) if sign == "fingerprint" else data.tars(0) / "retry-1" / "00000.tar"
    here.parent.mkdir(parents=True)
    here.write_text("{}")
    with pytest.raises(StateConflict) as caught:
        prepare(data, [0], upstream(box, change_metadata(box)))
    for piece in (str(data.index(0)), "(metadata ", "name the old sources again", "move", str(data.tars(0))):
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
    huge = tmp_path / "web" / sorted(path.name for path in box.metadata_folder.iterdir())[0]
    huge.parent.mkdir()
    with huge.open("wb") as file:
        file.truncate(8 << 40)
    sent = box.hub.bytes_sent("/lfs/")
    with FolderHost(huge.parent) as host, pytest.raises(LaionFaceError, match=r"are needed .* are free\. Name another"):
        prepare(data, [0], upstream(box, host.url()))
    assert box.hub.bytes_sent("/lfs/") == sent


def test_metadata_that_cannot_be_used_leaves_no_index(box: Sandbox, data: DataDir, tmp_path):
    (tmp_path / "bad").mkdir()
    name = sorted(path.name for path in box.metadata_folder.iterdir())[0]
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "bad" / name)
    with pytest.raises(BadFile, match="SAMPLE_ID"):
        prepare(data, [0], upstream(box, tmp_path / "bad"))
    assert list(data.root.glob("index/part*")) == []
    assert hidden(data.root) == []


def test_metadata_that_is_not_laions_is_refused_with_its_figures(box: Sandbox, data: DataDir, tmp_path):
    for path in sorted(box.metadata_folder.iterdir()):
        table, name = pq.read_table(path), RELEASES[box.content.spec.world].id_column
        numbers = pa.array(range(table.num_rows), table.schema.field(name).type)
        (tmp_path / "other").mkdir(exist_ok=True)
        pq.write_table(
            table.set_column(table.schema.get_field_index(name), name, numbers), tmp_path / "other" / path.name
        )
    with pytest.raises(JoinRefused, match=r"other: has 0 of the 31 sample ids of part 0 \(0\.0 %"):
        prepare(data, [0], upstream(box, tmp_path / "other"))
    assert list(data.root.glob("index/part*")) == []


def test_a_number_in_a_name_of_today_is_no_part(make_sandbox, data: DataDir, caplog):
    # The Hub's file 0 was once taken for part 0: 34 rows of 134, in silence.
    box = make_sandbox(SandboxSpec(parts=(0,), rows=400, metadata_files=5))
    for path in sorted(box.metadata_folder.iterdir())[1:]:
        path.unlink()
    prepare(data, [0], upstream(box))
    assert "part 0: only" in caplog.text
    assert "of its 134 ids are in the metadata; today's release has about 87 %" in caplog.text
