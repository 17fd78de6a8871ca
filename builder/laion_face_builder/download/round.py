"""One round of a part: img2dataset, started until every shard is whole, and our pass over each finished shard.

A shard is finished once our pass has looked through it: the pass refuses what is not whole (`shards.require_whole`),
and its file names the stats that it saw, so that a shard downloaded again is looked through again.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder import progress
from laion_face_builder.download.check import CheckJob
from laion_face_builder.download.checker import Checker, child_environment
from laion_face_builder.download.img2dataset_child import Img2datasetChild, img2dataset_environment
from laion_face_builder.download.options import DownloadOptions
from laion_face_builder.download.orphans import wait_for_orphans
from laion_face_builder.download.rounds import CARRIED, PartFiles, Rows, write_list
from laion_face_builder.download.shards import ShardFiles, remove_unfinished, shard_sizes
from laion_face_builder.download.sidecar import CheckedTar
from laion_face_builder.download.way_out import way_out
from laion_face_builder.errors import DownloadError
from laion_face_builder.files import Fingerprint, digest, disk_error, human_size, make_fingerprint, written_whole
from laion_face_builder.images import reasons
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.proxy.guard_proxy import GuardProxy

logger = logging.getLogger("laion_face")

_POLL_SECONDS = 0.25
_REASONS_SHOWN = 3


class Round:
    """One round; `run` ends when all of its shards are finished.

    Args:
        files: of the part.
        number: 0, or that of the retry.
        rows: the index rows that it fetches, ascending.
        options: how.
        made_with: the fingerprint of the part's downloads.
    """

    def __init__(
        self, files: PartFiles, number: int, rows: Rows, options: DownloadOptions, made_with: Fingerprint
    ) -> None:
        self._files = files
        self._number = number
        self._rows = rows
        self._options = options
        self._context = {"images": digest(made_with), "round": number, "max_pixels": options.max_pixels}
        self._folder = files.tars(number)
        self._sizes = shard_sizes(len(rows), options.samples_per_shard)
        self._statuses: Counter[str] = Counter()
        self._bytes = 0
        self._queued: dict[str, int] = {}
        self._finished = {shard for shard in range(len(self._sizes)) if self._is_finished(shard)}

    @property
    def missing(self) -> list[int]:
        """The shards that are not finished."""
        return [shard for shard in range(len(self._sizes)) if shard not in self._finished]

    @property
    def unchecked(self) -> list[int]:
        """Those of the missing ones whose files are all there: they are looked through, and fetched if they are bad."""
        return [shard for shard in self.missing if self._job(shard) is not None]

    def samples_of(self, shards: Iterable[int]) -> int:
        """How many samples some shards have."""
        return sum(self._sizes[shard] for shard in shards)

    @property
    def missing_samples(self) -> int:
        """The samples in them."""
        return self.samples_of(self.missing)

    def missing_tars(self) -> list[str]:
        """Their tars, as the sidecar names them."""
        return [self._files.tar_name(self._number, shard) for shard in self.missing]

    def tars(self) -> list[CheckedTar]:
        """The checked tars of the finished shards."""
        return [
            CheckedTar(self._files.tar_name(self._number, shard), self._files.checked_tar(self._number, shard))
            for shard in sorted(self._finished)
        ]

    def run(self, index: IndexPart) -> None:
        """Downloads and checks what is missing.

        Raises:
            DownloadError: img2dataset was started again and again and finished nothing more; DiskError: no room.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        wait_for_orphans(self._files.writers)
        with self._bar() as bar, Checker(self._options.check_processes, child_environment()) as checker:
            self._settle(checker, bar)
            vain = 0
            while self.missing:
                before = len(self._finished)
                said = self._attempt(index, checker, bar)
                self._settle(checker, bar)
                vain = 0 if len(self._finished) > before else vain + 1
                if vain > self._options.restarts:
                    raise DownloadError(self._gave_up(said))
                if self.missing:
                    logger.warning("img2dataset ended with %d shards missing; starting it again", len(self.missing))

    def _attempt(self, index: IndexPart, checker: Checker, bar: Any) -> str:
        """Runs img2dataset once; gives its last words."""
        self._remove_unfinished()
        options, files = self._options, self._files
        settings = dict(options.settings()) | {
            # A process works on one shard at a time, and every process pays seconds for its imports.
            "processes_count": min(options.processes_count, len(self.missing)),
            "url_list": str(files.list),
            "output_folder": str(self._folder),
            "save_additional_columns": list(CARRIED),
        }
        try:
            write_list(files.list, index, self._rows, options.blur_faces)
            with way_out(options) as proxy:
                environment = img2dataset_environment(files.writers, proxy.url)
                with Img2datasetChild(settings, environment, files.log) as child:
                    self._watch(child, proxy, checker, bar)
                return child.last_words()
        finally:
            files.list.unlink(missing_ok=True)

    def _watch(self, child: Img2datasetChild, proxy: GuardProxy, checker: Checker, bar: Any) -> None:
        running = True
        while running and self.missing:
            running = child.running
            self._note_seen(proxy)
            self._queue(checker, strict=False)
            self._collect(checker, bar)
            if child.disk_error is not None:
                # It counts such a shard as failed, and would be started in vain again and again.
                raise disk_error(self._folder / "*.tar", OSError(child.disk_error, os.strerror(child.disk_error)))
            bar.tick()
            if child.still_for > self._options.stuck_after:
                logger.warning(
                    "part %05d: img2dataset is stuck, nothing changed for %g s; ending it",
                    self._files.part,
                    self._options.stuck_after,
                )
                return
            time.sleep(_POLL_SECONDS)

    def _remove_unfinished(self) -> None:
        for shard in self.missing:
            self._files.checked_tar(self._number, shard).unlink(missing_ok=True)
            self._files.seen_stats(self._number, shard).unlink(missing_ok=True)
        self._queued.clear()
        remove_unfinished(self._folder, self._finished)

    def _settle(self, checker: Checker, bar: Any) -> None:
        """Has everything checked that looks finished."""
        self._queue(checker, strict=True)
        while checker.busy:
            self._collect(checker, bar)
            time.sleep(_POLL_SECONDS / 5)

    def _note_seen(self, proxy: GuardProxy) -> None:
        """Notes which shards were finished while the proxy was there: without it, every picture would be a failure."""
        found = {shard: ShardFiles(self._folder, shard).stats_digest() for shard in self.missing}
        proxy.stats()  # raises if it has gone
        for shard, stats in found.items():
            seen = self._files.seen_stats(self._number, shard)
            if stats is not None and not seen.exists():
                with written_whole(seen) as partial:
                    partial.write_text(stats, encoding="utf-8")

    def _queue(self, checker: Checker, *, strict: bool) -> None:
        """Has finished shards checked; without `strict`, one that came after the last look at the proxy waits."""
        for shard in self.missing:
            if shard in self._queued.values():
                continue
            job = self._job(shard)
            if job is not None and (strict or not job.strict):
                self._queued[job.tar] = shard
                checker.add(job)

    def _collect(self, checker: Checker, bar: Any) -> None:
        for job in checker.poll():
            shard = self._queued[job.tar]
            if job.is_done and shard not in self._finished:
                self._finished.add(shard)
                self._count(Path(job.out))
                bar.update(self._sizes[shard])
                bar.note(*self._notes())

    def _job(self, shard: int) -> CheckJob | None:
        """The check of a shard that has all of its files; None while it has not."""
        files = ShardFiles(self._folder, shard)
        stats = files.stats_digest()
        if stats is None or not files.tar.exists():
            return None
        seen = self._files.seen_stats(self._number, shard)
        made_from = {**self._context, "shard": shard, "stats": stats, "tar_bytes": files.tar.stat().st_size}
        return CheckJob(
            tar=str(files.tar),
            out=str(self._files.checked_tar(self._number, shard)),
            id_column="row",
            samples=self._sizes[shard],
            strict=not seen.exists() or seen.read_text(encoding="utf-8") != stats,
            max_pixels=self._options.max_pixels,
            fingerprint=make_fingerprint("checked", **made_from),
        )

    def _is_finished(self, shard: int) -> bool:
        job = self._job(shard)
        if job is None or not job.is_done:
            return False
        self._count(Path(job.out))
        return True

    def _count(self, checked: Path) -> None:
        table = pq.read_table(checked, columns=["status", "length"])
        for row in pc.value_counts(table["status"]).to_pylist():
            self._statuses[row["values"]] += row["counts"]
        self._bytes += pc.sum(table["length"]).as_py() or 0

    def _notes(self) -> list[str]:
        done = sum(self._statuses.values())
        failures = Counter(self._statuses)
        good = failures.pop(reasons.OK, 0)
        named = [f"{reason} {count}" for reason, count in failures.most_common(_REASONS_SHOWN)]
        return [f"{good / max(done, 1):.1%} good", human_size(self._bytes), *named]

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        name = f"part {self._files.part:05d}" + (f" retry {self._number}" if self._number else "")
        done = len(self._rows) - self.missing_samples
        with progress.bar(name, len(self._rows), "picture", done=done) as bar:
            yield bar

    def _gave_up(self, said: str) -> str:
        shards = ", ".join(f"{shard:05d}" for shard in self.missing[:5])
        more = ", …" if len(self.missing) > 5 else ""
        return (
            f"{self._folder}: img2dataset was started {self._options.restarts + 1} times and did not finish shards "
            f"{shards}{more}. Its last words: {said}. More in {self._files.log}; run the same command to go on."
        )
