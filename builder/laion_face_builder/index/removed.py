"""Say what was taken down without saying it again: ids, addresses, hosts and pictures, as hashes to match rows by.

A list of what people asked to be forgotten would be just the list that nobody should have. So a removal is remembered
as SHA-256s of its entries: enough to recognise a row or a picture, and not to read the list. (Ids are few enough to be
tried one after the other; addresses and pictures are not.) It is matched as `Exclusion` matches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from laion_face_builder.index.exclusion import Exclusion, Mask, in_words
from laion_face_builder.index.urls import addresses_named, canonical_url, domains_of, place_of

#: Hexadecimal digits of a hash: 128 bits, so that no two of a billion rows have the same by chance.
_DIGITS = 32

#: Names rows of a table with `sample_id` and `url`; bool[n].
Names = Callable[[pa.Table], Mask]
Hashes = frozenset[str]
_NONE: Hashes = frozenset()


def hash_of(kind: str, value: object) -> str:
    """Return the hash of an entry, 32 hexadecimal digits.

    Args:
        kind: the field of `Removed` that it belongs to, so that an id is no other kind's hash.
        value: as `Exclusion` has it there.
    """
    return hashlib.sha256(f"{kind} {value}".encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def hashes_of_ids(ids: Iterable[int]) -> Hashes:
    """Return the hashes of sample ids, as `Removed.sample_ids` has them."""
    return frozenset(hash_of("sample_ids", number) for number in ids)


@dataclass(frozen=True, eq=False, repr=False)
class Removed:
    """What was taken down, each entry as `hash_of` gives it. Equal if the same is named; hashable, picklable.

    The fields are those of `Exclusion`.
    """

    sample_ids: Hashes = _NONE
    urls: Hashes = _NONE
    hosts: Hashes = _NONE
    sha256s: Hashes = _NONE
    md5s: Hashes = _NONE

    @classmethod
    def of(cls, listed: Exclusion) -> Removed:
        """Hash the entries of a list."""
        ids = hashes_of_ids(listed.sample_ids.tolist())
        named = {kind: frozenset(hash_of(kind, value) for value in getattr(listed, kind)) for kind in _NAMES[1:]}
        return cls(ids, **named)

    @classmethod
    def from_dict(cls, values: Mapping[str, Iterable[str]]) -> Removed:
        """Make one from what `as_dict` gave.

        Raises:
            TypeError, ValueError: it is something else.
        """
        found = {kind: frozenset(hashes) for kind, hashes in values.items()}
        if wrong := [text for hashes in found.values() for text in hashes if not _is_hash(text)]:
            raise ValueError(f"{str(wrong[0])[:40]!r} is no hash")
        return cls(**found)

    def as_dict(self) -> dict[str, list[str]]:
        """Return the hashes by kind, sorted; kinds without any are left out."""
        return {kind: sorted(hashes) for kind in _NAMES if (hashes := getattr(self, kind))}

    def __or__(self, other: Removed) -> Removed:
        return Removed(*(getattr(self, kind) | getattr(other, kind) for kind in _NAMES))

    def __sub__(self, other: Removed) -> Removed:
        return Removed(*(getattr(self, kind) - getattr(other, kind) for kind in _NAMES))

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in _NAMES)

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in _NAMES)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Removed) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __deepcopy__(self, _: object) -> Removed:
        return self  # datasets copies streams when it interleaves them; nothing in here ever changes

    def __repr__(self) -> str:
        return f"Removed({self})"

    def __str__(self) -> str:
        return in_words(self.counts)

    @cached_property
    def digest(self) -> str:
        """A hash that is equal where the same is named."""
        return hashlib.sha256(repr(self.as_dict()).encode()).hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """How many entries there are of each kind: ids, urls, hosts, hashes."""
        hashes = len(self.sha256s) + len(self.md5s)
        return {"ids": len(self.sample_ids), "urls": len(self.urls), "hosts": len(self.hosts), "hashes": hashes}

    @property
    def pictures(self) -> Removed:
        """Only what names pictures by their bytes."""
        return Removed(sha256s=self.sha256s, md5s=self.md5s)

    @property
    def has_rows(self) -> bool:
        """Whether rows are named, by id, address or host."""
        return bool(self.sample_ids or self.urls or self.hosts)

    @property
    def has_pictures(self) -> bool:
        """Whether pictures are named, by their bytes."""
        return bool(self.sha256s or self.md5s)

    def mask(self, table: pa.Table) -> Mask:
        """Tell, bool[n], which rows of `table` are named by their id, address or host.

        Args:
            table: has `sample_id` int64 and, for addresses and hosts, `url` string.
        """
        named = self.names_ids(table["sample_id"])
        if (self.urls or self.hosts) and "url" in table.column_names:
            named |= self._names_addresses(pa.chunked_array(table["url"]).cast(pa.string()).combine_chunks())
        return named

    def names_ids(self, column: pa.ChunkedArray | pa.Array) -> Mask:
        """Tell, bool[n], which of these sample ids, int64 or null, are named."""
        if not self.sample_ids:
            return np.zeros(len(column), bool)
        ids = column.to_pylist()
        return np.fromiter((hash_of("sample_ids", number) in self.sample_ids for number in ids), bool, len(ids))

    def names_picture(self, data: bytes, sha256s: Iterable[str]) -> bool:
        """Tell whether a picture is named by its bytes, or by one of the SHA-256s that are known of it.

        Args:
            data: its bytes; hashed only if MD5s are named.
            sha256s: those that are known of the picture, hexadecimal.
        """
        if self.sha256s and any(self.names_sha256(known) for known in sha256s):
            return True
        return bool(self.md5s) and hash_of("md5s", hashlib.md5(data, usedforsecurity=False).hexdigest()) in self.md5s

    def names_sha256(self, sha256: str | None) -> bool:
        """Tell whether a picture is named by its SHA-256; not if that is unknown."""
        return bool(sha256) and hash_of("sha256s", str(sha256).lower()) in self.sha256s

    def names_address(self, url: str) -> bool:
        """Tell whether the address is named, or its host, or a domain above it."""
        return hash_of("urls", canonical_url(url)) in self.urls or self._names_host(*place_of(url))

    def _names_addresses(self, urls: pa.Array) -> Mask:
        names_url = self._names_url if self.urls else None
        return addresses_named(urls, names_url, self._names_host if self.hosts else None, self.names_address)

    def _names_url(self, url: str | None) -> bool:
        return url is not None and hash_of("urls", url) in self.urls

    def _names_host(self, host: str, port: str) -> bool:
        return bool(self.hosts) and any(
            hash_of("hosts", f"{star}{domain}{ending}") in self.hosts
            for domain, is_above in domains_of(host)
            for star in ("", "*.")[: 1 + is_above]
            for ending in ("", f":{port}")
        )


_NAMES = tuple(spec.name for spec in fields(Removed))


def _is_hash(text: Any) -> bool:
    return isinstance(text, str) and len(text) == _DIGITS and not set(text) - set("0123456789abcdef")
