"""Ctrl-C and SIGTERM in the middle of a download: one line, nobody left, nothing half-written; and then it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.shard_files import read_members
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Truth
from tests.download.test_download import make_host, stored, write_index
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

COMMAND = (
    *("env", "--default-signal=INT,TERM", sys.executable, "-m", "laion_face", "download", "20M", "--parts", "0"),
    *(
        "--samples-per-shard",
        "10",
        "--processes",
        "2",
        "--concurrency",
        "4",
        "--allow-private-hosts",
        "--timeout",
        "60",
    ),
)


def processes(mark: str) -> list[int]:
    """List the processes with this word in their environment: whatever we started, and what that did."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def require_whole_files(files: PartFiles) -> None:
    """Require that everything that has a final name can be read to its end."""
    for tar in files.tars(0).glob("*.tar"):
        assert read_members(tar)
    for table in (*files.tars(0).glob("*.parquet"), *files.checked.glob("[!.]*.parquet")):
        assert pq.read_table(table).num_rows
    for stats in files.tars(0).glob("*_stats.json"):
        assert json.loads(stats.read_text())["count"]


def require_the_hosts_own(data: DataDir, truths: list[Truth]) -> None:
    for truth, found in zip(truths, stored(data), strict=True):
        assert found.data == (truth.served if truth.ok else None), truth


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks /proc who is there")
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_download_that_is_told_to_end_does_and_goes_on(
    number: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    host, truths = make_host(300, tmp_path / "none")
    data = DataDir.at(tmp_path / "data")
    files = PartFiles(data, 0)
    write_index(data, truths)
    command = [*COMMAND, "--data-dir", str(data.root)]
    mark = uuid.uuid4().hex
    host.plant("/", calls=range(1, 10_000), delay=0.4)
    told = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "MARK": mark}
    )
    wait_until(lambda: any(files.tars(0).glob("*_stats.json")) and any(files.tars(0).glob("_tmp/*/*.tar")))
    assert len(processes(mark)) >= 3  # itself and its workers
    told.send_signal(number)
    out, talk = told.communicate(timeout=60)
    assert (told.returncode, out) == (code, "")
    assert talk.splitlines()[-1] == f"laion-face: {said}; run the same command again to go on"
    assert talk.count("laion-face:") == 1
    assert "Traceback" not in talk
    wait_until(lambda: not processes(mark))
    require_whole_files(files)
    finished = {path: path.stat().st_mtime_ns for path in files.tars(0).glob("*_stats.json")}
    assert finished
    assert not data.sidecar(0).exists()
    host.faults.clear()
    again = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, timeout=300, check=True)
    host.stop()
    assert json.loads(again.stdout)["rows"] == len(truths)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not (files.tars(0) / "_tmp").exists()
    require_the_hosts_own(data, truths)
