"""The detections: every accepted shape gives the same file, with or without the shortcut; errors name the sample."""

from __future__ import annotations

import importlib.util
import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder import schema
from laion_face_builder.errors import BadFile, NotPrepared, UnsafePickle
from laion_face_builder.files import read_fingerprint
from laion_face_builder.index.detections import faces_fingerprint, faces_of, read_faces, write_faces
from laion_face_builder.index.face_stream import read_faces_of_piece
from laion_face_builder.index.faces import FaceColumns, from_items
from laion_face_builder.layout import DataDir
from laion_face_builder.torch_pickle.chunks import iter_pieces
from laion_face_builder.torch_pickle.torch_file import load_pickle
from tests.support.sources import save

Face = tuple[np.ndarray, np.ndarray, np.float32]
Faces = dict[int, list[Face]]

SHAPES: dict[str, Callable[[Face], Any]] = {
    "arrays": lambda face: face,
    "list of arrays": list,
    "lists": lambda face: (face[0].tolist(), face[1].tolist(), float(face[2])),
    "tuples": lambda face: (tuple(face[0].tolist()), tuple(map(tuple, face[1].tolist())), float(face[2])),
    "tensors": lambda face: (torch.tensor(face[0]), torch.tensor(face[1]), torch.tensor(face[2])),
    "float64": lambda face: (face[0].astype(float), face[1].astype(float), np.float64(face[2])),
    "kps": lambda face: {"box": face[0], "kps": face[1], "score": face[2]},
    "landmarks": lambda face: {"box": face[0].tolist(), "landmarks": face[1], "score": float(face[2])},
    "column-major": lambda face: (face[0], np.asfortranarray(face[1]), face[2]),
}
KEYS: dict[str, Callable[[int], Any]] = {"int": int, "float": float, "int64": np.int64, "float64": np.float64}


def make_faces(ids: list[int], seed: int = 0, most: int = 3, least: int = 0) -> Faces:
    rng = np.random.default_rng(seed)

    def face() -> Face:
        box, points = rng.normal(100, 300, 4).astype("f4"), rng.normal(100, 300, (5, 2)).astype("f4")
        return box, points, np.float32(rng.random())

    return {i: [face() for _ in range(rng.integers(least, most + 1))] for i in ids}


def as_rows(faces: Faces) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": i,
            "faces": [{"box": b.tolist(), "landmarks": p.tolist(), "score": float(s)} for b, p, s in faces[i]],
        }
        for i in sorted(faces)
    ]


@settings(max_examples=40)
@given(
    ids=st.lists(st.integers(0, 2**53 - 1), max_size=30, unique=True),
    shape=st.sampled_from(sorted(SHAPES)),
    key=st.sampled_from(sorted(KEYS)),
    is_zip=st.booleans(),
)
def test_every_shape_gives_the_same_file(
    ids: list[int], shape: str, key: str, is_zip: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("faces")
    faces = make_faces(ids)
    odd = {KEYS[key](i): [SHAPES[shape](face) for face in faces[i]] for i in faces}
    data, plain = DataDir.at(folder / "a"), DataDir.at(folder / "b")
    write_faces(save(odd, folder / "a.pth", is_zip), data, 7, "v1")
    write_faces(save(faces, folder / "b.pth"), plain, 7, "v1")
    assert data.faces(7).read_bytes() == plain.faces(7).read_bytes()
    assert pq.read_table(data.faces(7)).to_pylist() == as_rows(faces)
    assert pq.read_schema(data.faces(7)).equals(schema.DETECTIONS)
    assert read_fingerprint(data.faces(7)) == faces_fingerprint(7, "v1")


def good() -> list[Any]:
    return [np.zeros(4, np.float32), np.zeros((5, 2), np.float32), np.float32(0.5)]


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (0, np.array([1, 2, np.nan, 4], np.float32)),
        (0, [1, 2, 3, float("inf")]),
        (0, [1, 2, 3, 1e39]),
        (0, np.zeros(5, np.float32)),
        (0, ["1", "2", "3", "4"]),
        (0, None),
        (1, np.zeros((5, 3), np.float32)),
        (1, np.zeros(10, np.float32)),
        (1, [[1, 2]] * 4 + [[1]]),
        (1, torch.full((5, 2), float("nan"))),
        (2, float("nan")),
        (2, [0.5]),
        (2, "0.5"),
    ],
)
@pytest.mark.parametrize("company", [0, 3])
def test_a_wrong_face_names_its_sample(at: int, wrong: object, company: int, tmp_path: Path) -> None:
    face = good()
    face[at] = wrong
    value = {n: [good()] * (n % 2) for n in range(company)} | {4242: [good(), face]}
    with pytest.raises(BadFile, match=r"a\.pth.*sample 4242"):
        write_faces(save(value, tmp_path / "a.pth"), DataDir.at(tmp_path), 0, "v1")
    assert not DataDir.at(tmp_path).faces(0).exists()


@pytest.mark.parametrize(
    "faces", [[good()[:2]], [[*good(), 1]], 5, "abc", [7], [{"box": good()[0], "score": 1.0}], {"box": 1}]
)
def test_what_is_no_list_of_faces_names_its_sample(faces: object, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="sample 4242"):
        write_faces(save({1: [good()], 4242: faces}, tmp_path / "a.pth"), DataDir.at(tmp_path), 0, "v1")


@pytest.mark.parametrize("key", [-1, 0.5, "abc", None, float("nan"), 2**70])
def test_a_wrong_key_is_an_error(key: object, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="sample id"):
        write_faces(save({key: [good()]}, tmp_path / "a.pth"), DataDir.at(tmp_path), 0, "v1")


def equal(a: FaceColumns, b: FaceColumns) -> bool:
    names = ("ids", "counts", "boxes", "landmarks", "scores")
    return all(
        getattr(a, n).dtype == getattr(b, n).dtype and np.array_equal(getattr(a, n), getattr(b, n)) for n in names
    )


def shortcuts(file: Path, piece_size: int) -> list[bool]:
    return [isinstance(piece, FaceColumns) for piece in iter_pieces(file, read_faces_of_piece, piece_size)]


def plain(file: Path) -> FaceColumns:
    items: Any = load_pickle(file)
    return from_items(file, items).sorted_by_id()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("count", [3000, 3001, 3999])
def test_the_shortcut_is_taken_and_gives_the_same(count: int, is_zip: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(count)
    ids = np.unique(np.concatenate([rng.integers(0, 2**size, count) for size in (8, 16, 31, 32, 41, 53)]))
    ids = rng.permutation(ids)[:count].tolist()
    file = save(make_faces(ids, seed=count, least=1), tmp_path / "a.pth", is_zip)
    taken = shortcuts(file, 100_000)
    assert taken[1:] == [True] * (len(taken) - 1)
    assert len(taken) > 2
    assert equal(read_faces(file, 100_000).sorted_by_id(), plain(file))


ODD: dict[str, Any] = {
    "no faces": [],
    "a tuple of faces": tuple(map(tuple, [good()])),
    "other dtype": [(np.zeros(4), np.zeros((5, 2)), 0.5)],
    "column-major": [(np.zeros(4, "f4"), np.asfortranarray(np.ones((5, 2), "f4")), np.float32(1))],
    "dict": [{"box": good()[0], "kps": good()[1], "score": 0.25}],
    "many": [tuple(good()) for _ in range(1500)],
}


@pytest.mark.parametrize("odd", sorted(ODD))
def test_one_odd_sample_gives_the_same_by_the_long_way(odd: str, tmp_path: Path) -> None:
    faces: dict[int, Any] = dict(make_faces(list(range(70_000, 73_500)), least=1))
    faces[71_500] = ODD[odd]
    file = save(faces, tmp_path / "a.pth")
    assert not all(shortcuts(file, 100_000)[1:])
    assert equal(read_faces(file, 100_000).sorted_by_id(), plain(file))


@settings(max_examples=25)
@given(data=st.data())
def test_the_shortcut_never_disagrees_with_the_unpickler(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A byte of a later piece is changed: the shortcut refuses, or says what the unpickler says.
    file = ALTERED.setdefault("file", tmp_path_factory.mktemp("altered") / "a.pth")
    if "pieces" not in ALTERED:
        save(make_faces(list(range(1 << 32, (1 << 32) + 2500)), least=1, most=1), file)
        seen: list[tuple[bytes, Any]] = []
        list(iter_pieces(file, lambda raw, memo: seen.append((raw, memo)), 1000))
        ALTERED["pieces"] = seen
    raw, memo = ALTERED["pieces"][0]
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = bytearray(raw)
    changed[at] = data.draw(st.integers(0, 255))
    found = read_faces_of_piece(bytes(changed), memo)
    if found is None:
        return
    # Python's own unpickler in Python: its memo is a dict, so that a changed memo index costs no memory.
    unpickler: Any = pickle._Unpickler(io.BytesIO(b"\x80\x02}" + changed + b"."))
    unpickler.memo.update(memo)
    assert equal(found.sorted_by_id(), from_items(file, unpickler.load()).sorted_by_id())


ALTERED: dict[str, Any] = {}


@pytest.mark.parametrize(("at", "place"), [(0, 3), (1, (4, 1)), (2, ())])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_wrong_number_met_by_the_shortcut_names_its_sample(
    at: int, place: Any, number: float, tmp_path: Path
) -> None:
    faces = make_faces(list(range(70_000, 73_500)), least=2)
    face = [np.array(part) for part in faces[71_500][1]]
    face[at][place] = number
    faces[71_500][1] = (face[0], face[1], np.float32(face[2]))
    file = save(faces, tmp_path / "a.pth")
    assert all(shortcuts(file, 100_000)[1:])
    with pytest.raises(BadFile, match=r"a\.pth.*sample 71500"):
        read_faces(file, 100_000)


def test_a_file_of_several_pieces_and_groups_is_written_sorted(tmp_path: Path) -> None:
    # The file is large enough for pieces of the real size: some by the shortcut, one not.
    rng = np.random.default_rng(0)
    ids = rng.permutation(2**20)[:20_000].tolist()
    faces: dict[int, Any] = dict(make_faces(ids, least=1, most=1))
    faces[ids[15_000]] = []
    file, data = save(faces, tmp_path / "a.pth"), DataDir.at(tmp_path)
    assert {True, False} <= set(shortcuts(file, 3 << 20)[1:])
    write_faces(file, data, 0, "v1")
    assert pq.read_table(data.faces(0)).to_pylist() == as_rows(faces)
    metadata = pq.read_metadata(data.faces(0))
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [
        1 << 14,
        20_000 - (1 << 14),
    ]
    columns = [metadata.row_group(0).column(column) for column in range(4)]
    assert ["BYTE_STREAM_SPLIT" in column.encodings for column in columns] == [False, True, True, True]
    assert [column.is_stats_set for column in columns] == [True, False, False, False]


def test_a_file_without_faces_is_written_and_looked_up(tmp_path: Path) -> None:
    write_faces(save({}, tmp_path / "a.pth"), DataDir.at(tmp_path), 0, "v1")
    assert list(faces_of(DataDir.at(tmp_path), [1])) == []


def test_the_last_of_equal_ids_counts(tmp_path: Path) -> None:
    first: dict[Any, Any] = dict(make_faces([5], 1, least=1))
    second: dict[Any, Any] = dict(make_faces([5], 2, least=1))
    both = FaceColumns.concat(
        [from_items(tmp_path, first), from_items(tmp_path, {9: []}), from_items(tmp_path, second)]
    )
    expected = from_items(tmp_path, second | {9: []})
    assert equal(both.sorted_by_id(), expected)


def test_single_samples_are_found_in_all_parts(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path / "data")
    with pytest.raises(NotPrepared, match="prepare"):
        list(faces_of(data, [1]))
    parts = {0: make_faces(list(range(0, 120_000, 3)), 1, most=1), 4: make_faces([1, 10**12, 2**53 - 1], 2, least=1)}
    for part, faces in parts.items():
        write_faces(save(faces, tmp_path / "a.pth"), data, part, "v1")
    assert pq.read_metadata(data.faces(0)).num_row_groups > 1
    asked = [10**12, 119_997, 2, 1, 60_000, 1]
    found = list(faces_of(data, asked))
    assert [(one.sample_id, one.part) for one in found] == [(10**12, 4), (119_997, 0), (1, 4), (60_000, 0), (1, 4)]
    rows = {row["sample_id"]: row["faces"] for faces in parts.values() for row in as_rows(faces)}
    assert all(one.faces == rows[one.sample_id] for one in found)


def test_looking_up_loads_no_heavy_library(tmp_path: Path) -> None:
    write_faces(save(make_faces([5], least=2), tmp_path / "a.pth"), DataDir.at(tmp_path), 0, "v1")
    code = (
        "import sys; from laion_face_builder.layout import DataDir;"
        "from laion_face_builder.index.detections import faces_of;"
        "found = list(faces_of(DataDir.at(sys.argv[1]), [5]));"
        "print(len(found), sorted({'torch', 'datasets', 'pandas', 'pyarrow.compute'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1 []"


def test_written_once_and_again_for_another_source(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path / "data")
    pth = save(make_faces([3, 1]), tmp_path / "a.pth")
    write_faces(pth, data, 2, "v1")
    first = data.faces(2).read_bytes()
    (data.root / "faces" / ".part-00002.parquet.0.partial").write_bytes(b"left by a kill")
    (data.root / "faces" / ".part-00003.parquet.0.partial").write_bytes(b"of somebody else")
    data.faces(2).unlink()
    write_faces(pth, data, 2, "v1")
    assert data.faces(2).read_bytes() == first
    assert [path.name for path in data.root.rglob("*.partial")] == [".part-00003.parquet.0.partial"]
    write_faces(save(make_faces([8]), pth), data, 2, "v2")
    assert pq.read_table(data.faces(2))["sample_id"].to_pylist() == [8]


def test_an_attack_among_the_faces_writes_nothing(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, (f"open({str(tmp_path / 'written')!r}, 'w').close()",))

    value: dict[int, Any] = dict(make_faces(list(range(3500)), least=1))
    value[2700] = [Attack()]
    for is_zip in (True, False):
        with pytest.raises(UnsafePickle, match="exec"):
            read_faces(save(value, tmp_path / "a.pth", is_zip), piece_size=100_000)
    assert not (tmp_path / "written").exists()


def test_the_benchmark_writes_what_torch_would(tmp_path: Path) -> None:
    place = Path(__file__).parents[2] / "benchmarks" / "make_full_part.py"
    spec = importlib.util.spec_from_file_location("make_full_part", place)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    for count in (1500, 2000):
        ids = bench.sample_ids(0, bench.face_rows(0, 30_000, count))
        ids[:3] = [5, 300, 70_000]
        bench.write_detections(tmp_path / "made.pth", ids)
        read: Any = load_pickle(tmp_path / "made.pth")
        # Fresh objects: torch's pickler sees which ones are the same.
        fresh = {
            int(str(i)): [(np.array(b.tolist(), "f4"), np.array(p.tolist(), "f4"), np.float32(s)) for b, p, s in faces]
            for i, faces in read.items()
        }
        save(fresh, tmp_path / "saved.pth")
        made, saved = (zipfile.ZipFile(tmp_path / f"{name}.pth").read(f"{name}/data.pkl") for name in ("made", "saved"))
        assert made == saved
