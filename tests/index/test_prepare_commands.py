"""What `prepare` and `status` say and do on the command line: proofs for people and programs, and a published index."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laion_face_builder import cli
from laion_face_builder.index.writer import proof_path
from laion_face_builder.layout import ALL_PARTS, CONFIG_PARTS, DataDir
from laion_face_builder.parquet_files import rows_in
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from laion_face_builder.shown import ranges


@pytest.fixture(scope="module")
def made(sandbox: Sandbox, tmp_path_factory) -> DataDir:
    """Prepare part 0 of today's world, by the command; `sandbox` is the Hub's under upstream's own names."""
    folder = tmp_path_factory.mktemp("made")
    assert cli.main(["prepare", "20M", "--parts", "0", "--data-dir", str(folder), "--processes", "1"]) == 0
    return DataDir.at(folder)


def test_the_default_call_prepares_what_the_hub_has_today(made: DataDir, sandbox: Sandbox):
    assert sandbox.metadata_repo == "laion/relaion400m"
    found = pq.read_table(made.index(0), columns=["sample_id"])["sample_id"].to_pylist()
    assert found == [true.sample_id for true in sandbox.truth_of(0)]


def test_status_has_the_proofs_for_programs(made: DataDir, sandbox: Sandbox, capsys):
    assert cli.main(["status", "50M", "--data-dir", str(made.root), "--format", "json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["data_dir"] == str(made.root)
    assert [part["part"] for part in status["parts"]] == list(ALL_PARTS)
    first, second = status["parts"][:2]
    assert first["proof"] == json.loads(proof_path(made.index(0)).read_text())
    assert first["proof"]["ids_found"] == sandbox.content.proof[0]["found"]
    assert first["rows"] == first["proof"]["rows"] == len(sandbox.truth_of(0))
    assert (first["tars"], first["pictures"]) == (0, None)
    assert (second["rows"], second["proof"]) == (None, None)


def test_status_has_the_proofs_for_people(made: DataDir, sandbox: Sandbox, capsys):
    assert cli.main(["status", "20M", "--data-dir", str(made.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    true = sandbox.content.proof[0]
    heads, first = lines[1].split(), lines[2].split()
    assert " ".join(heads[:10]) == "part listed with faces indexed found fit left out swapped"
    assert first[4:6] == [f"{100 * true['found'] / true['asked']:.1f}", "%"]
    assert first[9] == str(true["swapped"])
    listed = sum(rows_in(made.ids(part)) for part in CONFIG_PARTS["20M"][1:])
    assert lines[-4:-2] == [
        f"parts {ranges(CONFIG_PARTS['20M'][1:], ', ')}: not begun, {listed:,} samples listed",
        "1 of 13 parts are prepared",
    ]
    assert all(len(line) <= 120 for line in lines[1:])


def test_a_proof_that_is_none_is_named(made: DataDir, tmp_path: Path, capsys):
    data = DataDir.at(tmp_path / "copy")
    shutil.copytree(made.root, data.root)
    proof_path(data.index(0)).write_text("{")
    assert cli.main(["status", "20M", "--data-dir", str(data.root)]) == 1
    assert "part-00000.json: found no JSON" in capsys.readouterr().err


def test_ctrl_c_ends_it_at_once_and_the_same_command_goes_on(make_sandbox, tmp_path):
    box = make_sandbox(SandboxSpec(parts=(0,), rows=60))
    command = [
        sys.executable,
        "-m",
        "laion_face_builder",
        "prepare",
        "20M",
        "--parts",
        "0",
        "--data-dir",
        str(tmp_path),
    ]
    command += ["--source-repo", box.repo, "--metadata", box.metadata_repo]
    box.hub.plant("-4227e361-", calls=range(1, 99), delay=60.0)
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = ""
    while "fetching " + box.metadata_repo not in said:
        said += child.stderr.readline()
    child.send_signal(signal.SIGINT)
    rest = child.communicate(timeout=30)[1]
    assert (child.returncode, rest.splitlines()[-1]) == (
        130,
        "laion-face: interrupted; run the same command again to go on",
    )
    box.hub.faults.clear()
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("count", ["0", "-1"])
def test_no_processes_are_refused(tmp_path, capsys, count):
    assert cli.main(["prepare", "20M", "--data-dir", str(tmp_path), "--processes", count]) == 1
    assert f"processes={count}: expected a whole number, 1 to 1,000" in capsys.readouterr().err


def test_a_published_index_needs_nothing_else(published, tmp_path, sandbox: Sandbox, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before, folder = len(sandbox.hub.log), str(tmp_path / "data")
    command = ["prepare", "20M", "--parts", "0,2", "--index", str(published.folder), "--data-dir", folder]
    assert cli.main(command) == 0
    data = DataDir.at(folder)
    for part in (0, 2):
        assert pq.read_table(data.index(part)).equals(pq.read_table(published.data.index(part)))
    changed = data.index(0).stat().st_mtime_ns
    assert cli.main(command) == 0
    assert data.index(0).stat().st_mtime_ns == changed
    assert len(sandbox.hub.log) == before


def test_pictures_of_another_index_are_not_orphaned(published, make_sandbox, tmp_path, capsys):
    box = make_sandbox(SandboxSpec(parts=(0,), rows=60))
    command = ["prepare", "20M", "--parts", "0", "--data-dir", str(tmp_path)]
    sources = ["--source-repo", box.repo, "--metadata", str(box.metadata_folder)]
    assert cli.main([*command, *sources]) == 0
    before = DataDir.at(tmp_path).index(0).read_bytes()
    DataDir.at(tmp_path).tars(0).mkdir(parents=True)
    (DataDir.at(tmp_path).tars(0) / "00000.tar").touch()
    assert cli.main([*command, "--index", str(published.folder)]) == 1
    assert "pictures were downloaded for it" in capsys.readouterr().err
    assert DataDir.at(tmp_path).index(0).read_bytes() == before
