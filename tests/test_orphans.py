"""A process whose parent was killed ends, whatever it is doing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = "import time; from laion_face_builder.orphans import end_with_parent; end_with_parent(); end_with_parent(); "
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(1000)
"""


@pytest.mark.parametrize("work", ["time.sleep(1000)", "while True: pass", "__import__('threading').Event().wait()"])
def test_it_ends_when_its_parent_was_killed(work: str) -> None:
    code = f"{CHILD}print('here', flush=True)\n{work}"
    with subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "here\n"
        parent.kill()
        assert parent.stdout.read() == "", "the child has its end of the pipe until it ends"


WORKER = """
import multiprocessing, os, sys, time
from laion_face_builder.orphans import end_worker_with_parent

def work(is_late):
    if is_late:
        os.write(1, b"here\\n")
        while os.getppid() == parent_of[0]:
            time.sleep(0.01)
    end_worker_with_parent()
    if not is_late:
        os.write(1, b"here\\n")
    time.sleep(1000)

parent_of = [int(os.environ["PARENT"])] if "PARENT" in os.environ else []

if __name__ == "__main__":
    os.environ["PARENT"] = str(os.getpid())
    parent_of.append(os.getpid())
    multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(sys.argv[2] == "late",)).start()
    time.sleep(1000)
"""


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_ends_though_its_parent_was_killed_before_it_looked(method: str, when: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    with subprocess.Popen([sys.executable, script, method, when], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "here\n"
        parent.kill()
        assert parent.stdout.read() == ""


IDLE = """
import multiprocessing, os, time
from laion_face_builder.orphans import forks_end_with_this

def said(_):
    return os.getpid()

if __name__ == "__main__":
    with forks_end_with_this():
        pool = multiprocessing.get_context("fork").Pool(2)
    print(pool.map(said, [0])[0], flush=True)
    time.sleep(1000)
"""


def test_workers_that_wait_for_work_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(IDLE)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) != parent.pid
        parent.kill()
        assert parent.stdout.read() == "", "the workers have their end of the pipe until they end"
