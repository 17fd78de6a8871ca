"""Streams whose pictures come from the web: what their hosts see of it, and examples in order of arrival."""

from __future__ import annotations

import gc
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import IterableDataset, interleave_datasets
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torchdata.stateful_dataloader import StatefulDataLoader

import laion_face
from laion_face_builder.errors import OptionError, StateConflict
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from laion_face_builder.sources.sources import Upstream
from tests.support.hostile_host import HostileHost, message
from tests.support.streams import flat_ids_of, ids_of, ours_in, read

PARTS = (0, 2)
BEFORE_5 = Version(datasets.__version__) < Version("5")


class MoodyHost(HostileHost):
    """Serves /row/SAMPLE_ID as `moods` say: after so many seconds, with this status."""

    def __init__(self) -> None:
        super().__init__()
        self.moods: dict[int, tuple[float, int]] = {}
        self.always = (0.0, 200)

    def _do_row(self, _c: object, _q: object, _t: object, path: str) -> bytes:
        seconds, status = self.moods.get(int(path.rsplit("/", 1)[1]), self.always)
        time.sleep(seconds)
        return message(self.picture) if status == 200 else message(b"", status=f"{status} No")


@dataclass
class World:
    """An index whose pictures are all at one host."""

    root: Path
    host: MoodyHost
    ids: list[int]

    def stream(self, **options: Any) -> Any:
        given = {"parts": PARTS, "shards_per_part": 6, "images": "fetch", "data_dir": str(self.root), **options}
        transfer = {"allow_private_hosts": True, "retries": 0, "per_host": 64}
        return laion_face.load_dataset("20M", split="train", streaming=True, **{**transfer, **given})


@pytest.fixture(scope="module")
def prepared(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web_streams")
    spec = SandboxSpec(parts=PARTS, rows=150, failing=0, twisted=0)
    with Sandbox.running(folder / "sandbox", spec, hub=hub, namespace="web-streams") as box:
        data = DataDir.at(folder / "data")
        prepare(data, PARTS, Upstream(box.repo, None, box.metadata_folder))
        yield data


@contextmanager
def moved(prepared: DataDir, root: Path) -> Iterator[World]:
    """Serve the same rows at a host of their own."""
    data, ids = DataDir.at(shutil.copytree(prepared.root, root)), []
    with MoodyHost() as host:
        for part in PARTS:
            table = pq.read_table(data.index(part))
            here = table["sample_id"].to_pylist()
            urls = pa.array([host.url(f"/row/{sample_id}") for sample_id in here], table.schema.field("url").type)
            pq.write_table(table.set_column(table.schema.get_field_index("url"), "url", urls), data.index(part))
            ids += here
        yield World(data.root, host, ids)


@pytest.fixture
def world(prepared, tmp_path):
    with moved(prepared, tmp_path / "data") as found:
        yield found


@pytest.fixture(scope="module")
def shared_world(prepared, tmp_path_factory):
    with moved(prepared, tmp_path_factory.mktemp("shared") / "data") as found:
        yield found


def fetchers() -> list[threading.Thread]:
    gc.collect()
    return [thread for thread in threading.enumerate() if thread.name == "laion-face-fetch"]


@pytest.mark.parametrize("how", ["shuffle", "interleave"])
def test_all_streams_of_a_process_keep_within_one_set_of_bounds(world, how):
    world.host.always = (0.02, 200)
    before, bounds = len(fetchers()), {"concurrency": 6, "lookahead": 32}
    if how == "shuffle":  # datasets 5 opens ten shards at once
        ds = world.stream(**bounds).shuffle(seed=1, buffer_size=20)
    else:
        both = [world.stream(parts=part, **bounds) for part in PARTS]
        ds = interleave_datasets(both, stopping_strategy="all_exhausted")
    examples = iter(ds)
    seen = ids_of(islice(examples, 5))
    assert len(fetchers()) == before + 1
    seen += ids_of(examples)
    assert sorted(set(seen)) == sorted(world.ids)
    assert 2 <= world.host.most_at_once <= 6
    del examples, ds
    assert len(fetchers()) == before


@pytest.mark.parametrize("order", ["index", "arrival"])
def test_who_takes_five_asks_for_few(world, order):
    assert len(list(world.stream(order=order).take(5))) == 5
    assert world.host.asked.total() <= 32 < len(world.ids)


def test_who_wants_no_pictures_asks_for_none(world):
    assert ids_of(world.stream(images="none")) == world.ids
    assert not world.host.asked


def moods(world: World, seed: int, failing: float) -> set[int]:
    """Have the host be quick, slow or slower, and fail for some samples; return these."""
    chance = random.Random(seed)
    gone = {sample_id for sample_id in world.ids if chance.random() < failing}
    world.host.moods = {
        sample_id: (chance.choice([0, 0, 0.01, 0.05]), 404 if sample_id in gone else 200) for sample_id in world.ids
    }
    return gone


@settings(max_examples=12)
@given(data=st.data())
def test_in_order_of_arrival_no_row_is_repeated_or_skipped(shared_world, data):
    # A stream is stopped again and again, with other delays, failures, shards and orders each time.
    world, state, seen = shared_world, None, []
    on_error, ever_gone = data.draw(st.sampled_from(["null", "skip"])), set()
    for stage in range(4):
        ever_gone |= moods(world, data.draw(st.integers(0, 999)), data.draw(st.sampled_from([0, 0.1, 0.9])))
        ds = world.stream(
            order=data.draw(st.sampled_from(["arrival", "arrival", "index"])),
            on_error=on_error,
            shards_per_part=data.draw(st.sampled_from([1, 3, 8])),
            concurrency=data.draw(st.sampled_from([2, 8, 32])),
            lookahead=data.draw(st.sampled_from([4, 16, 1000])),
        )
        if state is not None:
            ds.load_state_dict(state)
        came, state = read(ds, data.draw(st.integers(1, 40)) if stage < 3 else len(world.ids) + 1)
        seen += came
    assert len(seen) == len(set(seen))
    assert set(world.ids) - set(seen) <= (ever_gone if on_error == "skip" else set())


def test_in_order_of_arrival_a_slow_picture_holds_up_nobody(world):
    slow = world.ids[3]
    world.host.moods = {slow: (1.0, 200)}
    ds = world.stream(order="arrival")
    seen, state = read(ds, len(world.ids) - 1)
    assert slow not in seen
    ours = ours_in(state)
    assert ours["row"] == 2
    assert ours["beyond"] == ";".join(f"{part}/{rows}:{first}-{rows - 1}" for part, rows, first in ranges(world))
    again = world.stream(order="arrival")
    again.load_state_dict(state)
    assert ids_of(again) == [slow]


def ranges(world: World) -> Iterator[tuple[int, int, int]]:
    for part, first in zip(PARTS, (4, 0), strict=True):
        yield part, pq.read_metadata(DataDir.at(world.root).index(part)).num_rows, first


OPERATIONS = {
    "filter": lambda ds: ds.filter(lambda example: example["sample_id"] % 3 > 0),
    "map": lambda ds: ds.map(lambda example: {"n": len(example["faces"])}),
    "decode": lambda ds: ds.decode(False),
    "shard": lambda ds: ds.shard(2, 1),
    "node": lambda ds: split_dataset_by_node(ds, 1, 2),
    "shuffled": lambda ds: IterableDataset(
        ds._ex_iterable.shuffle_data_sources(np.random.default_rng(3)), info=ds.info, split=ds.split
    ),
    "interleaved": lambda ds: interleave_datasets([ds]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_in_order_of_arrival_under_what_datasets_puts_around_it(shared_world, name):
    world, make = shared_world, OPERATIONS[name]
    moods(world, 1, 0.2)
    whole = flat_ids_of(make(world.stream(order="index", images="none")))
    first = make(world.stream(order="arrival", on_error="null"))
    before = flat_ids_of(islice(iter(first), 5))
    state = json.loads(json.dumps(first.state_dict()))
    moods(world, 2, 0.2)
    again = make(world.stream(order="arrival", on_error="null"))
    again.load_state_dict(state)
    require_the_rest(before, again, whole)


def require_the_rest(before: list[int], again: Any, whole: list[int], *, may_refuse: bool = BEFORE_5) -> None:
    """Require that each row comes once; or, where datasets makes batches, that nothing comes and the reason is told."""
    after, error = tried(again)
    if error is None:
        assert sorted(before + after) == sorted(whole)
    else:
        assert "cannot be gone on with through what datasets makes batches in" in str(error)
        assert may_refuse


@pytest.mark.parametrize(
    "make",
    [
        lambda ds: ds.batch(4),
        lambda ds: ds.map(lambda batch: {"n": batch["part"]}, batched=True, batch_size=4),
        lambda ds: ds.filter(lambda batch: [True] * len(batch["part"]), batched=True, batch_size=4),
    ],
    ids=["batch", "map", "filter"],
)
def test_in_order_of_arrival_nobody_goes_on_within_a_batch_of_datasets(shared_world, make):
    # datasets would throw other rows away than those that it gave; where it does not, every row comes once.
    world = shared_world
    moods(world, 8, 0.2)
    first = make(world.stream(order="arrival", on_error="null"))
    before = flat_ids_of(islice(iter(first), 6))
    again = make(world.stream(order="arrival", on_error="null"))
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    require_the_rest(before, again, world.ids, may_refuse=True)


def tried(examples: Any) -> tuple[list[int], StateConflict | None]:
    try:
        return flat_ids_of(examples), None
    except StateConflict as error:
        return [], error


@pytest.mark.parametrize("name", ["take", "skip"])
def test_in_order_of_arrival_take_and_skip_count_what_came(shared_world, name):
    world = shared_world

    def make() -> Any:
        return getattr(world.stream(order="arrival", on_error="null"), name)(12)

    moods(world, 3, 0.2)
    first = make()
    before = ids_of(islice(iter(first), 5))
    state = json.loads(json.dumps(first.state_dict()))
    again = make()
    again.load_state_dict(state)
    after, error = tried(again)
    seen = before + after
    assert BEFORE_5 if error else len(seen) == len(set(seen)) == (12 if name == "take" else len(world.ids) - 12)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_order_of_arrival_a_stateful_data_loader_resumes(shared_world, workers):
    def loader() -> StatefulDataLoader:
        ds = shared_world.stream(order="arrival", on_error="null")
        return StatefulDataLoader(ds, batch_size=3, num_workers=workers, collate_fn=ids_of)

    moods(shared_world, 4, 0.2)
    first = loader()
    before = list(islice(iter(first), 4))
    state = first.state_dict()
    moods(shared_world, 5, 0.2)
    again = loader()
    again.load_state_dict(state)
    seen = [sample_id for batch in [*before, *again] for sample_id in batch]
    assert sorted(seen) == sorted(shared_world.ids)


def test_every_epoch_has_every_row(shared_world):
    moods(shared_world, 6, 0.2)
    ds = shared_world.stream(order="arrival", on_error="null").repeat(2)
    examples = iter(ds)
    before = ids_of(islice(examples, len(shared_world.ids) + 5))
    again = shared_world.stream(order="arrival", on_error="null").repeat(2)
    again.load_state_dict(json.loads(json.dumps(ds.state_dict())))
    require_the_rest(before, again, shared_world.ids * 2)
    assert sorted(before[: len(shared_world.ids)]) == sorted(shared_world.ids)


def test_rows_beyond_are_of_the_same_index(world):
    world.host.moods = {world.ids[0]: (1.0, 200)}
    _, state = read(world.stream(order="arrival"), len(world.ids) - 5)
    assert ours_in(state)["part"] is None
    index = DataDir.at(world.root).index(0)
    table = pq.read_table(index)
    pq.write_table(table[1:], index)
    again = world.stream(order="arrival")
    again.load_state_dict(state)
    with pytest.raises(StateConflict, match=f"part 0 is another one: the index had {len(table)} rows then, and has"):
        next(iter(again))


def test_an_arrow_cache_is_in_the_order_of_the_index(world, tmp_path):
    moods(world, 7, 0)
    given = {"images": "fetch", "parts": PARTS, "data_dir": str(world.root), "cache_dir": str(tmp_path / "cache")}
    table = laion_face.load_dataset("20M", split="train", allow_private_hosts=True, order="arrival", **given)
    assert table["sample_id"][:] == world.ids


def test_no_other_order(world):
    with pytest.raises(OptionError, match="order='random': valid are 'index', 'arrival'"):
        world.stream(order="random")
