"""Feed changed and made-up pickles to all that reads pickles: each is read, or refused with one error that names it.

    python -m tests.support.fuzz_pickles [--count 1000000] [--seconds 3600] [--seed 0]

Half of them are honest files with some bytes, numbers or opcodes changed, a tenth of these in the zip around it; the
others are opcodes at random that fit the stack. What is wrong is said in `fuzz_child`; also that two ways to read a
file differ. A case is told by its number: `--first N --count 1` runs it again.
"""

from __future__ import annotations

import argparse
import io
import pickle
import random
import struct
import sys
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from laion_face_builder.errors import BadFile
from laion_face_builder.index.detections import read_faces
from laion_face_builder.index.ids import _by_part, sorted_ids
from laion_face_builder.torch_pickle.chunks import iter_dict
from laion_face_builder.torch_pickle.float_lists import FloatList, load_lists
from laion_face_builder.torch_pickle.pickle_names import ALLOWED
from laion_face_builder.torch_pickle.torch_file import load_pickle
from tests.support.fuzz_child import READ, Found, SilentError, fuzz

#: Cases of one process.
_STEP = 10_000
_MAGIC = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
_OPCODES = bytes(op for op in range(256) if chr(op) in "KMJGNXBCTU]})(tRbcaeusQ.hjqr0l12dpgIVLSFio") + bytes(
    range(0x80, 0x99)
)
_EDGES = [0, 1, 2, 4, 255, 256, 65535, 1 << 16, 1 << 24, 1 << 28, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
#: Numbers that two ways to read a pickle are compared by, at most.
_COMPARED = 100_000


def case(number: int, seed: int = 0) -> bytes:
    """Return the file of a case."""
    rng = random.Random(f"{seed} {number}")
    if number % 2:
        return container(rng, made(rng), rng.choice([(), (bytes(64),)]))
    # Rather the small ones, of which a change meets more.
    main, storages = min(rng.choices(honest(), k=rng.choice([1, 3, 3, 3])), key=lambda one: len(one[0]))
    if rng.random() < 0.9:
        return container(rng, changed(rng, main), storages)
    return changed(rng, container(rng, main, storages))


def container(rng: random.Random, main: bytes, storages: tuple[bytes, ...] = ()) -> bytes:
    """Return a file of torch.save around a pickle: mostly a zip, sometimes the older stream."""
    if rng.random() < 0.2:
        head = b"".join(pickle.dumps(part, 2) for part in _MAGIC)
        numbers = b"".join(struct.pack("<q", len(raw) // 4) + raw for raw in storages)
        return head + main + pickle.dumps([str(key) for key in range(len(storages))], 2) + numbers
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", main)
        for key, raw in enumerate(storages):
            archive.writestr(f"a/data/{key}", raw)
    return out.getvalue()


class _Storage:
    """Is pickled as the persistent id of a torch storage of float32."""

    def __init__(self, count: int) -> None:
        self.count = count


class _Name:
    """Is pickled as a name, and so is a call of it."""

    def __init__(self, module: str, name: str, *args: object) -> None:
        self.name, self.args = f"{module} {name}", args

    def __reduce__(self) -> tuple[object, ...]:
        return self.name, self.args


class _Pickler(pickle._Pickler):
    """Writes names that are not here."""

    def persistent_id(self, obj: object) -> object:
        return ("storage", _Name("torch", "FloatStorage"), "0", "cpu", obj.count) if isinstance(obj, _Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Name):
            module, name = obj.name.split()
            self.write(f"c{module}\n{name}\n".encode())  # type: ignore[attr-defined]  # typeshed leaves it out
            if obj.args:
                self.save(obj.args)
                self.write(b"R")  # type: ignore[attr-defined]
            return
        super().save(obj, save_persistent_id)  # type: ignore[misc]


@lru_cache(1)
def honest() -> list[tuple[bytes, tuple[bytes, ...]]]:
    """Return the pickles that are changed, with the bytes of their storages."""
    rng = np.random.default_rng(0)

    def face(kind: int) -> Any:
        box, points, score = rng.random(4, "f4"), rng.random((5, 2), "f4"), np.float32(0.5)
        if kind == 1:
            return {"box": box.tolist(), "kps": points.tolist(), "score": 0.5}
        if kind == 2:
            return tuple(box.tolist()), [*map(tuple, points.tolist())], 0.5
        return box, points, score

    def ids(some: Any) -> list[Any]:
        return [some if part == 3 else [] for part in range(32)]

    tensor = _Name("torch._utils", "_rebuild_tensor_v2", _Storage(16), 4, (3,), (4,), False, OrderedDict())
    named = defaultdict(list, {part: [part] for part in range(32)})
    values: list[Any] = [{n * 10**9: [face(kind)] * 2 for n in range(4)} for kind in range(3)]
    values += [{n: [face(0)] for n in range(1003)}, {n: [] for n in range(1200)}, {1: [(tensor, tensor, 0.5)]}]
    floats = [float(n) for n in range(1100)]
    values += [ids(floats), ids([1, 2**40]), ids((1.0, 2.0)), ids({3.0, 4.0}), ids(set(floats)), ids(tensor), named]
    values += [ids(np.arange(5)), ids([np.int64(5), np.float64(6)]), ids(np.arange(6.0)), dict(enumerate(ids([7])))]
    values += [
        OrderedDict((part, frozenset([part])) for part in range(32)),
        ids([np.array(7)]),
        ids(np.arange(5, dtype=">i4")),
    ]
    pickles = [dumped(value, protocol) for value in values for protocol in (2, 2, 2, 4, 5)]
    return [(main, (bytes(64),) if b"FloatStorage" in main else ()) for main in pickles]


def dumped(value: object, protocol: int) -> bytes:
    """Return the pickle of a value."""
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


def changed(rng: random.Random, raw: bytes) -> bytes:
    """Return bytes with one to four changes."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice(_OPCODES)
        elif kind == 2:
            data[at : at + 4] = struct.pack("<I", rng.choice(_EDGES))
        elif kind == 3:
            del data[at : at + rng.choice([1, 1, 2, 5, 40])]
        elif kind == 4:
            data[at:at] = data[at : at + rng.choice([1, 2, 5, 40, 300])] * rng.choice([1, 1, 2, 50])
        elif kind == 5:
            data[at:at] = opcode(rng)
        elif kind == 6:
            other, _ = rng.choice(honest())
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.choice([3, 10, 50, 200])]
        else:
            data[at:at] = bytes([rng.choice(_OPCODES)]) * rng.choice([1, 2, 40, 40, 5000])
    return bytes(data)


def opcode(rng: random.Random) -> bytes:
    """Return some opcode with an argument that may be wrong."""
    module, name = rng.choice(list(ALLOWED))
    number = struct.pack("<I", rng.choice(_EDGES))
    some = [
        b"K" + rng.randbytes(1),
        b"J" + number,
        b"M" + number[:2],
        b"G" + struct.pack(">d", rng.choice([0.0, -1.0, 5.0, 2.0**53, float("inf"), float("nan"), 1e300])),
        b"\x8a" + bytes([8]) + struct.pack("<q", rng.choice([0, -1, 1 << 53, 1 << 58, (1 << 63) - 1, -(1 << 63)])),
        b"X" + struct.pack("<I", 3) + rng.choice([b"box", b"kps", b"abc", b"\xff\xff\xff"]),
        b"B" + number + rng.randbytes(8),
        b"\x8c" + rng.randbytes(3),
        b"q" + rng.randbytes(1),
        b"h" + rng.randbytes(1),
        b"r" + number,
        b"j" + number,
        f"c{module}\n{name}\n".encode(),
        b"c" + rng.choice([b"os\nsystem\n", b"builtins\neval\n", b"numpy\nload\n", b"torch\nBFloat16Storage\n"]),
        bytes([rng.choice(_OPCODES)]),
    ]
    return rng.choice(some)


def made(rng: random.Random) -> bytes:
    """Return opcodes at random, of which most have on the stack what they need."""
    out, marks, height, memo = [b"\x80" + bytes([rng.choice([2, 2, 4, 5])])], [], 0, 0
    for _ in range(rng.choice([3, 10, 30, 100, 400])):
        kind = rng.randrange(16)
        if kind < 4 or height == 0:
            pick = opcode(rng) if rng.random() < 0.15 else _value(rng, memo)
            height += 1
        elif kind < 6:
            pick, memo = (b"q" + bytes([memo]) if memo < 256 else b"r" + struct.pack("<I", memo)), memo + 1
        elif kind < 8:
            marks.append(height)
            pick, height = b"(", 0
        elif kind < 11 and marks:
            pick = rng.choice([b"t", b"t", b"e", b"u", b"\x90", b"\x91"])
            height = marks.pop() + (pick in (b"t", b"\x91"))
        elif kind == 11 and height > 1:
            pick, height = rng.choice([b"a", b"R", b"b", b"R", b"b", b"\x86"]), height - 1
        elif kind == 12 and height > 2:
            pick, height = rng.choice([b"s", b"\x87"]), height - 2
        else:
            pick = rng.choice([b"\x85", b"\x85", b"Q", b"]\x85", b"}\x85"])
            height += len(pick) - 1 if pick[:1] != b"\x85" else 0
        out.append(pick * rng.choice([1] * 30 + [2, 60]))
    ends = b"".join(b"t" for _ in marks)
    return b"".join(out) + ends + rng.choice([b".", b".", b"\x85.", b""])


def _value(rng: random.Random, memo: int) -> bytes:
    module, name = rng.choice(list(ALLOWED))
    get = b"h" + bytes([rng.randrange(min(memo, 255) + 1)])
    call = f"c{module}\n{name}\n".encode() + rng.choice([b")R", b"]\x85R", b"(" + get * 3 + b"tR", get + b"\x85R"])
    plain = [
        b"N",
        b"\x88",
        b"K\x04",
        b"M\x00\x01",
        b"J\xff\xff\xff\xff",
        b"G" + bytes(8),
        b"X\x03\0\0\0box",
        b"]",
        b"}",
        b")",
        b"\x8f",
    ]
    return rng.choice([*plain, get, get, get, call, call, f"c{module}\n{name}\n".encode()])


def require(is_so: bool, otherwise: str) -> None:
    """Raise SilentError if it is not so."""
    if not is_so:
        raise SilentError(otherwise)


def try_out(path: Path) -> str:
    """Read a file in all ways; return how it ended. Raises SilentError if two ways differ."""
    whole = _outcome(load_pickle, path)
    lists = _outcome(load_lists, path)
    if not isinstance(lists, BadFile):
        _outcome(_all_ids, path, lists)
    _outcome(read_faces, path, 200)
    pieces = _outcome(_merged, path)
    if not isinstance(whole, BadFile):
        assert not isinstance(lists, BadFile), f"whole, but not with lists: {lists}"
        require(_same(whole, lists), "other lists")
        if isinstance(whole, dict):
            assert not isinstance(pieces, BadFile), f"whole, but not in pieces: {pieces}"
            require(_same(dict(whole), pieces), "other pieces")
    return type(whole).__name__ if isinstance(whole, BadFile) else READ


def _outcome(read: Any, path: Path, *args: Any) -> Any:
    try:
        return read(path, *args)
    except BadFile as error:
        outcome = error
    assert len(str(outcome)) < 1200, f"a long error: {outcome!s:.200}"
    assert path.name in str(outcome), f"an error without its file: {outcome!s:.200}"
    return outcome


def _all_ids(path: Path, value: object) -> None:
    for part, values in _by_part(path, value).items():
        sorted_ids(path, part, values)


def _merged(path: Path) -> dict[object, object]:
    return {key: value for piece in iter_dict(path, piece_size=200) for key, value in piece.items()}


def _same(a: object, b: object) -> bool:
    """Tell whether two values are equal, as far as some thousand numbers say; a set of floats may come as a list."""
    todo: list[tuple[Any, Any]] = [(a, b)]
    compared = 0
    while todo and compared < _COMPARED:
        one, other = todo.pop()
        compared += 1
        if isinstance(other, FloatList) and isinstance(one, list | set | frozenset):
            numbers, others = np.array(list(one)), other.read()
            is_set = not isinstance(one, list)
            numbers, others = (np.unique(numbers), np.unique(others)) if is_set else (numbers, others)
            if numbers.tobytes() != others.tobytes():
                return False
        elif type(one) is not type(other):
            return False
        elif isinstance(one, dict):
            if len(one) != len(other):
                return False
            todo += zip(one.items(), other.items(), strict=True)
        elif isinstance(one, list | tuple):
            if len(one) != len(other):
                return False
            todo += zip(one, other, strict=True)
        elif isinstance(one, set | frozenset):
            # Their order is not theirs alone: a NaN is hashed by where it is.
            if sorted(map(repr, one)) != sorted(map(repr, other)):
                return False
        elif isinstance(one, np.ndarray):
            if (
                one.dtype != other.dtype
                or one.shape != other.shape
                or one.ravel()[:100].tobytes() != other.ravel()[:100].tobytes()
            ):
                return False
        elif isinstance(one, _PLAIN) and f"{one!r:.1000}" != f"{other!r:.1000}":
            return False
    return True


_PLAIN = (int, float, str, bytes, bytearray, np.generic)


@dataclass(frozen=True)
class Pickles:
    """Changed pickles, those with even numbers, and made-up ones, in all ways that pickles are read.

    Attributes:
        seed: other seeds have other cases.
    """

    seed: int = 0

    def ready(self, folder: Path) -> Callable[[int], str]:
        """See `fuzz_child.Trial`."""
        path = folder / "case.pth"

        def attempt(number: int) -> str:
            path.write_bytes(case(number, self.seed))
            return try_out(path)

        return attempt


def main() -> None:
    """Try as many cases as asked for, or as the time allows; exit with 1 if any was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started, total = time.monotonic(), Found()
    for first in range(args.first, args.first + args.count, _STEP):
        found = fuzz(Pickles(args.seed), range(first, min(first + _STEP, args.first + args.count)))
        total.add(found)
        print(*found.wrong, sep="\n", end="\n" * bool(found.wrong))
        print(f"{total.tried:,} tried, {len(total.wrong)} wrong, {dict(total.counts)}", flush=True)
        if time.monotonic() - started > args.seconds:
            break
    sys.exit(bool(total.wrong))


if __name__ == "__main__":
    main()
