"""The layout of a DATA_DIR: parts, row groups and paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_face_builder.errors import OptionError
from laion_face_builder.layout import ALL_PARTS, PARTS_OF_20M, DataDir, parse_parts, row_group_bounds
from laion_face_builder.shown import ranges


@given(st.integers(0, 5000))
def test_row_groups_cover_every_row_once(rows):
    bounds = row_group_bounds(rows)
    assert len(bounds) == min(rows, 128)
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(rows))
    assert len({stop - start for start, stop in bounds}) <= 2


def test_parts_are_understood_in_every_form():
    assert parse_parts("0, 5-8,2", "50M") == (0, 2, 5, 6, 7, 8)
    assert parse_parts([5, 0, 5], "20M") == (0, 5)
    assert parse_parts(8, "20M") == (8,)
    assert parse_parts(None, "20M") == PARTS_OF_20M
    assert parse_parts(None, "50M") == ALL_PARTS


@given(st.sets(st.sampled_from(ALL_PARTS), min_size=1))
def test_parts_in_messages_can_be_asked_for_as_they_stand(parts):
    assert parse_parts(ranges(sorted(parts)), "50M") == tuple(sorted(parts))
    assert ranges(ALL_PARTS) == "0-31"
    assert ranges([0, 1, 5, 6, 7], ", ") == "0, 1, 5-7"


@pytest.mark.parametrize("parts", ["1", "32", [0, 1], -1, "", "a", "3-1", [0.5], [True], {}])
def test_wrong_parts_are_refused_with_the_valid_ones(parts):
    with pytest.raises(OptionError, match="parts="):
        parse_parts(parts, "20M")


def test_the_default_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LAION_FACE_DATA_DIR", str(tmp_path))
    assert DataDir.at(None).index(3) == tmp_path / "index" / "part-00003.parquet"
    monkeypatch.delenv("LAION_FACE_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert DataDir.at(None).root == tmp_path / "cache" / "laion-face"
