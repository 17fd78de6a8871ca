"""Pictures for decoders that nobody bounds, and the memory it takes to make them, and to make `mode="RGB"`."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, features

from laion_face_builder.download.blur import MOST_PIXELS
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.download.reencoding import stored
from laion_face_builder.errors import PictureError
from laion_face_builder.images import modes, pictures
from laion_face_builder.images.geometry import Resizing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what img2dataset imports

SIDE = 64
#: How JPEG, PNG and WebP begin.
SIMPLE = (b"\xff\xd8", b"\x89PNG", b"RIFF")


def saved(picture: Image.Image, form: str, **how: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **how)
    return out.getvalue()


def drawn(mode: str) -> Image.Image:
    """Draw two slopes in colours, and one in what is transparent."""
    slope = Image.linear_gradient("L").resize((SIDE, SIDE))
    picture = Image.merge("RGBA", (slope, slope.rotate(90), slope.rotate(180), slope.rotate(270)))
    return picture.convert("RGB").convert(mode) if mode in ("P", "L", "1") else picture.convert(mode)


def deep(*channels: int) -> bytes:
    """Make a PNG of 16 bits, which Pillow writes in grey alone."""
    values = np.arange(SIDE * SIDE * int(np.prod(channels)), dtype=np.uint32).reshape(SIDE, SIDE, *channels)
    return bytes(cv2.imencode(".png", (values * 5 % 65536).astype(np.uint16))[1].tobytes())


KEPT = {
    "jpeg": saved(drawn("RGB"), "JPEG", quality=95),
    "jpeg, grey": saved(drawn("L"), "JPEG", quality=95),
    "png": saved(drawn("RGB"), "PNG"),
    "png, palette": saved(drawn("P"), "PNG"),
    "png, grey": saved(drawn("L"), "PNG"),
    "webp": saved(drawn("RGB"), "WEBP", lossless=True),
}
WRITTEN = {
    "png, transparent": saved(drawn("RGBA"), "PNG"),
    "png, transparent grey": saved(drawn("LA"), "PNG"),
    "png, one colour is transparent": saved(drawn("P"), "PNG", transparency=3),
    "png, 16 bits, grey": deep(),
    "png, 16 bits": deep(3),
    "png, 16 bits, transparent": deep(4),
    "webp, transparent": saved(drawn("RGBA"), "WEBP", lossless=True),
    "gif": saved(drawn("P"), "GIF"),
    "bmp": saved(drawn("RGB"), "BMP"),
    "tiff": saved(drawn("RGB"), "TIFF", compression="tiff_lzw"),
    "tiff, floats": saved(drawn("L").convert("F"), "TIFF"),
    "tiff, inks": saved(drawn("RGB").convert("CMYK"), "TIFF"),
}
if features.check("avif"):
    WRITTEN["AVIF"] = saved(drawn("RGB"), "AVIF", quality=100, subsampling="4:4:4")


def by_opencv(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint8
    return pixels[..., ::-1] if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)


@pytest.mark.parametrize("kind", KEPT | WRITTEN)
def test_opencv_is_given_what_it_sees_as_we_do(kind: str) -> None:
    data = (KEPT | WRITTEN)[kind]
    pictures.inspect(data)
    simple = modes.simple(data)
    assert simple.startswith(SIMPLE)
    assert (simple is data) == (kind in KEPT)
    seen = np.asarray(modes.to_rgb(Image.open(io.BytesIO(data)))).astype(int)
    assert abs(by_opencv(simple) - seen).max() <= (6 if "jpeg" in kind else 2)


@pytest.mark.parametrize("kind", ["png, 16 bits, grey", "tiff", "gif", "png, transparent"])
def test_what_is_encoded_again_looks_as_it_did(kind: str) -> None:
    options = DownloadOptions(resizing=Resizing("keep_ratio", SIDE), encode_format="png")
    data = WRITTEN[kind]
    kept = stored(pictures.inspect(data), {"laion_width": SIDE, "laion_height": SIDE}, options)
    assert kept.fetched == kept.size == (SIDE, SIDE)
    seen = modes.to_rgb(Image.open(io.BytesIO(data)))
    found = Image.open(io.BytesIO(kept.data))
    assert found.mode == ("L" if "grey" in kind else "RGB")
    assert abs(np.asarray(found.convert("RGB")).astype(int) - np.asarray(seen)).max() <= 2


def test_what_is_too_large_is_refused_before_it_is_decoded_again() -> None:
    broken = pictures.Picture(b"\xff\xd8 nothing that decodes", "JPEG", MOST_PIXELS, 2, 1)
    with pytest.raises(PictureError, match="too_many_pixels"):
        stored(broken, {"laion_width": MOST_PIXELS, "laion_height": 2}, DownloadOptions(blur_faces=True))


IN_A_WORKER = """
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.options import FetchOptions
from laion_face_builder.download.task import ShardTask
try:
    ShardTask(None, None, DownloadOptions(FetchOptions(max_pixels=999)), None).run(print)
except AttributeError:
    pass  # there is no shard
import cv2, numpy
written = cv2.imencode(".png", numpy.zeros((10, 100), numpy.uint8))[1]
try:
    cv2.imdecode(written, cv2.IMREAD_UNCHANGED)
except cv2.error as error:
    print("MAX_IMAGE_PIXELS" in str(error))
"""


def test_workers_bound_opencv_itself() -> None:
    # OpenCV reads its bound once, when it is imported.
    done = subprocess.run([sys.executable, "-c", IN_A_WORKER], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


#: Prints by kind the most memory that each work took, in bytes a pixel; each is done in a process of its own.
MEASURED = """
import gc, io, json, os, sys
import numpy as np
from PIL import Image
from laion_face_builder.images import modes, pictures

SIDE = 2000
NOISE = np.random.default_rng(0)

def bytes_of(channels):
    return NOISE.integers(0, 256, (SIDE, SIDE, channels), np.uint8)

def opened(make):
    read, write = os.pipe()
    if not (child := os.fork()):
        made, form, how = make()
        out = io.BytesIO()
        made.save(out, form, **how)
        with open(write, "wb") as pipe:
            pipe.write(out.getvalue())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        data = pipe.read()
    os.wait4(child, 0)
    return data

def most(work):
    if not (child := os.fork()):
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, code, used = os.wait4(child, 0)
    assert code == 0, work
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

quick = {"compress_level": 1}
KINDS = {
    "png, transparent": lambda: (Image.fromarray(bytes_of(4)), "PNG", quick),
    "png, transparent grey": lambda: (Image.fromarray(bytes_of(2), "LA"), "PNG", quick),
    "png, 16 bits": lambda: (Image.fromarray(bytes_of(2).view(np.uint16)[..., 0]), "PNG", quick),
    "webp, transparent": lambda: (Image.fromarray(bytes_of(4)), "WEBP", {"method": 0, "quality": 30}),
    "tiff, floats": lambda: (Image.fromarray(NOISE.random((SIDE, SIDE), np.float32) * 300), "TIFF", {}),
}
DONE = {
    "inspect": lambda data: pictures.inspect_here(data, max_pixels=SIDE * SIDE),
    "RGB": lambda data: modes.in_mode_here(data, "RGB"),
    "L": lambda data: modes.in_mode_here(data, "L"),
}
pictures._plugins()
found = {}
for kind, make in KINDS.items():
    data = opened(make)
    nothing = most(lambda: None)
    found[kind] = {name: (most(lambda: work(data)) - nothing) / SIDE**2 for name, work in DONE.items()}
print(json.dumps(found))
"""
#: Bytes a pixel: the picture, what it becomes, that as a PNG, and a band at work. libwebp has three copies more.
MOST, MOST_OF_WEBP = 12, 24


def test_memory_is_bounded_by_what_a_picture_has_in_pixels() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED], capture_output=True, text=True, check=True, timeout=300
    )
    found = json.loads(done.stdout)
    assert len(found) == 5
    for kind, works in found.items():
        most = MOST_OF_WEBP if "webp" in kind else MOST
        assert all(used < most for used in works.values()), (kind, works)
        assert works["RGB"] > 1, "it is measured"
