"""Verify what is prepared: every file of a DATA_DIR against schema, fingerprint and neighbouring files.

What can be computed again is compared: faces and their flat columns with the faces part, the order of the sidecar's
rows with the index, the digest of the pictures, and their places with the tars' own headers. Page checksums find
flipped bits in the rest. The proof of a join has to be that of the index beside it.

The sidecar is verified against the index and the tars themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.download.cleaning import pictures_not_in
from laion_face_builder.download.shard_files import read_members
from laion_face_builder.download.sidecar import content_digest
from laion_face_builder.errors import BadFile, LaionFaceError
from laion_face_builder.files import Fingerprint, digest, read_fingerprint
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.faces import FaceTable, flat_columns
from laion_face_builder.index.ids import read_ids
from laion_face_builder.index.reader import index_fingerprint_at
from laion_face_builder.index.removals import as_made
from laion_face_builder.index.writer import proof_path
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.parquet_files import table_of
from laion_face_builder.publish.published_files import FLAT, columns_in
from laion_face_builder.schema import DETECTIONS, IDS, INDEX, SIDECAR, SIDECAR_LATER
from laion_face_builder.shown import short

#: How many pictures of each tar are hashed unless all are.
SAMPLE = 20


def picture_problems(data: DataDir, part: int, deep: bool) -> Iterator[str]:
    """Yield what is wrong with the part's sidecar and tars, a line each.

    Args:
        deep: hash every picture; else `SAMPLE` of each tar, spread over it.
    """
    path = data.sidecar(part)
    table = table_of(path)
    known = [pa.schema(list(SIDECAR)[: len(SIDECAR) - lacking]) for lacking in (0, 1, len(SIDECAR_LATER))]
    if table.schema.remove_metadata() not in known:
        yield f"columns are {columns_in(table.schema)}; expected those of a sidecar"
        return
    stamp = read_fingerprint(path) or {}
    if stamp.get("pictures") != content_digest(table):
        yield "the pictures that it lists are not those of its fingerprint"
    yield from _join_problems(data.index(part), table, stamp.get("index"))
    usable = table.filter(pc.equal(table["status"], Reason.OK))
    unlisted = 0
    for tar in sorted(pc.unique(usable["tar"]).to_pylist()):
        rows, place = usable.filter(pc.equal(usable["tar"], tar)), data.tars(part) / tar
        problems = list(_tar_problems(place, rows, deep))
        yield from (f"{tar}: {problem}" for problem in problems)
        unlisted += 0 if problems else len(pictures_not_in(rows, read_members(place)))
    if unlisted:
        yield (
            f"its tars hold {unlisted} pictures more, broken or in a later tar too, which other programs that read "
            "them meet; `laion-face download` with --clean-tars writes these tars without them"
        )


def _join_problems(index: Path, table: pa.Table, stated: str | None) -> Iterator[str]:
    """Yield a line for each way in which the sidecar's rows are not the index's, in order."""
    fingerprint = index_fingerprint_at(index)
    if fingerprint is None:
        return
    if digest(as_made(fingerprint)) != stated:
        yield f"its pictures were downloaded for another index than {index}"
    ids = table_of(index, ["sample_id"])["sample_id"]
    if len(ids) != table.num_rows:
        yield f"{table.num_rows} rows, but the index has {len(ids)}"
    elif not pc.all(pc.equal(ids, pc.coalesce(table["sample_id"], _of_removed(table, ids))), min_count=0).as_py():
        yield "its rows are in another order than the index's"


def _of_removed(table: pa.Table, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the ids of rows that the sidecar says nothing of, since they were taken down; -1 elsewhere."""
    return pc.if_else(pc.fill_null(pc.equal(table["status"], Reason.TAKEN_DOWN), False), ids, -1)


def _tar_problems(tar: Path, rows: pa.Table, deep: bool) -> Iterator[str]:
    if not tar.exists():
        yield f"is missing, with {rows.num_rows} pictures"
        return
    try:
        places = {(member.offset, member.length) for member in read_members(tar)}
    except BadFile as error:
        yield f"found {error.found}, expected {error.expected}"
        return
    listed = list(zip(rows["offset"].to_pylist(), rows["length"].to_pylist(), strict=True))
    astray = [place for place in listed if place not in places]
    if astray:
        yield f"{len(astray)} of {len(listed)} pictures are not where they should be, the first at byte {astray[0][0]}"
        return
    step = 1 if deep else max(1, len(listed) // SAMPLE)
    sha256s = rows["sha256"].to_pylist()
    for row in np.arange(0, len(listed), step):
        if _sha256_at(tar, *listed[row]) != sha256s[row]:
            yield f"sample {rows['sample_id'][row].as_py()}: another SHA-256 than when it was downloaded"


def _sha256_at(tar: Path, offset: int, length: int) -> str:
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        return hashlib.sha256(os.pread(descriptor, length, offset)).hexdigest()
    finally:
        os.close(descriptor)


#: What reading a broken file raises, or one whose columns are not what they are called.
BROKEN = (LaionFaceError, pa.ArrowException, OSError, ValueError, TypeError, LookupError, RecursionError, MemoryError)


def prepared_parts(data: DataDir) -> list[int]:
    """List the parts of which anything is there."""
    folders = (data.ids(0).parent, data.faces(0).parent, data.index(0).parent, data.sidecar(0).parent)
    found = (re.fullmatch(r"part-(\d{5})\.parquet", path.name) for folder in folders for path in folder.glob("*"))
    return sorted({int(match[1]) for match in found if match})


def data_problems(data: DataDir, deep: bool) -> Iterator[str]:
    """Yield what is wrong with a DATA_DIR, a line each: the file, and what was found.

    Args:
        deep: hash every picture, not a sample of them.
    """
    for part in prepared_parts(data):
        for path in (data.ids(part), data.faces(part), data.index(part), data.sidecar(part)):
            if path.exists():
                try:
                    yield from (f"{path}: {problem}" for problem in _problems(data, part, path, deep))
                except BROKEN as error:
                    yield f"{path}: cannot be read: {short(error)}"


def _problems(data: DataDir, part: int, path: Path, deep: bool) -> Iterator[str]:
    if path == data.ids(part):
        yield from _sorted_problems(path, IDS, "ids", part)
    elif path == data.faces(part):
        yield from _sorted_problems(path, DETECTIONS, "faces", part)
    elif path == data.index(part):
        yield from _index_problems(data, part)
    else:
        yield from picture_problems(data, part, deep)


def _sorted_problems(path: Path, schema: pa.Schema, kind: str, part: int) -> Iterator[str]:
    """Yield what is wrong with a file of ids or faces: schema, fingerprint, ids that do not ascend."""
    with opened(path) as file:
        yield from stated_problems(file, schema, read_fingerprint(path), kind, part)
        if file.schema_arrow.names != schema.names:
            return
        last = -1
        for batch in file.iter_batches():
            ids = batch.column("sample_id")
            values = np.concatenate([[last], ids.fill_null(-1).to_numpy()])
            if len(values) > 1 and not (np.diff(values) > 0).all():
                yield f"sample ids do not ascend after {int(values[:-1][np.diff(values) <= 0][0])}"
                return
            last = int(values[-1])


def opened(path: Path) -> pq.ParquetFile:
    """Open the file for reading; pages are checked against their checksums, where the file has some."""
    return pq.ParquetFile(path, page_checksum_verification=True)


def stated_problems(
    file: pq.ParquetFile, schema: pa.Schema, fingerprint: Fingerprint | None, kind: str, part: int
) -> Iterator[str]:
    """Yield a line if the file has other columns than `schema`, and one if its fingerprint is of something else."""
    found = file.schema_arrow.remove_metadata()
    if not found.equals(schema):
        yield f"columns are {columns_in(found)}; expected those of the {kind}"
    yield from stamp_problems(fingerprint or {}, kind, part)


def stamp_problems(fingerprint: Fingerprint, kind: str, part: int) -> Iterator[str]:
    """Yield a line if a fingerprint is of something else than this kind of file, of this part."""
    stamp = {name: fingerprint.get(name) for name in ("kind", "part")}
    if stamp != {"kind": kind, "part": part}:
        yield f"its fingerprint says {stamp['kind']} of part {stamp['part']}, expected {kind} of part {part}"


def _index_problems(data: DataDir, part: int) -> Iterator[str]:
    path = data.index(part)
    fingerprint = read_fingerprint(path) or {}
    with opened(path) as file:
        yield from stated_problems(file, INDEX, fingerprint, "index", part)
        if file.schema_arrow.names != INDEX.names:
            return
        yield from _chain_problems(data, part, fingerprint)
        neighbours = _Neighbours.of(data, part)
        metadata = file.metadata
        yield from _proof_problems(data, part, fingerprint, metadata.num_rows)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        expected = [stop - start for start, stop in row_group_bounds(metadata.num_rows)]
        if sizes != expected and metadata.num_rows:
            yield f"{len(sizes)} row groups of {min(sizes)} to {max(sizes)} rows; expected {len(expected)} even ones"
        for group in range(metadata.num_row_groups):
            for problem in neighbours.problems(file.read_row_group(group), part):
                yield f"row group {group}: {problem}"


def _chain_problems(data: DataDir, part: int, index: Fingerprint) -> Iterator[str]:
    for kind, path in (("ids", data.ids(part)), ("faces", data.faces(part))):
        ours = read_fingerprint(path)
        if ours is not None and ours.get("source") != index.get(kind):
            yield f"made from {kind} of version {index.get(kind)}, but {path} is of {ours.get('source')}"


def _proof_problems(data: DataDir, part: int, index: Fingerprint, rows: int) -> Iterator[str]:
    """Yield what is wrong with the proof: it is of another index, or missing where there must be one."""
    path = proof_path(data.index(part))
    if not path.exists():
        if _is_joined_here(data, part, index):
            yield f"has no proof of its join, {path.name}, beside it; prepare writes both"
        return
    try:
        proof = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        yield f"its proof {path.name} cannot be read: {short(error)}"
        return
    made_from = proof.get("made_from")
    if made_from != index:
        theirs = made_from if isinstance(made_from, dict) else {}
        others = sorted(name for name in index.keys() | theirs.keys() if theirs.get(name) != index.get(name))
        yield f"its proof {path.name} is of an index made from other {', '.join(others)}"
    if proof.get("rows") != rows:
        yield f"has {rows} rows; its proof {path.name} is of {proof.get('rows')}"


def _is_joined_here(data: DataDir, part: int, index: Fingerprint) -> bool:
    """Say whether the index was made here, as far as can be told: it is no copy, and what it was made from is there.

    Versions whose fingerprints say nothing of the join wrote no proof; nor does a copy of a published index have one.
    """
    made = (("ids", data.ids(part)), ("faces", data.faces(part)))
    is_own = "join" in index and not {"copy", "filters"} & index.keys()
    return is_own and all((read_fingerprint(path) or {}).get("source") == index.get(kind) for kind, path in made)


@dataclass(frozen=True)
class _Neighbours:
    """The ids and faces that the index was made from, as far as they are still there."""

    ids: np.ndarray | None
    faces: FaceTable | None

    @classmethod
    def of(cls, data: DataDir, part: int) -> _Neighbours:
        """Read ids and faces of the part; broken files are left out here, since they are reported by themselves."""
        try:
            ids = read_ids(data.ids(part)) if data.ids(part).exists() else None
            return cls(ids, FaceTable.read(data.faces(part)) if data.faces(part).exists() else None)
        except BROKEN:
            return cls(None, None)

    def problems(self, table: pa.Table, part: int) -> Iterator[str]:
        """Yield what is wrong with one row group of the index."""
        ids = table["sample_id"].combine_chunks()
        if ids.null_count or table["faces"].null_count:
            yield "a sample id or a list of faces is null"
            return
        if not pc.all(pc.equal(table["part"], part)).as_py():
            yield f"rows of another part than {part}"
        if self.ids is not None and not _contained(ids.to_numpy(), self.ids):
            yield "a sample id that is not among the part's ids"
        flat = flat_columns(table["faces"].combine_chunks())
        computed = dict(zip(FLAT, flat, strict=True))
        if self.faces is not None:
            computed["faces"] = self.faces.of_rows(ids.to_numpy()).columns(0, len(ids))[0]
        for name, column in computed.items():
            if not table[name].combine_chunks().equals(column):
                yield f"{name} is not what the {'faces part says' if name == 'faces' else 'faces give'}"


def _contained(values: np.ndarray, ids: np.ndarray) -> bool:
    """Say whether all `values` are in the sorted `ids`."""
    place = np.searchsorted(ids, values)
    return bool((place < len(ids)).all() and (ids[place] == values).all())
