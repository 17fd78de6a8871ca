"""What is known here of other people's folders forgets samples, and so does the cache; the folders stay as they are."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder.download.adopted_passes import forget_adopted
from laion_face_builder.download.foreign import FOREIGN, checksum_of
from laion_face_builder.download.named_pictures import pictures_named
from laion_face_builder.download.tar_reader import PartPictures
from laion_face_builder.errors import OptionError
from laion_face_builder.fetch.cache import PictureCache, forget
from laion_face_builder.files import make_fingerprint, stamped
from laion_face_builder.images.pictures import Picture
from laion_face_builder.index.exclusion import parse_exclusion
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Truth
from tests.download.test_download import make_host, write_index
from tests.download.test_taken_down import without_rows
from tests.support.killed_at import files_in
from tests.support.left_pictures import pictures_left


def removed(*entries: str) -> Removed:
    return Removed.of(parse_exclusion(entries))


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> list[Truth]:
    host, truths = make_host(100, tmp_path_factory.mktemp("host") / "none", failing=0, twisted=0)
    host.stop()
    return truths[:12]


def files_of(folder: Path, samples: list[tuple[Truth, dict[str, Any]]]) -> Path:
    """Write what img2dataset's output_format files has of these samples, with what is said of each."""
    (folder / "00000").mkdir(parents=True)
    rows = []
    for number, (truth, values) in enumerate(samples):
        (folder / "00000" / f"{number:09d}.jpg").write_bytes(truth.served)
        rows.append({"key": f"{number:09d}", "sample_id": None, "url": None, "caption": None, **values})
    types = [pa.string(), pa.int64(), pa.string(), pa.string()]
    schema = pa.schema(list(zip(("key", "sample_id", "url", "caption"), types, strict=True)))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "00000.parquet")
    return folder


def found_in(folder: Path, data: DataDir) -> list[bytes | None]:
    with PartPictures.adopt(folder, data, 0) as pictures:
        return [one.data for one in pictures.read(0, pictures.num_rows)]


def test_passes_and_sidecars_forget_and_folders_do_not(truths: list[Truth], tmp_path: Path) -> None:
    # Found by id, by address, by caption alone, and two by their bytes; and a sample of no part that is here.
    said: list[Callable[[Truth], dict[str, Any]]] = [
        lambda truth: {"sample_id": truth.sample_id},
        lambda truth: {"url": truth.url, "caption": truth.caption},
        lambda truth: {"caption": truth.caption},
    ]
    truths = [dataclasses.replace(truth, caption=f"{truth.caption} {truth.sample_id}") for truth in truths]
    data = DataDir.at(tmp_path / "data")
    write_index(data, truths)
    samples = [(truth, said[row % 3](truth)) for row, truth in enumerate(truths)]
    stranger = 987_654_321
    folder = files_of(tmp_path / "theirs", [*samples, (truths[0], {"sample_id": stranger})])
    before, theirs = found_in(folder, data), files_in(folder)
    assert before == [truth.served for truth in truths]

    named = pictures_named(data, 0, removed(*(hashlib.sha256(truths[row].served).hexdigest() for row in (3, 4))))
    assert named is not None
    gone = np.isin(np.arange(len(truths)), [0, 1, 2]) | named
    entries = removed(str(stranger), *(hashlib.sha256(truths[row].served).hexdigest() for row in (3, 4)))
    assert len(list(pictures_left(data, entries))) == 2
    forgotten = forget_adopted(data, {0: gone}, entries)
    assert list(pictures_left(data, entries)) == []
    assert forgotten.samples == gone.sum() + 1
    assert forgotten.sidecars == 1
    assert sum(forgotten.held.values()) == gone.sum()
    assert all(name.startswith("00000/") for name in forgotten.held)
    assert forget_adopted(data, {0: gone}, entries).samples == 0
    assert not list((data.root / "adopted").glob("*/part-*.parquet"))

    # Nothing is looked through again, and what is left is found as before, in the old index and in the new one.
    passes = files_in(data.root / "adopted" / "tars")
    kept = [None if is_gone else one for one, is_gone in zip(before, gone, strict=True)]
    assert found_in(folder, data) == kept
    without_rows(data, gone)
    assert found_in(folder, data) == [one for one in kept if one is not None]
    assert files_in(data.root / "adopted" / "tars") == passes
    assert files_in(folder) == theirs

    # A folder that is looked through only now: the ledger keeps out of the pass what it names.
    late = [str(truths[5].sample_id), truths[6].url, hashlib.sha256(truths[7].served).hexdigest()]
    Removals().begun(Removal("2026-11-26", "", removed(*late) | entries, is_done=True)).write(data)
    shutil.rmtree(data.root / "adopted")
    found_in(folder, data)
    (only,) = (data.root / "adopted" / "tars").glob("*.parquet")
    left = pq.read_table(only)
    assert stranger not in left["id"].to_pylist()
    assert truths[5].sample_id not in left["id"].to_pylist()
    assert checksum_of(truths[6].url) not in left["url"].to_pylist()
    assert hashlib.sha256(truths[7].served).hexdigest() not in left["sha256"].to_pylist()


#: A sample in a pass, by what it is known, and whether it goes with rows 0 and 1 of four: 0 and 2 share an address, 1
#: and 3 a caption.
SAMPLES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"id": 10}, True),
    ({"id": 12}, False),
    ({"id": 10, "url": "a"}, True),
    ({"id": 77, "url": "b"}, False),
    ({"url": "a"}, False),
    ({"url": "b"}, True),
    ({"url": "b", "caption": "d"}, True),
    ({"url": "z", "caption": "c"}, False),
    ({"caption": "c"}, True),
    ({"caption": "d"}, False),
    ({}, False),
)


def test_a_sample_stays_while_a_row_that_stays_may_have_it(tmp_path: Path, truths: list[Truth]) -> None:
    data = DataDir.at(tmp_path)
    rows = zip(truths, (10, 11, 12, 13), "abae", "cdfd", strict=False)
    write_index(data, [dataclasses.replace(one, sample_id=id_, url=url, caption=text) for one, id_, url, text in rows])
    hashed = [
        {name: value if name == "id" else checksum_of(value) for name, value in sample.items()} for sample, _ in SAMPLES
    ]
    path = data.root / "adopted" / "tars" / "one.parquet"
    path.parent.mkdir(parents=True)
    schema = stamped(FOREIGN, make_fingerprint("checked"))
    pq.write_table(pa.Table.from_pylist(hashed, schema=schema), path)
    assert forget_adopted(data, {0: np.array([True, True, False, False])}, Removed()).samples == 5
    left = pq.read_table(path)
    assert left.schema.equals(schema, check_metadata=True)
    kept = [one for one, (_, is_gone) in zip(hashed, SAMPLES, strict=True) if not is_gone]
    assert left.select(["id", "url", "caption"]).to_pylist() == [
        {"id": None, "url": None, "caption": None, **one} for one in kept
    ]


def test_the_cache_forgets_addresses_and_bytes(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path / "cache")
    urls = [f"http://host.example/{number}.jpg" for number in range(40)]
    for number, url in enumerate(urls):
        cache.put(url, Picture(b"\xff\xd8" + bytes([number % 20]) * 50, "JPEG", 4, 5, 1))
    whole = next(path for path in cache.folder.glob("*/*") if cache.get(urls[1]) and _is_of(path, urls[1]))
    begun = whole.with_name(f".{whole.name}.1f2e3d4c")
    shutil.copy(whole, begun)  # somebody was killed while writing it
    assert forget(cache.folder, Removed(), [urls[1], "http://host.example/unknown"]) == 1
    assert not begun.exists()
    assert [cache.get(url) is None for url in urls] == [number == 1 for number in range(40)]
    sha256 = hashlib.sha256(b"\xff\xd8" + bytes([5]) * 50).hexdigest()
    md5 = hashlib.md5(b"\xff\xd8" + bytes([7]) * 50, usedforsecurity=False).hexdigest()
    assert forget(str(cache.folder), removed(sha256, md5), []) == 4
    assert [number for number, url in enumerate(urls) if cache.get(url) is None] == [1, 5, 7, 25, 27]
    with pytest.raises(OptionError, match="no cache"):
        forget(tmp_path / "other", Removed(), [])


def _is_of(path: Path, url: str) -> bool:
    name = hashlib.sha256(url.encode()).hexdigest()
    return path.parent.name + path.name == name
