"""The box of the simulated web: network namespaces in which names, certificates and ports are those of the plan.

    if not entered():
        enter()                         # this program again, inside
    with opened(plan, folder) as web:   # the server runs
        web.reset()

Linux only: `unshare` and `mount` of util-linux, as root or where users may make namespaces. In the box nothing leads
out, ports 80 and 443 are free, and resolv.conf names our own server: every client, of whatever language, resolves,
connects and checks certificates by its usual means.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import queue
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import web_names
from web_plan import DOMAIN, Plan

_ENTERED = "LAION_FACE_WEB_BOX"
_SET_FLAGS, _UP_AND_RUNNING = 0x8914, 0x41  # SIOCSIFFLAGS; IFF_UP | IFF_RUNNING
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def entered() -> bool:
    """Say whether this process runs in the box."""
    return os.environ.get(_ENTERED) == str(os.stat("/proc/self/ns/net").st_ino)


def enter() -> None:
    """Run this program again in the box, and end with its exit code.

    Raises:
        SystemExit: also where there are no namespaces to be had.
    """
    if shutil.which("unshare") is None or shutil.which("openssl") is None:
        raise SystemExit("The web in a box needs Linux, with the commands unshare (util-linux) and openssl")
    how = ["unshare", "--mount", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*how, "true"], check=False).returncode:
        raise SystemExit("The web in a box needs namespaces: be root, or allow users to make them")
    # The number of the namespace is known inside only.
    inside = f'{_ENTERED}=$(stat -L -c %i /proc/self/ns/net) exec "$0" "$@"'
    raise SystemExit(subprocess.run([*how, "sh", "-c", inside, sys.executable, *sys.argv], check=False).returncode)


def furnish(folder: Path) -> None:
    """Bring loopback up and lead all names to our server. `folder` holds what is mounted."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", _UP_AND_RUNNING))
    files = {"/etc/resolv.conf": f"nameserver {web_names.ADDRESS}\n", "/etc/nsswitch.conf": "hosts: files dns\n"}
    for place, text in files.items():
        mine = folder / Path(place).name
        mine.write_text(text, encoding="utf-8")
        if Path(place).exists():
            subprocess.run(["mount", "--bind", str(mine), place], check=True)


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for all names of the box, with its key, and that of the authority that clients trust."""
    authority, key, ours = folder / "authority.pem", folder / "authority.key", folder / "server.pem"

    def openssl(*arguments: str | Path) -> bytes:
        return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True).stdout

    openssl("req", "-x509", *_KEY, "-keyout", key, "-out", authority, "-days", "30", "-subj", "/CN=The web in a box")
    request = folder / "server.csr"
    openssl("req", *_KEY, "-keyout", folder / "server.key", "-out", request, "-subj", f"/CN=*.{DOMAIN}")
    (folder / "names").write_text(f"subjectAltName=DNS:*.{DOMAIN}\nbasicConstraints=CA:FALSE\n", encoding="utf-8")
    signed = openssl(
        *("x509", "-req", "-in", request, "-CA", authority, "-CAkey", key, "-CAcreateserial"),
        *("-days", "30", "-extfile", folder / "names"),
    )
    ours.write_bytes((folder / "server.key").read_bytes() + signed)
    return ours, authority


class Web:
    """The running server, as it is steered.

    Attributes:
        authority: the certificate that clients have to trust, PEM.
        first: set when the first request since the last reset has come.
    """

    def __init__(self, process: subprocess.Popen[str], authority: Path) -> None:
        self.authority, self.first = authority, threading.Event()
        self._process, self._said = process, queue.SimpleQueue[str]()
        threading.Thread(target=self._listen, daemon=True).start()
        if self._next() != "ready":
            raise SystemExit("the server did not start")

    def reset(self) -> None:
        """Forget all counts, and what hosts and names remember of clients."""
        self._order("reset")
        self.first.clear()

    def report(self) -> dict[str, Any]:
        """Return the counts since the last reset; see `web_counts.Counts`."""
        found: dict[str, Any] = json.loads(self._order("report"))
        return found

    def _order(self, what: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._next()

    def _next(self) -> str:
        line = self._said.get()
        if not line:
            raise SystemExit("the server ended")
        return line

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "first\n":
                self.first.set()
            else:
                self._said.put(line.strip())
        self._said.put("")


@contextmanager
def opened(plan: Plan) -> Iterator[Web]:
    """Serve the web of this plan while the block runs. Only in the box."""
    with tempfile.TemporaryDirectory(prefix="web-in-a-box-") as name:
        folder = Path(name)
        furnish(folder)
        certificate, authority = make_certificates(folder)
        (folder / "plan").write_bytes(pickle.dumps(plan))
        program = Path(__file__).with_name("web_server.py")
        command = [sys.executable, str(program), str(folder / "plan"), str(certificate)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            try:
                yield Web(process, authority)
            finally:
                process.stdin.close()
