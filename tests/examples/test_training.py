"""Training by several ranks: real processes over gloo, a tiny model under DDP, pictures that fail on one rank only."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import datasets
import pytest
from packaging.version import Version
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import laion_face
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Answer, SandboxSpec
from laion_face_builder.sources.sources import Upstream
from tests.support.streams import ids_of

pytestmark = pytest.mark.slow

SHARDS = 8
#: What all scripts begin with: two ranks, a stream, a loader, a model, and a place for what each rank found out.
HEAD = """
import json, logging, sys
import numpy as np
import torch
import torch.distributed as dist
from datasets.distributed import split_dataset_by_node
from torch.nn.parallel import DistributedDataParallel
from torchdata.stateful_dataloader import StatefulDataLoader
import laion_face

data, out = sys.argv[1:]
found = {}
said = []

class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("laion_face").addHandler(Said())
logging.getLogger("laion_face").setLevel(logging.INFO)
dist.init_process_group("gloo")
rank = dist.get_rank()
model = DistributedDataParallel(torch.nn.Linear(3, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

def loader():
    ds = laion_face.load_dataset("20M", split="train", parts="0", shards_per_part=SHARDS, data_dir=data, streaming=True,
        images="fetch", retries=0, allow_private_hosts=True, mode="RGB")
    ds = split_dataset_by_node(ds, rank=rank, world_size=dist.get_world_size())
    return StatefulDataLoader(ds, batch_size=4, num_workers=2, collate_fn=laion_face.collate)

def step(batch):
    colours = torch.tensor(np.array([np.asarray(image).mean((0, 1)) for image in batch["image"]]), dtype=torch.float32)
    loss = model(colours).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return batch["sample_id"].tolist()
""".replace("SHARDS", str(SHARDS))
TAIL = """
found["said"] = said
json.dump(found, open(f"{out}/{rank}.json", "w"))
dist.destroy_process_group()
"""


@pytest.fixture
def uneven(make_sandbox, tmp_path):
    """Prepare part 0 with more failures for the second of two ranks: in odd shards, or in the second half of them."""
    box = make_sandbox(SandboxSpec(parts=(0,), rows=360, failing=0, twisted=0))
    truth = box.truth_of(0)
    gone = [row for row in truth if is_gone(row.row, row.row * SHARDS // len(truth))]
    for row in gone:
        box.pictures.answers[row.path] = Answer(status=404)
    data = DataDir.at(tmp_path / "data")
    prepare(data, [0], Upstream(box.repo, None, box.metadata_folder))
    lost = {row.sample_id for row in gone}
    return SimpleNamespace(data=data.root, wanted=[row.sample_id for row in truth if row.sample_id not in lost])


def is_gone(row, shard):
    return (shard % 2 and row % 3) or (shard >= SHARDS // 2 and row % 2)


def on_two_ranks(script, uneven, tmp_path):
    """Run a script on two ranks; return what each of them found."""
    file, out = tmp_path / "script.py", tmp_path / "out"
    file.write_text(HEAD + script + TAIL)
    out.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, str(file), str(uneven.data), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_ranks_end_an_epoch_together(uneven, tmp_path):
    # Without in_step the ranks would not, since they have different numbers of batches.
    script = """
found["naive"] = sum(1 for batch in loader())
found["epochs"] = [[step(batch) for batch in laion_face.in_step(loader())] for epoch in range(2)]
"""
    first, second = on_two_ranks(script, uneven, tmp_path)
    assert first["naive"] > second["naive"] > 2
    for epoch in range(2):
        batches = [rank["epochs"][epoch] for rank in (first, second)]
        assert [len(one) for one in batches] == [second["naive"]] * 2
        ids = [sample_id for one in batches for batch in one for sample_id in batch]
        assert len(ids) == len(set(ids))
        assert set(ids) < set(uneven.wanted)
    said = f"{second['naive']} steps: then 1 of 2 ranks had no more batches, and what the others still had is left out"
    assert first["said"].count(said) == 2
    assert said not in second["said"]


def test_a_run_that_is_stopped_goes_on_in_step(uneven, tmp_path):
    script = """
whole = [step(batch) for batch in laion_face.in_step(loader())]
first, seen = loader(), []
for batch in laion_face.in_step(first):
    seen.append(step(batch))
    if len(seen) == 3:
        state = first.state_dict()
        break
again = loader()
again.load_state_dict(state)
found["whole"], found["parts"] = whole, seen + [step(batch) for batch in laion_face.in_step(again)]
"""
    for rank in on_two_ranks(script, uneven, tmp_path):
        assert len(rank["whole"]) > 3
        assert rank["parts"] == rank["whole"]


def test_join_lets_every_rank_use_all_it_has(uneven, tmp_path):
    # This is DDP's own way, which the docs name for those who want no batch left out.
    script = """
with model.join():
    found["ids"] = [step(batch) for batch in loader()]
"""
    ranks = [rank["ids"] for rank in on_two_ranks(script, uneven, tmp_path)]
    assert len(ranks[0]) > len(ranks[1])
    assert sorted(sample_id for rank in ranks for batch in rank for sample_id in batch) == sorted(uneven.wanted)


def test_one_rank_gets_everything_as_it_comes():
    taken = []

    def batches():
        for number in range(5):
            taken.append(number)
            yield number

    steps = laion_face.in_step(batches())
    assert taken == []
    for number in steps:
        assert taken[-1] == number  # nothing is read ahead
    assert taken == list(range(5))


def test_accelerate_shares_the_shards_and_stays_in_step(uneven, tmp_path):
    # The ranks stay in step also where gradients are accumulated over steps that do not divide the epoch.
    script = """
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin

accelerator = Accelerator(
    cpu=True,
    dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
    gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=3, sync_with_dataloader=False),
)
found["world"] = accelerator.num_processes
ds = laion_face.load_dataset("20M", split="train", parts="0", shards_per_part=SHARDS, data_dir=data, streaming=True,
    images="fetch", retries=0, allow_private_hosts=True, mode="RGB")
batches = torch.utils.data.DataLoader(ds, batch_size=4, num_workers=2, collate_fn=laion_face.collate)
model = torch.nn.Linear(3, 1)
model, optimizer, batches = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-3), batches)
found["naive"] = [batch["sample_id"].tolist() for batch in batches]
found["ids"], found["synced"] = [], 0
for batch in laion_face.in_step(batches):
    with accelerator.accumulate(model):
        colours = [np.asarray(image).mean((0, 1)) for image in batch["image"]]
        accelerator.backward(model(torch.tensor(np.array(colours), dtype=torch.float32)).square().mean())
        found["synced"] += accelerator.sync_gradients
        optimizer.step()
        optimizer.zero_grad()
    found["ids"].append(batch["sample_id"].tolist())
""".replace("SHARDS", str(SHARDS))
    first, second = on_two_ranks(script, uneven, tmp_path)
    assert first["world"] == 2
    naive = [sample_id for rank in (first, second) for batch in rank["naive"] for sample_id in batch]
    assert sorted(naive) == sorted(uneven.wanted)  # each rank reads its own shards, together they read all
    steps = len(second["naive"])
    assert len(first["naive"]) > steps
    assert [rank["ids"] for rank in (first, second)] == [rank["naive"][:steps] for rank in (first, second)]
    assert first["synced"] == second["synced"] == steps // 3


@pytest.fixture(scope="module")
def rows(sandbox, tmp_path_factory):
    """Give what opens a new stream of part 0 each time, without pictures."""
    data = DataDir.at(tmp_path_factory.mktemp("rows"))
    prepare(data, [0], Upstream(sandbox.repo, None, sandbox.metadata_folder))
    given = {"parts": "0", "data_dir": str(data.root), "images": "none", "shards_per_part": 8}
    return lambda: laion_face.load_dataset("20M", split="train", streaming=True, **given)


@pytest.fixture(scope="module")
def whole(rows):
    """Return the sample ids of all rows, in order."""
    return ids_of(rows())


class TestResumes:
    """The docs' table of what resumes exactly, line by line; those of `in_step` and of failures stand elsewhere."""

    def test_without_workers_the_stream_knows_where_it_is(self, rows, whole):
        ds = rows()
        seen = first(DataLoader(ds, batch_size=4, collate_fn=laion_face.collate), 5)
        again = rows()
        again.load_state_dict(ds.state_dict())
        assert flat(seen) + ids_of(again) == whole

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("size", [4, 6])
    def test_stateful_loaders_go_on_where_they_were(self, rows, whole, workers, size):
        # Loaders go on however much is fetched ahead, and with another batch size.
        ahead = {"prefetch_factor": 8} if workers else {}
        loader = stateful(rows(), workers, **ahead)
        seen = first(loader, 5)
        again = stateful(rows(), workers, batch_size=size)
        again.load_state_dict(loader.state_dict())
        rest = batches_of(again)
        assert sorted(flat(seen + rest)) == sorted(whole)
        if size == 4:
            assert seen + rest == batches_of(stateful(rows(), workers))

    def test_workers_do_not_tell_the_stream_where_they_are(self, rows):
        ds = rows()
        start = ds.state_dict()
        first(DataLoader(ds, batch_size=4, num_workers=2, collate_fn=laion_face.collate), 5)
        assert ds.state_dict() == start

    @pytest.mark.parametrize(("saved", "now"), [(2, 1), (2, 0), (0, 2)])
    def test_another_number_of_workers_is_refused_by_torchdata(self, rows, saved, now):
        loader = stateful(rows(), saved)
        first(loader, 5)
        again = stateful(rows(), now)
        again.load_state_dict(loader.state_dict())
        with pytest.raises(AssertionError):
            batches_of(again)

    def test_a_resumed_stream_begins_there_again_until_the_next_epoch_is_set(self, rows, whole):
        ds = rows()
        seen = flat(first(DataLoader(ds, batch_size=4, collate_fn=laion_face.collate), 5))
        again = rows()
        again.load_state_dict(ds.state_dict())
        assert ids_of(again) == ids_of(again) == whole[len(seen) :]
        again.set_epoch(1)
        assert sorted(ids_of(again)) == sorted(whole)

    def test_a_state_of_a_later_epoch_needs_that_epoch_to_be_set(self, rows, whole):
        ds, again = rows(), rows()
        ds.set_epoch(1)
        seen = flat(first(DataLoader(ds, batch_size=4, collate_fn=laion_face.collate), 5))
        again.load_state_dict(ds.state_dict())
        assert ids_of(again) == whole  # from the start, in silence
        again.set_epoch(1)
        assert sorted(seen + ids_of(again)) == sorted(whole)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_state_of_the_end(self, rows, whole, workers):
        loader = stateful(rows(), workers)
        assert len(flat(batches_of(loader))) == len(whole)
        ds = rows()
        again = stateful(ds, workers)
        again.load_state_dict(loader.state_dict())
        assert len(flat(batches_of(again))) == (len(whole) if workers else 0)
        ds.set_epoch(1)
        assert len(flat(batches_of(again))) == len(whole)

    @pytest.mark.parametrize("size", [1, 30])
    def test_what_is_in_the_shuffle_buffer_is_lost(self, rows, whole, size):
        def shuffled():
            return rows().shuffle(seed=1, buffer_size=size)

        ds = shuffled()
        seen = flat(first(DataLoader(ds, batch_size=4, collate_fn=laion_face.collate), 5))
        again = shuffled()
        again.load_state_dict(ds.state_dict())
        rest = ids_of(again)
        lost = set(whole) - set(seen) - set(rest)
        assert len(seen + rest) == len(set(seen + rest))
        if size == 1 and Version(datasets.__version__) >= Version("5.1"):
            assert seen + rest == ids_of(shuffled())
        else:
            assert 0 < len(lost) <= size


def batches_of(loader):
    return [batch["sample_id"].tolist() for batch in loader]


def flat(batches):
    return [sample_id for batch in batches for sample_id in batch]


def first(loader, count):
    """Return the ids of the first batches; no further one is asked for."""
    return [batch["sample_id"].tolist() for batch in itertools.islice(loader, count)]


def stateful(ds, workers, batch_size=4, **how):
    return StatefulDataLoader(ds, batch_size=batch_size, num_workers=workers, collate_fn=laion_face.collate, **how)
