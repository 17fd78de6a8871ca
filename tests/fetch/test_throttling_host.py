"""The throttling host keeps to what it says: tests of politeness stand on it."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tests.support.throttling_host import Bucket, ThrottlingHost


def test_a_bucket_bears_its_burst_then_its_rate():
    bucket = Bucket(per_second=2, burst=3)
    assert [bucket.take(0.0) for _ in range(5)] == [True, True, True, False, False]
    assert [bucket.take(0.5), bucket.take(0.5), bucket.take(1.0)] == [True, False, True]
    # However long nobody came, no more than the burst is there.
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_above_its_rate_a_host_asks_to_come_later():
    with ThrottlingHost(per_second=1e-9, burst=2, retry_after="7") as host:
        for number in range(2):
            with urllib.request.urlopen(host.url(f"/ok/{number}.jpg")) as answer:
                assert answer.read() == host.picture
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(host.url("/ok/2.jpg"))
        with refusal.value as error:
            assert (error.code, error.headers["Retry-After"]) == (429, "7")
        assert (host.refused, sum(host.asked.values())) == (1, 3)
