"""Say of objects that a pickle would make how large and how deep they are, without making them.

An object that is finished is one number. One that is being filled is a short list, until it is put into another. Shared
objects count each time that they are met, as for whoever walks them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: No honest file has more than ten levels.
DEEPEST = 32
#: Bytes of objects that a byte of a pickle may stand for, in a pickle larger than a few megabytes. The worst that is
#: honest, a dict of ids and empty lists, has 29.
MOST_BYTES = 32
_SPARE_BYTES = 16 << 20

# An object that is finished is one number: its depth above its bytes.
DEPTH = 60
BYTES = (1 << DEPTH) - 1
NUMBER = 32
NAME = 9
#: Names that `pickle_idioms` looks for.
RECONSTRUCT, ENCODE, SCALAR = 12, 13, 14
#: A name whose call makes a dict that items are put into, and the text of it. As deep as what is always noted.
DICT_NAME, DICT_TEXT = (3 << DEPTH) + 10, (3 << DEPTH) + 11
#: Neither a key nor in a set: from 2**61 on Python's hashes of ints repeat.
LARGE_INT = (3 << DEPTH) + 40
#: What the memo gives where nothing is noted: an object of few bytes, two deep at most.
SMALL = (2 << DEPTH) + 16
SMALL_DEPTH = 2
SMALL_BYTES = 4096
#: The first so many are noted even if they are small: the names that all later objects refer to.
NOTED = 4096
#: Below this place all are noted, and anew if they change.
ALWAYS_NOTED = 256

# An object that is being filled: a list of these four.
_KIND, _OWN_BYTES, _OWN_DEPTH, _INDEX = range(4)
A_LIST, A_DICT, A_SET, _FINISHED = range(4)


class Malformed(ValueError):
    """A pickle has something that NumPy, torch and Python do not write."""


class Sizes:
    """The sizes of a pickle's objects, and its memo.

    Args:
        size: bytes of the pickle, or of all that may be behind its start.
        memo: what the scan of the file's first piece has noted, for a later piece.
    """

    def __init__(self, size: int, memo: Mapping[int, Any]) -> None:
        self.memo: dict[int, Any] = dict(memo)
        self._most_bytes = MOST_BYTES * size + _SPARE_BYTES
        #: Places of the memo that may not change without `is_distrusted` being set.
        self.trusted: frozenset[int] = frozenset()
        self.is_distrusted = False

    def note(self, index: int, top: Any) -> None:
        """Note what the memo has under an index."""
        if top.__class__ is list:
            if top[_INDEX] is not None:
                raise Malformed("an object with two places in the memo")
            top[_INDEX] = index
        elif (
            index >= ALWAYS_NOTED
            and len(self.memo) >= NOTED
            and top & BYTES <= SMALL_BYTES
            and top >> DEPTH <= SMALL_DEPTH
        ):
            return
        self.is_distrusted |= index in self.trusted
        self.memo[index] = top

    def finished(self, item: list[Any]) -> int:
        """Return the number of an object that is referred to: nothing may be put into it from now on."""
        _, size, depth, _ = item
        item[_KIND] = _FINISHED
        return (int(depth) << DEPTH) + int(size)

    def finish(self, items: list[Any]) -> tuple[int, int]:
        """Return bytes and depth of these together; those that are still being filled are finished now."""
        try:
            return sum(items) & BYTES, max(items, default=0) >> DEPTH
        except TypeError:
            pass
        size = depth = 0
        for item in items:
            if item.__class__ is list:
                _, own_size, own_depth, index = item
                if index is not None and self.memo.get(index) is item:
                    if own_size > SMALL_BYTES or own_depth > SMALL_DEPTH:
                        self.memo[index] = (own_depth << DEPTH) + own_size
                    else:
                        del self.memo[index]
            else:
                own_size, own_depth = item & BYTES, item >> DEPTH
            size += own_size
            depth = max(depth, own_depth)
        return size, depth

    def tuple_of(self, items: list[Any]) -> int:
        """Return a tuple's number."""
        size, depth = self.finish(items)
        return self.checked(48 + 8 * len(items) + size, depth + 1)

    def called(self, name: Any, args: Any) -> Any:
        """Return what a call gives: an object that holds no deeper ones."""
        if name.__class__ is list or args.__class__ is list:
            raise Malformed("a call of something, or with something, that is no tuple")
        if name == DICT_NAME:
            return [A_DICT, 200 + (args & BYTES), 1, None]
        return self.checked(64 + (args & BYTES), 1)

    def fill(self, target: Any, kind: int, items: list[Any], bytes_an_item: int) -> None:
        """Put items into an object that is being filled."""
        if target.__class__ is not list or target[_KIND] != kind:
            raise Malformed("items for an object that is finished, or within itself, or of another kind")
        size, depth = self.finish(items)
        target[_OWN_BYTES] += size + bytes_an_item * len(items)
        target[_OWN_DEPTH] = max(target[_OWN_DEPTH], depth + 1)
        self.checked(target[_OWN_BYTES], target[_OWN_DEPTH])

    def checked(self, size: int, depth: int) -> int:
        """Return the number of an object of so many bytes and so deep.

        Raises:
            Malformed: it is too large, or too deep.
        """
        if depth > DEEPEST:
            raise Malformed(f"objects more than {DEEPEST} deep")
        if size > self._most_bytes:
            raise Malformed(f"objects of more than {self._most_bytes} bytes, shared ones counted each time")
        return (depth << DEPTH) + size


def check_keys(keys: list[Any]) -> None:
    """Refuse what takes long to hash, or cannot be: only a small tuple from the memo is still let through."""
    try:
        if max(keys, default=0) >> DEPTH <= SMALL_DEPTH:
            return
    except TypeError:  # one that is being filled
        pass
    raise Malformed("a key that can be no sample id, number or text")
