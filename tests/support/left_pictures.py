"""Look for what was taken down in all that was downloaded or found out of pictures: every file, whatever lists it.

It reads what is there, not what should be: each shard on the disk, also one that no sidecar names, its table, the
documents in its tar and, where bytes are named, every picture; the sidecars; the passes over other people's folders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_face_builder.download.named_pictures import hashes_named
from laion_face_builder.download.shard_files import Member, pictures_in, whole_members
from laion_face_builder.errors import BadFile
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import opened

_COLUMNS = ("sample_id", "url", "sha256", "fetched_sha256")
#: What a pass over somebody else's tar calls an id.
_OF_PASSES = {"id": "sample_id"}


def pictures_left(data: DataDir, removed: Removed) -> Iterator[str]:
    """Yield a line for each file below images/ and adopted/ that has anything of what was taken down.

    A file that cannot be read is a line too: nobody knows what is in it.
    """
    images, adopted = data.tars(0).parent, data.root / "adopted"
    for path in sorted(path for folder in (images, adopted) for path in folder.rglob("*") if path.is_file()):
        try:
            found = _count(path, removed)
        except (BadFile, OSError, ValueError, pa.ArrowException) as error:
            yield f"{path}: cannot be read, so nobody knows what is in it: {error}"
            continue
        if found:
            yield f"{path}: {found:,} samples in it were taken down"


def _count(path: Path, removed: Removed) -> int:
    """Count the samples in a file that are named."""
    if path.suffix == ".tar":
        return len(_named_in_tar(path, removed))
    if path.suffix != ".parquet":
        return 0
    with opened(path) as file:
        columns = [name for name in (*_COLUMNS, *_OF_PASSES) if name in file.schema_arrow.names]
        if path.parent.name == "tars":  # a pass: what it calls url is a checksum
            columns = [name for name in columns if name != "url"]
        table = file.read(columns=columns).select(columns)
    if path.parent.name == "tars":
        table = table.rename_columns([_OF_PASSES.get(name, name) for name in columns])
    named = hashes_named(table, removed)
    if "sample_id" in table.column_names:
        named = named | removed.mask(table)
    return int(np.count_nonzero(named))


def _named_in_tar(path: Path, removed: Removed) -> set[str]:
    """Return the keys of samples that are named: by what their documents say, or by their pictures' bytes."""
    members, broken = whole_members(path)
    if broken is not None:
        raise broken
    with path.open("rb") as tar:

        def content(member: Member) -> bytes:
            return os.pread(tar.fileno(), member.length, member.offset)

        documents = [(member.key, json.loads(content(member))) for member in members if member.extension == "json"]
        columns = {name: [values.get(name) for _, values in documents] for name in _COLUMNS[:3]}
        table = pa.table([pa.array(columns["sample_id"], pa.int64())], ["sample_id"])
        for name in _COLUMNS[1:3]:
            table = table.append_column(name, pa.array(columns[name], pa.string()))
        named = removed.mask(table) | hashes_named(table, removed)
        keys = {key for (key, _), is_named in zip(documents, named.tolist(), strict=True) if is_named}
        if removed.pictures:
            for key, member in pictures_in(members).items():
                data = content(member)
                if removed.names_picture(data, [hashlib.sha256(data).hexdigest()]):
                    keys.add(key)
    return keys
