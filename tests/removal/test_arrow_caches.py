"""Arrow caches that hold rows which were taken down are deleted, with all that was derived from them; others stay."""

from pathlib import Path

import datasets
import pytest

import laion_face
from laion_face_builder.removal.arrow_caches import remove_from_arrow_caches
from tests.support.taken_down import copy_of, removal_of, without_rows


def load(data, cache_dir, part):
    return laion_face.load_dataset(
        "20M", split="train", parts=part, data_dir=data.root, cache_dir=str(cache_dir), images="none"
    )


def folder_of(ds):
    return Path(ds.cache_files[0]["filename"]).parent


@pytest.fixture
def named(prepared):
    return prepared.sandbox.truth_of(2)[7]


def test_a_cache_with_a_row_goes_with_what_was_derived_from_it(prepared, published, named, tmp_path):
    cache = tmp_path / "cache"
    one, other = load(prepared.data, cache, "2"), load(prepared.data, cache, "0")
    one.map(lambda row: {"length": len(row["caption"] or "")}).filter(lambda row: row["length"] > 3)
    copy = datasets.load_dataset(str(published.folder), "20M", split="train", cache_dir=str(cache))
    foreign = datasets.Dataset.from_dict({"sample_id": [named.sample_id]})
    foreign.save_to_disk(str(cache / "somebody" / "else" / "0.0.0"))
    removed = removal_of(named.url).removed
    kept = {path: path.read_bytes() for path in folder_of(other).iterdir()}
    assert list(folder_of(one).glob("cache-*.arrow")) != []
    results = remove_from_arrow_caches(cache, removed)
    assert {result.folder for result in results} == {folder_of(one), folder_of(copy)}
    assert sum(result.size for result in results) > 0
    left = [path.read_bytes() for path in cache.rglob("*.arrow")]
    assert not any(named.url.encode() in content for content in left)
    assert len(left) == 2
    assert {path: path.read_bytes() for path in folder_of(other).iterdir()} == kept
    assert remove_from_arrow_caches(cache, removed) == []


def test_what_a_killed_run_left_goes_too_and_the_next_load_has_no_such_row(prepared, named, tmp_path):
    cache, data = tmp_path / "cache", copy_of(prepared.data, tmp_path)
    before = load(data, cache, "2")
    cut = folder_of(before).with_name("cut.incomplete")
    cut.mkdir()
    (cut / "laion_face-train-00000.arrow").write_bytes(b"cut off")
    removals = without_rows(data, removal_of(named.sample_id))
    assert len(remove_from_arrow_caches(cache, removals.removed)) == 2
    assert not cut.exists()
    after = load(data, cache, "2")
    assert set(before["sample_id"]) - set(after["sample_id"]) == {named.sample_id}
    assert folder_of(after) != folder_of(before)
