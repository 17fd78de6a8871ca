"""huggingface_hub's cache: all that is needed offline, no download online, and nothing believed or deleted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from laion_face_builder.errors import ChecksumError, SourceError, SourceNotFound
from laion_face_builder.files import sha256_of
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from laion_face_builder.sources.hub_cache import CachedRepo
from laion_face_builder.sources.sources import ByPart, Upstream, Whole
from tests.support.sources import parquet


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Set huggingface_hub's cache to a folder that is not there yet; return it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def offline(monkeypatch):
    """Give `offline()`, which pulls the plug."""
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def whole(hub, tmp_path) -> str:
    """Add a repo of five files whose numbers are no parts."""
    names = [f"data/train-0000{number}-of-00005.parquet" for number in range(5)]
    hub.add_repo("tests/whole", {name: parquet(tmp_path / "made" / name) for name in names} | {"README.md": b"#"})
    return "tests/whole"


def download(cache: Path, repo: str, **how) -> None:
    snapshot_download(repo, repo_type="dataset", cache_dir=cache, **how)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.resolve().write_bytes(content)


PREPARE = """
import sys
from laion_face_builder.layout import DataDir
from laion_face_builder.index.prepare import prepare
from laion_face_builder.sources.sources import Upstream
prepare(DataDir.at(sys.argv[1]), [0], Upstream(sys.argv[2], None, sys.argv[3]), discard_sources=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", ["today", "2021"])
def test_offline_everything_comes_from_the_cache_and_gives_the_same(make_sandbox, cache: Path, tmp_path, world):
    sandbox = make_sandbox(SandboxSpec(parts=(0, 1), rows=60, world=world))
    for repo in (sandbox.repo, sandbox.metadata_repo):
        download(cache, repo)
    before = {path: path.stat().st_size for path in cache.rglob("*") if path.is_file()}
    for name, changes in (("online", {}), ("offline", {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"})):
        environment = {**os.environ, "HF_HUB_CACHE": str(cache), **changes}
        command = [sys.executable, "-c", PREPARE, str(tmp_path / name), sandbox.repo, sandbox.metadata_repo]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    for kind in ("ids", "faces", "index"):
        file = f"{kind}/part-00000.parquet"
        assert (tmp_path / "offline" / file).read_bytes() == (tmp_path / "online" / file).read_bytes()
    assert {path: path.stat().st_size for path in cache.rglob("*") if path.is_file()} == before


def test_offline_files_are_known_by_their_blobs(sandbox: Sandbox, cache: Path, offline, tmp_path):
    download(cache, sandbox.repo)
    online = Upstream(sandbox.repo).id_list()
    offline()
    file = Upstream(sandbox.repo).id_list()
    assert (file.name, file.size, file.version) == (online.name, online.size, online.version)
    assert file.is_local
    assert file.content(tmp_path / "s") == online.content(tmp_path / "s") == file.version
    assert f"sha256:{sha256_of(file.fetch(tmp_path / 's'))}" == file.version
    file.discard(tmp_path / "s")
    assert file.fetch(tmp_path / "s").exists()


def test_a_cache_without_links_is_hashed(sandbox: Sandbox, cache: Path, offline, tmp_path):
    # A cache has no links on Windows, or where it was copied without its blobs.
    download(cache, sandbox.repo)
    (folder,) = cache.glob("datasets--*")
    shutil.copytree(folder, tmp_path / "copy")  # Follows the links.
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "copy" / "blobs")
    shutil.move(tmp_path / "copy", folder)
    offline()
    file = Upstream(sandbox.repo).id_list()
    assert file.version.startswith("modified:")
    assert file.content(tmp_path / "s") == f"sha256:{sha256_of(file.fetch(tmp_path / 's'))}"


def test_damaged_blobs_are_found_out(sandbox: Sandbox, cache: Path, offline, tmp_path, caplog):
    download(cache, sandbox.repo)
    online = Upstream(sandbox.repo).id_list()
    (blob,) = cache.glob(f"*/blobs/{online.version.partition(':')[2]}")
    damage(blob)
    assert f"sha256:{sha256_of(online.fetch(tmp_path / 's'))}" == online.version
    assert "the copy in the Hub's cache is damaged" in caplog.text
    offline()
    with pytest.raises(ChecksumError, match=r"laion_face_ids\.pth: the copy in the Hub's cache, .* sha256 hash"):
        Upstream(sandbox.repo).id_list().fetch(tmp_path / "s")


def test_online_what_the_cache_has_is_not_downloaded_and_not_deleted(sandbox: Sandbox, cache: Path, tmp_path):
    download(cache, sandbox.repo, allow_patterns="*ids.pth")
    file = Upstream(sandbox.repo).id_list()
    sent = sandbox.hub.bytes_sent("/lfs/")
    assert file.missing(tmp_path / "s") == 0
    path = file.fetch(tmp_path / "s")
    assert f"sha256:{sha256_of(path)}" == file.version
    file.discard(tmp_path / "s")
    assert path.exists()
    assert sandbox.hub.bytes_sent("/lfs/") == sent
    other = Upstream(sandbox.repo).detections(0)
    assert other.missing(tmp_path / "s") == other.size


def test_offline_without_a_cache_says_what_to_run(cache: Path, offline):
    offline()
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set, .* has no revision 'v1' of it.*--revision v1`"):
        Upstream("tests/none", "v1").id_list()
    with pytest.raises(SourceError, match=r"has no files of commit aaaaaaaaaaaa\. Unset it, or first run `hf download"):
        Upstream("tests/none", "a" * 40).id_list()


def test_offline_a_file_that_is_not_there_is_named(sandbox: Sandbox, cache: Path, offline):
    download(cache, sandbox.repo, allow_patterns="*ids.pth")
    offline()
    assert Upstream(sandbox.repo).id_list().is_local
    with pytest.raises(SourceNotFound, match=r"does not have sample2detect_0\.pth"):
        Upstream(sandbox.repo).detections(0)


def test_offline_by_part(make_sandbox, cache: Path, offline, tmp_path):
    box = make_sandbox(SandboxSpec(parts=(0, 1), rows=60, world="2021"))
    download(cache, box.metadata_repo)
    offline()
    source = Upstream(metadata_place=box.metadata_repo).metadata_source()
    assert isinstance(source, ByPart)
    assert source.part(1).fetch(tmp_path / "s").exists()
    with pytest.raises(SourceNotFound, match="no metadata of part 5"):
        source.part(5)


def test_offline_whole_metadata_is_whole(whole: str, cache: Path, offline, tmp_path, caplog):
    download(cache, whole)
    online: Any = Upstream(metadata_place=whole).metadata_source()
    offline()
    for place in (whole, f"{whole}@main", f"hf://datasets/{whole}/data"):
        source = Upstream(metadata_place=place).metadata_source()
        assert isinstance(source, Whole)
        assert [file.name for file in source.files] == [file.name for file in online.files]
        assert [file.version for file in source.files] == [file.version for file in online.files]
        assert CachedRepo(whole).is_complete is hasattr(huggingface_hub, "get_cached_repo_tree")
        assert CachedRepo(whole).is_complete or "the 5 found there are taken for all" in caplog.text


def test_offline_a_file_of_whole_metadata_that_is_known_to_be_missing(whole: str, cache: Path, offline):
    download(cache, whole)
    for lost in cache.rglob("train-0000[13]*"):
        lost.unlink()
    offline()
    if CachedRepo(whole).is_complete:
        with pytest.raises(
            SourceNotFound, match=r"lacks 2 of its 5 files: data/train-00001-of-00005\.parquet, data/tr"
        ):
            Upstream(metadata_place=whole).metadata_source()
    else:
        found: Any = Upstream(metadata_place=whole).metadata_source()
        assert len(found.files) == 3


def test_offline_files_downloaded_one_by_one_are_taken_for_all_with_a_warning(whole: str, cache: Path, offline, caplog):
    for number in (0, 3):
        hf_hub_download(whole, f"data/train-0000{number}-of-00005.parquet", repo_type="dataset", cache_dir=cache)
    offline()
    found: Any = Upstream(metadata_place=whole).metadata_source()
    assert len(found.files) == 2
    assert "does not say which files the repo has: the 2 found there are taken for all" in caplog.text
