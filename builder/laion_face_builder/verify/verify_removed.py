"""Prove that nothing of a list is left in a place: every file that can be read is looked through, whatever it is.

It knows nothing of who wrote what. Tables are searched for ids, addresses and SHA-256s by the names of their columns;
tars, at any depth of the place, for JSON that says them, and for pictures; text for addresses, hashes and sample ids.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.download.shard_files import Member, read_members
from laion_face_builder.errors import NotPrepared
from laion_face_builder.files import require_readable
from laion_face_builder.index.exclusion import Exclusion, Mask
from laion_face_builder.index.removals import settled
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.targets import PublishedPlace, is_folder
from laion_face_builder.shown import short
from laion_face_builder.sources.hub import Token
from laion_face_builder.values import absolute
from laion_face_builder.verify.verify import Verification
from laion_face_builder.verify.verify_data import BROKEN

#: Columns that say which sample a row is of, which address, and the hash of which bytes, in any table of ours.
_IDS, _URLS, _SHA256S = ("sample_id", "SAMPLE_ID"), ("url", "URL"), ("sha256", "fetched_sha256")
_ROWS_AT_ONCE = 1 << 12
_IN_JSON = re.compile(rb'"(?:sample_id|SAMPLE_ID)"\s*:\s*"?(-?[0-9]{1,19})\b')
#: From `://` on: what begins so is found at once, where every word might begin with a scheme.
_ADDRESS = re.compile(rb"://[^\s\"'<>\\]+")
_SCHEME, _LONGEST_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*\Z"), 64
_HASH = re.compile(rb"\b(?:[0-9a-f]{64}|[0-9a-f]{32})\b")
_TEXTS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".html", ".md", ".fingerprint", ".lst", ".list", "")
#: Text that is longer is looked through piece by piece; no address that matters is cut by it, since pieces overlap.
_PIECE, _OVERLAP = 1 << 24, 1 << 16


def verify_removed(
    place: str, listed: Exclusion, *, deep: bool = False, revision: str | None = None, token: Token = None
) -> Verification:
    """Look for what is listed in a folder of any kind, or in a published Hub dataset.

    Args:
        deep: hash every picture in tars and tables, where hashes are listed; else those that are stated count.

    Raises:
        NotPrepared: there is no such folder; StateConflict: a removal from this DATA_DIR is not finished.
        SourceError: the Hub does not answer, or has no such dataset.
    """
    if not is_folder(place):
        found = PublishedPlace.at(place, revision, token)
        found.require()
        return Verification(f"{found.name}: {listed}", _left_in_published(found, Search(listed, deep)))
    root = absolute(place)
    if not root.is_dir():
        raise NotPrepared(f"{place}: there is no such folder")
    settled(DataDir.at(root))
    return Verification(f"{root}: {listed}", _left_in_folder(root, Search(listed, deep)))


def _left_in_folder(root: Path, search: Search) -> Iterator[str]:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            yield from (f"{path}: {found}" for found in search.file(path))
        except BROKEN as error:
            require_readable(path, error)
            yield f"{path}: cannot be read: {short(error)}"


def _left_in_published(place: PublishedPlace, search: Search) -> Iterator[str]:
    manifest = place.manifest()
    for name in sorted(manifest.entries if manifest is not None else ()):
        with place.parquet(name) as file:
            yield from (f"{name}: {found}" for found in search.table(file))


@dataclass(frozen=True)
class Search:
    """What is looked for."""

    listed: Exclusion
    deep: bool

    def file(self, path: Path) -> Iterator[str]:
        """Yield a line for each kind of thing that is left in a file."""
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                yield from self.table(file)
        elif path.suffix == ".tar":
            yield from self.tar(path)
        elif path.suffix == ".pth":
            yield "is a file of upstream's, with rows of all kinds; prepare frees it once something was taken down"
        elif path.suffix == ".arrow":
            yield from self.arrow(path)
        elif path.suffix in _TEXTS:
            yield from self._said(self._texts(path))

    def table(self, file: pq.ParquetFile) -> Iterator[str]:
        """Yield what is left in a Parquet file; of its columns those are read that matter."""
        schema = file.schema_arrow
        names = [name for name in schema.names if name in (*_IDS, *_URLS, *_SHA256S)]
        names += [name for name in schema.names if self._hashes and _is_picture(schema.field(name).type)]
        yield from self._rows(file.iter_batches(_ROWS_AT_ONCE, columns=names) if names else iter(()))

    def arrow(self, path: Path) -> Iterator[str]:
        """Yield what is left in an Arrow file of `datasets`."""
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
            yield from self._rows(batch for batch in batches)

    def tar(self, path: Path) -> Iterator[str]:
        """Yield what is left in a tar: in what its JSON says, and among its pictures."""
        said, pictures = list[bytes](), 0
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for member in read_members(path):
                if f".{member.extension}" in _TEXTS:
                    said.append(_bytes_of(descriptor, member))
                elif self._hashes:
                    pictures += self._is_listed(_bytes_of(descriptor, member))
        finally:
            os.close(descriptor)
        yield from self._said(iter(said))
        if pictures:
            yield f"{pictures:,} pictures that are listed"

    @property
    def _hashes(self) -> bool:
        return self.deep and self.listed.has_hashes

    def _rows(self, batches: Iterator[pa.RecordBatch]) -> Iterator[str]:
        rows = pictures = 0
        for batch in batches:
            table = pa.Table.from_batches([batch])
            rows += int(self._named(table).sum())
            pictures += sum(map(self._is_listed, _pictures_in(table))) if self._hashes else 0
        if rows:
            yield f"{rows:,} rows that are listed"
        if pictures:
            yield f"{pictures:,} pictures that are listed"

    def _named(self, table: pa.Table) -> Mask:
        named = np.zeros(table.num_rows, bool)
        names = table.column_names
        ids = next((table[name] for name in _IDS if name in names), None)
        urls = next((table[name] for name in _URLS if name in names), None)
        if ids is not None or urls is not None:
            rows = pa.table(
                {
                    "sample_id": pa.nulls(table.num_rows, pa.int64()) if ids is None else ids.cast(pa.int64()),
                    "url": pa.nulls(table.num_rows, pa.string()) if urls is None else urls.cast(pa.string()),
                }
            )
            named |= self.listed.mask(rows)
        for name in _SHA256S:
            if name in names and self.listed.sha256s:
                values = table[name].to_pylist()
                named |= np.fromiter((value in self.listed.sha256s for value in values), bool, len(values))
        return named

    def _is_listed(self, data: bytes) -> bool:
        return self.listed.names_picture(data, [hashlib.sha256(data).hexdigest()])

    def _texts(self, path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            before = b""
            while piece := file.read(_PIECE):
                yield before + piece
                before = piece[-_OVERLAP:]

    def _said(self, texts: Iterator[bytes]) -> Iterator[str]:
        """Yield what is said in texts, each once; of a text nothing stays in memory but what is listed."""
        ids, urls, hashes = set[int](), set[str](), set[str]()
        for text in texts:
            if self._ids:
                ids.update(self._ids.intersection(map(int, _IN_JSON.findall(text))))
            if self.listed.urls or self.listed.hosts:
                urls.update(self._listed_addresses(text))
            if self._known_hashes:
                hashes.update(self._known_hashes.intersection(found.decode() for found in _HASH.findall(text)))
        counts = {"sample ids": len(ids), "addresses": len(urls), "hashes": len(hashes)}
        yield from (f"{count:,} {kind} that are listed" for kind, count in counts.items() if count)

    def _listed_addresses(self, text: bytes) -> list[str]:
        said = {_address(text, found) for found in _ADDRESS.finditer(text)}
        urls = pa.array([url.decode("utf-8", "replace") for url in said if url], pa.string())
        table = pa.table({"sample_id": pa.nulls(len(urls), pa.int64()), "url": urls})
        return list(urls.filter(pa.array(self.listed.mask(table))).to_pylist())

    @cached_property
    def _ids(self) -> frozenset[int]:
        return frozenset(self.listed.sample_ids.tolist())

    @cached_property
    def _known_hashes(self) -> frozenset[str]:
        return self.listed.sha256s | self.listed.md5s


def _address(text: bytes, found: re.Match[bytes]) -> bytes:
    """Return the address whose `://` and rest were found; empty if no scheme is before them."""
    scheme = _SCHEME.search(text[max(found.start() - _LONGEST_SCHEME, 0) : found.start()])
    return scheme[0] + found[0].rstrip(b",;)]}") if scheme else b""


def _is_picture(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and "bytes" in [kind.field(number).name for number in range(kind.num_fields)]


def _pictures_in(table: pa.Table) -> Iterator[bytes]:
    columns = [column for column in table.columns if _is_picture(column.type)]
    values: Iterator[Any] = itertools.chain.from_iterable(column.to_pylist() for column in columns)
    return (value["bytes"] for value in values if value is not None and value["bytes"] is not None)


def _bytes_of(descriptor: int, member: Member) -> bytes:
    return os.pread(descriptor, member.length, member.offset)
