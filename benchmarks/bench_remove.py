"""Seconds of a removal, against making everything again from an exclusion list, which is what one would do without.

    python benchmarks/bench_remove.py [--rows 3000 | --full FOLDER]

A sandbox that is prepared, downloaded, exported and published, with and without pictures, of which a thousand ids, ten
hosts and a hundred SHA-256s are then taken down. Beside it: the two copies and the export made anew with `exclude`; the
index, the tars and the history of what was taken down would still be as they were.

--full: a part of the real size without pictures, prepared from what `make_full_part.py` wrote to FOLDER, published and
exported as JSON lines; every command in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from measuring import measure

import laion_face
from laion_face_builder.index.exclusion import Exclusion, exclusion_of
from laion_face_builder.index.urls import host_of
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.removal.removal_request import RemovalRequest
from laion_face_builder.removal.remove import remove
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from laion_face_builder.verify.verify_removed import verify_removed

PARTS = (0, 2)


@dataclass(frozen=True)
class World:
    """Where it all lies: DATA_DIR, a copy without and one with pictures, and an export."""

    root: Path

    @property
    def data(self) -> DataDir:
        """The DATA_DIR."""
        return DataDir.at(self.root / "data")

    def copies(self, name: str, exclude: Exclusion | None = None) -> None:
        """Publish twice and export once, to folders that are called so."""
        publish(PublishRequest(self.data, str(self.root / f"rows{name}"), exclude=exclude))
        publish(PublishRequest(self.data, str(self.root / f"pictures{name}"), with_images=True, exclude=exclude))
        given = {} if exclude is None else {"exclude": str(self.root / "list.txt")}
        out = self.root / f"jsonl{name}"
        laion_face.export("20M", out, parts=PARTS, data_dir=self.data.root, layout="jsonl", processes=1, **given)


def make(root: Path, rows: int) -> World:
    """Prepare, download, export and publish the sandbox."""
    world = World(root)
    with Sandbox.running(root / "sandbox", SandboxSpec(parts=PARTS, rows=rows, slow=0.0)) as box:
        for words in (["prepare"], ["download", "--allow-private-hosts", "--processes", "1"]):
            given = [*words, "20M", "--parts", "0,2", "--data-dir", str(world.data.root)]
            command = [sys.executable, "-m", "laion_face_builder", *given]
            subprocess.run(command, env={**os.environ, **box.environment}, check=True)
    world.copies("")
    return world


def listed(world: World) -> Exclusion:
    """Choose a thousand ids, ten hosts and a hundred hashes, as far as there are so many."""
    rows = [
        row for part in PARTS for row in pq.read_table(world.data.index(part)).select(["sample_id", "url"]).to_pylist()
    ]
    ids = [row["sample_id"] for row in rows[::3]][:1000]
    ids += range(10**14, 10**14 + 1000 - len(ids))
    pictures = pq.read_table(world.data.sidecar(0))
    hashes = pictures["sha256"].filter(pc.equal(pictures["status"], "ok")).to_pylist()[1:200:2]
    hosts = sorted({host_of(row["url"]) for row in rows} - {"127.0.0.1", ""})
    hosts = [*hosts, *(f"gone-{number}.example" for number in range(10))][:10]
    (world.root / "list.txt").write_text("\n".join(map(str, (*ids, *hosts, *hashes))))
    return exclusion_of((*ids, *hosts, *hashes))


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print seconds, and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"{what}: {time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} s of CPU", flush=True)


def full_size(root: Path, sources: Path) -> None:
    """Print what each command takes on a part of the real size, for a small and for a long list."""
    sources = sources.absolute()
    base, folders = root / "base", ("data", "copy", "jsonl")
    prepare = ["prepare", "20M", "--parts", "0", "--source-repo", str(sources), "--metadata", str(sources)]
    publish = ["publish", "--parts", "0"]
    export = ["export", "--config", "20M", "--parts", "0", "--as", "jsonl", "--images", "none"]
    used("prepare", base, prepare)
    used("publish", base, publish, f"{base}/copy/")
    used("export", base, export, f"{base}/jsonl")
    rows = pq.read_table(DataDir.at(base / "data").index(0), columns=["sample_id", "url"]).slice(0, 300_000)
    ids = rows["sample_id"].to_pylist()
    hosts = sorted({host_of(url) for url in rows["url"].slice(0, 10_000).to_pylist()} - {""})[:10]
    few = [*ids[::300], *hosts, *(f"{number:064x}" for number in range(100))]
    for name, entries in (("1,000 ids, 10 hosts, 100 hashes", few), ("100,000 ids", ids[::3])):
        print(f"\n{name}")
        here = root / "here"
        for folder in folders:
            shutil.copytree(base / folder, here / folder)
        listed = here / "list.txt"
        listed.write_text("\n".join(map(str, entries)))
        remove_it = ["remove", str(listed), "--cache-dir", str(here / "cache")]
        used("remove --dry-run", here, [*remove_it, "--dry-run"])
        used("remove", here, remove_it)
        used("remove --target", here, remove_it, "--target", f"{here}/copy/")
        used("remove --export", here, remove_it, "--export", f"{here}/jsonl")
        for folder in folders:
            used(f"verify --removed, {folder}", None, ["verify", f"{here}/{folder}", "--removed", str(listed)])
        used("prepare again", here, prepare)
        used("publish again", here, publish, f"{here}/copy/")
        shutil.rmtree(here)


def used(what: str, place: Path | None, *words: Iterable[str] | str) -> None:
    """Run a command on the DATA_DIR in `place`, if it takes one, and print what it took."""
    given = [word for part in words for word in ([part] if isinstance(part, str) else part)]
    given += [] if place is None else ["--data-dir", str(place / "data")]
    print(f"{what}: {measure([sys.executable, '-m', 'laion_face_builder', *given, '--format', 'quiet'])}", flush=True)


def main() -> None:
    """Make the sandbox, measure, and look that nothing is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000, help="metadata rows of each part")
    parser.add_argument("--full", type=Path, help="what make_full_part.py wrote: measure on the real size")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-remove-"))
    try:
        if given.full is not None:
            full_size(root, given.full)
            return
        world = make(root, given.rows)
        exclude = listed(world)
        with timed("copies and export made anew with exclude"):
            world.copies("-anew", exclude)
        places = [root / name for name in ("data", "rows", "pictures", "jsonl")]
        with timed("remove"):
            request = RemovalRequest(
                world.data, exclude, targets=(str(places[1]), str(places[2])), exports=(places[3],), cache_dir=root
            )
            taken = remove(request)
        for one in taken:
            print(f"  {one}".replace(str(root), "…"))
        with timed("verify --removed --deep"):
            left = [line for place in places for line in verify_removed(str(place), exclude, deep=True).problems]
        print(f"left: {len(left)}")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
