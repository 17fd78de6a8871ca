"""How many connections a host gets, and what it costs a picture that its host refuses (`hosts` and `policy`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import policy
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.hosts import Contact, Host, Hosts, HostState
from laion_face_builder.fetch.http import Response
from laion_face_builder.fetch.limits import FetchLimits
from tests.support.hostile_host import HostileHost
from tests.support.nested import but
from tests.support.throttling_host import ThrottlingHost

LOOPBACK = ("127.0.0.0/8",)
LIMITS = but(FetchLimits(), timeout=30.0, retries=1, longest_wait=60.0)


def a_host(most: int = 32) -> Host[int]:
    return Host("a.example", most, patience=30.0, longest_wait=60.0)


def a_round(
    host: Host[int], now: float, contact: Contact, took: float = 0.1, reason: str = "", wait: float = 0.0
) -> int:
    """Fill the host's connections and have all of them end alike; return how many there were."""
    count = 0
    while host.enter(count, now, is_back=False):
        count += 1
    for _ in range(count):
        host.leave(contact, now, now + took, reason, wait)
    host.waiting.clear()
    return count


def test_a_host_starts_with_8_and_grows_to_32_where_answers_are_quick() -> None:
    host, sizes = a_host(), []
    for number in range(40):
        sizes.append(a_round(host, float(number), Contact.ANSWERED))
    assert sizes[0] == 8
    assert sizes == sorted(sizes)
    assert sizes[-1] == 32


@pytest.mark.parametrize(("most", "first", "last"), [(1, 1, 1), (3, 3, 3), (8, 8, 8), (16, 8, 16), (64, 8, 64)])
def test_per_host_is_the_most(most: int, first: int, last: int) -> None:
    host = a_host(most)
    sizes = [a_round(host, float(number), Contact.ANSWERED) for number in range(200)]
    assert (sizes[0], sizes[-1], max(sizes)) == (first, last, last)


def test_a_host_that_becomes_slow_under_load_grows_no_further() -> None:
    host = a_host()
    a_round(host, 0.0, Contact.ANSWERED, took=0.4)
    sizes = [a_round(host, 10.0 * number, Contact.ANSWERED, took=3.0) for number in range(1, 30)]
    assert sizes[-1] <= 9
    # One that is far away takes its time from the beginning, and more connections help there.
    far = a_host()
    assert [a_round(far, 10.0 * number, Contact.ANSWERED, took=1.5) for number in range(40)][-1] == 32


@pytest.mark.parametrize("reason", ["http_429", "http_503"])
def test_a_refusal_halves_once_for_all_that_were_asked_together(reason: str) -> None:
    host = a_host()
    now, sizes = 0.0, []
    for _ in range(6):
        sizes.append(a_round(host, now, Contact.THROTTLED, reason=reason, wait=1.0))
        now += 2.0
    assert sizes == [8, 4, 2, 1, 1, 1]
    assert host.limit == 1


def test_retry_after_holds_the_queue_of_the_host() -> None:
    host = a_host(1)
    assert host.enter(1, 0.0, is_back=False)
    assert not host.enter(2, 0.0, is_back=False)
    host.leave(Contact.THROTTLED, 0.0, 0.5, "http_429", 10.0)
    assert not host.enter(1, 0.5, is_back=True)
    assert host.state is HostState.HELD
    assert host.moves_at() == 10.5
    assert list(host.freed(10.0, lambda job: True)) == []
    # The one that was refused goes first.
    assert list(host.freed(10.5, lambda job: True)) == [1]
    assert host.enter(1, 10.5, is_back=True)


def test_a_wait_that_is_too_long_is_not_waited_for() -> None:
    host = a_host(1)
    assert host.enter(1, 0.0, is_back=False)
    assert not host.enter(2, 0.0, is_back=False)
    host.leave(Contact.THROTTLED, 0.0, 0.5, "http_429", 100.0)
    assert list(host.freed(0.5, lambda job: True)) == [2]
    with pytest.raises(PictureError, match="http_429"):
        host.enter(2, 0.5, is_back=False)
    # Nor asked again before it said.
    with pytest.raises(PictureError, match="http_429"):
        host.enter(3, 100.0, is_back=False)
    assert host.enter(4, 100.6, is_back=False)


@pytest.mark.parametrize("wait", [0.0, 1.0, 20.0])
def test_a_host_that_only_ever_refuses_is_given_up_in_the_end(wait: float) -> None:
    host, now, asked = a_host(), 0.0, 0
    while host.state is not HostState.DOWN:
        asked += a_round(host, now, Contact.THROTTLED, reason="http_429", wait=wait)
        now += 0.5
    assert now <= 61.0
    # One that does not say how long, and never gave anything, is believed sooner.
    assert wait or now <= 5.0
    assert asked < 80


def test_answers_between_refusals_keep_a_host_going() -> None:
    host, came = a_host(), 0
    for number in range(500):
        now = 10.0 * number
        assert host.enter(0, now, is_back=False)
        host.leave(Contact.ANSWERED, now, now + 0.1)
        came += 1
        assert host.enter(0, now + 1, is_back=False)
        host.leave(Contact.THROTTLED, now + 1, now + 1.1, "http_429", 5.0)
    assert came == 500


def test_an_answer_to_what_was_asked_before_the_refusal_ends_no_wait() -> None:
    host = a_host()
    assert host.enter(1, 0.0, is_back=False)
    assert host.enter(2, 0.0, is_back=False)
    host.leave(Contact.THROTTLED, 0.0, 0.5, "http_429", 100.0)
    host.leave(Contact.ANSWERED, 0.0, 0.6)
    assert host.state is HostState.DOWN


def test_a_silent_host_is_asked_one_at_a_time_and_loses_nothing_when_it_comes_back() -> None:
    host = a_host()
    assert a_round(host, 0.0, Contact.SILENT, 5.0, "timeout") == 8
    for now in (6.0, 12.0, 18.0):
        assert a_round(host, now, Contact.SILENT, 5.0, "timeout") == 1
    assert host.enter(1, 24.0, is_back=False)
    assert not host.enter(2, 24.0, is_back=False)
    host.leave(Contact.ANSWERED, 24.0, 24.2)
    assert host.state is HostState.OPEN
    assert list(host.freed(24.2, lambda job: True)) == [2]


def test_a_host_that_stays_silent_fails_its_queue_and_is_tried_again_after_a_minute() -> None:
    host = a_host()
    a_round(host, 0.0, Contact.SILENT, 15.0, "timeout")
    assert host.enter(1, 15.0, is_back=False)
    assert not host.enter(2, 15.0, is_back=False)
    host.leave(Contact.SILENT, 15.0, 30.0, "timeout")
    assert list(host.freed(30.0, lambda job: True)) == [2]
    with pytest.raises(PictureError, match=r"timeout.*silent"):
        host.enter(2, 30.0, is_back=False)
    assert host.enter(3, 90.0, is_back=False)
    assert not host.enter(4, 90.0, is_back=False)
    host.leave(Contact.SILENT, 90.0, 95.0, "timeout")
    with pytest.raises(PictureError, match="silent"):
        host.enter(4, 95.0, is_back=False)


def test_a_few_slow_pictures_do_not_make_a_host_silent() -> None:
    host = a_host()
    for number in range(300):
        now = 40.0 * number
        assert host.enter(0, now, is_back=False)
        host.leave(*((Contact.SILENT, now, now + 30, "timeout") if number % 4 else (Contact.ANSWERED, now, now + 1)))
        assert host.state is HostState.OPEN


CONTACTS = st.tuples(
    st.sampled_from(list(Contact)), st.floats(0.01, 40.0), st.sampled_from([0.0, 0.0, 1.0, 30.0, 90.0])
)


@given(st.integers(1, 40), st.lists(CONTACTS, max_size=80))
def test_whatever_a_host_does_its_bounds_hold_and_nobody_is_forgotten(most: int, contacts: list[tuple]) -> None:
    host, now, number = a_host(most), 0.0, 0
    for contact, took, wait in contacts:
        entered = 0
        try:
            while host.enter(number, now, is_back=False):
                entered += 1
                number += 1
        except PictureError:
            assert host.state is HostState.DOWN
        assert host.busy == entered <= most
        reason = {Contact.THROTTLED: "http_429", Contact.SILENT: "timeout"}.get(contact, "")
        for _ in range(entered):
            host.leave(contact, now, now + took, reason, wait)
        assert 1 <= host.limit <= most
        now += took
        # Whoever waits goes on at once, or at a time that is said.
        freed = list(host.freed(now, lambda job: True))
        assert freed or not host.waiting or host.moves_at() is not None
        host.waiting.clear()
        now += 1.0


def test_hosts_have_nothing_to_do_with_each_other_and_old_ones_are_forgotten() -> None:
    hosts: Hosts[int] = Hosts(1, 30.0, 60.0)
    assert hosts["a"].enter(0, 0.0, is_back=False)
    assert hosts["b"].enter(0, 0.0, is_back=False)
    for number in range(10_100):
        hosts[str(number)].enter(0, 0.0, is_back=False)
        hosts[str(number)].leave(Contact.NONE, 0.0, 0.0)
    assert len(hosts._hosts) <= 10_000
    assert hosts["a"].busy == 1


# What it costs a picture.


def refused(progress: policy.FetchProgress, now: float, status: int = 429, after: bytes = b"5") -> object:
    return policy.after_answer(progress, Response(status, [b"Retry-After: " + after], b""), LIMITS, now)


@pytest.mark.parametrize(("status", "after"), [(429, b"5"), (429, b""), (503, b"5")])
def test_a_refusal_takes_neither_a_try_nor_time(status: int, after: bytes) -> None:
    progress = policy.FetchProgress("http://a.example/1.jpg")
    for number in range(12):
        step = refused(progress, 5.0 * number, status, after)
        assert step == policy.Throttled(float(after or 0))
    assert (progress.tries, progress.spent, progress.share(LIMITS)) == (0, 0.0, 15.0)
    with pytest.raises(PictureError, match=f"http_{status}"):
        refused(progress, 61.0, status, after)


def test_503_without_a_word_is_a_try() -> None:
    progress = policy.FetchProgress("http://a.example/1.jpg")
    assert isinstance(refused(progress, 0.0, 503, b""), policy.Retry)
    assert progress.tries == 1
    with pytest.raises(PictureError, match="http_503"):
        refused(progress, 1.0, 503, b"")


# The same on loopback.


def test_a_host_that_throttles_loses_no_picture() -> None:
    with ThrottlingHost(per_second=60, burst=20) as host:
        limits = but(FetchLimits(), timeout=30.0, retries=0, also_public=LOOPBACK, longest_wait=20.0)
        with Fetcher(limits) as fetcher:
            tickets = [fetcher.submit(host.url(f"/ok/{number}.jpg")) for number in range(120)]
            assert all(ticket.result(60).data == host.picture for ticket in tickets)
        assert host.refused
        # It was not hammered meanwhile.
        assert host.refused < 60


def test_who_waits_for_a_host_takes_no_place_in_flight() -> None:
    with (
        ThrottlingHost(per_second=1e-9, retry_after="50") as held,
        HostileHost(address="127.0.0.3") as other,
        Fetcher(but(FetchLimits(), timeout=30.0, concurrency=2, also_public=LOOPBACK)) as fetcher,
    ):
        waiting = [fetcher.submit(held.url(f"/ok/{number}")) for number in range(50)]
        quick = [fetcher.submit(other.url("/ok", "127.0.0.3")) for _ in range(50)]
        assert all(ticket.result(60) for ticket in quick)
        assert sum(ticket.done() for ticket in waiting) <= 1
