"""Streams whose pictures come from the web: what their hosts see of it, and examples in order of arrival."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import interleave_datasets
from hostile_host import HostileHost, message

import laion_face
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from laion_face_builder.upstream.sources import Upstream

PARTS = (0, 2)


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


@pytest.fixture
def world(prepared, tmp_path) -> Iterator[World]:
    """The same rows at a host of this test's own."""
    data, ids = DataDir.at(shutil.copytree(prepared.root, tmp_path / "data")), []
    with MoodyHost() as host:
        for part in PARTS:
            table = pq.read_table(data.index(part))
            here = table["sample_id"].to_pylist()
            urls = pa.array([host.url(f"/row/{sample_id}") for sample_id in here], table.schema.field("url").type)
            pq.write_table(table.set_column(table.schema.get_field_index("url"), "url", urls), data.index(part))
            ids += here
        yield World(data.root, host, ids)


def ids_of(examples: Any) -> list[int]:
    return [example["sample_id"] for example in examples]


def fetchers() -> list[threading.Thread]:
    gc.collect()
    return [thread for thread in threading.enumerate() if thread.name == "laion-face-fetch"]


@pytest.mark.parametrize("how", ["shuffle", "interleave"])
def test_all_streams_of_a_process_keep_within_one_set_of_bounds(world, how):
    world.host.always = (0.02, 200)
    bounds = {"concurrency": 6, "lookahead": 32}
    if how == "shuffle":  # datasets 5 opens ten shards at once
        ds = world.stream(**bounds).shuffle(seed=1, buffer_size=20)
    else:
        both = [world.stream(parts=part, **bounds) for part in PARTS]
        ds = interleave_datasets(both, stopping_strategy="all_exhausted")
    examples = iter(ds)
    seen = ids_of(islice(examples, 5))
    assert len(fetchers()) == 1
    seen += ids_of(examples)
    assert sorted(set(seen)) == sorted(world.ids)
    assert 2 <= world.host.most_at_once <= 6
    del examples, ds
    assert not fetchers()
