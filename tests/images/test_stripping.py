"""Metadata are taken out of every format: nothing of them is found in the bytes, and no pixel has changed."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures
from laion_face_builder.images.stripping import stripped

SECRET = b"SERIAL-4711-AT-52.5163N"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def scene(mode="RGB", size=(67, 45)):
    pixels = np.random.default_rng(3).integers(0, 256, (*size[::-1], 3), np.uint8)
    pixels[10:30, 10:40] = 200
    return Image.fromarray(pixels).convert(mode)


def exif(turn=1):
    block = Image.Exif()
    block[0x0112] = turn
    block[0x010F] = SECRET.decode()
    block[0xA431] = SECRET.decode()
    gps = block.get_ifd(0x8825)
    gps[1], gps[29] = "N", SECRET.decode()
    return block


def xmp():
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf a="' + SECRET + b'"/></x:xmpmeta>'


def saved(picture, kind, **how):
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(picture=None, **how):
    """Make a JPEG with metadata of every kind: in front, between its scans, and behind it."""
    data = saved(picture or scene(), "JPEG", exif=exif(), icc_profile=PROFILE, comment=SECRET, quality=90, **how)
    more = [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp()), segment(0xED, b"Photoshop 3.0\0" + SECRET)]
    more += [segment(0xEB, SECRET), segment(0xE0, b"JFXX\0\x10" + SECRET), segment(0xE2, b"MPF\0" + SECRET)]
    # JFIF's own header stays first, now with a preview.
    head = data[:2] + segment(0xE0, b"JFIF\0\x01\x01\0\0\1\0\1" + bytes([1, 8]) + (SECRET + b".").ljust(24, b".")[:24])
    data = head + b"".join(more) + data[20:]
    last = data.rindex(b"\xff\xda")
    if data.count(b"\xff\xda") > 1:
        data = data[:last] + segment(0xFE, SECRET) + data[last:]
    return data + saved(scene(), "JPEG", comment=SECRET) + SECRET


def png(**how):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", SECRET.decode())
    notes.add_text("XML:com.adobe.xmp", SECRET.decode(), zip=False)
    notes.add_itxt("Place", SECRET.decode())
    notes.add(b"zzZz", SECRET)
    data = saved(how.pop("picture", scene()), "PNG", pnginfo=notes, exif=exif(), icc_profile=PROFILE, **how)
    late = b"tEXt" + b"Late\0" + SECRET
    end = len(data) - 12
    note = struct.pack(">L", len(late) - 4) + late + struct.pack(">L", zlib.crc32(late))
    return data[:end] + note + data[end:] + SECRET


def webp(**how):
    data = saved(how.pop("picture", scene()), "WEBP", exif=exif(), xmp=xmp(), icc_profile=PROFILE, **how)
    unknown = b"zzzz" + struct.pack("<L", len(SECRET)) + SECRET + b"\0" * (len(SECRET) % 2)
    body = data[8:] + unknown
    return b"RIFF" + struct.pack("<L", len(body)) + body + SECRET


FILES = {
    "jpg": [jpeg(), jpeg(progressive=True), jpeg(scene("L")), jpeg(scene("CMYK")), jpeg(restart_marker_rows=1)],
    "png": [png(), png(picture=scene("P")), png(picture=scene("RGBA")), png(picture=scene("1"))],
    "webp": [webp(lossless=True), webp(), webp(picture=scene("RGBA"))],
}
ALL = [(extension, number) for extension, files in FILES.items() for number in range(len(files))]


@pytest.mark.parametrize(("extension", "number"), ALL)
def test_nothing_is_left_but_the_picture(extension, number):
    data = FILES[extension][number]
    assert SECRET in data
    bare, kind = stripped(data)
    assert kind == extension
    assert SECRET not in bare
    assert SECRET.decode() not in str(Image.open(io.BytesIO(bare)).info)
    before, after = (Image.open(io.BytesIO(one)) for one in (data, bare))
    assert (after.mode, after.size) == (before.mode, before.size)
    assert after.tobytes() == before.tobytes()
    assert after.info.get("icc_profile") == PROFILE == before.info.get("icc_profile")
    assert after.info.get("transparency") == before.info.get("transparency")
    assert dict(after.getexif()) == {}
    assert stripped(bare) == (bare, kind)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_turn_stays_undone(kind, turn):
    data = saved(scene(), kind, exif=exif(turn))
    neutral = pictures.neutral(data)
    bare, _ = stripped(neutral)
    assert Image.open(io.BytesIO(bare)).getexif().get(0x0112, 1) == 1
    assert Image.open(io.BytesIO(bare)).tobytes() == Image.open(io.BytesIO(neutral)).tobytes()
    assert SECRET not in bare


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_written_anew(kind):
    how = {"TIFF": {"tiffinfo": exif()}, "GIF": {"comment": SECRET}, "BMP": {}}[kind]
    data = saved(scene("P" if kind == "GIF" else "RGB"), kind, **how)
    bare, extension = stripped(data)
    assert extension == "png"
    assert SECRET not in bare
    assert (
        Image.open(io.BytesIO(bare)).convert("RGB").tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    )


def test_an_animation_stays_one():
    frames = [Image.new("RGB", (20, 10), (60 * n, 0, 0)) for n in range(3)]
    for kind in ("PNG", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True, exif=exif())
        bare, _ = stripped(data)
        frames_left = getattr(Image.open(io.BytesIO(bare)), "n_frames", 1)
        assert (frames_left, SECRET in bare) == (3, False)


@settings(max_examples=200)
@given(st.sampled_from(ALL), st.data())
def test_a_file_that_is_cut_or_changed_never_hangs_or_grows(which, data):
    changed = bytearray(FILES[which[0]][which[1]])
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    file = bytes(changed[: data.draw(st.integers(20, len(changed)))])
    try:
        bare, extension = stripped(file)
    except PictureError:
        return
    if extension == which[0]:
        assert len(bare) <= len(file) + 12


def test_what_is_no_picture_is_an_error():
    with pytest.raises(PictureError):
        stripped(b"no picture at all, but long enough for a look")
