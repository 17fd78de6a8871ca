"""Try faults of every kind, and print what came of them as a table: `make faults`, and LONG=1 for the long run.

    python -m tests.support.faults [--long] [--only FAMILY …] [--seconds 3600] [--markdown FILE]

family · tried · as without the fault · clear error · silent · traceback · hung. Of the last three there must be none;
the exit status is 1 if there are. Cases are made from their numbers, and what is wrong is told by its number:
`--only FAMILY --first N --count 1` runs it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from laion_face_builder.sandbox import Hub, Sandbox, SandboxSpec, environment_for
from tests.support import fault_walk
from tests.support.fuzz_answers import Answers
from tests.support.fuzz_child import OUTCOMES, SAME, TRACEBACK, Found, Trial, fuzz
from tests.support.fuzz_files import Flips, StrangeParquet
from tests.support.fuzz_pickles import Pickles
from tests.support.fuzz_pictures import Pictures
from tests.support.fuzz_tars import Tars
from tests.support.kept_files import KINDS, World

#: Tests that kill what runs, and compare what comes of it with what comes without.
_KILLS = (
    *("tests/index/test_prepare.py", "tests/index/test_spread_prepare.py", "tests/download/test_download.py"),
    *("tests/download/test_spread_download.py", "tests/download/test_whole_tars.py"),
)


@dataclass(frozen=True)
class Family:
    """Faults of one kind.

    Attributes:
        trial: makes it of a world.
        short, long: how many there are in the two sizes.
        step: cases of one process: what leaks is forgotten with it, and the clock is looked at.
        numbers: turns the count, with the first one's number, into the numbers of cases.
    """

    trial: Callable[[World], Trial]
    short: int
    long: int
    step: int = 2_000
    numbers: Callable[[int, int], range] = lambda first, count: range(first, first + count)


FAMILIES: dict[str, Family] = {
    f"flipped bits, {len(KINDS)} kinds of file": Family(Flips, 80, 2_000, 100),
    "pickles, changed": Family(
        lambda _: Pickles(), 600, 1_000_000, 10_000, lambda first, n: range(first, first + 2 * n, 2)
    ),
    "pickles, made up": Family(
        lambda _: Pickles(), 600, 100_000, 10_000, lambda first, n: range(first + 1, first + 2 * n, 2)
    ),
    "Parquet of strangers": Family(StrangeParquet, 300, 20_000),
    "tars of strangers": Family(lambda _: Tars(), 200, 20_000),
    "pictures": Family(lambda _: Pictures(), 300, 100_000),
    "answers of hosts": Family(lambda _: Answers(), 150, 20_000),
}


def run(family: Family, world: World, numbers: range, seconds: float = float("inf")) -> Found:
    """Try a family's cases, as many as the seconds allow; some processes one after the other."""
    found, started = Found(), time.monotonic()
    for first in range(0, len(numbers), family.step):
        found.add(fuzz(family.trial(world), numbers[first : first + family.step]))
        if time.monotonic() - started > seconds:
            break
    return found


def row(name: str, outcomes: Mapping[str, int]) -> str:
    """Return a line of the table, as Markdown."""
    cells = [name, *(f"{number:,}" for number in (sum(outcomes.values()), *(outcomes[one] for one in OUTCOMES)))]
    return f"| {' | '.join(cells)} |"


HEAD = "\n".join([f"| family | tried | {' | '.join(OUTCOMES)} |", "|---" * 7 + "|"])


def kills() -> tuple[Counter[str], list[str]]:
    """Run the tests that kill: each that passes is as without the fault."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "-k", "kill or killed or kills"]
    done = subprocess.run([*command, *_KILLS], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    passed = [line for line in lines if line.startswith("PASSED ")]
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return Counter({SAME: len(passed), TRACEBACK: len(failed)}), failed


def fault_points(is_long: bool) -> Iterator[tuple[str, Counter[str], list[str]]]:
    """Walk the places where writers can fail; yield a row for each command."""
    for found in fault_walk.rows(None if is_long else 2, is_full=is_long, say=lambda _: None):
        yield f"calls that fail in {found.family}", found.counts, found.bad


def made(folder: Path) -> World:
    """Make what is damaged: the sandbox's part 0, prepared, downloaded and published.

    The environment has to lead to the sandbox before huggingface_hub is imported: as `main` does.
    """
    from laion_face_builder.examples import parts
    from laion_face_builder.index.prepare import prepare
    from laion_face_builder.options import OptionFields, Options
    from laion_face_builder.publish.publish import publish
    from laion_face_builder.publish.request import PublishRequest

    world = World(folder / "data", folder / "published", folder / "sandbox/metadata", folder / "sandbox/laion-face")
    with Hub() as hub:
        os.environ.update(environment_for(hub, folder / "home"))
        with Sandbox.running(folder / "sandbox", SandboxSpec(parts=(0,), rows=1200), hub=hub):
            options = Options.of("20M", OptionFields(parts="0", allow_private_hosts=True), world.data)
            prepare(options.data, options.parts, options.upstream)
            for _ in parts.download(options, parts.download_options(options, processes_count=1)):
                pass
            publish(PublishRequest(options.data, str(world.published)))
    return world


def main() -> None:
    """Print the table; exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="as many as SECURITY.md speaks of: hours")
    parser.add_argument("--only", nargs="*", help="beginnings of families' names")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each family, about")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--markdown", type=Path, help="the table goes into this file too")
    given = parser.parse_args()
    lines = [HEAD]
    wrong: list[str] = []
    print(HEAD)

    def note(name: str, outcomes: Counter[str], bad: list[str]) -> None:
        lines.append(row(name, outcomes))
        wrong.extend(f"{name}: {one}" for one in bad)
        print(lines[-1], flush=True)

    def is_wanted(name: str) -> bool:
        return given.only is None or any(name.startswith(one) for one in given.only)

    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        world = made(Path(folder))
        for name, family in FAMILIES.items():
            if is_wanted(name):
                count = given.count or (family.long if given.long else family.short)
                found = run(family, world, family.numbers(given.first, count), given.seconds)
                note(name, found.outcomes, found.wrong)
    # They are tests as well, and take minutes: the short table leaves them out, unless they are named.
    if is_wanted("kills") and (given.long or given.only):
        note("kills", *kills())
    if is_wanted("calls that fail") and (given.long or given.only):
        for name, outcomes, bad in fault_points(given.long):
            note(name, outcomes, bad)
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
