"""Law 5: the same examples from datasets 3.6, with laion_face.py as a loading script, and from the newest datasets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Where `make test` sets datasets 3.6 up; another place for those who have it elsewhere.
PYTHON_36 = os.environ.get("LAION_FACE_DATASETS_36_PYTHON", str(ROOT / ".venv-datasets-3.6" / "bin" / "python"))


def dump(python, data, cache, how):
    assert Path(python).exists(), f"{python}: run `make test`, which sets datasets 3.6 up"
    command = [python, str(ROOT / "tests" / "support" / "dump_examples.py"), str(data), str(cache), how]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cache)
    assert done.returncode == 0, done.stderr
    version, *lines = done.stdout.splitlines()
    return version, lines


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stream", "table"])
def test_the_script_and_the_builder_give_the_same_examples(prepared, tmp_path, how):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, by_script = dump(PYTHON_36, prepared.data.root, tmp_path / "old", how)
    new, by_builder = dump(sys.executable, prepared.data.root, tmp_path / "new", how)
    assert old.startswith("3.6")
    assert not new.startswith("3.")
    assert len(by_script) == sum(truth.ok for truth in prepared.truth)
    assert by_script == by_builder
