"""Verify the downloaded pictures: the sidecar against the index and the tars themselves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.download.cleaning import pictures_not_in
from laion_face_builder.download.sidecar import content_digest
from laion_face_builder.download.tarfiles import read_members
from laion_face_builder.errors import BadFile
from laion_face_builder.files import digest, read_fingerprint
from laion_face_builder.images import reasons
from laion_face_builder.index.reader import index_fingerprint_at
from laion_face_builder.layout import DataDir
from laion_face_builder.schema import SIDECAR, SIDECAR_LATER

#: How many pictures of each tar are hashed unless all are.
SAMPLE = 20


def picture_problems(data: DataDir, part: int, deep: bool) -> Iterator[str]:
    """Yield what is wrong with the part's sidecar and tars, a line each.

    Args:
        deep: hash every picture; else `SAMPLE` of each tar, spread over it.
    """
    path = data.sidecar(part)
    table = pq.read_table(path, page_checksum_verification=True)
    older = pa.schema([field for field in SIDECAR if field.name not in SIDECAR_LATER])
    if table.schema.remove_metadata() not in (SIDECAR, older):
        yield f"columns are {', '.join(table.schema.names)}; expected those of a sidecar"
        return
    stamp = read_fingerprint(path) or {}
    if stamp.get("pictures") != content_digest(table):
        yield "the pictures that it lists are not those of its fingerprint"
    yield from _index_problems(data.index(part), table, stamp.get("index"))
    usable = table.filter(pc.equal(table["status"], reasons.OK))
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


def _index_problems(index: Path, table: pa.Table, stated: str | None) -> Iterator[str]:
    """Yield a line for each way in which the sidecar's rows are not the index's, in order."""
    fingerprint = index_fingerprint_at(index)
    if fingerprint is None:
        return
    if digest(fingerprint) != stated:
        yield f"its pictures were downloaded for another index than {index}"
    ids = pq.read_table(index, columns=["sample_id"])["sample_id"]
    if len(ids) != table.num_rows:
        yield f"{table.num_rows} rows, but the index has {len(ids)}"
    elif not ids.combine_chunks().equals(table["sample_id"].combine_chunks()):
        yield "its rows are in another order than the index's"


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
