"""Tasks spread over worker processes: each ends once, whatever becomes of its worker."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from laion_face_builder.distribute import each
from laion_face_builder.engines import TRIES
from laion_face_builder.errors import BadFile, LaionFaceError, OptionError, WorkerDied
from tests.support.waiting import kill_when, wait_until

PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from laion_face_builder.distribute import each
from tests import test_distribute

if __name__ == "__main__":
    for done in each(test_distribute.wait_for_ever, sys.argv[2:], workers=2):
        pass
"""


def square(number):
    return number * number


def kill_once(task):
    """Die at the first call, and leave `task` there; answer at a later one."""
    path = Path(task)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def kill_if_odd(number):
    if number % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


class Foreign(Exception):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail(number):
    if number == 1:
        raise BadFile("x", found="a", expected="b", way_out="c")
    raise Foreign(number, "more")


def say(number):
    logging.getLogger("laion_face").info("said %d", number)
    logging.getLogger("laion_face").warning("warned %d", number)


def wait_for_ever(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def test_every_task_ends_once_in_other_processes():
    found = sorted((done.task, done.result()) for done in each(square, range(20), workers=2))
    assert found == [(number, number * number) for number in range(20)]
    (one,) = each(kill_if_odd, [0], workers=1)
    assert one.result() != os.getpid()


def test_no_more_tasks_are_taken_than_are_at_work():
    numbers = iter(range(100))
    running: Any = each(square, numbers, workers=2)
    next(running)
    assert next(numbers) <= 4
    running.close()


def test_a_worker_that_dies_once_costs_nothing_else(tmp_path):
    tasks = [str(tmp_path / f"{number}") for number in range(4)]
    assert sorted(done.result() for done in each(kill_once, tasks, workers=2)) == ["0", "1", "2", "3"]


def test_a_task_that_always_kills_its_worker_fails_alone():
    found = {done.task: done for done in each(kill_if_odd, range(6), workers=2)}
    assert sorted(found) == list(range(6))
    assert all(found[number].error is None for number in (0, 2, 4))
    for number in (1, 3, 5):
        with pytest.raises(WorkerDied, match=f"ended {TRIES} times, at last with SIGKILL"):
            found[number].result()


def test_what_a_task_raises_is_its_own():
    errors = {done.task: done.error for done in each(fail, [1, 2], workers=1)}
    assert type(errors[1]) is BadFile
    assert errors[1].way_out == "c"
    assert type(errors[2]) is LaionFaceError
    assert str(errors[2]) == "Foreign: 2 and more"


def test_what_a_task_logs_is_said_here(caplog):
    caplog.set_level("INFO", "laion_face")
    list(each(say, [1, 2], workers=1))
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("INFO", "said 1"), ("WARNING", "warned 1"), ("INFO", "said 2"), ("WARNING", "warned 2")]


def test_closing_ends_what_is_under_way(tmp_path):
    long = tmp_path / "long"
    running: Any = each(wait_or_square, [str(long), 3], workers=2)
    assert next(running).result() == 9
    wait_until(lambda: long.exists() and long.read_text())
    running.close()
    assert not is_running(int(long.read_text()))


def wait_or_square(task):
    return square(task) if isinstance(task, int) else wait_for_ever(task)


def test_workers_end_with_a_killed_parent(tmp_path):
    paths = [tmp_path / "1", tmp_path / "2"]
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parents[1]), *map(str, paths)]
    parent = subprocess.Popen(command)
    kill_when(parent, lambda: all(path.exists() and path.read_text() for path in paths))
    wait_until(lambda: not any(is_running(int(path.read_text())) for path in paths))


def is_running(pid):
    """Say whether the process is there, and not only waits for its parent to hear of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_there_is_no_other_distributor():
    with pytest.raises(OptionError, match="expected one of processes, pyspark, ray"):
        next(each(square, [1], distributor="slurm"))


@pytest.mark.parametrize(("name", "extra"), [("pyspark", "spark"), ("ray", "ray")])
def test_an_engine_that_is_not_installed_is_named(name, extra, monkeypatch):
    for module in (name, f"{name}.sql"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=rf"pip install 'laion-face\[{extra}\]'"):
        next(each(square, [1], distributor=name))
