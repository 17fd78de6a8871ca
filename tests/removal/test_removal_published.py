"""Rows leave a published folder: zero are left, and what had none of them stays as it is."""

import hashlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from laion_face_builder import cli, files
from laion_face_builder.errors import NotPrepared
from laion_face_builder.index.removed import hash_of
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.manifest import Manifest
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.published_files import Bounds
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.removal.published_copy import TargetRequest, free_staging, remove_from_target
from tests.support.taken_down import copy_of, gone_in, removal_of, rows_in, tree, without_rows

SMALL = Bounds(row_group_bytes=300_000, row_group_rows=40, file_bytes=900_000)


def copied(published, tmp_path):
    return Path(shutil.copytree(published.folder, tmp_path / "copy", copy_function=shutil.copy2))


@pytest.mark.parametrize("kind", ["published", "published_pictures"])
def test_rows_leave_a_folder_and_files_without_any_stay(request, prepared, tmp_path, kind):
    published = request.getfixturevalue(kind)
    folder = copied(published, tmp_path)
    before, when = tree(folder), {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    ids, urls = gone_in(prepared.truth, 2, 3), gone_in(prepared.truth, 2, 6)[3:]
    removals = removal_of(*(one.sample_id for one in ids), *(one.url for one in urls))
    result = remove_from_target(TargetRequest(str(folder), removals))
    after, gone = tree(folder), {one.sample_id for one in (*ids, *urls)}
    changed = {name for name in before if before[name] != after[name]}
    assert set(result.rewritten) == {name for name in changed if name.endswith(".parquet")}
    assert changed - set(result.rewritten) == {"README.md", "croissant.json", "laion_face_manifest.json"}
    assert 0 < len(result.rewritten) < len(when)
    assert result.history is None
    for path, then in when.items():
        if path.relative_to(folder).as_posix() not in changed:
            assert path.stat().st_mtime_ns == then
    assert rows_in(before) - rows_in(after) == gone
    assert result.rows == 6
    for one in (*ids, *urls):
        assert not any(one.url.encode() in content for content in after.values())
    # What stays is as it was, in the same order.
    for name in result.rewritten:
        keep = [row for row in pq.read_table(published.folder / name).to_pylist() if row["sample_id"] not in gone]
        assert pq.read_table(folder / name).to_pylist() == keep
    manifest = Manifest.from_text(after["laion_face_manifest.json"], str(folder))
    assert manifest.removals.found_in(2) == {hash_of("sample_ids", number) for number in gone}
    assert "6 rows were taken down" in after["README.md"].decode()
    assert cli.main(["verify", str(folder), "--deep"]) == 0
    (tmp_path / "list").write_text("\n".join(str(one.sample_id) for one in (*ids, *urls)))
    assert cli.main(["verify", str(folder), "--removed", str(tmp_path / "list")]) == 0
    assert cli.main(["verify", str(published.folder), "--removed", str(tmp_path / "list")]) == 1
    # The same again changes nothing.
    again = remove_from_target(TargetRequest(str(folder), removals))
    assert (again.rows, again.sent, tree(folder)) == (0, 0, after)


def test_a_picture_that_is_named_leaves_wherever_its_row_is(prepared, published, tmp_path):
    folder = copied(published, tmp_path)
    shown = pq.read_table(folder / "preview" / "preview-00000.parquet").to_pylist()[1]
    removals = removal_of(hashlib.sha256(shown["image"]["bytes"]).hexdigest())
    result = remove_from_target(TargetRequest(str(folder), removals))
    assert set(result.rewritten) == {f"data/part-{shown['part']:05d}.parquet", "preview/preview-00000.parquet"}
    assert shown["sample_id"] not in rows_in(tree(folder))
    assert cli.main(["verify", str(folder)]) == 0


def test_a_dry_run_says_and_does_nothing(prepared, published, tmp_path):
    folder = copied(published, tmp_path)
    result = remove_from_target(TargetRequest(str(folder), removal_of(prepared.truth[5].sample_id), is_dry_run=True))
    assert (result.rows, result.sent, tree(folder)) == (1, 0, tree(published.folder)) or result.rows == 2
    assert tree(folder) == tree(published.folder)


def test_what_was_never_published_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotPrepared, match="nothing was published there"):
        remove_from_target(TargetRequest(f"{tmp_path}/empty", removal_of(1)))


# --- what is published later ---


@pytest.mark.parametrize("how", ["published", "published_pictures"])
@pytest.mark.parametrize("is_purged", [False, True], ids=["from a DATA_DIR with the rows", "from one without"])
def test_what_was_taken_down_stays_down_and_nothing_is_sent_twice(request, prepared, tmp_path, how, is_purged):
    published = request.getfixturevalue(how)
    folder, data = copied(published, tmp_path), copy_of(published.data, tmp_path)
    named = [one.sample_id for one in gone_in(prepared.truth, 2, 3)]
    removals = without_rows(data, *named) if is_purged else removal_of(*named)
    remove_from_target(TargetRequest(str(folder), removals))
    after, when = tree(folder), {path: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")}
    more: dict[str, Any] = {"with_images": True, "bounds": SMALL} if how == "published_pictures" else {}
    publish(PublishRequest(data, str(folder), **more))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")} == when
    assert {name for name, content in tree(folder).items() if after[name] != content} <= {"laion_face_manifest.json"}
    # To another place the same rows go, if this DATA_DIR knows of the removal.
    if is_purged and not more:
        publish(PublishRequest(data, str(tmp_path / "other")))
        assert rows_in(tree(tmp_path / "other")) == rows_in({n: c for n, c in after.items() if "preview" not in n})
    manifest = Manifest.from_text((folder / "laion_face_manifest.json").read_bytes(), "")
    assert manifest.removals.found_in(2) == {hash_of("sample_ids", number) for number in named}
    assert cli.main(["verify", str(folder), "--deep"]) == 0


def test_a_place_learns_what_a_data_dir_has_taken_down_since(prepared, published, tmp_path):
    folder, data = copied(published, tmp_path), copy_of(published.data, tmp_path)
    named = gone_in(prepared.truth, 0, 2)
    without_rows(data, *(one.url for one in named))
    publish(PublishRequest(data, str(folder), preview=5))
    assert not {one.sample_id for one in named} & rows_in(tree(folder))
    assert Manifest.from_text((folder / "laion_face_manifest.json").read_bytes(), "").removals.done
    # What it has learnt holds for whoever publishes there next.
    publish(PublishRequest(prepared.data, str(folder), preview=5))
    assert not {one.sample_id for one in named} & rows_in(tree(folder))
    assert cli.main(["verify", str(folder), "--deep"]) == 0


def test_an_earlier_version_refuses_a_place_that_remembers(published, tmp_path):
    folder = copied(published, tmp_path)
    assert json.loads((folder / "laion_face_manifest.json").read_text())["format"] == 1
    remove_from_target(TargetRequest(str(folder), removal_of(1)))
    assert json.loads((folder / "laion_face_manifest.json").read_text())["format"] == 2


def test_what_waited_to_be_sent_is_freed(published, tmp_path):
    data = DataDir.at(tmp_path)
    (tmp_path / "publish" / "x").mkdir(parents=True)
    (tmp_path / "publish" / "x" / "data.parquet").write_bytes(b"rows")
    assert free_staging(data) == 4
    assert [path.name for path in tmp_path.rglob("*")] == ["publish", ".x.lock"]


class Killed(BaseException):
    pass


def test_killed_between_two_files_it_ends_as_without_the_kill(prepared, published_pictures, tmp_path, monkeypatch):
    whole, killed = copied(published_pictures, tmp_path), tmp_path / "killed"
    shutil.copytree(whole, killed)
    request = TargetRequest(str(whole), removal_of(*(one.url for one in prepared.truth[::9])), batch_bytes=1)
    assert len(remove_from_target(request).rewritten) > 3
    in_place = files.put_in_place
    for stop in (0, 3, 2, 1, 1):
        done = itertools.count()

        def fail_at(partial, path, stop=stop, done=done):
            if next(done) == stop:
                raise Killed
            in_place(partial, path)

        monkeypatch.setattr(files, "put_in_place", fail_at)
        with pytest.raises(Killed):
            remove_from_target(replace(request, target=str(killed)))
    assert tree(killed) != tree(whole)
    monkeypatch.undo()
    remove_from_target(replace(request, target=str(killed)))
    assert tree(killed) == tree(whole)
