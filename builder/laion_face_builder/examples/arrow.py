"""The Arrow cache of a dataset: what lies in it, which runs may be kept as one, and how an empty one is read.

datasets writes into FOLDER.incomplete and renames it. Whatever belongs to the cache is therefore put in there before,
and what must not be kept is refused before.

FOLDER/
  laion_face-train*.arrow      datasets' own, as
  dataset_info.json            says
  laion_face_report.json       what became of the rows in the run that made these
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_reader import ArrowReader
from filelock import Timeout

from laion_face_builder.errors import DiskError, LaionFaceError, NotPrepared, SourceError
from laion_face_builder.examples import _compat, report
from laion_face_builder.examples.report import Report
from laion_face_builder.examples.walk import Plan
from laion_face_builder.images.reasons import Reason, hint_on
from laion_face_builder.log import logger
from laion_face_builder.options import Options

REPORT_KEY = "laion_face_report"
_INFO_FILE = "dataset_info.json"


def discard_unfit(folder: str, dataset_name: str, options: Options) -> None:
    """Remove what makes datasets take `folder` for a finished cache, if it is none: datasets then makes it anew.

    If another process is writing the cache, wait for it first.
    """
    if "://" in folder:
        return
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    lock = _compat.lock_of_cache(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: another process is writing it; waiting for that", folder)
        lock.acquire()
    try:
        if (Path(folder) / _INFO_FILE).exists() and not _is_fit(Path(folder), dataset_name, options):
            logger.warning("%s: is not whole, or has nothing but failures in it; it is made again", folder)
            (Path(folder) / _INFO_FILE).unlink()
    finally:
        lock.release()


def _is_fit(folder: Path, dataset_name: str, options: Options) -> bool:
    """Say whether a cache is whole and worth keeping.

    A removal that was cut short leaves some of the files, and earlier versions kept failed runs.
    """
    try:
        info = datasets.DatasetInfo.from_directory(str(folder))
        reader, splits = ArrowReader(str(folder), info), list((info.splits or {}).values())
        files = [file for one in splits for file in reader.get_file_instructions(dataset_name, one.name, splits)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # whatever is in it
        return False
    if not splits or not all(Path(file["filename"]).exists() for file in files):
        return False
    has_report = (folder / report.REPORT_FILE).exists()
    if not has_report:
        return bool(files)
    return why_not_kept(report.read(folder), False, options) is None


def emptied(folder: str) -> None:
    """Remove what a killed run left in the folder that datasets is about to write into."""
    if not folder.endswith(".incomplete") or not Path(folder).is_dir():
        return
    for path in Path(folder).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep(plan: Plan, folder: str) -> None:
    """Put the report of a run into the folder that it wrote, before that becomes the cache.

    Args:
        plan: what was run; its processes have counted in its report_folder.
        folder: where the files are; one on a remote disk gets no report.

    Raises:
        SourceError, NotPrepared, DiskError: what was written must not be kept.
    """
    tallies = plan.report_folder or Path(folder)
    counts = report.read(tallies)
    if error := why_not_kept(counts, report.lost_network(tallies), plan.options):
        raise error
    if Path(folder).is_dir():
        report.keep(counts, Path(folder))
    logger.info("%s", counts)


def why_not_kept(counts: Report, is_lost: bool, options: Options) -> LaionFaceError | None:
    """Say why the result of a run must not stay as an Arrow cache; None if it may.

    A run whose filters keep nothing may stay. One that lost its network may not, nor one whose pictures all failed,
    unless they came from tars and on_error is "null": the tars will give the same tomorrow.
    """
    asked = counts.yielded + counts.failures
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.failed.most_common())
    hint = hint_on(counts.failed)
    if options.images == "fetch" and is_lost and not hint:
        return SourceError(
            f"images='fetch': the network was lost on the way, {counts.failures:,} of {asked:,} pictures failed "
            f"({reasons}). Nothing of this run was cached. Load the dataset again once the network is back; with "
            "cache_images=FOLDER what came is kept, and images='download' asks again for what failed."
        )
    if unread := counts.failed[Reason.TAR_UNREADABLE]:
        place = options.data.tars(options.parts[0]).parent
        return DiskError(
            f"{place}: {unread:,} pictures could not be read from their tars (permission, or a disk that "
            "fails). Nothing of this run was cached, since it would lack them ever after. Put it right, and load the "
            "dataset again; streaming=True counts them and goes on."
        )
    if options.images == "fetch" and counts.failures and (is_lost or not counts.yielded):
        failed = f"{counts.failures:,}" if counts.yielded else "all"
        hint = hint or "Is the network there, and may it reach these hosts? Load the dataset again once it does"
        return SourceError(
            f"images='fetch': {failed} of {asked:,} pictures failed ({reasons}). Nothing of this run was "
            f"cached. {hint}."
        )
    if counts.yielded or not counts.failures:
        return None
    if options.on_error == "null":
        return None
    return NotPrepared(
        f"{options.data.root}: all of {asked:,} pictures of these parts failed ({reasons}). Nothing of this run was "
        "cached. Give on_error='null' for the rows without pictures, or download again with --retry-failed."
    )


def empty(info: datasets.DatasetInfo, split: Any) -> datasets.Dataset:
    """Give a dataset without examples, for filters that keep none: datasets itself would raise an error.

    Raises:
        ValueError: datasets', for a split that is not there.
    """
    asked = split if isinstance(split, datasets.ReadInstruction) else datasets.ReadInstruction.from_spec(str(split))
    asked.to_absolute({name: one.num_examples for name, one in info.splits.items()})
    columns: dict[str, list[Any]] = {name: [] for name in info.features}
    return datasets.Dataset.from_dict(columns, features=info.features, info=info, split=str(split))


def noted(dataset: datasets.Dataset, folder: str) -> datasets.Dataset:
    """Note in `dataset` where its report is, if it is held in memory; otherwise its files lead there."""
    if not dataset.cache_files:
        _compat.note(dataset, REPORT_KEY, folder)
    return dataset
