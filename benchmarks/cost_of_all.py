"""What the whole set costs: hours, machines and requests a second, from measured rates.

    python benchmarks/cost_of_all.py --rate 312 --cpu-ms 0.4 [--machines 1 4 16 64] [--limit 20]

`--rate` and `--cpu-ms` are a machine's pictures/s and CPU a picture, as bench_web.py gives them; everything else is
known of the set. Two things bound the time: what the machines fetch, and what the largest host bears of each address.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

#: LAION-Face 50M: its rows; the part of them whose pictures were there in 2024; the largest host's share of the rows.
_ROWS, _THERE, _LARGEST = 50_000_000, 0.75, 0.064
#: Of a picture as it comes, which `download` reckons with, too.
_BYTES = 60_000


@dataclass(frozen=True)
class Cost:
    """What the set costs on so many machines.

    Attributes:
        machines: each with an address of its own.
        rate: pictures/s of one.
        cpu_ms: of a picture.
        limit: requests/s that a host bears of one address; 0 is any number.
    """

    machines: int
    rate: float
    cpu_ms: float
    limit: float

    @property
    def hours_of_fetching(self) -> float:
        """Hours if all hosts gave what is asked of them."""
        return _ROWS * _THERE / (self.rate * self.machines) / 3600

    @property
    def hours_of_largest(self) -> float:
        """Hours until the largest host has been asked for all of its rows."""
        return _ROWS * _LARGEST / (self.limit * self.machines) / 3600 if self.limit else 0.0

    @property
    def hours(self) -> float:
        """Hours in all: the longer of both."""
        return max(self.hours_of_fetching, self.hours_of_largest)

    @property
    def requests(self) -> float:
        """Requests a second, all machines together, retries and redirects aside."""
        return _ROWS / self.hours / 3600

    def line(self) -> str:
        """Format a line of the table."""
        bound = "the largest host" if self.hours_of_largest > self.hours_of_fetching else "fetching"
        cores = self.requests * _THERE * self.cpu_ms / 1e3 / self.machines
        megabits = self.requests * _THERE * _BYTES * 8 / 1e6 / self.machines
        return (
            f"| {self.machines} | {self.hours:,.1f} | {bound} | {self.requests:,.0f} | {self.requests * _LARGEST:,.0f} "
            f"| {cores:.2f} | {megabits:,.0f} |"
        )


def table(machines: list[int], rate: float, cpu_ms: float, limit: float) -> Iterator[str]:
    """Yield the page: what is reckoned with, and a line for each number of machines."""
    yield (
        f"{_ROWS:,} rows, {_THERE:.0%} of their pictures there, {_BYTES / 1e3:.0f} KB each: "
        f"{_ROWS * _THERE * _BYTES / 1e12:.1f} TB. One machine: {rate:,.0f} pictures/s, {cpu_ms:g} ms of CPU each."
    )
    yield ""
    yield (
        "| machines | hours | bound by | requests/s, all | of them to the largest host | cores of each at work "
        "| Mbit/s of each |"
    )
    yield "|" + " ---: |" * 2 + " --- |" + " ---: |" * 4
    for count in machines:
        yield Cost(count, rate, cpu_ms, limit).line()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, required=True, help="pictures/s of one machine, measured")
    parser.add_argument("--cpu-ms", type=float, required=True, help="CPU milliseconds a picture, measured")
    parser.add_argument("--machines", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--limit", type=float, default=20.0, help="requests/s that a host bears of one address; 0: any")
    given = parser.parse_args()
    sys.stdout.write("\n".join(table(given.machines, given.rate, given.cpu_ms, given.limit)) + "\n")


if __name__ == "__main__":
    main()
