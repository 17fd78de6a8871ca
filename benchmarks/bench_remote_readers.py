"""Bytes and requests of those who read a published part from the Hub, by its number of row groups.

python benchmarks/bench_remote_readers.py DATA_DIR [--groups 128 32 16] [--only NAME …]

DATA_DIR is one that `laion-face prepare` made; its first part is written in the published form, with each number of row
groups, and served by the stand-in Hub, which counts. Every reader runs in a process of its own. Last, what the Hub's
viewer scans for a page of 100 rows: of every column the pages that hold them, by the page index, and its dictionary.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from viewer_rules import ViewedGroup, viewed

from laion_face_builder.files import read_fingerprint, stamped
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.publish.published_form import index_writer
from laion_face_builder.sandbox.stand_in_hub import Hub
from laion_face_builder.schema import INDEX

_STREAM = "import datasets\nds = datasets.load_dataset({repo!r}, split='train', streaming=True{more})\n"
_OURS = (
    "import laion_face\nds = laion_face.load_dataset('50M', parts={part}, index={repo!r}, images='none', "
    "split='train', streaming=True)\n"
)
#: Without what Python does at its end: `datasets` may still be reading ahead, and then aborts.
_END = "\nimport os\nos._exit(0)"
READERS = {
    "pandas, one column": "import pandas\npandas.read_parquet('hf://datasets/{repo}/{name}', columns=['similarity'])",
    "pandas, two columns, filtered": "import pandas\npandas.read_parquet('hf://datasets/{repo}/{name}', "
    "columns=['url', 'similarity'], filters=[('similarity', '>', 0.4)])",
    "`datasets`, one column, filtered": _STREAM.replace(
        "{more}", ", columns=['similarity'], filters=[('similarity', '>', 0.4)]"
    )
    + "for one in ds.with_format('arrow').iter(10_000): pass",
    "`datasets`, first 1,000 rows": _STREAM.replace("{more}", "") + "assert len(list(ds.take(1000))) == 1000",
    "ours, first row": _OURS + "next(iter(ds))",
    "ours, one shard of 128": _OURS + "for one in ds.shard(128, 70): pass",
    "ours, two shards far apart": _OURS + "for one in ds.shard(128, 3): pass\nfor one in ds.shard(128, 70): pass",
}


def written(source: Path, target: Path, groups: int) -> None:
    """Write an index part with so many row groups."""
    schema = stamped(INDEX, read_fingerprint(source) or {})
    with IndexPart.open(source) as index, index_writer(target, schema) as writer:
        for start, stop in row_group_bounds(index.num_rows, groups):
            table = index.read(start, stop).combine_chunks()
            writer.write_table(table.cast(schema), row_group_size=stop - start)


def scans(groups: list[ViewedGroup], tries: int = 1000) -> tuple[float, float]:
    """Return the mean and the most, in MB, of what a page of 100 rows scans, wherever it is."""
    chosen = random.Random(0)
    found = [group.scanned(chosen.randrange(group.rows)) for group in chosen.choices(groups, k=tries)]
    return sum(found) / tries / 1e6, max(found) / 1e6


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--groups", type=int, nargs="+", default=[128, 32, 16])
    parser.add_argument("--only", nargs="+", default=[""], help="readers with one of these in their names")
    given = parser.parse_args()
    source = min((given.data / "index").glob("part-*.parquet"))
    print("| reader | row groups | MB | requests | seconds |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder, Hub() as hub:
        for groups in given.groups:
            path, name, repo = Path(folder) / f"{groups}.parquet", f"data/{source.name}", f"readers/groups-{groups}"
            written(source, path, groups)
            hub.add_repo(repo, {name: path})
            environment = {**os.environ, "HF_ENDPOINT": hub.url(), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
            for reader, code in READERS.items():
                if not any(one in reader for one in given.only):
                    continue
                hub.log.clear()
                home = tempfile.mkdtemp(dir=folder)
                started = time.monotonic()
                subprocess.run(
                    [sys.executable, "-c", code.format(repo=repo, name=name, part=int(source.stem[5:])) + _END],
                    env={**environment, "HF_HOME": home, "LAION_FACE_DATA_DIR": f"{home}/data"},
                    check=True,
                    stderr=subprocess.DEVNULL,
                )
                seconds = time.monotonic() - started
                print(
                    f"| {reader} | {groups} | {hub.bytes_sent() / 1e6:,.1f} | {len(hub.log)} | {seconds:.1f} |",
                    flush=True,
                )
            mean, most = scans(viewed(path))
            print(f"| a page of 100 rows, mean and most | {groups} | {mean:.2f}, {most:.2f} | | |")
            print(f"| the file | {groups} | {path.stat().st_size / 1e6:,.1f} | | |", flush=True)


if __name__ == "__main__":
    main()
