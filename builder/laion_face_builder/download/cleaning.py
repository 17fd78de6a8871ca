"""Clean tars for other readers: take out broken pictures, and those that a later tar has too.

Earlier versions had img2dataset write the tars, which takes whatever a host sends for a success; the sidecar knows, but
nobody else who reads the tars does. Here such a shard is written once more, see `rewriting`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.download.numbering import NOWHERE, Numbering
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.rewriting import copy_tar, write_parquet, written_again
from laion_face_builder.download.shard_files import Member, ShardFiles, pictures_in, read_members
from laion_face_builder.images.reasons import Reason
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import table_of


def clean_tars(files: PartFiles) -> int:
    """Rewrite the part's shards without broken pictures and those that a later tar has; return how many pictures went.

    The sidecar has to be up to date; it is removed if a tar is rewritten.

    Raises:
        BadFile: a tar is not whole.
    """
    path = files.data.sidecar(files.part)
    sidecar = table_of(path, ["status", "tar", "offset", "length"], read_dictionary=["tar"])
    numbering, count = Numbering.of_sidecar(files), 0
    for tar in sorted(filter(None, sidecar["tar"].unique().to_pylist())):
        place = files.data.tars(files.part) / tar
        listed = sidecar.filter(pc.equal(sidecar["tar"], tar))
        unlisted = pictures_not_in(listed, read_members(place))
        if unlisted:
            path.unlink(missing_ok=True)
            _rewrite(files, ShardFiles(place.parent, int(place.stem)), numbering, unlisted, sidecar["status"])
            count += len(unlisted)
            logger.info("%s: written again without %d pictures that are broken or in a later tar", place, len(unlisted))
    return count


def pictures_not_in(listed: pa.Table, members: list[Member]) -> list[str]:
    """Return the keys of a tar's pictures that the sidecar does not list, by offset and length."""
    places = {*zip(listed["offset"].to_pylist(), listed["length"].to_pylist(), strict=True)}
    return [key for key, member in pictures_in(members).items() if (member.offset, member.length) not in places]


def _rewrite(
    files: PartFiles, shard: ShardFiles, numbering: Numbering, unwanted: Iterable[str], statuses: pa.ChunkedArray
) -> None:
    table = table_of(shard.parquet)
    rows = dict(zip(table["key"].to_pylist(), table["row"].to_numpy(), strict=True))
    places = numbering.rows_of(np.array([rows[key] for key in unwanted], np.int64))
    ends = [Reason.TAKEN_DOWN if place == NOWHERE else statuses[place].as_py() for place in places.tolist()]
    why = {key: Reason.IN_ANOTHER_ROUND if end == Reason.OK else end for key, end in zip(unwanted, ends, strict=True)}
    with written_again(files, shard) as made:
        copy_tar(shard.tar, made.tar, why)
        write_parquet(_failed(table, why), made.parquet)
        stats = _counted(json.loads(shard.stats.read_bytes()), why)
        made.stats.write_text(json.dumps(stats, indent=4), encoding="utf-8")


def _failed(table: pa.Table, why: Mapping[str, str]) -> pa.Table:
    """Return the shard's parquet with these samples as failures, for the reasons given."""
    said = [why.get(key) for key in table["key"].to_pylist()]
    changes = {
        "status": [None if reason is None else "failed_to_resize" for reason in said],
        "error_message": said,
    }
    for name, values in changes.items():
        column = pc.coalesce(pa.array(values, pa.string()), table[name].cast(pa.string()))
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _counted(stats: dict[str, Any], why: Mapping[str, str]) -> dict[str, Any]:
    messages = Counter(stats.get("status_dict", {}))
    messages.update(why.values())
    messages["success"] -= len(why)
    return stats | {
        "successes": stats["successes"] - len(why),
        "failed_to_resize": stats.get("failed_to_resize", 0) + len(why),
        "status_dict": dict(messages),
    }
