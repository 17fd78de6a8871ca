"""Files of torch.save that would crash, hang or flood a trusting reader, by name; none runs any code."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

PROTO = b"\x80\x02"


def text(value: str) -> bytes:
    """Return the opcode of a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def latin1(raw: bytes) -> bytes:
    """Return how protocol 2 writes bytes."""
    return b"c_codecs\nencode\n" + text(raw.decode("latin1")) + text("latin1") + b"\x86R"


def dtype(code: str) -> bytes:
    """Return a little-endian dtype."""
    return (
        b"cnumpy\ndtype\n"
        + text(code)
        + b"\x89\x88\x87R(K\x03"
        + text("<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )


def scalar(number: int) -> bytes:
    """Return a NumPy int64."""
    return b"cnumpy.core.multiarray\nscalar\n" + dtype("i8") + latin1(struct.pack("<q", number)) + b"\x86R"


def whole(number: int) -> bytes:
    """Return a Python int."""
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tensor(offset: bytes, size: bytes, stride: bytes, count: bytes = b"K\x04") -> bytes:
    """Return a tensor of float32 in the storage "0", its fields as opcodes."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + count + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + size
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def array(shape: bytes, raw: bytes, code: str = "f4") -> bytes:
    """Return an array, its shape as opcodes."""
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + latin1(b"b") + b"\x87R"
    return start + b"(K\x01" + shape + dtype(code) + b"\x89" + latin1(raw) + b"tb"


def shared(levels: int, wide: int, kind: bytes = b"]") -> bytes:
    """Return a list (or a tuple) of `wide` references to one of `wide` references and so on; opcodes grow by level."""
    made = b"K\x01" if kind == b"t" else b"]K\x01a"
    made += b"q\x01"
    for level in range(2, levels + 2):
        inside = b"h" + bytes([level - 1])
        made += (b"(" + inside * wide + b"t" if kind == b"t" else b"](" + inside * wide + b"e") + b"q" + bytes([level])
        # What is below on the stack is wrapped away by the last one.
    return b"(" + made + b"t"


def ids(of_part_0: bytes) -> bytes:
    """Return a list of ids of 32 parts, all but the first empty."""
    return PROTO + b"](" + of_part_0 + b"]" * 31 + b"e."


def faces(box: bytes, key: bytes = b"K\x07") -> bytes:
    """Return the dict of one sample with one face, whose landmarks are right."""
    return PROTO + b"}" + key + b"](" + box + array(b"K\x05K\x02\x86", bytes(40)) + b"G?\xe0\0\0\0\0\0\0\x87es."


def in_zip(pickle: bytes, *storages: bytes) -> bytes:
    """Return the zip around a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", pickle)
        for key, raw in enumerate(storages):
            archive.writestr(f"a/data/{key}", raw)
    return out.getvalue()


def _nested_tuple(depth: int) -> bytes:
    return b")" + b"\x85" * depth


def _doubled() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", ids(b"]K\x05a"))
        archive.writestr("b", b"")
        archive.filelist[-1].filename = "a/data.pkl"
    return out.getvalue()


def _patched(offset: int, value: bytes, *, of: bytes = b"PK\x05\x06") -> bytes:
    """Return a zip of good ids with bytes changed behind a signature: by default the end record."""
    raw = bytearray(in_zip(ids(b"]K\x05a")))
    at = raw.rindex(of) + offset
    raw[at : at + len(value)] = value
    return bytes(raw)


def _many_lists(batches: int) -> bytes:
    """Return what looks like a list of floats at the end of each of its own batches, and is none."""
    batch = b"(" + b"G\0\0\0\0\0\0\0\0" * 999 + b"G\0\0\0\0\0\0]qe"
    return PROTO + b"](" + b"]q\x01" + batch * batches + b"(G" + b"e."


def _flood(count: int) -> bytes:
    """Return a set whose ints all have the hash 0."""
    return ids(b"c__builtin__\nset\n](" + b"".join(whole(n * ((1 << 61) - 1)) for n in range(9, 9 + count)) + b"e\x85R")


_ONE = b"K\x01\x85"
_FOUR = b"K\x04\x85"
_FLOATS = bytes(16)

#: Of the ids: name -> bytes of laion_face_ids.pth.
IDS: dict[str, Callable[[], bytes]] = {
    "a stride that overflows": lambda: in_zip(ids(tensor(b"K\0", b"K\x02\x85", scalar(1 << 61) + b"\x85")), _FLOATS),
    "strides that overflow": lambda: in_zip(
        ids(tensor(b"K\0", scalar(1 << 62) + b"\x85", scalar(1 << 62) + b"\x85")), _FLOATS
    ),
    "an offset that is a NumPy int": lambda: in_zip(ids(tensor(scalar(1 << 40), _ONE, scalar(4) + b"\x85")), _FLOATS),
    "sizes whose product is 0": lambda: in_zip(
        ids(tensor(b"K\0", scalar(1 << 32) + scalar(1 << 32) + b"\x86", b"K\x01K\x01\x86")), _FLOATS
    ),
    "heap bytes read as ids": lambda: in_zip(
        ids(tensor(b"K\0", scalar(3) + b"\x85", scalar((1 << 63) - (1 << 20)) + b"\x85")), _FLOATS
    ),
    "an array's shape that overflows": lambda: in_zip(ids(array(scalar(1 << 32) + scalar(1 << 32) + b"\x86", b""))),
    "an empty array of 2**62": lambda: in_zip(ids(array(b"K\0" + whole(1 << 62) + b"\x86", b""))),
    "a memo index of 2**28": lambda: in_zip(PROTO + b"]r\0\0\0\x10."),
    "a memo index of 2**31 as text": lambda: in_zip(PROTO + b"]p2147483647\n."),
    "a text of 2 GB": lambda: in_zip(PROTO + b"X\xff\xff\xff\x7fabc."),
    "bytes of 2**62": lambda: in_zip(PROTO + b"\x8e\0\0\0\0\0\0\0\x40abc."),
    "a frame of 2**62": lambda: in_zip(b"\x80\x04\x95\0\0\0\0\0\0\0\x40]."),
    "a number of 2 GB": lambda: in_zip(PROTO + b"\x8b\xff\xff\xff\x7fabc."),
    "a tuple 1,000,000 deep in a set": lambda: in_zip(
        ids(b"c__builtin__\nset\n]" + _nested_tuple(1_000_000) + b"a\x85R")
    ),
    "a tuple 1,000,000 deep": lambda: in_zip(ids(b"]" + _nested_tuple(1_000_000) + b"a")),
    "lists 1,000,000 deep": lambda: in_zip(PROTO + b"]" * 1_000_000 + b"a" * 999_999 + b"."),
    "shared lists among the ids": lambda: in_zip(ids(b"](" + shared(27, 2) + b"e")),
    "shared lists, ten wide": lambda: in_zip(ids(shared(11, 10))),
    "shared tuples in a set": lambda: in_zip(ids(b"c__builtin__\nset\n]" + shared(40, 2, b"t") + b"a\x85R")),
    "shared tuples as a dict's key": lambda: in_zip(PROTO + b"}" + shared(40, 2, b"t") + b"K\x01s."),
    "a list within itself": lambda: in_zip(ids(b"]q\x01h\x01a")),
    "a dtype of shared lists": lambda: in_zip(ids(b"cnumpy\ndtype\n" + shared(30, 2) + b"\x85R")),
    "ints with one hash": lambda: in_zip(_flood(60_000)),
    "ten million lists on the stack": lambda: in_zip(PROTO + b"]" * 10_000_000 + b"."),
    "starts of lists without end": lambda: in_zip(_many_lists(3_000)),
    "a zip whose directory is elsewhere": lambda: _patched(16, b"\xff\xff\xff\x7f"),
    "a zip whose directory is large": lambda: _patched(12, b"\xff\xff\xff\x7f"),
    "a member that is larger than the file": lambda: _patched(
        20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f", of=b"PK\x01\x02"
    ),
    "a member behind the file": lambda: _patched(42, b"\xff\xff\xff\x7f", of=b"PK\x01\x02"),
    "a member before its header": lambda: _patched(0, b"XX", of=b"PK\x03\x04"),
    "a wrong CRC": lambda: _patched(16, b"\x01\x02\x03\x04", of=b"PK\x01\x02"),
    "a member twice": _doubled,
    "ids in lists": lambda: in_zip(ids(b"](]K\x01a]K\x02ae")),
    "ragged ids": lambda: in_zip(ids(b"](]K\x01aK\x02e")),
    "an infinite id": lambda: in_zip(ids(b"](G\x7f\xf0\0\0\0\0\0\0K\x02e")),
    "a part that is infinite": lambda: in_zip(
        PROTO + b"}(" + b"".join(b"K" + bytes([n]) + b"]" for n in range(31)) + b"G\x7f\xf0\0\0\0\0\0\0]u."
    ),
    "an id that is not a number": lambda: in_zip(ids(b"](G\x7f\xf8\0\0\0\0\0\0K\x02e")),
    "a negative id": lambda: in_zip(ids(b"](J\xff\xff\xff\xffK\x02e")),
    "ids in a 0-d array": lambda: in_zip(ids(array(b")", bytes(4)))),
    "all in a 0-d array": lambda: in_zip(PROTO + array(b")", bytes(4)) + b"."),
    "an id of 2**58": lambda: in_zip(ids(b"](" + whole(1 << 58) + b"K\x02e")),
    "ids of 2**62 in an array": lambda: in_zip(ids(array(_ONE, struct.pack("<q", 1 << 62), "i8"))),
    "bfloat16": lambda: in_zip(ids(tensor(b"K\0", _FOUR, _ONE).replace(b"FloatStorage", b"BFloat16Storage")), _FLOATS),
}

#: Of the detections: name -> bytes of sample2detect_0.pth.
FACES: dict[str, Callable[[], bytes]] = {
    "a box of shared lists": lambda: in_zip(faces(shared(11, 10))),
    "a box of shared lists, two wide": lambda: in_zip(faces(shared(30, 2))),
    "a face with shared keys": lambda: in_zip(PROTO + b"}K\x07](}(" + text("box") + shared(28, 2) + b"K\x01ues."),
    "a tuple 1,000,000 deep as a key": lambda: in_zip(faces(array(_FOUR, _FLOATS), _nested_tuple(1_000_000))),
    "a box that overflows": lambda: in_zip(faces(tensor(b"K\0", _FOUR, scalar(1 << 61) + b"\x85")), _FLOATS),
    "a box of one array many times": lambda: in_zip(
        PROTO
        + b"}K\x07]("
        + array(b"M\0\x40\x85", bytes(1 << 16))
        + b"q\x01h\x01h\x01\x87"
        + b"h\x01h\x01h\x01\x87" * 500_000
        + b"es."
    ),
    "a key of 2**70": lambda: in_zip(faces(array(_FOUR, _FLOATS), whole(1 << 70))),
    "an infinite key": lambda: in_zip(faces(array(_FOUR, _FLOATS), b"G\x7f\xf0\0\0\0\0\0\0")),
    "a memo index of 2**28 in a later piece": lambda: in_zip(
        PROTO + b"}q\0(" + b"K\x01]" * 1 + b"u(" + (b"J\1\2\3\4]" * 1000 + b"u(") * 40 + b"K\x01]r\0\0\0\x10u."
    ),
}


def write(name: str, kind: dict[str, Callable[[], bytes]], path: Path) -> Path:
    """Write one of them."""
    path.write_bytes(kind[name]())
    return path
