"""A thousand ids, ten hosts and a hundred hashes leave all that was made of upstream's files; nothing else changes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from laion_face import export, load_dataset
from laion_face_builder import cli
from laion_face_builder.index.exclusion import Exclusion, parse_exclusion
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.verify.verify_removed import verify_removed
from tests.support.leaks import leaks

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
    written: dict[str, str | bytes]


def leave_half_written(places: list[Path]) -> None:
    """Leave what writers of ours leave that are killed: in each folder the first file and the last, half-written."""
    for folder in {path.parent for place in places if place.name != "arrow" for path in place.rglob("*")}:
        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
        for path in {*paths[:1], *paths[-1:]}:
            shutil.copy(path, path.with_name(f".{path.name}.0123abcd.partial"))


def written_of(rows: list[dict[str, Any]], listed: Exclusion) -> dict[str, str | bytes]:
    """Return what may be in no file, by what it is: of some of the rows that are listed, and hosts and hashes."""
    gone = [row for row in rows if row["sample_id"] in listed.sample_ids][::20]
    # Of captions, some are part of others.
    said = "\n".join(row[name] or "" for row in rows for name in ("url", "caption"))
    words: dict[str, str | bytes] = {f"{host} host": host for host in listed.hosts}
    words |= {f"{sha256} hash": sha256 for sha256 in sorted(listed.sha256s)[:30]}
    for row in gone:
        number = row["sample_id"]
        words |= {f"{number} id": str(number), f"{number} number": number.to_bytes(8, "little")}
        texts = {
            name: row[name] for name in ("url", "caption") if len(row[name] or "") > 12 and said.count(row[name]) == 1
        }
        words |= {f"{number} {name}": text for name, text in texts.items()}
    return words


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
    leave_half_written(places)
    written = written_of(rows, listed)
    assert {word.split()[-1] for _, word in leaks(places[:1], written)} == {
        "id",
        "number",
        "url",
        "caption",
        "host",
        "hash",
    }
    assert cli.main(["remove", str(path), "--data-dir", str(data.root), "--reason", "asked for", *words]) == 0
    return Taken(places, listed, before, words, written)


def test_nothing_of_it_is_left_in_any_file(taken: Taken) -> None:
    for place in taken.places:
        assert list(verify_removed(str(place), taken.listed, deep=True).problems) == []
    # And without anything that knows what the files are.
    assert leaks(taken.places, taken.written) == []
    assert [path for place in taken.places for path in place.rglob("*.partial")] == []


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
