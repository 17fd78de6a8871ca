"""Decoding in a process of its own (`apart`) is bounded, silent, and takes nobody down with it."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures
from laion_face_builder.images.apart import APART, DecoderProcess
from laion_face_builder.parallel import python


def tiff(width: int = 40, height: int = 30, **options: object) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(out, "TIFF", compression="tiff_lzw", **options)
    return out.getvalue()


def strips_on_each_other(strips: int, size: int) -> bytes:
    """Make a TIFF of one row a strip, in which each strip is the same `size` bytes, bits reversed (tag 266)."""
    place = 8 + 2 + 12 * 9 + 4
    arrays = place + size
    shorts = {256: 16, 257: strips, 258: 8, 259: 32773, 262: 1, 266: 2, 278: 1}
    tags = {tag: (3, 1, value) for tag, value in shorts.items()}
    tags |= {273: (4, strips, arrays), 279: (4, strips, arrays + 4 * strips)}
    entries = b"".join(struct.pack("<HHLL", tag, *tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)
    return head + bytes(size) + struct.pack("<L", place) * strips + struct.pack("<L", size) * strips


def packed_bmp(width: int) -> bytes:
    """Make a BMP of one row in run lengths."""
    runs = b"".join(bytes([min(255, width - start), 7]) for start in range(0, width, 255)) + b"\0\1"
    head = struct.pack("<LllHHLLllLL", 40, width, 1, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(head) + 1024
    return b"BM" + struct.pack("<LLL", start + len(runs), 0, start) + head + bytes(1024) + runs


def child() -> int:
    assert APART._child is not None
    return APART._child._process.pid


def refusal(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        pictures.inspect(data)
    return caught.value.reason


def test_one_process_serves_all_threads_and_pictures() -> None:
    with ThreadPoolExecutor(4) as threads:
        seen = list(threads.map(lambda width: pictures.inspect(tiff(width)).width, range(10, 40)))
    assert seen == list(range(10, 40))
    before = child()
    assert pictures.inspect(tiff(60, 20)).format == "TIFF"
    assert child() == before


def test_libtiffs_messages_reach_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    broken = bytearray(tiff(400, 300))
    broken[10:60] = b"\xff" * 50
    assert refusal(bytes(broken)) == "undecodable"
    with pytest.raises(PictureError):
        pictures.inspect_here(bytes(broken), max_pixels=None)
    said = capfd.readouterr().err
    assert said.count("code") == 1, "libtiff says it once: where the picture is decoded here"


def test_what_takes_too_long_is_ended() -> None:
    assert refusal(strips_on_each_other(60_000, 1_000_000)) == "slow_decode"
    assert pictures.inspect(tiff()).width == 40


HUNGRY = """
from laion_face_builder.images import apart_child
apart_child.WORK["inspect"] = lambda data, **how: bytearray(4 << 30)
apart_child.main()
"""


def test_what_takes_too_much_memory_is_refused() -> None:
    with pytest.raises(PictureError) as caught:
        DecoderProcess(python("-c", HUNGRY)).call("inspect", tiff())
    assert caught.value.reason == "too_much_memory"


def test_a_packed_bmp_is_decoded_there() -> None:
    APART.close()
    found = pictures.inspect(packed_bmp(1000))
    assert (found.format, found.width, found.height) == ("BMP", 1000, 1)
    assert child()


def test_pixels_are_bounded() -> None:
    with pytest.raises(PictureError, match="too_many_pixels"):
        pictures.inspect(tiff(100, 100), max_pixels=9999)
    assert pictures.inspect(tiff(100, 100), max_pixels=10_000).width == 100


def test_a_dead_process_is_replaced() -> None:
    pictures.inspect(tiff())
    before = child()
    os.kill(before, signal.SIGKILL)
    assert pictures.inspect(tiff()).width == 40
    assert child() != before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (python("-c", "import os; os.abort()"), f"ended with {-signal.SIGABRT}"),
        (["/nowhere/python"], "can be started"),
    ],
)
def test_what_kills_two_processes_is_counted(command: list[str], said: str) -> None:
    with pytest.raises(PictureError, match=said) as caught:
        DecoderProcess(command).call("inspect", tiff())
    assert caught.value.reason == "crashed_decoder"


def test_a_forked_process_has_its_own() -> None:
    pictures.inspect(tiff())
    before = child()

    def forked() -> None:
        assert pictures.inspect(tiff(50)).width == 50
        assert child() != before
        APART.close()

    worker = multiprocessing.get_context("fork").Process(target=forked)
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    assert pictures.inspect(tiff(51)).width == 51
    assert child() == before


def test_closing_ends_the_process() -> None:
    pictures.inspect(tiff())
    before = child()
    APART.close()
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert pictures.inspect(tiff()).width == 40
