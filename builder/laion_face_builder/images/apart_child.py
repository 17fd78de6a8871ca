"""A child process that decodes pictures for `apart`: `python -m laion_face_builder.images.apart_child`.

Its limits are set anew for each picture, by the size that the picture's header says. It ends with its socket, and with
its parent if that is killed while a decoder is at work.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures
from laion_face_builder.images.apart import LENGTHS, PATIENCE, SAME
from laion_face_builder.images.reasons import Reason
from laion_face_builder.orphans import end_with_parent

#: Seconds of processor time for every picture, and pixels a second on top: a fifth of what is measured of AVIF.
_SECONDS, _PIXELS_A_SECOND = 3, 2_000_000
#: Bytes of memory beyond what Python and its libraries have at the start: for every picture, and for each pixel the
#: decoder's planes, 16 bits deep, and Pillow's.
_MEMORY, _MEMORY_A_PIXEL = 1 << 30, 24

Reply = tuple[dict[str, Any], bytes]


def _inspected(data: bytes, max_pixels: int | None = None) -> Reply:
    seen = pictures.inspect_here(data, max_pixels=max_pixels)
    return {name: getattr(seen, name) for name in ("format", "width", "height", "orientation")}, b""


def _in_mode(data: bytes, mode: str) -> Reply:
    from laion_face_builder.images import modes

    return {}, modes.in_mode_here(data, mode)


def _simple(data: bytes) -> Reply:
    from laion_face_builder.images import modes

    return {}, modes.simple_here(data)


Work = Callable[..., Reply]
#: Name -> what makes the answer of the picture and further arguments.
WORK: dict[str, Work] = {
    "inspect": _inspected,
    "neutral": lambda data: ({}, pictures.neutral_here(data)),
    "in_mode": _in_mode,
    "simple": _simple,
}


def main(work: Mapping[str, Work] = WORK, seconds: int = _SECONDS) -> None:
    """Answer requests until the socket is closed.

    Args:
        work: what can be asked for.
        seconds: of processor time for every picture.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGALRM, signal.SIGXCPU):  # whoever started us may have them ignored, or held back
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    _set(resource.RLIMIT_CORE, 0)
    Image.MAX_IMAGE_PIXELS = None  # the asking process says how many
    with suppress(ImportError):
        from PIL import AvifImagePlugin

        vars(AvifImagePlugin)["MAX_THREADS"] = 1  # each thread reserves memory
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints gets between the answers
    while request := _request(sys.stdin.buffer):
        values, body = _answer(work, seconds, *request)
        text = json.dumps(values).encode()
        answers.write(LENGTHS.pack(len(text), len(body)) + text + body)
        answers.flush()


def _request(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    head = source.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    length, size = LENGTHS.unpack(head)
    return json.loads(source.read(length)), source.read(size)


def _answer(work: Mapping[str, Work], seconds: int, how: dict[str, Any], data: bytes) -> Reply:
    signal.alarm(PATIENCE)
    try:
        _limit(0, seconds)
        size = pictures.opened(data, how.get("max_pixels")).size
        _limit(size[0] * size[1], seconds)
        values, body = work[how.pop("work")](data, **how)
        return (values | {SAME: True}, b"") if body is data else (values, body)
    except MemoryError:
        error = PictureError(Reason.TOO_MUCH_MEMORY, "more than a picture of its size takes")
    except PictureError as refusal:
        error = refusal
    finally:
        signal.alarm(0)
    return {"reason": error.reason, "detail": error.detail}, b""


def _limit(pixels: int, seconds: int) -> None:
    _set(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds + pixels // _PIXELS_A_SECOND)
    _set(resource.RLIMIT_AS, _at_start() + _MEMORY + _MEMORY_A_PIXEL * pixels)


@cache
def _at_start() -> int:
    """Return the bytes of address space that this process has when this is first called; 0 where nobody says."""
    with suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return 0


def _set(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    with suppress(ValueError, OSError):  # a system that knows no such limit
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
