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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from laion_face_builder.errors import LaionFaceError, OptionError
from laion_face_builder.files import human_size
from laion_face_builder.forecast import Amount, Disk, Forecast, Step
from laion_face_builder.images.reasons import Reason
from laion_face_builder.layout import DataDir
from laion_face_builder.parallel import python
from laion_face_builder.sandbox import Sandbox

PARTS = (0, 2)
_MARKER = ".laion-face-demo"
#: Bytes that the demo leaves on the disk, caches included; measured.
_BYTES = 20_000_000
_LOAD = '''\
"""Loads what the demo prepared, once as Arrow files and once as a stream. Usage: load.py DATA_DIR PREVIEW.png"""

import json
import sys
import time

import laion_face
from laion_face_builder.inspect.contact_sheet import contact_sheet

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
    """What the commands gave: each picture's status; what was loaded, from Arrow and as a stream; seconds a step."""

    statuses: Counter[str]
    loaded: list[dict[str, Any]]
    seconds: Mapping[str, float]


#: Where lines for a person go.
Say = Callable[[str], None]


def run_demo(folder: Path, say: Say = print, *, is_quiet: bool = False) -> dict[str, Any]:
    """Run prepare, download and load_dataset on a fresh sandbox in `folder`; return the figures of the run.

    Args:
        folder: where the demo is made; an earlier one in it is removed.
        say: gets what happens, line by line.
        is_quiet: what the commands say on stderr is kept back unless one fails.

    Raises:
        OptionError: `folder` holds something that is not an earlier demo.
        LaionFaceError: a command failed; what it said stands on stderr.
    """
    _make_room(folder)
    start = time.perf_counter()
    with Sandbox.running(folder / "sandbox") as box:
        made = time.perf_counter() - start
        say(f"A miniature LAION-Face of {len(box.truth):,} face rows is served on this machine ({made:.1f} s to make).")
        outcome = _as_a_user(_Steps(box, say, is_quiet), folder)
        figures = {"folder": str(folder), **_figures(box, outcome)}
    for lines in (_table(figures), _places(folder)):
        for line in lines:
            say(line)
    return figures


def forecast_demo(folder: Path) -> Forecast:
    """Return the forecast of `run_demo`. Everything comes from this machine.

    Raises:
        OptionError: `folder` holds something that is not an earlier demo.
    """
    steps = [Step(str(folder), "removed", "an earlier demo")] if _has_demo(folder) else []
    steps.append(Step(str(folder), "made", "a miniature upstream, what the commands make of it, and a contact sheet"))
    disk = Disk.of(folder, Amount(_BYTES, is_exact=False))
    return Forecast(
        "demo", tuple(steps), (disk,), notes=("nothing is fetched from elsewhere; it takes a minute or two",)
    )


def _has_demo(folder: Path) -> bool:
    """Say whether an earlier demo is in the folder.

    Raises:
        OptionError: something else is in it.
    """
    if not (folder.exists() and any(folder.iterdir())):
        return False
    if not (folder / _MARKER).exists():
        raise OptionError(f"{folder}: it is not empty and not from an earlier demo. Name another folder.")
    return True


def _make_room(folder: Path) -> None:
    if _has_demo(folder):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()


@dataclass
class _Steps:
    """The commands, one after the other, and how long each took."""

    box: Sandbox
    say: Say
    is_quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, step: str, arguments: Sequence[str]) -> str:
        """Run Python with these arguments; return its stdout, and let its stderr through to the user's."""
        self.say(f"\n$ {_as_typed(arguments)}")
        start = time.perf_counter()
        done = subprocess.run(  # noqa: S603 - our own commands
            python(*arguments),
            env={**_own_environment(), **self.box.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if self.is_quiet else None,
            text=True,
            encoding="utf-8",
            check=False,
            start_new_session=True,  # Ctrl-C is ours alone, and said once.
        )
        self.seconds[step] = time.perf_counter() - start
        if done.returncode:
            sys.stderr.write(done.stderr or "")
            raise LaionFaceError(
                f"demo: `{_as_typed(arguments)}` ended with exit code {done.returncode}; see what it said above"
            )
        return done.stdout


def _as_a_user(steps: _Steps, folder: Path) -> Outcome:
    data, load = folder / "data", folder / "load.py"
    load.write_text(_LOAD, encoding="utf-8")
    given = ["20M", "--parts", ",".join(map(str, PARTS)), "--data-dir", str(data)]
    steps.run("prepare", ["-m", "laion_face_builder", "prepare", *given])
    steps.run("download", ["-m", "laion_face_builder", "download", *given, "--allow-private-hosts"])
    loaded = steps.run("load, twice", [str(load), str(data), str(folder / "preview.png")])
    sidecars = [pq.read_table(DataDir.at(data).sidecar(part), columns=["status"])["status"] for part in PARTS]
    statuses = Counter(status for sidecar in sidecars for status in sidecar.to_pylist())
    return Outcome(statuses, json.loads(loaded), steps.seconds)


def _own_environment() -> dict[str, str]:
    """Return our environment without proxies, which cannot reach this machine's loopback, and without ranks."""
    left_out = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "world_size", "rank")
    return {name: value for name, value in os.environ.items() if name.lower() not in left_out}


def _as_typed(arguments: Sequence[str]) -> str:
    if arguments[:2] == ["-m", "laion_face_builder"]:
        return shlex.join(["laion-face", *arguments[2:]])
    return shlex.join(["python", *arguments])


def _figures(box: Sandbox, outcome: Outcome) -> dict[str, Any]:
    """Compare what came out with what was put in, which the sandbox knows."""
    true = [truth for part in PARTS for truth in box.truth_of(part)]
    usable = [truth for truth in true if truth.ok]
    arrow, stream = outcome.loaded
    return {
        "metadata_rows": box.content.rows_read_for(PARTS),
        "rows": {"came_out": outcome.statuses.total(), "put_in": len(true)},
        "usable": {"came_out": outcome.statuses[Reason.OK], "put_in": len(usable)},
        "from_arrow": {"came_out": arrow["examples"], "put_in": len(usable)},
        "streamed": {"came_out": stream["examples"], "put_in": len(usable)},
        "same_order": arrow["ids"] == stream["ids"],
        "faces": {"came_out": arrow["faces"], "put_in": sum(len(truth.faces) for truth in usable)},
        "failed": {
            "came_out": {reason: count for reason, count in outcome.statuses.most_common() if reason != Reason.OK},
            "put_in": dict(Counter(truth.fate for truth in true if not truth.ok).most_common()),
        },
        "seconds": {**outcome.seconds, "first streamed example after": stream["first"]},
    }


def _table(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n{'':32}{'came out':>10}{'put in':>10}"
    yield f"{'metadata rows':32}{'':>10}{figures['metadata_rows']:>10,}"
    yield _row("face rows in the index", figures["rows"])
    yield _row("usable pictures", figures["usable"])
    yield _row("examples from Arrow files", figures["from_arrow"])
    yield _row("examples streamed", figures["streamed"])
    yield f"{'the same, in the same order':32}{'yes' if figures['same_order'] else 'NO':>10}{'yes':>10}"
    yield _row("faces in them", figures["faces"])
    yield from _failures(**figures["failed"])
    yield f"\n{'seconds':32}"
    yield from (f"{step:32}{seconds:>10.1f}" for step, seconds in figures["seconds"].items())


def _row(name: str, both: Mapping[str, int]) -> str:
    return f"{name:32}{both['came_out']:>10,}{both['put_in']:>10,}"


def _failures(came_out: Mapping[str, int], put_in: Mapping[str, int]) -> Iterator[str]:
    yield "\n" + _row("pictures that failed", {"came_out": sum(came_out.values()), "put_in": sum(put_in.values())})
    yield from (f"  {reason:30}{count:>10,}" for reason, count in came_out.items())
    names = ", ".join(f"{fate}={count}" for fate, count in put_in.items())
    yield textwrap.fill(f"put in: {names}", 90, initial_indent="  ", subsequent_indent="    ")


def _places(folder: Path) -> Iterator[str]:
    size = sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file())
    yield f"""
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
