"""What tests of removals share: removals of a list, and a DATA_DIR whose rows have left it."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq

from laion_face_builder.files import digest, read_fingerprint, stamped
from laion_face_builder.index.exclusion import exclusion_of
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.index.removed import Removed, hash_of
from laion_face_builder.index.writer import open_writer
from laion_face_builder.layout import DataDir, row_group_bounds


def removal_of(*entries, reason="asked by those in them"):
    return Removals((Removal("2026-11-26", reason, Removed.of(exclusion_of(entries))),))


def copy_of(data, tmp_path):
    ignored = shutil.ignore_patterns("sources", "publish", "staging")
    return DataDir.at(shutil.copytree(data.root, tmp_path / "data", ignore=ignored))


def without_rows(data, removals):
    """Take the named rows out of a DATA_DIR's index and sidecars, as `laion-face remove` does."""
    for part in (0, 2):
        sidecar = data.sidecar(part)
        removals = removals.with_pictures(part, digest(read_fingerprint(sidecar)))
        table = pq.read_table(data.index(part))
        gone = removals.removed.mask(table)
        if not gone.any():
            continue
        removals = removals.with_found(
            part, [hash_of("sample_ids", one) for one in table["sample_id"].filter(gone).to_pylist()]
        )
        made_from = {**read_fingerprint(data.index(part)), **removals.stamp(part)}
        kept = table.filter(~gone)
        with open_writer(data.index(part), stamped(kept.schema, made_from)) as writer:
            for start, stop in row_group_bounds(kept.num_rows):
                rows = kept.slice(start, stop - start).combine_chunks()
                writer.write_table(rows.cast(writer.schema), row_group_size=stop - start)
        pictures = pq.read_table(sidecar).filter(~gone)
        index = digest(read_fingerprint(data.index(part)))
        about = {**read_fingerprint(sidecar), "pictures": "others", "index": index}
        pq.write_table(pictures.cast(stamped(pictures.schema, about)), sidecar, row_group_size=16)
        removals = removals.with_pictures(part, digest(about))
    removals.finished().write(data)
    return removals.finished()


def tree(folder):
    """Return {name: bytes} of every file that readers see."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
