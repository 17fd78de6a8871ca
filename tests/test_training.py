"""Training by several ranks: real processes over gloo, a tiny model under DDP, pictures that fail on one rank only."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import laion_face
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Answer, SandboxSpec
from laion_face_builder.upstream.sources import Upstream

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
    """Part 0 of which nearly all pictures fail that the second of two ranks reads."""
    box = make_sandbox(SandboxSpec(parts=(0,), rows=360, failing=0, twisted=0))
    truth = box.truth_of(0)
    gone = [row for row in truth if row.row * SHARDS // len(truth) % 2 and row.row % 4]
    for row in gone:
        box.pictures.answers[row.path] = Answer(status=404)
    data = DataDir.at(tmp_path / "data")
    prepare(data, [0], Upstream(box.repo, None, box.metadata_folder))
    lost = {row.sample_id for row in gone}
    return SimpleNamespace(data=data.root, wanted=[row.sample_id for row in truth if row.sample_id not in lost])


def on_two_ranks(script, uneven, tmp_path):
    """What each of two ranks found."""
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
    """The loop without in_step would not: its ranks have different numbers of batches."""
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
    """DDP's own way, which the README names for those who want no batch left out."""
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
