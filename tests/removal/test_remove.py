"""Rows leave ids, faces, index, joined tables and sources, physically; whatever is made later keeps to it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder import cli
from laion_face_builder.errors import NotPrepared, OptionError, StateConflict
from laion_face_builder.files import digest, read_fingerprint
from laion_face_builder.index.copying import copy_parts
from laion_face_builder.index.exclusion import Exclusion, parse_exclusion
from laion_face_builder.index.prepare import prepare
from laion_face_builder.index.prepare_forecast import forecast_prepare
from laion_face_builder.index.reader import index_fingerprint_at
from laion_face_builder.index.removals import STAMP, Removals, without_stamp
from laion_face_builder.index.writer import proof_path
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.removal.removal_request import RemovalRequest, total
from laion_face_builder.removal.remove import remove
from laion_face_builder.sandbox import SandboxSpec, make_content, write_upstream
from laion_face_builder.sources.sources import Upstream
from laion_face_builder.verify.verify import verify
from laion_face_builder.verify.verify_removed import verify_removed
from tests.support.taken_down import is_killed

HOSTS = [f"http://host-{number}.invalid" for number in range(9)]
KINDS = ("ids", "urls", "hosts", "all")
TABLES = ("ids/*.parquet", "faces/*.parquet", "index/*.parquet")


class World:
    """Upstream's files of two small parts, and a DATA_DIR that was prepared from them; for reading."""

    def __init__(self, folder: Path) -> None:
        content = make_content(SandboxSpec(parts=(0, 2), rows=120, metadata_files=2), HOSTS)
        write_upstream(content, folder / "files")
        self.metadata = folder / "files" / "metadata"
        self.upstream = Upstream(folder / "files" / "laion-face", None, self.metadata)
        self.data = DataDir.at(folder / "data")
        prepare(self.data, [0, 2], self.upstream)
        self.rows = pq.read_table(self.data.index(0), columns=["sample_id", "url", "caption"]).to_pylist()

    def lines(self, kind: str) -> list[str]:
        """Return a list; of `urls` and `ids` all are in part 0."""
        named = {
            "ids": [str(row["sample_id"]) for row in self.rows[3::7]],
            "urls": [row["url"] for row in self.rows[5::9]],
            "hosts": ["host-3.invalid"],
        }
        named["all"] = [*named["ids"], *named["urls"], "12345678", "nowhere.example"]
        return named[kind]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def data(world: World, tmp_path: Path) -> DataDir:
    shutil.copytree(world.data.root, tmp_path / "data")
    return DataDir.at(tmp_path / "data")


def tables(data: DataDir) -> dict[str, bytes]:
    """Return the bytes of ids, faces and indexes."""
    found = [path for pattern in TABLES for path in sorted(data.root.glob(pattern))]
    return {path.relative_to(data.root).as_posix(): path.read_bytes() for path in found}


def times(data: DataDir) -> dict[str, int]:
    return {name: (data.root / name).stat().st_mtime_ns for name in tables(data)}


def ids_in(path: Path) -> list[int]:
    found: list[int] = pq.read_table(path, columns=["sample_id"])["sample_id"].to_pylist()
    return found


def left(place: Path, listed: Exclusion, *, deep: bool = False) -> list[str]:
    return list(verify_removed(str(place), listed, deep=deep).problems)


def named_ids(world: World, listed: Exclusion) -> set[int]:
    return {row["sample_id"] for row in world.rows if listed.names_row(row["sample_id"], row["url"])}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_leave_as_if_they_had_never_been_and_prepare_keeps_to_it(
    kind: str, world: World, data: DataDir, tmp_path: Path
) -> None:
    listed = parse_exclusion(world.lines(kind))
    gone, before = named_ids(world, listed), times(data)
    assert 0 < len(gone) < len(world.rows) // 2
    assert left(data.root, listed)
    remove(RemovalRequest(data, listed))
    assert left(data.root, listed, deep=True) == []
    assert ids_in(data.index(0)) == [row["sample_id"] for row in world.rows if row["sample_id"] not in gone]
    for path in (data.ids(0), data.faces(0)):
        assert not gone.intersection(ids_in(path))
        assert set(ids_in(world.data.ids(0) if path == data.ids(0) else world.data.faces(0))) - {*ids_in(path)} <= gone
    changed = {name for name, time in times(data).items() if time != before[name]}
    parts = (0, 2) if kind == "hosts" else (0,)
    assert {f"{table}/part-{part:05d}.parquet" for part in parts for table in ("ids", "index")} <= changed
    assert not [name for name in changed if not name.endswith(tuple(f"{part:05d}.parquet" for part in parts))]
    assert list(verify(str(data.root)).problems) == []
    # The other way round: remembered first, then prepared, killed or not, again and again.
    later = DataDir.at(tmp_path / "later")
    remove(RemovalRequest(later, listed))
    for _ in range(2):
        prepare(later, [0, 2], world.upstream)
        assert tables(later) == tables(data)
        assert list(verify(str(later.root)).problems) == []
    before = times(data)
    prepare(data, [0, 2], world.upstream)
    assert times(data) == before, "what is there is current"
    assert {step.deed for step in forecast_prepare(data, [0, 2], world.upstream).steps} == {"used as it is"}


def test_what_a_removal_does_is_the_same_whenever_it_is_told(world: World, data: DataDir, tmp_path: Path) -> None:
    one_by_one = DataDir.at(shutil.copytree(data.root, tmp_path / "one"))
    lines = [world.lines("ids")[0], world.lines("urls")[-1]]
    remove(RemovalRequest(data, parse_exclusion(lines)))
    for line in lines:
        remove(RemovalRequest(one_by_one, parse_exclusion([line]), reason=line[:3]))
    assert tables(one_by_one) == tables(data)
    before = times(data), data.removed.read_bytes()
    for listed in (parse_exclusion(lines), None):
        assert not total(remove(RemovalRequest(data, listed)))
    assert (times(data), data.removed.read_bytes()) == before


def test_the_index_says_what_is_gone_and_what_it_was_made_from(world: World, data: DataDir) -> None:
    remove(RemovalRequest(data, parse_exclusion(world.lines("urls"))))
    was, now = (index_fingerprint_at(place.index(0)) or {} for place in (world.data, data))
    assert now != was == without_stamp(now)
    assert now[STAMP] == Removals.of(data).stamp(0)[STAMP]
    assert index_fingerprint_at(data.index(2)) == index_fingerprint_at(world.data.index(2))
    proof, before = (json.loads(proof_path(place.index(0)).read_text()) for place in (data, world.data))
    count = len(world.rows) - len(ids_in(data.index(0)))
    assert {name: before[name] - proof[name] for name in ("rows", "ids_found", "ids_asked")} == dict.fromkeys(
        ("rows", "ids_found", "ids_asked"), count
    )


def test_killed_anywhere_it_goes_on_when_it_is_started_again(world: World, data: DataDir, tmp_path: Path) -> None:
    lines = world.lines("all")
    whole = DataDir.at(shutil.copytree(data.root, tmp_path / "whole"))
    remove(RemovalRequest(whole, parse_exclusion(lines)))
    for killed_at in range(1, 100):
        here = DataDir.at(shutil.copytree(data.root, tmp_path / f"{killed_at}"))
        (here.sources / "metadata").mkdir(parents=True, exist_ok=True)
        (here.sources / "metadata" / "rows.parquet").write_bytes(world.data.index(0).read_bytes())
        if not is_killed(partial(remove, RemovalRequest(here, parse_exclusion(lines))), killed_at):
            break
        if here.removed.exists() and Removals.of(here).pending is not None:
            with pytest.raises(StateConflict, match="is not finished"):
                Options.of("20M", OptionFields(parts=0), here)
        again = parse_exclusion(lines) if killed_at % 2 or not here.removed.exists() else None
        remove(RemovalRequest(here, again))
        assert tables(here) == tables(whole), killed_at
        assert not [path for path in here.sources.rglob("*") if path.is_file()]
    assert killed_at > 6, "it was killed at all its writes"


@pytest.fixture
def pending(world: World, data: DataDir) -> DataDir:
    assert is_killed(lambda: remove(RemovalRequest(data, parse_exclusion(world.lines("ids")))), 3)
    return data


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "20M", "--parts", "0"),
        ("download", "20M", "--parts", "0"),
        ("status",),
        ("faces", "1"),
        ("publish", "OUT"),
        ("verify",),
        ("show", "20M", "--parts", "0"),
        ("stats", "20M", "--parts", "0"),
        ("export", "OUT", "--parts", "0"),
    ],
    ids=lambda words: words[0],
)
def test_until_it_is_finished_nothing_else_works_there(words, pending: DataDir, tmp_path: Path, capsys) -> None:
    given = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    assert cli.main([*given, "--data-dir", str(pending.root)]) == 1
    said = capsys.readouterr().err
    assert f"laion-face remove --data-dir {pending.root}" in said
    assert cli.main(["remove", "--data-dir", str(pending.root)]) == 0
    assert cli.main(["status", "--data-dir", str(pending.root)]) == 0


def test_load_dataset_refuses_too(pending: DataDir) -> None:
    with pytest.raises(StateConflict, match="is not finished"):
        laion_face.load_dataset("20M", split="train", streaming=True, parts=0, images="none", data_dir=pending.root)


def test_a_copy_of_a_published_index_is_without_them(world: World, tmp_path: Path) -> None:
    lines = [*world.lines("urls"), *world.lines("ids")]
    data, place = DataDir.at(tmp_path / "data"), str(world.data.root)
    remove(RemovalRequest(data, parse_exclusion(lines)))
    copy_parts(data, [0, 2], place)
    gone = named_ids(world, parse_exclusion(lines))
    assert ids_in(data.index(0)) == [row["sample_id"] for row in world.rows if row["sample_id"] not in gone]
    assert data.index(2).read_bytes() == world.data.index(2).read_bytes()
    before = times(data)
    copy_parts(data, [0, 2], place)
    assert times(data) == before
    there = DataDir.at(shutil.copytree(world.data.root, tmp_path / "there"))
    remove(RemovalRequest(there, parse_exclusion(lines)))
    assert tables(there)["index/part-00000.parquet"] == tables(data)["index/part-00000.parquet"]
    # What they took down since is theirs: a copy of that is another index, and no older one is taken for it.
    other = DataDir.at(tmp_path / "other")
    copy_parts(other, [0], str(there.root))
    assert without_stamp(index_fingerprint_at(other.index(0)) or {}) != index_fingerprint_at(world.data.index(0))
    copy_parts(other, [0], place)
    assert ids_in(other.index(0)) == [row["sample_id"] for row in world.rows]


def test_an_index_elsewhere_is_read_without_them(world: World, tmp_path: Path) -> None:
    listed = parse_exclusion(world.lines("all"))
    data = DataDir.at(tmp_path / "data")
    remove(RemovalRequest(data, listed))
    place = str(world.data.root)
    given: dict[str, Any] = {"split": "train", "streaming": True, "parts": 0, "images": "none"}
    rows = laion_face.load_dataset("20M", index=place, data_dir=data.root, **given)
    gone = named_ids(world, listed)
    assert [row["sample_id"] for row in rows] == [one for one in ids_in(world.data.index(0)) if one not in gone]
    report = laion_face.report(rows)
    assert (report.filtered, report.excluded) == (len(gone), len(gone))
    plain, kept = (Options.of("20M", OptionFields(parts=0, index=place), where) for where in (tmp_path / "none", data))
    assert plain.defining() != kept.defining()
    here = Options.of("20M", OptionFields(parts=0), data)
    assert here.filters.is_empty, "an index in DATA_DIR has none of them"


def test_joined_tables_of_the_part_are_joined_anew(world: World, data: DataDir, tmp_path: Path) -> None:
    table, listed = tmp_path / "mine.parquet", parse_exclusion(world.lines("ids"))
    ids = [*ids_in(data.index(0)), *ids_in(data.index(2))]
    pq.write_table(pa.table({"sample_id": ids, "mine": [f"of {number}" for number in ids]}), table)
    given: dict[str, Any] = {
        "split": "train",
        "streaming": True,
        "parts": "0,2",
        "images": "none",
        "data_dir": data.root,
    }
    before = {row["sample_id"]: row["mine"] for row in laion_face.load_dataset("20M", join=str(table), **given)}
    assert sorted(path.name for path in data.root.glob("joined/*/part-*")) == [
        "part-00000.parquet",
        "part-00002.parquet",
    ]
    remove(RemovalRequest(data, listed))
    assert [path.name for path in data.root.glob("joined/*/part-*")] == ["part-00002.parquet"]
    gone = named_ids(world, listed)
    after = {row["sample_id"]: row["mine"] for row in laion_face.load_dataset("20M", join=str(table), **given)}
    assert after == {number: mine for number, mine in before.items() if number not in gone}


def test_sources_and_rows_on_their_way_are_freed_and_not_kept_any_more(
    make_sandbox, tmp_path: Path, world: World
) -> None:
    box = make_sandbox(SandboxSpec(parts=(0,), rows=60, metadata_files=2))
    data, upstream = DataDir.at(tmp_path / "data"), Upstream(box.repo, None, box.metadata_repo)
    prepare(data, [0], upstream)
    truth = box.truth_of(0)[4]
    listed = parse_exclusion([str(truth.sample_id)])
    waiting = data.staging / f"{digest('x')}-00000001" / "00000.parquet"
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(b"rows")
    copies = [path for path in data.sources.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert copies
    taken = {one.place: one.counts for one in remove(RemovalRequest(data, listed))}
    freed = [*copies, waiting]
    assert taken["sources, staging"]["sources_bytes"] > 0
    assert not [path for path in freed if path.exists()]
    sent = box.hub.bytes_sent("/lfs/")
    prepare(data, [0], upstream)
    assert box.hub.bytes_sent("/lfs/") == sent, "what they contained is still known"
    data.index(0).unlink()
    prepare(data, [0], upstream)
    assert truth.sample_id not in ids_in(data.index(0))
    assert left(data.root, listed) == []
    assert not [path for path in copies if path.exists()]


def newer(world: World, folder: Path, change: Callable[[pa.Table], pa.Table]) -> str:
    folder.mkdir()
    for path in world.metadata.glob("*.parquet"):
        pq.write_table(change(pq.read_table(path)), folder / path.name)
    return str(folder)


def test_what_laion_removed_since_is_removed(world: World, data: DataDir, tmp_path: Path, caplog) -> None:
    gone = {row["sample_id"] for row in world.rows[2:30:6]}
    reworded = {row["sample_id"] for row in world.rows[40:60]}
    moved = {row["sample_id"] for row in world.rows[70:75]}

    def change(table: pa.Table) -> pa.Table:
        ids = np.array(table["key"].to_pylist())
        captions = [
            f"{text}!" if number in reworded else text
            for number, text in zip(ids, table["caption"].to_pylist(), strict=True)
        ]
        table = table.set_column(table.schema.get_field_index("caption"), "caption", pa.array(captions, pa.string()))
        others = [number + 10**9 if number in moved else number for number in ids.tolist()]
        kind = table.schema.field("key").type
        table = table.set_column(table.schema.get_field_index("key"), "key", pa.array(others).cast(kind))
        return table.filter(pa.array([number not in gone for number in ids.tolist()]))

    caplog.set_level("INFO", "laion_face")
    place = newer(world, tmp_path / "newer", change)
    remove(RemovalRequest(data, from_metadata=place, reason="withdrawn upstream"))
    assert ids_in(data.index(0)) == [row["sample_id"] for row in world.rows if row["sample_id"] not in gone]
    assert data.index(2).read_bytes() == world.data.index(2).read_bytes()
    assert f"the other {len(gone)} are taken down" in caplog.text
    remove(RemovalRequest(data, from_metadata=place))
    assert len(Removals.of(data).done) == 1, "nothing new"


def test_another_release_takes_nothing_down_by_mistake(world: World, data: DataDir, tmp_path: Path) -> None:
    before = tables(data)
    half = newer(world, tmp_path / "half", lambda table: table.slice(0, table.num_rows // 2))
    other = newer(world, tmp_path / "other", lambda table: table.slice(0, 0))
    for place, way_out in ((half, r"--most-gone 0\.[45]"), (other, "--most-gone 1")):
        with pytest.raises(StateConflict, match=rf"rows that are prepared.*expected.*{way_out}"):
            remove(RemovalRequest(data, from_metadata=place))
    with pytest.raises(StateConflict, match=r"at least 1\.0 %"):
        remove(RemovalRequest(data, from_metadata=other, most_gone=1))
    assert (tables(data), data.removed.exists()) == (before, False)
    remove(RemovalRequest(data, from_metadata=half, most_gone=0.7))
    assert 0 < len(ids_in(data.index(0))) < len(world.rows)
    with pytest.raises(NotPrepared, match="no part has its index"):
        remove(RemovalRequest(DataDir.at(tmp_path / "none"), from_metadata=half))


def test_the_command_says_what_it_does_and_does_it(world: World, data: DataDir, tmp_path: Path, capsys) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(world.lines("ids")))
    words, before = ["remove", str(path), "--data-dir", str(data.root), "--format", "json"], tables(data)
    assert cli.main([*words, "--dry-run"]) == 0
    steps = {step["what"]: step["deed"] for step in json.loads(capsys.readouterr().out)["steps"]}
    assert (steps["part 0"], steps["part 2"]) == ("made anew", "used as it is")
    assert (tables(data), data.removed.exists()) == (before, False)
    count = len(world.lines("ids"))
    look = ["verify", str(data.root), "--removed", str(path), "--format", "json"]
    assert cli.main(look) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(f"index/part-00000.parquet: {count} rows" in line for line in problems)
    assert cli.main([*words, "--reason", "asked by mail"]) == 0
    places = {one["place"]: one["counts"] for one in json.loads(capsys.readouterr().out)["places"]}
    assert places["part 0"]["rows"] == len(world.lines("ids"))
    assert places["part 2"] == {}
    assert cli.main(look) == 0
    assert [removal.reason for removal in Removals.of(data).done] == ["asked by mail"]


def test_nothing_to_go_by_and_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing was taken down before"):
        remove(RemovalRequest(DataDir.at(tmp_path)))
    with pytest.raises(OptionError, match=r"memory://data: .* Copy it to one"):
        remove(RemovalRequest(DataDir.kept_at("memory://data"), parse_exclusion(["1"])))
    assert not (tmp_path / "removed.json").exists()


def test_every_part_keeps_to_it_prepared_or_not(world: World, tmp_path: Path) -> None:
    data = DataDir.at(tmp_path / "data")
    somewhere = ids_in(world.data.ids(9))
    remove(RemovalRequest(data, parse_exclusion(list(map(str, somewhere)))))
    prepare(data, [0], world.upstream)
    assert ids_in(data.ids(9)) == []
    assert [part for part in ALL_PARTS if set(somewhere) & {*ids_in(data.ids(part))}] == []
    assert read_fingerprint(data.ids(9)) == read_fingerprint(world.data.ids(9))


def test_pictures_that_are_named_by_their_bytes_come_from_nowhere(prepared, tmp_path: Path) -> None:
    sidecar = pq.read_table(prepared.data.sidecar(0), columns=["sample_id", "sha256", "tar", "offset", "length"])
    one, other, kept = sidecar.filter(sidecar["sha256"].is_valid()).slice(0, 3).to_pylist()
    content = (prepared.data.tars(0) / other["tar"]).read_bytes()[other["offset"] :][: other["length"]]
    lines = [one["sha256"], hashlib.md5(content, usedforsecurity=False).hexdigest()]
    data, asked = DataDir.at(tmp_path / "data"), [row["sample_id"] for row in (one, other, kept)]
    shutil.copytree(prepared.data.root / "index", data.root / "index")
    given: dict[str, Any] = {
        "split": "train",
        "streaming": True,
        "parts": 0,
        "allow_private_hosts": True,
        "include": asked,
    }
    before = Options.of("20M", OptionFields(parts=0, images="fetch"), data)
    remove(RemovalRequest(data, parse_exclusion(lines)))
    assert (data.index(0)).read_bytes() == prepared.data.index(0).read_bytes(), "nothing is known of their bytes here"
    rows = laion_face.load_dataset("20M", images="fetch", data_dir=data.root, **given)
    assert [row["sample_id"] for row in rows] == [kept["sample_id"]]
    assert laion_face.report(rows).failed == {"excluded": 2}
    after = Options.of("20M", OptionFields(parts=0, images="fetch"), data)
    assert before.defining() != after.defining(), "no Arrow cache of before is taken for it"
    assert before.filters.as_dict() == after.filters.as_dict(), "a download goes on"


def test_a_data_dir_in_which_nothing_is_prepared_is_pointed_out(tmp_path: Path, caplog) -> None:
    there = remove(RemovalRequest(DataDir.at(tmp_path / "typo"), parse_exclusion(["5"]), "asked for"))
    assert total(there) == {}
    assert "nothing is prepared there; is it the right --data-dir?" in caplog.text
