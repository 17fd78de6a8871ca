"""Where a machine lacks what some tests need, they are left out, and that is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mark", "file"),
    [
        ("browser", "tests/inspect/test_show.py"),
        ("own_network", "tests/fetch/test_outage.py"),
    ],
)
def test_what_is_left_out_is_said_and_runs_when_it_is_asked_for(mark, file, tmp_path):
    where = ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), str(ROOT / file)]
    command = [sys.executable, "-m", "pytest", "--collect-only", *where]
    bare = {**os.environ, "PATH": str(tmp_path), "CHROMIUM": ""}

    def collected(*chosen):
        done = subprocess.run([*command, *chosen], env=bare, cwd=tmp_path, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        return {line for line in lines if "::test_" in line}, [line for line in lines if "were left out" in line]

    marked, _ = collected("-m", mark)
    assert len(marked) > 3
    others, told = collected()
    assert len(told) == 4
    assert not marked & others
