"""A thousand ids, ten hosts and a hundred hashes leave all that was made of upstream's files; nothing else changes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from laion_face import export, load_dataset
from laion_face_builder import cli
from laion_face_builder.index.exclusion import Exclusion, parse_exclusion
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.verify.verify_removed import verify_removed

#: What is copied of the DATA_DIR that the session has prepared, and looked through.
PREPARED = ("ids", "faces", "index", "images")
PARTS = (0, 2)
#: What is made of it beforehand: a call writes to a folder, and the command is told of it by an option.
COPIES: dict[str, tuple[Callable[[DataDir, Path], object], str]] = {
    "rows": (lambda data, folder: publish(PublishRequest(data, str(folder))), "--target"),
    "pictures": (
        lambda data, folder: publish(PublishRequest(data, str(folder), with_images=True, preview=3)),
        "--target",
    ),
    "jsonl": (lambda data, folder: export("20M", folder, parts=PARTS, data_dir=data.root, layout="jsonl"), "--export"),
    "arrow": (
        lambda data, folder: load_dataset("20M", split="train", parts=PARTS, data_dir=data.root, cache_dir=folder),
        "--cache-dir",
    ),
}


class Taken(NamedTuple):
    """What was taken down: `places` are looked through, `before` has their files' bytes and times."""

    places: list[Path]
    listed: Exclusion
    before: dict[Path, tuple[bytes, int]]
    words: list[str]


def files_below(places: list[Path]) -> dict[Path, tuple[bytes, int]]:
    paths = [path for place in places for path in sorted(place.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def taken(prepared, tmp_path_factory: pytest.TempPathFactory) -> Taken:
    root = tmp_path_factory.mktemp("taken")
    data = DataDir.at(root / "data")
    for name in PREPARED:
        shutil.copytree(prepared.data.root / name, data.root / name)
    words = []
    for name, (make, told) in COPIES.items():
        make(data, root / name)
        words += [told, str(root / name)]
    rows = [row for part in (0, 2) for row in pq.read_table(data.index(part)).to_pylist()]
    ids = [str(row["sample_id"]) for row in rows[::3]]
    ids += [str(10**14 + number) for number in range(1000 - len(ids))]  # Of rows that are nowhere.
    hosts = [f"gone-{number}.invalid" for number in range(9)]
    hosts.append(
        next(row["url"] for row in rows if "127.0.0.1" not in row["url"]).partition("://")[2].partition("/")[0]
    )
    known = pq.read_table(prepared.data.sidecar(0), columns=["sha256"])["sha256"].drop_null().to_pylist()
    hashes = known[1:200:2] if "images" in PREPARED else []
    path = root / "list.txt"
    path.write_text("\n".join([*ids, *hosts, *hashes]))
    listed, places = parse_exclusion(path.read_text().splitlines()), [data.root, *(root / name for name in COPIES)]
    assert all(list(verify_removed(str(place), listed).problems) for place in places), "it is there before"
    before = files_below(places)
    assert cli.main(["remove", str(path), "--data-dir", str(data.root), "--reason", "asked for", *words]) == 0
    return Taken(places, listed, before, words)


def test_nothing_of_it_is_left_in_any_file(taken: Taken) -> None:
    for place in taken.places:
        assert list(verify_removed(str(place), taken.listed, deep=True).problems) == []
    # And without anything that knows what the files are: no address or hash is in the bytes of any, as far as these
    # are not compressed.
    words = [*taken.listed.hosts, *taken.listed.sha256s, *map(str, taken.listed.sample_ids.tolist())]
    raw = b"\0".join(content for content, _ in files_below(taken.places).values())
    assert [word for word in words if len(word) > 12 and word.encode() in raw] == []


def test_what_has_none_of_it_is_not_touched(taken: Taken) -> None:
    after = files_below(taken.places)
    untouched = [path for path in taken.before if after.get(path) == taken.before[path]]
    changed = [path for path in taken.before if path not in untouched]
    parts = {found[1] for path in changed if (found := re.search(r"part-(\d{5})", str(path)))}
    assert parts == {"00000", "00002"}
    assert len(untouched) >= 30, "the ids of thirty parts"


def test_the_same_again_finds_nothing_more(taken: Taken) -> None:
    before = files_below(taken.places)
    assert cli.main(["remove", "--data-dir", str(taken.places[0]), *taken.words]) == 0
    assert files_below(taken.places) == before
    assert cli.main(["verify", str(taken.places[0])]) == 0
