"""Unpickle plain data only: a customs desk, with no switch to wave anything else through.

A pickle is a program. The few names that honest files use are bound here to functions of our own, which check what
they are given and make numbers, NumPy arrays, sets and dicts, nothing else; not even NumPy's or torch's own functions
are called by a file. Any other name ends in `UnsafePickle` before anything was run.

The unpickler gets no opcode that `pickle_scan` has not looked at; sizes are exact ints, checked against the bytes that
are really there; and whatever else goes wrong is a `BadFile` that names the file.
"""

from __future__ import annotations

import gc
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from laion_face_builder.errors import BadFile, LaionFaceError, UnsafePickle
from laion_face_builder.torch_pickle.pickle_names import ALLOWED, Storage, StorageKind
from laion_face_builder.torch_pickle.pickle_scan import Scan
from laion_face_builder.torch_pickle.pickle_sizes import Malformed

_WAY_OUT = "Fetch the file again from its source; do not load it by other means."
_READ = 1 << 20


class Storages(Protocol):
    """Where the numbers of torch tensors come from."""

    def get(self, key: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """Return the storage called `key`: `count` numbers of `dtype`, one-dimensional."""


class NoStorages:
    """For pickles that have no tensors."""

    def get(self, key: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """Raise Malformed: there are none."""
        raise Malformed("a tensor where there is no storage")


class Scanned(io.RawIOBase):
    """The bytes of one pickle, given out once their opcodes have been looked at; ends behind its STOP.

    Args:
        file: stands at the start of the pickle, and behind its end afterwards if it can seek.
        size: how many bytes of it there are at most.
        scan: what looks at them.
    """

    def __init__(self, file: IO[bytes], size: int, scan: Scan) -> None:
        self._file = file
        self._left = size
        self._scan = scan
        self._ready = memoryview(b"")
        self._tail = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Give the next bytes, as few as there are; none behind the pickle.

        Raises:
            Malformed, EOFError: the next opcodes are not those of an honest pickle.
        """
        while not self._ready and not self._scan.is_done:
            self._look()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _look(self) -> None:
        wanted = min(_READ, self._left)
        new = self._file.read(wanted)
        self._left -= wanted
        if len(new) < wanted:
            raise EOFError("it ends too early")
        data = self._tail + new
        end = self._scan.feed(data, is_last=self._left == 0)
        self._ready, self._tail = memoryview(data)[:end], data[end:]
        if self._scan.is_done and self._file.seekable():
            self._file.seek(-len(self._tail), io.SEEK_CUR)


class Unpickler(pickle.Unpickler):
    """The C unpickler, limited to the names in `ALLOWED`.

    Args:
        file: what to read; stands behind the pickle afterwards if it can seek.
        path: named in errors.
        storages: gives the numbers of tensors; they are NumPy arrays afterwards.
        scan: looks at the opcodes first.
        size: bytes of the pickle, or of all that may be behind its start.
    """

    def __init__(self, file: IO[bytes], path: Path, storages: Storages, scan: Scan, size: int) -> None:
        # BufferedReader has `peek`, without which the unpickler asks for each few bytes anew.
        super().__init__(io.BufferedReader(Scanned(file, size, scan), min(_READ, max(size, 1))))
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
            pass
        if module == "torch" and name.endswith("Storage") and name.isalnum():
            # bfloat16 keeps eight bits of a number: too few for an id or a place in a picture.
            raise BadFile(
                self._path,
                found=f"a tensor of torch.{name}",
                expected="tensors of whole numbers, or of float16, float32 or float64",
                way_out="Use a copy with such tensors.",
            )
        raise UnsafePickle(
            self._path,
            found=f"the name {module:.100}.{name:.100} in a pickle",
            expected="only numbers, lists, dicts, sets, NumPy arrays and tensors",
            way_out=f"Nothing of it was run. {_WAY_OUT}",
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Return a tensor's storage, from ("storage", type, key, location, count); older files add a view."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or type(pid[0]) is not str or pid[0] != "storage":
            raise Malformed("a persistent id that is not a torch storage")
        _, kind, key, _, count, *view = pid
        if any(one is not None for one in view):
            raise Malformed("a torch storage that is a view of another")
        if type(kind) is not StorageKind or type(key) is not str or type(count) is not int or count < 0:
            raise Malformed("a torch storage with wrong fields")
        return Storage(self._storages.get(key, kind.dtype, count))


def unpickle(file: IO[bytes], path: Path, storages: Storages, size: int) -> object:
    """Load one pickle of at most `size` bytes.

    Raises:
        UnsafePickle: it names something that is not allowed.
        BadFile: it is malformed, truncated or does not fit into memory.
    """
    return run(Unpickler(file, path, storages, Scan(size), size), path)


def run(unpickler: Unpickler, path: Path) -> object:
    """Do as `unpickle`, with an unpickler that is there already."""
    with one_door(path), collector_off():
        return unpickler.load()


@contextmanager
def one_door(path: Path) -> Iterator[None]:
    """Turn whatever a file makes Python and NumPy raise into one error that names it: malformed bytes raise anything.

    Raises:
        BadFile: instead of all but our own errors and those of the disk.
    """
    try:
        yield
    except (LaionFaceError, OSError):
        raise
    except Exception as error:
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
