"""Files are whole or not there."""

import errno
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder import files
from laion_face_builder.errors import BadFile, DiskError


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "folder" / "file"
    with files.written_whole(target) as partial:
        partial.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert list(target.parent.iterdir()) == [target]


def test_nothing_is_left_or_replaced_after_an_error(tmp_path):
    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(ZeroDivisionError), files.written_whole(target) as partial:
        partial.write_text(str(1 / len("")))
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".part.parquet.12ab.partial").write_text("half")
    (tmp_path / "part.parquet").write_text("whole")
    files.remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"]


def test_fingerprints_travel_in_the_parquet_metadata(tmp_path):
    path = tmp_path / "table.parquet"
    fingerprint = files.make_fingerprint("ids", part=3, source="sha256:ab")
    table = pa.table({"a": [1]})
    pq.write_table(table.cast(files.stamped(table.schema, fingerprint)), path)
    assert files.read_fingerprint(path) == fingerprint
    assert files.read_fingerprint(tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", None])
def test_a_foreign_file_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "table.parquet"
    if content is None:
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(BadFile, match=r"table.parquet: found no fingerprint .* expected"):
        files.read_fingerprint(path)


def test_digests_do_not_depend_on_order():
    assert files.digest({"a": 1, "b": (2, 3)}) == files.digest({"b": [2, 3], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})


def test_sizes_are_readable():
    assert [files.human_size(n) for n in (12, 443_000_000, 2.1e12)] == ["12 B", "443.0 MB", "2.1 TB"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("name", [None, "partial", "elsewhere"])
def test_an_error_of_a_disk_names_what_is_concerned_and_the_way_out(tmp_path, number, name):
    target, elsewhere = tmp_path / "part.parquet", tmp_path / "elsewhere"
    with pytest.raises(OSError) as caught, files.written_whole(target) as partial:  # noqa: PT011 - the number is looked at
        raise OSError(number, os.strerror(number), name and str({"partial": partial, "elsewhere": elsewhere}[name]))
    is_ours = name == "partial" or number in (errno.ENOSPC, errno.EROFS) or (name is None and number == errno.EIO)
    assert isinstance(caught.value, DiskError) == is_ours
    assert caught.value.errno == number
    if is_ours:
        assert str(elsewhere if name == "elsewhere" else target) in str(caught.value)
        assert ". " in str(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOENT])
def test_a_file_that_cannot_be_read_is_not_taken_for_a_bad_one(tmp_path, number):
    path = tmp_path / "file"
    with pytest.raises(DiskError) as caught:
        files.require_readable(path, OSError(number, os.strerror(number)))
    assert str(caught.value).startswith(f"{path}: cannot be read ({os.strerror(number)}). ")
    files.require_readable(path, OSError(number, "", str(tmp_path / "another")))
    files.require_readable(path, ValueError("content"))


def test_a_full_disk_says_what_all_of_it_takes(tmp_path):
    with pytest.raises(DiskError, match=r"no room left .* All of it takes about 3.0 GB"), files.needing(3 * 10**9):
        raise files.disk_error(tmp_path / "file", OSError(errno.ENOSPC, "full"))
