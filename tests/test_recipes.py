"""The README's recipes over a published folder do what they say: extracted from the README and run."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## Publish\n")[1].split("\n## ")[0]


def recipe(kind, word):
    """The one block of this language in the section that has `word` in it."""
    (block,) = [block for block in re.findall(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL) if word in block]
    return block


@pytest.fixture
def here(request, published, tmp_path, monkeypatch):
    """The current folder has the copy as `published`."""
    (tmp_path / "published").symlink_to(published.folder)
    monkeypatch.chdir(tmp_path)


def size(face):
    x1, y1, x2, y2 = map(np.float32, face.box)
    return min(x2 - x1, y2 - y1)


@pytest.fixture
def largest(prepared):
    """(sample id, short side) of the ten largest faces there are."""
    faces = [(truth.sample_id, size(face)) for truth in prepared.truth for face in truth.faces]
    return sorted(faces, key=lambda face: (-face[1], face[0]))[:10]


def test_duckdb_finds_the_ten_largest_faces(here, largest):
    found = duckdb.sql(recipe("sql", "unnest(faces)"))
    assert found.columns == ["sample_id", "url", "score", "size"]
    assert [(row[0], np.float32(row[3])) for row in found.fetchall()] == largest


def run(code):
    names = {}
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
