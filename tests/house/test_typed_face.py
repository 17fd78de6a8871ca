"""What users see of `laion_face`: types in their scripts, names, an import that does nothing but import."""

import ast
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import laion_face
from tests.support import stubs

SCRIPT = Path(__file__).parent / "typed" / "right_and_wrong.py"
WRONG = {number for number, line in enumerate(SCRIPT.read_text().splitlines(), 1) if line.endswith("# wrong")}
CHECKERS = {
    "mypy": ["mypy", "--strict", "--cache-dir", "cache"],
    "pyright": ["basedpyright", "--level", "error", "--pythonpath", sys.executable],
}


def test_the_stubs_options_are_the_options():
    text = stubs.STUB.read_text(encoding="utf-8")
    assert stubs.written(text) == text, "run `python tests/support/stubs.py`"


def test_the_stubs_names_and_parameters_are_those_that_run():
    nodes = ast.parse(stubs.STUB.read_text(encoding="utf-8")).body
    named: dict[str, Any] = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert {name for name in named if name[0] != "_"} == set(laion_face.__all__)
    for name in ("report", "collate", "in_step", "align_face", "crop_face", "crop_faces", "draw_faces", "look"):
        stubbed, runs = named[name].args, inspect.signature(getattr(laion_face, name)).parameters
        assert [one.arg for one in [*stubbed.args, *stubbed.kwonlyargs]] == list(runs), name
        defaults = [None if one is None else ast.literal_eval(one) for one in [*stubbed.defaults, *stubbed.kw_defaults]]
        assert defaults == [one.default for one in runs.values() if one.default is not one.empty], name
    has = {node.name for node in named["Report"].body if isinstance(node, ast.FunctionDef)} - {"__init__"}
    has |= {ast.unparse(node.target) for node in named["Report"].body if isinstance(node, ast.AnnAssign)}
    assert has == {name for name in [*dir(laion_face.Report), *laion_face.Report.__annotations__] if name[0] != "_"}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_sees_what_is_wrong_in_a_users_script_and_nothing_else(checker, tmp_path):
    # The script lies in a folder of its own, as if `laion_face` were installed.
    script = tmp_path / "script.py"
    script.write_bytes(SCRIPT.read_bytes())
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    program, *words = CHECKERS[checker]
    command = [sys.executable, "-m", program, *words, script.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = {int(line) for line in re.findall(r"script\.py:(\d+):.* error:", done.stdout)}
    said |= {int(line) for line in re.findall(r"script\.py:(\d+): error:", done.stdout)}
    assert said == WRONG, done.stdout + done.stderr


def run(code, **variables):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    return done.stdout, done.stderr


def test_importing_says_nothing_and_sets_up_no_logging():
    out, err = run(
        "import logging, laion_face\n"
        "logger = logging.getLogger('laion_face')\n"
        "print([type(one).__name__ for one in logger.handlers], logger.level, logging.getLogger().handlers)"
    )
    assert (out, err) == ("['NullHandler'] 0 []\n", "")


def loaded(code, before=""):
    """Return which packages of others `code` imports, apart from those that `before` has imported."""
    tops = "{name.partition('.')[0] for name in sys.modules}"
    out, _ = run(f"import sys\n{before}\nthere = {tops}\n{code}\nprint(*{tops} - there)")
    others = set(importlib.metadata.packages_distributions()) - {"laion_face", "laion_face_builder"}
    return set(out.splitlines()[-1].split()) & others - sys.stdlib_module_names


def test_importing_loads_little_that_datasets_has_not_loaded():
    # What decodes and what fetches; they take 0.02 s. What resizes, draws, writes pages and collates waits for its use.
    assert loaded("import laion_face", "import datasets") <= {"PIL", "certifi", "idna", "protego", "pycurl"}


def test_help_comes_without_what_takes_long_to_import():
    code = "from laion_face_builder import cli\nassert cli.main(['--help']) == 0"
    assert loaded(code) <= {"PIL", "filelock", "idna", "numpy", "pyarrow"}


def test_a_user_sees_the_public_names_and_no_others():
    assert dir(laion_face) == sorted([*laion_face.__all__, "__version__"])


def test_a_streams_first_example_comes_without_torch(prepared):
    # `datasets` imports torch for every stream if it may; we never do.
    given = {"split": "train", "streaming": True, "parts": "0", "data_dir": str(prepared.data.root)}
    out, _ = run(
        f"import sys, laion_face\nds = laion_face.load_dataset('20M', **{given!r})\n"
        "example = next(iter(ds))\nimport json\n"
        "print(json.dumps([example['image'] is not None, 'torch' in sys.modules]))",
        USE_TORCH="0",
    )
    assert json.loads(out) == [True, False]
