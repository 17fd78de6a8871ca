"""The picture cache: what comes out is what went in, whole, and the folder stays within its bound."""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import OptionError, PictureError
from laion_face_builder.fetch.cache import MARKER, PictureCache
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.pictures import Picture
from tests.support.hostile_host import HostileHost, jpeg
from tests.support.nested import but

LIMITS = but(FetchLimits(), timeout=30.0, retries=0, allow_private_hosts=True)


def picture(data: bytes = b"bytes", form: str = "JPEG") -> Picture:
    return Picture(data, form, 4, 3, 6)


def entries(cache: PictureCache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if path.is_file() and path.name != MARKER]


@pytest.fixture
def cache(tmp_path: Path) -> PictureCache:
    return PictureCache(tmp_path / "cache")


@pytest.fixture(scope="module")
def host() -> Iterator[HostileHost]:
    with HostileHost() as found:
        yield found


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_what_goes_in_comes_out(cache: PictureCache, form: str) -> None:
    kept = Picture(os.urandom(5000), form, 70_000, 3, 0)
    assert cache.get("http://a/b.jpg") is None
    cache.put("http://a/b.jpg", kept)
    assert cache.get("http://a/b.jpg") == kept
    assert cache.get("http://a/b.jpg?") is None


def test_a_later_picture_of_the_same_address_replaces_the_earlier(cache: PictureCache) -> None:
    for data in (b"one", b"another"):
        cache.put("u", picture(data))
        assert cache.get("u") == picture(data)
    assert len(entries(cache)) == 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_damaged_entry_is_never_taken_for_whole(cache: PictureCache, data: bytes, draw: st.DataObject) -> None:
    cache.put("u", picture(data))
    (path,) = entries(cache)
    whole = path.read_bytes()
    at = draw.draw(st.integers(0, len(whole) - 1))
    damages = {
        "flipped": whole[:at] + bytes([whole[at] ^ draw.draw(st.integers(1, 255))]) + whole[at + 1 :],
        "cut": whole[:at],
        "longer": whole + b"\0",
        "zeros": bytes(len(whole)),
    }
    for damaged in damages.values():
        path.write_bytes(damaged)
        assert cache.get("u") is None
    # And it is simply kept anew.
    cache.put("u", picture(data))
    assert cache.get("u") == picture(data)


def test_an_entry_under_anothers_name_is_not_taken(cache: PictureCache) -> None:
    cache.put("one", picture(b"one"))
    cache.put("two", picture(b"two"))
    one, two = sorted(entries(cache))
    os.replace(one, two)
    assert cache.get("one") is None
    assert cache.get("two") is None


def test_the_folder_stays_below_its_bound(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, max_bytes=256 * 20_000)
    urls = [f"http://a/{number}.jpg" for number in range(4000)]
    for url in urls:
        cache.put(url, picture(bytes(2000)))
    total = sum(path.stat().st_size for path in entries(cache))
    assert 0.5 * cache.max_bytes < total <= cache.max_bytes
    kept = [url for url in urls if cache.get(url) is not None]
    # The newest are there, of the oldest most have gone.
    assert len(set(kept) & set(urls[-500:])) == 500
    assert len(set(kept) & set(urls[:500])) < 100


def test_what_is_used_stays(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, max_bytes=256 * 20_000)
    cache.put("favourite", picture(bytes(2000)))
    (path,) = entries(cache)
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    assert cache.get("favourite") is not None
    assert path.stat().st_mtime > time.time() - 600
    for number in range(3000):
        cache.put(f"http://a/{number}.jpg", picture(bytes(2000)))
        if number % 10 == 0:
            os.utime(path)
    assert cache.get("favourite") is not None


def test_one_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, max_bytes=256 * 1000)
    cache.put("u", picture(bytes(1000)))
    assert not entries(cache)


def test_leftovers_of_a_killed_writer_go(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, max_bytes=256 * 1000)
    cache.put("u", picture())
    (path,) = entries(cache)
    old, fresh = path.with_name(".old.1234"), path.with_name(".fresh.1234")
    for partial in (old, fresh):
        partial.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    again = PictureCache(tmp_path, max_bytes=256 * 1000)
    again.put("u", picture())
    assert not old.exists()
    assert fresh.exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OptionError, match="cache_images"):
        PictureCache(tmp_path / "file" / "cache")


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(b"")
    with pytest.raises(OptionError, match=r"holds something else.*new folder"):
        PictureCache(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def _read_only(folder: str, answers: object) -> None:
    if os.geteuid() == 0:
        os.setuid(65_534)  # whom root's rights do not help
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("laion_face").addHandler(handler)
    cache = PictureCache(folder)
    for url in ("new", "newer", "u"):
        cache.put(url, picture(b"other"))
    answers.put((cache.get("u") == picture(), cache.get("new") is None, said))  # type: ignore[attr-defined]


def test_a_folder_that_can_only_be_read_says_so_once_and_is_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        PictureCache(folder).put("u", picture())
        for path in (Path(folder), *Path(folder).iterdir()):
            path.chmod(0o555 if path.is_dir() else 0o444)
        context = get_context("fork")
        answers = context.SimpleQueue()
        worker = context.Process(target=_read_only, args=(folder, answers))
        worker.start()
        is_kept, is_new_lost, said = answers.get()
        worker.join(60)
        for path in (Path(folder), *Path(folder).iterdir()):
            path.chmod(0o755)
    assert is_kept
    assert is_new_lost
    assert len(said) == 1
    assert "can only be read" in said[0]


def test_kept_pictures_come_though_their_host_is_down(tmp_path: Path) -> None:
    with HostileHost() as host, Fetcher(LIMITS, PictureCache(tmp_path)) as fetcher:
        kept = host.url("/ok")
        assert fetcher.submit(kept).result(60)
    limits = but(LIMITS, timeout=0.2)
    with Fetcher(limits, PictureCache(tmp_path)) as fetcher:
        gone = [fetcher.submit(kept.replace("/ok", f"/{number}")) for number in range(8)]
        for ticket in gone:
            with pytest.raises(PictureError):
                ticket.result(60)
        assert fetcher.submit(kept).result(60).is_kept


def test_a_folder_that_vanishes_costs_nothing_but_the_cache(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path / "cache")
    cache.put("u", picture())
    os.rename(tmp_path / "cache", tmp_path / "gone")
    (tmp_path / "cache").write_bytes(b"")
    cache.put("u", picture())
    assert cache.get("u") is None


def _work(cache: PictureCache, seed: int, answers: object) -> None:
    wrong = 0
    for number in range(300):
        url = f"http://a/{(number * 7 + seed) % 100}.jpg"
        kept = Picture(url.encode() * 50, "PNG", 1, 1, 1)
        cache.put(url, kept)
        found = cache.get(url)
        wrong += found is not None and found != kept
    answers.put(wrong)  # type: ignore[attr-defined]


def test_several_processes_at_once(tmp_path: Path) -> None:
    # All write and throw away the same entries in a folder with room for few of them.
    cache = PictureCache(tmp_path, max_bytes=256 * 2500)
    context = get_context("fork")
    answers = context.SimpleQueue()
    workers = [context.Process(target=_work, args=(pickle.loads(pickle.dumps(cache)), n, answers)) for n in range(3)]
    for worker in workers:
        worker.start()
    assert [answers.get() for _ in workers] == [0, 0, 0]
    for worker in workers:
        worker.join(60)
    assert all(not path.name.startswith(".") for path in entries(cache))


def test_the_second_epoch_asks_for_nothing(tmp_path: Path) -> None:
    with HostileHost() as host:
        for _ in range(2):
            with Fetcher(LIMITS, PictureCache(tmp_path)) as fetcher:
                tickets = [fetcher.submit(host.url(f"/ok/{number}")) for number in range(20)]
                assert {ticket.result(60).data for ticket in tickets} == {host.picture}
                assert {ticket.result().width for ticket in tickets} == {48}
                # Found again where a redirect leads elsewhere, too.
                assert fetcher.submit(host.url("/chain/2")).result(60).data == host.picture
        assert host.asked.total() == 20 + 3


def test_failures_are_not_kept(tmp_path: Path, host: HostileHost) -> None:
    with Fetcher(LIMITS, PictureCache(tmp_path)) as fetcher:
        with pytest.raises(PictureError):
            fetcher.submit(host.url("/fails-once/x?code=404")).result(60)
        assert fetcher.submit(host.url("/fails-once/x?code=404")).result(60).data == host.picture


def test_other_limits_hold_for_what_is_kept_too(tmp_path: Path, host: HostileHost) -> None:
    host.picture = jpeg(100, 100)
    with Fetcher(LIMITS, PictureCache(tmp_path)) as fetcher:
        assert fetcher.submit(host.url("/ok")).result(60)
    with Fetcher(but(LIMITS, max_pixels=5000), PictureCache(tmp_path)) as fetcher:
        ticket = fetcher.submit(host.url("/ok"))
        with pytest.raises(PictureError, match="too_many_pixels"):
            ticket.result(60)
