"""Look at a pickle's opcodes before the unpickler gets them, so that none crashes it, hangs it or floods its memory.

The C unpickler believes what it reads: a memo index of 2**28 costs 4 GB, a tuple nested a million deep overflows the C
stack when it is hashed, and thirty lists of two references each are a billion objects to whoever walks them. So a
pickle is first run on numbers alone. For each object there is one: how deep it is, and about how many bytes it and all
in it take, shared ones counted each time. A pickle is refused

- with an opcode that Python's pickler does not write in protocol 2 or newer, or a length that is not in the file;
- with a memo index that no pickler reaches in so many bytes;
- with objects more than `DEEPEST` deep, more than `MOST_BYTES` times as large as the file, or within themselves;
- with a container as a key of a dict or in a set;
- that changes an object that is finished.

What is left to an allow-listed name is a matter of the functions that stand for these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any

from laion_face_builder.torch_pickle.pickle_idioms import NUMBERS, NUMBERS_BYTES, Idioms
from laion_face_builder.torch_pickle.pickle_sizes import (
    A_DICT,
    A_LIST,
    A_SET,
    ALWAYS_NOTED,
    BYTES,
    DEEPEST,
    DEPTH,
    DICT_NAME,
    DICT_TEXT,
    ENCODE,
    LARGE_INT,
    NAME,
    NOTED,
    NUMBER,
    RECONSTRUCT,
    SCALAR,
    SMALL,
    SMALL_BYTES,
    SMALL_DEPTH,
    Malformed,
    Sizes,
    check_keys,
)

#: Objects that may wait on the stack for their container: a tuple of all ids of a part is one and a half million.
_MOST_WAITING = 1 << 22
#: A pickler numbers what it memoises, and needs six bytes for each from 256 on.
_BYTES_A_MEMO = 6
#: Bytes of the longest whole number; torch's magic number.
_LONGEST_INT = 10
#: Bytes of the longest line of a name.
_LONGEST_LINE = 256
#: Bytes of a pickle that make it worth to know its idioms.
_WORTH_IT = 1 << 20
#: Bytes that an opcode needs with all but its payload.
_LONGEST = 2 * _LONGEST_LINE + 8

_EMPTY = {ord("]"): (A_LIST, 72), ord("}"): (A_DICT, 64), 0x8F: (A_SET, 216)}

_SCALARS = {ord("K"): 1, ord("M"): 2, ord("J"): 4, ord("G"): 8, ord("N"): 0, 0x88: 0, 0x89: 0}
_FOUR, _EIGHT = Struct("<I").unpack_from, Struct("<Q").unpack_from
#: Opcode -> bytes of its length: text (two kinds of Python 2), bytes, bytearray.
_PAYLOADS = {
    **dict.fromkeys((ord("X"), ord("B"), ord("T")), 4),
    **dict.fromkeys((0x8C, ord("C"), ord("U")), 1),
    **dict.fromkeys((0x8D, 0x8E, 0x96), 8),
}
_DICT_TEXTS = (b"OrderedDict", b"defaultdict")
_NAMES = {
    **{b"collections\n" + text: DICT_NAME for text in _DICT_TEXTS},
    **{b"numpy.%s.multiarray\n_reconstruct" % core: RECONSTRUCT for core in (b"core", b"_core")},
    **{b"numpy.%s.multiarray\nscalar" % core: SCALAR for core in (b"core", b"_core")},
    b"_codecs\nencode": ENCODE,
}
_TUPLES = {ord(")"): 0, 0x85: 1, 0x86: 2, 0x87: 3}


class Scan(Sizes):
    """Runs a pickle's opcodes on the sizes of objects.

    Args:
        size: bytes of the pickle, or of all that may be behind its start.
        whole: bytes of the file of which this is a piece; its memo indices are those of the whole.
        memo: `memo` of the scan of the file's first piece.
    """

    def __init__(self, size: int, whole: int | None = None, memo: Mapping[int, Any] | None = None) -> None:
        super().__init__(size, memo or {})
        self.is_done = False
        self._left = size
        self._most_memo = 256 + (whole or size) // _BYTES_A_MEMO
        self._memoised = 0
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._skip = 0
        self._idioms: Idioms | None = None

    def feed(self, data: bytes, *, is_last: bool) -> int:
        """Look at the opcodes that are whole in `data`; return where the others start.

        Raises:
            Malformed, EOFError, IndexError: not an honest pickle.
        """
        at = min(self._skip, len(data))
        self._skip -= at
        if not self._skip:
            code = data + bytes(_LONGEST) if is_last else data
            at = self._run(code, at, len(data) if is_last else len(data) - _LONGEST)
            if at > len(data):
                self._skip, at = at - len(data), len(data)
        self._left -= at
        if (is_last and not self.is_done) or self._skip > self._left:
            raise EOFError("it ends too early")
        if sum(map(len, self._below)) + len(self._stack) > _MOST_WAITING:
            raise Malformed(f"more than {_MOST_WAITING} objects in one container's brackets")
        return at

    def _known_idioms(self) -> Idioms | None:
        """Return the idioms of this file if it is large enough for them, and once the memo has their names."""
        if self._idioms is None and self._left > _WORTH_IT:
            idioms = Idioms(self.memo, self._most_memo)
            if idioms.is_known:
                self._idioms, self.trusted = idioms, idioms.trusted
        return self._idioms

    def _run(self, data: bytes, at: int, end: int) -> int:  # noqa: PLR0912, PLR0915
        """Run the opcodes from `at` on; return where the first one behind `end` starts, or what is behind STOP."""
        # One loop with all state at hand: this is run for each opcode, a hundred million of them in a full part.
        stack, memo = self._stack, self.memo
        idioms = self._known_idioms()
        while at < end:
            op = data[at]
            if op in {114, 113}:  # LONG_BINPUT, BINPUT
                if op == 0x72:
                    index = _FOUR(data, at + 1)[0]
                    at += 5
                else:
                    index = data[at + 1]
                    at += 2
                if index > self._most_memo:
                    raise Malformed(f"the memo index {index}, above {self._most_memo}")
                top = stack[-1]
                if (
                    top.__class__ is list
                    or index < ALWAYS_NOTED
                    or len(memo) < NOTED
                    or top & BYTES > SMALL_BYTES
                    or top >> DEPTH > SMALL_DEPTH
                ):
                    self.note(index, top)
            elif op in {104, 106}:  # BINGET, LONG_BINGET
                if idioms and not self.is_distrusted and (idiom := idioms.match(data, at)):
                    made, at = idiom
                    stack.append(made)
                    continue
                if op == 0x68:
                    index = data[at + 1]
                    at += 2
                else:
                    index = _FOUR(data, at + 1)[0]
                    at += 5
                known = memo.get(index, SMALL)
                stack.append(self.finished(known) if known.__class__ is list else known)
            elif op in _SCALARS:
                stack.append(NUMBER)
                at += 1 + _SCALARS[op]
            elif op in _TUPLES:
                count = _TUPLES[op]
                items = stack[-count:] if count else []
                if len(items) < count:
                    raise Malformed("a tuple of what is not there")
                if count:
                    del stack[-count:]
                stack.append(self.tuple_of(items))
                at += 1
            elif op in _PAYLOADS:
                width = _PAYLOADS[op]
                if width == 4:
                    size = _FOUR(data, at + 1)[0]
                elif width == 1:
                    size = data[at + 1]
                else:
                    size = _EIGHT(data, at + 1)[0]
                at += 1 + width + size
                if at > self._left:
                    raise Malformed(f"a text or bytes of {size} where the file has fewer")
                stack.append(DICT_TEXT if size == 11 and data[at - 11 : at] in _DICT_TEXTS else 56 + size)
            elif op in {82, 129}:  # REDUCE, NEWOBJ
                args = stack.pop()
                stack[-1] = self.called(stack[-1], args)
                at += 1
            elif op == 0x28:  # MARK
                if numbers := NUMBERS.match(data, at):
                    size = NUMBERS_BYTES * (numbers.end() - at)
                    if numbers[1] == b"e":
                        self.fill(stack[-1], A_LIST, [size], 0)
                    else:
                        stack.append(self.checked(size, 1))
                    at = numbers.end()
                    continue
                self._below.append(stack)
                if len(self._below) > DEEPEST:
                    raise Malformed(f"containers more than {DEEPEST} deep")
                self._stack = stack = []
                at += 1
            elif op == 0x74:  # TUPLE
                items = stack
                self._stack = stack = self._below.pop()
                stack.append(self.tuple_of(items))
                at += 1
            elif op == 0x62:  # BUILD
                size, _ = self.finish([stack.pop()])
                if stack[-1].__class__ is list:
                    raise Malformed("state for a list, dict or set")
                stack[-1] = self.checked((stack[-1] & BYTES) + size, stack[-1] >> DEPTH)
                at += 1
            elif op in _EMPTY:
                kind, size = _EMPTY[op]
                stack.append([kind, size, 1, None])
                at += 1
            elif op in {101, 97}:  # APPENDS, APPEND
                if op == 0x65:
                    items = stack
                    self._stack = stack = self._below.pop()
                else:
                    items = [stack.pop()]
                self.fill(stack[-1], A_LIST, items, 8)
                at += 1
            elif op in {117, 115}:  # SETITEMS, SETITEM
                if op == 0x75:
                    items = stack
                    self._stack = stack = self._below.pop()
                else:
                    items = stack[-2:]
                    del stack[-2:]
                if len(items) % 2:
                    raise Malformed("a key without a value")
                check_keys(items[::2])
                self.fill(stack[-1], A_DICT, items, 50)
                at += 1
            elif op == 0x94:  # MEMOIZE
                self.note(self._memoised, stack[-1])
                self._memoised += 1
                at += 1
            elif op == 0x8A:  # LONG1
                size = data[at + 1]
                if size > _LONGEST_INT:
                    raise Malformed(f"a whole number of {size} bytes")
                stack.append(NUMBER if size <= 8 else LARGE_INT)
                at += 2 + size
            elif op == 0x63:  # GLOBAL
                middle = data.find(b"\n", at, at + _LONGEST_LINE)
                stop = data.find(b"\n", middle + 1, middle + _LONGEST_LINE)
                if middle < 0 or stop < 0:
                    raise Malformed("a name without an end")
                stack.append(_NAMES.get(data[at + 1 : stop], NAME))
                at = stop + 1
            elif op == 0x93:  # STACK_GLOBAL
                name = stack.pop()
                stack[-1] = DICT_NAME if name == DICT_TEXT else NAME
                at += 1
            elif op == 0x51:  # BINPERSID
                size, _ = self.finish([stack.pop()])
                stack.append(self.checked(size, 0))
                at += 1
            elif op in {144, 145}:  # ADDITEMS, FROZENSET
                items = stack
                self._stack = stack = self._below.pop()
                check_keys(items)
                if op == 0x90:
                    self.fill(stack[-1], A_SET, items, 64)
                else:
                    size, _ = self.finish(items)
                    stack.append(self.checked(216 + size + 64 * len(items), 1))
                at += 1
            elif op == 0x80:  # PROTO
                at += 2
            elif op == 0x95:  # FRAME
                if _EIGHT(data, at + 1)[0] > self._left:
                    raise Malformed("a frame that is longer than the file")
                at += 9
            elif op == 0x2E:  # STOP
                if self._below or len(stack) != 1:
                    raise Malformed("objects that are left over at its end")
                self.is_done = True
                return at + 1
            elif op == 0x92:  # NEWOBJ_EX
                stack.pop()
                args = stack.pop()
                stack[-1] = self.called(stack[-1], args)
                at += 1
            else:
                raise Malformed(f"the opcode {bytes([op])!r}, which is not of protocol 2 or newer")
        return at
