"""Unpickle plain data only: a customs desk, with no switch to wave anything else through.

A pickle is a program. The few names that honest files use are bound here to functions of our own, which check what
they are given and make numbers, NumPy arrays, sets and dicts, nothing else; not even NumPy's or torch's own functions
are called by a file. Any other name ends in `UnsafePickle` before anything was run.

What is left to a hostile file is to waste memory, as with any compressed or nested format: sizes are checked against
the bytes that are really there, and a MemoryError is reported as `BadFile`. One gap is known: the memo of the C
unpickler grows to the highest index that a file names, and cannot be bounded from outside.
"""

from __future__ import annotations

import gc
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from laion_face_builder.errors import BadFile, LaionFaceError, UnsafePickle

_WAY_OUT = "Fetch the file again from its source; do not load it by other means."
#: Plain numbers only. Object, structured and string types could carry anything.
_DTYPES = {code: np.dtype(code) for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}
#: torch's storage classes and the NumPy type of their elements.
_STORAGES = {
    "BoolStorage": "b1",
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
}


class Malformed(ValueError):
    """An allowed name is called with something that NumPy and torch do not write."""


class Storages(Protocol):
    """Where the numbers of torch tensors come from."""

    def get(self, key: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """Return the storage called `key`: `count` numbers of `dtype`, one-dimensional."""


class NoStorages:
    """For pickles that have no tensors."""

    def get(self, key: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """Raise Malformed: there are none."""
        raise Malformed("a tensor where there is no storage")


class Unpickler(pickle.Unpickler):
    """The C unpickler, limited to the names in `ALLOWED`.

    Args:
        file: what to read, with `read`, `readline` and, for speed, `peek`.
        path: named in errors.
        storages: gives the numbers of tensors; they are NumPy arrays afterwards.
    """

    def __init__(self, file: IO[bytes], path: Path, storages: Storages) -> None:
        super().__init__(file)
        self._path = path
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """Return the function of ours that stands for a name.

        Raises:
            UnsafePickle: the name is not on the allow-list.
        """
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise UnsafePickle(
                self._path,
                found=f"the name {module}.{name} in a pickle",
                expected="only numbers, lists, dicts, sets, NumPy arrays and tensors",
                way_out=f"Nothing of it was run. {_WAY_OUT}",
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        """Return a tensor's storage, from ("storage", type, key, location, count); older files add a view."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise Malformed("a persistent id that is not a plain torch storage")
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, _StorageKind) or type(key) is not str or type(count) is not int or count < 0:
            raise Malformed("a torch storage with wrong fields")
        return Storage(self._storages.get(key, kind.dtype, count))


def unpickle(file: IO[bytes], path: Path, storages: Storages) -> object:
    """Load one pickle.

    Raises:
        UnsafePickle: it names something that is not allowed.
        BadFile: it is malformed, truncated or does not fit into memory.
    """
    return run(Unpickler(file, path, storages), path)


def run(unpickler: Unpickler, path: Path) -> object:
    """Do as `unpickle`, with an unpickler that is there already."""
    try:
        with collector_off():
            return unpickler.load()
    except LaionFaceError:
        raise
    except Exception as error:  # malformed bytes make the unpickler raise nearly anything: all of it means one thing
        raise bad_pickle(path, error) from error


def bad_pickle(path: Path, error: BaseException) -> BadFile:
    """Return the error for a pickle that cannot be read."""
    reason = " ".join(str(error).split())[:200] or "no reason given"
    return BadFile(
        path,
        found=f"a broken pickle ({type(error).__name__}: {reason})",
        expected="a whole file as torch.save writes it",
        way_out=_WAY_OUT,
    )


@contextmanager
def collector_off() -> Iterator[None]:
    """Turn Python's cyclic collector off meanwhile: it looks again and again at millions of objects without cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Sealed:
    """An object that a pickle can hold but not change: its BUILD opcode calls `__setstate__` where there is one."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise Malformed("state for something that has none")


class _Stamp(_Sealed):
    """An allowed function, sealed."""

    __slots__ = ("_make", "_name")

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *args: object) -> object:
        return self._make(*args)


class _StorageKind(_Sealed):
    """Stands for one of torch's storage classes."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        self.dtype = _DTYPES[code]


class Storage(_Sealed):
    """Stands for a torch storage: a flat array that tensors are views of."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers


class DType:
    """Stands for a NumPy dtype while it is being built: a plain number with a byte order."""

    __slots__ = ("numpy",)

    def __init__(self, code: object) -> None:
        if not isinstance(code, str) or code.lstrip("<>|=") not in _DTYPES:
            raise Malformed(f"dtype {code!r:.40}, not a plain number")
        self.numpy = _DTYPES[code.lstrip("<>|=")]

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags)
        if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise Malformed("a dtype that is not a plain number")
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that takes its content only if it is plain numbers and the bytes are all there."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if type(dtype) is not DType or type(raw) is not bytes:
            raise Malformed("an array that is not of plain numbers")
        if any(size < 0 for size in shape) or math.prod(shape) * dtype.numpy.itemsize != len(raw):
            raise Malformed("an array whose shape does not fit its bytes")
        super().__setstate__((1, shape, dtype.numpy, fortran, raw))


def _array(kind: object, shape: object, code: object) -> np.ndarray:
    # numpy's _reconstruct(ndarray, (0,), b"b"): an empty array whose content comes with BUILD.
    return np.ndarray.__new__(_Array, 0)


def _scalar(dtype: object, raw: object) -> Any:
    if type(dtype) is not DType or type(raw) is not bytes or len(raw) != dtype.numpy.itemsize:
        raise Malformed("a NumPy scalar that is not a plain number")
    return np.frombuffer(raw, dtype.numpy)[0]


def _dtype(code: object, align: object = False, copy: object = True) -> DType:
    return DType(code)


def _marker(*args: object) -> object:
    raise Malformed("a call of a class that is only ever named")


def _encode(text: object, codec: object) -> bytes:
    # How bytes are written in pickle protocol 2.
    if type(text) is not str or codec != "latin1":
        raise Malformed("_codecs.encode with something else than text and latin1")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    # How b"" is written in pickle protocol 2.
    return b""


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return set(items)


def _frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(items)


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *unused: object) -> np.ndarray:
    # torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks), as a view of the storage.
    if type(storage) is not Storage or len(size) != len(stride) or min(offset, *size, *stride, 0) < 0:
        raise Malformed("a tensor with wrong fields")
    numbers = storage.numbers
    count = math.prod(size)
    if count == 0:
        return np.empty(size, numbers.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(numbers) or count > len(numbers):
        raise Malformed("a tensor that is larger than its storage")
    steps = [step * numbers.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, steps)


RECONSTRUCT, SCALAR, NDARRAY, ENCODE = _Stamp(_array), _Stamp(_scalar), _Stamp(_marker), _Stamp(_encode)

#: (module, name) -> what stands for it. NumPy 2 renamed numpy.core; protocol 2 writes builtins as __builtin__.
ALLOWED: dict[tuple[str, str], object] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): SCALAR for core in ("core", "_core")},
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _Stamp(_dtype),
    ("_codecs", "encode"): ENCODE,
    ("collections", "OrderedDict"): _Stamp(_ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): _Stamp(_tensor),
    **{(module, "set"): _Stamp(_set) for module in ("builtins", "__builtin__")},
    **{(module, "frozenset"): _Stamp(_frozenset) for module in ("builtins", "__builtin__")},
    **{(module, "bytes"): _Stamp(_empty_bytes) for module in ("builtins", "__builtin__")},
    **{("torch", name): _StorageKind(code) for name, code in _STORAGES.items()},
}
