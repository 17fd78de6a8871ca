"""`download --shards I/N`: jobs that share a DATA_DIR, each at its own shards, and the one that ends the part."""

import fcntl
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from laion_face_builder import cli
from laion_face_builder.download import workers
from laion_face_builder.download.part import Share, download_part, download_share
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.sidecar import PartResult
from laion_face_builder.download.workers import Workers
from laion_face_builder.errors import DownloadError, OptionError
from laion_face_builder.layout import DataDir
from tests.download.test_download import OPTIONS
from tests.download.test_spread_download import SHARDS, Web, require_all, web_of


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with web_of(tmp_path) as found:
        yield found


def download_all(data: DataDir, of: int) -> list[PartResult]:
    """Download every share, all at the same time."""
    results: list[PartResult] = []
    shares = [Share(number, of) for number in range(of)]
    jobs = [Thread(target=lambda s=share: results.append(download_share(data, 0, s, OPTIONS))) for share in shares]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    return results


@pytest.mark.parametrize("is_far", [False, True])
def test_shares_make_all_and_the_last_download_ends_the_part(web: Web, is_far: bool) -> None:
    data = web.address if is_far else web.folder
    results = download_all(data, 2)
    assert [sum(getattr(result, of) for result in results) for of in ("rows", "ok")] == [
        len(web.truths),
        sum(truth.ok for truth in web.truths),
    ]
    assert not web.folder.sidecar(0).exists()
    asked = len(web.host.log)
    assert download_share(data, 0, Share(1, 2), OPTIONS) in results
    whole = download_part(data, 0, OPTIONS)
    assert len(web.host.log) == asked, "each shard was made once"
    assert (whole.ok, whole.bytes) == tuple(sum(getattr(result, of) for result in results) for of in ("ok", "bytes"))
    require_all(web, web.folder)


def test_a_share_leaves_the_others_alone(web: Web) -> None:
    tars = web.folder.tars(0)
    download_share(web.folder, 0, Share(2, SHARDS), OPTIONS)
    for shard in (0, 1):
        (tars / "_tmp" / f"0000{shard}.12345678").mkdir(parents=True)
        (tars / f"0000{shard}.tar").write_bytes(b"half")
    foreign = [".nfs.0001", "00000.notes", "notes.txt"]
    for name in foreign:
        (tars / "_tmp" / name).mkdir()
    download_share(web.folder, 0, Share(0, SHARDS), OPTIONS)
    assert sorted(path.name for path in (tars / "_tmp").iterdir()) == sorted([*foreign, "00001.12345678"])
    assert (tars / "00001.tar").read_bytes() == b"half"
    download_part(web.folder, 0, OPTIONS)
    require_all(web, web.folder)


def test_what_a_late_kill_left_goes_though_nothing_is_missing(web: Web) -> None:
    tars = web.folder.tars(0)
    download_part(web.folder, 0, OPTIONS)
    left = tars / "_tmp" / "00001.12345678"
    left.mkdir(parents=True)
    with open(PartFiles(web.folder, 0).writers, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # a worker of whoever was killed still runs
        download_part(web.folder, 0, OPTIONS)
        assert left.exists()
    download_part(web.folder, 0, OPTIONS)
    assert not left.parent.exists()
    require_all(web, web.folder)


def test_who_ends_a_part_does_not_do_so_while_shares_are_at_work(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOCK_SECONDS", 0.1)
    lock = PartFiles(web.folder, 0).writers
    one: Workers[Any] = Workers(0, lock=lock, shares_lock=True)
    other: Workers[Any] = Workers(0, lock=lock, shares_lock=True)
    with one, other, pytest.raises(DownloadError, match="still hold it"):
        download_part(web.folder, 0, OPTIONS)
    assert not web.host.log


@pytest.mark.parametrize("text", ["3", "2/2", "-1/2", "0/0", "1/2/3", "a/b", "", "\u0661/2"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(OptionError, match="expected I/N"):
        Share.parse(text)


def test_shares_are_every_nth_shard() -> None:
    parsed = [Share.parse(f" {number}/3 ") for number in range(3)]
    assert [[shard in share for shard in range(4)] for share in parsed] == [
        [True, False, False, True],
        [False, True, False, False],
        [False, False, True, False],
    ]


def test_the_command(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["download", "20M", "--parts", "0", "--data-dir", str(web.folder.root), "--shards", "0/1"]
    assert cli.main([*command, "--retry-failed", "1"]) == 1
    assert "rounds over what failed come with the download of all shards" in capsys.readouterr().err
    assert cli.main([*command, "--clean-tars"]) == 1
    assert "cleaned by the download of all shards" in capsys.readouterr().err
    assert cli.main([*command, "--dry-run"]) == 1
    assert "leave --shards out" in capsys.readouterr().err
    how = ["--allow-private-hosts", "--samples-per-shard", "20", "--timeout", "3", "--retries", "0", "--processes", "1"]
    assert cli.main([*command, *how]) == 0
    assert len([*web.folder.tars(0).glob("*.tar")]) == SHARDS
    assert not web.folder.sidecar(0).exists()
