"""Delete Arrow caches of `datasets` that hold rows which were taken down: whole, since the next load makes them anew.

A cache is known as one of LAION-Face by its columns: those that `load_dataset` made from a DATA_DIR, those that
`datasets` made of a published copy, and in the same folder whatever `.map` and `.filter` left (cache-….arrow).

CACHE_DIR/NAME/CONFIG/VERSION/HASH/
  dataset_info.json                 deleted last: a folder whose removal was cut short is found again
  NAME-train….arrow, cache-….arrow
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_face_builder.files import disk_errors
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.removed import Removed

_INFO = "dataset_info.json"
#: `datasets` has its folders this deep, with the hash of a script and without one.
_PLACES = ("*/*/*/*", "*/*/*")
_OURS = {"sample_id", "url", "faces"}
_INCOMPLETE, _NAME = ".incomplete", "laion_face"


@dataclass(frozen=True)
class ArrowCacheResult:
    """An Arrow cache that was deleted.

    Attributes:
        rows: how many rows of it were named, those of derived files counted again.
        size: its bytes.
    """

    folder: Path
    rows: int
    size: int

    def __str__(self) -> str:
        return f"{self.folder}: deleted, {self.rows:,} rows of it were taken down; the next load makes it anew"


def remove_from_arrow_caches(cache_dir: Path | None, removed: Removed) -> list[ArrowCacheResult]:
    """Delete the caches of LAION-Face that hold a row that is named, and what killed runs left of such caches.

    Args:
        cache_dir: as `load_dataset` takes it; None means `datasets`' own place.

    Raises:
        DiskError: one cannot be deleted.
    """
    return [_deleted(folder, rows) for folder, rows in _holding(cache_dir, removed)]


def _holding(cache_dir: Path | None, removed: Removed) -> Iterator[tuple[Path, int]]:
    """Yield the folders that have rows that are named, and how many."""
    for folder in _folders(_place_of(cache_dir)):
        found = [_named_in(file, removed) for file in sorted(folder.glob("*.arrow"))]
        # What a killed run left may end anywhere, and is of no use to anybody.
        is_cut_short = folder.name.endswith(_INCOMPLETE) and _NAME in (folder.parents[1].name, folder.parents[2].name)
        if any(found) or is_cut_short:
            yield folder, sum(found)


def _place_of(cache_dir: Path | None) -> Path:
    if cache_dir is not None:
        return cache_dir
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE)


def _folders(place: Path) -> list[Path]:
    """List the folders of finished caches, and of those that were never finished."""
    found = [path.parent for depth in _PLACES for path in place.glob(f"{depth}/{_INFO}")]
    cut_short = [path for depth in _PLACES for path in place.glob(f"{depth}{_INCOMPLETE}") if path.is_dir()]
    return sorted({*found, *cut_short})


def _named_in(path: Path, removed: Removed) -> int:
    """Count the rows of an Arrow file that are named; 0 if it has other columns, or cannot be read."""
    count = 0
    with suppress(pa.ArrowInvalid, OSError), pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        if not {*stream.schema.names}.issuperset(_OURS):
            return 0
        for batch in stream:
            rows = pa.Table.from_batches([batch])
            count += int((removed.mask(rows.select(["sample_id", "url"])) | _pictures(rows, removed)).sum())
    return count


def _pictures(rows: pa.Table, removed: Removed) -> Mask:
    if not removed.has_pictures or "image" not in rows.column_names or not pa.types.is_struct(rows["image"].type):
        return np.zeros(rows.num_rows, bool)
    pictures = (image and image.get("bytes") for image in rows["image"].to_pylist())
    named = [bool(data) and removed.names_picture(data, [hashlib.sha256(data).hexdigest()]) for data in pictures]
    return np.array(named, bool)


def _deleted(folder: Path, rows: int) -> ArrowCacheResult:
    from laion_face_builder.examples import _compat  # it imports datasets, which takes long

    with disk_errors(folder), _compat.lock_of_cache(str(folder).removesuffix(_INCOMPLETE)):
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        for path in sorted(files, key=lambda path: path.name == _INFO):
            path.unlink()
        shutil.rmtree(folder, ignore_errors=not folder.exists())
        with suppress(OSError):  # as far as nothing else is in there
            folder.parent.rmdir()
            folder.parents[1].rmdir()
    return ArrowCacheResult(folder, rows, size)
