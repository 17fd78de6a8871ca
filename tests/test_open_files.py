"""The limit of open files is raised, and what is left of it bounds the connections; in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hostile_host import HostileHost

SCRIPT = """
import json, logging, resource, sys
soft, hard, concurrency, url = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
from laion_face_builder.fetch.addresses import AddressRule
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("laion_face").addHandler(handler)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
limits = FetchLimits(allow=AddressRule(allow_private=True), concurrency=concurrency, per_host=concurrency, retries=0)
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
