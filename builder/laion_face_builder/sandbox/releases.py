"""The releases of the metadata: what their repos, files and columns are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

World = Literal["today", "2021"]
#: One metadata row, with the index's names for what it holds; each release has names of its own (`Release.columns`).
Row = dict[str, Any]

_NUMBERS = {"sample_id": pa.int64(), "height": pa.int64(), "width": pa.int64(), "similarity": pa.float64()}


@dataclass(frozen=True)
class Release:
    """What one release is called.

    Args:
        repo, former: the Hub repo's name without its owner, and the one that it had before, which redirects.
        file_name: of a metadata file, by its number.
        columns: the columns in order, and which field of a `Row` each of them holds.
    """

    repo: str
    former: str | None
    file_name: str
    columns: Mapping[str, str]

    @property
    def schema(self) -> pa.Schema:
        """The columns in Arrow's types."""
        return pa.schema([(name, _NUMBERS.get(field, pa.string())) for name, field in self.columns.items()])

    @property
    def id_column(self) -> str:
        """The column with the sample ids."""
        return next(name for name, field in self.columns.items() if field == "sample_id")


RELEASES: Mapping[World, Release] = {
    "2021": Release(
        "laion400m",
        None,
        "part-{:05d}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet",
        {
            "SAMPLE_ID": "sample_id",
            "URL": "url",
            "TEXT": "caption",
            "HEIGHT": "height",
            "WIDTH": "width",
            "LICENSE": "license",
            "NSFW": "nsfw",
            "similarity": "similarity",
        },
    ),
    "today": Release(
        "relaion400m",
        "laion400m",
        "part-{:05d}-4227e361-38e7-40d5-8822-c6db46ea077c-c000.snappy.parquet",
        {
            "NSFW": "nsfw",
            "similarity": "similarity",
            "LICENSE": "license",
            "caption": "caption",
            "url": "url",
            "key": "sample_id",
            "original_width": "width",
            "original_height": "height",
        },
    ),
}
