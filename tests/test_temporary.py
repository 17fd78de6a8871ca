"""Temporary folders: those of the living stay, those of the dead are gone once somebody makes another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from laion_face_builder import temporary

MAKER = """
import os, sys, time
from laion_face_builder.temporary import make_folder
folder = make_folder("test")
(folder / "file").write_text("x")
child = os.fork() if sys.argv[1] == "forked" else 0
if child or sys.argv[1] != "forked":
    print(f"{folder} {child}", flush=True)
if child:
    os._exit(0)  # the child lives on, and has the folder
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def made_by(maker: subprocess.Popen[str]) -> tuple[Path, int]:
    """Return the folder, and the process that has it too."""
    assert maker.stdout is not None
    folder, child = maker.stdout.readline().split()
    return Path(folder), int(child)


def test_what_the_dead_left_goes_and_what_the_living_have_stays() -> None:
    ours = temporary.make_folder("test")
    with subprocess.Popen([sys.executable, "-c", MAKER, "plain"], stdout=subprocess.PIPE, text=True) as maker:
        theirs, _ = made_by(maker)
        temporary.remove_folder(temporary.make_folder("test"))
        assert (theirs / "file").exists()
        maker.kill()
        maker.wait()
        temporary.remove_folder(temporary.make_folder("other"))
        assert not theirs.exists()
    assert ours.is_dir()
    temporary.remove_folder(ours)
    assert not ours.exists()


def test_a_forked_worker_has_its_parents_folder() -> None:
    with subprocess.Popen([sys.executable, "-c", MAKER, "forked"], stdout=subprocess.PIPE, text=True) as maker:
        folder, child = made_by(maker)
        maker.wait()
        temporary.remove_folder(temporary.make_folder("test"))
        assert (folder / "file").exists()
        os.kill(child, signal.SIGKILL)
        assert maker.stdout is not None
        assert not maker.stdout.read(), "it is dead when its end of the pipe is closed"
    temporary.remove_folder(temporary.make_folder("test"))
    assert not folder.exists()


def test_what_is_not_ours_stays(place: Path) -> None:
    strange = [place / "laion-face-1000", place / "laion-face-my-notes", place / "else-report-1"]
    for folder in strange:
        folder.mkdir()
    (place / "laion-face-a-file").write_text("x")
    temporary.remove_folder(temporary.make_folder("test"))
    assert sorted(place.iterdir()) == sorted([*strange, place / "laion-face-a-file"])
