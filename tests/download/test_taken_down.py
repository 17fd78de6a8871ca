"""What is taken down leaves tars, tables, counts and sidecars; all else keeps its bytes, and the download goes on."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder.download.cleaning import clean_tars
from laion_face_builder.download.named_pictures import downloads_named, pictures_named
from laion_face_builder.download.part import download_part
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.sidecar_renewal import fit_to_index
from laion_face_builder.download.taken_down import PicturesTaken, take_pictures_out
from laion_face_builder.download.tar_reader import PartPictures
from laion_face_builder.errors import StateConflict
from laion_face_builder.files import digest, put_in_place, read_fingerprint, stamped
from laion_face_builder.index.exclusion import parse_exclusion
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.sandbox import PictureHost, Truth
from laion_face_builder.schema import SIDECAR
from laion_face_builder.verify.verify_data import picture_problems
from tests.download.test_download import OPTIONS as QUICK
from tests.download.test_download import make_host, stored, write_index
from tests.support.killed_at import files_in, killed_everywhere
from tests.support.left_pictures import pictures_left
from tests.support.nested import but

pytestmark = pytest.mark.slow

OPTIONS = but(QUICK, timeout=60.0)
#: Columns of a sidecar that tell of pictures, and not of where they lie.
TELLING = [name for name in SIDECAR.names if name not in ("tar", "offset")]


def without_rows(data: DataDir, gone: np.ndarray) -> None:
    """Rewrite the index of part 0 without these rows, as a removal does when the pictures are out."""
    path = data.index(0)
    table = pq.read_table(path).filter(pa.array(~gone))
    schema = stamped(table.schema, {**(read_fingerprint(path) or {}), "removed": digest(gone.tolist())})
    partial = path.with_name(".partial")
    with pq.ParquetWriter(partial, schema) as writer:
        for start, stop in row_group_bounds(table.num_rows):
            writer.write_table(table.slice(start, stop - start))
    put_in_place(partial, path)


@dataclasses.dataclass
class World:
    """A host, and a part of which four shards were downloaded, and a retry round over what had failed."""

    host: PictureHost
    truths: list[Truth]
    late: Truth
    base: Path

    def copy(self, root: Path) -> DataDir:
        shutil.copytree(self.base, root)
        return DataDir.at(root)

    def rows(self, fate: str, first: int = 0, stop: int = 60) -> list[int]:
        return [row for row in range(first, stop) if self.truths[row].fate == fate]

    @property
    def gone(self) -> np.ndarray:
        """Some of each kind, none in the last shard: ok in three shards, failed, never asked for, got by a retry."""
        named = [*self.rows("ok")[::9], *self.rows("http_404")[:2], *self.rows("file_url")[:1]]
        gone = np.zeros(len(self.truths), bool)
        gone[[*named, self.truths.index(self.late)]] = True
        return gone

    @property
    def removed(self) -> Removed:
        return Removed.of(parse_exclusion([str(self.truths[row].sample_id) for row in np.flatnonzero(self.gone)]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("taken")
    host, truths = make_host(300, root / "none")
    truths = truths[:80]
    late = next(truth for truth in truths[30:] if truth.fate == "ok" and not truth.twist)
    made = World(host, truths, late, root / "data")
    data = DataDir.at(made.base)
    write_index(data, truths)
    answer = host.answers.pop(late.path)
    download_part(data, 0, OPTIONS)
    host.answers[late.path] = answer
    download_part(data, 0, OPTIONS, retry_failed=1)
    yield made
    host.stop()


@pytest.fixture(scope="module")
def fresh(world: World, tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """Download a part that never had the rows."""
    data = DataDir.at(tmp_path_factory.mktemp("fresh"))
    write_index(data, [truth for truth, gone in zip(world.truths, world.gone, strict=True) if not gone])
    download_part(data, 0, OPTIONS, retry_failed=1)
    return data


def pieces(tar: Path) -> dict[str, bytes]:
    """Return each member's header and content, padding and all, by its name."""
    with tarfile.open(tar) as read:
        members = read.getmembers()
    content = tar.read_bytes()
    return {one.name: content[one.offset : one.offset_data + -(-one.size // 512) * 512] for one in members}


def said_in(root: Path) -> str:
    """Return all that files say, tables read."""
    texts = []
    for path in sorted(root.rglob("*")):
        if path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
        if path.suffix == ".parquet":
            texts.append(json.dumps(pq.read_table(path).to_pylist(), ensure_ascii=False))
    return "\n".join(texts)


def telling(data: DataDir) -> list[dict[str, Any]]:
    return pq.read_table(data.sidecar(0), columns=TELLING).to_pylist()


def require_like(data: DataDir, fresh: DataDir) -> None:
    """Require that two downloads have the same pictures, and give the same reasons for the others."""
    with IndexPart.open(data.index(0)) as index:
        rows = index.num_rows
    assert [one.data for one in stored(data)] == [one.data for one in stored(fresh)]
    assert len(telling(data)) == rows
    assert telling(data) == telling(fresh)
    assert read_fingerprint(data.sidecar(0))["pictures"] == read_fingerprint(fresh.sidecar(0))["pictures"]
    assert list(picture_problems(data, 0, deep=True)) == []


def test_all_of_it_goes_and_nothing_else(world: World, fresh: DataDir, tmp_path: Path) -> None:
    data, gone = world.copy(tmp_path / "data"), world.gone
    before = {path: pieces(path) for path in data.tars(0).rglob("*.tar")}
    untouched = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in data.tars(0).glob("00003*")}
    of_tars = {Path(line.partition(": ")[0]).suffix for line in pictures_left(data, world.removed)}
    assert of_tars == {".tar", ".parquet"}
    taken = take_pictures_out(data, 0, gone)
    without_rows(data, gone)

    ids = {truth.sample_id for truth, is_gone in zip(world.truths, gone, strict=True) if is_gone}
    pictures = 0
    for tar, members in before.items():
        named = {name[:-5] for name in members if name.endswith(".json")}
        named = {key for key in named if json.loads(members[f"{key}.json"][512:].rstrip(b"\0"))["sample_id"] in ids}
        kept = {name: piece for name, piece in members.items() if name.partition(".")[0] not in named}
        assert list(pieces(tar).items()) == list(kept.items()), "the others in their order, byte for byte"
        assert tar.stat().st_size % tarfile.RECORDSIZE == 0
        pictures += len(named)
    assert (taken.pictures, taken.lost) == (pictures, 0)
    assert pictures == sum(truth.ok and truth.sample_id in ids for truth in world.truths) > 5
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in untouched} == untouched

    said = said_in(data.root / "images")
    for truth in (truth for truth in world.truths if truth.sample_id in ids):
        alone = [one for one in world.truths if one.url == truth.url or one.served == truth.served]
        for secret in (str(truth.sample_id), truth.url, truth.caption):
            assert len(alone) > 1 or not secret or secret not in said, truth
    assert list(pictures_left(data, world.removed)) == []
    require_like(data, fresh)

    asked, files = len(world.host.log), files_in(data.root)
    assert take_pictures_out(data, 0, np.zeros(len(gone) - gone.sum(), bool)) == PicturesTaken()
    download_part(data, 0, OPTIONS, retry_failed=1)
    assert (len(world.host.log), files_in(data.root)) == (asked, files), "it is whole: nothing is fetched or written"


@pytest.mark.filterwarnings("ignore")  # webdataset leaves the tars to be closed by the garbage collector
def test_webdataset_reads_what_is_left(world: World, tmp_path: Path) -> None:
    import webdataset

    data = world.copy(tmp_path / "data")
    take_pictures_out(data, 0, world.gone)
    tars = sorted(map(str, data.tars(0).rglob("*.tar")))
    found = [one["json"]["row"] for one in webdataset.WebDataset(tars, shardshuffle=False).decode("pil")]
    gc.collect()
    kept = [row for row, truth in enumerate(world.truths) if truth.ok and not world.gone[row]]
    assert sorted(found) == kept


def test_a_download_that_was_killed_goes_on_without_it(world: World, fresh: DataDir, tmp_path: Path) -> None:
    # Shard 1 half in its place, another being written, and no sidecar; then the removal, and the download again.
    data, gone = world.copy(tmp_path / "data"), world.gone
    files = PartFiles(data, 0)
    begun = data.tars(0) / "_tmp" / "00001.1f2e3d4c"
    begun.mkdir(parents=True)
    shutil.copy(data.tars(0) / "00001.tar", begun)
    for path in (data.tars(0) / "00001_stats.json", data.sidecar(0), files.round(1), *files.checked.glob("1-*")):
        path.unlink()
    shutil.rmtree(data.tars(0) / "retry-1")
    assert take_pictures_out(data, 0, gone).lost == 1
    assert not any(data.tars(0).glob("00001*"))
    assert not (data.tars(0) / "_tmp").exists()
    without_rows(data, gone)

    # What is named later is left out by the ledger alone: a row by its address, a picture by its bytes.
    rows = [row for row in world.rows("ok", 28, 40) if not gone[row]]
    late = [world.truths[row] for row in rows[:2]]
    entries = [late[0].url, _sha256(late[1])]
    ledger = Removals().begun(Removal("2026-11-26", "", Removed.of(parse_exclusion(entries)), is_done=True))
    ledger.write(data)
    asked = len(world.host.log)
    download_part(data, 0, OPTIONS, retry_failed=1)
    paths = {request.path for request in world.host.log[asked:]}
    assert paths.isdisjoint(truth.path for truth, is_gone in zip(world.truths, gone, strict=True) if is_gone)
    assert late[0].path not in paths
    said = said_in(data.root / "images")
    assert [truth for truth in late if str(truth.sample_id) in said] == []
    others = [one for one in telling(fresh) if one["sample_id"] not in {truth.sample_id for truth in late}]
    assert [one for one in telling(data) if one["sample_id"] is not None] == others
    assert list(picture_problems(data, 0, deep=True)) == []


def _sha256(truth: Truth) -> str:
    return hashlib.sha256(truth.served).hexdigest()


def test_killed_anywhere_it_ends_as_if_it_was_not(world: World, tmp_path: Path) -> None:
    source = f"""
import numpy as np
from laion_face_builder.download.taken_down import take_pictures_out
from laion_face_builder.layout import DataDir
gone = np.zeros({len(world.truths)}, bool)
gone[{np.flatnonzero(world.gone)[-3:].tolist()}] = True
take_pictures_out(DataDir.at(root), 0, gone)
"""
    killed = killed_everywhere(world.base, tmp_path / "work", source, every=5)
    assert killed.times > 7
    assert killed.others == []


def test_cleaning_keeps_to_it(world: World, tmp_path: Path) -> None:
    # A picture that the sidecar says is broken goes for the reason of its own row, whose number is another by now.
    data, gone = world.copy(tmp_path / "data"), world.gone
    gone[world.truths.index(world.late)] = False
    take_pictures_out(data, 0, gone)
    without_rows(data, gone)
    tar = data.tars(0) / "00003.tar"
    table = pq.read_table(data.sidecar(0))
    kept = np.flatnonzero(~gone)
    row = next(row for row in world.rows("ok", 70, 80))
    place = int(np.flatnonzero(kept == row)[0])
    statuses = table["status"].to_pylist()
    statuses[place] = "undecodable"
    changed = table.set_column(1, "status", pa.array(statuses)).to_pylist()
    changed[place] |= {"tar": None, "offset": None, "length": None}
    pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), data.sidecar(0))
    assert clean_tars(PartFiles(data, 0)) == 1
    found = {one["row"]: one for one in pq.read_table(tar.with_suffix(".parquet")).to_pylist()}
    assert found[row]["error_message"] == "undecodable"
    assert sum(one["status"] == "success" for one in found.values()) == len(pieces(tar)) // 3


def test_several_removals_one_after_the_other(world: World, fresh: DataDir, tmp_path: Path) -> None:
    data, rows = world.copy(tmp_path / "data"), np.flatnonzero(world.gone)
    left = np.arange(len(world.truths))
    for some in (rows[::2], rows[1::4], rows[3::4]):
        gone = np.isin(left, some)
        take_pictures_out(data, 0, gone)
        # It had ended, and the index was not rewritten yet: again, and nothing is left to do.
        assert take_pictures_out(data, 0, gone).samples == 0
        without_rows(data, gone)
        left = left[~gone]
    require_like(data, fresh)


def test_a_removal_that_grows_when_it_is_begun_again(world: World, fresh: DataDir, tmp_path: Path) -> None:
    data, gone = world.copy(tmp_path / "data"), world.gone
    some = gone.copy()
    some[np.flatnonzero(gone)[::2]] = False
    take_pictures_out(data, 0, some)
    take_pictures_out(data, 0, gone)
    without_rows(data, gone)
    require_like(data, fresh)


def test_an_index_that_lies_elsewhere_keeps_its_rows(world: World, fresh: DataDir, tmp_path: Path) -> None:
    data = world.copy(tmp_path / "data")
    elsewhere = data.index(0).rename(tmp_path / "elsewhere.parquet")
    found = downloads_named(data, 0, world.removed, world.removed.mask)
    assert found is not None
    named = found.gone
    assert np.array_equal(named, world.gone), "those that were never asked for are known by their ids"
    assert found.ids.tolist() == [world.truths[row].sample_id for row in np.flatnonzero(named)]
    assert {*found.urls} == {world.truths[row].url for row in np.flatnonzero(named)} - {world.truths[_ftp(world)].url}
    take_pictures_out(data, 0, named, is_index_here=False)
    again = downloads_named(data, 0, Removed(), Removed().mask)
    assert again is not None
    assert (np.array_equal(again.gone, named), len(again.ids)) == (True, 0)
    with IndexPart.open(elsewhere) as index, PartPictures.open(data, 0, index) as pictures:
        assert [pictures.get(row).status for row in np.flatnonzero(named).tolist()] == ["taken_down"] * named.sum()
        asked = len(world.host.log)
        assert download_part(data, 0, OPTIONS, index=index, retry_failed=1).failures["taken_down"] == named.sum()
        assert len(world.host.log) == asked
    assert [one for one in telling(data) if one["sample_id"] is not None] == telling(fresh)
    # Then its owner takes them out, too.
    shutil.copy(elsewhere, data.index(0))
    without_rows(data, named)
    assert download_part(data, 0, OPTIONS, retry_failed=1).rows == len(world.truths) - named.sum()


def _ftp(world: World) -> int:
    return world.rows("file_url")[0]


def test_at_an_address(world: World, tmp_path: Path) -> None:
    data, here = world.copy(tmp_path / "data"), world.copy(tmp_path / "here")
    far = DataDir.kept_at(data.root.as_uri())
    assert (pictures_named(far, 0, world.removed) == False).all()  # noqa: E712 - a mask
    assert take_pictures_out(far, 0, world.gone) == take_pictures_out(here, 0, world.gone)
    assert files_in(data.root) == files_in(here.root)


def test_pictures_are_found_by_their_bytes(world: World, tmp_path: Path) -> None:
    data = world.copy(tmp_path / "data")
    rows = [*world.rows("ok")[:2], world.truths.index(world.late)]
    served = {world.truths[row].served for row in rows}
    same = [row for row, truth in enumerate(world.truths) if truth.ok and truth.served in served]
    for kind in ("sha256", "md5"):
        entries = [getattr(hashlib, kind)(body).hexdigest() for body in served]
        named = pictures_named(data, 0, Removed.of(parse_exclusion(entries)))
        assert np.flatnonzero(named).tolist() == same, kind
    # They are found again when a kill came between the pictures and the index, which has the rows still.
    take_pictures_out(data, 0, named)
    assert np.array_equal(pictures_named(data, 0, Removed()), named)
    assert pictures_named(DataDir.at(tmp_path / "nothing"), 0, Removed()) is None


@pytest.mark.parametrize("is_lost_first", [False, True])
def test_rows_that_an_index_elsewhere_has_lost_shift_nothing(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_lost_first: bool
) -> None:
    # Its owner took some down, and as many others were taken down here: ids tell which is which, no count.
    lost, here = world.gone, np.roll(world.gone, 1) & ~world.gone
    data, there = world.copy(tmp_path / "data"), DataDir.at(tmp_path / "there")
    shutil.copytree(world.base / "index", there.root / "index")
    data.index(0).unlink()
    without = partial(take_pictures_out, data, 0, here, is_index_here=False)
    if is_lost_first:
        without_rows(there, lost)
        without()
    else:
        without()
        without_rows(there, lost)
    asked = len(world.host.log)
    with IndexPart.open(there.index(0)) as index:
        with pytest.raises(StateConflict, match="speaks of"):
            PartPictures.open(data, 0, index)
        if is_lost_first:
            fit_to_index(data, 0, index)
        else:
            download_part(data, 0, OPTIONS, index=index, retry_failed=1)
            assert f"{lost.sum()} rows have left the index" in caplog.text
        require_in_place(world, data, index, lost, here)
        before = files_in(data.root)
        fit_to_index(data, 0, index)
        download_part(data, 0, OPTIONS, index=index, retry_failed=1)
        assert (files_in(data.root), len(world.host.log)) == (before, asked), "nothing is left to be done"
    # One that has as many rows, but others.
    other = np.roll(lost, 2)
    shutil.copy(world.base / "index" / "part-00000.parquet", there.index(0))
    without_rows(there, other)
    with IndexPart.open(there.index(0)) as index:
        with pytest.raises(StateConflict, match="speaks of"):
            PartPictures.open(data, 0, index)
        fit_to_index(data, 0, index)
        require_in_place(world, data, index, other, here)


def test_who_reads_meanwhile_is_told_and_never_gets_pictures_of_other_rows(world: World, tmp_path: Path) -> None:
    data, last = world.copy(tmp_path / "data"), len(world.truths) - 1
    gone = np.zeros(last + 1, bool)
    gone[world.rows("ok")[3]] = True
    with PartPictures.open(data, 0) as pictures:
        pictures.get(0)
        download_part(data, 0, OPTIONS, retry_failed=2)
        assert pictures.get(last).status == stored(data)[last].status, "a further round shifts nothing"
        pictures.get(0)
        take_pictures_out(data, 0, gone)
        with pytest.raises(StateConflict, match="made again while it was read"):
            pictures.get(last)


def require_in_place(world: World, data: DataDir, index: IndexPart, lost: np.ndarray, here: np.ndarray) -> None:
    """Require that each row of an index that has lost some has its own picture, and none if it was taken down here."""
    kept = np.flatnonzero(~lost).tolist()
    with PartPictures.open(data, 0, index) as pictures:
        found = list(pictures.read(0, len(kept)))
    for row, picture in zip(kept, found, strict=True):
        truth = world.truths[row]
        assert (picture.status == "taken_down") == bool(here[row])
        assert picture.data == (truth.served if truth.ok and not here[row] else None)


def test_a_plan_of_an_earlier_version_learns_its_samples(world: World, tmp_path: Path) -> None:
    def forget(data: DataDir) -> PartFiles:
        files = PartFiles(data, 0)
        plan = pq.read_table(files.plan, columns=["status"])
        pq.write_table(plan.replace_schema_metadata(pq.read_schema(files.plan).metadata), files.plan)
        return files

    whole, data = PartFiles(world.copy(tmp_path / "whole"), 0), world.copy(tmp_path / "data")
    files = forget(data)
    download_part(data, 0, OPTIONS, retry_failed=1)
    assert pq.read_table(files.plan) == pq.read_table(whole.plan), "from the index"
    index = forget(data).data.index(0).rename(tmp_path / "elsewhere.parquet")
    take_pictures_out(data, 0, world.gone, is_index_here=False)
    ids = pq.read_table(files.plan)["sample_id"]
    assert np.array_equal(ids.is_null().to_numpy(), world.gone), "from the sidecar"
    forget(data)
    data.sidecar(0).unlink()
    with pytest.raises(StateConflict, match="the index that was there when the download began"):
        downloads_named(data, 0, world.removed, world.removed.mask)
    with IndexPart.open(index) as opened:
        download_part(data, 0, OPTIONS, index=opened, retry_failed=1)
    asked = [row for row in np.flatnonzero(world.gone) if row != _ftp(world)]
    ids = pq.read_table(files.plan)["sample_id"]
    assert np.flatnonzero(ids.is_null().to_numpy()).tolist() == asked, "from the index, but for what the tars lack"


def test_what_does_not_fit_is_refused(world: World, tmp_path: Path) -> None:
    data, gone = world.copy(tmp_path / "data"), world.gone
    take_pictures_out(data, 0, gone)
    with pytest.raises(StateConflict, match="speaks of"):
        PartPictures.open(data, 0)
    shrunk = [truth for truth, is_gone in zip(world.truths, gone, strict=True) if not is_gone]
    for others in (shrunk[::-1], [*shrunk, but(shrunk[0], sample_id=7)], [*shrunk[1:], shrunk[0]]):
        write_index(data, others)
        for use in (lambda: download_part(data, 0, OPTIONS), lambda: pictures_named(data, 0, world.removed)):
            with pytest.raises(StateConflict, match="others among them"):
                use()
    write_index(data, world.truths)
    without_rows(data, gone)
    os.unlink(PartFiles(data, 0).plan)
    with pytest.raises(StateConflict, match="plan"):
        download_part(data, 0, OPTIONS)


def test_shards_that_are_not_whole_go(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, gone = world.copy(tmp_path / "data"), world.gone
    os.truncate(data.tars(0) / "00000.tar", 5_000)
    assert take_pictures_out(data, 0, gone).lost == 1
    assert "makes it again" in caplog.text
    without_rows(data, gone)
    with PartPictures.open(data, 0) as pictures:
        kept = np.flatnonzero(~gone).tolist()
        statuses = [pictures.get(kept.index(row)).status for row in world.rows("ok", 0, 20) if row in kept]
        assert {*statuses} == {"not_downloaded"}
