"""The simulated web of the benchmarks has its shares, fates and ceilings, and answers names as clients ask."""

from __future__ import annotations

import math
import socket
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def box(monkeypatch):
    """Import the modules of the benchmark, which are no package's."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import web_counts
    import web_names
    import web_plan

    yield web_plan, web_names, web_counts
    for name in set(sys.modules) - before:
        if name.startswith("web_"):
            del sys.modules[name]


def test_made_hosts_have_the_published_shares(box):
    plan, _, _ = box
    sites = plan.made_sites(4469, 10_000)
    asked = [count for _, count in Counter(host for host, _ in sites).most_common()]
    assert len(asked) == 4469
    assert [count / 10_000 for count in asked[:4]] == pytest.approx([0.064, 0.020, 0.019, 0.013], abs=0.002)
    assert sum(is_https for _, is_https in sites) / 10_000 == pytest.approx(0.62, abs=0.05)


def test_every_fate_has_its_share(box):
    plan, _, _ = box
    made = plan.make_plan(plan.made_sites(4469, 10_000))
    fates = Counter(made.hosts[row.host].fate.value for row in made.rows)
    said = Counter(row.fate.value for row in made.answering())
    rot = fates["unknown"] + fates["refused"] + said["gone"] + said["html"]
    assert rot / 10_000 == pytest.approx(0.25, abs=0.01)
    silent = [host for host in made.hosts if host.fate.value in ("mute", "unreached")]
    assert len(silent) / len(made.hosts) == pytest.approx(0.05, abs=0.001)
    assert len(made.gettable()) == said["ok"]
    latencies = sorted(host.latency for host in made.hosts)
    assert latencies[len(latencies) // 2] == pytest.approx(0.2, abs=0.02)
    assert [host.limit for host in made.hosts[:5]] == [20, 20, 20, 20, 0]


def test_the_same_seed_gives_the_same_web_and_every_host_an_address(box):
    plan, _, _ = box
    made = plan.make_plan(plan.made_sites(700, 1500))
    assert made == plan.make_plan(plan.made_sites(700, 1500))
    addresses = [host.address for host in made.hosts]
    assert len(set(addresses)) == len(made.hosts)
    assert all(address.startswith("127.") and socket.inet_aton(address) for address in addresses)


def test_rows_come_from_a_file_and_go_round(box, tmp_path):
    plan, _, _ = box
    urls = ["http://a.example/1.jpg", "https://b.example/2.jpg", "https://a.example/3.jpg"]
    pq.write_table(pa.table({"URL": urls}), tmp_path / "rows.parquet")
    sites = plan.real_sites(tmp_path / "rows.parquet", 6)
    assert sites[:3] == [("a.example", False), ("b.example", True), ("a.example", True)]
    assert sorted(sites[3:]) == sorted(sites[:3])


def test_ceilings_are_what_latency_and_the_largest_host_allow(box):
    plan, _, _ = box
    hosts = (
        plan.Host("large", "127.1.0.1", plan.HostFate.ANSWERS, 0.5, False, 20.0),
        plan.Host("small", "127.1.0.2", plan.HostFate.ANSWERS, 0.5, False, 0.0),
        plan.Host("dead", "127.1.0.3", plan.HostFate.MUTE, 0.5, False, 0.0),
    )
    rows = (*[plan.Row(0, False, plan.RowFate.OK)] * 2, plan.Row(1, True, plan.RowFate.GONE), plan.Row(2, True, "ok"))
    made = plan.Plan(hosts, rows)
    # Of three answers two are pictures: 100 in flight at 0.5 s are 200 answers/s. The factor is the mean of the spread.
    assert made.ceiling_by_latency(100) == pytest.approx(200 * 2 / 3, rel=0.05)
    # 20/s of the large host, half of the rows: 40 rows/s, of which every second is a picture.
    assert made.ceiling_by_limits() == 20
    assert math.isinf(plan.Plan((hosts[1],), (plan.Row(0, False, plan.RowFate.OK),)).ceiling_by_limits())


def test_steady_speed_leaves_out_start_and_tail(box):
    _, _, counts = box
    # 100 a tick for 30 ticks, after a slow start and before a long tail of one a tick.
    ticks = [10] * 20 + [100] * 30 + [1] * 200
    assert counts.steady(ticks) == pytest.approx(100 / counts.TICK, rel=0.01)
    assert counts.steady([]) == 0


def test_names_are_answered_on_the_wire(box, monkeypatch):
    plan, names, _ = box
    asked = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0" + b"\x06h00001\x03web\x04test\0" + b"\0\x01\0\x01"
    name, kind, end = names.asked(asked)
    assert (name, kind, end) == ("h00001.web.test", 1, len(asked))
    host = plan.Host(name, "127.1.2.3", plan.HostFate.ANSWERS, 0.2, False, 0.0)
    found = names.answer(asked, kind, host)
    assert found[:8] == b"\x12\x34\x81\x80\0\x01\0\x01"
    assert found.endswith(socket.inet_aton("127.1.2.3"))
    # No IPv6 is no error; no host is.
    assert names.answer(asked, 28, host)[:8] == b"\x12\x34\x81\x80\0\x01\0\0"
    assert names.answer(asked, kind, None)[:8] == b"\x12\x34\x81\x83\0\x01\0\0"


@pytest.mark.parametrize(("machines", "hours", "bound"), [(1, 44.4, "the largest host"), (4, 11.1, "the largest host")])
def test_the_whole_set_takes_as_long_as_its_largest_host(monkeypatch, machines, hours, bound):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cost_of_all

    cost = cost_of_all.Cost(machines, rate=1000, cpu_ms=0.5, limit=20)
    assert cost.hours == pytest.approx(hours, abs=0.1)
    assert bound in cost.line()
    assert cost_of_all.Cost(machines, 1000, 0.5, 0).hours == pytest.approx(50e6 * 0.75 / 1000 / machines / 3600)
