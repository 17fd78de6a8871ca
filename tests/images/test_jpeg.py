"""The quick check: what it passes decodes as `datasets.Image()` does it, and it says the same as a full decode."""

from __future__ import annotations

import io
import struct
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures
from laion_face_builder.images.jpeg import quick


def drawing(width: int, height: int, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width).integers(0, 60, (height, width, 3))
    pixels = np.stack([x * 3 % 200, y * 5 % 200, (x + y) % 200], axis=-1) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(width: int = 61, height: int = 43, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    drawing(width, height, mode).save(out, "JPEG", **options)
    return out.getvalue()


def exif(orientation: int) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<LHHHLHHL", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


PLAIN = {
    "baseline": jpeg(),
    "444": jpeg(subsampling=0),
    "422": jpeg(subsampling=1),
    "optimised": jpeg(optimize=True),
    "progressive": jpeg(progressive=True),
    "grey": jpeg(mode="L"),
    "grey progressive": jpeg(mode="L", progressive=True),
    "worst": jpeg(quality=1),
    "restarts": jpeg(restart_marker_blocks=2),
    "one pixel": jpeg(1, 1),
    "large": jpeg(400, 300, quality=95),
    "large progressive": jpeg(400, 300, quality=95, progressive=True),
    "comment": jpeg(comment=b"hello"),
    "profile": jpeg(icc_profile=bytes(3000)),
    "dpi": jpeg(dpi=(72, 72)),
}
TURNED = {f"exif {turn}": jpeg(exif=exif(turn)) for turn in range(1, 9)}
ODD = {
    "cmyk": jpeg(mode="CMYK"),
    "with a tail": jpeg() + b"\0tail",
    "fill bytes": jpeg().replace(b"\xff\xdb", b"\xff\xff\xdb", 1),
}
EVERYTHING = PLAIN | TURNED | ODD


def decoded(data: bytes) -> Image.Image:
    """Decode as `datasets.Image()` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.getexif().get(0x0112) is not None:
            from PIL import ImageOps

            return ImageOps.exif_transpose(image)
        return image


@pytest.mark.parametrize("kind", [*PLAIN, *TURNED])
def test_common_pictures_are_known_at_once(kind: str) -> None:
    found = quick(EVERYTHING[kind])
    assert found is not None
    assert found == pictures.inspect(EVERYTHING[kind])


@pytest.mark.parametrize("kind", ODD)
def test_odd_ones_are_said_the_same_of_or_nothing(kind: str) -> None:
    assert quick(EVERYTHING[kind]) in (None, pictures.inspect(EVERYTHING[kind]))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_left_to_a_decoder(form: str) -> None:
    out = io.BytesIO()
    drawing(20, 20).save(out, form)
    assert quick(out.getvalue()) is None


def test_no_prefix_passes() -> None:
    for data in (PLAIN["baseline"], PLAIN["progressive"]):
        assert all(quick(data[:length]) is None for length in range(len(data)))


def test_too_many_pixels_are_left_to_inspect() -> None:
    assert quick(PLAIN["large"], max_pixels=400 * 300) is not None
    assert quick(PLAIN["large"], max_pixels=400 * 300 - 1) is None


def test_several_pictures_in_one_file_are_left_to_inspect() -> None:
    out = io.BytesIO()
    drawing(30, 30).save(out, "MPO", save_all=True, append_images=[drawing(30, 30)])
    assert quick(out.getvalue()) is None


_edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "delete", "cut", "marker", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        # Most of what can go wrong stands in front.
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[str, float, int, bool]]) -> bytes:
    out = bytearray(data)
    for what, where, value, in_front in edits:
        if not out:
            break
        at = int(where * (min(len(out), 700) if in_front else len(out)))
        if what == "flip":
            out[at] ^= 1 << value % 8
        elif what == "set":
            out[at] = value
        elif what == "insert":
            out[at:at] = bytes([value] * (1 + value % 5))
        elif what == "delete":
            del out[at : at + 1 + value % 9]
        elif what == "cut":
            del out[at:]
        elif what == "marker":
            out[at : at + 2] = bytes([0xFF, 0xC0 + value % 64])
        else:
            out[at : at + 20] = out[at // 2 : at // 2 + 20]
    return bytes(out)


@settings(max_examples=600)
@given(st.sampled_from(sorted(EVERYTHING)), _edits)
def test_what_passes_decodes(kind: str, edits: list[tuple[str, float, int, bool]]) -> None:
    data = edited(EVERYTHING[kind], edits)
    found = quick(data)
    if found is None:
        return
    assert found == pictures.inspect(data)
    if found.orientation:
        decoded(data)
    assert Image.open(io.BytesIO(pictures.neutral(data))).size == (found.width, found.height)


def _headers(data: bytes) -> list[tuple[int, int]]:
    """Return where each segment up to the first scan's header begins and ends."""
    spans, at = [], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        spans.append((at, end))
        at = end
    return [*spans, (at, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big"))]


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey", "optimised"])
def test_every_byte_of_every_header_set_to_anything(kind: str) -> None:
    # The tables and headers, byte by byte: this is where libjpeg raises.
    data = EVERYTHING[kind]
    passed = 0
    for start, end in _headers(data):
        for at in range(start, end):
            for value in {0, 1, 2, 3, 4, 5, 8, 0x11, 0x12, 0x21, 0x22, 0x3F, 0x40, 0x7F, 0x80, 0xFF, data[at] ^ 1}:
                changed = data[:at] + bytes([value]) + data[at + 1 :]
                if (found := quick(changed, max_pixels=1_000_000)) is not None:
                    passed += 1
                    assert found == pictures.inspect(changed)
    assert passed


@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_segments_left_out_doubled_or_swapped(kind: str) -> None:
    data = EVERYTHING[kind]
    spans = _headers(data)
    rest = data[spans[-1][1] :]
    for one in range(len(spans)):
        for other in range(len(spans)):
            pieces = [data[start:end] for start, end in spans]
            swapped = list(pieces)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            for changed in (swapped, pieces[:one] + pieces[one + 1 :], [*pieces[:one], pieces[other], *pieces[one:]]):
                whole = data[:2] + b"".join(changed) + rest
                if (found := quick(whole)) is not None:
                    assert found == pictures.inspect(whole)


def test_scans_of_a_progressive_file_left_out_or_swapped() -> None:
    data = PLAIN["progressive"]
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    cuts = [*starts, len(data) - 2]
    head, pieces = data[: cuts[0]], [data[a:b] for a, b in pairwise(cuts)]
    for leave_out in range(len(pieces)):
        for move_to in range(len(pieces)):
            kept = pieces[:leave_out] + pieces[leave_out + 1 :]
            moved = [*kept[:move_to], pieces[leave_out], *kept[move_to:]]
            for changed in (kept, moved):
                whole = head + b"".join(changed) + data[-2:]
                if (found := quick(whole)) is not None:
                    assert found == pictures.inspect(whole)


def test_inspect_refuses_what_quick_leaves_to_it() -> None:
    with pytest.raises(PictureError, match="truncated"):
        pictures.inspect(PLAIN["large"][:-2000])
    assert quick(PLAIN["large"][:-2000]) is None
