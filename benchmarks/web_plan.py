"""What the web in a box consists of: hosts with their habits, rows with their fates, and what can be had of it.

A plan is a plain value that the server, the clients and the table are made from; the same seed gives the same plan.
Hosts are called h00000.web.test and so on, one loopback address each, so that no name or request can mean a real site;
their shares, and http or https of each URL, are those of the addresses it is made from.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

DOMAIN = "web.test"
#: Published shares of 10,000 real URLs: 4,469 hosts, the four largest of them, and https.
_HOSTS, _URLS, _LARGEST, _HTTPS = 4469, 10_000, (0.064, 0.020, 0.019, 0.013), 0.62
#: The first of the rest has about so much; the others follow a power law down to one URL each.
_FIFTH = 0.010
#: Seconds: the median over hosts, and how far hosts differ, and one host's answers (sigmas of log-normals).
_MEDIAN, _HOST_SIGMA, _ANSWER_SIGMA, _SLOWEST = 0.2, 0.5, 0.25, 5.0
#: Shares: of hosts that are silent and of names that are slow; then of rows that are lost, 25 % in all.
_SILENT, _SLOW_NAMES = 0.05, 0.02
_UNKNOWN, _REFUSED, _GONE, _HTML = 0.05, 0.03, 0.11, 0.06
#: The largest hosts are up, and have habits of their own: they bear so many requests a second.
_LARGE = 10
_SPREAD = 1021


class HostFate(str, Enum):
    """What becomes of a connection to a host."""

    ANSWERS = "answers"
    UNKNOWN = "unknown"  # its name does not exist
    REFUSED = "refused"  # nothing listens
    MUTE = "mute"  # accepts and never says a word
    UNREACHED = "unreached"  # packets that open a connection are not answered


class RowFate(str, Enum):
    """What a host that answers says to a request; the first piece of its path."""

    OK = "ok"
    GONE = "gone"  # 404
    HTML = "html"  # 200, and a page that says that it is gone


@dataclass(frozen=True)
class Host:
    """One host.

    Attributes:
        name: of the host.
        address: on loopback, its own.
        fate: what becomes of a connection.
        latency: median seconds from a request to its answer.
        is_slow_name: whether the first look-up of its name takes seconds.
        limit: requests a second that it bears; 0 is any number.
    """

    name: str
    address: str
    fate: HostFate
    latency: float
    is_slow_name: bool
    limit: float


@dataclass(frozen=True)
class Row:
    """One URL: the position of its host, whether by https, and what is said to it."""

    host: int
    is_https: bool
    fate: RowFate


@dataclass(frozen=True)
class Plan:
    """The whole web. A row's number is in its URL."""

    hosts: tuple[Host, ...]
    rows: tuple[Row, ...]

    def urls(self) -> list[str]:
        """Return the URLs of all rows, in order."""
        return [
            f"http{'s' if row.is_https else ''}://{self.hosts[row.host].name}/{row.fate.value}/{number}.jpg"
            for number, row in enumerate(self.rows)
        ]

    def answering(self) -> list[Row]:
        """Return the rows that are answered, whatever the answer."""
        return [row for row in self.rows if self.hosts[row.host].fate is HostFate.ANSWERS]

    def gettable(self) -> list[int]:
        """Return the numbers of the rows whose pictures a patient client gets."""
        return [
            number
            for number, row in enumerate(self.rows)
            if row.fate is RowFate.OK and self.hosts[row.host].fate is HostFate.ANSWERS
        ]

    def ceiling_by_latency(self, in_flight: int) -> float:
        """Return pictures a second if `in_flight` requests are always open and nothing but answers is waited for."""
        waited = sum(self.hosts[row.host].latency for row in self.answering()) * math.exp(_ANSWER_SIGMA**2 / 2)
        return in_flight * len(self.gettable()) / waited

    def ceiling_by_limits(self) -> float:
        """Return pictures a second at which the host with the least limit for its share is asked as often as it bears.

        What runs for long goes no faster, in whichever order: that host's rows pile up. Infinite without limits.
        """
        asked = Counter(row.host for row in self.rows)
        rates = [host.limit / asked[at] for at, host in enumerate(self.hosts) if host.limit and asked[at]]
        return min(rates, default=math.inf) * len(self.gettable())

    def shortest(self, in_flight: int) -> float:
        """Return the seconds that a client that makes no mistake needs for all rows."""
        return len(self.gettable()) / min(self.ceiling_by_latency(in_flight), self.ceiling_by_limits())


def spread(number: int) -> float:
    """Return the factor by which the answer to row `number` is later than its host's median, or earlier."""
    return _SPREADS[number * 7919 % _SPREAD]


_SPREADS = [math.exp(random.Random(at).gauss(0, _ANSWER_SIGMA)) for at in range(_SPREAD)]


def real_sites(path: Path, rows: int) -> list[tuple[str, bool]]:
    """Read host and https of each of `rows` URLs, from the column url of a Parquet file (in upper or lower case).

    A file with fewer is gone through again, each time in another order.
    """
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    (column,) = [name for name in names if name.lower() == "url"]
    found = [urlsplit(url.strip()) for url in pq.read_table(path, columns=[column])[column].to_pylist()]
    sites = [(site.hostname, site.scheme == "https") for site in found if site.hostname]
    return _repeated(sites, rows)


def made_sites(hosts: int, rows: int) -> list[tuple[str, bool]]:
    """Make host and https of each of `rows` URLs with the published shares, of about `hosts` hosts."""
    shares = _shares(hosts)
    total = round(hosts * _URLS / _HOSTS)
    counts = [max(1, round(share * total)) for share in shares]
    rng = random.Random(3)
    secure = [rng.random() < _HTTPS for _ in counts]
    sites = [(str(at), secure[at]) for at, count in enumerate(counts) for _ in range(count)]
    rng.shuffle(sites)
    return _repeated(sites, rows)


def _shares(hosts: int) -> list[float]:
    """Return all shares, largest first: a power law after the four that are known, so steep that they add up to 1."""
    least = _HOSTS / _URLS / hosts

    def with_slope(slope: float) -> list[float]:
        rest = (max(least, _FIFTH * (5 / rank) ** slope) for rank in range(5, hosts + 1))
        return [*_LARGEST, *rest][:hosts]

    low, high = 0.0, 8.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(with_slope(middle)) > 1 else (low, middle)
    return with_slope(high)


def _repeated(sites: Sequence[tuple[str, bool]], rows: int) -> list[tuple[str, bool]]:
    rng = random.Random(5)
    found = list(sites)
    while len(found) < rows:
        found += rng.sample(list(sites), len(sites))
    return found[:rows]


def make_plan(sites: Iterable[tuple[str, bool]], *, limit: float = 20.0, seed: int = 11) -> Plan:
    """Give every host and row its fate.

    Args:
        sites: host and https of each row.
        limit: requests a second that each of the four largest hosts bears; 0 is any number.
        seed: of all that is drawn.
    """
    sites = list(sites)
    rng = random.Random(seed)
    asked = Counter(host for host, _ in sites)
    order = [host for host, _ in asked.most_common()]
    fates = _host_fates(asked, order, rng)
    hosts = tuple(
        Host(
            name=f"h{at:05d}.{DOMAIN}",
            address=f"127.{1 + at // 62500}.{at // 250 % 250}.{1 + at % 250}",
            fate=fates.get(name, HostFate.ANSWERS),
            latency=min(_SLOWEST, _MEDIAN * math.exp(rng.gauss(0, _HOST_SIGMA))),
            is_slow_name=at >= _LARGE and rng.random() < _SLOW_NAMES,
            limit=limit if at < len(_LARGEST) else 0.0,
        )
        for at, name in enumerate(order)
    )
    position = {name: at for at, name in enumerate(order)}
    answering = sum(hosts[position[name]].fate is HostFate.ANSWERS for name, _ in sites)
    # Shares are of all rows, and are drawn among those that are answered.
    bounds = list(itertools.accumulate(share * len(sites) / answering for share in (_GONE, _HTML)))
    return Plan(hosts, tuple(Row(position[name], secure, _row_fate(rng.random(), bounds)) for name, secure in sites))


def _row_fate(drawn: float, bounds: Sequence[float]) -> RowFate:
    gone, html = bounds
    return RowFate.GONE if drawn < gone else RowFate.HTML if drawn < html else RowFate.OK


def _host_fates(asked: Counter[str], order: Sequence[str], rng: random.Random) -> dict[str, HostFate]:
    """Choose fates other than answering: silent hosts by number, the rest until they have their share of the rows."""
    left = list(order[_LARGE:])
    rng.shuffle(left)
    silent = round(_SILENT * len(order))
    fates = {name: HostFate.MUTE if at % 2 else HostFate.UNREACHED for at, name in enumerate(left[:silent])}
    rest = iter(left[silent:])
    for fate, share in ((HostFate.UNKNOWN, _UNKNOWN), (HostFate.REFUSED, _REFUSED)):
        wanted = share * asked.total()
        while wanted > 0 and (name := next(rest, None)) is not None:
            fates[name] = fate
            wanted -= asked[name]
    return fates
