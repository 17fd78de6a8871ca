"""A machine's processes together ask a host for so many pictures at a time, and none starves (`machine`)."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from laion_face_builder.fetch.machine import HostSlots, Machine
from tests.support.hostile_host import HostileHost, message
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    found = [Machine() for _ in range(4)]
    yield found
    for machine in found:
        machine.close()


needs_locks = pytest.mark.skipif(sys.platform != "linux", reason="locks of open files are Linux's")


def grown(share: HostSlots, count: int, now: float = 0.0) -> int:
    share.grow(count, now)
    return share.held


@needs_locks
def test_together_they_have_no_more_than_one_may_have(machines: list[Machine], runtime: Path) -> None:
    shares = [machine.share("a.example", 10) for machine in machines]
    assert [grown(share, 4) for share in shares] == [4, 4, 2, 0]
    assert grown(machines[3].share("b.example", 10), 10) == 10
    shares[0].keep(1, 1, 0.0)
    assert [grown(share, 4, now=1.0) for share in shares[2:]] == [4, 1]
    folder = runtime / f"laion-face-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


@needs_locks
def test_who_closes_or_is_collected_leaves_its_share(machines: list[Machine]) -> None:
    first, second = (machine.share("a.example", 3) for machine in machines[:2])
    assert (grown(first, 3), grown(second, 1)) == (3, 0)
    machines[0].close()
    assert grown(second, 3, now=1.0) == 3


@needs_locks
def test_who_asked_in_vain_asks_again_after_a_while_and_not_before(machines: list[Machine]) -> None:
    first, second = (machine.share("a.example", 1) for machine in machines[:2])
    assert first.grow(1, 0.0)
    assert not second.grow(1, 0.0)
    again = second.moves_at(0, is_wanted=True)
    assert again is not None
    assert again > 0.0
    first.keep(0, 0, 0.0)
    assert not second.grow(1, again / 2)
    assert second.grow(1, again)


@needs_locks
@pytest.mark.parametrize("most", [1, 8, 32])
def test_those_that_wait_come_to_have_alike(machines: list[Machine], most: int) -> None:
    # One process has everything at first. Requests of 0.1 s, looked at every 10 ms; each wants all it can get.
    shares = [machine.share("a.example", most) for machine in machines]
    had: Counter[int] = Counter()
    assert grown(shares[0], most) == most
    for step in range(6000):
        now = step / 100
        for number, share in enumerate(shares):
            if share.held and (step + number) % max(1, 10 // share.held) == 0:
                share.keep(share.held - 1, most, now)
            share.grow(most, now)
            had[number] += share.held
        held = sum(share.held for share in shares)
        assert held <= most
    assert min(had.values()) > sum(had.values()) / 8
    assert sum(had.values()) > 0.8 * 6000 * most


@needs_locks
def test_what_is_kept_for_nothing_is_given_back(machines: list[Machine]) -> None:
    first, second = (machine.share("a.example", 2) for machine in machines[:2])
    first.grow(2, 0.0)
    until = first.moves_at(0, is_wanted=False)
    assert until is not None
    first.trim(1, until)
    assert (first.held, second.grow(1, 0.0)) == (1, True)


@needs_locks
def test_a_forked_child_has_none_of_the_locks() -> None:
    # A child would keep the locks when its parent has died.
    script = """
import contextlib, os, sys
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.options import FetchOptions

def lock_files():
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += "/hosts-" in os.readlink(f"/proc/self/fd/{number}")
    return count

with Fetcher(FetchLimits(FetchOptions(allow_private_hosts=True))) as fetcher:
    fetcher.submit(sys.argv[1]).result(60)
    if os.fork() == 0:
        print(lock_files(), flush=True)
        os._exit(0)
    os.wait()
    print(lock_files())
"""
    with HostileHost() as host:
        done = subprocess.run(
            [sys.executable, "-c", script, host.url("/ok")], capture_output=True, text=True, timeout=100, check=False
        )
    assert done.stdout.split() == ["0", "16"], done.stderr


@pytest.mark.parametrize("spoilt", ["others may read it", "no folder"])
def test_without_a_folder_of_ones_own_each_process_has_its_bound(
    spoilt: str, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = runtime / f"laion-face-{os.geteuid()}"
    if spoilt == "no folder":
        folder.write_bytes(b"")
    else:
        folder.mkdir()
        folder.chmod(0o755)
    with caplog.at_level(logging.DEBUG, "laion_face"):
        shares = [Machine().share("a.example", 2) for _ in range(2)]
    assert [grown(share, 2) for share in shares] == [2, 2]
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "each process by itself" in caplog.text


# Real processes.


class CountingHost(HostileHost):
    """Answers /pN/ANYTHING after a while; how many requests it had at a time, and how many of each process."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.of: Counter[str] = Counter()
        #: What a process had under way when it was killed is the host's alone.
        self.dead = ""
        self._now: Counter[str] = Counter()
        self._guard = threading.Lock()

    def _missing(self, _c: object, _q: object, _t: object, path: str) -> bytes:
        name = path.split("/")[1]
        with self._guard:
            self.of[name] += 1
            self._now[name] += 1
            self.most = max(self.most, self._now.total() - self._now[self.dead])
        time.sleep(0.05)
        with self._guard:
            self._now[name] -= 1
        return message(self.picture)

    def wait_for(self, name: str, count: int) -> None:
        """Wait until a process has asked so often."""
        wait_until(lambda: self.of[name] >= count)


WORKER = """
import sys
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.options import FetchOptions
url, count = sys.argv[1], int(sys.argv[2])
limits = FetchLimits(FetchOptions(allow_private_hosts=True, per_host=6, retries=0))
with Fetcher(limits) as fetcher:
    tickets = [fetcher.submit(f"{url}/{number}") for number in range(count)]
    print(sum(bool(ticket.result(100).data) for ticket in tickets))
"""


def worker(host: CountingHost, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, host.url(f"/{name}"), str(count)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@needs_locks
def test_four_processes_are_one_guest_and_one_that_is_killed_leaves_its_share() -> None:
    with CountingHost() as host:
        first = worker(host, "killed", 100_000)
        host.wait_for("killed", 50)
        others = [worker(host, f"p{number}", 60) for number in range(3)]
        for number in range(3):
            host.wait_for(f"p{number}", 1)
        host.dead = "killed"
        first.send_signal(signal.SIGKILL)
        assert [other.communicate(timeout=100)[0] for other in others] == ["60\n"] * 3
        first.communicate()
        assert host.most == 6
