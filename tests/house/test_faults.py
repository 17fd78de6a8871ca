"""Faults of every kind, few of each: no silence, no traceback, no hang. `make faults` tries more of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import fault_walk, faults
from tests.support.fuzz_child import BAD, CLEAR, HUNG, OUTCOMES, SAME, SILENT, TRACEBACK, SilentError, fuzz
from tests.support.kept_files import World


@pytest.fixture(scope="module")
def world(prepared: Any, published: Any) -> World:
    box = prepared.sandbox
    return World(prepared.data.root, published.folder, box.metadata_folder, box.folder / "laion-face")


@pytest.mark.parametrize("name", faults.FAMILIES)
def test_no_fault_is_silent_or_ends_in_a_traceback_or_hangs(world: World, name: str) -> None:
    family = faults.FAMILIES[name]
    count = family.short // 2
    found = faults.run(family, world, family.numbers(0, count))
    assert found.wrong == []
    assert found.tried == count
    # Else the changes are such that nothing gets past the door, or that none is met.
    assert found.outcomes[SAME] > count // 50
    assert found.outcomes[CLEAR] > count // 8


class Wrong:
    """Does all that should not be."""

    def ready(self, folder: Path) -> Any:
        def attempt(number: int) -> str:
            if number == 1:
                raise SilentError("another number")
            if number == 2:
                raise KeyError("no error of ours")
            if number == 3:
                import os

                os.abort()
            if number == 4:
                import threading

                threading.Event().wait()
            if number == 5:
                bytearray(3 << 30)
            return SAME if number else "BadFile"

        return attempt


def test_what_is_wrong_is_found_and_told_by_its_number() -> None:
    found = fuzz(Wrong(), range(8), patience=5)
    assert found.tried == 8
    assert found.outcomes == {SAME: 2, CLEAR: 1, SILENT: 1, TRACEBACK: 3, HUNG: 1}
    assert [re.match(r"case (\d): (\w+)", one).groups() for one in found.wrong] == [
        ("1", SILENT),
        ("2", TRACEBACK),
        ("3", TRACEBACK),
        ("4", HUNG),
        ("5", TRACEBACK),
    ]
    line = faults.row("all that is wrong", found.outcomes)
    assert line == "| all that is wrong | 8 | 2 | 1 | 1 | 3 | 1 |"
    assert line.count("|") == faults.HEAD.splitlines()[0].count("|")
    assert all(found.bad[kind] for kind in BAD)
    assert fault_walk.OUTCOMES == OUTCOMES  # Its rows stand in the same table.
