"""Runs checks of tars beside a download: a bounded number of processes, polled, ended with the block."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from laion_face_builder.children import python
from laion_face_builder.download import orphans
from laion_face_builder.download.check import CheckJob, as_json
from laion_face_builder.errors import DownloadError

logger = logging.getLogger("laion_face")

#: Decoding gives way to the download.
_NICENESS = 5
_MOST_A_PROCESS = 16


@dataclass
class _Running:
    process: subprocess.Popen[str]
    talk: IO[str]
    jobs: list[CheckJob]


class Checker:
    """A queue of `CheckJob`s and the processes that do them. Use as a context manager.

    Args:
        processes: how many at a time.
        environment: of the processes; see `child_environment`.
    """

    def __init__(self, processes: int, environment: Mapping[str, str]) -> None:
        self._processes = processes
        self._environment = environment
        self._waiting: deque[CheckJob] = deque()
        self._running: list[_Running] = []
        self._crashed: set[str] = set()

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for running in self._running:
            running.process.kill()
            running.process.wait()
            running.talk.close()
        self._running.clear()

    @property
    def busy(self) -> bool:
        """Whether anything is queued or being done."""
        return bool(self._waiting or self._running)

    def add(self, job: CheckJob) -> None:
        """Queues a job."""
        self._waiting.append(job)

    def poll(self) -> list[CheckJob]:
        """Starts what can be started; gives the jobs that have ended, whether their tars were whole or not.

        Raises:
            DownloadError: a check crashed twice on the same tar.
        """
        ended = [running for running in self._running if running.process.poll() is not None]
        self._running = [running for running in self._running if running not in ended]
        jobs = [job for running in ended for job in self._reap(running)]
        for running in self._running:
            done = [job for job in running.jobs if job.is_done]
            running.jobs = [job for job in running.jobs if job not in done]
            jobs += done
        while self._waiting and len(self._running) < self._processes:
            self._start()
        return jobs

    def _start(self) -> None:
        share = -(-len(self._waiting) // (self._processes - len(self._running)))
        # A tar that crashed its check once is tried alone, so that the crash can be told from its neighbours'.
        count = 1 if self._crashed else min(share, _MOST_A_PROCESS)
        jobs = [self._waiting.popleft() for _ in range(count)]
        talk = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed when it is reaped
        process = subprocess.Popen(  # noqa: S603 - our own module
            python("-m", "laion_face_builder.download.check"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=talk,
            text=True,
            encoding="utf-8",
            env=dict(self._environment),
            cwd=Path(jobs[0].out).parent,
            start_new_session=True,
        )
        self._running.append(_Running(process, talk, jobs))
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        # One that died at once is seen, and tried again, when it is reaped.
        with suppress(BrokenPipeError), process.stdin or nullcontext() as stdin:
            if stdin is not None:
                stdin.write(as_json(jobs))

    def _reap(self, running: _Running) -> list[CheckJob]:
        running.talk.seek(0)
        said = running.talk.read()
        running.talk.close()
        if running.process.returncode == 0:
            for line in said.splitlines():
                logger.warning("%s", line)
            return running.jobs
        for job in running.jobs:
            self._retry(job, running, said)
        return [job for job in running.jobs if job.is_done]

    def _retry(self, job: CheckJob, running: _Running, said: str) -> None:
        if job.is_done:
            return
        if job.tar in self._crashed and len(running.jobs) == 1:
            last = said.strip().rpartition("\n")[2] or "it said nothing"
            raise DownloadError(f"{job.tar}: its check ended with code {running.process.returncode}: {last}")
        self._crashed.add(job.tar)
        self._waiting.append(job)


def child_environment(lock: Path | None = None) -> dict[str, str]:
    """The environment of a child: it ends with us, and holds `lock` while it lives."""
    environment = dict(os.environ)
    environment[orphans.PARENT_VARIABLE] = str(os.getpid())
    if lock is not None:
        environment[orphans.LOCK_VARIABLE] = str(lock)
    return environment
