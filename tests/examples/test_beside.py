"""Tables joined beside the index: in streams, Arrow files and resumed streams."""

import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

import laion_face
from laion_face_builder.cli import main
from laion_face_builder.errors import NotPrepared, OptionError
from tests.support.streams import ids_of, read

WHICH = {"parts": "0,2", "images": "none", "split": "train"}


@pytest.fixture(scope="session")
def captions(prepared, tmp_path_factory):
    """Write a table of half of the samples, from last to first, and of one that is not ours."""
    ids = [truth.sample_id for truth in prepared.truth][::-2]
    file = tmp_path_factory.mktemp("joined") / "captions.parquet"
    frame = pd.DataFrame({"sample_id": [*ids, 7], "blip": [f"a picture of {i}" for i in [*ids, 7]]})
    frame["numbers"] = [[i % 3] * (i % 4) for i in [*ids, 7]]
    frame.to_parquet(file, index=False)
    return file, dict(zip(frame["sample_id"], frame["blip"], strict=True))


@pytest.mark.parametrize("streaming", [True, False])
def test_joined_columns_come_after_ours(prepared, captions, streaming, tmp_path):
    file, known = captions
    how = {**WHICH, "streaming": streaming, "cache_dir": str(tmp_path), "data_dir": str(prepared.data.root)}
    plain = laion_face.load_dataset("20M", **how)
    joined = laion_face.load_dataset("20M", join=str(file), **how)
    assert list(joined.features) == [*plain.features, "blip", "numbers"]
    examples = list(joined)
    assert [{name: one[name] for name in plain.features} for one in examples] == list(plain)
    assert [one["blip"] for one in examples] == [known.get(one["sample_id"]) for one in examples]
    assert [one["numbers"] for one in examples] == [
        [one["sample_id"] % 3] * (one["sample_id"] % 4) if one["sample_id"] in known else None for one in examples
    ]


def test_inner_leaves_out_what_the_table_lacks(prepared, captions):
    file, known = captions
    how = {**WHICH, "streaming": True, "data_dir": str(prepared.data.root)}
    inner = laion_face.load_dataset("20M", join=str(file), join_how="inner", **how)
    assert ids_of(inner) == [truth.sample_id for truth in prepared.truth if truth.sample_id in known]
    assert laion_face.report(inner).filtered == sum(truth.sample_id not in known for truth in prepared.truth)


def test_a_name_that_is_taken_is_refused_with_a_way_out(prepared, tmp_path):
    pd.DataFrame({"sample_id": [1], "caption": ["x"]}).to_parquet(tmp_path / "mine.parquet")
    how = {**WHICH, "streaming": True, "data_dir": str(prepared.data.root)}
    with pytest.raises(OptionError, match=r"its column .caption. would be 'caption'.*makes it 'mine_caption'"):
        laion_face.load_dataset("20M", join=tmp_path / "mine.parquet", **how)
    named = laion_face.load_dataset("20M", join={"blip": tmp_path / "mine.parquet"}, **how)
    assert list(named.features)[-1] == "blip_caption"


def test_a_table_on_the_hub_by_its_name_or_one_of_its_files(prepared, captions, hub, tmp_path):
    file, known = captions
    other = pd.DataFrame({"sample_id": [prepared.truth[0].sample_id], "blip": ["another"]})
    files = {"data/train.parquet": file, "other.csv": other.to_csv(index=False).encode()}
    hub.add_repo("someone/captions", files)
    shutil.copytree(prepared.data.root / "index", tmp_path / "index")
    how = {**WHICH, "streaming": True, "data_dir": str(tmp_path)}
    by_name = laion_face.load_dataset("20M", join="someone/captions", **how)
    assert [one["blip"] for one in by_name] == [known.get(truth.sample_id) for truth in prepared.truth]
    # What was copied is not kept.
    assert list((tmp_path / "sources").rglob("*.parquet")) == []
    one = laion_face.load_dataset("20M", join="csv=hf://datasets/someone/captions@main/*.csv", **how)
    assert next(iter(one))["csv_blip"] == "another"
    hub.plant("/lfs/", status=404)
    again = laion_face.load_dataset("20M", join="someone/captions", **how)
    assert next(iter(again))["sample_id"] == prepared.truth[0].sample_id


@pytest.mark.parametrize("join_how", ["left", "inner"])
def test_a_resumed_stream_gives_what_is_left_whatever_the_shards(prepared, captions, join_how):
    file, _ = captions
    how = {**WHICH, "streaming": True, "data_dir": str(prepared.data.root), "join": str(file), "join_how": join_how}
    whole = list(laion_face.load_dataset("20M", shards_per_part=8, **how))
    for count in (0, 1, len(whole) // 3, len(whole) - 1):
        first = laion_face.load_dataset("20M", shards_per_part=8, **how)
        _, state = read(first, count)
        again = laion_face.load_dataset("20M", shards_per_part=5, **how)
        again.load_state_dict(state)
        assert list(again) == whole[count:]


def test_tables_with_worker_processes(prepared, captions, tmp_path):
    file, known = captions
    how = {**WHICH, "data_dir": str(prepared.data.root), "join": {"a": file, "b": file}, "join_how": "inner"}
    stored = laion_face.load_dataset("20M", num_proc=2, cache_dir=str(tmp_path), **how)
    ids = [truth.sample_id for truth in prepared.truth if truth.sample_id in known]
    assert stored["sample_id"][:] == ids
    assert stored["a_blip"][:] == stored["b_blip"][:] == [known[one] for one in ids]
    stream = laion_face.load_dataset("20M", streaming=True, **how)
    batches = DataLoader(stream, num_workers=2, batch_size=None)
    assert sorted(one["a_blip"] for one in batches) == sorted(stored["a_blip"][:])


def test_an_arrow_cache_is_of_one_content_of_the_table(prepared, tmp_path):
    sample_id = prepared.truth[0].sample_id
    how = {**WHICH, "data_dir": str(prepared.data.root), "cache_dir": str(tmp_path / "cache")}
    for said in ("one", "other"):
        pd.DataFrame({"sample_id": [sample_id], "said": [said]}).to_parquet(tmp_path / "t.parquet")
        assert laion_face.load_dataset("20M", join=tmp_path / "t.parquet", **how)[0]["said"] == said


def test_ranks_join_nothing_but_say_who_has_to(prepared, tmp_path, monkeypatch):
    pd.DataFrame({"sample_id": [1], "x": [1]}).to_parquet(tmp_path / "t.parquet")
    how = {**WHICH, "streaming": True, "data_dir": str(prepared.data.root), "join": tmp_path / "t.parquet"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NotPrepared, match="is not joined there with parts 0, 2"):
        laion_face.load_dataset("20M", **how)
    monkeypatch.delenv("WORLD_SIZE")
    laion_face.load_dataset("20M", **how)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "x" in laion_face.load_dataset("20M", **how).features


def test_inner_needs_a_table_and_a_name_has_to_be_one():
    with pytest.raises(OptionError, match="name the table with join="):
        laion_face.load_dataset("20M", join_how="inner", index="x/y", split="train", streaming=True)
    for join, said in (
        ({"1st": "a.parquet"}, "the name '1st'"),
        (["a.parquet", "a.parquet"], "is there 2 times"),
        (5, "expected a table, a list of tables"),
    ):
        with pytest.raises(OptionError, match=said):
            laion_face.load_dataset("20M", join=join, split="train", streaming=True)


def test_further_columns_of_an_index_are_kept(prepared, tmp_path):
    for part in (0, 2):
        table = pq.read_table(prepared.data.index(part))
        mine = pa.array([[f"{one}"] for one in table["sample_id"].to_pylist()])
        pq.write_table(table.append_column("mine", mine), tmp_path / f"part-{part:05d}.parquet")
    ds = laion_face.load_dataset("20M", index=str(tmp_path), data_dir=str(tmp_path), streaming=True, **WHICH)
    assert list(ds.features)[-1] == "mine"
    assert [one["mine"] for one in ds] == [[str(truth.sample_id)] for truth in prepared.truth]


def test_only_samples_of_the_table_are_downloaded(prepared, captions, tmp_path, sandbox):
    file, known = captions
    for part in (0, 2):
        target = tmp_path / "index" / f"part-{part:05d}.parquet"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(prepared.data.index(part), target)
    told = ["--parts", "0,2", "--data-dir", str(tmp_path), "--allow-private-hosts"]
    join = ["--join", str(file), "--join-how", "inner"]
    assert main(["download", "20M", *told, *join]) == 0
    for part in (0, 2):
        statuses = pq.read_table(tmp_path / "images" / f"part-{part:05d}.parquet")["status"].to_pylist()
        wanted = [truth.sample_id in known for truth in sandbox.truth_of(part)]
        assert [status != "filtered" for status in statuses] == wanted
    # Other contents of the table are other rows: the download that was made is not mixed with them.
    frame = pd.read_parquet(file)
    frame[1:].to_parquet(tmp_path / "t.parquet")
    assert main(["download", "20M", *told, "--join", str(tmp_path / "t.parquet"), "--join-how", "inner"]) == 1
