"""Download the pictures of one part: the plan, the rounds, the sidecar.

Workers of ours fetch them and write them as img2dataset does; what is done is judged by the files alone (see `plan` for
them, and `shard_files` for when a shard counts). A download that was killed anywhere goes on where it was: the plan and
the rounds are fixed before anything is fetched, whole shards are kept, everything else is made again.

Several jobs that see the same DATA_DIR, such as a Slurm array's, can each download a share of a part's shards.

    laion-face download 20M --parts 0 --data-dir laion-face --shards 3/16     # the shards 3, 19, 35 …

Each job makes its own, whatever the others do, and a job that is run again makes what is missing of its own. A download
without `--shards` comes last: it makes all that is missing, and the sidecar; meanwhile no other job may run.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass

from laion_face_builder.download.cleaning import clean_tars
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.download.numbering import Numbering, forget_samples, has_ids, learn_samples
from laion_face_builder.download.plan import (
    PartFiles,
    RowFilters,
    Rows,
    opened_index,
    rows_of_round,
    rows_to_retry,
    write_plan,
    write_round,
)
from laion_face_builder.download.rewriting import finish_rewriting
from laion_face_builder.download.round import Round
from laion_face_builder.download.shard_files import remove_half_written
from laion_face_builder.download.sidecar import (
    CheckedTar,
    PartResult,
    result_of,
    rows_with,
    sidecar_is_of,
    sidecar_table,
    write_sidecar,
)
from laion_face_builder.download.workers import nobody_works
from laion_face_builder.errors import BadFile, DownloadError, OptionError, StateConflict
from laion_face_builder.fetch.addresses import refuse_user_proxy
from laion_face_builder.files import (
    Fingerprint,
    canonical_json,
    digest,
    disk_errors,
    disk_free,
    human_size,
    locked,
    make_fingerprint,
    needing,
    remove_partials,
    written_whole,
)
from laion_face_builder.images.reasons import Reason, hint_on
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import as_made, lost_by, settled
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import table_of
from laion_face_builder.sources import data_store

__all__ = ["DownloadOptions", "PartResult", "download_part"]
#: Mean over the pictures that are asked for, dead links included; LAION-Face's authors count 2 TB for 50 million.
_BYTES_A_SAMPLE = 60_000


def download_part(
    data: DataDir,
    part: int,
    options: DownloadOptions | None = None,
    filters: RowFilters | None = None,
    retry_failed: int = 0,
    *,
    index: IndexPart | None = None,
    clean: bool = False,
) -> PartResult:
    """Download the pictures of a part, or go on with it; the sidecar is up to date when this returns.

    Args:
        data: where the part lives.
        part: its number.
        options: how; all defaults if None.
        filters: only index rows that pass are fetched; all if None.
        retry_failed: how many rounds over the failed samples there are to be in all. Those that were done before count,
            so the same call again fetches nothing, and one that was interrupted is finished first.
        index: the part's index if it does not lie in `data`.
        clean: rewrite tars without broken pictures, and without those that a later tar has too.

    Raises:
        NotPrepared: there is no index.
        StateConflict: the part was started with other filters, another index, another size of shards, or with other
            resizing or blurring; or a removal from `data` was begun and is not finished.
        ShardsGivenUp: processes keep dying and no sample is to blame; DownloadError: the disk is too small;
            NetworkOutage: no host answers; DiskError: the disk is full, or read-only.
        OptionError: the environment names a proxy that is not trusted, or img2dataset cannot write to such a path.
    """
    options = options or DownloadOptions()
    if clean and data.address is not None:
        raise OptionError(f"{data.where}: only tars in a folder can be cleaned: copy them here first")
    waiting = f"part {part}: another process downloads it; waiting for that"
    with data_store.at_work(data) as here:
        refuse_user_proxy(os.environ, options.fetch.trust_proxy)
        files = PartFiles(here, part)
        with opened_index(here, part, index) as rows, locked(here.images_fingerprint(part), waiting):
            settled(here)
            made_with = begun(files, rows, options, filters)
            _remove_leftovers(files)
            with disk_errors(here.tars(part)):
                result = _rounds(files, rows, options, made_with, retry_failed)
                if clean and clean_tars(files):
                    result = _rounds(files, rows, options, made_with, retry_failed)
                return result


def _rounds(
    files: PartFiles, index: IndexPart, options: DownloadOptions, made_with: Fingerprint, retry_failed: int
) -> PartResult:
    tars: list[CheckedTar] = []
    numbering, done = Numbering.of(files, index), -1
    numbering.say_lacking(files)
    for number in rounds_in_all(files, retry_failed):
        rows = _rows(files, number, made_with, numbering)
        if number and not len(rows):
            break
        this_round = Round(files, number, rows, options, made_with)
        if this_round.missing:
            _say_space(files, this_round.samples_to_fetch)
            check_space(files, this_round.samples_to_fetch, options)
            withdraw_sidecar(files, this_round.missing_tars())
            with needing(bytes_of(this_round.samples_to_fetch)), disk_errors(files.data.tars(files.part)):
                this_round.run(index)
        tars += this_round.tars()
        done = number
        if not _is_complete(files, number + 1, options, made_with):
            _write_sidecar(files, index, numbering, made_with, tars)
    result = result_of(files.data.sidecar(files.part), done)
    logger.info("part %d: %s", files.part, result)
    if not result.ok and (hint := hint_on(result.failures)):
        logger.warning("part %d: %s. --retry-failed asks again", files.part, hint)
    return result


def _is_complete(files: PartFiles, number: int, options: DownloadOptions, made_with: Fingerprint) -> bool:
    """Say whether this round was finished before: then the sidecar that matters is the one with it."""
    if not data_store.brought(files.data, files.round(number)):
        return False
    return not Round(files, number, rows_of_round(files, number), options, made_with).missing


def withdraw_sidecar(files: PartFiles, missing: list[str]) -> None:
    """Remove the sidecar if it names tars that are about to be made again: its offsets would be wrong."""
    sidecar = files.data.sidecar(files.part)
    if not data_store.brought(files.data, sidecar):
        return
    named = table_of(sidecar, ["tar"], read_dictionary=["tar"])["tar"].unique().to_pylist()
    if not {*missing}.isdisjoint(named):
        logger.warning("%s: withdrawn until tars that have gone or changed are downloaded again", sidecar)
        sidecar.unlink()
        data_store.remove_afar(files.data, sidecar)


def _rows(files: PartFiles, number: int, made_with: Fingerprint, numbering: Numbering) -> Rows:
    """Return the rows of a round; those of a new round are all that failed so far and may still come."""
    if number and not data_store.brought(files.data, files.round(number)):
        failed = rows_to_retry(table_of(files.data.sidecar(files.part), ["status"])["status"])
        rows = numbering.of_index[failed]
        if not len(rows):
            return rows
        write_round(files, number, rows, make_fingerprint("round", number=number, images=digest(made_with)))
    return rows_of_round(files, number)


def _write_sidecar(
    files: PartFiles, index: IndexPart, numbering: Numbering, made_with: Fingerprint, tars: list[CheckedTar]
) -> None:
    path, lost = files.data.sidecar(files.part), lost_by(index.fingerprint)
    if data_store.brought(files.data, path) and sidecar_is_of(path, tars, numbering, lost):
        return
    plan = table_of(data_store.bring(files.data, files.plan), ["status"])["status"]
    # Some show only when they are asked for, by what their hosts give, or by their addresses, which no plan knows.
    numbering = Numbering(numbering.of_index, forget_samples(files, rows_with(tars, Reason.TAKEN_DOWN)))
    how = {name: made_with[name] for name in ("resize", "blur_faces") if name in made_with} | numbering.stamp
    how |= {"lost": lost} if lost else {}
    fingerprint = make_fingerprint(
        "sidecar", part=files.part, index=made_with["index"], images=digest(made_with), **how
    )
    write_sidecar(path, sidecar_table(plan, numbering, tars), fingerprint, tars)
    data_store.send(files.data, path)


def bytes_of(samples: int) -> int:
    """Estimate the bytes on disk of so many samples."""
    return samples * _BYTES_A_SAMPLE


def begun(files: PartFiles, index: IndexPart, options: DownloadOptions, filters: RowFilters | None) -> Fingerprint:
    """Claim the part for this download, write its plan, and return its fingerprint; the caller holds the part's lock.

    Raises:
        StateConflict, BadFile: as `claimed`.
    """
    wanted = claimed(files, index, options, filters)
    path = files.data.images_fingerprint(files.part)
    if not path.exists():
        with written_whole(path) as partial:
            partial.write_text(canonical_json(wanted) + "\n", encoding="utf-8")
        data_store.send(files.data, path)
    if not has_plan(files, wanted):
        if lost_by(index.fingerprint) and data_store.below(files.data, files.data.tars(files.part)):
            raise StateConflict(
                f"{files.plan}: it is not there, or of another download, and rows have left the index, by which the "
                f"tars cannot be told any more. Bring it back, or move {files.data.tars(files.part)}* away to start "
                "over."
            )
        write_plan(files, index, filters, _plan_fingerprint(wanted), options.blur_faces)
    elif not has_ids(files):
        learn_samples(files, index)
    return wanted


def rounds_in_all(files: PartFiles, retry_failed: int) -> range:
    """Return the numbers of the rounds that were asked for, and of those that were started."""
    return range(1 + max(retry_failed, files.rounds_started()))


def claimed(files: PartFiles, index: IndexPart, options: DownloadOptions, filters: RowFilters | None) -> Fingerprint:
    """Return the fingerprint of what is to be on disk; refuse to mix it with something else that is there.

    Raises:
        StateConflict: something else is there; BadFile: nothing says what is.
    """
    wanted = make_fingerprint(
        "images",
        part=files.part,
        index=digest(as_made(index.fingerprint)),
        filters=filters.as_dict() if filters is not None else {},
        **options.defining(),
    )
    path = files.data.images_fingerprint(files.part)
    folder = files.data.tars(files.part)
    if data_store.brought(files.data, path):
        _require_same(files, json.loads(canonical_json(wanted)))
    elif data_store.below(files.data, folder):
        raise StateConflict(
            f"{folder}: there are files, but nothing says what they were made with. Move the folder away, or use it as "
            "it is with images=FOLDER."
        )
    return wanted


def _require_same(files: PartFiles, wanted: Fingerprint) -> None:
    path = files.data.images_fingerprint(files.part)
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BadFile(
            path, found="no JSON", expected="what the part was made with", way_out="Move it and its folder away."
        ) from error
    differ = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if differ:
        changes = "; ".join(f"{name}: {found.get(name)} on disk, {wanted.get(name)} now" for name in differ)
        raise StateConflict(
            f"{path}: the part was downloaded with something else ({changes}). Use what is on disk by giving the same "
            f"again, choose another data_dir, or move {files.data.tars(files.part)}* away to start over."
        )


def has_plan(files: PartFiles, made_with: Fingerprint) -> bool:
    """Say whether this download's plan is there."""
    return data_store.fingerprint(files.data, files.plan) == _plan_fingerprint(made_with)


def _plan_fingerprint(made_with: Fingerprint) -> Fingerprint:
    return make_fingerprint("plan", images=digest(made_with))


def _remove_leftovers(files: PartFiles) -> None:
    """Remove what a killed run left half done, but no other part's files: those may still be written."""
    finish_rewriting(files)
    if files.checked.is_dir():
        remove_partials(files.checked)
    folder = files.data.tars(files.part)
    remove_partials(folder.parent, f"{folder.name}.")
    with nobody_works(files.writers) as is_free:
        for number in range(files.rounds_started() + 1) if is_free else ():
            remove_half_written(files.tars(number))


def _say_space(files: PartFiles, samples: int) -> None:
    data, needed = files.data, human_size(bytes_of(samples))
    room = f"{human_size(disk_free(data.tars(files.part)))} free" if data.address is None else f"kept at {data.where}"
    logger.info("part %d: %d pictures to fetch, about %s; %s", files.part, samples, needed, room)


def check_space(files: PartFiles, samples: int, options: DownloadOptions) -> None:
    """Raise DownloadError if the disk is clearly too small for so many samples; an address's room is not known.

    Raises:
        DownloadError: the disk is too small, and `ignore_space` is not set.
    """
    folder = files.data.images_fingerprint(files.part).parent
    needed, free = bytes_of(samples), disk_free(folder)
    if files.data.address is None and needed > 2 * free and not options.ignore_space:
        raise DownloadError(
            f"{folder}: about {human_size(needed)} needed, {human_size(free)} free. Choose a larger disk, fewer parts "
            "or stricter filters, or use `laion-face download` with --ignore-space."
        )


@dataclass(frozen=True)
class Share:
    """Every `of`th shard, from `number` on."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Parse a share such as "3/16".

        Raises:
            OptionError: `text` is not of that form.
        """
        found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
        number, of = map(int, found.groups()) if found else (0, 0)
        if not number < of:
            raise OptionError(
                f"shards={text!r}: expected I/N, from 0/N to N-1/N, such as 3/16 for the shards 3, 19, 35 …"
            )
        return cls(number, of)

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, int) and shard % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def download_share(
    data: DataDir,
    part: int,
    share: Share,
    options: DownloadOptions,
    filters: RowFilters | None = None,
    *,
    index: IndexPart | None = None,
) -> PartResult:
    """Download this share of a part's first round; return what has become of it. No sidecar is written.

    Raises:
        NotPrepared, StateConflict, DownloadError, NetworkOutage, DiskError, OptionError: as `part.download_part`.
    """
    waiting = f"part {part}: another process downloads it; waiting for that"
    with data_store.at_work(data) as here:
        refuse_user_proxy(os.environ, options.fetch.trust_proxy)
        files = PartFiles(here, part)
        with opened_index(here, part, index) as rows:
            with locked(here.images_fingerprint(part), waiting):
                settled(here)
                made_with = begun(files, rows, options, filters)
                whole = Round(files, 0, rows_of_round(files, 0), options, made_with)
                withdraw_sidecar(files, whole.missing_tars(share))
            check_space(files, whole.samples_of(whole.missing_of(share)), options)
            with disk_errors(here.tars(part)):
                whole.run(rows, share)
            result = _result(whole, share)
    logger.info("part %d, shards %s: %s", part, share, result)
    return result


def _result(whole: Round, share: Share) -> PartResult:
    failures: Counter[str] = Counter()
    size = 0
    for result in whole.results(share):
        failures.update(result.statuses)
        size += result.bytes
    samples, ok = failures.total(), failures.pop(Reason.OK, 0)
    return PartResult(samples, ok, 0, failures, size, 0)
