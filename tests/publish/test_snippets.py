"""What the card says to type does what it says: taken out of it, and run as it is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from laion_face_builder.publish.card import card_of
from laion_face_builder.publish.card_snippets import Address
from laion_face_builder.publish.manifest import Manifest

KINDS = ("console", "python", "sql", "bash", "json", "bibtex")


@pytest.fixture(params=["published", "published_pictures"])
def place(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """Enter a folder where the copy is what its card calls it."""
    (tmp_path / "path/to/this").mkdir(parents=True)
    (tmp_path / "path/to/this/folder").symlink_to(place.folder)
    monkeypatch.chdir(tmp_path)
    return (place.folder / "README.md").read_text(encoding="utf-8")


def blocks(text, kind):
    assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) <= set(KINDS)
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(block):
    names: dict[str, Any] = {}
    exec(block, names)
    return names


def all_rows(place):
    names = [name for name in place.files if name.startswith("data/")]
    columns = ["sample_id", "url", "caption", "n_faces", "max_face_size"]
    return [row for name in names for row in pq.read_table(place.folder / name, columns=columns).to_pylist()]


def asked(place, text, capsys):
    """Run what asks the files, and check the answers."""
    rows = all_rows(place)
    (statement,) = blocks(text, "sql")
    counts = {n: sum(row["n_faces"] == n for row in rows) for n in sorted({row["n_faces"] for row in rows})}
    assert duckdb.sql(statement).fetchall() == list(counts.items())
    (polars,) = [block for block in blocks(text, "python") if "import polars" in block]
    found = run(polars)["rows"].collect()
    large = [row["sample_id"] for row in rows if row["n_faces"] == 1 and row["max_face_size"] >= 64]
    assert sorted(found["sample_id"].to_list()) == sorted(large)
    assert found.height > 0
    assert "caption" in capsys.readouterr().out


def test_a_folders_card_runs_as_it_is_printed(place, here, capsys):
    asked(place, here, capsys)
    *loads, _polars, pandas = blocks(here, "python")
    first, *_ = all_rows(place)
    assert "import datasets" in loads[0]
    run(loads[0])
    assert first["url"] in capsys.readouterr().out
    check_pandas(place, run(pandas)["rows"])
    if place.folder.name == "published":
        assert run(loads[1])["ds"].num_shards == 2 * 128
    assert blocks(here, "bash") == []


def check_pandas(place, rows):
    name = next(name for name in sorted(place.files) if name.startswith("data/"))
    pd.testing.assert_frame_equal(rows, pd.read_parquet(place.folder / name)[["sample_id", "caption", "n_faces"]])


@pytest.mark.parametrize("branch", ["main", "second"])
def test_a_hub_datasets_card_runs_as_it_is_printed(hub, published, tmp_path, monkeypatch, capsys, branch):
    repo = f"snippets/{branch}"
    manifest = Manifest.from_text((published.folder / "laion_face_manifest.json").read_bytes(), "")
    text = card_of(manifest, Address(repo, True, branch))
    files = {**published.files, "README.md": text.encode()}
    hub.add_repo(repo, {} if branch != "main" else files)
    hub.repos[repo].commit(files, branch)
    monkeypatch.chdir(tmp_path)
    # Of the Hub DuckDB and Polars ask huggingface.co itself, wherever HF_ENDPOINT leads: here they ask the folder.
    asked(published, text.replace(f"{Address(repo, True, branch).root}/", f"{published.folder}/"), capsys)
    load, ours, _polars, pandas = blocks(text, "python")
    run(load)
    assert all_rows(published)[0]["url"] in capsys.readouterr().out
    assert run(ours)["ds"].num_shards == 2 * 128
    check_pandas(published, run(pandas)["rows"])
    (download,) = blocks(text, "bash")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", download], check=True, env={**os.environ, "PATH": path}, capture_output=True)
    found = [path.relative_to("laion-face").as_posix() for path in Path("laion-face").rglob("*.parquet")]
    assert found == ["data/part-00000.parquet"]
    assert Path("laion-face", found[0]).read_bytes() == (published.folder / found[0]).read_bytes()


def test_an_install_line_names_the_project(here):
    for block in blocks(here, "console"):
        assert re.fullmatch(r"\$ pip install git\+https://github\.com/FacePerceiver/LAION-Face\n", block)
