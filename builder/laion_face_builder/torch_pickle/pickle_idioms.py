"""Know the sequences of opcodes that files are full of, so that the scan takes each in one step.

A face of two arrays and a NumPy scalar is eighty opcodes. A regular expression finds all of them at once, the names in
it being those that the memo has; it says of no object more than one opcode after the other would.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from laion_face_builder.torch_pickle.pickle_sizes import (
    ALWAYS_NOTED,
    BYTES,
    DEPTH,
    ENCODE,
    RECONSTRUCT,
    SCALAR,
    SMALL_BYTES,
)

#: Bytes of the longest payload in an idiom; so that no array is larger than its number below says.
_LONGEST = 160
#: Sizes that are not below the true ones.
_ARRAY, _SCALAR, _FACE = (1 << DEPTH) + 1300, (1 << DEPTH) + 1000, (2 << DEPTH) + 4000

_LONG = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(1, 9))
_INT_OR_FLOAT = b"(?:K.|M..|J.{4}|G.{8}|\\x8a(?:" + _LONG + b"))"
#: A batch of a list of numbers; a tuple of numbers.
NUMBERS = re.compile(b"\\(" + _INT_OR_FLOAT + b"{1,1000}([et])", re.DOTALL)
#: Bytes of objects for each byte of it: a small int has two bytes, and eight in the list.
NUMBERS_BYTES = 20


class Idioms:
    """What stands for arrays, scalars and faces of a file whose names are in the memo.

    Attributes:
        trusted: the memo's places of these names; when one changes, this is of no use any more.
    """

    def __init__(self, memo: Mapping[int, Any], most_memo: int) -> None:
        plain = {i: code for i, code in memo.items() if i < ALWAYS_NOTED and type(code) is int and code >> DEPTH <= 1}
        small = [i for i, code in plain.items() if code & BYTES <= SMALL_BYTES]
        names = {code: i for i, code in plain.items() if code in (RECONSTRUCT, ENCODE, SCALAR)}
        self.trusted = frozenset(small)
        self._pattern = _pattern({code: _get([i]) for code, i in names.items()}, _get(small), most_memo)

    @property
    def is_known(self) -> bool:
        """Tell whether the memo has all names."""
        return self._pattern is not None

    def match(self, data: bytes, at: int) -> tuple[int, int] | None:
        """Return the number of the object that is made from `at` on, and where it ends."""
        found = self._pattern.match(data, at) if self._pattern else None
        return (_NUMBERS[found.lastgroup], found.end()) if found and found.lastgroup else None


_NUMBERS = {"array": _ARRAY, "scalar": _SCALAR, "face": _FACE}


def _get(indices: list[int]) -> bytes:
    return b"h[" + b"".join(b"\\x%02x" % index for index in indices) + b"]"


def _pattern(get: Mapping[int, bytes], plain: bytes, most_memo: int) -> re.Pattern[bytes] | None:
    if len(get) < 3:
        return None
    # Both bytes above the lower two, or the highest: what is above the bound by less than 2**24 costs little there.
    high = (
        b"..[\\x00-\\x%02x]\\x00" % (most_memo >> 16)
        if most_memo < 1 << 24
        else b"...[\\x00-\\x%02x]" % (most_memo >> 24)
    )
    put = b"r(?!.\x00\x00\x00)" + high
    texts = b"|".join(b"\\x%02x\\x00\\x00\\x00.{%d}" % (size, size) for size in range(_LONGEST + 1))
    raw = get[ENCODE] + b"X(?:" + texts + b")" + put + plain + b"\\x86" + put + b"R" + put
    start = get[RECONSTRUCT] + plain + b"K\\x00\\x85" + put + plain + b"\\x87" + put + b"R" + put
    shape = b"(?:\\)|K.\\x85" + put + b"|K.K.\\x86" + put + b")"
    array = start + b"\\(K\\x01" + shape + plain + b"[\\x88\\x89]" + raw + b"t" + put + b"b"
    scalar = get[SCALAR] + plain + raw + b"\\x86" + put + b"R" + put
    face = array + array + scalar + b"\\x87" + put
    return re.compile(b"(?P<face>" + face + b")|(?P<array>" + array + b")|(?P<scalar>" + scalar + b")", re.DOTALL)
