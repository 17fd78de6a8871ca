"""Small files that would take minutes or gigabytes to open are refused by what they say of themselves."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from laion_face_builder.errors import PictureError
from laion_face_builder.images import jpeg, pictures, structure

SIZE = (40, 30)


def saved(form: str, size: tuple[int, int] = SIZE, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, form, **options)
    return out.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(*pieces: bytes) -> bytes:
    plain = saved("JPEG")
    return plain[:2] + b"".join(pieces) + plain[2:]


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png_with(*chunks: bytes, behind: bool = False) -> bytes:
    plain = saved("PNG")
    at = plain.index(b"IEND" if behind else b"IDAT") - 4
    return plain[:at] + b"".join(chunks) + plain[at:]


def webp_with(*chunks: bytes) -> bytes:
    body = saved("WEBP", lossless=True)[12:]
    width, height = (side - 1 for side in SIZE)
    extended = struct.pack("<4sLL", b"VP8X", 10, 8) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
    body = b"WEBP" + extended + body + b"".join(chunks)
    return b"RIFF" + struct.pack("<L", len(body)) + body


def gif_with(*blocks: bytes) -> bytes:
    plain = saved("GIF", mode="P")
    at = 13 + (3 << (plain[10] & 7) + 1 if plain[10] & 0x80 else 0)
    return plain[:at] + b"".join(blocks) + plain[at:]


def box(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">L", len(body) + 8) + kind + body


def meta(body: bytes) -> bytes:
    return box(b"meta", bytes(4) + body)


def directory(entries: int, size: int, *, following: int = 0, at: int = 8) -> bytes:
    """Make a TIFF's header and a directory at `at`, whose many tags all have the same `size` bytes as value."""
    head = b"II*\0" + struct.pack("<L", at) + bytes(at - 8) + struct.pack("<H", entries)
    many = b"".join(struct.pack("<HHLL", 40_000 + number & 0xFFFF, 1, size, 8) for number in range(entries))
    return head + many + struct.pack("<L", following)


def exif(entries: int, size: int) -> bytes:
    return directory(entries, size) + bytes(max(0, size - 12 * entries))


def long_chain(directories: int) -> bytes:
    one = struct.pack("<HHHLL", 1, 256, 4, 1, 7)
    chain = b"".join(one + struct.pack("<L", 8 + 18 * (number + 1)) for number in range(directories))
    return b"II*\0" + struct.pack("<L", 8) + chain + bytes(30)


def scans(size: tuple[int, int], count: int) -> bytes:
    """Make a progressive JPEG with `count` scans that say nothing."""
    plain = saved("JPEG", size, progressive=True)
    return plain[:-2] + segment(0xDA, b"\1\1\0\0\x3f\0") * count + plain[-2:]


def raw_profile(block: bytes) -> bytes:
    return b"Raw profile type exif\0" + f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()


FLOODS: dict[str, Callable[[], bytes]] = {
    "tiff values on each other": lambda: exif(5000, 1_000_000),
    "tiff directories in a loop": lambda: directory(1, 1, following=8),
    "tiff directories in a row": lambda: long_chain(5000),
    "tiff entries": lambda: directory(20_000, 1),
    "jpeg comments": lambda: jpeg_with(segment(0xFE, b"x") * 20_000),
    "jpeg exif in pieces": lambda: jpeg_with(segment(0xE1, b"Exif\0\0ab") * 900),
    "jpeg exif values on each other": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + exif(2000, 50_000))),
    "jpeg exif name over and over": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" * 10_000)),
    "jpeg pictures' list": lambda: jpeg_with(segment(0xE2, b"MPF\0" + exif(2000, 50_000))),
    "jpeg tables": lambda: jpeg_with(segment(0xDB, (b"\0" + b"\1" * 64) * 1000)),
    "jpeg frames": lambda: jpeg_with(segment(0xC0, b"\x08\0\1\0\1\xff" + b"\1\x11\0" * 20_000)),
    "jpeg photoshop": lambda: jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\0\0\0\0\0\0\0" * 5000) * 40),
    "jpeg junk": lambda: jpeg_with(segment(0xFE, b"x"), b"\0" * 100_000),
    "jpeg in a segment that is none": lambda: jpeg_with(b"\xff\xf0\xff\xff", segment(0xFE, b"x") * 20_000),
    "png notes": lambda: png_with(chunk(b"tEXt", b"a\0b") * 2000),
    "png notes behind its pixels": lambda: png_with(chunk(b"tEXt", b"a\0b") * 2000, behind=True),
    "png empty pixels": lambda: png_with(chunk(b"IDAT") * 9000),
    "png profiles": lambda: png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(900_000))) * 100),
    "png packed notes": lambda: png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000))) * 100),
    "png exif": lambda: png_with(chunk(b"eXIf", exif(2000, 100_000))),
    "png exif behind its pixels": lambda: png_with(chunk(b"eXIf", exif(2000, 100_000)), behind=True),
    "png exif in digits": lambda: png_with(chunk(b"tEXt", raw_profile(exif(2000, 100_000)))),
    "webp chunks": lambda: webp_with(struct.pack("<4sL", b"none", 0) * 9000),
    "webp exif": lambda: webp_with(struct.pack("<4sL", b"EXIF", len(block := exif(2000, 100_000))) + block),
    "gif comments": lambda: gif_with(b"!\xfe\1a\0" * 20_000),
    "gif comment in pieces": lambda: gif_with(b"!\xfe" + b"\1a" * 20_000 + b"\0"),
    "gif long comments": lambda: gif_with(b"!\xfe" + b"\xff".ljust(256, b"a") * 2000 + b"\0"),
    "gif notes": lambda: gif_with(b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0" * 20_000),
    "gif behind an empty block": lambda: gif_with(b"!\xf9\0" + b"\1a" * 20_000 + b"\0"),
    "gif junk": lambda: gif_with(b"\0" * 100_000),
}
if features.check("avif"):
    FLOODS |= {
        "avif boxes": lambda: saved("AVIF") + box(b"free") * 9000,
        "avif nested boxes": lambda: saved("AVIF") + meta(box(b"iprp", box(b"ipco", box(b"none") * 9000))),
        "avif items": lambda: saved("AVIF") + meta(box(b"iloc", bytes(100_000))),
    }


@pytest.mark.parametrize("kind", FLOODS)
def test_more_metadata_than_a_picture_has_is_refused(kind: str) -> None:
    data = FLOODS[kind]()
    assert len(data) < 4_000_000
    assert jpeg.quick(data) is None
    with pytest.raises(PictureError) as caught:
        pictures.inspect(data)
    assert caught.value.reason == "too_much_metadata"


@pytest.mark.parametrize(("size", "count"), [(SIZE, 1000), ((4000, 4000), 130)])
def test_scans_over_more_than_the_picture_are_refused(size: tuple[int, int], count: int) -> None:
    data = scans(size, count)
    assert jpeg.quick(data) is None
    with pytest.raises(PictureError, match=r"slow_decode.*scans"):
        pictures.inspect(data)


def test_what_cameras_and_programs_write_passes() -> None:
    big = exif(100, 5)
    for data in (
        jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 64, segment(0xED, b"Photoshop 3.0\0") * 9),
        jpeg_with(*[segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000))] * 100),
        jpeg_with(segment(0xE1, b"Exif\0\0" + big)),
        png_with(*[chunk(b"tEXt", b"exif:%d\0x" % number) for number in range(300)]),
        png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(3000))), chunk(b"eXIf", big)),
        saved("PNG", save_all=True, append_images=[Image.new("RGB", SIZE, (n, 0, 0)) for n in range(200)]),
        saved("PNG") + bytes(100_000),
        webp_with(struct.pack("<4sL", b"EXIF", len(big)) + big) + bytes(100_000),
        gif_with(
            b"!\xfe" + b"\xff".ljust(256, b"a") * 100 + b"\0", b"!\xff\x0bICCRGBG1012" + b"\xff" * 256 * 900 + b"\0"
        ),
        saved("JPEG", (2000, 1500), progressive=True),
        saved("TIFF", save_all=True, append_images=[Image.new("L", SIZE)] * 200),
    ):
        assert pictures.inspect(data).width > 0


@pytest.mark.parametrize("screen", [True, False])
def test_a_gif_is_measured_before_memory_is_taken_for_it(screen: bool) -> None:
    data = bytearray(saved("GIF", mode="P"))
    at = 6 if screen else structure._first_frame(bytes(data)) + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(PictureError, match="too_many_pixels"):
        structure.check_structure(bytes(data), pictures.MAX_PIXELS)
    structure.check_structure(bytes(data), 70_000 * 70_000)


def test_a_png_has_one_header_and_it_comes_first() -> None:
    plain = saved("PNG")
    with pytest.raises(PictureError, match="undecodable"):
        pictures.inspect(plain[:8] + chunk(b"gAMA", bytes(4)) + plain[8:])
    with pytest.raises(PictureError, match="undecodable"):
        pictures.inspect(plain[:33] + plain[8:33] + plain[33:])


STARTS = [
    *(b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\x01\x00Exif\0\0II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"GIF87a"),
    *(b"RIFF\xff\0\0\0WEBPVP8 ", b"RIFF\xff\xff\0\0WEBPVP8X", b"BM", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"),
    *(b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0", b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10", b"\0\0\0\x20ftypavif"),
]


@settings(max_examples=400)
@given(st.sampled_from(STARTS), st.binary(max_size=600), st.integers(0, 600))
def test_the_walks_end_and_raise_nothing_of_their_own(start: bytes, rest: bytes, repeats: int) -> None:
    with suppress(PictureError):
        structure.check_structure(start + rest * repeats, 1_000_000)
    with suppress(PictureError):
        structure.check_exif(rest * repeats)


KINDS = {
    "JPEG": saved("JPEG"),
    "JPEG progressive": saved("JPEG", progressive=True),
    "JPEG exif": jpeg_with(segment(0xE1, b"Exif\0\0" + exif(3, 9))),
    "PNG": saved("PNG"),
    "PNG notes": png_with(chunk(b"eXIf", exif(3, 9)), chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"text"))),
    "WEBP": saved("WEBP"),
    "WEBP exif": webp_with(struct.pack("<4sL", b"EXIF", 60) + exif(3, 18)[:60].ljust(60, b"\0")),
    "GIF": gif_with(b"!\xfe\1a\0"),
    "BMP": saved("BMP"),
    "TIFF": saved("TIFF"),
    "TIFF packed": saved("TIFF", compression="tiff_lzw"),
}
if features.check("avif"):
    KINDS["AVIF"] = saved("AVIF")
REASONS = {
    *("empty", "not_an_image", "too_many_pixels", "truncated", "undecodable"),
    *("too_much_metadata", "too_much_memory", "slow_decode", "crashed_decoder"),
}


def reason_of(data: bytes) -> str:
    try:
        return "" if pictures.inspect(data, max_pixels=1_000_000).width else "no width"
    except PictureError as error:
        return error.reason


@settings(max_examples=300)
@given(st.sampled_from(STARTS), st.binary(max_size=400))
def test_random_bytes_behind_a_magic_are_refused_by_name(start: bytes, rest: bytes) -> None:
    assert reason_of(start + rest) in REASONS | {""}


@settings(max_examples=300)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_mutations_pass_or_are_refused_by_name(kind: str, data: st.DataObject) -> None:
    whole = bytearray(KINDS[kind])
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        length = data.draw(st.integers(0, 6))
        whole[place : place + length] = data.draw(st.binary(max_size=6)) * data.draw(st.sampled_from([1, 1, 50]))
    assert reason_of(bytes(whole)) in REASONS | {""}
