"""The limit of open files is raised, and what is left of it bounds the connections; in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.hostile_host import HostileHost

SCRIPT = """
import json, logging, resource, sys
soft, hard, concurrency, url = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.options import FetchOptions
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("laion_face").addHandler(handler)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
options = FetchOptions(allow_private_hosts=True, concurrency=concurrency, per_host=concurrency, retries=0)
limits = FetchLimits(options)
with Fetcher(limits) as fetcher:
    sizes = {len(ticket.result(60).data) for ticket in [fetcher.submit(f"{url}/{n}") for n in range(300)]}
print(json.dumps([sorted(sizes), said, resource.getrlimit(resource.RLIMIT_NOFILE)[0]]))
"""


@pytest.mark.parametrize(("soft", "hard", "is_told"), [(64, 2000, False), (64, 220, True), (220, 220, True)])
def test_connections_stay_within_the_limit_of_open_files(soft: int, hard: int, *, is_told: bool) -> None:
    with HostileHost() as host:
        command = [sys.executable, "-c", SCRIPT, str(soft), str(hard), "256", host.url("/slow")]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert ran.returncode == 0, ran.stderr
        sizes, said, now = json.loads(ran.stdout)
        assert sizes == [len(host.picture)]
        assert now == hard
        assert len(said) == is_told
        assert host.most_at_once <= hard
    if is_told:
        assert "concurrency=256" in said[0]
        assert "ulimit -n" in said[0]


SHORT = """
import logging, os, resource, socket, sys, threading, time
from laion_face_builder.errors import NetworkOutage
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.options import FetchOptions
logging.basicConfig(format="%(message)s", stream=sys.stdout)
url, patience, name = sys.argv[1], float(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
options = FetchOptions(
    allow_private_hosts=True, concurrency=20, per_host=20, retries=0, timeout=5.0, outage_patience=patience
)
limits = FetchLimits(options)

def use_up():
    taken = []
    try:
        while True:
            taken.append(os.open("/", os.O_RDONLY))
    except OSError:
        return taken

with Fetcher(limits) as fetcher:
    print(len(fetcher.submit(url).result(60).data) > 0)
    taken = use_up()
    tickets = [fetcher.submit(f"{url}/{n}".replace("127.0.0.1", name)) for n in range(60)]
    if not patience:
        try:
            tickets[0].result(60)
        except NetworkOutage as error:
            print(error)
    else:
        time.sleep(1.2 * limits.options.timeout)
        print(sum(ticket.done() for ticket in tickets) < 60)
    for file in taken:
        os.close(file)
    if not patience:
        tickets = [fetcher.submit(url)]
    print({len(ticket.result(60).data) > 0 for ticket in tickets})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_pictures_wait_while_no_file_is_left(name: str) -> None:
    # No file left is an outage of our own: said once, and no picture fails for it, whatever it is that wants a file.
    told = run_short(600.0, name)
    assert told[0] == "True"
    assert told[1].startswith("no file descriptor is left")
    assert "ulimit -n" in told[1]
    assert told[2:] == ["True", "{True}"]


@pytest.mark.slow
def test_without_files_for_too_long_it_ends_loudly() -> None:
    told = run_short(0.0, "127.0.0.2")
    assert told[1].startswith("no file descriptor is left")
    assert "outage_patience=0 s" in told[2]
    assert told[3:] == ["{True}"]


def run_short(patience: float, name: str) -> list[str]:
    with HostileHost(address="0.0.0.0") as host:
        url = host.url("/slow", "127.0.0.1")
        command = [sys.executable, "-c", SHORT, url, str(patience), name]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    return ran.stdout.splitlines()
