"""Telling an outage of our own from a web where a quarter is gone (`network`). No socket, no clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from laion_face_builder.fetch.network import BREADTH, Network, NetworkState


def test_many_hosts_in_silence_are_doubted_and_a_word_from_anybody_ends_it() -> None:
    network = Network()

    def state() -> NetworkState:
        return network.state

    for number in range(BREADTH):
        assert state() is NetworkState.WORKING
        network.silent(f"host-{number}", 1.0)
    assert state() is NetworkState.DOUBTED
    network.heard(2.0, "host", 80)
    assert state() is NetworkState.WORKING
    network.silent("another", 3.0)
    assert state() is NetworkState.WORKING


def test_one_dead_host_is_no_outage_however_many_pictures_it_has() -> None:
    network = Network()
    for number in range(10_000):
        network.silent(f"host-{number % (BREADTH - 1)}", float(number))
    assert network.state is NetworkState.WORKING


def test_what_was_silent_while_others_were_heard_is_its_own_affair() -> None:
    network = Network()
    network.heard(10.0)
    assert not network.is_unheard(began=5.0)
    assert network.is_unheard(began=10.5)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=200))
def test_it_is_doubted_after_silence_of_many_hosts_and_never_else(events: list[tuple[bool, int]]) -> None:
    network = Network()
    since: set[int] = set()
    for now, (is_heard, host) in enumerate(events):
        if is_heard:
            network.heard(float(now))
            since = set()
        else:
            network.silent(str(host), float(now))
            since.add(host)
        assert (network.state is NetworkState.DOUBTED) == (len(since) >= BREADTH)


def test_a_lost_network_is_asked_ever_more_seldom() -> None:
    network, now, pauses = Network(), 0.0, []
    network.lost(now)
    assert network.asks_at == now
    for number in range(10):
        network.silent(str(number), now)
        pauses.append(network.asks_at - now)
        now = network.asks_at
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.5, 10.0)
    network.heard(now)
    assert network.state is NetworkState.WORKING


def test_sleep_is_what_a_clock_that_counts_it_ran_ahead() -> None:
    network = Network()
    assert not network.slept(1.2, 1.0, now=100.0)
    assert not network.was_asleep(99.0)
    assert network.slept(3600.0, 1.0, now=101.0)
    assert network.was_asleep(99.0)
    assert not network.was_asleep(102.0)


def test_witnesses_are_the_latest_that_were_heard() -> None:
    network = Network()
    for number in range(100):
        network.heard(float(number), f"host-{number}", 80)
    assert network.witnesses[0] == ("host-99", 80)
    assert len(network.witnesses) <= 8
