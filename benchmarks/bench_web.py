"""A simulated web on loopback, "the web in a box": our streams and our download beside what people use instead.

    python benchmarks/bench_web.py --quick                                  (about two minutes)
    python benchmarks/bench_web.py --rows-from PARQUET_WITH_A_COLUMN_URL    (the whole; an idle machine)

The hosts, shares and https of 10,000 real URLs (or made ones with the same shares) on loopback addresses, in
namespaces with names and certificates of their own: latencies log-normal with a median of 200 ms, 2 % of names slow,
5 % of hosts silent, 25 % rot, and 429 with Retry-After from the four largest hosts above 20 requests a second. See
`web_plan` for what is drawn, `web_server` for how it is served, `web_peers` for the clients, README for the columns.

What is timed begins with a client's first request, so without imports and start-up, for all in the same way.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import web_box
from bench_stream import write_index
from measuring import Family
from web_counts import steady
from web_peers import PEERS, Settings
from web_plan import Plan, made_sites, make_plan, real_sites

#: Clients that need what an installation of ours does not bring.
_ELSEWHERE = ("daft", "ray")
#: What imports and start-up may take on a busy machine.
_START_SECONDS = 900
_SIZE = (480, 360)


@dataclass(frozen=True)
class Outcome:
    """One client's run.

    Attributes:
        steady: pictures a second while the middle three fifths of all pictures were sent, by the server's clock.
        whole: pictures that the client had, by the seconds from its first request to its end.
        seconds: these.
        cpu: seconds of the client and its children from the first request on.
        peak: of their memory, GB.
        pictures: that the client had; what the server sent, if it was cut.
        ended_by: what ended it early.
        server: the server's counts.
    """

    steady: float
    seconds: float
    cpu: float
    peak: float
    pictures: int
    ended_by: str
    server: dict[str, Any]

    @property
    def whole(self) -> float:
        """Pictures a second, from the first request to the end."""
        return self.pictures / max(self.seconds, 1e-9)


def run(name: str, web: web_box.Web, settings: Settings, given: argparse.Namespace) -> Outcome | str:
    """Run a client, for so many seconds at most; return what it did, or why it could not run."""
    python = given.other_python if name in _ELSEWHERE else sys.executable
    command = [python, str(Path(__file__).with_name("web_peers.py")), name, json.dumps(dataclasses.asdict(settings))]
    web.reset()
    with (
        Path(settings.folder, "log").open("wb") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(web),
            start_new_session=True,
        ) as process,
    ):
        family = Family(process.pid, of_one=True)
        family.start()
        try:
            started = _started(web, process)
            before = family.cpu()
            said, at = _said(process, given.seconds if started else 1.0), time.monotonic()
            cpu = family.cpu() - before
            counts = web.report()
        finally:
            family.ended.set()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if "missing" in said or not counts["requests"]:
        return str(said.get("missing", "asked for nothing"))
    ended_by = said.get("ended_by", "cut" if at - counts["first"] >= given.seconds else "no result")
    return Outcome(
        steady(counts["ticks"]),
        said.get("at", at) - counts["first"],
        cpu,
        family.peak / 1e6,
        said.get("pictures", counts["delivered"]),
        ended_by,
        counts,
    )


def _started(web: web_box.Web, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the first request; False if the client ends without one."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        if web.first.wait(0.02):
            return True
    return False


def _said(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """Return the client's one line; empty if it has not written it in time."""
    try:
        written, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {}
    lines = written.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


def _environment(web: web_box.Web) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    trusted = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), str(web.authority))
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "DO_NOT_TRACK": "true"}
    return kept | trusted | quiet


def rounds(plan: Plan, given: argparse.Namespace) -> Iterator[tuple[str, Outcome | str]]:
    """Run all clients, one after the other, as often as asked."""
    with tempfile.TemporaryDirectory(prefix="web-rows-") as name, web_box.opened(plan) as web:
        urls, gettable = plan.urls(), set(plan.gettable())
        Path(name, "urls").write_text("\n".join(urls), encoding="utf-8")
        good = [url for number, url in enumerate(urls) if number in gettable]
        Path(name, "gettable").write_text("\n".join(good), encoding="utf-8")
        for number in range(given.rounds):
            for peer in given.peers:
                # A data directory of its own: a download leaves its pictures there.
                with tempfile.TemporaryDirectory(dir=name) as own:
                    write_index(Path(own), urls, _SIZE)
                    settings = Settings(
                        *(own, f"{name}/urls", f"{name}/gettable", own),
                        *(given.in_flight, given.timeout, given.retries),
                    )
                    found = run(peer, web, settings, given)
                    sys.stderr.write(f"round {number + 1}, {peer}: {_short(found)}\n")
                    if given.logs and Path(own, "log").exists():
                        Path(given.logs, f"{peer}-{number + 1}.log").write_bytes(Path(own, "log").read_bytes())
                yield peer, found


def _short(found: Outcome | str) -> str:
    if isinstance(found, str):
        return found
    return f"{found.pictures:,} pictures in {found.seconds:.1f} s {found.ended_by}".strip()


_HEAD = (
    "| client | pictures/s | of the ceiling % | to the end: pictures/s | seconds | CPU ms/picture | peak GB "
    "| got, % of what can be had | requests | of them 429 | connections | most at once | server busy % |\n"
    "| --- |" + " ---: |" * 12
)


def line(peer: str, found: Sequence[Outcome | str], plan: Plan, given: argparse.Namespace) -> str:
    """Format a line of the table: medians over the rounds."""
    title = PEERS[peer][1]
    ran = [one for one in found if not isinstance(one, str)]
    if not ran:
        return f"| {title} | " + f"{found[0]} |" + " |" * 11
    ceiling = min(plan.ceiling_by_latency(given.in_flight), plan.ceiling_by_limits())

    def middle(values: Iterator[float]) -> float:
        return statistics.median(values)

    ends = sorted({one.ended_by for one in ran if one.ended_by})
    title += f" (ended: {', '.join(ends)})" if ends else ""
    cells = [
        f"{middle(one.steady for one in ran):,.0f}",
        f"{middle(100 * one.steady / ceiling for one in ran):.0f}",
        f"{middle(one.whole for one in ran):,.0f}",
        f"{middle(one.seconds for one in ran):.0f}",
        f"{middle(1e3 * one.cpu / max(one.pictures, 1) for one in ran):.2f}",
        f"{middle(one.peak for one in ran):.2f}",
        f"{middle(100 * one.pictures / len(plan.gettable()) for one in ran):.1f}",
        *(
            f"{middle(one.server[key] for one in ran):,.0f}"
            for key in ("requests", "throttled", "connections", "most_at_once")
        ),
        f"{middle(100 * one.server['cpu'] / one.server['seconds'] for one in ran):.0f}",
    ]
    return f"| {title} | " + " | ".join(cells) + " |"


def about(plan: Plan, given: argparse.Namespace) -> str:
    """Describe the simulated web, and the speed that it allows."""
    gettable, rows = len(plan.gettable()), len(plan.rows)
    limits = plan.ceiling_by_limits()
    text = (
        f"{rows:,} rows on {len({row.host for row in plan.rows}):,} hosts, "
        f"{100 * sum(row.is_https for row in plan.rows) / rows:.0f} % by https; {gettable:,} pictures can be had. "
        f"{given.in_flight} in flight by their latencies: {plan.ceiling_by_latency(given.in_flight):,.0f} pictures/s"
    )
    if not math.isinf(limits):
        text += f"; the largest host at {given.limit:g} requests/s and its share: {limits:,.0f} pictures/s for ever"
    return f"{text}. Timeout {given.timeout:g} s, {given.retries} retries, rounds: {given.rounds}.\n"


def server_cost(outcomes: Sequence[Outcome]) -> str:
    """Say what CPU the server itself took."""
    requests = sum(one.server["requests"] for one in outcomes)
    cpu = sum(one.server["cpu"] for one in outcomes)
    busiest = max((one.server["cpu"] / one.server["seconds"] for one in outcomes), default=0.0)
    word = "" if busiest < 0.7 else " It may have held clients up: take fewer in flight."
    return (
        f"The server: {1e6 * cpu / max(requests, 1):,.0f} us of CPU a request, handshakes and names included, and "
        f"{100 * busiest:.0f} % of one core at most over a client's run.{word}\n"
    )


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows-from", type=Path, help="Parquet file with a column url; default: made ones")
    parser.add_argument("--rows", type=int, default=20_000, help="URLs in all")
    parser.add_argument("--hosts", type=int, default=4469, help="of made ones")
    parser.add_argument("--seconds", type=float, default=600.0, help="the most that one client may take")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for a picture")
    parser.add_argument("--retries", type=int, default=2)
    parser.add_argument(
        "--limit", type=float, default=20.0, help="requests/s that each of the four largest hosts bears; 0: any"
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    parser.add_argument("--other-python", default=sys.executable, help="an interpreter that has Daft and Ray")
    parser.add_argument("--logs", type=Path, help="a folder for what the clients print")
    parser.add_argument("--quick", action="store_true", help="a small web, to try it")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.hosts, given.timeout, given.seconds = 1000, 450, 4.0, 30.0
    return given


def main() -> None:
    given = parsed()
    if not web_box.entered():
        web_box.enter()
    sites = real_sites(given.rows_from, given.rows) if given.rows_from else made_sites(given.hosts, given.rows)
    plan = make_plan(sites, limit=given.limit)
    sys.stdout.write(f"{about(plan, given)}\n{_HEAD}\n")
    outcomes: dict[str, list[Outcome | str]] = {peer: [] for peer in given.peers}
    for peer, found in rounds(plan, given):
        outcomes[peer].append(found)
        if len(outcomes[peer]) == given.rounds:
            sys.stdout.write(line(peer, outcomes[peer], plan, given) + "\n")
            sys.stdout.flush()
    ran = [one for found in outcomes.values() for one in found if not isinstance(one, str)]
    sys.stdout.write(f"\n{server_cost(ran)}")


if __name__ == "__main__":
    main()
