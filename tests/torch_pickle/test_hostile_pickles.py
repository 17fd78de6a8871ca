"""Hostile pickles neither crash nor hang nor flood the memory: each is one error that names the file."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from laion_face_builder.errors import BadFile
from laion_face_builder.torch_pickle import pickle_scan
from laion_face_builder.torch_pickle.float_lists import FloatList, load_lists
from laion_face_builder.torch_pickle.pickle_scan import Scan
from laion_face_builder.torch_pickle.pickle_sizes import Malformed
from laion_face_builder.torch_pickle.torch_file import load_pickle
from tests.support.fuzz_child import fuzz
from tests.support.fuzz_pickles import Pickles
from tests.support.hostile_pickles import FACES, IDS, PROTO, in_zip, whole

#: Tried in a process of its own, which has 2 GB: what is wrong must not end the tests.
CHILD = """
import resource, sys
from pathlib import Path
from laion_face_builder.errors import BadFile
from laion_face_builder.torch_pickle import pickle_scan
from laion_face_builder.index.detections import write_faces
from laion_face_builder.index.ids import write_ids
from laion_face_builder.layout import DataDir
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for path in sys.argv[1:]:
    print(Path(path).name, end=" ", flush=True)
    data = DataDir.at(path + ".data")
    try:
        if "ids" in path:
            write_ids(Path(path), data, range(32), "v1")
        else:
            write_faces(Path(path), data, 0, "v1")
        print("was read", flush=True)
    except BadFile as error:
        print(str(error)[:2000], flush=True)
"""


@pytest.mark.parametrize(("kind", "files"), [("ids", IDS), ("faces", FACES)])
def test_every_known_attack_is_one_error_that_names_the_file(kind: str, files: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}-{kind}.pth" for number in range(len(files))]
    for path, make in zip(paths, files.values(), strict=True):
        path.write_bytes(make())
    run = subprocess.run(
        [sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, timeout=300, check=False
    )
    lines = run.stdout.splitlines()
    assert len(lines) == len(paths), f"{[*files][len(lines) - 1]}: exit code {run.returncode} {run.stderr[-500:]}"
    for name, path, line in zip(files, paths, lines, strict=True):
        assert line.startswith(f"{path.name} {path}: found "), f"{name}: {line}"
        assert len(line) < 1000, name


def test_no_changed_and_no_made_up_pickle_does_harm() -> None:
    found = fuzz(Pickles(), range(1500), patience=120)
    assert found.wrong == []
    assert found.tried == 1500
    # Else the changes are such that nothing gets past the door.
    assert all(found.counts[ending] > 20 for ending in ("read", "BadFile", "UnsafePickle"))


def scanned(opcodes: bytes, step: int = 0) -> Scan:
    """Scan opcodes, given in steps of some bytes."""
    scan, tail = Scan(len(opcodes)), b""
    step = step or len(opcodes)
    for start in range(0, len(opcodes), step):
        tail += opcodes[start : start + step]
        tail = tail[scan.feed(tail, is_last=start + step >= len(opcodes)) :]
        if scan.is_done:
            break
    return scan


def plain(count: int) -> list[Any]:
    return [
        [
            {"box": [1, 2.5], "text": "x" * (n % 300), "more": ((n, -n), {n}, frozenset([n]), b"y" * n)}
            for n in range(count)
        ],
        OrderedDict((n, np.float32(n)) for n in range(count)),
        {10**12 + n: [np.arange(n % 5), np.ones((2, 3), order="F")] for n in range(count)},
        tuple(float(n) for n in range(count)),
    ]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("step", [0, 7, 600, 5000])
def test_what_python_pickles_passes_however_it_is_cut(protocol: int, step: int) -> None:
    opcodes = pickle.dumps(plain(60), protocol)
    assert scanned(opcodes, step).is_done


def test_an_honest_object_may_be_referred_to_from_anywhere() -> None:
    shared = [[1, 2], {"a": 1}, (1,), np.arange(4), {5}]
    assert scanned(pickle.dumps([shared, *shared, dict.fromkeys(range(50), shared)], 2)).is_done


@pytest.mark.parametrize(
    "opcodes",
    [
        b"]q\0h\0a.",
        b"]q\0]h\0ah\0K\x01a.",
        b"}q\0K\x01h\0s.",
        b"]]0.",
        b"]2.",
        b"(K\x01.",
        b"K\x01K\x02.",
        b"}K\x01]a.",
        b"]K\x01K\x02s.",
        b"]}b.",
        b"}]K\x01s.",
        b"a.",
        b"\x86.",
        b"]q\0q\1.",
        b"I1\n.",
        b"]r\0\0\0\x10.",
    ],
)
def test_what_no_pickler_writes_is_refused(opcodes: bytes) -> None:
    with pytest.raises((Malformed, IndexError)):
        scanned(PROTO + opcodes)


@pytest.mark.parametrize("cut", [1, 3, 10, 100])
def test_a_pickle_without_its_end_is_refused(cut: int) -> None:
    with pytest.raises((EOFError, Malformed)):
        scanned(pickle.dumps(plain(20), 2)[:-cut])


def test_idioms_say_no_less_of_an_object_than_its_opcodes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = {
        10**10 + n: [(np.full(4, n + f, "f4"), np.full((5, 2), n, "f4"), np.float32(f)) for f in range(n % 4)]
        for n in range(4000)
    }
    opcodes = pickle.dumps([faces, [n * 1000 for n in range(5000)]], 2)
    by_idioms = scanned(opcodes, 1 << 18)
    monkeypatch.setattr(pickle_scan, "_WORTH_IT", 1 << 40)
    by_opcodes = scanned(opcodes, 1 << 18)
    assert by_opcodes.trusted == frozenset() != by_idioms.trusted
    bytes_of, more_bytes = (scan.finish([scan.memo[1]])[0] for scan in (by_opcodes, by_idioms))
    assert bytes_of <= more_bytes <= 3 * bytes_of
    # Once a name's place in the memo has something else, they are of no use.
    by_idioms.note(min(by_idioms.trusted), 32)
    assert by_idioms.is_distrusted


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((5, 2), "f4")), np.array(3, ">i2"), np.zeros(0)]
    torch.save(arrays, tmp_path / "a.pth", pickle_protocol=protocol)
    read: Any = load_pickle(tmp_path / "a.pth")
    assert [(a.shape, a.dtype.kind, a.tolist()) for a in read] == [(a.shape, a.dtype.kind, a.tolist()) for a in arrays]


def test_dicts_of_other_kinds_are_read(tmp_path: Path) -> None:
    named = defaultdict(list, {1: [2], 3: [4]})
    torch.save([named, defaultdict(None, {5: 6}), OrderedDict({7: [8]})], tmp_path / "a.pth")
    assert load_pickle(tmp_path / "a.pth") == [{1: [2], 3: [4]}, {5: 6}, OrderedDict({7: [8]})]
    # As Python 2 writes an OrderedDict: a call with a list of pairs.
    pairs = PROTO + b"ccollections\nOrderedDict\n](](K\x01K\x02e](K\x03K\x04ee\x85R."
    (tmp_path / "b.pth").write_bytes(in_zip(pairs))
    assert load_pickle(tmp_path / "b.pth") == OrderedDict({1: 2, 3: 4})


def test_bfloat16_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(4, dtype=torch.bfloat16)}, tmp_path / "a.pth")
    with pytest.raises(BadFile, match="BFloat16Storage"):
        load_pickle(tmp_path / "a.pth")


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({1: torch.ones(3)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    read: Any = load_pickle(tmp_path / "a.pth")
    assert read[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_flipped_bit_is_never_another_number(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save([torch.arange(5000.0), [float(n) for n in range(5000)], np.arange(5000)], path)
    raw = bytearray(path.read_bytes())
    raw[int(share * len(raw))] ^= 16
    path.write_bytes(raw)
    for read in (load_pickle, load_lists):
        with pytest.raises(BadFile, match=r"a\.pth"):
            read(path)


def test_sets_of_floats_stay_in_the_file(tmp_path: Path) -> None:
    numbers = {float(n) for n in range(1000)}
    torch.save([numbers, frozenset(numbers), {1.0, 2.0}], tmp_path / "a.pth")
    read: Any = load_lists(tmp_path / "a.pth")
    assert [type(one) for one in read] == [FloatList, FloatList, set]
    assert set(read[0]) == numbers == set(read[1])


def test_whole_numbers_are_as_the_file_says() -> None:
    for number in (0, -1, 255, 1 << 53, 1 << 58, -(1 << 63), 1 << 70):
        assert pickle.loads(PROTO + whole(number) + b".") == number
