"""Bars and lines: at a terminal of any width, from several threads, nothing lands inside anything."""

import collections
import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm.utils import disp_len

from laion_face_builder import progress
from laion_face_builder.progress.drawn import DrawnBar, fitted, shortened
from laion_face_builder.progress.logged import LoggedBar
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from tests.support.terminal import Screen, run_in_terminal

PARTS = (0, 2)
#: A bar with its end: counts, a time or a percentage.
BAR = re.compile(r"(?P<text>.*?)(: )?( {0,2}\d{1,3}%(\|.*\| \S+/\S+( \[.*\])?| \S+/\S+)?|: \S+( \[.*\])?)")

#: The real commands, while four threads warn of things; every message is noted in a file.
COMMANDS = """
import json, logging, sys, threading
from laion_face_builder import progress
from laion_face_builder.cli import main

noted, *commands = sys.argv[1:]

class Noted(logging.Handler):
    def emit(self, record):
        with open(noted, "a", encoding="utf-8") as file:
            file.write(json.dumps(record.getMessage()) + "\\n")

logging.getLogger().addHandler(Noted())
progress.talk_to_stderr()
over = threading.Event()

def warn(number):
    count = 0
    while not over.wait(0.01 * number):
        count += 1
        logging.getLogger("laion_face").warning("warning %d of thread %d: %s", count, number, "café " * (count % 7))

threads = [threading.Thread(target=warn, args=(number,)) for number in range(1, 5)]
for thread in threads:
    thread.start()
try:
    codes = [main(json.loads(command)) for command in commands]
finally:
    over.set()
    for thread in threads:
        thread.join()
sys.exit(max(codes))
"""


def is_bar(line, columns):
    return len(line) < columns and BAR.fullmatch(line) is not None


@pytest.fixture(scope="module")
def small(tmp_path_factory, hub):
    """Serve two small parts, under a name of their own on the Hub."""
    spec = SandboxSpec(parts=PARTS, rows=150, failing=0.1, slow=0.05)
    with Sandbox.running(tmp_path_factory.mktemp("small"), spec, hub=hub, namespace="bars") as box:
        yield box


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_every_line_of_a_job_is_a_whole_bar_or_a_whole_message(small, tmp_path, columns):
    # So that files, and parts, take long enough to be seen side by side.
    small.hub.plant("/resolve/", calls=range(1, 1000), delay=0.3)
    data, both = ["--data-dir", str(tmp_path / "a data dir")], ["--parts", ",".join(map(str, PARTS))]
    sources = ["--source-repo", small.repo, "--metadata", small.metadata_repo]
    how = [*sources, "--processes", "1", "--samples-per-shard", "20", "--allow-private-hosts"]
    commands = [
        ["prepare", "20M", *both, *data, *sources, "--processes", "2"],
        ["download", "20M", "--parts", "0", *data, *how, "--format", "json"],
        ["publish", str(tmp_path / "published"), *data, *both],
    ]
    seen, bars = [], set()

    def look(screen):  # the cursor's own line may be half written
        lines = screen.lines(but=screen.row, first=max(0, len(screen.rows) - 16))
        found = {line for line in lines[-8:] if is_bar(line, columns)}
        bars.update(found)
        seen.append(len(found))

    environment = {**os.environ, **small.environment, "TERM": "xterm", "PYTHONUTF8": "1"}
    code, screen, _ = run_in_terminal(
        [sys.executable, "-c", COMMANDS, str(tmp_path / "noted"), *map(json.dumps, commands)],
        columns,
        environment,
        look,
    )
    noted = [json.loads(line) for line in (tmp_path / "noted").read_text(encoding="utf-8").splitlines()]
    printed = [line for line in screen.lines() if line.startswith('{"part": ')]
    assert code == 0, screen.lines()[-5:]
    assert len(printed) == 1
    shown, said = (collections.Counter(line.rstrip() for line in lines) for lines in (screen.lines(), noted + printed))
    assert (shown - said, said - shown) == ({}, {})
    assert any(message.startswith("warning") for message in noted)
    assert max(seen) > 1, "no two bars at the same time were seen"
    assert any(f"part 2 of {len(PARTS)}" in bar for bar in bars), bars


@given(
    st.integers(0, 200),
    st.tuples(st.sampled_from(["", "part 3 of 13", "part 13 of 13"]), st.text(max_size=90)),
    st.lists(st.text(max_size=20), max_size=4),
    st.one_of(st.none(), st.integers(0, 10**12)),
    st.integers(0, 10**12),
    st.sampled_from(["utf-8", "ascii", "latin-1"]),
)
def test_a_bar_fits_into_any_width(width, described, notes, total, n, encoding):
    meter = {"n": n, "total": total, "elapsed": 61.0, "unit": "B", "unit_scale": True, "rate": 1e6, "initial": 0}
    line = fitted(meter, described, notes, width, encoding)
    assert disp_len(line) <= width
    assert line.isprintable()
    line.encode(encoding)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (100, "part 3 of 13: sample2detect_8.pth:  50%|████████████▌            | 450M/900M [01:30<00:30, 15.0MB/s]"),
        (79, "part 3 of 13: sample2…t_8.pth:  50%|████    | 450M/900M [01:30<00:30, 15.0MB/s]"),
        (60, "part 3 of 13: sam….pth:  50%|███   | 450M/900M [01:30<00:30]"),
        (39, "part 3 of 13:  50%|████▌    | 450M/900M"),
        (30, "part 3 of 13:  50% 450M/900M"),
        (19, "part 3 of 13:  50%"),
        (5, "50%"),
    ],
)
def test_what_has_no_room_is_left_out(width, line):
    meter = {"n": 450_000_000, "total": 900_000_000, "elapsed": 90.0, "unit": "B", "unit_scale": True, "rate": 15e6}
    drawn = fitted(meter | {"initial": 0}, ("part 3 of 13", "sample2detect_8.pth"), (), width)
    assert re.sub(r"\|.*\|", "|#|", drawn).split() == re.sub(r"\|.*\|", "|#|", line).split()


def test_names_are_shortened_in_the_middle():
    assert shortened("part-00000-5b54c5d5-bbcf-484d.snappy.parquet", 20) == "part-0000…py.parquet"
    assert shortened("short", 20) == "short"


def test_notes_are_shown_as_far_as_there_is_room():
    meter = {"n": 600, "total": 1200, "elapsed": 30.0, "unit": " pictures", "unit_scale": False, "rate": 20.0}
    notes = ("84.0% good", "5.2 MB", "http_404 12", "timeout 3")
    wide, narrow = (fitted(meter | {"initial": 0}, ("", "part 8"), notes, width) for width in (120, 70))
    assert "20.00 pictures/s, 84.0% good, 5.2 MB, http_404 12, timeout 3]" in wide
    assert "84.0% good, 5.2 MB]" in narrow


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    yield Terminal()
    progress.set_quiet(False)


def at(terminal):
    """Take the terminal as sys.stderr; not in the fixture, after which pytest puts its own there."""
    return contextlib.redirect_stderr(terminal)


def job():
    with progress.bar("work", 3) as bar:
        for _ in range(3):
            progress.say("one line")
            bar.update()


def test_at_a_terminal_bars_are_drawn_and_gone_in_the_end(terminal):
    with at(terminal):
        job()
    screen = Screen(80)
    screen.feed(terminal.getvalue())
    assert "work:   0%|" in terminal.getvalue()
    assert screen.lines() == ["one line"] * 3
    assert "\x1b[" not in terminal.getvalue().replace("\x1b[A", ""), "colour"


@pytest.mark.parametrize("why", ["quiet", "dumb", "file"])
def test_otherwise_there_are_lines_only(terminal, monkeypatch, why):
    if why == "quiet":
        progress.set_quiet(True)
    elif why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    with at(terminal):
        job()
    assert terminal.getvalue() == "one line\n" * 3


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_where_no_bar_can_be_drawn_there_is_a_line_a_minute(caplog):
    # The line comes also while nothing gets done; the pace is that of the last minutes, not that before a restart.
    clock = Clock()
    bar = LoggedBar("part 3 of 13", "part 8", total=1_000_000, unit="picture", done=400_000, clock=clock)
    with caplog.at_level(logging.INFO), bar:
        for _ in range(59):
            clock.now += 1
            bar.update(500)
        assert not caplog.messages
        bar.note("84.0% good", "5.2 GB", "http_404 12")
        clock.now += 1
        bar.advance_to(430_000)
        bar.advance_to(430_100)
        clock.now += 60
        bar.tick()
        bar.tick()
        for _ in range(20):
            clock.now += 60
            bar.tick()
    assert len(caplog.messages) == 22
    assert caplog.messages[0] == (
        "part 3 of 13: part 8: 430,000 of 1,000,000 pictures (43.0%), 500 pictures/s, 19 min left, "
        "84.0% good, 5.2 GB, http_404 12"
    )
    assert "430,100 of 1,000,000 pictures (43.0%), 251 pictures/s, 38 min left" in caplog.messages[1]
    assert "0 pictures/s, nothing is coming in" in caplog.messages[-1]


def test_lines_count_bytes_and_what_has_no_end(caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO):
        for total, unit in ((None, "row"), (900_000_000, "B"), (3, "part"), (0, "part")):
            bar = LoggedBar("", "work", total=total, unit=unit, clock=clock)
            clock.now += 60
            bar.update(3)
    assert caplog.messages == [
        "work: 3 rows, 0.1 rows/s",
        "work: 3 B of 900.0 MB (0.0%), 0 B/s, 5000000.0 hours left",
        "work: 3 of 3 parts (100.0%), 0.1 parts/s",
        "work: 3 parts, 0.1 parts/s",
    ]


LOGGED = """
import json, sys
from laion_face_builder import cli
from laion_face_builder.progress import logged
logged.INTERVAL = 0.0
sys.exit(cli.main(json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("shape", ["human", "quiet"])
def test_a_download_without_a_terminal_says_how_far_it_is(small, tmp_path, shape):
    data = ["--data-dir", str(tmp_path), "--parts", "0", "--source-repo", small.repo]
    prepare = ["prepare", "20M", *data, "--metadata", small.metadata_repo]
    download = ["download", "20M", *data, "--processes", "1", "--samples-per-shard", "20", "--allow-private-hosts"]
    for words in (prepare, [*download, "--format", shape]):
        done = subprocess.run(
            [sys.executable, "-c", LOGGED, json.dumps(words)],
            env={**os.environ, **small.environment},
            capture_output=True,
            text=True,
            check=True,
        )
    lines = [line for line in done.stderr.splitlines() if re.match(r"part 0: [\d,]+ of [\d,]+ pictures \(", line)]
    assert bool(lines) == (shape == "human")
    assert not lines or re.search(r"pictures/s, .*\d% good, .*B, \w+ \d", lines[-1]), lines
    assert "\r" not in done.stderr


def test_bars_say_where_the_job_stands(terminal):
    with at(terminal), progress.nth("part", 3, 13), progress.bar("faces", 10):
        pass
    with at(terminal), progress.nth("part", 1, 1), progress.bar("whole", 10):
        pass
    drawn = terminal.getvalue()
    assert "part 3 of 13: faces:   0%|" in drawn
    assert "\rwhole:   0%|" in drawn


def test_time_passes_while_nothing_gets_done(terminal):
    with at(terminal), progress.bar("work", 3) as bar:
        drawn = terminal.getvalue().count("work:")
        bar.tick()
        bar.tick()
        assert terminal.getvalue().count("work:") == drawn + 1
        bar.start_t -= 75
        bar.ticked -= 1
        bar.tick()
    assert "work:   0%|" in terminal.getvalue()
    assert "[01:15<?" in terminal.getvalue()


def test_threads_know_where_their_own_part_stands(terminal):
    met = threading.Barrier(2, timeout=60)

    def work(number):
        with progress.nth("part", number, 2):
            met.wait()
            with progress.bar(f"the {number}.", 1):
                met.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    with at(terminal):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    screen = Screen(80)
    screen.feed(terminal.getvalue())
    assert {"part 1 of 2: the 1.:", "part 2 of 2: the 2.:"} <= set(
        re.findall(r"part . of 2: the .\.:", terminal.getvalue())
    )
    assert screen.lines() == []


def test_a_line_that_is_said_while_a_bar_is_drawn_waits_for_nobody(terminal):
    # An object that is dropped may log wherever memory is tidied up: also while the lock of the bars is held.
    logger = logging.getLogger("laion_face.test")
    logger.addHandler(progress.Lines())
    logger.propagate = False
    other = threading.Thread(target=logger.warning, args=("from another thread",))
    with at(terminal):
        with progress.bar("work", 2), DrawnBar.get_lock():
            other.start()
            logger.warning("from this one")
        other.join(timeout=60)
    screen = Screen(80)
    screen.feed(terminal.getvalue())
    assert screen.lines() == ["from this one", "from another thread"]


WORKERS = """
import logging, multiprocessing, sys
from laion_face_builder import progress

def work(number):
    with progress.bar("in a worker", 1):
        logging.getLogger("laion_face").warning("line of worker %d", number)

if __name__ == "__main__":
    progress.talk_to_stderr()
    with progress.bar("in the parent", 4) as bar:
        with multiprocessing.get_context(sys.argv[1]).Pool(2, progress.talk_to_stderr) as pool:
            for _ in pool.imap_unordered(work, range(4), chunksize=1):
                bar.update()
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_worker_processes_say_lines_and_draw_nothing(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(WORKERS, encoding="utf-8")
    environment = {**os.environ, "TERM": "xterm"}
    code, screen, sent = run_in_terminal([sys.executable, str(script), how], 80, environment)
    assert code == 0
    assert "in a worker" not in sent
    assert sorted(screen.lines()) == [f"line of worker {number}" for number in range(4)]


def test_the_command_line_does_not_wait_for_the_bars_library():
    code = (
        "import sys; from laion_face_builder import cli, progress\n"
        "progress.talk_to_stderr(); print('tqdm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
