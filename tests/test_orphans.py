"""A process whose parent was killed ends, whatever it is doing."""

from __future__ import annotations

import subprocess
import sys

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
