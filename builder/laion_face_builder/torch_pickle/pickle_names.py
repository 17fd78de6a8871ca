"""What stands for the names that honest pickles call: functions of ours, which make numbers, arrays, sets and dicts.

Each checks what it is given, as a hostile file calls them with anything: sizes are exact ints, bytes are all there, and
what goes into a set or becomes a key is hashed in no time. `ALLOWED` is all there is.
"""

from __future__ import annotations

import math
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from laion_face_builder.torch_pickle.pickle_sizes import Malformed

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
#: What can be in a set, or a key: nothing that has to be walked to be hashed.
_HASHED = (int, float, str, bytes, bool, type(None))
#: An array without numbers may still have sizes up to this one.
_MOST_EMPTY = 1 << 31


class _Sealed:
    """An object that a pickle can hold but not change: its BUILD opcode calls `__setstate__` where there is one."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise Malformed("state for something that has none")


class Stamp(_Sealed):
    """An allowed function, sealed."""

    __slots__ = ("_make", "_name")

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *args: object) -> object:
        """Do what it stands for."""
        return self._make(*args)


class StorageKind(_Sealed):
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
        if type(code) is not str or code.lstrip("<>|=") not in _DTYPES:
            raise Malformed(f"dtype {reprlib.repr(code)}, not a plain number")
        self.numpy = _DTYPES[code.lstrip("<>|=")]

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags)
        is_plain = type(state) is tuple and len(state) == 8 and all(one is None for one in state[2:5])
        order: Any = state[1] if is_plain else None
        if type(order) is not str or order not in ("<", ">", "|", "="):
            raise Malformed("a dtype that is not a plain number")
        if order in ("<", ">"):
            self.numpy = self.numpy.newbyteorder("<" if order == "<" else ">")


class _Array(np.ndarray):
    """An array that takes its content once, and only if it is plain numbers and the bytes are all there."""

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or self.size or self.base is not None:
            raise Malformed("an array with a state that is not one, or a second one")
        _, shape, dtype, fortran, raw = state
        _check_array(shape, dtype, raw)
        if type(fortran) is not bool and type(fortran) is not int:
            raise Malformed("an array whose order is not true or false")
        plain: Any = (1, shape, dtype.numpy, bool(fortran), bytes(raw))
        super().__setstate__(plain)


def _check_array(shape: object, dtype: object, raw: object) -> None:
    """Raise Malformed if these are not the shape, type and bytes of one array."""
    if type(dtype) is not DType or type(raw) not in (bytes, bytearray):
        raise Malformed("an array that is not of plain numbers")
    sizes = _sizes(shape, "an array's shape")
    # An empty array's other sizes are bounded by nothing else.
    if math.prod(sizes) * dtype.numpy.itemsize != len(raw) or max(sizes, default=0) > max(len(raw), _MOST_EMPTY):  # type: ignore[arg-type]
        raise Malformed("an array whose shape does not fit its bytes")


def _sizes(values: object, name: str) -> tuple[int, ...]:
    """Return `values` if they are a tuple of ints: a NumPy integer overflows where an int grows."""
    if type(values) is not tuple or any(type(value) is not int or value < 0 for value in values):
        raise Malformed(f"{name} that is not of whole numbers from 0 on")
    return values


def _array(kind: object, shape: object, code: object) -> np.ndarray:
    # numpy's _reconstruct(ndarray, (0,), b"b"): an empty array whose content comes with BUILD.
    return np.ndarray.__new__(_Array, 0)


def _scalar(dtype: object, raw: object) -> Any:
    if type(dtype) is not DType or type(raw) is not bytes or len(raw) != dtype.numpy.itemsize:
        raise Malformed("a NumPy scalar that is not a plain number")
    return np.frombuffer(raw, dtype.numpy)[0]


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: object) -> np.ndarray:
    # How arrays are written in pickle protocol 5.
    _check_array(shape, dtype, raw)
    if order not in ("C", "F"):
        raise Malformed("an array that is neither row-major nor column-major")
    return np.frombuffer(raw, dtype.numpy).reshape(shape, order=order).view(_Array)


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
    return set(_checked_items(items))


def _frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(_checked_items(items))


def _checked_items(items: Iterable[Any]) -> list[Any]:
    """Return the items as a list if they are all cheap to hash, and no ints large enough for equal hashes."""
    items = list(items)
    for kind in set(map(type, items)):
        if kind not in _HASHED and not issubclass(kind, np.generic):
            raise Malformed(f"a set with a {kind.__name__} in it")
        if kind is int and not all(-(1 << 63) <= item < 1 << 64 for item in items if type(item) is int):
            raise Malformed("a set with a whole number of more than 64 bits")
    return items


def _ordered_dict(pairs: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
    # Python 2 gives the items as a list of pairs.
    pairs = [(key, value) for key, value in pairs]
    _checked_items(key for key, _ in pairs)
    return OrderedDict(pairs)


def _default_dict(default: object = None) -> dict[Any, Any]:
    # Read as a plain dict: what it gives for keys that it has not is of no use to anybody here.
    return {}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *unused: object) -> np.ndarray:
    # torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks), as a view of the storage.
    sizes, strides = _sizes(size, "a tensor's size"), _sizes(stride, "a tensor's stride")
    if type(storage) is not Storage or len(sizes) != len(strides) or type(offset) is not int or offset < 0:
        raise Malformed("a tensor with wrong fields")
    numbers = storage.numbers
    count = math.prod(sizes)
    if max(sizes, default=0) > max(len(numbers), _MOST_EMPTY):
        raise Malformed("a tensor that is larger than its storage")
    if count == 0:
        return np.empty(sizes, numbers.dtype).view(_Array)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if last >= len(numbers) or count > len(numbers):
        raise Malformed("a tensor that is larger than its storage")
    steps = [step * numbers.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], sizes, steps).view(_Array)


RECONSTRUCT, SCALAR, NDARRAY, ENCODE = Stamp(_array), Stamp(_scalar), Stamp(_marker), Stamp(_encode)
SET, FROZENSET = Stamp(_set), Stamp(_frozenset)
_BUILTINS = ("builtins", "__builtin__")

#: (module, name) -> what stands for it. NumPy 2 renamed numpy.core; protocol 2 writes builtins as __builtin__.
ALLOWED: dict[tuple[str, str], object] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): SCALAR for core in ("core", "_core")},
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): Stamp(_dtype),
    ("_codecs", "encode"): ENCODE,
    ("collections", "OrderedDict"): Stamp(_ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): Stamp(_tensor),
    ("collections", "defaultdict"): Stamp(_default_dict),
    **{(f"numpy.{core}.numeric", "_frombuffer"): Stamp(_frombuffer) for core in ("core", "_core")},
    **{(module, "set"): SET for module in _BUILTINS},
    **{(module, "frozenset"): FROZENSET for module in _BUILTINS},
    **{(module, "bytes"): Stamp(_empty_bytes) for module in _BUILTINS},
    # What a defaultdict may name as its default.
    **{(module, name): Stamp(_marker) for module in _BUILTINS for name in ("list", "dict", "int", "float")},
    **{("torch", name): StorageKind(code) for name, code in _STORAGES.items()},
}
