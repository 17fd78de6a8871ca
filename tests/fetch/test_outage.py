"""An outage of our own costs no picture: a network of its own, on loopback, is taken down and brought up again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.hostile_host import HostileHost
from tests.support.needs import ALONE
from tests.support.waiting import wait_until

#: A process that has a network for itself, and its switch. Hosts are addresses of 127.0.0.0/8.
OWN_NETWORK = """
import fcntl, logging, socket, struct, sys, threading, time
from tests.support.hostile_host import HostileHost
from laion_face_builder.errors import NetworkOutage, PictureError
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.options import FetchOptions

logging.basicConfig(format="%(message)s", stream=sys.stdout)
is_said = threading.Event()

class Notices(logging.Handler):
    def emit(self, record):
        is_said.set()

logging.getLogger().addHandler(Notices())
SIOCSIFFLAGS, UP = 0x8914, 0x1

def switch(up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH", b"lo", UP if up else 0) + bytes(14))

def urls(host, path, first=0, count=60):
    return [host.url(path, f"127.0.1.{number}") for number in range(first, first + count)]

def outcome(ticket):
    try:
        return len(ticket.result(60).data) > 0
    except (PictureError, NetworkOutage) as error:
        return type(error).__name__

def limits(**how):
    return FetchLimits(FetchOptions(timeout=2.0, retries=0, allow_private_hosts=True, concurrency=16, **how))
"""


def alone(script: str) -> list[str]:
    """Run a script that has a network for itself; return the lines that it wrote."""
    command = [*ALONE, sys.executable, "-c", OWN_NETWORK + script]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.own_network
def test_pictures_wait_for_a_network_that_is_not_there_yet() -> None:
    told = alone("""
with HostileHost(address="0.0.0.0") as host, Fetcher(limits()) as fetcher:
    tickets = [fetcher.submit(url) for url in urls(host, "/ok")]
    assert is_said.wait(60)
    print("done meanwhile:", sum(ticket.done() for ticket in tickets))
    switch(True)
    print({outcome(ticket) for ticket in tickets})
""")
    assert told[0].startswith("the network cannot be reached: nobody answers")
    assert "outage_patience=600 s" in told[0]
    assert told[1] == "done meanwhile: 0"
    assert told[2].startswith("the network is back after")
    assert told[3:] == ["{True}"]


@pytest.mark.slow
@pytest.mark.own_network
def test_a_network_that_goes_away_on_the_way_costs_no_picture() -> None:
    told = alone("""
switch(True)
with HostileHost(address="0.0.0.0") as host, Fetcher(limits()) as fetcher:
    print({outcome(fetcher.submit(url)) for url in urls(host, "/ok", count=20)})
    switch(False)
    tickets = [fetcher.submit(url) for url in urls(host, "/ok", first=100)]
    assert is_said.wait(60)
    time.sleep(2 * limits().options.timeout)
    switch(True)
    print({outcome(ticket) for ticket in tickets})
""")
    assert [line.split(":")[0].split(" after")[0] for line in told] == [
        "{True}",
        "the network cannot be reached",
        "the network is back",
        "{True}",
    ]


@pytest.mark.own_network
@pytest.mark.parametrize("patience", [0, 1.5])
def test_patience_ends_loudly_and_the_fetcher_can_be_used_again(patience: float) -> None:
    told = alone(f"""
with HostileHost(address="0.0.0.0") as host, Fetcher(limits(outage_patience={patience})) as fetcher:
    tickets = [fetcher.submit(url) for url in urls(host, "/ok")]
    try:
        tickets[0].result(60)
    except NetworkOutage as error:
        print(error)
    print({{outcome(ticket) for ticket in tickets}})
    switch(True)
    print(outcome(fetcher.submit(host.url("/ok"))))
""")
    assert "outage_patience" in told[1]
    assert told[1:] == [told[1], "{'NetworkOutage'}", "True"]


@pytest.mark.slow
@pytest.mark.own_network
def test_a_list_of_dead_hosts_is_no_outage() -> None:
    # Nobody listens at any of the hosts, or nobody answers any more but one that did before.
    told = alone("""
switch(True)
with HostileHost(address="0.0.0.0") as host, Fetcher(limits(outage_patience=0)) as fetcher:
    print({outcome(fetcher.submit(f"http://127.0.2.{number}:9999/")) for number in range(50)})
    print(outcome(fetcher.submit(host.url("/ok"))))
    silent = [fetcher.submit(url) for url in urls(host, "/silent")]
    print({outcome(ticket) for ticket in silent})
""")
    assert told == ["{'PictureError'}", "True", "{'PictureError'}"]


STOPPED = """
import sys
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.options import FetchOptions
with Fetcher(FetchLimits(FetchOptions(timeout=1.0, retries=0, allow_private_hosts=True))) as fetcher:
    ticket = fetcher.submit(sys.argv[1])
    print("asked", flush=True)
    print(len(ticket.result(60).data))
"""


@pytest.mark.slow
def test_a_process_that_stood_still_asks_again() -> None:
    # The process stands still like a laptop that sleeps: when it wakes up the time is gone, and the picture is not.
    with HostileHost() as host:
        command = [sys.executable, "-c", STOPPED, host.url("/silent-once")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == "asked\n"
            wait_until(lambda: host.asked["/silent-once"])
            running.send_signal(signal.SIGSTOP)
            time.sleep(5)
            running.send_signal(signal.SIGCONT)
            assert running.stdout.readline() == f"{len(host.picture)}\n"
