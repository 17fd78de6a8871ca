"""Small files in the forms in which upstream has its own."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch


def parquet(path: Path, rows: int = 10) -> Path:
    """Write metadata of so many rows, of contents that are never the same again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"SAMPLE_ID": range(rows), "URL": [os.urandom(300).hex() for _ in range(rows)]})
    pq.write_table(table, path)
    return path


def save(value: object, path: Path, is_zip: bool = True) -> Path:
    """Write the value as torch does, today or before version 1.6."""
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path
