"""Put together the sidecar from checked tars: for every index row, where its picture lies or why there is none.

Every tar has been looked through by `check`. Of several tars with the same sample the latest success wins, and of
failures the latest. The fingerprint names the pictures by their content, so that two downloads that got the same
pictures count as the same, whatever order they came in.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.download.check import CHECKED
from laion_face_builder.download.numbering import NOWHERE, Numbering
from laion_face_builder.files import Fingerprint, digest, human_size, read_fingerprint, stamped, written_whole
from laion_face_builder.images.reasons import Reason
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.parquet_files import rows_in, table_of
from laion_face_builder.schema import SIDECAR

#: In the Parquet metadata beside the fingerprint: which passes over which downloads the sidecar was made from.
MADE_FROM_KEY = b"laion_face.made_from"

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class CheckedTar:
    """A checked tar: its name relative to the part's folder, and its rows as `check` or `shard_writer` wrote them."""

    name: str
    file: Path


@dataclass(frozen=True)
class PartResult:
    """What has become of a part.

    rows = ok + filtered + the sum of failures. `bytes` are those of the usable pictures; `rounds` counts the retry
    rounds that were done.
    """

    rows: int
    ok: int
    filtered: int
    failures: Counter[str]
    bytes: int
    rounds: int

    def __str__(self) -> str:
        asked = self.rows - self.filtered
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.failures.most_common())
        line = f"{self.ok:,} of {asked:,} pictures usable ({self.success_rate:.1%}), {human_size(self.bytes)}"
        return f"{line}; failed: {reasons}" if reasons else line

    @property
    def success_rate(self) -> float:
        """Usable pictures of those that were asked for, 0 to 1."""
        asked = self.rows - self.filtered
        return self.ok / asked if asked else 0.0


def made_from(tars: Sequence[CheckedTar]) -> str:
    """Return a digest of a set of checked tars, by their own fingerprints."""
    return digest([[tar.name, str(pq.read_schema(tar.file).metadata)] for tar in tars])


def sidecar_made_from(sidecar: Path) -> str | None:
    """Return the `made_from` of a sidecar; None if there is no readable sidecar."""
    if not sidecar.exists():
        return None
    try:
        return str((pq.read_schema(sidecar).metadata or {}).get(MADE_FROM_KEY, b"").decode())
    except (OSError, pa.ArrowInvalid):
        return None


def sidecar_is_of(sidecar: Path, tars: Sequence[CheckedTar], numbering: Numbering, lost: str | None = None) -> bool:
    """Say whether a sidecar was made from these tars, for an index that is numbered so.

    Args:
        lost: see `is_for`.
    """
    if sidecar_made_from(sidecar) != made_from(tars) or rows_in(sidecar) != len(numbering.of_index):
        return False
    known, names = read_fingerprint(sidecar) or {}, ("removed", "lacks")
    return is_for(known, lost) and all(known.get(name) == numbering.stamp.get(name) for name in names)


def is_for(sidecar: Fingerprint, lost: str | None) -> bool:
    """Say whether a sidecar, by its fingerprint, may be of an index that has lost these rows, if both have lost some.

    With as many rows they could be others, one beside the other.

    Args:
        lost: as `removals.lost_by` gives it.
    """
    return lost is None or sidecar.get("lost", lost) == lost


def sidecar_table(plan: pa.ChunkedArray, numbering: Numbering, tars: Sequence[CheckedTar]) -> pa.Table:
    """Return a part's sidecar, as these tars give it.

    Args:
        plan: string[total]: why a download row was not asked for; null if it was.
        numbering: of the n rows of the index.
        tars: the earlier rounds first.
    """
    without = pc.fill_null(plan, Reason.NOT_DOWNLOADED).take(pa.array(numbering.of_index))
    without = pc.if_else(pa.array(numbering.is_gone), Reason.TAKEN_DOWN.value, without)
    sample_ids = pa.chunked_array([numbering.sample_ids])
    return assemble(sample_ids, np.where(numbering.is_gone, NOWHERE, numbering.of_index), tars, without)


def assemble(sample_ids: pa.ChunkedArray, keys: Ids, tars: Sequence[CheckedTar], without: pa.ChunkedArray) -> pa.Table:
    """Return the sidecar of n index rows, as a table.

    Args:
        sample_ids: int64[n] of the index.
        keys: int64[n]: what the tars call each index row (`check.CHECKED`'s id).
        tars: the earlier rounds first.
        without: string[n]: the status of rows that are in no tar.
    """
    found, names = _stacked(tars)
    winners = _winners(found["id"].to_numpy(), pc.equal(found["status"], Reason.OK).to_numpy())
    at = np.searchsorted(winners.ids, keys)
    inside = at < len(winners.ids)
    inside[inside] = winners.ids[at[inside]] == keys[inside]
    position = np.zeros(len(keys), dtype=np.int64)
    position[inside] = winners.positions[at[inside]]
    return sidecar_of(sample_ids, found.append_column("tar", names).take(pa.array(position, mask=~inside)), without)


def sidecar_of(sample_ids: pa.ChunkedArray, taken: pa.Table, without: pa.ChunkedArray) -> pa.Table:
    """Return the sidecar of n index rows whose samples are the n rows of `taken`, null where there is none.

    Of what was taken down no more is said than that.
    """
    is_ok = pc.fill_null(pc.equal(taken["status"], Reason.OK), False)
    columns = {name: taken[name] for name in SIDECAR.names if name != "sample_id"}
    columns["status"] = pc.coalesce(taken["status"], without)
    for name in ("tar", "offset", "length"):
        columns[name] = pc.if_else(is_ok, columns[name], pa.scalar(None, SIDECAR.field(name).type))
    is_gone = pc.equal(columns["status"], Reason.TAKEN_DOWN)
    sample_ids = pc.if_else(is_gone, pa.scalar(None, pa.int64()), sample_ids)
    return pa.table({"sample_id": sample_ids, **columns}).select(SIDECAR.names).cast(SIDECAR)


def rows_with(tars: Sequence[CheckedTar], status: str) -> Ids:
    """Return the ids of the samples in these tars that have come to this end, int64[n]."""
    found, _ = _stacked(tars)
    ended_so = found.filter(pc.equal(found["status"], status))
    return np.asarray(ended_so["id"].to_numpy(), dtype=np.int64)


def _stacked(tars: Sequence[CheckedTar]) -> tuple[pa.Table, pa.Array]:
    tables = [table_of(tar.file).replace_schema_metadata() for tar in tars]
    # Passes that were made before there was resizing lack the columns on what was fetched.
    table = pa.concat_tables([CHECKED.empty_table(), *tables], promote_options="default")
    numbers = np.repeat(np.arange(len(tables), dtype=np.int32), [t.num_rows for t in tables])
    names = pa.array([tar.name for tar in tars], pa.string())
    return table, names.take(pa.array(numbers))


@dataclass(frozen=True)
class _Winners:
    ids: Ids
    positions: Ids


def _winners(ids: Ids, ok: np.ndarray[Any, np.dtype[np.bool_]]) -> _Winners:
    """Find for each id, ascending, the position of its last success, or of its last failure if it has none."""
    order = np.lexsort((np.arange(len(ids)), ok, ids))
    ordered = ids[order]
    last = np.append(ordered[1:] != ordered[:-1], [True] * bool(len(ids))).astype(bool)
    return _Winners(ordered[last], order[last])


def content_digest(table: pa.Table) -> str:
    """Return a digest of a sidecar's usable pictures: their sample ids and the SHA-256s of their bytes, in order."""
    usable = table.filter(pc.equal(table["status"], Reason.OK))
    hasher = hashlib.sha256(np.ascontiguousarray(usable["sample_id"].to_numpy()).astype("<i8").tobytes())
    for batch in usable.select(["sha256"]).to_batches(max_chunksize=10_000):
        hasher.update("".join(batch["sha256"].to_pylist()).encode())
    return hasher.hexdigest()[:16]


def write_sidecar(path: Path, table: pa.Table, fingerprint: Fingerprint, tars: Sequence[CheckedTar]) -> None:
    """Write `table` with row groups as the index has them; add the digest of its pictures to the fingerprint."""
    stamp = stamped(SIDECAR, {**fingerprint, "pictures": content_digest(table)})
    schema = stamp.with_metadata({**stamp.metadata, MADE_FROM_KEY: made_from(tars).encode()})
    table = table.cast(schema)
    how = {"compression": "zstd", "write_page_checksum": True}
    with written_whole(path) as partial, pq.ParquetWriter(partial, schema, **how) as writer:
        for start, stop in row_group_bounds(table.num_rows):
            writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)


def result_of(sidecar: Path, rounds: int) -> PartResult:
    """Return the counts of a sidecar; `rounds` retry rounds were done."""
    table = table_of(sidecar, ["status", "length"])
    failures = Counter({row["values"]: row["counts"] for row in pc.value_counts(table["status"]).to_pylist()})
    ok, filtered = failures.pop(Reason.OK, 0), failures.pop(Reason.FILTERED, 0)
    return PartResult(table.num_rows, ok, filtered, failures, pc.sum(table["length"]).as_py() or 0, rounds)
