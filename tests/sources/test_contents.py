"""Equal bytes are the same source: what `content` says, when, and what it survives."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import OptionError, SourceNotFound
from laion_face_builder.files import sha256_of
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import FolderHost, Sandbox, SandboxSpec
from laion_face_builder.sources.hashes import known_sha256
from laion_face_builder.sources.sources import CANONICAL, Upstream
from tests.support.sources import parquet


@pytest.fixture
def web(tmp_path):
    parquet(tmp_path / "web" / CANONICAL.format(part=0))
    with FolderHost(tmp_path / "web") as host:
        yield host


def text_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".checked", ".json"))


# Local files


def test_a_local_file_is_hashed_once_until_it_changes(tmp_path):
    path, folder = tmp_path / "file", tmp_path / "sources"
    path.write_bytes(b"one")
    first = known_sha256(path, folder)
    assert first == sha256_of(path)
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # As if it had not been touched: it is not read again.
    assert known_sha256(path, folder) == first
    os.utime(path, ns=(0, 0))
    assert known_sha256(path, folder) == sha256_of(path)


def test_a_link_shares_the_note_of_what_it_leads_to(tmp_path):
    (tmp_path / "file").write_bytes(b"one")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert known_sha256(tmp_path / "link", tmp_path / "s") == known_sha256(tmp_path / "file", tmp_path / "s")
    assert len(list((tmp_path / "s" / ".hashes").iterdir())) == 1


@pytest.mark.parametrize("note", ["", "{", "[]", "null", '{"size": 3}', '{"sha256": "00", "size": 3, "mtime_ns": 1}'])
def test_a_note_that_is_broken_or_of_another_time_is_not_believed(tmp_path, note):
    path, folder = tmp_path / "file", tmp_path / "sources"
    path.write_bytes(b"one")
    true = known_sha256(path, folder)
    (written,) = (folder / ".hashes").iterdir()
    written.write_text(note)
    assert known_sha256(path, folder) == true
    assert json.loads(written.read_text())["sha256"] == true


def test_notes_that_cannot_be_kept_cost_only_time(tmp_path):
    (tmp_path / "file").write_bytes(b"one")
    (tmp_path / "sources").write_bytes(b"not a folder")
    assert known_sha256(tmp_path / "file", tmp_path / "sources") == sha256_of(tmp_path / "file")


_ticks = itertools.count()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.binary(max_size=3)), max_size=8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_content_is_always_that_of_the_bytes(tmp_path, writes):
    for name, content in writes:
        path = tmp_path / name
        path.write_bytes(content)
        os.utime(path, ns=(0, next(_ticks)))  # Clocks tick coarser than this test writes.
        assert known_sha256(path, tmp_path / "sources") == sha256_of(path)


# Copied files


def test_what_the_hub_states_is_known_beforehand(sandbox: Sandbox, tmp_path):
    file = Upstream(sandbox.repo).id_list()
    assert file.content(tmp_path) == f"sha256:{sha256_of(sandbox.folder / 'laion-face' / 'laion_face_ids.pth')}"
    assert not any(tmp_path.iterdir())


def test_a_file_from_the_web_is_known_once_it_has_come_and_stays_known(web, tmp_path):
    folder, path = tmp_path / "sources", web.folder / CANONICAL.format(part=0)
    file = Upstream(metadata_place=web.url()).metadata(0)
    assert file.content(folder) is None
    file.discard(folder)
    copy = file.fetch(folder)
    assert file.content(folder) == f"sha256:{sha256_of(path)}"
    file.discard(folder)
    assert not copy.exists()
    again = Upstream(metadata_place=web.url()).metadata(0)
    assert again.content(folder) == f"sha256:{sha256_of(path)}"
    assert again.missing(folder) == again.size
    again.discard(folder)
    assert again.content(folder) == f"sha256:{sha256_of(path)}"
    parquet(path, rows=11)
    changed = Upstream(metadata_place=web.url()).metadata(0)
    assert changed.content(folder) is None
    changed.fetch(folder)
    assert changed.content(folder) == f"sha256:{sha256_of(path)}"


def test_a_copy_from_before_contents_were_noted_is_hashed_not_fetched(web, tmp_path):
    file = Upstream(metadata_place=web.url()).metadata(0)
    copy = file.fetch(tmp_path / "sources")
    note = copy.with_name(f".{copy.name}.checked")
    old = json.loads(note.read_text())
    sha256 = old.pop("sha256")
    note.write_text(json.dumps(old))
    before = len(web.log)
    assert file.content(tmp_path / "sources") == f"sha256:{sha256}"
    assert file.fetch(tmp_path / "sources") == copy
    note.write_text(json.dumps({**old, "version": "footer:00"}))  # A kind of version that there is no more.
    file.fetch(tmp_path / "sources")
    assert file.content(tmp_path / "sources") == f"sha256:{sha256}"
    assert len(web.log) == before
    note.write_text(json.dumps(old))
    copy.unlink()
    assert file.content(tmp_path / "sources") is None


def test_a_copy_of_another_version_is_never_taken_for_this_one(web, tmp_path):
    path = web.folder / CANONICAL.format(part=0)
    whole = path.read_bytes()
    Upstream(metadata_place=web.url()).metadata(0).fetch(tmp_path / "sources")
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])  # The same size, another ETag.
    os.utime(path, ns=(1, 1))
    file = Upstream(metadata_place=web.url()).metadata(0)
    assert file.fetch(tmp_path / "sources").read_bytes() == path.read_bytes()


def test_a_copy_that_was_changed_is_fetched_again_though_only_its_bytes_tell(web, tmp_path):
    file = Upstream(metadata_place=web.url()).metadata(0)
    copy = file.fetch(tmp_path / "sources")
    whole = copy.read_bytes()
    copy.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    os.utime(copy, ns=(1, 1))
    assert file.fetch(tmp_path / "sources").read_bytes() == whole


def test_passwords_and_tokens_are_in_no_note_and_no_message(web, tmp_path, caplog):
    caplog.set_level("DEBUG", "laion_face")
    place = web.url().replace("://", "://me:secret@") + "?sig=secret"
    upstream = Upstream(metadata_place=place)
    file = upstream.metadata(0)
    copy = file.fetch(tmp_path / "sources")
    assert "secret" not in text_of(tmp_path / "sources") + caplog.text + str(copy)
    assert "secret" not in repr(file) + repr(upstream.metadata_source())
    with pytest.raises(SourceNotFound) as caught:
        upstream.metadata(1)
    assert "secret" not in str(caught.value)
    # Another password leads to the same copy.
    other = Upstream(metadata_place=place.replace("secret", "other")).metadata(0)
    assert other.fetch(tmp_path / "sources") == copy


# The whole way


def test_local_pickles_are_used_where_they_lie(upstream_files, tmp_path):
    folder = upstream_files.folder / "laion-face"
    upstream = Upstream(folder)
    for file, name in ((upstream.id_list(), "laion_face_ids.pth"), (upstream.detections(1), "sample2detect_1.pth")):
        assert (file.is_local, file.missing(tmp_path), file.fetch(tmp_path)) == (True, 0, folder / name)
        assert file.content(tmp_path) == f"sha256:{sha256_of(folder / name)}"
    with pytest.raises(SourceNotFound, match=r"sample2detect_9\.pth: there is no such file; expected laion_face_ids"):
        upstream.detections(9)


def test_a_source_repo_can_be_a_folder_as_metadata_can(sandbox: Sandbox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sandbox.folder / "laion-face", tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / sandbox.repo)
    for place in ("./mine", str(tmp_path / "mine"), f"file://{tmp_path}/mine", sandbox.repo):
        assert Upstream(place).id_list().is_local
    shutil.rmtree(tmp_path / sandbox.repo)
    assert not Upstream(sandbox.repo).id_list().is_local
    with pytest.raises(
        SourceNotFound, match=r"source_repo='./gone': found nothing there, expected a folder of laion_face"
    ):
        Upstream("./gone").id_list()
    with pytest.raises(
        OptionError, match=r'source_repo=\'mine\?\': expected a Hub dataset "owner/name", or a local folder'
    ):
        Upstream("mine?").id_list()
    with pytest.raises(OptionError, match=r"source_revision='v1': .*/mine is a folder"):
        Upstream("./mine", "v1").id_list()


def test_equal_bytes_from_elsewhere_make_nothing_anew(make_sandbox, tmp_path):
    box = make_sandbox(SandboxSpec(parts=(0,), rows=60))
    data = DataDir.at(tmp_path / "data")
    ours = [data.ids(0), data.faces(0), data.index(0)]
    prepare(data, [0], Upstream(box.repo, None, box.metadata_repo))
    made = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in ours]
    data.images_fingerprint(0).parent.mkdir(parents=True)
    data.images_fingerprint(0).write_text("{}")  # As if pictures were there: other sources would be a StateConflict.
    for repo in (box.repo, box.folder / "laion-face"):
        for place in (box.metadata_folder, box.metadata_repo, box.metadata_url):
            prepare(data, [0], Upstream(repo, None, place), discard_sources=True)
            assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in ours] == made
    sent = box.metadata.bytes_sent(".parquet")
    prepare(data, [0], Upstream(box.repo, None, box.metadata_url))
    assert box.metadata.bytes_sent(".parquet") == sent
