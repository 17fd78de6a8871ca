"""What became of every row: counts that survive worker processes.

Each process that generates examples keeps one tally file in the report's folder, rewritten at most once a second and at
the end of each shard, so that `report(ds)` adds up whatever DataLoader workers or `num_proc` children have done so far.

REPORT_FOLDER/PID-RANDOM.json     {"rows": 120, "filtered": 20, "yielded": 70, "failed": {"http_404": 30}}
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: The name under which a finished report lies beside the Arrow files.
REPORT_FILE = "laion_face_report.json"
_SECONDS_BETWEEN_WRITES = 1.0


@dataclass
class Report:
    """rows = filtered + yielded + sum(failed) + rows under way: nothing vanishes without being counted."""

    rows: int = 0
    filtered: int = 0
    yielded: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def failures(self) -> int:
        """Samples whose picture could not be used."""
        return sum(self.failed.values())

    def add(self, other: Report) -> Report:
        """Adds the counts of `other` to these."""
        self.rows += other.rows
        self.filtered += other.filtered
        self.yielded += other.yielded
        self.failed.update(other.failed)
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, failures most frequent first."""
        return {
            "rows": self.rows,
            "filtered": self.filtered,
            "yielded": self.yielded,
            "failed": dict(self.failed.most_common()),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """The reverse of `as_dict`."""
        return cls(values["rows"], values["filtered"], values["yielded"], Counter(values["failed"]))

    def __str__(self) -> str:
        line = f"{self.rows:,} rows: {self.yielded:,} yielded, {self.filtered:,} filtered, {self.failures:,} failed"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.failed.most_common())
        return f"{line} ({reasons})" if reasons else line


class Tally:
    """The running counts of one process, written to the report's folder. Use as a context manager."""

    def __init__(self, folder: Path | None) -> None:
        self.counts = Report()
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json" if folder is not None else None
        self._written = time.monotonic()

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def tick(self) -> None:
        """Counts one row, and writes if it is time to."""
        self.counts.rows += 1
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Replaces the tally file; does nothing once the report's folder is gone."""
        self._written = time.monotonic()
        if self._path is None or not self._path.parent.is_dir():
            return
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.counts.as_dict()))
        os.replace(partial, self._path)


def new_folder() -> Path:
    """A folder for the tallies of one dataset; it goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="laion-face-report-"))
    atexit.register(_remove, folder, os.getpid())
    return folder


def read(folder: Path) -> Report:
    """The sum over all tallies in `folder`, or the finished report in it."""
    finished = folder / REPORT_FILE
    files = [finished] if finished.exists() else sorted(folder.glob("*-*.json"))
    total = Report()
    for file in files:
        total.add(Report.from_dict(json.loads(file.read_text())))
    return total


def keep(report: Report, folder: Path) -> None:
    """Writes a finished report into `folder`."""
    (folder / REPORT_FILE).write_text(json.dumps(report.as_dict()) + "\n")


def _remove(folder: Path, owner: int) -> None:
    # A forked worker inherits the exit handler but not the folder.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
