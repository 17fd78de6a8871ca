"""What the Hub's viewer makes of a Parquet file, as its source says (huggingface/dataset-viewer, libs/libviewer).

- `is_optimized`: whether it shows the tag "optimized Parquet" (PR 3378).
- `ViewedGroup.scanned`: how many bytes it fetches for some rows: of every column the pages that hold them, by the page
  index, and the dictionary.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from laion_face_builder import parquet_footer


class Page(NamedTuple):
    """Bytes of a page, its header included, and the first of its rows in the row group."""

    start: int
    size: int
    row: int


@dataclass(frozen=True)
class ViewedColumn:
    """A column in one row group: its name, bytes of its dictionary, its pages."""

    name: str
    dictionary: int
    pages: list[Page]

    def scanned(self, start: int, stop: int, rows: int) -> int:
        """Count the bytes that are fetched for rows start … stop of `rows`."""
        ends = [*(page.row for page in self.pages[1:]), rows]
        touched = (page.size for page, end in zip(self.pages, ends, strict=True) if page.row < stop and end > start)
        return self.dictionary + sum(touched)


@dataclass(frozen=True)
class ViewedGroup:
    """A row group with page index."""

    rows: int
    columns: list[ViewedColumn]

    def scanned(self, start: int, rows: int = 100) -> int:
        """Count the bytes that are fetched for the page of `rows` rows from `start` on."""
        return sum(column.scanned(start, start + rows, self.rows) for column in self.columns)


def viewed(path: Path) -> list[ViewedGroup]:
    """Read the page index of a file; [] if there is none."""
    with parquet_footer.OpenParquet(path) as parquet, path.open("rb") as file:
        # Numbers of fields are those of parquet-format.
        groups, _ = parquet_footer._struct(parquet.footer or b"", 0)
        if not all(column.is_indexed for group in parquet.chunks for column in group):
            return []
        found = []
        for group in groups[4]:
            columns = []
            for chunk in group[1]:
                about = chunk[3]
                file.seek(chunk[4])
                index, _ = parquet_footer._struct(file.read(chunk[5]), 0)
                pages = [Page(page[1], page[2], page.get(3, 0)) for page in index[1]]
                first = min(at for at in (about[9], about.get(11)) if at)
                columns.append(ViewedColumn(b".".join(about[3]).decode(), pages[0].start - first, pages))
            found.append(ViewedGroup(group[3], columns))
    return found


def is_optimized(path: Path) -> bool:
    """Say whether the viewer takes the file for optimized Parquet: by the key, else by pages of different sizes."""
    if b"use_content_defined_chunking" in (pq.read_metadata(path).metadata or {}):
        return True
    groups = viewed(path)
    varied = sum(_is_varied([page.size for page in column.pages]) for group in groups for column in group.columns)
    # Of all row groups, by the columns of one: so it is written there.
    return bool(groups) and varied / len(groups[0].columns) >= 0.5


def _is_varied(sizes: list[int]) -> bool:
    return len(sizes) > 1 and statistics.pstdev(sizes) / statistics.fmean(sizes) > 0.05
