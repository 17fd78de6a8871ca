"""Take the orientation out of the bytes of JPEG, PNG and WebP files, without touching a pixel.

Where Pillow looks (PIL/Image.py `getexif`, and what the plugins put into `info`):

- JPEG: APP1 segments before the first scan that start `Exif` (several are joined) or with Adobe's XMP name;
- PNG: eXIf chunks, and text chunks called "Raw profile type exif", "exif", "XML:com.adobe.xmp" or "xmp";
- WebP: the EXIF and "XMP " chunks.

In an EXIF block it is tag 274 of the first directory; in XMP it is `tiff:Orientation`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable

from laion_face_builder.images.structure import EXIF_NAME, PNG_SIGNATURE, png_chunks, segments, webp_chunks

#: Gives the new content of a metadata block, None to leave the block out.
Edit = Callable[[bytes], "bytes | None"]

ORIENTATION_TAG = 0x0112
_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[0-9]')
_PNG_TEXT_NAMES = (b"Raw profile type exif", b"exif", b"XML:com.adobe.xmp", b"xmp")
#: Without any of these in its bytes a file of the format has no orientation: most of the web's pictures.
_TRACES = {
    b"\xff\xd8\xff": (EXIF_NAME, b"tiff:Orientation"),
    PNG_SIGNATURE: (b"eXIf", b"tEXt", b"zTXt", b"iTXt"),
    b"RIFF": (b"EXIF", b"XMP "),
}


def may_be_turned(data: bytes) -> bool:
    """Say whether a reader could find an orientation in these bytes; costs a few microseconds."""
    for magic, traces in _TRACES.items():
        if data.startswith(magic):
            return any(trace in data for trace in traces)
    return True


def without_orientation(data: bytes, *, keep_metadata: bool) -> bytes | None:
    """Return the same file with every orientation set to 1, or without the blocks that could hold one.

    Args:
        data: the bytes of a picture.
        keep_metadata: True changes single values and leaves out only blocks that cannot be understood; False leaves
            out all EXIF and XMP blocks.

    Returns:
        The new bytes; None if this is not JPEG, PNG or WebP.
    """
    exif: Edit = upright_exif if keep_metadata else _left_out
    xmp: Edit = upright_xmp if keep_metadata else _left_out
    if data.startswith(b"\xff\xd8\xff"):
        return _edited_jpeg(data, exif, xmp)
    if data.startswith(PNG_SIGNATURE):
        return _edited_png(data, exif, xmp)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _edited_webp(data, exif, xmp)
    return None


def upright_exif(block: bytes) -> bytes | None:
    """Return an EXIF block (with or without its name in front) with orientation 1; None if it cannot be understood."""
    start = 0
    while block.startswith(EXIF_NAME, start):
        start += len(EXIF_NAME)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[start : start + 4])
    if order is None:
        return None
    patched = bytearray(block)
    try:
        directory = start + struct.unpack_from(order + "L", block, start + 4)[0]
        (entries,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            if struct.unpack_from(order + "H", block, entry)[0] == ORIENTATION_TAG:
                # Tag, type SHORT, one value, the value and its padding.
                struct.pack_into(order + "HHLHH", patched, entry, ORIENTATION_TAG, 3, 1, 1, 0)
    except struct.error:
        return None
    return bytes(patched)


def upright_xmp(block: bytes) -> bytes:
    """Return an XMP block with orientation 1, wherever that stands; of the same length."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", block)


def _left_out(_: bytes) -> None:
    return None


def _edited_jpeg(data: bytes, exif: Edit, xmp: Edit) -> bytes:
    pieces, position = [], 0
    for marker, start, end in segments(data):
        body = data[start + 4 : end]
        if marker != 0xE1 or not body.startswith((EXIF_NAME, _XMP_NAME)):
            continue
        edited = (exif if body.startswith(EXIF_NAME) else xmp)(body)
        pieces.append(data[position:start])
        if edited is not None:
            pieces.append(b"\xff\xe1" + struct.pack(">H", len(edited) + 2) + edited)
        position = end
    return b"".join([*pieces, data[position:]])


def _edited_png(data: bytes, exif: Edit, xmp: Edit) -> bytes:
    pieces, position = [data[:8]], 8
    for kind, start, end in png_chunks(data):
        body = data[start + 8 : end - 4]
        edited = _edited_png_chunk(kind, body, exif, xmp)
        if edited == body:
            pieces.append(data[start:end])
        elif edited is not None:
            checksum = zlib.crc32(kind + edited)
            pieces.append(struct.pack(">L4s", len(edited), kind) + edited + struct.pack(">L", checksum))
        position = end
    return b"".join([*pieces, data[position:]])


def _edited_png_chunk(kind: bytes, body: bytes, exif: Edit, xmp: Edit) -> bytes | None:
    if kind == b"eXIf":
        return exif(body)
    if kind in (b"tEXt", b"zTXt", b"iTXt") and body.split(b"\0", 1)[0] in _PNG_TEXT_NAMES:
        edited = xmp(body)
        # Compressed, in hex or already upright: the value may hide, so the chunk goes.
        return edited if edited != body else None
    return body


def _edited_webp(data: bytes, exif: Edit, xmp: Edit) -> bytes:
    edits = {b"EXIF": (exif, 0x08), b"XMP ": (xmp, 0x04)}
    pieces, gone = [], 0
    for kind, start, end in webp_chunks(data):
        (length,) = struct.unpack_from("<L", data, start + 4)
        edit, flag = edits.get(kind, (None, 0))
        if edit is None:
            pieces.append(data[start:end])
        elif (edited := edit(data[start + 8 : start + 8 + length])) is not None:
            pieces.append(struct.pack("<4sL", kind, len(edited)) + edited + b"\0" * (len(edited) % 2))
        else:
            gone |= flag
    if pieces and pieces[0].startswith(b"VP8X") and len(pieces[0]) > 8:
        # The extended header says which blocks there are.
        pieces[0] = pieces[0][:8] + bytes([pieces[0][8] & ~gone]) + pieces[0][9:]
    body = b"WEBP" + b"".join(pieces)
    return b"RIFF" + struct.pack("<L", len(body)) + body
