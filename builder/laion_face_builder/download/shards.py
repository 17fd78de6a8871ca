"""Tell which shards are whole, and remove what has to go before others are made.

FOLDER/
  00000.tar  00000.parquet  00000_stats.json     one shard; the stats are written last
  _tmp/                                          what a run that was killed had not finished

img2dataset, which wrote shards for earlier versions, leaves half-written tars under their final names when it is
killed. A shard is whole if its stats can be parsed, the count in them is that of the rows in its
parquet and of the rows asked for, and its successes are the pictures in its tar, which has an end.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.download.tarfiles import Member
from laion_face_builder.errors import BadFile

_OURS = re.compile(r"(\d{5,})(\.tar|\.parquet|_stats\.json)")
#: Extensions that img2dataset gives to pictures (its encode_format), and what other tools write.
PICTURE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard."""

    folder: Path
    number: int

    @property
    def tar(self) -> Path:
        """Pictures, captions and metadata of the successes."""
        return self.folder / f"{self.number:05d}.tar"

    @property
    def parquet(self) -> Path:
        """One row for every sample, failures too."""
        return self.folder / f"{self.number:05d}.parquet"

    @property
    def stats(self) -> Path:
        """Counts; the last file that is written."""
        return self.folder / f"{self.number:05d}_stats.json"

    def stats_digest(self) -> str | None:
        """Return a digest that tells one download of this shard from another; None while its stats cannot be parsed."""
        try:
            text = self.stats.read_bytes()
            json.loads(text)
        except (OSError, ValueError):
            return None
        return hashlib.sha256(text).hexdigest()[:16]

    def remove(self) -> None:
        """Remove all of its files, the stats first, so that no kill in between leaves a shard that looks done."""
        for file in (self.stats, self.parquet, self.tar):
            file.unlink(missing_ok=True)


def shard_sizes(samples: int, samples_per_shard: int) -> list[int]:
    """Return how many samples each shard has, of `samples` in all."""
    return [min(samples_per_shard, samples - first) for first in range(0, samples, samples_per_shard)]


def pictures_in(members: Sequence[Member]) -> dict[str, Member]:
    """Return the pictures among a tar's members, by key."""
    return {member.key: member for member in members if member.extension in PICTURE_EXTENSIONS}


def require_whole(shard: ShardFiles, samples: int, members: Sequence[Member]) -> None:
    """Raise BadFile if the counts of stats, parquet and tar differ; `members` are those of a tar read to its end.

    Raises:
        BadFile: says which count differs.
    """
    count, successes = _counts(shard.stats)
    pictures = len(pictures_in(members))
    try:
        rows = int(pq.read_metadata(shard.parquet).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise _not_whole(shard.parquet, f"no readable table ({error})", f"{count} rows") from error
    if count != samples:
        raise _not_whole(shard.stats, f"a count of {count}", f"{samples}")
    if rows != count:
        raise _not_whole(shard.parquet, f"{rows} rows", f"{count}")
    if pictures != successes:
        raise _not_whole(shard.tar, f"{pictures} pictures", f"{successes}")


def _counts(stats: Path) -> tuple[int, int]:
    try:
        values: Any = json.loads(stats.read_bytes())
        return int(values["count"]), int(values["successes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_whole(stats, f"no stats ({type(error).__name__})", "JSON with count and successes") from error


def _not_whole(file: Path, found: str, expected: str) -> BadFile:
    return BadFile(file, found=found, expected=expected, way_out="The shard is downloaded again.")


def remove_unfinished(folder: Path, kept: Collection[int], share: Container[int] | None = None) -> None:
    """Remove the share's shards that are not in `kept`, and what was being written; without a share, of all shards."""
    remove_half_written(folder, share)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        named = _OURS.fullmatch(path.name)
        if named and int(named[1]) not in kept and (share is None or int(named[1]) in share):
            ShardFiles(folder, int(named[1])).remove()


def remove_half_written(folder: Path, share: Container[int] | None = None) -> None:
    """Remove what killed processes had begun to write, of the share or of all; nobody may be writing it."""
    if share is None:
        shutil.rmtree(folder / "_tmp", ignore_errors=True)
    for begun in folder.glob("_tmp/*.*"):
        if share is not None and int(begun.name.partition(".")[0]) in share:
            shutil.rmtree(begun, ignore_errors=True)
