"""A terminal to run commands in; its screen knows what a program of ours may send: text, \\r, \\n, ESC[A, ESC[K."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence

_PIECES = re.compile(r"\r|\n|\x1b\[A|\x1b\[K|[^\r\n\x1b]+")


class Screen:
    """What is seen, and what has scrolled away, as one long sheet. A line that was too long is one line here."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.joined = [False]  # whether a row goes on with the row above
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        at = 0
        for piece in _PIECES.finditer(text):
            assert piece.start() == at, f"not known here: {text[at : at + 20]!r}"
            at = piece.end()
            self._take(piece[0])
        assert at == len(text), f"not known here: {text[at : at + 20]!r}"

    def _take(self, piece: str) -> None:
        if piece == "\r":
            self.column = 0
        elif piece == "\n":
            self._down(joined=False)
        elif piece == "\x1b[A":
            self.row = max(self.row - 1, 0)
        elif piece == "\x1b[K":
            del self.rows[self.row][self.column :]
        else:
            for char in piece:
                self._put(char)

    def _put(self, char: str) -> None:
        if self.column == self.columns:
            self.column = 0
            self._down(joined=True)
        row = self.rows[self.row]
        row += " " * (self.column - len(row))
        row[self.column : self.column + 1] = char
        self.column += 1

    def _down(self, joined: bool) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])
            self.joined.append(False)
        if joined:
            self.joined[self.row] = True

    def lines(self, but: int | None = None, first: int = 0) -> list[str]:
        """Return the lines that are not empty, of the rows from `first` on; without that of row `but`."""
        found: list[tuple[str, list[int]]] = []
        rows = zip(self.rows[first:], self.joined[first:], strict=True)
        for number, (row, joined) in enumerate(rows, first):
            text = "".join(row)
            if joined and found:
                above, numbers = found[-1]
                found[-1] = above + text, [*numbers, number]
            else:
                found.append((text, [number]))
        return [text.rstrip() for text, rows in found if text.strip() and but not in rows]


def run_in_terminal(
    command: Sequence[str],
    columns: int,
    env: Mapping[str, str],
    seen: Callable[[Screen], object] | None = None,
    rows: int = 50,
) -> tuple[int, Screen, str]:
    """Run `command` in a terminal of that size; return its exit code, the screen and all that it sent.

    `seen(screen)` is called with what is there after each line.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=env, start_new_session=True)
    os.close(its)
    screen, sent, rest = Screen(columns), [], b""
    try:
        while piece := _read(ours):
            sent.append(piece)
            # A character or a sequence that was cut is for the next time.
            text = (rest + piece).decode("utf-8", "surrogateescape")
            cut = re.search(r"(\x1b\[?|[\udc80-\udcff]+)\Z", text)
            rest = cut[0].encode("utf-8", "surrogateescape") if cut else b""
            # By lines: however much came at once, whoever watches sees what was there between.
            for line in (text[: cut.start()] if cut else text).splitlines(keepends=True):
                screen.feed(line)
                if seen is not None:
                    seen(screen)
        return process.wait(timeout=60), screen, b"".join(sent).decode("utf-8", "replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how Linux says that the other end is closed
        return b""
