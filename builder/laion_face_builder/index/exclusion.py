"""Leave out rows by sample ids, addresses, hosts and hashes of pictures, matched against a row group at once.

A million entries are fine: ids are looked up in a sorted array, addresses and hosts in sets that are made once, where
Arrow's `is_in` would make its table anew for every row group. A list goes by value to worker processes, so that all
of a dataset's processes leave out the same, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.index.urls import are_plain, canonical_url, origins_of, place_of, place_of_origin

Ids = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

#: DNS has no longer names (RFC 1035), and a hostile address could have a hundred thousand labels.
_LONGEST_HOST = 253


@dataclass(frozen=True, eq=False, repr=False)
class Exclusion:
    """The entries of one exclusion list. Two are equal if they name the same; hashable, picklable.

    Attributes:
        name: where it was read from.
        sample_ids: int64[n], sorted, unique.
        urls: as `urls.canonical_url`.
        hosts: as `urls.one_spelling`, with ":port" if only that port is meant; each stands for its subdomains too, and
            after "*." for the subdomains alone.
        sha256s: of pictures, 64 hexadecimal digits in lower case.
        md5s: of pictures, 32 hexadecimal digits in lower case.
    """

    name: str = ""
    sample_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    urls: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    sha256s: frozenset[str] = frozenset()
    md5s: frozenset[str] = frozenset()

    @property
    def counts(self) -> dict[str, int]:
        """How many different entries there are of each kind: ids, urls, hosts, hashes."""
        hashes = len(self.sha256s) + len(self.md5s)
        return {"ids": len(self.sample_ids), "urls": len(self.urls), "hosts": len(self.hosts), "hashes": hashes}

    @cached_property
    def digest(self) -> str:
        """A hash that is equal for lists that name the same things, in whatever order."""
        entries = [*map(str, self.sample_ids.tolist()), *self.urls, *self.hosts, *self.sha256s, *self.md5s]
        return hashlib.sha256("\n".join(sorted(entries)).encode("utf-8", "surrogatepass")).hexdigest()

    def mask(self, table: pa.Table) -> Mask:
        """Tell, bool[n], which rows of `table` are named by their id, address or host.

        Args:
            table: has `sample_id` int64 and `url` string.
        """
        named = self._names_ids(table["sample_id"])
        if self.urls or self.hosts:
            named |= self._names_addresses(table["url"].combine_chunks())
        return named

    def names_picture(self, data: bytes, sha256s: Iterable[str]) -> bool:
        """Tell whether a picture is named by a hash.

        Args:
            data: its bytes; hashed only if the list has MD5s.
            sha256s: those that are known of the picture.
        """
        if not self.sha256s.isdisjoint(sha256s):
            return True
        return bool(self.md5s) and hashlib.md5(data, usedforsecurity=False).hexdigest() in self.md5s

    def names_address(self, url: str) -> bool:
        """Tell whether the address is named, or its host, or a domain above it."""
        return canonical_url(url) in self.urls or self._names_host(*place_of(url))

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Exclusion) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __deepcopy__(self, _: object) -> Exclusion:
        return self  # datasets copies streams when it interleaves them; nothing in here ever changes

    def __repr__(self) -> str:
        return f"Exclusion({self.name!r}, {self})"

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())

    @cached_property
    def _forms(self) -> frozenset[tuple[str, bool]]:
        """The forms in which hosts are listed: ("*." or nothing before them, whether a port behind them)."""
        return frozenset(("*." if host[0] == "*" else "", ":" in host.rpartition("]")[2]) for host in self.hosts)

    def _names_ids(self, column: pa.ChunkedArray) -> Mask:
        if not len(self.sample_ids):
            return np.zeros(len(column), bool)
        values = pc.fill_null(column, 0).to_numpy()
        at = np.searchsorted(self.sample_ids, values).clip(max=len(self.sample_ids) - 1)
        return np.asarray((self.sample_ids[at] == values) & pc.is_valid(column).to_numpy())

    def _names_addresses(self, urls: pa.Array) -> Mask:
        plain, texts = are_plain(urls), urls.to_pylist()
        is_plain = plain.to_numpy(zero_copy_only=False)
        named = np.fromiter((text in self.urls for text in texts), bool, len(texts))
        if self.hosts:
            origins = origins_of(urls.filter(plain)).dictionary_encode()
            hosts = (self._names_host(*place_of_origin(origin)) for origin in origins.dictionary.to_pylist())
            named[is_plain] |= np.fromiter(hosts, bool)[origins.indices.to_numpy()]
        for row in np.flatnonzero(~is_plain):
            named[row] = texts[row] is not None and self.names_address(texts[row])
        return named

    def _names_host(self, host: str, port: str) -> bool:
        if len(host) > _LONGEST_HOST:
            return False
        domain, is_above = host, False
        while domain:
            for star, has_port in self._forms:
                if (is_above or not star) and f"{star}{domain}{f':{port}' if has_port else ''}" in self.hosts:
                    return True
            domain, is_above = domain.partition(".")[2], True
        return False
