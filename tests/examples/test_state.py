"""A stream's state names part and row: another shards_per_part resumes exactly, or is refused by name (law 9)."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import laion_face
from laion_face_builder.errors import StateConflict
from laion_face_builder.examples._compat import FORGETS_RESUMED
from laion_face_builder.examples.state import FORMAT, IN_ORDER
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Answer, Sandbox, SandboxSpec, Truth
from laion_face_builder.sources.sources import Upstream
from tests.support.streams import flat_ids_of, ids_of, ours_in, read

PARTS = (0, 2)
HERE = Version(datasets.__version__)
#: Before datasets 5.1 a shuffled stream loses what is in the buffer, be it a single example.
LOSES_THE_BUFFER = Version("5.1") > HERE


@dataclass(repr=False)
class World:
    """A sandbox in which every picture can be had, until `fail` says which cannot."""

    box: Sandbox
    root: Path

    def stream(self, **options: Any) -> Any:
        given = {"parts": PARTS, "shards_per_part": 4, "images": "none", "data_dir": str(self.root), **options}
        transfer = {"allow_private_hosts": True, "retries": 0}
        return laion_face.load_dataset("20M", split="train", streaming=True, **transfer, **given)

    @property
    def truth(self) -> list[Truth]:
        return [truth for part in PARTS for truth in self.box.truth_of(part)]

    @property
    def ids(self) -> list[int]:
        return [truth.sample_id for truth in self.truth]

    def fail(self, sample_ids: set[int]) -> None:
        for truth in self.truth:
            answer = Answer(404) if truth.sample_id in sample_ids else Answer(body=truth.served)
            self.box.pictures.answers[truth.path] = answer


@pytest.fixture(scope="module")
def world(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    spec = SandboxSpec(parts=PARTS, rows=45, failing=0, twisted=0)
    with Sandbox.running(folder / "sandbox", spec, hub=hub, namespace="state") as box:
        data = DataDir.at(folder / "data")
        prepare(data, PARTS, Upstream(box.repo, None, box.metadata_folder))
        yield World(box, data.root)


def resumed(ds: Any, state: dict[str, Any]) -> Any:
    ds.load_state_dict(state)
    return ds


def order_in(of: Any) -> str:
    """Return the order that a state names, or that a stream would."""
    if isinstance(of, dict):
        return ours_in(of)["order"]
    return getattr(of, "_ex_iterable", of)._init_state_dict()["order"]


def reordered(ds: Any, seed: int | None) -> Any:
    """Return the same stream with its shards shuffled, without datasets' buffer."""
    if seed is None:
        return ds
    shuffled = ds._ex_iterable.shuffle_data_sources(np.random.default_rng(seed))
    return IterableDataset(shuffled, info=ds.info, split=ds.split)


SHARDS = st.sampled_from([1, 2, 3, 4, 7, 30])


@settings(max_examples=15)
@given(data=st.data())
def test_no_row_is_repeated_or_skipped_or_it_is_refused_by_name(world, data):
    # A stream is stopped again and again: with another shards_per_part, and while pictures change what becomes of them.
    options = {"parts": data.draw(st.sampled_from([(0,), (2,), PARTS])), "images": "fetch"}
    seed, shards = data.draw(st.none() | st.integers(0, 9)), data.draw(SHARDS)
    order = ids_of(reordered(world.stream(**{**options, "images": "none"}, shards_per_part=shards), seed))
    state, done = None, 0
    for _ in range(2 if FORGETS_RESUMED else 3):
        gone = data.draw(st.sets(st.sampled_from(order)))
        world.fail(gone)
        ds = reordered(world.stream(**options, shards_per_part=shards), seed)
        if state is not None:
            ds.load_state_dict(state)
        to_come = [sample_id for sample_id in order[done:] if sample_id not in gone]
        count = data.draw(st.integers(1, len(order)))
        seen, state = read(ds, count)
        assert seen == to_come[:count]
        done = order.index(seen[-1]) + 1 if len(seen) == count else len(order)
        if seed is None:
            shards = data.draw(SHARDS)
    if seed is not None:
        other = data.draw(SHARDS.filter(lambda other: other != shards))
        again = resumed(reordered(world.stream(**options, shards_per_part=other), seed), state)
        if {order_in(state), order_in(again)} != {IN_ORDER}:
            with pytest.raises(StateConflict, match=f"shards_per_part was {shards} when .* and is {other} here"):
                next(iter(again))


def test_a_state_says_what_it_was_made_with(world):
    seen, state = read(world.stream(shards_per_part=3), 20)
    here, truth = ours_in(state), world.truth[19]
    assert seen[-1] == truth.sample_id == here["sample_id"]
    assert (here["part"], here["row"], here["rows"]) == (truth.part, truth.row, len(world.box.truth_of(truth.part)))
    assert (here["format"], here["parts"], here["shards_per_part"], here["order"]) == (FORMAT, "0,2", 3, IN_ORDER)


@pytest.mark.parametrize(
    "operation",
    [
        lambda ds: ds.take(25),
        lambda ds: ds.skip(3),
        lambda ds: ds.map(lambda example: {"n": len(example["faces"])}),
        lambda ds: ds.filter(lambda example: example["sample_id"] % 3 > 0),
        lambda ds: ds.with_format("arrow"),
        lambda ds: ds.decode(False),
    ],
    ids=["take", "skip", "map", "filter", "arrow", "decode"],
)
def test_another_shards_per_part_resumes_under_what_datasets_puts_around_it(world, operation):
    first = operation(world.stream(shards_per_part=3))
    before = flat_ids_of(islice(iter(first), 12))
    again = resumed(operation(world.stream(shards_per_part=11)), first.state_dict())
    assert before + flat_ids_of(again) == flat_ids_of(operation(world.stream()))


@pytest.mark.parametrize(
    ("make", "load", "message"),
    [
        ({}, {"parts": (2,)}, "parts was 0,2 when it was made, and is 2 here. Use the same parts"),
        ({"rank": (0, 2)}, {"rank": (1, 2)}, "share was 0 of 2 when it was made, and is 1 of 2 here"),
        ({"rank": (0, 2)}, {"rank": (0, 4)}, "share was 0 of 2 when it was made, and is 0 of 4 here"),
        ({"rank": (1, 2)}, {}, "share was 1 of 2 when it was made, and is the whole here"),
        ({}, {"rank": (1, 2)}, "share was the whole when it was made, and is 1 of 2 here"),
        (
            {"rank": (1, 2)},
            {"rank": (1, 2), "shards_per_part": 8},
            "shards_per_part was 4 when it was made, and is 8 here",
        ),
        ({"seed": 1}, {"seed": 2}, "order was [0-9a-f]{12} when it was made, and is [0-9a-f]{12} here. Shuffle with"),
        ({"seed": 1}, {}, f"order was [0-9a-f]{{12}} when it was made, and is {IN_ORDER} here"),
    ],
)
def test_what_cannot_go_on_is_refused_by_name(world, make, load, message):
    def stream(rank=None, seed=None, **options):
        ds = reordered(world.stream(**options), seed)
        return ds if rank is None else split_dataset_by_node(ds, *rank)

    _, state = read(stream(**make), 5)
    with pytest.raises(StateConflict, match=message):
        next(iter(resumed(stream(**load), state)))


@pytest.mark.parametrize("change", ["shorter", "reversed"])
def test_another_index_is_refused(world, tmp_path, change):
    _, state = read(world.stream(), 5)
    index = DataDir.at(shutil.copytree(world.root, tmp_path / "data")).index(0)
    table = pq.read_table(index)
    pq.write_table(table[1:] if change == "shorter" else table.take(list(range(len(table)))[::-1]), index)
    rows = len(table)
    message = {
        "shorter": f"part 0 is another one: the index had {rows} rows then, and has {rows - 1} now",
        "reversed": f"row 4 was sample {world.ids[4]} then, and is sample {world.ids[rows - 5]} now",
    }
    with pytest.raises(StateConflict, match=message[change]):
        next(iter(resumed(world.stream(data_dir=str(tmp_path / "data")), state)))


def test_a_state_of_a_later_version_is_refused(world):
    _, state = read(world.stream(), 5)
    ours_in(state)["format"] = FORMAT + 1
    with pytest.raises(StateConflict, match=f"format was {FORMAT + 1} when it was made, and is {FORMAT} here. Update"):
        next(iter(resumed(world.stream(), state)))


def earlier(ds: Any, shard: int, rows: int) -> dict[str, Any]:
    """Return a state as versions before ours wrote it, where `datasets` puts it."""
    _, state = read(ds, 1)
    place, name = state, "examples_iterable"
    while "part" not in place[name]:
        place = place[name]
        place.update({key: None for key in place if key == "previous_state"})
        place.update({key: 0 for key in place if key.startswith("num_chunks")})
    place[name] = {"shard_idx": shard, "shard_example_idx": rows, "type": "ExampleStream"}
    return state


def test_a_state_of_an_earlier_version_goes_on_with_a_warning(world, caplog):
    done = 2 * len(world.box.truth_of(0)) // 4
    with caplog.at_level(logging.WARNING, "laion_face"):
        after = ids_of(resumed(world.stream(), earlier(world.stream(), 2, 1)))
    assert after == world.ids[done + 1 :]
    assert "does not say what it was made with: it is taken to be parts=0,2, shards_per_part=4" in caplog.text
    again = world.stream()
    _, state = read(resumed(again, earlier(world.stream(), 2, 1)), 2)
    rest = world.ids if FORGETS_RESUMED else world.ids[done + 3 :]
    assert ids_of(resumed(world.stream(shards_per_part=7), state)) == rest
    assert ("a state taken from now on" in caplog.text) == FORGETS_RESUMED


@pytest.mark.parametrize(
    ("shard", "rows", "message"), [(8, 0, "in shard 8; there are 8 here"), (1, 99, "99 rows of a")]
)
def test_a_state_of_an_earlier_version_that_cannot_be_is_refused(world, shard, rows, message):
    with pytest.raises(StateConflict, match=message):
        next(iter(resumed(world.stream(), earlier(world.stream(), shard, rows))))


def test_filters_may_change(world):
    before, state = read(world.stream(shards_per_part=3), 10)
    after = ids_of(resumed(world.stream(shards_per_part=5, min_faces=2), state))
    assert after == [truth.sample_id for truth in world.truth[10:] if len(truth.faces) >= 2]
    assert before == world.ids[:10]


@pytest.mark.parametrize("epoch", [0, 1])
def test_each_epoch_resumes_where_it_was(world, epoch):
    def stream():
        ds = world.stream().shuffle(seed=4, buffer_size=1)
        ds.set_epoch(epoch)
        return ds

    whole = ids_of(stream())
    before, state = read(stream(), 11)
    after = ids_of(resumed(stream(), state))
    assert before == whole[:11]
    assert after == whole[11 + LOSES_THE_BUFFER :]
    other = stream()
    other.set_epoch(epoch + 1)
    assert sorted(ids_of(resumed(other, state))) == sorted(world.ids), "datasets passes over states of other epochs"
    assert state["epoch"] == epoch


IN_A_NEW_PROCESS = """
import json, sys, laion_face
ds = laion_face.load_dataset("20M", split="train", streaming=True, images="none", **json.loads(sys.argv[1]))
ds.load_state_dict(json.load(open(sys.argv[2])))
print(json.dumps([example["sample_id"] for example in ds]))
"""


def test_a_state_goes_on_in_a_new_process(world, tmp_path):
    before, state = read(world.stream(), 17)
    (tmp_path / "state.json").write_text(json.dumps(state))
    options = json.dumps({"parts": PARTS, "shards_per_part": 9, "data_dir": str(world.root)})
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, options, str(tmp_path / "state.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert before + json.loads(done.stdout) == world.ids


def loader_of(world: World, workers: int, shards_per_part: int = 4) -> StatefulDataLoader:
    ds = world.stream(shards_per_part=shards_per_part)
    return StatefulDataLoader(ds, batch_size=3, num_workers=workers, collate_fn=ids_of)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_data_loader_resumes(world, workers):
    whole = list(loader_of(world, workers))
    first = loader_of(world, workers)
    before = list(islice(iter(first), 4))
    state = first.state_dict()
    again = loader_of(world, workers)
    again.load_state_dict(state)
    assert before + list(again) == whole
    assert sorted(chain.from_iterable(whole)) == sorted(world.ids)


def test_a_stateful_data_loader_goes_on_with_another_shards_per_part_or_is_refused(world):
    first = loader_of(world, 0)
    before = list(islice(iter(first), 4))
    again = loader_of(world, 0, 9)
    again.load_state_dict(first.state_dict())
    assert list(chain.from_iterable([*before, *again])) == world.ids
    first = loader_of(world, 2)
    list(islice(iter(first), 4))
    again = loader_of(world, 2, 9)
    again.load_state_dict(first.state_dict())
    with pytest.raises(StateConflict, match="shards_per_part was 4 when it was made, and is 9 here"):
        list(again)


def test_what_one_worker_reads_is_the_whole(world):
    # A run that took one worker relies on this: it goes on without any.
    loader = DataLoader(world.stream(shards_per_part=7), batch_size=None, num_workers=1)
    assert [example["sample_id"] for example in loader] == world.ids
    assert order_in(world.stream()._ex_iterable.shard_data_sources(1, 0)) == IN_ORDER
