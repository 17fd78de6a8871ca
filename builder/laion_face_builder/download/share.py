"""Download a share of a part's shards, in one of several jobs that see the same DATA_DIR, such as a Slurm array's.

    laion-face download 20M --parts 0 --data-dir laion-face --shards 3/16     # the shards 3, 19, 35 …

Each job makes its own, whatever the others do, and a job that is run again makes what is missing of its own. A download
without `--shards` comes last: it makes all that is missing, and the sidecar; meanwhile no other job may run.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass

from laion_face_builder.download.options import DownloadOptions
from laion_face_builder.download.part import begun, check_space, withdraw_sidecar
from laion_face_builder.download.round import Round
from laion_face_builder.download.rounds import PartFiles, RowFilters, opened_index, rows_of_round
from laion_face_builder.download.sidecar import PartResult
from laion_face_builder.errors import OptionError
from laion_face_builder.fetch.guard import refuse_user_proxy
from laion_face_builder.files import disk_errors, locked
from laion_face_builder.images import reasons
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.upstream import kept

logger = logging.getLogger("laion_face")


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
    waiting = f"part {part:05d}: another process downloads it; waiting for that"
    with kept.at_work(data) as here:
        refuse_user_proxy(os.environ, options.trust_proxy)
        files = PartFiles(here, part)
        with opened_index(here, part, index) as rows:
            with locked(here.images_fingerprint(part), waiting):
                made_with = begun(files, rows, options, filters)
                whole = Round(files, 0, rows_of_round(files, 0), options, made_with)
                withdraw_sidecar(files, whole.missing_tars(share))
            check_space(files, whole.samples_of(whole.missing_of(share)), options)
            with disk_errors(here.tars(part)):
                whole.run(rows, share)
            result = _result(whole, share)
    logger.info("part %05d, shards %s: %s", part, share, result)
    return result


def _result(whole: Round, share: Share) -> PartResult:
    failures: Counter[str] = Counter()
    size = 0
    for result in whole.results(share):
        failures.update(result.statuses)
        size += result.bytes
    samples, ok = failures.total(), failures.pop(reasons.OK, 0)
    return PartResult(samples, ok, 0, failures, size, 0)
