"""Damage the files that are kept, and Parquet files of strangers, and read all that is in them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.download.tar_reader import StoredPicture
from laion_face_builder.errors import LaionFaceError
from laion_face_builder.index.metadata import open_metadata
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart
from tests.support.fuzz_child import READ, SAME, SilentError
from tests.support.kept_files import KINDS, World
from tests.support.mutations import flipped, mutated


@dataclass(frozen=True)
class Flips:
    """Bits that flip in every kind of file that is kept, one at a time, footers included.

    Attributes:
        world: what is copied before it is damaged.
        kinds: of `kept_files.KINDS`, in turn.
        seed: other seeds have other bits.
    """

    world: World
    kinds: tuple[str, ...] = tuple(KINDS)
    seed: int = 0

    def ready(self, folder: Path) -> Callable[[int], str]:
        """See `fuzz_child.Trial`."""
        world = _copied(self.world, folder)
        true = {kind: KINDS[kind][1](world) for kind in self.kinds}

        def attempt(number: int) -> str:
            kind = self.kinds[number % len(self.kinds)]
            path, read = KINDS[kind][0](world), KINDS[kind][1]
            whole = path.read_bytes()
            rng = random.Random(f"{self.seed} {number}")
            at, bit = _place(rng, whole), rng.randrange(8)
            path.write_bytes(flipped(whole, at, bit))
            try:
                return _compared(read(world), true[kind], f"{kind}: bit {bit} of byte {at}")
            except LaionFaceError as error:
                _require_one_line(error, path)
                return type(error).__name__
            finally:
                path.write_bytes(whole)

        return attempt


def _place(rng: random.Random, whole: bytes) -> int:
    """Draw a byte: of a Parquet file every fourth time from its footer, most of which would be too rare otherwise."""
    if whole[-4:] == b"PAR1" and rng.random() < 0.25:
        return len(whole) - 8 - rng.randrange(min(len(whole) - 8, int.from_bytes(whole[-8:-4], "little")))
    return rng.randrange(len(whole))


def _compared(found: Any, true: Any, where: str) -> str:
    if found == true:
        return SAME
    if isinstance(found, list) and isinstance(true, list) and len(found) == len(true):
        other = [one for one, as_it_was in zip(found, true, strict=True) if one != as_it_was]
        if all(one == StoredPicture("tar_changed") for one in other):
            return "tar_changed"
    raise SilentError(where)


def _copied(world: World, folder: Path) -> World:
    """Copy what is damaged, and what is read with it."""
    copy = replace(world, data=folder / "data", published=folder / "published", pickles=folder / "pickles")
    left_out = shutil.ignore_patterns("sources", "publish", "*.lock")
    for source, target in ((world.data, copy.data), (world.published, copy.published), (world.pickles, copy.pickles)):
        if not target.exists():  # There is one already where a process before this one has died.
            shutil.copytree(source, target, ignore=left_out)
    return copy


def _require_one_line(error: LaionFaceError, path: Path) -> None:
    said = str(error)
    if "\n" in said or path.name not in said or len(said) > 2000:
        raise AssertionError(f"no line that names {path.name}: {said:.300}")


@dataclass(frozen=True)
class StrangeParquet:
    """Damaged Parquet files without checksums, half of the changes in their footers, as index and as metadata.

    Attributes:
        world: has the honest ones.
        seed: other seeds have other changes.
    """

    world: World
    seed: int = 0

    def ready(self, folder: Path) -> Callable[[int], str]:
        """See `fuzz_child.Trial`."""
        pa.set_cpu_count(1)
        files = list(_honest(self.world, folder))
        place = folder / "part-00000.parquet"

        def attempt(number: int) -> str:
            rng = random.Random(f"{self.seed} {number}")
            raw, read = rng.choice(files)
            footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
            # Of a footer with a changed length or end nothing would be read.
            start, stop = (footer, len(raw) - 8) if number % 2 else (4, footer)
            changed = mutated(rng, raw[:stop], start)
            end = raw[-8:] if not number % 2 else (len(changed) - footer).to_bytes(4, "little") + raw[-4:]
            place.write_bytes(changed + (raw[stop:-8] if not number % 2 else b"") + end)
            try:
                read(folder)
            except LaionFaceError as error:
                _require_one_line(error, place)
                return type(error).__name__
            return READ

        return attempt


def _honest(world: World, folder: Path) -> Any:
    """Yield files and how they are read."""
    path = folder / "honest.parquet"
    with IndexPart.open(world.index) as part:
        table = part.read(0, min(part.num_rows, 60))
    for how in ({}, {"compression": "zstd", "row_group_size": 20}, {"use_dictionary": False, "compression": "none"}):
        pq.write_table(table, path, **how)
        yield path.read_bytes(), _as_index
    some = pq.read_table(min(world.metadata.glob("*.parquet"))).slice(0, 60)
    for how in ({}, {"use_dictionary": False, "compression": "gzip"}):
        pq.write_table(some, path, **how)
        yield path.read_bytes(), _as_metadata


def _as_index(folder: Path) -> None:
    with IndexPart.open(find_published(str(folder), 0)) as part:
        _ = part.row_groups, part.row_group_bytes, part.fingerprint
        part.read(0, part.num_rows, is_lenient=True).to_pylist()


def _as_metadata(folder: Path) -> None:
    for ids, batch in open_metadata(folder / "part-00000.parquet").batches():
        _ = ids.tolist(), batch.to_pylist()
