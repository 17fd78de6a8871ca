"""Which samples are wanted, decided on a row group's columns before any picture is touched.

A face counts if its score, the short side of its box and its area reach the thresholds. A sample passes if the number
of counting faces is within min_faces..max_faces and its own columns pass. Boxes are unclipped and in the original
frame. Every threshold is rounded to float32 first, since scores and boxes are float32: 0.9 means what the detector
wrote as 0.9. A null fails every filter on it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import BadFile

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Filters:
    """The filters of one dataset; None means no filter. Hashable, comparable, picklable.

    min_faces None means 1 as soon as a threshold on faces is given, else 0: `min_face_size=64` alone asks for pictures
    with such a face.
    """

    min_score: float | None = None
    min_face_size: float | None = None
    min_face_area: float | None = None
    min_faces: int | None = None
    max_faces: int | None = None
    min_width: int | None = None
    min_height: int | None = None
    nsfw: tuple[str, ...] | None = None
    min_similarity: float | None = None
    exclude: str | None = None

    @property
    def face_thresholds(self) -> bool:
        """Whether a face has to reach anything in order to count."""
        return any(value is not None for value in (self.min_score, self.min_face_size, self.min_face_area))

    @property
    def fewest_faces(self) -> int:
        """The least number of counting faces."""
        return int(self.face_thresholds) if self.min_faces is None else self.min_faces

    @property
    def columns(self) -> tuple[str, ...]:
        """The index columns that `mask` needs besides `faces`."""
        wanted = {
            "n_faces": self.fewest_faces > 0 or self.max_faces is not None,
            "max_face_score": self.min_score is not None,
            "max_face_size": self.min_face_size is not None,
            "width": self.min_width is not None or self.min_face_area is not None,
            "height": self.min_height is not None or self.min_face_area is not None,
            "nsfw": self.nsfw is not None,
            "similarity": self.min_similarity is not None,
            "sample_id": self.exclude is not None,
            "url": self.exclude is not None,
        }
        return tuple(name for name, needed in wanted.items() if needed)

    @property
    def is_empty(self) -> bool:
        """Whether everything passes."""
        return not self.columns

    def as_dict(self) -> dict[str, Any]:
        """What defines the filters, for fingerprints: the content of the exclusion file, not its path."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if self.exclude is not None:
            values["exclude"] = read_exclusion(self.exclude).digest
        if self.nsfw is not None:
            values["nsfw"] = sorted(self.nsfw)
        return values

    def flat_mask(self, table: pa.Table) -> Mask:
        """bool[n]: rows that may pass, by the flat columns: exact for sample filters, necessary for face filters."""
        keep = np.ones(table.num_rows, dtype=bool)
        for column, least in (("width", self.min_width), ("height", self.min_height)):
            keep &= _at_least(table, column, least)
        keep &= _at_least(table, "similarity", self.min_similarity)
        if self.nsfw is not None:
            allowed = pc.is_in(table["nsfw"], value_set=pa.array(self.nsfw, pa.string()))
            keep &= _booleans(pc.and_(allowed, pc.is_valid(table["nsfw"])))
        if self.exclude is not None:
            keep &= ~read_exclusion(self.exclude).mask(table)
        if self.fewest_faces > 0:
            keep &= _at_least(table, "n_faces", self.fewest_faces)
            keep &= _at_least(table, "max_face_score", self.min_score)
            keep &= _at_least(table, "max_face_size", self.min_face_size)
        if not self.face_thresholds and self.max_faces is not None:
            keep &= _numbers(table["n_faces"]) <= self.max_faces
        return keep

    def mask(self, table: pa.Table) -> Mask:
        """bool[n]: the rows of `table` that pass. Needs `columns`, and `faces` if there are thresholds on faces."""
        keep = self.flat_mask(table)
        if self.face_thresholds and keep.any():
            counting = self._counting_faces(table)
            keep &= counting >= self.fewest_faces
            if self.max_faces is not None:
                keep &= counting <= self.max_faces
        return keep

    def _counting_faces(self, table: pa.Table) -> Floats:
        """int[n]: how many faces of each row reach the thresholds."""
        faces = _joined(table["faces"])
        lengths = pc.fill_null(pc.list_value_length(faces), 0).to_numpy(zero_copy_only=False)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        flat = faces.flatten()
        counts = np.ones(len(flat), dtype=bool)
        if self.min_score is not None:
            counts &= flat.field("score").to_numpy(zero_copy_only=False) >= np.float32(self.min_score)
        width, height = box_sides(flat)
        if self.min_face_size is not None:
            counts &= np.minimum(width, height) >= np.float32(self.min_face_size)
        if self.min_face_area is not None:
            picture = _numbers(table["width"]) * _numbers(table["height"])
            area = np.maximum(width, 0).astype(np.float64) * np.maximum(height, 0)
            counts &= area >= float(np.float32(self.min_face_area)) * picture[rows]
        return np.bincount(rows[counts], minlength=len(lengths))


def box_sides(faces: pa.StructArray) -> tuple[Floats, Floats]:
    """Width and height of each box in pixels, float32[n] each, of a flat array of `schema.FACE`."""
    boxes = faces.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


@dataclass(frozen=True)
class Exclusion:
    """What an exclusion file names: one sample id, URL, host or SHA-256 a line; `#` starts a comment."""

    sample_ids: frozenset[int]
    urls: frozenset[str]
    hosts: frozenset[str]
    sha256s: frozenset[str]

    @property
    def digest(self) -> str:
        """Equal for files that name the same things, in whatever order."""
        entries = [*map(str, self.sample_ids), *self.urls, *self.hosts, *self.sha256s]
        return hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()

    def mask(self, table: pa.Table) -> Mask:
        """bool[n]: rows named by id, URL or host (a host stands for its subdomains too)."""
        ids = pc.is_in(table["sample_id"], value_set=pa.array(sorted(self.sample_ids), pa.int64()))
        excluded = _booleans(ids)
        if self.urls:
            excluded |= _booleans(pc.is_in(table["url"], value_set=pa.array(sorted(self.urls), pa.string())))
        if self.hosts:
            excluded |= np.array([self.names_host_of(url) for url in table["url"].to_pylist()], dtype=bool)
        return excluded

    def names_host_of(self, url: str | None) -> bool:
        """Whether the URL's host, or a domain above it, is excluded."""
        host = host_of(url)
        labels = host.split(".")
        return any(".".join(labels[i:]) in self.hosts for i in range(len(labels)))


@functools.lru_cache(maxsize=8)
def _read_exclusion(path: str, _modified: int) -> Exclusion:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(
            path,
            found=f"no readable text ({error})",
            expected="one sample id, URL, host or SHA-256 a line",
            way_out="Give exclude= the path of such a file.",
        ) from error
    return parse_exclusion(lines)


def read_exclusion(path: str) -> Exclusion:
    """The exclusion file at `path`, kept in memory until it changes."""
    file = Path(path)
    return _read_exclusion(path, file.stat().st_mtime_ns if file.exists() else 0)


def parse_exclusion(lines: Iterable[str]) -> Exclusion:
    """Sorts the lines of an exclusion file by what they are."""
    found: dict[str, set[Any]] = {"sample_ids": set(), "urls": set(), "hosts": set(), "sha256s": set()}
    for line in lines:
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if re.fullmatch(r"[0-9a-fA-F]{64}", entry):
            found["sha256s"].add(entry.lower())
        elif re.fullmatch(r"[0-9]+", entry):
            found["sample_ids"].add(int(entry))
        elif "://" in entry:
            found["urls"].add(entry)
        else:
            found["hosts"].add(entry.lower().strip("."))
    return Exclusion(**{name: frozenset(entries) for name, entries in found.items()})


def host_of(url: str | None) -> str:
    """The host of a URL in lower case, without a trailing dot; empty if there is none."""
    try:
        return (urlsplit(url or "").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _at_least(table: pa.Table, column: str, least: float | None) -> Mask | np.bool_:
    return np.True_ if least is None else _numbers(table[column]) >= float(np.float32(least))


def _numbers(column: pa.ChunkedArray) -> Floats:
    """float64[n], a null as NaN, which fails every comparison."""
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _booleans(column: pa.ChunkedArray | pa.Array) -> Mask:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)


def _joined(column: pa.ChunkedArray) -> pa.ListArray:
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)
