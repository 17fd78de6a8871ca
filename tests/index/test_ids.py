"""The id list: whatever shape it comes in, the same sorted Parquet files; anything doubtful is an error."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from laion_face_builder import schema
from laion_face_builder.errors import BadFile, UnsafePickle
from laion_face_builder.files import read_fingerprint
from laion_face_builder.index.ids import ids_fingerprint, lacks_ids, read_ids, write_ids
from laion_face_builder.layout import DataDir
from laion_face_builder.torch_pickle.float_lists import FloatList, load_lists, take_out
from laion_face_builder.torch_pickle.torch_file import load_pickle
from tests.support.sources import save

INNER: dict[str, Callable[[list[int]], Any]] = {
    "ints": list,
    "floats": lambda ids: [float(i) for i in ids],
    "tuple": lambda ids: tuple(map(float, ids)),
    "set": lambda ids: {float(i) for i in ids},
    "int64 array": lambda ids: np.array(ids, np.int64),
    "float64 array": lambda ids: np.array(ids, np.float64),
    "int tensor": lambda ids: torch.tensor(ids, dtype=torch.int64),
    "float tensor": lambda ids: torch.tensor(ids, dtype=torch.float64),
    "int scalars": lambda ids: [np.int64(i) for i in ids],
    "float scalars": lambda ids: [np.float64(i) for i in ids],
    "mixed": lambda ids: [float(i) if i % 2 else i for i in ids],
    "tensor scalars": lambda ids: [torch.tensor(i) for i in ids],
}
OUTER: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "dict": lambda parts: dict(enumerate(parts)),
    "dict of text": lambda parts: {str(part): ids for part, ids in enumerate(parts)},
}


def thirty_two(some: dict[int, Any], rest: Any = ()) -> list[Any]:
    return [some.get(part, rest) for part in range(32)]


@settings(max_examples=40)
@given(
    ids=st.lists(st.integers(0, 2**53 - 1), max_size=250, unique=True),
    inner=st.sampled_from(sorted(INNER)),
    outer=st.sampled_from(sorted(OUTER)),
    is_zip=st.booleans(),
)
def test_every_shape_gives_the_same_file(
    ids: list[int], inner: str, outer: str, is_zip: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    data, plain = DataDir.at(folder / "a"), DataDir.at(folder / "b")
    write_ids(save(OUTER[outer](thirty_two({3: INNER[inner](ids)})), folder / "a.pth", is_zip), data, [3], "v1")
    write_ids(save(thirty_two({3: sorted(ids)}, []), folder / "b.pth"), plain, [3], "v1")
    assert read_ids(data.ids(3)).tolist() == sorted(ids)
    assert data.ids(3).read_bytes() == plain.ids(3).read_bytes()
    assert pq.read_schema(data.ids(3)).equals(schema.IDS)
    assert read_fingerprint(data.ids(3)) == ids_fingerprint(3, "v1")


@pytest.mark.parametrize(
    "wrong", [0.5, float("nan"), float("inf"), -1.0, -7, 2.0**53, 2**64, "12", None, True, [1], 2**63]
)
@pytest.mark.parametrize("kind", [list, tuple])
def test_what_is_no_id_is_an_error_that_names_part_and_value(wrong: object, kind: type, tmp_path: Path) -> None:
    pth = save(thirty_two({5: kind([1.0, wrong, 2.0])}), tmp_path / "a.pth")
    value = "nan" if wrong != wrong else str(wrong) if isinstance(wrong, str | bool | None | list) else ""
    with pytest.raises(BadFile, match=rf"a\.pth: found .*{value.strip('[]')}.* in part 5"):
        write_ids(pth, DataDir.at(tmp_path), [5], "v1")
    assert not DataDir.at(tmp_path).ids(5).exists()


def test_a_wrong_float_in_a_long_list_is_found(tmp_path: Path) -> None:
    ids = [float(i) for i in range(5000)]
    ids[4321] = 1234.5
    with pytest.raises(BadFile, match=r"1234\.5 in part 0"):
        write_ids(save(thirty_two({0: ids}), tmp_path / "a.pth"), DataDir.at(tmp_path), [0], "v1")


def test_float32_that_cannot_tell_ids_apart_is_an_error(tmp_path: Path) -> None:
    pth = save(thirty_two({0: torch.tensor([3.0]), 1: torch.tensor([2.0**40])}), tmp_path / "a.pth")
    write_ids(pth, DataDir.at(tmp_path), [0], "v1")
    with pytest.raises(BadFile, match="in part 1"):
        write_ids(pth, DataDir.at(tmp_path), [1], "v1")


@pytest.mark.parametrize("value", [[[1]] * 31, {str(n): [1] for n in range(1, 33)}, 7, np.zeros((32, 2)), {"a": [1]}])
def test_other_containers_are_an_error(value: object, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="32 parts"):
        write_ids(save(value, tmp_path / "a.pth"), DataDir.at(tmp_path), [0], "v1")


def test_doubled_ids_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "laion_face"):
        write_ids(save(thirty_two({0: [3, 1.0, 3, 1, 1]}), tmp_path / "a.pth"), DataDir.at(tmp_path), [0], "v1")
    assert read_ids(DataDir.at(tmp_path).ids(0)).tolist() == [1, 3]
    assert "3 ids more than once" in caplog.text


def test_only_what_is_missing_or_from_elsewhere_is_written(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path / "data")
    pth = save(thirty_two({0: [1], 1: [2]}), tmp_path / "a.pth")
    write_ids(pth, data, [0, 1], "v1")
    assert [lacks_ids(data, part, "v1") for part in (0, 1, 2)] == [False, False, True]
    assert lacks_ids(data, 0, "v2")
    assert lacks_ids(data, 0, None), "a source that is not known yet"
    whole = data.ids(1).read_bytes()
    (data.root / "ids" / ".part-00001.parquet.0.partial").write_bytes(b"left by a kill")
    data.ids(1).unlink()
    assert [lacks_ids(data, part, "v1") for part in (0, 1)] == [False, True]
    write_ids(pth, data, [1], "v1")
    assert data.ids(1).read_bytes() == whole
    assert not list(data.root.rglob("*.partial"))
    write_ids(save(thirty_two({0: [9]}), pth), data, [0], "v2")
    assert read_ids(data.ids(0)).tolist() == [9]


def test_an_attack_among_the_ids_writes_nothing(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, (f"open({str(tmp_path / 'written')!r}, 'w').close()",))

    for is_zip in (True, False):
        pth = save([[float(i) for i in range(2000)] for _ in range(31)] + [Attack()], tmp_path / "a.pth", is_zip)
        with pytest.raises(UnsafePickle, match="exec"):
            write_ids(pth, DataDir.at(tmp_path), [0], "v1")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("count", [0, 1, 99, 100, 1000, 1001, 2999, 65_000])
def test_long_lists_of_floats_stay_in_the_file_until_they_are_read(count: int, is_zip: bool, tmp_path: Path) -> None:
    numbers = [n / 7 for n in range(count)]
    value = {"a": numbers, "again": numbers, "other": [*numbers, 5, "x"], "tuple": tuple(numbers), "t": torch.ones(2)}
    read: Any = load_lists(save(value, tmp_path / "a.pth", is_zip))
    came = {key: list(v.read() if isinstance(v, FloatList) else v) for key, v in read.items()}
    assert came == {key: list(values) for key, values in value.items()}
    assert isinstance(read["a"], FloatList) == (count >= 100)
    assert read["a"] is read["again"]


def test_lists_that_only_look_like_floats_are_left_alone() -> None:
    for opcodes in (b"]q\x01(G1234", b"]q\x01(" + b"G12345678" * 200 + b"K\x01e", b"]q\x01(" + b"G12345678" * 200):
        assert take_out(io.BytesIO(opcodes), Path("a.pth"), 0, len(opcodes)) == (opcodes, [])


def as_plain(value: Any) -> Any:
    """Return `value` with Python's lists, wherever a list was left in the file."""
    if isinstance(value, FloatList):
        return value.read().tolist()
    return [as_plain(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=60)
@given(end=st.integers(0, 2), shift=st.integers(-18, 3), byte=st.sampled_from([*b"(]eGaKN0.", 0, 255]))
@example(end=0, shift=1, byte=ord("."))  # The first batch is all there is: not in a list.
def test_lists_taken_out_never_disagree_with_the_unpickler(
    end: int, shift: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A byte near the end of a batch is changed: the list is left alone, or is what the unpickler says.
    pth = tmp_path_factory.mktemp("altered") / "a.pth"
    whole = bytearray(save([[float(n) for n in range(count)] for count in (1100, 150)], pth).read_bytes())
    ends = [found.start() for found in re.finditer(rb"e[(\]]|ee\.", whole)]
    assert len(ends) == 3
    whole[ends[end] + shift] = byte
    pth.write_bytes(whole)
    try:
        expected: Any = load_pickle(pth)
    except BadFile:
        expected = None
    try:
        read: Any = load_lists(pth)
    except BadFile:
        read = None
    assert repr(as_plain(read)) == repr(expected)


@pytest.mark.parametrize("last", [7, [7.5], "x", None])
def test_what_is_appended_to_a_long_list_of_floats_is_not_lost(last: object, tmp_path: Path) -> None:
    value = [[*(float(n) for n in range(3000)), last], [float(n) for n in range(3000)]]
    read: Any = load_lists(save(value, tmp_path / "a.pth"))
    assert [list(v) for v in read] == value


def test_a_list_that_has_changed_meanwhile_is_an_error(tmp_path: Path) -> None:
    pth = save([[float(n) for n in range(1500)]] * 2, tmp_path / "a.pth")
    read: Any = load_lists(pth)
    pth.write_bytes(pth.read_bytes()[: read[0].start + 5000])
    with pytest.raises(BadFile, match="changed"):
        read[0].read()


def test_many_lists_across_the_pieces_in_which_the_file_is_read(tmp_path: Path) -> None:
    value = [[n + 0.5 for n in range(n % 7 * 300)] for n in range(2000)]
    read: Any = load_lists(save(value, tmp_path / "a.pth"))
    assert [v.read().tolist() if isinstance(v, FloatList) else v for v in read] == value
