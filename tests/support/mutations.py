"""Change bytes at random: bits, numbers at the edges of their range, pieces left out, repeated, or put elsewhere."""

from __future__ import annotations

import random
import struct

EDGES = (0, 1, 2, 4, 127, 128, 255, 256, 65535, 1 << 16, 1 << 24, 1 << 28, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def mutated(rng: random.Random, raw: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """Return bytes with one to four changes between `start` and `stop`, rather near `start`."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        end = len(data) if stop is None else min(stop, len(data))
        at = start + int((max(end, start + 1) - start) * rng.random() ** rng.choice([1, 3]))
        kind = rng.randrange(7)
        if kind < 2 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and at < len(data):
            data[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif kind == 3:
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(EDGES))
        elif kind == 4:
            del data[at : at + rng.choice([1, 1, 2, 5, 40, 1000])]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice([1, 2, 5, 40, 300])] * rng.choice([1, 1, 2, 50])
        else:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 4, 40]))
    return bytes(data)
