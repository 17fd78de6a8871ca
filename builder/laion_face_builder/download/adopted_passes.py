"""Forget what is known here of samples in other people's folders. Nothing is written into such a folder.

What was found out about its tars (`adopt`) loses the samples; sidecars made from that are removed where they speak of
one, and made again without it when the folder is used next. The pictures stay where they are, with whoever has them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.download.matching import Keys, RowKeys, keys_in
from laion_face_builder.download.named_pictures import hashes_named
from laion_face_builder.download.plan import Mask
from laion_face_builder.errors import BadFile
from laion_face_builder.files import locked, remove_partials, written_whole
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import table_of
from laion_face_builder.schema import SIDECAR

_Keys = Mapping[str, Keys]


@dataclass
class AdoptedForgotten:
    """What was forgotten.

    Attributes:
        samples: rows of passes over tars.
        sidecars: how many were removed.
        held: the shards of other people's folders that hold pictures of it, as they are called there, and how many.
    """

    samples: int = 0
    sidecars: int = 0
    held: Counter[str] = field(default_factory=Counter)


def forget_adopted(data: DataDir, gone: Mapping[int, Mask], removed: Removed) -> AdoptedForgotten:
    """Forget samples of adopted folders, before the rows leave the index; nothing if no folder was adopted.

    A sample without an id is known by its address or its caption alone: it stays for as long as a row that stays has
    the same. A sidecar of a part whose index lies elsewhere goes whole if addresses are named: they stand in the index.

    Args:
        gone: for parts with an index, bool[n]: which of its rows are taken down.
        removed: samples are taken down by their ids and pictures too, whatever part they are of.

    Raises:
        DiskError: the disk is full, or read-only. BadFile: an index is damaged.
    """
    forgotten = AdoptedForgotten()
    folder = data.root / "adopted"
    if not folder.is_dir():
        return forgotten
    _remove_half_written(folder)
    for path in sorted(folder.glob("*/part-*.parquet")):
        is_blind = bool(removed.urls or removed.hosts) and not data.index(_part_of(path)).exists()
        _forget_sidecar(path, gone, removed, forgotten, is_blind=is_blind)
    passes = sorted((folder / "tars").glob("*.parquet"))
    if passes and (removed or any(mask.any() for mask in gone.values())):
        ours = _RowsByKey.of(data, gone, are_nameless=any(map(_has_nameless, passes)))
        for path in passes:
            forgotten.samples += _forget_in_pass(path, ours, removed)
    return forgotten


def _remove_half_written(folder: Path) -> None:
    """Remove what was left by those who were killed."""
    with _nobody_in(folder):
        for place in (path for path in folder.glob("*") if path.is_dir()):
            remove_partials(place)


def nobody_adopts(data: DataDir) -> AbstractContextManager[object]:
    """Wait until nobody looks through an adopted folder, and keep it so; who begins later knows what is taken down."""
    return _nobody_in(data.root / "adopted")


@contextmanager
def _nobody_in(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        for lock in sorted(folder.glob("*/.part-*.parquet.lock")):
            stack.enter_context(locked(lock.with_name(lock.name[1:].removesuffix(".lock"))))
        yield


def _has_nameless(path: Path) -> bool:
    try:
        return bool(table_of(path, ["id"])["id"].null_count)
    except BadFile:
        return False


def _part_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _forget_sidecar(
    path: Path, gone: Mapping[int, Mask], removed: Removed, forgotten: AdoptedForgotten, *, is_blind: bool
) -> None:
    rows = gone.get(_part_of(path), np.zeros(0, bool))
    with locked(path):
        try:
            table = table_of(path)
        except BadFile:
            table = SIDECAR.empty_table()
        named = removed.names_ids(table["sample_id"]) | hashes_named(table, removed)
        if len(rows) == table.num_rows:
            named |= rows
        if not named.any() and not rows.any() and not is_blind:
            return
        has_picture = pc.equal(table["status"], Reason.OK).to_numpy()
        forgotten.held.update(table["tar"].filter(pa.array(named & has_picture)).to_pylist())
        forgotten.sidecars += 1
        path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


@dataclass(frozen=True)
class _RowsByKey:
    """The keys of rows that are taken down, and of those that stay, each sorted; see `matching.RowKeys`."""

    gone: _Keys
    kept: _Keys

    @classmethod
    def of(cls, data: DataDir, gone: Mapping[int, Mask], *, are_nameless: bool) -> _RowsByKey:
        """Read them: of parts that lose rows the ids, and if there are samples without any the rest of all parts."""
        found: dict[str, dict[str, list[Keys]]] = {"gone": defaultdict(list), "kept": defaultdict(list)}
        for path in sorted(data.index(0).parent.glob("part-*.parquet")):
            mask = gone.get(_part_of(path))
            if mask is None and not are_nameless:
                continue
            with IndexPart.open(path) as index:
                mask = np.zeros(index.num_rows, bool) if mask is None else mask
                if not are_nameless:
                    ids = index.read(0, index.num_rows, ["sample_id"])["sample_id"].to_numpy()
                    found["gone"]["id"].append(ids[mask].astype(np.uint64))
                    continue
                keys = RowKeys.of(index)
            found["gone"]["id"].append(keys.ids[mask])
            for side, rows in (("gone", mask), ("kept", ~mask)):
                found[side]["url"].append(keys.urls[rows & keys.has_url])
                found[side]["caption"].append(keys.captions[rows & keys.has_caption])
        joined = {side: {name: _sorted(keys) for name, keys in names.items()} for side, names in found.items()}
        return cls(joined["gone"], joined["kept"])


def _sorted(keys: list[Keys]) -> Keys:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *keys]))


def _forget_in_pass(path: Path, ours: _RowsByKey, removed: Removed) -> int:
    try:
        table = table_of(path)
    except BadFile:
        path.unlink(missing_ok=True)  # the tar is looked through again
        return 0
    named = removed.names_ids(table["id"]) | hashes_named(table, removed) | _of_ours(table, ours)
    if named.any():
        with written_whole(path) as partial:
            kept = table.filter(pa.array(~named))
            pq.write_table(kept, partial, compression="zstd", write_page_checksum=True)
    return int(named.sum())


def _of_ours(table: pa.Table, ours: _RowsByKey) -> Mask:
    """Tell which samples are those of rows that are taken down: by id, else by address, else by caption."""
    ids, has_id = keys_in(table, "id")
    named = has_id & np.isin(ids, ours.gone.get("id", _NONE))
    nameless = ~has_id
    for name in ("url", "caption"):
        if name in table.column_names:  # passes of earlier versions have ids alone
            keys, there = keys_in(table, name)
            is_theirs = np.isin(keys, ours.kept.get(name, _NONE))
            named |= nameless & there & np.isin(keys, ours.gone.get(name, _NONE)) & ~is_theirs
            nameless &= ~there
    return named


_NONE = np.zeros(0, np.uint64)
