"""After a kill no process is left; after the next run nothing is, in the DATA_DIR or among temporary files."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from laion_face_builder.sandbox import Sandbox, SandboxSpec
from tests.download.test_signals import processes
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks /proc who is there"),
]

READER = """
import sys
import laion_face

if __name__ == "__main__":
    data_dir, how = sys.argv[1:]
    given = {"split": "train", "parts": [0], "images": "fetch", "allow_private_hosts": True, "retries": 0}
    given |= {"data_dir": data_dir, "streaming": how != "arrow"}
    if how == "arrow":
        laion_face.load_dataset("20M", cache_dir=f"{data_dir}/cache", num_proc=2, **given)
    else:
        from torch.utils.data import DataLoader
        rows = laion_face.load_dataset("20M", **given).decode(False)
        for row in DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context=how):
            pass
"""
TAR_OPTIONS = ("--allow-private-hosts", "--retries", "0", "--samples-per-shard", "50", "--processes", "2")
#: What runs -> its command, after Python's name, for a sandbox, a DATA_DIR and the reader's script.
COMMANDS: dict[str, Callable[[Sandbox, Path, Path], tuple[str, ...]]] = {
    "prepare": lambda box, data, _: (*_face("prepare", "20M", data), *_of(box), "--processes", "2"),
    "download": lambda _, data, __: (*_face("download", "20M", data), *TAR_OPTIONS),
    "resize": lambda _, data, __: (
        *_face("download", "20M", data),
        *TAR_OPTIONS,
        *("--resize-mode", "keep_ratio", "--image-size", "64"),
    ),
    "publish": lambda _, data, __: _face("publish", str(data / "out"), data),
    "fork": lambda _, data, reader: (str(reader), str(data), "fork"),
    "spawn": lambda _, data, reader: (str(reader), str(data), "spawn"),
    "arrow": lambda _, data, reader: (str(reader), str(data), "arrow"),
}
#: Of each command; where it is killed is drawn, and differs between them.
KILLS = 1


def _face(command: str, what: str, data: Path) -> tuple[str, ...]:
    return ("-m", "laion_face", command, what, "--parts", "0", "--data-dir", str(data))


def _of(box: Sandbox) -> tuple[str, ...]:
    return ("--source-repo", str(box.repo), "--metadata", str(box.metadata_folder))


@contextmanager
def running(command: tuple[str, ...], temporary: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run Python with this command and a folder for temporary files; give it, and the mark of all its processes."""
    mark = uuid.uuid4().hex
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary), "LAION_FACE_TEST_MARK": mark}
    said = temporary.with_suffix(".log")
    with said.open("w") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log, text=True)
    try:
        yield process, mark
    finally:
        process.kill()
        process.wait()


def require_done(command: tuple[str, ...], temporary: Path) -> None:
    with running(command, temporary) as (process, _):
        assert process.wait(400) == 0, temporary.with_suffix(".log").read_text()


def names(folder: Path) -> list[str]:
    """List all that is below the folder, but for locks."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".lock"))


@pytest.fixture
def brief() -> Iterator[Path]:
    """Give a place for temporary folders: multiprocessing has its sockets there, whose path has to be short."""
    with tempfile.TemporaryDirectory(prefix="left-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("what", COMMANDS)
def test_a_kill_leaves_nothing_for_good(
    what: str, make_sandbox: Callable[[SandboxSpec], Sandbox], tmp_path: Path, brief: Path
) -> None:
    box = make_sandbox(SandboxSpec(parts=(0,), rows=400, twisted=0, failing=0.1))
    reader, base = tmp_path / "reader.py", tmp_path / "base"
    reader.write_text(READER)
    base.mkdir()
    if what != "prepare":
        require_done(COMMANDS["prepare"](box, base, reader), brief / "tmp")
    draw, clean = random.Random(what), tmp_path / "clean"
    shutil.copytree(base, clean)
    began = time.monotonic()
    require_done(COMMANDS[what](box, clean, reader), brief / "tmp")
    seconds = time.monotonic() - began
    for number in range(KILLS):
        data, temporary = tmp_path / f"data-{number}", brief / f"tmp-{number}"
        shutil.copytree(base, data)
        command = COMMANDS[what](box, data, reader)
        with running(command, temporary) as (process, mark):
            # Wherever it is by then, or even if it is done: what has to be true is true of all of it.
            time.sleep(draw.uniform(0.3, 1) * seconds)
            process.kill()
            process.wait()
            wait_until(lambda: not processes(mark))
        require_done(command, temporary)
        # Of an Arrow cache each run that was killed leaves what datasets had begun: it makes that anew, beside it.
        assert [name for name in names(data) if name not in names(clean)] == []
        assert [name for name in names(clean) if name not in names(data)] == []
        assert [name for name in names(temporary) if name.startswith(("laion-face", "tmp"))] == []
