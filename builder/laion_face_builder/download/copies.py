"""Find placeholders among downloaded pictures: the very same bytes that many addresses give.

A host that has lost a picture often gives another in its place, the same for all. It decodes, so nothing but its number
tells. Counted are addresses, not rows: one address in many rows is one picture. In memory are 8 bytes a picture, and
the addresses of what may be a placeholder.

DATA_DIR/copies/HEX.json    what was found; HEX stands for the sidecars, by content, and for the bound
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from laion_face_builder.files import canonical_json, digest, read_fingerprint, written_whole
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import opened

#: SHA-256 of the bytes -> how many addresses give them.
Copies = dict[str, int]
#: The sidecar's columns with hashes; earlier versions had no other than the first.
HASHES = ("sha256", "fetched_sha256")
_Prefixes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class CopyCount:
    """The counting of the copies in some parts.

    Args:
        sidecars: of the parts, by their numbers.
        index_of: gives the index of a part, to be closed by the caller.
        most: so many addresses may give the same bytes.
        folder: where what was found is kept.
    """

    sidecars: Mapping[int, Path]
    index_of: Callable[[int], IndexPart]
    most: int
    folder: Path

    def found(self) -> Copies:
        """Return the bytes that more addresses give, those of most addresses first.

        Raises:
            BadFile: a sidecar or an index is damaged.
        """
        made_from = [read_fingerprint(path) for path in self.sidecars.values()]
        kept = self.folder / f"{digest([self.most, made_from])}.json"
        if (known := _read(kept)) is not None:
            return known
        copies = self._counted()
        with written_whole(kept) as partial:
            partial.write_text(canonical_json(list(copies.items())), encoding="utf-8")
        for sha256, addresses in list(copies.items())[:3]:
            logger.info("placeholder %s: %d addresses give it", sha256, addresses)
        return copies

    def _counted(self) -> Copies:
        often = self._often()
        if not len(often):
            return {}
        addresses: dict[str, set[int]] = defaultdict(set)
        for part, sidecar in self.sidecars.items():
            with self.index_of(part) as index:
                for start, hashes in _hashes(sidecar):
                    rows = np.flatnonzero(np.isin(_prefixes(hashes), often) & _there(hashes))
                    if not len(rows):
                        continue
                    first, stop = start + int(rows[0]), start + int(rows[-1]) + 1
                    urls = index.read(first, stop, ["url"], is_lenient=True)["url"].to_pylist()
                    for row, sha256 in zip(rows.tolist(), hashes.take(pa.array(rows)).to_pylist(), strict=True):
                        url = urls[row - int(rows[0])] or ""
                        addresses[sha256].add(xxhash.xxh3_64_intdigest(url.encode("utf-8", "surrogatepass")))
        counts = {sha256: len(known) for sha256, known in addresses.items() if len(known) > self.most}
        return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))

    def _often(self) -> _Prefixes:
        """Return the first 64 bits of what is there more often than `most`, which a placeholder has to be."""
        found = [
            _prefixes(hashes)[_there(hashes)] for sidecar in self.sidecars.values() for _, hashes in _hashes(sidecar)
        ]
        prefixes, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *found]), return_counts=True)
        return prefixes[counts > self.most]


def hashes_of(rows: pa.Table) -> pa.Array:
    """Return of each row of a sidecar the SHA-256 of what the host gave, string[n]; null where there is no picture."""
    given = rows["sha256"]
    if "fetched_sha256" in rows.column_names:
        fetched = pc.if_else(pc.equal(rows["fetched_sha256"], ""), None, rows["fetched_sha256"])
        given = pc.coalesce(fetched, given)
    found = pc.if_else(pc.equal(rows["status"], Reason.OK.value), given, None)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def _hashes(sidecar: Path) -> Iterator[tuple[int, pa.Array]]:
    """Yield first row, and `hashes_of` the rows, of each row group."""
    start = 0
    with opened(sidecar) as file:
        columns = ["status", *(name for name in HASHES if name in file.schema_arrow.names)]
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=columns)
            yield start, hashes_of(rows)
            start += rows.num_rows


def _there(hashes: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(hashes.is_valid().to_numpy(zero_copy_only=False))


def _prefixes(hashes: pa.Array) -> _Prefixes:
    return np.fromiter((int(one[:16], 16) if one else 0 for one in hashes.to_pylist()), np.uint64, len(hashes))


def _read(path: Path) -> Copies | None:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return {str(sha256): int(addresses) for sha256, addresses in found}
    except (OSError, ValueError, TypeError):
        return None
