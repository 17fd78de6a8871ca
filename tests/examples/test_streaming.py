"""Streams: state, workers, ranks, shuffling, laziness, and nothing left behind."""

import gc
import itertools
import logging
import os
import shutil
import threading

import pytest
import torch
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import laion_face
from laion_face_builder.errors import NotPrepared
from laion_face_builder.examples.walk import shards_per_part_for
from tests.support.streams import ids_of


@pytest.fixture(scope="session")
def stream(prepared):
    """Give what opens a stream over parts 0 and 2; few shards, so that positions lie inside of them."""

    def streamed(**options):
        given = {"parts": "0,2", "shards_per_part": 8, "data_dir": str(prepared.data.root), **options}
        return laion_face.load_dataset("20M", split="train", streaming=True, **given)

    return streamed


@pytest.fixture(scope="session")
def wanted(prepared):
    return [truth.sample_id for truth in prepared.truth if truth.ok]


@settings(max_examples=5)
@given(data=st.data())
def test_a_resumed_stream_repeats_and_skips_nothing(stream, wanted, data):
    stop = data.draw(st.integers(0, len(wanted)))
    first = stream(images="auto")
    before = []
    for example, _ in zip(first, range(stop), strict=False):
        before.append(example["sample_id"])
    state = first.state_dict()
    again = stream()
    again.load_state_dict(state)
    seen = ids_of(again)
    # zip has taken one example more than it handed over, unless the stream had ended.
    assert before + wanted[len(before) : len(wanted) - len(seen)] + seen == wanted
    assert len(wanted) - len(seen) - len(before) <= 1


def test_a_resumed_stream_does_not_depend_on_what_fails_now(prepared, wanted, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(prepared.data.root, data)

    def stream():
        return laion_face.load_dataset(
            "20M", parts="0,2", shards_per_part=2, data_dir=str(data), split="train", streaming=True
        )

    first = stream()
    iterator = iter(first)
    before = [next(iterator)["sample_id"] for _ in range(100)]
    state = first.state_dict()
    for tar in (data / "images" / "part-00000").glob("*.tar"):
        tar.unlink()
    again = stream()
    again.load_state_dict(state)
    seen = ids_of(again)
    of_part_2 = [truth.sample_id for truth in prepared.truth if truth.ok and truth.part == 2]
    assert before == wanted[:100]
    assert seen == of_part_2
    lost = sum(truth.ok and truth.part == 0 for truth in prepared.truth) - 100
    assert laion_face.report(again).failed["tar_missing"] == lost


def test_a_resume_reads_no_picture_that_it_skips(stream, wanted):
    first = stream(shards_per_part=1)
    iterator = iter(first)
    for _ in range(60):
        next(iterator)
    state = first.state_dict()
    again = stream(shards_per_part=1)
    again.load_state_dict(state)
    assert next(iter(again))["sample_id"] == wanted[60]
    gc.collect()
    assert laion_face.report(again).rows < 60


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers_share_the_shards(stream, wanted, context):
    ds = stream(parts="0")
    loader = DataLoader(
        ds, batch_size=16, num_workers=2, collate_fn=laion_face.collate, multiprocessing_context=context
    )
    batches = list(loader)
    seen = [sample_id for batch in batches for sample_id in batch["sample_id"].tolist()]
    assert len(seen) == len(set(seen))
    assert set(seen) == {sample_id for sample_id in wanted if sample_id in set(seen)}
    assert len(seen) == laion_face.report(ds).yielded
    assert laion_face.report(ds).rows > laion_face.report(ds).yielded
    boxes = batches[0]["faces"][0]["boxes"]
    assert boxes.dtype == torch.float32
    assert boxes.shape[1:] == (4,)


def test_torch_format_goes_through_collate(stream):
    ds = stream(parts="0", min_faces=1).with_format("torch").take(8)
    batch = next(iter(DataLoader(ds, batch_size=8, collate_fn=laion_face.collate)))
    assert all(isinstance(image, torch.Tensor) for image in batch["image"])
    assert batch["sample_id"].shape == (8,)
    assert batch["faces"][0]["landmarks"].shape[1:] == (5, 2)


def test_ranks_share_the_shards_evenly(stream, wanted):
    seen = [ids_of(split_dataset_by_node(stream(), rank, 4)) for rank in range(4)]
    assert sorted(itertools.chain(*seen)) == sorted(wanted)
    assert all(len(rank) > 0 for rank in seen)
    flat = stream(shards_per_part=4)
    assert split_dataset_by_node(flat, 0, 8).num_shards == 1


def test_ranks_that_do_not_divide_the_shards_are_warned_with_a_number(stream, monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with caplog.at_level(logging.WARNING, "laion_face"):
        stream(shards_per_part=128)
    assert "Use shards_per_part=129" in caplog.text
    caplog.clear()
    stream(shards_per_part=129)
    assert "shards_per_part" not in caplog.text


@given(st.integers(1, 32), st.integers(1, 600), st.integers(1, 200))
def test_the_number_that_is_named_divides(parts, world, near):
    better = shards_per_part_for(parts, world, near)
    assert better >= near
    assert parts * better % world == 0
    assert not any(parts * fewer % world == 0 for fewer in range(near, better))


def test_ranks_without_prepared_parts_get_an_error_not_a_stampede(sandbox, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = len(sandbox.hub.log)
    with pytest.raises(NotPrepared, match=r"laion-face prepare 20M .*index="):
        laion_face.load_dataset("20M", split="train", streaming=True, images="none", data_dir=str(tmp_path))
    assert len(sandbox.hub.log) == asked


def test_shards_are_shuffled_and_every_example_still_comes_once(stream, wanted):
    first, second = ids_of(stream().shuffle(seed=1, buffer_size=1)), ids_of(stream().shuffle(seed=2, buffer_size=1))
    assert first != second
    assert sorted(first) == sorted(second) == sorted(wanted)


def open_files():
    gc.collect()
    return sorted(
        os.path.realpath(f"/proc/self/fd/{entry}")
        for entry in os.listdir("/proc/self/fd")
        if "part-0" in os.path.realpath(f"/proc/self/fd/{entry}")
    )


@pytest.mark.parametrize("how", ["break", "error", "end"])
def test_nothing_is_left_open(stream, how):
    threads = threading.active_count()
    ds = stream()
    iterator = iter(ds)
    next(iterator)
    if how == "error":
        with pytest.raises(RuntimeError, match="inside"):
            list(ds.map(fail))
    if how == "end":
        for _ in iterator:
            pass
    del iterator, ds
    assert open_files() == []
    assert threading.active_count() <= threads


def fail(example):
    raise RuntimeError("inside")


def test_dataloader_workers_resume_in_the_middle(stream):
    def loader():
        return StatefulDataLoader(stream(), batch_size=8, num_workers=2, collate_fn=laion_face.collate)

    whole = [batch["sample_id"].tolist() for batch in loader()]
    first, seen = loader(), []
    for batch in first:
        seen.append(batch["sample_id"].tolist())
        if len(seen) == 12:
            state = first.state_dict()
            break
    again = loader()
    again.load_state_dict(state)
    assert seen + [batch["sample_id"].tolist() for batch in again] == whole
