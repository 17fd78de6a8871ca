"""`laion-face demo`: the whole job on a miniature upstream on this machine, by the commands that a user would type.

FOLDER/
  sandbox/        the miniature: drawn pictures, pickles, metadata, and every cache that the commands write
  data/           DATA_DIR, as `prepare` and `download` leave it
  load.py         the script that loads it
  preview.png     what came out
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from laion_face_builder.errors import LaionFaceError, OptionError
from laion_face_builder.files import human_size
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Sandbox

PARTS = (0, 2)
_MARKER = ".laion-face-demo"
_LOAD = '''\
"""Loads what the demo prepared, once as Arrow files and once as a stream. Usage: load.py DATA_DIR PREVIEW.png"""

import json
import sys
import time

import laion_face
from laion_face_builder.preview import contact_sheet

data_dir, preview = sys.argv[1:]
results = []
for streaming in (False, True):
    start = time.perf_counter()
    ds = laion_face.load_dataset("20M", parts="0,2", data_dir=data_dir, split="train", streaming=streaming)
    first, faces, ids = None, 0, []
    for example in ds:
        first = first or time.perf_counter() - start
        faces += len(example["faces"])
        ids.append(example["sample_id"])
    report = laion_face.report(ds).as_dict()
    seconds = time.perf_counter() - start
    results.append({"examples": len(ids), "faces": faces, "ids": ids, "first": first, "seconds": seconds, **report})
    if not streaming:
        some = [row for row, found in enumerate(ds["faces"]) if 0 < len(found) < 5]
        contact_sheet([ds[row] for row in some[:: max(1, len(some) // 12)][:12]]).save(preview)
json.dump(results, sys.stdout)
'''


@dataclass(frozen=True)
class Outcome:
    """What the commands gave: status of every picture; what was loaded, from Arrow and as a stream; seconds a step."""

    statuses: Counter[str]
    loaded: list[dict[str, Any]]
    seconds: Mapping[str, float]


def run_demo(folder: Path) -> None:
    """Runs prepare, download and load_dataset on a fresh sandbox in `folder`, and prints what happened to stdout.

    Raises:
        OptionError: `folder` holds something that is not an earlier demo.
        LaionFaceError: a command failed; what it said stands on stderr.
    """
    _make_room(folder)
    start = time.perf_counter()
    with Sandbox.running(folder / "sandbox") as box:
        made = time.perf_counter() - start
        print(
            f"A miniature LAION-Face of {len(box.truth):,} face rows is served on this machine ({made:.1f} s to make)."
        )
        outcome = _as_a_user(box, folder)
        _print_table(box, outcome)
    _print_places(folder)


def _make_room(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise OptionError(f"{folder}: it is not empty and not from an earlier demo. Name another folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()


def _as_a_user(box: Sandbox, folder: Path) -> Outcome:
    data, load = folder / "data", folder / "load.py"
    load.write_text(_LOAD, encoding="utf-8")
    given = ["20M", "--parts", ",".join(map(str, PARTS)), "--data-dir", str(data)]
    seconds: dict[str, float] = {}
    _run(box, seconds, "prepare", ["-m", "laion_face_builder", "prepare", *given])
    _run(box, seconds, "download", ["-m", "laion_face_builder", "download", *given, "--allow-private-hosts"])
    loaded = _run(box, seconds, "load, twice", [str(load), str(data), str(folder / "preview.png")])
    sidecars = [pq.read_table(DataDir.at(data).sidecar(part), columns=["status"])["status"] for part in PARTS]
    statuses = Counter(status for sidecar in sidecars for status in sidecar.to_pylist())
    return Outcome(statuses, json.loads(loaded), seconds)


def _run(box: Sandbox, seconds: dict[str, float], step: str, arguments: Sequence[str]) -> str:
    """Runs Python with these arguments; gives its stdout, and lets its stderr through to the user's."""
    print(f"\n$ {_as_typed(arguments)}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own commands
        [sys.executable, *arguments],
        env={**_own_environment(), **box.environment},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=False,
    )
    seconds[step] = time.perf_counter() - start
    if done.returncode:
        raise LaionFaceError(
            f"demo: `{_as_typed(arguments)}` ended with exit code {done.returncode}; see what it said above"
        )
    return done.stdout


def _own_environment() -> dict[str, str]:
    """Ours without proxies, which cannot reach this machine's loopback, and without ranks."""
    left_out = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "world_size", "rank")
    return {name: value for name, value in os.environ.items() if name.lower() not in left_out}


def _as_typed(arguments: Sequence[str]) -> str:
    if arguments[:2] == ["-m", "laion_face_builder"]:
        return shlex.join(["laion-face", *arguments[2:]])
    return shlex.join(["python", *arguments])


def _print_table(box: Sandbox, outcome: Outcome) -> None:
    """What came out beside what was put in: the sandbox knows the truth."""
    true = [truth for part in PARTS for truth in box.truth_of(part)]
    usable = [truth for truth in true if truth.ok]
    arrow, stream = outcome.loaded
    rows: list[tuple[str, object, object]] = [
        ("metadata rows", "", box.content.rows_read_for(PARTS)),
        ("face rows in the index", outcome.statuses.total(), len(true)),
        ("usable pictures", outcome.statuses["ok"], len(usable)),
        ("examples from Arrow files", arrow["examples"], len(usable)),
        ("examples streamed", stream["examples"], len(usable)),
        ("the same, in the same order", _yes(arrow["ids"] == stream["ids"]), "yes"),
        ("faces in them", arrow["faces"], sum(len(truth.faces) for truth in usable)),
    ]
    print(f"\n{'':32}{'came out':>10}{'put in':>10}")
    for name, out, into in rows:
        print(f"{name:32}{_number(out):>10}{_number(into):>10}")
    _print_failures(outcome, Counter(truth.fate for truth in true if not truth.ok))
    print(f"\n{'seconds':32}")
    for step, seconds in [*outcome.seconds.items(), ("first streamed example after", stream["first"])]:
        print(f"{step:32}{seconds:>10.1f}")


def _print_failures(outcome: Outcome, put_in: Counter[str]) -> None:
    failed = [(reason, count) for reason, count in outcome.statuses.most_common() if reason != "ok"]
    print(f"\n{'pictures that failed':32}{sum(count for _, count in failed):>10,}{put_in.total():>10,}")
    for reason, count in failed:
        print(f"  {reason:30}{count:>10,}")
    names = ", ".join(f"{fate}={count}" for fate, count in put_in.most_common())
    print(textwrap.fill(f"put in: {names}", 90, initial_indent="  ", subsequent_indent="    "))


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _print_places(folder: Path) -> None:
    size = sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file())
    print(
        f"""
Look at
  {folder / "preview.png"}   the pictures with boxes, landmarks and captions
  {folder / "load.py"}       the script that loaded them
  {folder / "data"}          ids, faces, index and pictures, {human_size(size)}

The real thing
  1. Accept the terms at https://huggingface.co/datasets/laion/relaion400m, then:  hf auth login
  2. One part:  laion-face prepare 20M --parts 0 --data-dir DATA
     It downloads 443 MB of ids once and 910 MB of detections for each part. The metadata, about 47 GB in 128 files,
     is read once, whatever the number of parts: the 13 of the 20M config or the 32 of the 50M config cost no more.
     Of a copy of 2021, which has a file for each part (--metadata), 1.75 GB a part are read.
     --discard-sources keeps the disk free.
  3. Its pictures, about 1.56 million addresses:  laion-face download 20M --parts 0 --data-dir DATA
  4. In Python:  laion_face.load_dataset("20M", parts="0", data_dir="DATA", split="train", streaming=True)"""
    )
