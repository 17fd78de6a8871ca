"""Wherever a writer fails, the result is as without that, or one line says what is wrong, and the next run is right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fault_walk import FAMILIES, Family, Walk

pytestmark = [pytest.mark.slow, pytest.mark.held_calls]
#: Points of each that are tried here; `make faults` tries all of them.
_MOST = {"prepare": 4, "download": 3, "publish": 3, "arrow": 3, "reading: stream": 3}


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    with Walk(tmp_path_factory.mktemp("faults")) as walk:
        yield walk


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_whatever_fails_is_said_or_has_no_effect(family: Family, walk: Walk) -> None:
    row = walk.walk(family, _MOST.get(family.name, 1))
    assert row.tried, "none of its points was reached"
    assert row.bad == []


def test_what_is_wrong_is_noticed(walk: Walk) -> None:
    # A command that swallows a fault: the walk is worth nothing if it does not see that.
    script = "import pathlib, sys\npath = pathlib.Path(sys.argv[2], 'made')\ntry:\n    path.write_text('whole')\n"
    script += "except OSError:\n    path.touch()\nprint(path.read_text())\n"
    family = Family(
        "careless", ("DATA",), lambda folder, ended: ended.output, "prepared", script, ("data",), ("write",)
    )
    assert walk.walk(family).counts == {"silent": 1}
