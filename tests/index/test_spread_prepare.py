"""`prepare` by worker processes, into a folder and to an address: the same bytes as threads make, whoever dies."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from laion_face_builder import cli
from laion_face_builder.errors import DiskError, OptionError, SourceNotFound, StateConflict, WorkerDied
from laion_face_builder.index import steps
from laion_face_builder.index.prepare import prepare
from laion_face_builder.index.staged import stage
from laion_face_builder.index.writer import write_index
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from laion_face_builder.sources import data_store
from laion_face_builder.sources.sources import Upstream

pytestmark = pytest.mark.slow

#: The worker that finds this file dies, and leaves another one.
DEADLY = "LAION_FACE_TEST_DEADLY"


@pytest.fixture(params=["today", "2021"])
def box(request, make_sandbox) -> Sandbox:
    return make_sandbox(SandboxSpec(parts=(0, 1), rows=90, world=request.param, metadata_files=3))


@pytest.fixture
def here(box, tmp_path) -> dict[str, bytes]:
    """Return what `prepare` makes with threads."""
    data = DataDir.at(tmp_path / "here")
    prepare(data, [0, 1], upstream(box))
    return made(data.root)


def upstream(box: Sandbox) -> Upstream:
    return Upstream(box.repo, None, box.metadata_repo)


def made(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all that prepare makes; nothing else may be left but sources and locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith("sources/")}


def kill_executor():
    """End the process that does tasks, or the executor of Spark's that it belongs to."""
    pid = os.getpid()
    while pid > 1 and b"ExecutorBackend" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    if pid > 1:
        os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def deadly_run(step):
    """Run a step as `run_apart` does, but die once in each kind: in a file of metadata, and in a part."""
    mark = Path(os.environ[DEADLY]) / type(step).__name__
    if not mark.exists() and not isinstance(step, steps.MakeIds):
        real: Any = write_index if isinstance(step, steps.MakePart) else stage

        def die(*how):
            mark.touch()
            real(*how)
            kill_executor()

        setattr(steps, real.__name__, die)
    return steps.run_apart(step)


def always_deadly_run(step):
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_make_what_threads_make(box, here, tmp_path):
    data = DataDir.at(tmp_path / "there")
    prepare(data, [0, 1], upstream(box), distributor="processes", processes=2)
    assert made(data.root) == here


def test_an_address_has_what_a_folder_has(box, here, tmp_path, caplog):
    data = DataDir.kept_at((tmp_path / "there").as_uri())
    prepare(data, [0], upstream(box))
    prepare(data, [0, 1], upstream(box), processes=2)
    assert made(tmp_path / "there") == here
    caplog.set_level("INFO", "laion_face")
    log = len(box.hub.log)
    prepare(data, [0, 1], upstream(box))
    assert "prepared, nothing to do" in caplog.text
    assert not [request for request in box.hub.log[log:] if "/lfs/" in request.path]


def test_a_killed_worker_costs_its_step_alone(box, here, tmp_path, monkeypatch):
    monkeypatch.setenv(DEADLY, str(tmp_path / "deadly"))
    (tmp_path / "deadly").mkdir()
    monkeypatch.setattr(steps, "run_apart", deadly_run)
    prepare(DataDir.kept_at((tmp_path / "there").as_uri()), [0, 1], upstream(box), processes=2)
    expected = {"MakePart"} | ({"StageFile"} if box.content.spec.world == "today" else set())
    assert {path.name for path in (tmp_path / "deadly").iterdir()} == expected
    assert made(tmp_path / "there") == here


def test_a_step_that_always_kills_is_named(box, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "run_apart", always_deadly_run)
    with pytest.raises(WorkerDied, match="the sample ids: its worker process ended 2 times, at last with SIGKILL"):
        prepare(DataDir.at(tmp_path / "there"), [0], upstream(box), distributor="processes", processes=1)


def test_pictures_at_an_address_are_not_orphaned(box, make_sandbox, tmp_path):
    data = DataDir.kept_at((tmp_path / "there").as_uri())
    prepare(data, [0], upstream(box))
    tar = DataDir.at(tmp_path / "there").tars(0) / "00000.tar"
    tar.parent.mkdir(parents=True)
    tar.touch()
    other = make_sandbox(SandboxSpec(parts=(0,), rows=60))
    with pytest.raises(StateConflict, match=r"pictures were downloaded for it"):
        prepare(data, [0], upstream(other))


def test_the_command_takes_addresses(box, tmp_path, capsys):
    address = (tmp_path / "there").as_uri()
    command = ["prepare", "20M", "--parts", "0", "--data-dir", address, "--format", "json"]
    command += ["--source-repo", box.repo, "--metadata", box.metadata_repo]
    assert cli.main([*command, "--dry-run"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert (forecast["disks"], next(step["deed"] for step in forecast["steps"])) == ([], "made")
    assert not (tmp_path / "there").exists()
    assert cli.main([*command, "--distributor", "processes"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["data_dir"] == address
    assert status["parts"][0]["rows"] == len(box.truth_of(0)) == status["parts"][0]["proof"]["rows"]
    assert cli.main(["status", "20M", "--data-dir", address]) == 0
    assert "1 of 13 parts are prepared" in capsys.readouterr().out
    assert cli.main([*command, "--index", str(tmp_path)]) == 1
    assert "is copied to a folder of this machine" in capsys.readouterr().err


def test_other_commands_take_folders_only():
    with pytest.raises(OptionError, match="expected a folder of this machine, not an address"):
        DataDir.at("s3://bucket/data")


def test_what_is_not_there_is_said(tmp_path):
    with data_store.at_work(DataDir.kept_at(tmp_path.as_uri())) as data:
        assert not data_store.has(data, data.ids(0))
        assert data_store.fingerprint(data, data.ids(0)) is None
        assert data_store.below(data, data.staging) == {}
        with pytest.raises(SourceNotFound, match=r"part-00000.parquet: there is no such file"):
            data_store.bring(data, data.ids(0))
        assert not data.ids(0).exists()


def test_an_address_that_may_not_be_written_is_said(tmp_path):
    with data_store.at_work(DataDir.kept_at((tmp_path / "there").as_uri())) as data:
        data.ids(0).parent.mkdir()
        data.ids(0).touch()
        (tmp_path / "there").write_text("a file is in its way")
        with pytest.raises((DiskError, SourceNotFound)):
            data_store.send(data, data.ids(0))
