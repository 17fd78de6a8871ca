"""What tests of removals share: removals of a list, and a DATA_DIR whose rows have left it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.index.exclusion import exclusion_of
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.removal.removal_request import RemovalRequest
from laion_face_builder.removal.remove import remove


def removal_of(*entries, reason="asked by those in them"):
    return Removals((Removal("2026-11-26", reason, Removed.of(exclusion_of(entries))),))


def copy_of(data, tmp_path):
    ignored = shutil.ignore_patterns("sources", "publish", "staging")
    return DataDir.at(shutil.copytree(data.root, tmp_path / "data", ignore=ignored))


def without_rows(data, *entries):
    """Take what is listed out of a DATA_DIR, and return what it then remembers."""
    remove(RemovalRequest(data, exclusion_of(entries)))
    return Removals.of(data)


def tree(folder):
    """Return {name: bytes} of every file that readers see."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def is_killed(run: Callable[[], object], at: int) -> bool:
    """Run in a process that ends, as if killed, when it puts its file number `at` into its place; say if it did."""
    child = os.fork()
    if child == 0:
        replaced, count = os.replace, 0

        def replace(*places: Path) -> None:
            nonlocal count
            count += 1
            if count == at:
                os._exit(9)
            replaced(*places)

        os.replace = replace  # type: ignore[assignment]
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def rows_in(contents):
    """Return the sample ids in all Parquet files of {name: bytes}."""
    found = set()
    for content in contents.values():
        if content[:4] == b"PAR1":
            found |= set(pq.read_table(pa.BufferReader(content), columns=["sample_id"])["sample_id"].to_pylist())
    return found


def gone_in(truth, part, count):
    """Give so many rows of a part, all near one another, with a picture each."""
    return [one for one in truth if one.part == part and one.ok][10 : 10 + count]
