"""Who loads the index from the Hub has pictures and joined tables alone: rows leave these, and nothing shifts."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder import cli
from laion_face_builder.download.part import download_part
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.errors import NotPrepared, SourceError
from laion_face_builder.examples import parts
from laion_face_builder.files import read_fingerprint
from laion_face_builder.index.copying import copy_parts
from laion_face_builder.index.exclusion import exclusion_of
from laion_face_builder.index.prepare import prepare
from laion_face_builder.index.removals import Removals
from laion_face_builder.index.removed import hash_of
from laion_face_builder.layout import DataDir
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.removal.published_copy import TargetRequest, remove_from_target
from laion_face_builder.removal.removal_request import RemovalRequest
from laion_face_builder.removal.remove import remove
from laion_face_builder.sandbox import WRITER, Hub, Sandbox, SandboxSpec, Truth
from laion_face_builder.sources.sources import Upstream
from laion_face_builder.verify.verify import verify
from laion_face_builder.verify.verify_removed import verify_removed
from tests.support.taken_down import is_killed, removal_of, tree

# huggingface_hub's own call of its HTTP library.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")]

SHARD = 25
FILTERS: dict[str, Any] = {"max_faces": 3}


@dataclass(frozen=True)
class World:
    """A published index, and a DATA_DIR of somebody who knows nothing else: pictures, and a table that is joined."""

    box: Sandbox
    hub: Hub
    owner: DataDir
    base: Path
    joined: Path
    #: The examples of its stream, by their ids.
    examples: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def truths(self) -> list[Truth]:
        return self.box.truth_of(0)

    def passing(self) -> list[Truth]:
        return [one for one in self.truths if len(one.faces) <= FILTERS["max_faces"]]

    def published(self, name: str) -> str:
        """Publish the index under a name that nobody has asked for before."""
        place = f"{WRITER}/index-{name}"
        publish(PublishRequest(self.owner, place, private=True))
        return place

    def copy(self, root: Path) -> DataDir:
        return DataDir.at(shutil.copytree(self.base, root))

    @property
    def named(self) -> list[Truth]:
        """Rows that are named: with pictures, in several tars, without one, and never asked for."""
        usable = [one for one in self.passing() if one.ok]
        failed = next(one for one in self.passing() if one.fate == "http_404")
        other = next(one for one in self.truths if len(one.faces) > FILTERS["max_faces"])
        return [*usable[3::9], failed, other]

    @property
    def lines(self) -> list[str]:
        """The list: an id for the row that was never asked for, a hash for one, an address for most."""
        by_hash, *others, never = self.named
        return [_sha256(by_hash), *(one.url for one in others), str(never.sample_id)]

    @property
    def all(self) -> list[object]:
        """The list, and the ids of all rows that it names."""
        return [*self.lines, *(one.sample_id for one in self.named)]

    def without_named(self) -> dict[int, dict[str, Any]]:
        gone = {one.sample_id for one in self.named}
        return {number: row for number, row in self.examples.items() if number not in gone}

    def options(self, index: str, data: DataDir, **given: Any) -> Options:
        fields = OptionFields(parts="0", index=index, allow_private_hosts=True, timeout=5.0, retries=0)
        return Options.of("20M", replace(fields, **FILTERS, **given), data)

    def download(self, index: str, data: DataDir, **given: Any) -> None:
        options = self.options(index, data, **given)
        list(parts.download(options, parts.download_options(options, processes_count=1, samples_per_shard=SHARD)))

    def rows(self, index: str, data: DataDir) -> dict[int, dict[str, Any]]:
        rows = laion_face.load_dataset(
            "20M",
            split="train",
            streaming=True,
            parts=0,
            index=index,
            join=str(self.joined),
            data_dir=data.root,
            **FILTERS,
        )
        return {row["sample_id"]: row for row in rows.decode(False)}


def _sha256(truth: Truth) -> str:
    return hashlib.sha256(truth.served).hexdigest()


@pytest.fixture(scope="module")
def world(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("remote-index")
    spec = SandboxSpec(parts=(0,), rows=150, metadata_files=1, slow=0.1)
    with Sandbox.running(root / "box", spec, hub=hub, namespace="remote-index") as box:
        owner = DataDir.at(root / "owner")
        prepare(owner, [0], Upstream(box.repo, None, box.metadata_repo))
        world = World(box, hub, owner, root / "data", root / "mine.parquet")
        ids = [one.sample_id for one in world.truths]
        pq.write_table(pa.table({"sample_id": ids, "mine": [f"of {number}" for number in ids]}), world.joined)
        index, data = world.published("base"), DataDir.at(world.base)
        world.download(index, data)
        world.examples.update(world.rows(index, data))
        assert {*world.examples} == {one.sample_id for one in world.passing() if one.ok}
        assert not data.index(0).exists()
        yield world


def kill_a_download(data: DataDir) -> None:
    """Leave a download as if it had been killed before its second tar, and what comes of all tars."""
    for path in (*data.tars(0).glob("00001*"), PartFiles(data, 0).checked_tar(0, 1), data.sidecar(0)):
        path.unlink()


def left(place: Path, *entries: object) -> list[str]:
    return list(verify_removed(str(place), exclusion_of(entries), deep=True).problems)


@pytest.mark.parametrize("when", ["never", "before", "after"])
def test_rows_leave_and_the_download_goes_on_whenever_the_index_loses_them(
    world: World, tmp_path: Path, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    index, data = world.published(when), world.copy(tmp_path / "data")
    theirs = TargetRequest(index, removal_of(*(one.sample_id for one in world.named[::2]), world.truths[0].url))
    (tmp_path / "list").write_text("\n".join(world.lines))
    kill_a_download(data)
    if when == "before":
        remove_from_target(theirs)
    words = ["remove", str(tmp_path / "list"), "--data-dir", str(data.root), "--format", "json"]
    assert cli.main([*words, "--dry-run"]) == 0
    assert cli.main(words) == 0
    assert left(data.root, *world.lines) == []
    assert list(data.joined("").glob("*/part-*")) == []
    if when == "after":
        remove_from_target(theirs)

    gone, asked = {one.sample_id for one in world.named}, len(world.box.pictures.log)
    world.download(index, data)
    paths = {request.path for request in world.box.pictures.log[asked:]}
    assert 0 < len(paths) <= SHARD, "of one tar"
    assert paths.isdisjoint(one.path for one in world.named)
    lost = {one.sample_id for one in world.named[::2]} | {world.truths[0].sample_id} if when != "never" else set()
    found = world.rows(index, data)
    assert found == {number: row for number, row in world.examples.items() if number not in gone | lost}
    assert all(row["mine"] == f"of {number}" for number, row in found.items())
    assert left(data.root, *world.all) == []
    assert list(verify(str(data.root), deep=True).problems) == []

    # The same again, without a list, has nothing to do; and a copy of the index goes with the pictures.
    before = tree(data.root / "images"), tree(data.joined(""))
    assert cli.main(["remove", "--data-dir", str(data.root)]) == 0
    assert (tree(data.root / "images"), tree(data.joined(""))) == before
    copy_parts(data, [0], index)
    asked = len(world.box.pictures.log)
    options = world.options(index, data)
    how = parts.download_options(options, processes_count=1, samples_per_shard=SHARD)
    download_part(data, 0, how, parts.row_filters(options, 0))
    assert len(world.box.pictures.log) == asked
    assert list(verify(str(data.root), deep=True).problems) == []
    assert left(data.root, *world.all) == []


def test_a_stream_keeps_its_pictures_when_the_index_has_lost_rows(world: World, tmp_path: Path) -> None:
    # Nobody took anything down here: its owner did, and the next stream goes on without a word from the user.
    index, data = world.published("lost"), world.copy(tmp_path / "data")
    remove_from_target(TargetRequest(index, removal_of(*(one.url for one in world.named))))
    laion_face.export("20M", tmp_path / "out", parts=0, index=index, data_dir=data.root, layout="parquet", **FILTERS)
    exported = pa.concat_tables(map(pq.read_table, (tmp_path / "out").glob("*.parquet")))["sample_id"].to_pylist()
    assert sorted(exported) == sorted(world.without_named())
    found = world.rows(index, data)
    assert found == world.without_named()
    # Then it is taken down here too, where neither index nor list of pictures knows of it any more.
    assert left(data.root, *world.all)
    remove(RemovalRequest(data, exclusion_of(world.lines)))
    assert left(data.root, *world.all) == []
    assert world.rows(index, data) == found


def test_an_index_that_has_lost_nothing_takes_nothing_down(world: World, tmp_path: Path) -> None:
    data, index = world.copy(tmp_path / "data"), world.published("whole")
    before = tree(data.root)
    assert cli.main(["remove", "--from-published", index, "--data-dir", str(data.root)]) == 0
    assert tree(data.root) == before
    for place, said in ((str(tmp_path), "nothing was published there"), (f"{WRITER}/nowhere", "no such")):
        with pytest.raises((NotPrepared, SourceError), match=said):
            remove(RemovalRequest(data, from_published=place))


def test_what_was_removed_first_is_never_written(world: World, tmp_path: Path) -> None:
    data, index = DataDir.at(tmp_path / "data"), world.published("first")
    remove(RemovalRequest(data, exclusion_of([one.url for one in world.named])))
    world.download(index, data)
    assert left(data.root, *world.all) == []
    gone = {hash_of("sample_ids", one.sample_id) for one in world.named}
    assert Removals.of(data).found_in(0) == gone, "those that were never asked for, too"
    assert pq.read_table(PartFiles(data, 0).plan)["sample_id"].null_count == len(gone)
    assert world.rows(index, data) == world.without_named()
    joined = next(iter(data.joined("").glob("*/part-*")))
    told = " ".join(map(str, pq.read_table(joined).to_pylist()))
    assert not any(f"of {one.sample_id}'" in told for one in world.named), "nor is it joined"


def test_killed_anywhere_pictures_and_tables_end_as_without_the_kill(world: World, tmp_path: Path) -> None:
    def request(data: DataDir) -> RemovalRequest:
        return RemovalRequest(data, exclusion_of(world.lines))

    whole = world.copy(tmp_path / "whole")
    remove(request(whole))
    for killed_at in range(1, 100, 2):
        here = world.copy(tmp_path / f"{killed_at}")
        if not is_killed(partial(remove, request(here)), killed_at):
            break
        remove(request(here) if killed_at % 4 == 1 or not here.removed.exists() else RemovalRequest(here))
        assert tree(here.root / "images") == tree(whole.root / "images"), killed_at
        assert left(here.root, *world.all) == []
    assert killed_at > 12, "it was killed at all its writes"


def test_adopted_folders_are_known_without_the_rows(world: World, tmp_path: Path) -> None:
    data, index = DataDir.at(tmp_path / "data"), world.published("adopted")
    folder = shutil.copytree(world.base / "images", tmp_path / "theirs")

    def rows() -> set[int]:
        given: dict[str, Any] = {"parts": 0, "index": index, "images": str(folder), "data_dir": data.root}
        found = laion_face.load_dataset("20M", split="train", streaming=True, **given, **FILTERS)
        return {row["sample_id"] for row in found.decode(False)}

    before = rows()
    remove(RemovalRequest(data, exclusion_of(world.lines)))
    assert rows() == before - {one.sample_id for one in world.named}
    assert left(data.root, *world.all) == []


@pytest.mark.parametrize("is_here", [True, False], ids=["an index in DATA_DIR", "an index elsewhere"])
def test_a_download_of_joined_rows_goes_on(world: World, tmp_path: Path, is_here: bool) -> None:
    # Which rows a table has is part of what a download was begun with; that some were taken down is not.
    data = DataDir.at(tmp_path / "data")
    shutil.copytree(world.owner.index(0).parent, data.index(0).parent)
    index = None if is_here else str(world.owner.root)

    def begun_with() -> Any:
        fields = OptionFields(parts="0", index=index, join=str(world.joined), join_how="inner")
        options, _ = laion_face_ready(Options.of("20M", fields, data))
        assert read_fingerprint(options.tables[0].path(0)) is not None
        return parts.row_filters(options, 0).as_dict()

    before = begun_with()
    remove(RemovalRequest(data, exclusion_of([one.url for one in world.named])))
    assert begun_with() == before


def laion_face_ready(options: Options) -> Any:
    from laion_face_builder.examples.ready import make_ready

    return make_ready(replace(options, images="none"), streaming=True)
