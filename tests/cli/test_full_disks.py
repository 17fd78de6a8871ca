"""A full disk is one line, nothing hangs, and with room the same command goes on: disks of so many bytes, in memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laion_face_builder.layout import DataDir
from tests.cli.test_user_mistakes import COMMAND, run
from tests.support.needs import MOUNTING

#: A disk that has room for what lies in $1, and for $2 bytes more; later for all, when the same command comes again.
SMALL = (
    'disk=$0; from=$1; size=$2; shift 2; mount -t tmpfs -o size=$size none "$disk" && cp -a "$from/." "$disk" && {'
    ' "$@"; echo "first $?"; mount -o remount,size=200m "$disk" && "$@"; echo "then $?"; cp -a "$disk/." "$from"; }'
)
#: A disk without room for the log, which is what a command says.
FULL_LOG = (
    'disk=$0; mount -t tmpfs -o size=4k none "$disk" && head -c 4090 /dev/zero >"$disk/log" &&'
    ' { "$@" 2>>"$disk/log"; echo "code $?"; stat -c %s "$disk/log"; }'
)
#: Of a page each: a file takes a whole number of them.
PAGE = 4096


def room_of(folder: Path) -> int:
    return sum(PAGE + -(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*"))


@pytest.fixture
def prepared_only(prepared, tmp_path):
    """Give a copy of the index alone, and a folder to mount a disk at."""
    data, disk = DataDir(tmp_path / "data"), tmp_path / "disk"
    shutil.copytree(prepared.data.index(0).parent, data.index(0).parent, ignore=shutil.ignore_patterns("*.lock"))
    disk.mkdir()
    return data, disk


def full_then_not(disk: Path, folder: Path, more: int, *words) -> subprocess.CompletedProcess:
    """Run a command on a small disk, and again on a large one; what is on the disk in the end is copied to `folder`."""
    return run(*MOUNTING, "sh", "-c", SMALL, disk, folder, room_of(folder) + more, *words)


def one_line(done: subprocess.CompletedProcess, disk: Path) -> str:
    assert "Traceback" not in done.stderr
    ends = [line for line in done.stdout.splitlines() if line.startswith(("first ", "then "))]
    assert ends == ["first 1", "then 0"], (done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("laion-face: error: ")]
    assert str(disk) in line
    return line


@pytest.mark.slow
@pytest.mark.own_disk
@pytest.mark.parametrize(
    ("more", "how"), [(0, ()), (400_000, ()), (60_000, ("--image-size", "64"))], ids=["at once", "midway", "resized"]
)
def test_a_download_says_that_its_disk_is_full_and_goes_on(prepared_only, more, how):
    data, disk = prepared_only
    words = (*COMMAND, "download", "20M", "--parts", "0", "--data-dir", disk, "--allow-private-hosts", "--ignore-space")
    line = one_line(full_then_not(disk, data.root, more, *words, "--processes", "2", *how), disk)
    assert "no room left on its disk" in line
    assert "the same command again" in line
    assert "All of it takes about" in line
    statuses = pq.read_table(data.sidecar(0), columns=["status"])["status"].to_pylist()
    assert "not_downloaded" not in statuses
    assert statuses.count("ok") > len(statuses) / 3


@pytest.mark.own_disk
def test_publishing_says_that_the_disk_is_full_and_goes_on(prepared, tmp_path):
    data, disk = prepared.data, tmp_path / "disk"
    (tmp_path / "there").mkdir()
    disk.mkdir()
    words = (*COMMAND, "publish", disk / "published", "--data-dir", data.root, "--parts", "0")
    line = one_line(full_then_not(disk, tmp_path / "there", 20_000, *words), disk)
    assert "no room left on its disk" in line
    assert pq.read_metadata(tmp_path / "there" / "published" / "data" / "part-00000.parquet").num_rows > 100


@pytest.mark.own_disk
def test_a_log_without_room_ends_nothing(prepared_only):
    data, disk = prepared_only
    words = (*COMMAND, "download", "20M", "--parts", "0", "--data-dir", data.root, "--allow-private-hosts")
    done = run(*MOUNTING, "sh", "-c", FULL_LOG, disk, *words)
    assert done.stdout.splitlines()[-2:] == ["code 0", "4096"], (done.stdout, done.stderr)
    assert data.sidecar(0).exists()
