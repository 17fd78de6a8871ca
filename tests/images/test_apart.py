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


def refusal(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        pictures.inspect(data)
    return caught.value.reason


def png(width: int = 40, height: int = 30) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(out, "PNG")
    return out.getvalue()


def test_two_processes_serve_all_threads_and_pictures() -> None:
    APART.close()
    with ThreadPoolExecutor(4) as threads:
        seen = list(threads.map(lambda width: pictures.inspect(tiff(width)).width, range(10, 40)))
    assert seen == list(range(10, 40))
    before = APART.pids
    assert len(before) in (1, 2)
    assert pictures.inspect(png(60, 20)).format == "PNG"
    assert APART.pids == before


def test_libtiffs_messages_reach_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    broken = bytearray(tiff(400, 300))
    broken[10:60] = b"\xff" * 50
    assert refusal(bytes(broken)) == "undecodable"
    with pytest.raises(PictureError):
        pictures.inspect_here(bytes(broken), max_pixels=None)
    said = capfd.readouterr().err
    assert said.count("code") == 1, "libtiff says it once: where the picture is decoded here"


def test_what_takes_too_long_is_ended() -> None:
    assert refusal(strips_on_each_other(60_000, 1_000_000)) == "decode_timeout"
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


@pytest.mark.parametrize("name", [name for name in pictures.FORMATS if name in Image.SAVE])
def test_no_format_is_decoded_here(name: str) -> None:
    APART.close()
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, name)
    assert pictures.inspect(out.getvalue()).format == name
    assert APART.pids


def test_a_packed_bmp_is_read() -> None:
    found = pictures.inspect(packed_bmp(1000))
    assert (found.format, found.width, found.height) == ("BMP", 1000, 1)


def test_pixels_are_bounded() -> None:
    with pytest.raises(PictureError, match="too_many_pixels"):
        pictures.inspect(tiff(100, 100), max_pixels=9999)
    assert pictures.inspect(tiff(100, 100), max_pixels=10_000).width == 100


def test_a_dead_process_is_replaced() -> None:
    pictures.inspect(tiff())
    before = APART.pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert pictures.inspect(tiff()).width == 40
    assert not {*before} & {*APART.pids}


ENDS = [
    ("os.abort()", "crashed_decoder", f"ended with {-signal.SIGABRT}"),
    ("ctypes.string_at(0)", "crashed_decoder", f"ended with {-signal.SIGSEGV}"),
    ("os._exit(3)", "crashed_decoder", "ended with 3"),
    # Nobody's decoder does that: the system, for want of memory.
    ("os.kill(os.getpid(), signal.SIGKILL)", "too_much_memory", f"ended with {-signal.SIGKILL}"),
    ("signal.alarm(1); [None for _ in iter(int, 1)]", "decode_timeout", "did not end within"),
    ("signal.alarm(1); time.sleep(1e9)", "decode_timeout", "did not end within"),
]


@pytest.mark.parametrize(("code", "reason", "said"), ENDS, ids=[code for code, _, _ in ENDS])
def test_however_a_decoder_ends_its_process_is_counted(code: str, reason: str, said: str) -> None:
    deadly = f"""
import ctypes, os, signal, time
from laion_face_builder.images import apart_child

def inspect(data, **how):
    {code}

apart_child.main({{"inspect": inspect}})
"""
    with pytest.raises(PictureError, match=said) as caught:
        DecoderProcess(python("-c", deadly)).call("inspect", tiff())
    assert caught.value.reason == reason


def test_a_decoder_that_cannot_be_started_is_not_the_pictures_fault() -> None:
    with pytest.raises(PictureError, match="can be started") as caught:
        DecoderProcess(["/nowhere/python"]).call("inspect", tiff())
    assert caught.value.reason == "internal"


def test_a_forked_process_has_its_own() -> None:
    pictures.inspect(tiff())
    before = APART.pids

    def forked() -> None:
        assert pictures.inspect(tiff(50)).width == 50
        assert not {*APART.pids} & {*before}
        APART.close()

    worker = multiprocessing.get_context("fork").Process(target=forked)
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    assert pictures.inspect(tiff(51)).width == 51
    assert APART.pids == before


def test_closing_ends_the_processes() -> None:
    pictures.inspect(tiff())
    before = APART.pids
    APART.close()
    for pid in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert pictures.inspect(tiff()).width == 40
