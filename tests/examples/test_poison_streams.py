"""Pictures that kill or hang their decoder cost a stream their rows, from tars and from the web, and nothing else."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder.download.part import DownloadOptions, download_part
from laion_face_builder.files import make_fingerprint, stamped
from laion_face_builder.layout import DataDir
from laion_face_builder.options import FetchOptions
from laion_face_builder.sandbox import Answer, PictureHost, SandboxSpec
from laion_face_builder.sandbox.content import make_content
from laion_face_builder.schema import INDEX
from tests.support.poison import DEEDS, poison, poisonous_python

pytestmark = pytest.mark.slow

#: Prints what came of each row, and what was counted.
READER = """
import hashlib, json, sys
import laion_face

if __name__ == "__main__":
    options, workers, method, is_arrow = json.loads(sys.argv[1])
    where = {"split": "train", "parts": [0], "allow_private_hosts": True, "retries": 0, "on_error": "null"}
    ds = laion_face.load_dataset("20M", streaming=not is_arrow, **where, **options)
    rows = ds.decode(False) if not is_arrow else ds.cast_column("image", __import__("datasets").Image(decode=False))
    if workers:
        from torch.utils.data import DataLoader
        rows = DataLoader(rows, batch_size=None, num_workers=workers, multiprocessing_context=method)
    sums = {}
    for row in rows:
        image = row["image"]
        sums[int(row["sample_id"])] = image and hashlib.sha256(image["bytes"]).hexdigest()
    print(json.dumps([sums, laion_face.report(ds).as_dict()["failed"]]))
"""


def sums_of(python: str, *, workers: int = 0, method: str | None = None, is_arrow: bool = False, **options: Any) -> Any:
    """Return sample id -> SHA-256 of its picture, None if it failed; and how many failed of what."""
    given = json.dumps([options, workers, method, is_arrow])
    script = Path(options["data_dir"]) / "reader.py"  # spawned workers import it
    script.write_text(READER)
    done = subprocess.run([python, script, given], check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    sums, failed = json.loads(done.stdout.splitlines()[-1])
    return {int(sample_id): value for sample_id, value in sums.items()}, failed


class World:
    """A part whose pictures one host serves; `poisoned` are sample ids, and how each is counted."""

    def __init__(self, host: PictureHost, folder: Path, python: str) -> None:
        self.host, self.folder, self.python = host, folder, python
        self.data, draw = DataDir.at(folder), random.Random(8)
        content = make_content(SandboxSpec(parts=(0,), rows=60, failing=0, twisted=0, slow=0), [host.url()])
        host.answers.update(content.answers)
        rows = [
            {name: getattr(truth, name) for name in INDEX.names if hasattr(truth, name)}
            | {"faces": [face.as_dict() for face in truth.faces], "n_faces": len(truth.faces)}
            for truth in content.truth
        ]
        self.data.index(0).parent.mkdir(parents=True)
        table = pa.Table.from_pylist(rows, schema=stamped(INDEX, make_fingerprint("index", part=0)))
        pq.write_table(table, self.data.index(0))
        wanted = [(deed, form) for deed in DEEDS for form in ("PNG", "JPEG")]
        self.poisoned: dict[str, dict[int, str]] = {"PNG": {}, "JPEG": {}}
        for number, (truth, (deed, form)) in enumerate(
            zip(draw.sample(content.truth, len(wanted)), wanted, strict=True)
        ):
            host.answers[truth.path] = Answer(body=poison(deed, form, number))
            self.poisoned[form][truth.sample_id] = DEEDS[deed]
        # A Python without poison downloads them: this is how they come into tars.
        fetch = FetchOptions(allow_private_hosts=True, retries=0, concurrency=8)
        download_part(self.data, 0, DownloadOptions(fetch, processes_count=1))

    def require(self, found: Any, expected: dict[int, str]) -> None:
        sums, failed = found
        assert sums == {**self.sums, **dict.fromkeys(expected)}
        assert failed == {reason: [*expected.values()].count(reason) for reason in {*expected.values()}}

    @property
    def sums(self) -> dict[int, str]:
        """What a stream gives that decodes nothing."""
        if not hasattr(self, "_sums"):
            self._sums, failed = sums_of(self.python, data_dir=str(self.folder), images="download")
            assert not failed
            assert None not in self._sums.values()
        return dict(self._sums)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with PictureHost() as host:
        python = poisonous_python(tmp_path_factory.mktemp("poisonous"))
        yield World(host, tmp_path_factory.mktemp("world") / "data", python)


@pytest.mark.parametrize(
    ("images", "workers", "method"), [("fetch", 0, None), ("fetch", 2, "spawn"), ("download", 2, "fork")]
)
def test_isolated_decoders_cost_a_stream_their_rows(images: str, workers: int, method: str | None, world: World):
    given: dict[str, Any] = {"data_dir": str(world.folder), "images": images, "isolate_decoder": True}
    found = sums_of(world.python, workers=workers, method=method, **given)
    world.require(found, world.poisoned["PNG"] | world.poisoned["JPEG"])


def test_all_but_ordinary_jpegs_are_decoded_apart_anyway(world: World):
    found = sums_of(world.python, data_dir=str(world.folder), images="fetch")
    world.require(found, world.poisoned["PNG"])


def test_an_arrow_cache_is_made_without_them(world: World):
    given: dict[str, Any] = {"data_dir": str(world.folder), "images": "fetch", "isolate_decoder": True}
    found = sums_of(world.python, is_arrow=True, cache_dir=str(world.folder / "cache"), **given)
    world.require(found, world.poisoned["PNG"] | world.poisoned["JPEG"])
