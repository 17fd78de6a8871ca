"""What README and docs/ say to type does what they say: taken out of them and run, as it is printed."""

import bisect
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from packaging.version import Version
from PIL import Image

import laion_face
from laion_face_builder.sandbox import Sandbox, SandboxSpec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).parents[1] / "support" / "run_recipe.py"


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


README, QUICK_START, REAL_THING = "README.md", "docs/quick-start.md", "docs/real-thing.md"
RECIPES, PUBLISH, TAKE_DOWN, EXPORT = "docs/recipes.md", "docs/publish.md", "docs/take-down.md", "docs/export.md"


class Block(NamedTuple):
    """A block of a page, and the file that its first line says it is kept in."""

    kind: str
    text: str

    @property
    def file(self):
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found and found[1]


def blocks(name):
    found = re.findall(r"^( *)```(python|bash)\n(.*?)^ *```$", page(name), re.DOTALL | re.MULTILINE)
    return [Block(kind, textwrap.dedent(text)) for _, kind, text in found]


class Reader:
    """Somebody who types what stands there, in a fresh folder, with an environment that leads to a sandbox."""

    def __init__(self, box, folder):
        self.box, self.folder = box, folder
        (folder / "here").mkdir(parents=True)
        self.here = folder / "here"
        programs = {
            "python": "",
            "laion-face": "-m laion_face_builder",
            "torchrun": "-m torch.distributed.run",
        }
        for name, how in programs.items():
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{RUNNER}" {how} "$@"\n')
            program.chmod(0o755)

    @property
    def environment(self):
        bin_folder = self.folder / "bin"
        return {
            **os.environ,
            **self.box.environment,
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHON_EXEC": str(bin_folder / "python"),  # what torchrun starts
            "OMP_NUM_THREADS": "1",
        }

    def types(self, block):
        """Run the block to its end; return what it printed."""
        done = self.tries(block)
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def tries(self, block):
        if block.kind == "python":
            (self.here / (block.file or "typed.py")).write_text(block.text)
        if block.file:
            return subprocess.CompletedProcess([], 0, "", "")
        command = ["bash", "-e", "-c", block.text] if block.kind == "bash" else ["python", "typed.py"]
        return subprocess.run(
            command, cwd=self.here, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )


@contextlib.contextmanager
def reader(folder):
    spec = SandboxSpec(parts=(0, 1, 2), rows=160, failing=0, twisted=0)
    with Sandbox.running(folder / "sandbox", spec) as box:
        box.hub.writers[next(iter(box.hub.writers))] = ("owner",)
        yield Reader(box, folder)


def someone_asks_for(sample_id, data_dir):
    """Give one of the samples the id that the recipe asks for."""
    path = data_dir / "faces" / "part-00000.parquet"
    table = pq.read_table(path)
    ids = table["sample_id"].to_pylist()
    smaller = bisect.bisect(ids, sample_id)  # ids are sorted, and stay so
    changed = table.set_column(0, table.schema.field(0), [[*ids[: smaller - 1], sample_id, *ids[smaller:]]])
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


def what_a_reader_has(at):
    """Make what the recipes take for granted besides what those before them made."""
    data_dir = at.here / "laion-face"
    for part in (0, 2):
        shutil.copytree(data_dir / "images" / f"part-{part:05}", at.here / "laion_face_data" / f"split_{part:05}")
    (at.here / "path" / "to").mkdir(parents=True)
    shutil.copy(laion_face.__file__, at.here / "path" / "to")
    (sample_id,) = re.findall(r"laion-face faces (\d+)", page(RECIPES))
    someone_asks_for(int(sample_id), data_dir)


def test_the_quick_start_runs_as_it_is_printed(tmp_path):
    with reader(tmp_path) as at:
        for block in [*blocks(QUICK_START), *blocks(README)]:
            at.types(block)


@pytest.mark.timeout(1800)  # all of them, in one DATA_DIR
def test_the_recipes_run_as_they_are_printed(tmp_path):
    with reader(tmp_path) as at:
        for block in blocks(REAL_THING):
            at.types(block)
        what_a_reader_has(at)
        said = {block.text: checked(at, block) for block in blocks(RECIPES)}
        trained = [text for block, text in said.items() if "torchrun" in block]
        assert len(trained) == 2
        assert all(text.count("step of") >= 4 for text in trained)  # two epochs of two ranks
        assert not list((at.box.folder / "home" / "data").glob("*"))  # nothing went into the default place


EXAMPLES = {
    "aligned_faces": ("python aligned_faces.py", "aligned/*.jpg"),
    "controlnet_pairs": ("python controlnet_pairs.py", "pairs/prompt.jsonl"),
    "own_captions": ("python own_captions.py", "captions.parquet"),
    "train_clip": ("torchrun --nproc-per-node 2 train_clip.py", None),
    "histogram": ("python histogram.py", "faces.png"),
    "adopt_laion400m": ("python adopt_laion400m.py", None),
}


def the_examples_run(at):
    assert sorted(EXAMPLES) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
    others_tars(at)
    shutil.copytree(ROOT / "examples", at.here, dirs_exist_ok=True)
    said = {}
    for name, (command, made) in EXAMPLES.items():
        shutil.rmtree(at.here / "pairs", ignore_errors=True)  # an export of that name was made before
        said[name] = at.types(Block("bash", command))
        assert made is None or next(iter(at.here.glob(made)), None), name
    assert "image" in said["controlnet_pairs"]
    assert re.search(r"^\d+ \d+ faces \(\d+, \d+\)$", said["own_captions"], re.MULTILINE)
    assert {"rank 0", "rank 1"} <= set(re.findall(r"rank \d", said["train_clip"]))
    assert "yielded" in said["adopt_laion400m"]
    for path in at.here.glob("aligned/*.jpg"):
        with Image.open(path) as face:
            assert face.size == (512, 512)


def others_tars(at):
    """Make tars as others have them: no SAMPLE_ID anywhere, and all parts in one folder."""
    folder = at.here / "laion400m-data"
    folder.mkdir()
    for number, tar in enumerate(sorted((at.here / "laion-face" / "images").rglob("*.tar"))):
        with tarfile.open(tar) as theirs, tarfile.open(folder / f"{number:05d}.tar", "w") as ours:
            for member in theirs:
                content = theirs.extractfile(member).read()
                if member.name.endswith(".json"):
                    content = json.dumps({"url": json.loads(content)["url"]}).encode()
                    member.size = len(content)
                ours.addfile(member, io.BytesIO(content))


def checked(at, block):
    """Run the block; one that needs an old version, or what is not installed here, has to say so."""
    if "s3://" in block.text:
        assert "pip install s3fs" in at.tries(block).stderr
        return ""
    if "trust_remote_code" in block.text and Version(datasets.__version__) >= Version("4"):
        done = at.tries(block)
        assert "scripts are no longer supported" in done.stderr
        return ""
    return at.types(block)


def test_publishing_runs_as_it_is_printed(tmp_path):
    with reader(tmp_path) as at:
        at.types(next(block for block in blocks(REAL_THING) if "laion-face prepare" in block.text))
        for block in blocks(PUBLISH):
            at.types(block)
        ids = pq.read_table(at.here / "laion-face" / "index" / "part-00000.parquet")["sample_id"].to_pylist()
        (at.here / "list.txt").write_text("\n".join(map(str, ids[::9])))
        for block in blocks(TAKE_DOWN):
            at.types(block)


def test_exports_and_examples_run_as_they_are_printed(tmp_path):
    with reader(tmp_path) as at:
        for block in blocks(REAL_THING):
            at.types(block)
        for block in blocks(EXPORT):
            at.types(block)
        exports = re.findall(r"^laion-face export (\w+)", page(EXPORT), re.MULTILINE)
        assert len(exports) == 8
        for name in (*exports, "faces"):
            ds = datasets.load_dataset(str(at.here / name), split="train", cache_dir=str(tmp_path / "cache" / name))
            assert len(ds) > 0, name
        the_examples_run(at)


@pytest.mark.parametrize("name", [README, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_block_is_run(name):
    # SQL has a test of its own below. What installs, or sets up what these tests run in, is a console's.
    kinds = re.findall(r"^ *```(\w+)$", page(name), re.MULTILINE)
    run = blocks(name) if name in (README, QUICK_START, REAL_THING, RECIPES, PUBLISH, TAKE_DOWN, EXPORT) else []
    assert len(kinds) == len(run) + sum(kinds.count(kind) for kind in ("sql", "console", "text", "bibtex"))
    for console in re.findall(r"```console\n(.*?)```", page(name), re.DOTALL):
        assert re.fullmatch(r"(\$ (make|pip install|laion-face)\b.*\n)+", console)


def recipe(kind, word):
    """Return the one block of this language in the page that has `word` in it."""
    (block,) = [block for block in re.findall(rf"```{kind}\n(.*?)```", page(PUBLISH), re.DOTALL) if word in block]
    return block


@pytest.fixture
def here(request, published, tmp_path, monkeypatch):
    """Enter a folder that has the copy as `published`."""
    (tmp_path / "published").symlink_to(published.folder)
    monkeypatch.chdir(tmp_path)


def size(face):
    x1, y1, x2, y2 = map(np.float32, face.box)
    return min(x2 - x1, y2 - y1)


@pytest.fixture
def largest(prepared):
    """Return (sample id, short side) of the ten largest faces there are."""
    faces = [(truth.sample_id, size(face)) for truth in prepared.truth for face in truth.faces]
    return sorted(faces, key=lambda face: (-face[1], face[0]))[:10]


def test_duckdb_finds_the_ten_largest_faces(here, largest):
    found = duckdb.sql(recipe("sql", "unnest(faces)"))
    assert found.columns == ["sample_id", "url", "score", "size"]
    assert [(row[0], np.float32(row[3])) for row in found.fetchall()] == largest


def run(code):
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_polars_finds_the_ten_largest_faces(here, largest):
    found = run(recipe("python", "import polars"))["largest"]
    assert list(zip(found["sample_id"].to_list(), found["size"].to_numpy(), strict=True)) == largest


def test_pandas_finds_rows_with_one_large_face(here, prepared):
    rows = run(recipe("python", "import pandas"))["rows"]
    expected = [one for one in prepared.truth if len(one.faces) == 1 and size(one.faces[0]) >= 64]
    assert expected
    assert rows["sample_id"].tolist() == [one.sample_id for one in expected]
    assert [value or None for value in rows["url"]] == [one.url for one in expected]
    assert list(rows.columns) == ["sample_id", "url", "caption", "max_face_size"]


def test_pyarrow_counts_the_faces(here, prepared):
    assert run(recipe("python", "import pyarrow"))["faces"] == sum(len(truth.faces) for truth in prepared.truth)
