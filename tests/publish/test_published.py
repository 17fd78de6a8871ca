"""What is published reads without any code of ours, on this version of datasets, from a folder and from the Hub."""

import itertools
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem

import laion_face
from laion_face_builder.errors import SourceError
from laion_face_builder.examples.walk import Shard
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.publish.manifest import GLOBS
from laion_face_builder.schema import EXAMPLE_COLUMNS, INDEX

_names = itertools.count(1)


@pytest.fixture(params=["folder", "hub"])
def place_of(request, sandbox):
    """Give `place_of(published)`: what to give to load_dataset."""

    def place(published):
        if request.param == "folder":
            return str(published.folder)
        name = f"readers/copy-{next(_names)}"
        sandbox.hub.add_repo(name, published.files)
        return name

    return place


def index_rows(published):
    tables = [pq.read_table(published.data.index(part)) for part in (0, 2)]
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("streaming", [True, False])
def test_the_index_reads_as_it_was_published(published, place_of, tmp_path, streaming):
    place, cache = place_of(published), str(tmp_path)
    ds = datasets.load_dataset(place, "20M", split="train", streaming=streaming, cache_dir=cache)
    assert list(ds) == index_rows(published)
    assert list(ds.features) == INDEX.names


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_and_columns_are_chosen_while_they_are_read(published, place_of, tmp_path, streaming):
    names = ["sample_id", "caption", "n_faces"]
    how = {"split": "train", "streaming": streaming, "cache_dir": str(tmp_path)}
    ds = datasets.load_dataset(place_of(published), "20M", filters=[("n_faces", "==", 1)], columns=names, **how)
    expected = [{name: row[name] for name in names} for row in index_rows(published) if row["n_faces"] == 1]
    assert [{name: row[name] for name in names} for row in ds] == expected


def test_the_hub_finds_a_configs_files_by_its_pattern(published, sandbox):
    sandbox.hub.add_repo("readers/patterns", published.files)
    files = HfFileSystem().glob(f"datasets/readers/patterns/{GLOBS['50M']}")
    assert [Path(file).name for file in files] == ["part-00000.parquet", "part-00002.parquet"]


def test_both_configs_name_the_same_files(published):
    rows = list(datasets.load_dataset(str(published.folder), "50M", split="train", streaming=True))
    assert rows == index_rows(published)


def test_the_default_config_is_20m(published, tmp_path):
    names = datasets.get_dataset_config_names(str(published.folder))
    assert names[0] == "preview"  # the Hub opens the first one, which has to be one file
    assert set(names) == {"20M", "50M", "preview"}
    builder = datasets.load_dataset_builder(str(published.folder), cache_dir=str(tmp_path))
    assert builder.config.name == "20M"


@pytest.mark.parametrize("streaming", [True, False])
def test_pictures_read_as_load_dataset_gives_them(published_pictures, place_of, prepared, tmp_path, streaming):
    # This is law 4, with a null where there is no picture.
    place, cache = place_of(published_pictures), str(tmp_path)
    ds = datasets.load_dataset(place, "20M", split="train", streaming=streaming, cache_dir=cache)
    ours = laion_face.load_dataset(
        "20M", parts="0,2", data_dir=str(published_pictures.data.root), split="train", streaming=True, on_error="null"
    )
    count = 0
    for found, expected in zip(ds, ours, strict=True):
        count += found["image"] is not None
        assert plain(found) == plain(expected)
        assert found["n_faces"] == len(found["faces"])
    assert count == sum(truth.ok for truth in prepared.truth) > 500


def plain(example):
    image = example["image"]
    picture = image and (image.size, image.mode, image.tobytes())
    return {**{name: example[name] for name in EXAMPLE_COLUMNS}, "image": picture}


@pytest.mark.parametrize("streaming", [True, False])
def test_the_preview_shows_its_pictures(published, place_of, tmp_path, streaming):
    place, cache = place_of(published), str(tmp_path)
    rows = list(datasets.load_dataset(place, "preview", split="train", streaming=streaming, cache_dir=cache))
    assert len(rows) == 5
    for row in rows:
        row["image"].load()
        assert row["image"].size == (row["width"], row["height"])


def test_laion_face_reads_it_and_fetches(published, place_of, prepared):
    # This is law 4: the same from a published index and the web as from the tars.
    options = {"parts": "0,2", "split": "train", "streaming": True}
    fetched = laion_face.load_dataset(
        "20M", index=place_of(published), images="fetch", allow_private_hosts=True, retries=0, **options
    )
    stored = laion_face.load_dataset("20M", data_dir=str(prepared.data.root), **options)
    assert [plain(example) for example in fetched] == [plain(example) for example in stored]


def test_a_remote_row_group_costs_three_requests(published, sandbox):
    sandbox.hub.add_repo("readers/counted", published.files)
    with IndexPart.open(find_published("readers/counted", 0)) as part:
        groups = part.row_groups
        costs = []
        for start, stop in (groups[7], groups[30], groups[8]):
            asked = len(sandbox.hub.log)
            part.read(start, stop)
            costs.append(len(sandbox.hub.log) - asked)
    assert len(groups) == 32
    assert max(costs) <= 3


def test_shards_of_one_row_group_fetch_it_once(published, sandbox):
    sandbox.hub.add_repo("readers/shards", published.files)
    rows = pq.read_metadata(published.folder / "data/part-00000.parquet").num_rows

    def cost_of(*numbers):
        asked = len(sandbox.hub.log)
        with IndexPart.open(find_published("readers/shards", 0)) as part:
            for number in numbers:
                assert part.read(*Shard(0, number, 128).bounds(rows)).num_rows
        return len(sandbox.hub.log) - asked

    cost_of(0)  # what is looked up once is remembered
    assert cost_of(4, 5, 6, 7) == cost_of(4) < cost_of(4, 8)


def test_a_copy_with_pictures_is_not_taken_for_an_index(published_pictures):
    index = str(published_pictures.folder)
    with pytest.raises(SourceError, match="expected one part-00000"):
        laion_face.load_dataset("20M", parts="0", split="train", streaming=True, index=index, images="none")
