"""Rows leave a published copy, in a folder and on the Hub: zero are left, and what had none of them stays as it is."""

import itertools
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laion_face_builder import cli
from laion_face_builder.errors import NotPrepared
from laion_face_builder.index.exclusion import exclusion_of
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.index.removed import Removed, hash_of
from laion_face_builder.publish.manifest import Manifest
from laion_face_builder.publish.published_files import Bounds
from laion_face_builder.publish.targets import PublishedPlace
from laion_face_builder.removal.published import TargetRequest, remove_from_target, rows_left

# huggingface_hub's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SMALL = Bounds(row_group_bytes=300_000, row_group_rows=40, file_bytes=900_000)
_names = itertools.count(1)


def removal_of(*entries, reason="asked by those in them"):
    return Removals((Removal("2026-11-26", reason, Removed.of(exclusion_of(entries))),))


def tree(folder):
    """Return {name: bytes} of every file that readers see."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def on_hub(repo):
    """Return every byte that the Hub has of a repo, by where it is: in whatever commit, or in none."""
    commits = {(sha, path): file for sha, files in repo.commits.items() for path, file in files.items()}
    served = {at: b"".join(file.data.pieces()) for at, file in commits.items()}
    return {**served, **{("object", sha): content for sha, content in repo.objects.items()}}


def rows_in(contents):
    """Return the sample ids in all Parquet files of {name: bytes}."""
    import pyarrow as pa

    found = set()
    for content in contents.values():
        if content[:4] == b"PAR1":
            found |= set(pq.read_table(pa.BufferReader(content), columns=["sample_id"])["sample_id"].to_pylist())
    return found


def copied(published, tmp_path):
    return Path(shutil.copytree(published.folder, tmp_path / "copy", copy_function=shutil.copy2))


def gone_in(truth, part, count):
    """Give so many rows of a part, all near one another, with a picture each."""
    return [one for one in truth if one.part == part and one.ok][10 : 10 + count]


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
    assert list(rows_left(PublishedPlace.at(str(folder)), removals.removed)) == []
    assert list(rows_left(PublishedPlace.at(str(published.folder)), removals.removed)) != []
    # The same again changes nothing.
    again = remove_from_target(TargetRequest(str(folder), removals))
    assert (again.rows, again.sent, tree(folder)) == (0, 0, after)


def test_a_picture_that_is_named_leaves_wherever_its_row_is(prepared, published, tmp_path):
    folder = copied(published, tmp_path)
    shown = pq.read_table(folder / "preview" / "preview-00000.parquet").to_pylist()[1]
    import hashlib

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
