"""Looking up and fetching upstream files: versions, resuming, checking, and errors that say what to do."""

import pickle
from pathlib import Path
from typing import Any

import fsspec
import pytest

from laion_face_builder.errors import BadFile, ChecksumError, GatedSource, OptionError, SourceError, SourceNotFound
from laion_face_builder.files import sha256_of
from laion_face_builder.sandbox import STRANGER, TOKEN, Answer, FolderHost, Request, Sandbox, SandboxSpec
from laion_face_builder.sandbox.serving import LoopbackServer
from laion_face_builder.sources.sources import CANONICAL, CONVERTED, Upstream, Whole, part_of
from tests.support.sources import parquet


def leftovers(folder: Path) -> list[str]:
    """List what lies in `folder` apart from locks."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


@pytest.fixture
def web(tmp_path):
    """Serve a plain web folder with one metadata file of part 0."""
    parquet(tmp_path / "web" / CANONICAL.format(part=0), rows=2000)
    with FolderHost(tmp_path / "web") as host:
        yield host


# The Hub


def test_hub_file_is_looked_up_fetched_checked_and_remembered(sandbox: Sandbox, tmp_path):
    upstream = Upstream(sandbox.repo)
    file = upstream.detections(0)
    true = sandbox.folder / "laion-face" / "sample2detect_0.pth"
    assert (file.size, file.version, file.is_local) == (true.stat().st_size, f"sha256:{sha256_of(true)}", False)
    assert file.missing(tmp_path) == file.size
    path = file.fetch(tmp_path)
    assert path.read_bytes() == true.read_bytes()
    assert file.missing(tmp_path) == 0
    before = len(sandbox.hub.log)
    assert file.fetch(tmp_path) == path
    assert len(sandbox.hub.log) == before


def test_fetching_goes_on_where_a_killed_run_ended(sandbox: Sandbox, tmp_path):
    file: Any = Upstream(sandbox.repo).id_list()
    true = (sandbox.folder / "laion-face" / "laion_face_ids.pth").read_bytes()
    target = file.place(tmp_path)
    target.parent.mkdir(parents=True)
    file._incomplete(target).write_bytes(true[:1000])
    before = len(sandbox.hub.log)
    assert file.missing(tmp_path) == len(true) - 1000
    assert file.fetch(tmp_path).read_bytes() == true
    asked = [request for request in sandbox.hub.log[before:] if "/lfs/" in request.path]
    assert [(request.headers["range"], request.sent) for request in asked] == [("bytes=1000-", len(true) - 1000)]


def test_wrong_bytes_from_a_killed_run_are_found_out(sandbox: Sandbox, tmp_path):
    file: Any = Upstream(sandbox.repo).id_list()
    target = file.place(tmp_path)
    target.parent.mkdir(parents=True)
    file._incomplete(target).write_bytes(b"\0" * 1000)
    assert f"sha256:{sha256_of(file.fetch(tmp_path))}" == file.version
    assert leftovers(tmp_path) == [".laion_face_ids.pth.checked", "laion_face_ids.pth"]


def test_a_cut_connection_costs_only_the_rest(sandbox: Sandbox, tmp_path):
    file = Upstream(sandbox.repo).detections(1)
    sandbox.hub.plant("/lfs/", cut_after=5000)
    before = len(sandbox.hub.log)
    assert f"sha256:{sha256_of(file.fetch(tmp_path))}" == file.version
    assert sum(request.sent for request in sandbox.hub.log[before:] if "/lfs/" in request.path) == file.size


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again(sandbox: Sandbox, tmp_path, status):
    sandbox.hub.plant("/api/datasets", status=status)
    sandbox.hub.plant("/resolve/", method="HEAD", status=status)
    sandbox.hub.plant("/lfs/", status=status)
    file: Any = Upstream(sandbox.repo).id_list()
    assert f"sha256:{sha256_of(file.fetch(tmp_path))}" == file.version


def test_a_turned_bit_is_fetched_again(sandbox: Sandbox, tmp_path, caplog):
    sandbox.hub.plant("/lfs/", flip=7)
    file = Upstream(sandbox.repo).detections(0)
    assert f"sha256:{sha256_of(file.fetch(tmp_path))}" == file.version
    assert "sample2detect_0.pth" in caplog.text


def test_a_bit_that_stays_turned_is_an_error_and_leaves_nothing(sandbox: Sandbox, tmp_path):
    sandbox.hub.plant("/lfs/", calls=range(1, 9), flip=7)
    with pytest.raises(ChecksumError, match=r"sample2detect_0.pth: its sha256 hash is .*, the Hub states"):
        Upstream(sandbox.repo).detections(0).fetch(tmp_path)
    assert leftovers(tmp_path) == []


def test_a_file_that_changed_after_its_check_is_found_out(sandbox: Sandbox, tmp_path):
    file: Any = Upstream(sandbox.repo).id_list()
    path = file.fetch(tmp_path)
    with path.open("r+b") as open_file:
        open_file.write(b"?")
    assert f"sha256:{sha256_of(file.fetch(tmp_path))}" == file.version


def test_a_half_written_note_means_unchecked(sandbox: Sandbox, tmp_path):
    file: Any = Upstream(sandbox.repo).id_list()
    path = file.fetch(tmp_path)
    path.with_name(f".{path.name}.checked").write_text('{"mtime')
    before = sandbox.hub.count("/lfs/")
    assert file.fetch(tmp_path) == path
    assert sandbox.hub.count("/lfs/") == before


def test_what_a_kill_left_of_a_note_is_removed(sandbox: Sandbox, tmp_path):
    file: Any = Upstream(sandbox.repo).id_list()
    place = file.place(tmp_path)
    place.parent.mkdir(parents=True)
    place.with_name(f"..{place.name}.checked.0123abcd.partial").write_text('{"mtime')
    file.fetch(tmp_path)
    assert leftovers(tmp_path) == [f".{place.name}.checked", place.name]


def test_small_files_outside_lfs_are_checked_by_gits_hash(sandbox: Sandbox, tmp_path):
    from laion_face_builder.sources.hub import HubRepo

    file = HubRepo(sandbox.repo).file("README.md")
    assert file.version.startswith("git:")
    assert file.fetch(tmp_path).read_text() == "# laion-face\n"
    sandbox.hub.plant("README.md", calls=range(1, 9), flip=1)
    file.discard(tmp_path)
    with pytest.raises(ChecksumError):
        file.fetch(tmp_path)


@pytest.mark.parametrize("world", ["today", "2021"])
def test_the_token_stays_with_the_hub(make_sandbox, tmp_path, world):
    box = make_sandbox(SandboxSpec(parts=(0, 1), rows=60, world=world))
    before = len(box.hub.log)
    source = Upstream(box.repo, None, box.metadata_repo, TOKEN).metadata_source()
    for file in source.files if isinstance(source, Whole) else [source.part(0)]:
        file.fetch(tmp_path)
    asked = box.hub.log[before:]
    assert any("/lfs/" in request.path for request in asked)
    assert all("authorization" not in request.headers for request in asked if "/lfs/" in request.path)
    assert any(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in asked)


def test_the_token_is_in_no_text():
    assert TOKEN not in repr(Upstream(token=TOKEN))


@pytest.mark.parametrize(("token", "found"), [(None, "no valid token"), (STRANGER, "has no access")])
def test_gated_says_which_terms_and_where_the_token_goes(sandbox: Sandbox, monkeypatch, token, found):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(GatedSource) as caught:
        Upstream(sandbox.repo, None, sandbox.metadata_repo, token).metadata(0)
    for piece in (
        found,
        f"https://huggingface.co/datasets/{sandbox.metadata_repo}",
        "hf auth login",
        "HF_TOKEN",
        "token=",
    ):
        assert piece in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_repo_revision_and_file_are_told_apart(sandbox: Sandbox):
    with pytest.raises(SourceNotFound, match="nobody/nothing: there is no such repo"):
        Upstream("nobody/nothing").id_list()
    with pytest.raises(SourceNotFound, match="no revision 'v9'"):
        Upstream(sandbox.repo, "v9").id_list()
    with pytest.raises(SourceNotFound, match=r"sample2detect_31.pth: there is no such file"):
        Upstream(sandbox.repo).detections(31)


def test_a_revision_is_resolved_once_and_pins_the_files(sandbox: Sandbox, tmp_path):
    repo = sandbox.hub.add_repo("tests/moving", {"laion_face_ids.pth": b"old", "sample2detect_0.pth": b"old faces"})
    upstream = Upstream("tests/moving")
    upstream.id_list()
    first = repo.branches["main"]
    repo.commit({"sample2detect_0.pth": b"new faces"})
    before = sandbox.hub.count("/api/datasets/tests/moving")
    assert upstream.detections(0).fetch(tmp_path).read_bytes() == b"old faces"
    assert sandbox.hub.count("/api/datasets/tests/moving") == before
    assert Upstream("tests/moving", first).detections(0).version == upstream.detections(0).version
    newer = Upstream("tests/moving").detections(0)
    assert newer.fetch(tmp_path).read_bytes() == b"new faces"


def test_an_unreachable_hub_is_one_line(tmp_path):
    from laion_face_builder.sources.retrying import LOOKUPS
    from laion_face_builder.sources.url import look_up_url

    with FolderHost(tmp_path) as host:
        address = host.url()
    with pytest.raises(SourceError, match=f"asked {LOOKUPS} times") as caught:
        look_up_url(f"{address}/x.parquet")
    assert "\n" not in str(caught.value)


# The metadata's place


def test_names_of_parts():
    assert part_of("a/b/" + CANONICAL.format(part=7)) == 7
    assert part_of("part-00031-whatever-c000.snappy.parquet") is None
    assert part_of("part-00000-4227e361-38e7-40d5-8822-c6db46ea077c-c000.snappy.parquet") is None
    assert part_of(CONVERTED.format(part=32)) is None
    assert part_of(CONVERTED.format(part=12)) == 12
    assert part_of("part-00000.parquet") is None
    assert part_of("sample2detect_0.pth") is None


def test_metadata_from_a_hub_dataset_also_in_folders_below(sandbox: Sandbox, tmp_path):
    one = parquet(tmp_path / "one.parquet")
    files: dict[str, bytes | Path] = {
        f"deep/er/{CONVERTED.format(part=3)}": one,
        "other/" + CANONICAL.format(part=4): one,
        "README.md": b"#",
    }
    sandbox.hub.add_repo("tests/meta", files)
    for place, part in (("tests/meta", 3), ("tests/meta@main", 4), ("hf://datasets/tests/meta@main/deep", 3)):
        file = Upstream(sandbox.repo, None, place).metadata(part)
        assert file.version == f"sha256:{sha256_of(one)}"
        assert file.fetch(tmp_path / "sources").read_bytes() == one.read_bytes()
    with pytest.raises(SourceNotFound, match=r"no metadata of part 4; found deep/er/laion_face_part_00003.parquet"):
        Upstream(sandbox.repo, None, "hf://datasets/tests/meta/deep").metadata(4)


def test_two_files_for_a_part_are_an_error_that_lists_them(sandbox: Sandbox, tmp_path):
    names = [CANONICAL.format(part=0), CONVERTED.format(part=0)]
    for name in names:
        parquet(tmp_path / "both" / name)
    sandbox.hub.add_repo("tests/both", {name: tmp_path / "both" / name for name in names})
    with FolderHost(tmp_path / "both") as host:
        for place in (str(tmp_path / "both"), "tests/both", host.url()):
            with pytest.raises(SourceError) as caught:
                Upstream(sandbox.repo, None, place).metadata(0)
            assert all(name in str(caught.value) for name in names)


def test_a_local_folder_is_used_where_it_lies(tmp_path):
    path = parquet(tmp_path / "mine" / "below" / CONVERTED.format(part=5))
    file = Upstream("x/y", None, tmp_path / "mine").metadata(5)
    assert (file.is_local, file.missing(tmp_path), file.fetch(tmp_path / "sources")) == (True, 0, path)
    assert file.content(tmp_path / "sources") == f"sha256:{sha256_of(path)}"
    file.discard(tmp_path / "sources")
    assert path.exists()
    with pytest.raises(SourceNotFound, match=r"no metadata of part 6; found below/laion_face_part_00005.parquet"):
        Upstream("x/y", None, tmp_path / "mine").metadata(6)


def test_a_local_folder_wins_over_a_hub_dataset_of_the_same_look(sandbox: Sandbox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / sandbox.metadata_repo / CANONICAL.format(part=0))
    assert Upstream(sandbox.repo, None, sandbox.metadata_repo).metadata(0).is_local
    with pytest.raises(SourceNotFound, match="found nothing there, expected a folder"):
        Upstream(sandbox.repo, None, "./nowhere").metadata(0)


@pytest.mark.parametrize("place", ["laion400m", "a/b/c", "s p a c e/x", "", "-x/y"])
def test_a_place_that_is_none_lists_the_forms(place):
    with pytest.raises(OptionError, match='Hub dataset "owner/name", an hf://, http'):
        Upstream(metadata_place=place).metadata(0)


def test_a_protocol_that_nothing_understands(tmp_path):
    with pytest.raises(OptionError, match="nosuch"):
        Upstream(metadata_place="nosuch://bucket/x").metadata(0)


def test_a_local_file_that_is_cut_is_named(tmp_path):
    path = parquet(tmp_path / CANONICAL.format(part=0))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadFile, match="whole Parquet file"):
        Upstream(metadata_place=tmp_path).metadata(0)


# http and fsspec


def test_http_folder(web, tmp_path):
    file = Upstream(metadata_place=web.url()).metadata(0)
    assert file.version.startswith("etag:")
    assert file.fetch(tmp_path).read_bytes() == (web.folder / CANONICAL.format(part=0)).read_bytes()
    before = len(web.log)
    file.fetch(tmp_path)
    assert len(web.log) == before
    with pytest.raises(SourceNotFound, match=r"no metadata of part 1; found part-00000-.*; expected part-00001"):
        Upstream(metadata_place=web.url()).metadata(1)


def test_http_goes_on_after_a_cut(web, tmp_path):
    web.plant(".parquet", calls=(1, 2), cut_after=100_000)
    file = Upstream(metadata_place=web.url()).metadata(0)
    before = len(web.log)
    assert file.fetch(tmp_path).stat().st_size == file.size
    sent = [request.sent for request in web.log[before:]]
    assert sent == [100_000, 100_000, file.size - 200_000]


def test_http_that_never_ends_well_gives_up_and_keeps_what_came(web, tmp_path, monkeypatch):
    monkeypatch.setattr("laion_face_builder.sources.copied_file.ATTEMPTS", 2)
    web.plant(".parquet", calls=range(1, 99), cut_after=1000)
    file = Upstream(metadata_place=web.url()).metadata(0)
    with pytest.raises(SourceError, match="gave up after 2 tries"):
        file.fetch(tmp_path)
    assert file.missing(tmp_path) == file.size - 2000


def test_http_file_that_changes_between_look_up_and_fetch(web, tmp_path):
    file = Upstream(metadata_place=web.url()).metadata(0)
    parquet(web.folder / CANONICAL.format(part=0), rows=2001)
    with pytest.raises(SourceError, match="has changed since"):
        file.fetch(tmp_path)


class PlainHost(LoopbackServer):
    """A server with a weak ETag, with or without ranges."""

    def __init__(self, path: Path, ranges: bool) -> None:
        super().__init__()
        self.path, self.ranges = path, ranges

    def answer(self, request: Request) -> Answer:
        from laion_face_builder.sandbox.serving import ranged

        if not request.path.endswith(self.path.name):
            return Answer(404)
        answer = Answer(body=self.path, headers={"ETag": 'W/"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})
        return ranged(answer, request.headers.get("range")) if self.ranges else answer


@pytest.mark.parametrize("ranges", [True, False])
def test_http_without_a_strong_etag(tmp_path, ranges):
    path = parquet(tmp_path / CONVERTED.format(part=0), rows=500)
    with PlainHost(path, ranges) as host:
        file = Upstream(metadata_place=host.url()).metadata(0)
        assert file.version == f'modified:Mon, 01 Jan 2024 00:00:00 GMT;{path.stat().st_size};W/"1"'
        host.plant(".parquet", cut_after=50_000)
        assert file.fetch(tmp_path / "sources").read_bytes() == path.read_bytes()


def test_http_without_head_and_with_a_password(web, tmp_path):
    web.plant(".parquet", method="HEAD", calls=range(1, 9), status=405)
    place = web.url().replace("://", "://me:pass%20word@")
    web.plant("laion_face_part", calls=range(1, 9), status=404)
    file = Upstream(metadata_place=place).metadata(0)
    assert file.version.startswith("etag:")
    assert "me:" not in file.name
    file.fetch(tmp_path)
    assert web.log[-1].headers["authorization"] == "Basic bWU6cGFzcyB3b3Jk"


def test_a_folder_that_forbids(tmp_path):
    with FolderHost(tmp_path) as host:
        host.plant(".parquet", method="HEAD", calls=(1, 2), status=403)
        with pytest.raises(GatedSource, match="HTTP 403"):
            Upstream(metadata_place=host.url()).metadata(0)


def test_fsspec_folder(tmp_path):
    path = parquet(tmp_path / CANONICAL.format(part=2))
    fsspec.filesystem("memory").pipe(f"/bucket/in/{path.name}", path.read_bytes())
    file = Upstream(metadata_place="memory://bucket").metadata(2)
    assert file.version.startswith("modified:")
    assert file.fetch(tmp_path / "sources").read_bytes() == path.read_bytes()
    with pytest.raises(SourceNotFound, match=path.name):
        Upstream(metadata_place="memory://bucket").metadata(3)


def test_upstream_travels_to_other_processes(sandbox: Sandbox):
    upstream = Upstream(sandbox.repo)
    version = upstream.id_list().version
    assert pickle.loads(pickle.dumps(upstream)).id_list().version == version
