"""The sockets that libcurl waits for: idle ones stay in the selector, and must never be taken for another."""

import os
import selectors
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_face_builder.fetch.curl_loop import Sockets

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@pytest.fixture
def sockets():
    found = Sockets(keeps_idle=True)
    yield found
    found.close()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def is_quiet(sockets):
    """Say whether whoever waits for `fileno` would wait."""
    with selectors.DefaultSelector() as outer:
        outer.register(sockets.fileno(), READ)
        return outer.select(0) == []


def test_what_is_idle_is_heard_again_when_it_is_watched(sockets, pair):
    ours, theirs = pair
    sockets.watch(ours.fileno(), READ)
    sockets.idle(ours.fileno())
    sockets.watch(ours.fileno(), READ)
    theirs.send(b"x")
    assert sockets.ready() == [(ours.fileno(), READ)]


def test_a_host_that_hangs_up_while_idle_is_heard_once_and_by_nobody(sockets, pair):
    ours, theirs = pair
    sockets.watch(ours.fileno(), READ)
    sockets.idle(ours.fileno())
    theirs.close()
    assert not is_quiet(sockets)
    assert sockets.ready() == []
    assert is_quiet(sockets)


@pytest.mark.parametrize("before", [READ, WRITE])
def test_a_number_that_another_connection_got_is_watched_anew(sockets, pair, before):
    ours, theirs = pair
    with socket.socket() as gone:
        number = gone.fileno()
        sockets.watch(number, before)
        sockets.idle(number)
    os.dup2(ours.fileno(), number)
    sockets.opened += 1
    try:
        sockets.watch(number, READ)
        theirs.send(b"x")
        assert sockets.ready() == [(number, READ)]
    finally:
        os.close(number)


def test_before_a_fork_what_is_idle_is_taken_out_and_stays_out(sockets, pair):
    ours, theirs = pair
    sockets.watch(ours.fileno(), READ)
    sockets.idle(ours.fileno())
    sockets.forget_idle()
    # A child holds the connection, so that it stays open behind a number that is closed here.
    child = os.dup(ours.fileno())
    ours.close()
    theirs.close()
    assert is_quiet(sockets)
    sockets.watch(child, READ)
    sockets.idle(child)
    assert is_quiet(sockets)
    os.close(child)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["read", "write", "idle", "reopen", "send"])), max_size=30)
)
def test_only_what_is_watched_is_reported_and_all_of_it(steps):
    # The model is plain: which of three connections are watched for reading, and have something to read.
    sockets, pairs = Sockets(keeps_idle=True), [socket.socketpair() for _ in range(3)]
    watched: dict[int, Any] = {}
    full = set()
    try:
        for which, step in steps:
            number = pairs[which][0].fileno()
            if step == "idle":
                sockets.idle(number)
                watched.pop(which, None)
            elif step == "reopen":
                sockets.idle(number)
                watched.pop(which, None)
                full.discard(which)
                other = socket.socketpair()
                os.dup2(other[0].fileno(), number)
                other[0].close()
                pairs[which][1].close()
                pairs[which] = (pairs[which][0], other[1])
                sockets.opened += 1
            elif step == "send":
                pairs[which][1].send(b"x")
                full.add(which)
            else:
                watched[which] = READ if step == "read" else WRITE
                sockets.watch(number, watched[which])
            expected = {
                (pairs[which][0].fileno(), events)
                for which, events in watched.items()
                if events == WRITE or which in full
            }
            assert set(sockets.ready()) == expected
    finally:
        sockets.close()
        for ours, theirs in pairs:
            ours.close()
            theirs.close()
