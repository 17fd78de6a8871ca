"""Count what became of every row, across worker processes, and log it.

Each process that generates examples keeps one tally file in the report's folder, rewritten at most once a second and at
the end, so that `report(ds)` adds up whatever DataLoader workers or `num_proc` children have done so far.

REPORT_FOLDER/PID-RANDOM.json  {"rows": 120, "filtered": 20, "excluded": 2, "yielded": 70, "failed": {"timeout": 30}, …}

A run that lost its network must not become an Arrow cache; its failures tell (`is_outage`). When the network falls
silent, the fetcher notices and waits, and no picture fails (`fetch.network`). This module finds the outages that the
fetcher takes for answers: a proxy or firewall that refuses everything, a resolver or sign-in page that answers for
every host, a run with one host only. About a quarter of LAION's pictures are gone, often with their hosts; that is
normal, and a cache of the rest is right. The two differ in the order of the rows: dead hosts stand among living ones,
while in an outage all are silent for a stretch.
"""

from __future__ import annotations

import atexit
import json
import os
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laion_face_builder import progress
from laion_face_builder.files import disk_error
from laion_face_builder.images.reasons import Reason, http
from laion_face_builder.index.urls import host_of
from laion_face_builder.log import logger
from laion_face_builder.temporary import make_folder, remove_folder

#: Failures without an answer from the host: what a lost network, a broken resolver or a sign-in page look like.
SILENT = frozenset(
    {
        *(Reason.DNS, Reason.REFUSED, Reason.UNREACHABLE, Reason.CONNECTION, Reason.TIMEOUT, Reason.RESET, Reason.TLS),
        *(Reason.PRIVATE_ADDRESS, http(511)),
    }
)
#: What one answer outweighs. A stretch only adds up where more than three quarters of its pictures meet silence.
ANSWER_WEIGHS = 3
#: How much silence is an outage: a tenth of the pictures, but no fewer than 10, for which a quarter of dead links does
#: not suffice once in a million stretches, and no more than 50.
FEWEST, MOST = 10, 50
#: So many hosts that answered are remembered, the latest.
_REMEMBERED = 10_000


class Listener:
    """Counts, picture by picture, which hosts answered: one process's share of a run, in order."""

    def __init__(self) -> None:
        self._asked = 0
        self._sum = self._most = 0
        self._silent: set[str] = set()
        self._answered: dict[str, None] = {}

    def answered(self, host: str) -> None:
        """Count a picture whose host answered, even with 404."""
        self._asked += 1
        self._sum = max(0, self._sum - ANSWER_WEIGHS)
        if not self._sum:
            self._silent.clear()
        self._answered.pop(host, None)
        self._answered[host] = None
        if len(self._answered) > _REMEMBERED:
            del self._answered[next(iter(self._answered))]

    def silent(self, host: str) -> None:
        """Count a picture whose host did not answer.

        A host counts once a stretch, so that all pictures of one dead host count as one; a host that answered before
        counts each time, since it is not the picture's address that is wrong.
        """
        self._asked += 1
        if self._most >= MOST:
            return
        if host not in self._silent or host in self._answered:
            self._silent.add(host)
            self._sum += 1
            self._most = max(self._most, self._sum)

    @property
    def lost_network(self) -> bool:
        """Whether a stretch was silent for too long."""
        return self._most >= min(MOST, max(FEWEST, self._asked // 10))


def is_outage(asked: Iterable[tuple[str, str | None]]) -> bool:
    """Say whether pictures, in the order asked for, show an outage: (host, why it failed or None if it came)."""
    listener = Listener()
    for host, reason in asked:
        (listener.silent if reason in SILENT else listener.answered)(host)
    return listener.lost_network


#: The name under which a finished report lies beside the Arrow files.
REPORT_FILE = "laion_face_report.json"
#: Failures by host: so many hosts are kept at most, those with the fewest failures are put together.
MOST_HOSTS = 1000
OTHER_HOSTS = "(other hosts)"
_SECONDS_BETWEEN_WRITES = 1.0
_SECONDS_BETWEEN_LINES = 60.0
#: From so many pictures on, such a share of failures is not the web's usual rot (25 % in 2024).
_ENOUGH_TO_WARN, _NEARLY_ALL = 200, 0.9


@dataclass
class Report:
    """Counts of what became of the index rows, each counted once: rows = filtered + yielded + sum(failed).

    `excluded` are those of the filtered that the exclusion list names; a picture that it names by a hash counts as
    failed.
    """

    filtered: int = 0
    yielded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    excluded: int = 0

    @property
    def rows(self) -> int:
        """How many index rows were read, whatever became of them."""
        return self.filtered + self.yielded + self.failures

    @property
    def failures(self) -> int:
        """How many samples have no usable picture."""
        return sum(self.failed.values())

    @property
    def failure_rate(self) -> float:
        """Share of the pictures asked for that failed, 0 to 1; pictures of filtered rows are never asked for."""
        asked = self.yielded + self.failures
        return self.failures / asked if asked else 0.0

    def add(self, other: Report) -> Report:
        """Add the counts of `other` to these."""
        self.filtered += other.filtered
        self.excluded += other.excluded
        self.yielded += other.yielded
        self.failed.update(other.failed)
        self.hosts.update(other.hosts)
        return self

    def as_dict(self) -> dict[str, Any]:
        """Give the counts as plain numbers, the most frequent failures first."""
        return {
            "rows": self.rows,
            "filtered": self.filtered,
            "excluded": self.excluded,
            "yielded": self.yielded,
            "failed": dict(self.failed.most_common()),
            "hosts": dict(self.hosts.most_common()),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Make a report from what `as_dict` gave."""
        failed, hosts = Counter(values["failed"]), Counter(values["hosts"])
        return cls(values["filtered"], values["yielded"], failed, hosts, values.get("excluded", 0))

    def __str__(self) -> str:
        listed = f" ({self.excluded:,} by the exclusion list)" if self.excluded else ""
        filtered = f"{self.filtered:,} filtered{listed}"
        line = f"{self.rows:,} rows: {self.yielded:,} yielded, {filtered}, {self.failures:,} failed"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.failed.most_common())
        return f"{line} ({reasons})" if reasons else line

    def _repr_html_(self) -> str:
        """Give the counts as a table, for a notebook."""
        from markupsafe import Markup

        counts = [
            ("rows", self.rows),
            ("yielded", self.yielded),
            ("filtered", self.filtered),
            ("failed", self.failures),
        ]
        failed = [(f"failed: {reason}", count) for reason, count in self.failed.most_common()]
        row = Markup("<tr><th>{}</th><td>{:,}</td></tr>")
        return Markup("<table>{}</table>").format(Markup("").join(row.format(*one) for one in [*counts, *failed]))


class Tally:
    """The running counts of one process, written to the report's folder and logged. Use as a context manager.

    Args:
        folder: of the report; None if nothing is to be written.
        is_needed: whether the block ends with a DiskError if the counts cannot be written; else a line is logged.
    """

    def __init__(self, folder: Path | None, *, is_needed: bool = False) -> None:
        self.counts = Report()
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json" if folder is not None else None
        self._written = self._said = time.monotonic()
        self._warned = False
        self._listener = Listener()
        # Runs once: when the block ends, the iterator is dropped, or the program ends, while there is still a logger.
        self._end = weakref.finalize(self, _end, self.counts, self._listener, self._path, is_needed)

    def __enter__(self) -> Tally:
        progress.talk_unless_configured()  # in a worker process nobody else has done so
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def lost_network(self) -> bool:
        """Whether what this process heard shows an outage; see `is_outage`."""
        return self._listener.lost_network

    def filtered(self, is_excluded: bool = False) -> None:
        """Count a row that the filters dropped, and whether the exclusion list names it."""
        self.counts.filtered += 1
        self.counts.excluded += is_excluded
        self._tick()

    def yielded(self) -> None:
        """Count a row that became an example."""
        self.counts.yielded += 1
        self._tick()

    def failed(self, reason: str, url: str | None) -> None:
        """Count a row whose picture could not be used."""
        hosts = self.counts.hosts
        self.counts.failed[reason] += 1
        hosts[host_of(url) or "(no host)"] += 1
        if len(hosts) > 2 * MOST_HOSTS:
            self._put_hosts_together()
        self._tick()

    def heard(self, url: str | None, reason: str | None) -> None:
        """Note whether the web answered for a picture; `reason` is why it failed, None if it came."""
        (self._listener.silent if reason in SILENT else self._listener.answered)(host_of(url))

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._written >= _SECONDS_BETWEEN_WRITES:
            self._written = now
            with suppress(OSError):  # The last time it is said.
                _write(self.counts, self._listener, self._path)
        if now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            logger.info("%s so far", self.counts)
        if not self._warned and self.counts.failures >= _ENOUGH_TO_WARN:
            self._warn_if_nearly_all_fail()

    def _warn_if_nearly_all_fail(self) -> None:
        if self.counts.failure_rate >= _NEARLY_ALL:
            self._warned = True
            reason, count = self.counts.failed.most_common(1)[0]
            host, at_host = self.counts.hosts.most_common(1)[0]
            logger.warning(
                "%.0f %% of the pictures fail: %s %d of %d, most at %s (%d). Is the network there, and is it the right "
                "one? `laion_face.report(ds)` has all counts.",
                100 * self.counts.failure_rate,
                reason,
                count,
                self.counts.failures,
                host,
                at_host,
            )

    def _put_hosts_together(self) -> None:
        hosts = self.counts.hosts
        for host, count in hosts.most_common()[MOST_HOSTS:]:
            del hosts[host]
            hosts[OTHER_HOSTS] += count


def _end(counts: Report, listener: Listener, path: Path | None, is_needed: bool) -> None:
    try:
        _write(counts, listener, path)
    except OSError as error:
        assert path is not None, "nothing is written without a path"  # noqa: S101 - says it to the type checker
        if is_needed:
            raise disk_error(path, error) from error
        # A stream's examples are not to be lost for the sake of their count.
        logger.warning("%s. Only the report of the dataset lacks this: %s", disk_error(path, error), counts)
    if counts.failures:
        logger.info("%s", counts)


def _write(counts: Report, listener: Listener, path: Path | None) -> None:
    """Replace the tally file; do nothing once the report's folder is gone."""
    if path is None or not path.parent.is_dir():
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**counts.as_dict(), "lost_network": listener.lost_network}), encoding="utf-8")
    os.replace(partial, path)


def new_folder() -> Path:
    """Make a folder for the tallies of one dataset; it is removed when this process ends."""
    folder = make_folder("report")
    atexit.register(_remove, folder, os.getpid())
    return folder


def read(folder: Path) -> Report:
    """Read the finished report in `folder`, or else the sum over all tallies in it."""
    finished = folder / REPORT_FILE
    files = [finished] if finished.exists() else sorted(folder.glob("*-*.json"))
    total = Report()
    for file in files:
        total.add(Report.from_dict(json.loads(file.read_text(encoding="utf-8"))))
    return total


def lost_network(folder: Path) -> bool:
    """Say whether any process that has a tally in `folder` lost its network; see `is_outage`."""
    return any(json.loads(file.read_text(encoding="utf-8"))["lost_network"] for file in folder.glob("*-*.json"))


def keep(report: Report, folder: Path) -> None:
    """Write a finished report into `folder`."""
    (folder / REPORT_FILE).write_text(json.dumps(report.as_dict()) + "\n", encoding="utf-8")


def _remove(folder: Path, owner: int) -> None:
    # A forked worker inherits the exit handler but not the folder.
    if os.getpid() == owner:
        remove_folder(folder)
