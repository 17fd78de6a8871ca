"""Law 10: what works in a checkout works as installed. Here is what an installation has that a checkout has not."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import laion_face_builder
from laion_face_builder.layout import DataDir
from laion_face_builder.parallel import python

PACKAGE = Path(laion_face_builder.__file__).parent


def test_nothing_but_our_names_is_installed():
    files = importlib.metadata.files("laion-face")
    tops = {file.parts[0] for file in files if not file.parts[0].startswith((".", "_"))}
    tops = {top for top in tops if not top.endswith((".dist-info", ".pth"))}
    assert tops <= {"laion_face.py", "laion_face_builder", "laion_face-stubs"}


def test_children_are_started_in_one_place_only():
    # The place is `parallel.python`, which isolates them. A PYTHONPATH once put a backport before the standard library.
    for file in PACKAGE.rglob("*.py"):
        if file.name != "parallel.py":
            assert not re.search(r"sys\.executable|PYTHONPATH|PYTHONSAFEPATH", file.read_text(encoding="utf-8")), file


def test_a_child_imports_nothing_from_where_it_is_started(tmp_path):
    for name in ("json", "dataclasses", "laion_face_builder"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    code = "import json, dataclasses, laion_face_builder; print(laion_face_builder.__file__)"
    done = subprocess.run(python("-c", code), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == PACKAGE / "__init__.py"


@pytest.mark.parametrize("module", ["laion_face_builder", "laion_face"])
def test_the_command_line_is_there_by_each_name(module):
    for command in ([str(Path(sys.executable).parent / "laion-face")], [sys.executable, "-m", module]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, laion_face_builder.__version__)


@pytest.mark.slow
def test_the_whole_job_in_a_folder_that_is_full_of_traps(make_sandbox, tmp_path):
    # prepare, download and load by the commands that are installed, where modules of other names lie about.
    from laion_face_builder.sandbox import SandboxSpec

    box = make_sandbox(SandboxSpec(parts=(0,), rows=80))
    for name in ("numpy", "dataclasses", "random", "queue", "img2dataset", "albumentations"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    program = str(Path(sys.executable).parent / "laion-face")
    sources = ["--source-repo", box.repo, "--metadata", box.metadata_repo]
    where = ["20M", "--parts", "0", "--data-dir", "data"]
    for command in (["prepare", *where, *sources], ["download", *where, "--allow-private-hosts"]):
        done = subprocess.run([program, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    code = (
        "import json, laion_face\n"
        "ds = laion_face.load_dataset('20M', split='train', parts='0', data_dir='data', streaming=True)\n"
        "print(json.dumps([example['sample_id'] for example in ds]))"
    )
    done = subprocess.run(python("-c", code), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [truth.sample_id for truth in box.truth_of(0) if truth.ok]
    assert DataDir.at(tmp_path / "data").sidecar(0).exists()
