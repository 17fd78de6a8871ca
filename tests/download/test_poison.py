"""Pictures that kill or hang their decoder cost their rows in downloads of several parts, and nothing else."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder import cli
from laion_face_builder.download.tar_reader import PartPictures, StoredPicture
from laion_face_builder.files import make_fingerprint, stamped
from laion_face_builder.images import jpeg
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Answer, PictureHost, SandboxSpec, Truth
from laion_face_builder.sandbox.content import make_content
from laion_face_builder.sandbox.serving import Request
from laion_face_builder.schema import INDEX
from tests.download.test_download import children
from tests.support.poison import DEEDS, poison, poisonous_python

pytestmark = pytest.mark.slow

PARTS = (0, 2)
OPTIONS = ("--samples-per-shard", "9", "--processes", "2", "--concurrency", "6", "--timeout", "60", "--retries", "0")


class Deadly(PictureHost):
    """Kills every worker that asks for one of some pictures to write it: a folder of this name is then new."""

    paths: frozenset[str] = frozenset()
    made: Path = Path("/nowhere")
    seen = 0

    def answer(self, request: Request) -> Answer:
        made = len([*self.made.parent.glob(self.made.name)])
        if request.path in self.paths and made > self.seen:
            self.seen = made
            for worker in children("download.worker"):
                os.kill(worker, signal.SIGKILL)
        return super().answer(request)


@dataclass(frozen=True)
class World:
    """Parts of an index whose pictures one host serves."""

    host: Deadly
    truths: list[Truth]

    def write(self, data: DataDir) -> None:
        for part in PARTS:
            rows = [
                {name: getattr(truth, name) for name in INDEX.names if hasattr(truth, name)}
                | {"faces": [face.as_dict() for face in truth.faces], "n_faces": len(truth.faces)}
                for truth in self.truths
                if truth.part == part
            ]
            data.index(part).parent.mkdir(parents=True, exist_ok=True)
            schema = stamped(INDEX, make_fingerprint("index", part=part))
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), data.index(part))


@pytest.fixture
def world() -> Iterator[World]:
    with Deadly() as host:
        content = make_content(SandboxSpec(parts=PARTS, rows=60, failing=0.1, twisted=0, slow=0), [host.url()])
        host.answers.update(content.answers)
        yield World(host, list(content.truth))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return poisonous_python(tmp_path_factory.mktemp("poisonous"))


def download(python: str, data: DataDir, *options: str) -> list[dict[str, Any]]:
    command = (python, "-m", "laion_face", "download", "20M", "--parts", "0,2", "--data-dir", str(data.root))
    done = subprocess.run(
        [*command, *OPTIONS, "--allow-private-hosts", "--format", "json", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def everything(data: DataDir) -> dict[tuple[int, int], StoredPicture]:
    found: dict[tuple[int, int], StoredPicture] = {}
    for part in PARTS:
        with PartPictures.open(data, part) as pictures:
            found |= {(part, row): one for row, one in enumerate(pictures.read(0, pictures.num_rows))}
    return found


#: How it is downloaded -> options, and the forms of pictures that are decoded then. Ordinary JPEGs are not, else.
WAYS = {
    "as they are": ((), ("PNG",)),
    "isolated": (("--isolate-decoder",), ("PNG", "JPEG")),
    "resized": (("--resize-mode", "keep_ratio", "--image-size", "64"), ("PNG", "JPEG")),
}


@pytest.mark.parametrize("way", WAYS)
def test_all_else_is_as_if_poison_were_not_there(way: str, world: World, python: str, tmp_path: Path) -> None:
    options, forms = WAYS[way]
    draw = random.Random(way)
    deeds = [deed for deed in DEEDS if (way, deed) != ("resized", "SPIN")]  # encoding may work for minutes
    chosen = draw.sample([truth for truth in world.truths if truth.ok], len(deeds) * len(forms))
    wanted = [(deed, form) for deed in deeds for form in forms]
    expected = {(truth.part, truth.row): DEEDS[deed] for truth, (deed, _) in zip(chosen, wanted, strict=True)}

    without, poisoned = (DataDir.at(tmp_path / name) for name in ("without", "poisoned"))
    for data in (without, poisoned):
        world.write(data)
    for truth in chosen:
        world.host.answers[truth.path] = Answer(404, b"")
    download(python, without, *options)
    for number, (truth, (deed, form)) in enumerate(zip(chosen, wanted, strict=True)):
        world.host.answers[truth.path] = Answer(body=poison(deed, form, number))
    said = download(python, poisoned, *options)

    plain, found = everything(without), everything(poisoned)
    assert {place: found[place].status for place in expected} == expected
    assert found == plain | {place: replace(plain[place], status=reason) for place, reason in expected.items()}
    counted = sum(int(one["failures"].get(reason, 0)) for one in said for reason in {*DEEDS.values()})
    assert counted == len(expected)

    asked = len(world.host.log)
    download(python, poisoned, *options, "--retry-failed", "1")
    again = {request.path for request in world.host.log[asked:]}
    assert not again & {truth.path for truth in chosen}
    assert {place: one.status for place, one in everything(poisoned).items() if place in expected} == expected


def test_poison_looks_like_any_picture() -> None:
    assert jpeg.quick(poison("ABRT", "JPEG")) is not None


def test_a_shard_that_nothing_helps_stops_no_other(world: World, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    # Its processes die whenever it is written, and never while its samples are tried: no sample is to blame.
    data = DataDir.at(tmp_path)
    world.write(data)
    world.host.made = data.tars(0) / "_tmp" / "00001.*"
    world.host.paths = frozenset(truth.path for truth in world.truths if truth.part == 0 and 9 <= truth.row < 18)
    command = ["download", "20M", "--parts", "0,2", "--data-dir", str(tmp_path), "--allow-private-hosts", *OPTIONS]
    command += ["--processes", "1"]
    assert cli.main(command) == 1
    said = capfd.readouterr()
    assert "part 0 is not whole; the others go on" in said.err
    assert f"{data.tars(0) / '00001.tar'}: the processes that make it go on dying" in said.err
    assert [line.split()[0] for line in said.out.splitlines()] == ["part", "2"]
    counts = Counter(truth.part for truth in world.truths)
    with PartPictures.open(data, 2) as pictures:
        assert pictures.num_rows == counts[2]
    assert len([*data.tars(0).glob("*.tar")]) == -(-counts[0] // 9) - 1
    world.host.paths = frozenset()
    assert cli.main(command) == 0
    assert len(everything(data)) == len(world.truths)
