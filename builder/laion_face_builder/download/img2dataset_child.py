"""img2dataset as a child process: started in its own session, watched by its files, ended as a group.

Its exit code says nothing (0 after SIGINT), and its pool waits for ever for a worker that was killed. So what is done
is read from its folder, and a run whose files do not change for a while is ended.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from laion_face_builder.children import python
from laion_face_builder.download.checker import child_environment
from laion_face_builder.errors import OptionError

_SECONDS_TO_END = 5.0
_LOG_BYTES = 1_000_000
#: What Python says of a disk that is full, and of a file that may not grow.
_OF_THE_DISK = re.compile(rb"\[Errno (%d|%d|%d)\]" % (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_LONGEST_WORD = 16
#: It has no business with the Hub.
_TOKENS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy")
#: No reports to anyone, and no look-ups for newer versions when its libraries are imported.
_QUIET = {
    "WANDB_MODE": "disabled",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "DO_NOT_TRACK": "1",
}


def img2dataset_environment(lock: Path, proxy: str) -> dict[str, str]:
    """The child's environment: all of its network goes through `proxy`, and the Hub's token stays here."""
    environment = child_environment(lock) | _QUIET
    # urllib ignores http_proxy where this is set, since in CGI a client could set it by a header.
    environment.pop("REQUEST_METHOD", None)
    kept = {name for name in environment if not name.lower().endswith("_proxy")} - _TOKENS
    environment = {name: environment[name] for name in environment if name in kept}
    environment |= {name: proxy for lower in _PROXIES for name in (lower, lower.upper())}
    return environment | {"no_proxy": "", "NO_PROXY": ""}


def refuse_odd_path(folder: Path) -> None:
    """Raises OptionError for a path that img2dataset's file layer (fsspec) would take for a pattern or an address."""
    if any(odd in str(folder) for odd in ("*", "?", "[", "]", "::", "://")):
        raise OptionError(f"{folder}: img2dataset cannot write below a path with any of * ? [ ] ::. Choose another.")


class Img2datasetChild:
    """One run of img2dataset. Use as a context manager: at its end no process of the run is left.

    Args:
        settings: arguments of `img2dataset.download`.
        environment: see `img2dataset_environment`.
        log: gets what the run prints, the last megabyte of it.

    Attributes:
        disk_error: the number of the system's error, as soon as it says that the disk is full.
    """

    def __init__(self, settings: Mapping[str, Any], environment: Mapping[str, str], log: Path) -> None:
        self._folder = Path(settings["output_folder"])
        self._log = log
        self._seen: object = None
        self._changed = time.monotonic()
        self.disk_error: int | None = None
        self._process = subprocess.Popen(  # noqa: S603 - our own module, and arguments that no shell sees
            python("-u", "-m", "laion_face_builder.download.img2dataset_run", json.dumps(dict(settings))),
            stdin=subprocess.PIPE,  # ends when we do; see `orphans`
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=log.parent,
            start_new_session=True,
        )
        self._pump = threading.Thread(
            target=self._keep, args=(self._process.stdout,), daemon=True, name="img2dataset-log"
        )
        self._pump.start()

    def __enter__(self) -> Img2datasetChild:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    @property
    def running(self) -> bool:
        """Whether its first process lives."""
        return self._process.poll() is None

    @property
    def still_for(self) -> float:
        """Seconds since anything changed in its folder."""
        now = time.monotonic()
        seen = _listing(self._folder)
        if seen != self._seen:
            self._seen, self._changed = seen, now
        return now - self._changed

    def end(self) -> None:
        """Ends the whole group: asks, waits a little, kills. Nothing if it has gone."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        # Its workers may outlive it.
        self._signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._pump.join(_SECONDS_TO_END)
        if self._process.stdout is not None and not self._pump.is_alive():
            self._process.stdout.close()

    def last_words(self, lines: int = 3) -> str:
        """The last lines that it printed, as one line."""
        with suppress(OSError):
            said = self._log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
            return " | ".join([line.strip() for line in said if line.strip()][-lines:]) or "nothing"
        return "nothing"

    def _keep(self, source: IO[bytes]) -> None:
        """Copies what it prints into the log, and notes what it says of the disk."""
        before = b""
        with self._log.open("wb", buffering=0) as file:
            while piece := os.read(source.fileno(), 1 << 16):
                if found := _OF_THE_DISK.search(before + piece):
                    self.disk_error = int(found[1])
                before = piece[-_LONGEST_WORD:]
                with suppress(OSError):  # On a full disk it goes on unheard: the disk is what there is to be said.
                    file.write(piece)
                    _shorten(file, self._log)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _listing(folder: Path) -> list[tuple[str, int]]:
    found = []
    for place in (folder, folder / "_tmp"):
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                with suppress(OSError):
                    found.append((entry.name, entry.stat().st_size))
    return sorted(found)


def _shorten(file: IO[bytes], log: Path) -> None:
    if file.tell() > _LOG_BYTES:
        kept = log.read_bytes()[-_LOG_BYTES // 2 :]
        file.seek(0)
        file.truncate()
        file.write(kept)
