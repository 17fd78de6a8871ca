"""The guarding proxy that img2dataset goes through: what starts it, speaks to it, and ends it.

img2dataset fetches with `urllib`, which connects anywhere, reads without a limit, and follows redirects to every
address. So it is given a small forward proxy on the loopback through its environment; law 7 and all bounds hold there.

The proxy is a process of its own, `proxy_server`: the parent is busy with finished shards at the same time, and a
thread would wait for its turns at the interpreter. It ends when its standard input does, so also when the
parent is killed with -9.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any

from laion_face_builder.children import python
from laion_face_builder.errors import DownloadError
from laion_face_builder.fetch.guard import AddressRule
from laion_face_builder.proxy.limits import ProxyLimits

__all__ = ["GuardProxy", "ProxyLimits"]

_SECONDS_TO_END = 5.0
_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy")


class GuardProxy:
    """The proxy, running from `__enter__` to `__exit__`.

    It serves GET and HEAD for http and CONNECT for https, to whoever knows the secret in `url`; nothing else. What it
    refuses it answers with the reason as the phrase ("HTTP Error 403: private_address") and in X-LAION-Face-Reason.

    Args:
        limits: bounds of each request.
        rule: which addresses may be connected to; by default what `limits.allow_private_hosts` says.
        upstream_proxy: "http://[user:password@]host:port", a trusted proxy to go through. It then has to check
            addresses, bytes, time and connections per host stay bounded here.
    """

    def __init__(
        self, limits: ProxyLimits, *, rule: AddressRule | None = None, upstream_proxy: str | None = None
    ) -> None:
        self._limits = limits
        self._rule = rule or AddressRule(allow_private=limits.allow_private_hosts)
        self._upstream = upstream_proxy
        self._secret = secrets.token_urlsafe(24)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._last: dict[str, Any] = {"active": 0, "bytes": 0, "reasons": {}}
        self._url = ""

    @property
    def url(self) -> str:
        """The proxy's address with its credentials, as urllib wants it in http_proxy."""
        if not self._url:
            raise DownloadError("the guarding proxy is not running: use it as a context manager")
        return self._url

    @property
    def process_id(self) -> int | None:
        """Of the proxy, while it runs."""
        return self._process.pid if self._process is not None else None

    def environment(self) -> dict[str, str]:
        """Variables that send everything of urllib's through the proxy; lower case wins over upper case there."""
        return dict.fromkeys(_VARIABLES, self.url) | {"no_proxy": ""}

    def stats(self) -> dict[str, Any]:
        """Counts until now, or until the end: "reasons" (requests by "ok" or why not), "bytes", "active".

        Raises:
            DownloadError: the proxy has ended by itself.
        """
        with self._lock:
            if self._process is not None:
                self._last = self._asked(b"\n")
            return self._last

    def __enter__(self) -> GuardProxy:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            python("-m", "laion_face_builder.proxy.server"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends us
        )
        try:
            self._url = f"http://laion-face:{self._secret}@127.0.0.1:{self._asked(self._settings())['port']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(DownloadError):
            self.stats()
        self._end()

    def _settings(self) -> bytes:
        settings = {
            "limits": asdict(self._limits),
            "allow_private": self._rule.allow_private,
            "also_public": self._rule.also_public,
            "secret": self._secret,
            "upstream": self._upstream,
        }
        return json.dumps(settings).encode() + b"\n"

    def _asked(self, line: bytes) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise DownloadError("the guarding proxy is not running: use it as a context manager")
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return dict(json.loads(process.stdout.readline()))
        except (OSError, ValueError) as error:
            raise DownloadError("the guarding proxy has ended by itself; run the download again") from error

    def _end(self) -> None:
        process, self._process, self._url = self._process, None, ""
        if process is None or process.stdin is None or process.stdout is None:
            return
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
