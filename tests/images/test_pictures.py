"""The full check: what passes decodes in `datasets.Image()`, and is never turned away from its boxes (law 2)."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from datasets import Image as ImageFeature
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures, structure

WIDTH, HEIGHT = 48, 32
TURNED_BY_PILLOW = ["JPEG", "PNG", "WEBP", "WEBP-lossless"] + (["AVIF"] if features.check("avif") else [])


def drawing(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Draw a picture that is different in every corner, and smooth, so that lossy formats keep it."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))


def exif_block(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "LHHHLHHL", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp_block(orientation: int, as_attribute: bool = True) -> bytes:
    value = (
        f'tiff:Orientation="{orientation}"/>'
        if as_attribute
        else f"><tiff:Orientation>{orientation}</tiff:Orientation>"
    )
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {value}</x:xmpmeta>'.encode()


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    name, _, lossless = kind.partition("-")
    out = io.BytesIO()
    extra = {"lossless": True} if lossless else {"quality": 90} if name in ("JPEG", "WEBP", "AVIF") else {}
    (image or drawing()).save(out, name, **extra, **options)
    return out.getvalue()


def png_with(chunk: bytes, body: bytes, *, behind_pixels: bool = False) -> bytes:
    plain = saved("PNG")
    at = plain.index(b"IEND") - 4 if behind_pixels else plain.index(b"IDAT") - 4
    new = struct.pack(">L4s", len(body), chunk) + body + struct.pack(">L", zlib.crc32(chunk + body))
    return plain[:at] + new + plain[at:]


def jpeg_with(body: bytes, marker: int = 0xE1) -> bytes:
    plain = saved("JPEG")
    return plain[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + plain[2:]


def webp_with(*chunks: tuple[bytes, bytes]) -> bytes:
    body = saved("WEBP-lossless", exif=b"")[12:]
    flags = sum({b"EXIF": 8, b"XMP ": 4}[name] for name, _ in chunks)
    extended = struct.pack("<4sLL", b"VP8X", 10, flags)
    extended += (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    for name, content in chunks:
        body += struct.pack("<4sL", name, len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<L", 4 + len(extended + body)) + b"WEBP" + extended + body


def by_datasets(data: bytes) -> np.ndarray:
    return np.asarray(ImageFeature().decode_example({"bytes": data, "path": None}).convert("RGB"))


def by_pillow_unturned(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.load()
    return np.asarray(image.convert("RGB"))


def by_opencv(data: bytes) -> np.ndarray:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)[:, :, ::-1]


def assert_neutral(data: bytes) -> bytes:
    changed = pictures.neutral(data)
    assert np.array_equal(by_datasets(changed), by_pillow_unturned(data))
    again = pictures.inspect(changed)
    assert again.orientation == 1
    assert (again.width, again.height) == (WIDTH, HEIGHT)
    assert pictures.neutral(changed) is changed
    return changed


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED_BY_PILLOW)
def test_every_orientation_in_every_container(kind: str, orientation: int) -> None:
    data = saved(kind, exif=b"Exif\0\0" + exif_block(orientation))
    found = pictures.inspect(data)
    assert (found.width, found.height, found.orientation) == (WIDTH, HEIGHT, orientation)
    assert found.format == kind.partition("-")[0]
    changed = assert_neutral(data)
    assert (changed is data) == (orientation == 1)
    # The reference: what OpenCV decodes. Decoders of lossy formats differ in the last bits.
    assert by_opencv(data).shape == by_datasets(changed).shape
    assert np.abs(by_opencv(data).astype(int) - by_datasets(changed)).max() <= 12


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("as_attribute", [True, False])
def test_orientation_in_xmp_alone(orientation: int, as_attribute: bool) -> None:
    xmp = xmp_block(orientation, as_attribute)
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
    for data in (
        jpeg_with(b"http://ns.adobe.com/xap/1.0/\0" + xmp),
        png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        png_with(b"iTXt", packed, behind_pixels=True),
        webp_with((b"XMP ", xmp)),
    ):
        assert pictures.inspect(data).orientation == orientation
        assert_neutral(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_both_byte_orders_and_every_place_for_exif(order: str, orientation: int) -> None:
    block = exif_block(orientation, order)
    in_hex = f"\nexif\n{len(block) + 6:8}\n{(b'Exif' + bytes(2) + block).hex()}\n".encode()
    for data in (
        jpeg_with(b"Exif\0\0" + block),
        jpeg_with(b"Exif\0\0Exif\0\0" + block),
        png_with(b"eXIf", block),
        png_with(b"eXIf", block, behind_pixels=True),
        png_with(b"tEXt", b"Raw profile type exif\0" + in_hex),
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(in_hex)),
        webp_with((b"EXIF", block)),
        webp_with((b"EXIF", b"Exif\0\0" + block)),
    ):
        assert pictures.inspect(data).orientation == orientation
        assert_neutral(data)


def test_exif_and_xmp_that_contradict_each_other() -> None:
    data = webp_with((b"EXIF", exif_block(6)), (b"XMP ", xmp_block(8)))
    assert pictures.inspect(data).orientation == 6
    assert_neutral(data)


def test_a_patch_keeps_all_other_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    data = saved("JPEG", exif=exif, icc_profile=b"profile " * 40, comment=b"said")
    changed = Image.open(io.BytesIO(assert_neutral(data)))
    assert changed.getexif()[0x010F] == "a maker"
    assert changed.info["icc_profile"] == b"profile " * 40
    assert changed.info["comment"] == b"said"


def test_multi_picture_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    drawing().save(out, "MPO", save_all=True, append_images=[drawing(20, 20)], exif=exif.tobytes())
    found = pictures.inspect(out.getvalue())
    assert (found.format, found.orientation, found.width) == ("MPO", 6, WIDTH)
    assert_neutral(out.getvalue())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_in_the_frame_of_opencv_as_it_is(orientation: int) -> None:
    data = saved("TIFF", tiffinfo={0x0112: orientation})
    found = pictures.inspect(data)
    assert found.orientation == 1
    assert pictures.neutral(data) is data
    assert np.array_equal(by_datasets(data), by_opencv(data))
    assert (found.height, found.width) == by_opencv(data).shape[:2]


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_tiff_with_orientation_in_xmp_alone(orientation: int, mode: str) -> None:
    data = saved("TIFF", drawing().convert(mode), tiffinfo={700: xmp_block(orientation)})
    found = pictures.inspect(data)
    assert (found.orientation, found.width, found.height) == (orientation, WIDTH, HEIGHT)
    assert np.array_equal(by_datasets(pictures.neutral(data)), np.asarray(drawing().convert(mode).convert("RGB")))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "I;16"), ("PNG", "1"), ("GIF", "P"),
     ("BMP", "RGB"), ("WEBP", "RGBA"), ("TIFF", "CMYK")],
)  # fmt: skip
def test_every_mode_passes_and_decodes(kind: str, mode: str) -> None:
    image = Image.new("I;16", (WIDTH, HEIGHT), 40_000) if mode == "I;16" else drawing().convert(mode)
    found = pictures.inspect(saved(kind, image))
    assert (found.format, found.width, found.height, found.orientation) == (kind, WIDTH, HEIGHT, 1)
    assert pictures.neutral(found.data) is found.data
    by_datasets(found.data)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    data = saved(kind, drawing(), save_all=True, append_images=[drawing().rotate(turn) for turn in (90, 180)])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert pictures.inspect(data).width == WIDTH


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!doctype html><html></html>", "not_an_image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image"),
        (b"%PDF-1.7\n", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (b"8BPS\0\1" + bytes(40), "not_an_image"),
        (b"P6 2 2 255\n" + bytes(12), "not_an_image"),
        (b"\xff\xd8\xff", "undecodable"),
        (b"\0", "not_an_image"),
    ],
)
def test_what_is_no_picture(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError) as caught:
        pictures.inspect(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_half_a_file_never_passes(kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = saved(kind, drawing(300, 200))
    with pytest.raises(PictureError) as caught:
        pictures.inspect(data[: len(data) * 2 // 3])
    assert caught.value.reason in ("truncated", "undecodable")
    pictures.inspect(data)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_pixels_are_bounded_before_decoding() -> None:
    header = struct.pack(">LLBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + b"IHDR" + header
    bomb += struct.pack(">L", zlib.crc32(b"IHDR" + header)) + struct.pack(">L4s", 10, b"IDAT") + bytes(14)
    for data, bound in ((bomb, pictures.MAX_PIXELS), (saved("JPEG"), WIDTH * HEIGHT - 1)):
        with pytest.raises(PictureError) as caught:
            pictures.inspect(data, max_pixels=bound)
        assert caught.value.reason == "too_many_pixels"
    assert pictures.inspect(saved("JPEG"), max_pixels=WIDTH * HEIGHT).width == WIDTH


@pytest.mark.parametrize("kind", ["WEBP", "WEBP-lossless"])
def test_the_canvas_of_a_webp_is_known_before_pillow_opens_it(kind: str) -> None:
    for data in (saved(kind), webp_with((b"XMP ", b"x"))):
        assert structure.webp_size(data) == (WIDTH, HEIGHT)


def test_thousands_of_scans_are_refused() -> None:
    plain = saved("JPEG", progressive=True)
    assert pictures.inspect(plain).format == "JPEG"
    with pytest.raises(PictureError, match="scans"):
        pictures.inspect(plain[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 1000 + plain[-2:])


def test_no_warning_leaks_and_the_filters_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)  # Image.open would warn
    many = [jpeg_with(b"Exif\0\0II*\0" + bytes([n]) * 40) for n in range(60)] + [saved("JPEG")] * 60
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        during = list(warnings.filters)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(pictures.inspect, many))
        assert list(warnings.filters) == during
    assert caught == []
    assert list(warnings.filters) == before


def test_broken_metadata_is_named_and_taken_out() -> None:
    # Pillow fails on text where it expects bytes, and `datasets.Image()` with it.
    data = png_with(b"tEXt", b"xmp\0some text")
    with pytest.raises(TypeError):
        by_datasets(data)
    assert pictures.inspect(data).orientation == 0
    assert_neutral(data)


@settings(max_examples=150)
@given(
    container=st.sampled_from(["jpeg", "png", "png-behind", "webp"]),
    block=st.one_of(
        st.binary(max_size=80),
        st.builds(
            lambda orientation, order, flips: bytes(
                byte ^ flips.get(place, 0) for place, byte in enumerate(exif_block(orientation, order) * 2)
            ),
            st.integers(0, 9),
            st.sampled_from("<>"),
            st.dictionaries(st.integers(0, 51), st.integers(1, 255), max_size=4),
        ),
    ),
)
@example("jpeg", b"II*\0" + bytes.fromhex("08000000 0000 08000000"))  # its directory leads to itself
def test_any_metadata_leaves_a_picture_that_decodes_unturned(container: str, block: bytes) -> None:
    data = {
        "jpeg": lambda: jpeg_with(b"Exif\0\0" + block),
        "png": lambda: png_with(b"eXIf", block),
        "png-behind": lambda: png_with(b"eXIf", block, behind_pixels=True),
        "webp": lambda: webp_with((b"EXIF", block)),
    }[container]()
    found = pictures.inspect(data)
    assert (found.width, found.height) == (WIDTH, HEIGHT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference reads the broken block as anybody would
        changed = assert_neutral(data)
    assert (changed is data) == (found.orientation == 1)


@settings(max_examples=150)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF"]), data=st.data())
def test_flipped_bytes_pass_and_decode_or_are_refused(kind: str, data: st.DataObject) -> None:
    exif: dict[str, Any] = {} if kind in ("GIF", "TIFF") else {"exif": b"Exif\0\0" + exif_block(6)}
    whole = bytearray(saved(kind, **exif))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        whole[place] ^= data.draw(st.integers(1, 255))
    try:
        found = pictures.inspect(bytes(whole))
    except PictureError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = by_datasets(pictures.neutral(bytes(whole)))
    assert pixels.shape[:2] == (found.height, found.width)
