"""One progress bar: tqdm's, made to fit into a line of any width, and safe to use from several threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

from laion_face_builder.progress.base import Bar

#: From the richest to the poorest: the first one with room for the description, some notes and a bar is drawn.
_DONE = "{desc}: {percentage:3.0f}%"
_LOOKS = (
    (f"{_DONE}|{{bar}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}, {{rate_fmt}}{{postfix}}]", 8),
    (f"{_DONE}|{{bar}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}{{postfix}}]", 6),
    (f"{_DONE}|{{bar}}| {{n_fmt}}/{{total_fmt}}", 4),
    (f"{_DONE} {{n_fmt}}/{{total_fmt}}", 0),
    (_DONE, 0),
)
_WITHOUT_TOTAL = (
    ("{desc}: {n_fmt} [{elapsed}, {rate_fmt}{postfix}]", 0),
    ("{desc}: {n_fmt} [{elapsed}{postfix}]", 0),
    ("{desc}: {n_fmt}", 0),
)
#: Characters of a text that are worth showing.
_LEAST_TEXT = 8


class DrawnBar(tqdm, Bar):  # type: ignore[misc] # tqdm has no types
    """A bar on the terminal. Use `progress.bar`, which knows whether there is anybody to see it."""

    standing = ""
    text = ""
    notes: tuple[str, ...] = ()
    ticked = 0.0

    @classmethod
    def drawn(cls, standing: str, text: str, *, unit: str, **how: Any) -> DrawnBar:
        """Make a bar on stderr, and draw it.

        Args:
            standing: where the whole job stands, such as "part 3 of 13", or "".
            text: what is done.
            unit: what is counted; "B" for bytes.
            how: as for tqdm.
        """
        # Drawn as it is made: a line that is said meanwhile has to know of it.
        with cls.get_lock():
            made: DrawnBar = cls.__new__(cls)
            made.standing, made.text = standing, text
            tqdm.__init__(made, unit=unit, unit_scale=unit == "B", leave=False, file=sys.stderr, **how)
            return made

    def update(self, n: int = 1) -> Any:
        """Add `n` to what is done; from any thread."""
        with self.get_lock():
            return super().update(n)

    def tick(self) -> None:
        """Show that time passes, once a second."""
        if self._time() - self.ticked >= 1:
            self.ticked = self._time()
            self.refresh()

    def note(self, *notes: str) -> None:
        """Show these notes behind the counts, as many as there is room for, the first ones first."""
        self.notes = notes
        self.refresh()

    def close(self) -> None:
        """Remove the bar."""
        with self.get_lock():  # or a line would be said after it is forgotten and before it is gone
            super().close()

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar, unless the screen ends above it."""
        at = abs(self.pos) if pos is None else pos
        return False if at >= (self.nrows or 20) - 1 else super().display(msg, at)

    def __str__(self) -> str:
        encoding = getattr(sys.stderr, "encoding", None) or "ascii"
        return fitted(self.format_dict, (self.standing, self.text), self.notes, columns() - 1, encoding)


def columns() -> int:
    """Return the width of the terminal, or COLUMNS if that is less: a bar that is wrapped cannot be drawn over."""
    asked = os.environ.get("COLUMNS", "")
    try:
        there = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        there = 80
    return min(there, int(asked)) if asked.isdecimal() and int(asked) else there


def fitted(
    meter: dict[str, Any], described: tuple[str, str], notes: Sequence[str], width: int, encoding: str = "utf-8"
) -> str:
    """Return a bar as text of at most `width` columns, on a single line, in characters that `encoding` has.

    Args:
        meter: what `tqdm.format_meter` takes: n, total, elapsed, …
        described: where the whole job stands, or ""; and what is done.
        notes: shown as far as there is room.
        width: columns.
        encoding: of the terminal.
    """
    standing, text = (_plain(piece, encoding) for piece in described)
    notes = [_plain(note, encoding) for note in notes]
    given = {key: value for key, value in meter.items() if key not in ("prefix", "postfix", "bar_format", "ncols")}
    known = bool(meter["total"]) and meter["n"] <= meter["total"]
    given |= {"total": meter["total"] if known else None, "ascii": not encoding.lower().startswith("utf")}
    for look, bar, shown in _choices(_LOOKS if known else _WITHOUT_TOTAL, notes):
        given |= {"bar_format": look, "postfix": ", ".join(shown)}
        room = width - bar - _width(tqdm.format_meter(**given, prefix="x").replace("x", "", 1), bar)
        if (description := _described(standing, text, room, encoding)) is not None:
            return str(disp_trim(tqdm.format_meter(**given, prefix=description, ncols=width), width))
    return str(disp_trim(tqdm.format_meter(**given, prefix="").strip(), max(width, 0)))


def _choices(looks: Sequence[tuple[str, int]], notes: Sequence[str]) -> Iterator[tuple[str, int, Sequence[str]]]:
    """Yield every look, those that have notes with all of them and ever fewer; the richest with all of them only."""
    yield *looks[0], notes
    for look, bar in looks[1:]:
        for count in range(len(notes) if "postfix" in look else 0, -1, -1):
            yield look, bar, notes[:count]


def _width(line: str, bar: int) -> int:
    """Return the width of `line` without the ten columns that tqdm's bar has if there is no width to fill."""
    return int(disp_len(line)) - (10 if bar else 0)


def _described(standing: str, text: str, room: int, encoding: str) -> str | None:
    """Return where the job stands and what is done, the latter shortened; None if there is no room for them."""
    joint = ": " if standing and text else ""
    if disp_len(standing + joint + text) <= room:
        return standing + joint + text
    left = room - int(disp_len(standing + joint))
    if left >= _LEAST_TEXT:
        return standing + joint + shortened(text, left, encoding)
    return standing if standing and disp_len(standing) <= room else None


def shortened(text: str, width: int, encoding: str = "utf-8") -> str:
    """Leave out the middle of `text` if it is too long: a file's kind and number are at its ends."""
    if disp_len(text) <= width:
        return text
    gap = "…" if encoding.lower().startswith("utf") else ".."
    left = max(width - int(disp_len(gap)), 0)
    head = str(disp_trim(text, left // 2))
    tail = str(disp_trim(text[::-1], left - int(disp_len(head))))[::-1]
    return head + gap + tail


def _plain(text: str, encoding: str) -> str:
    """Return `text` in one line, in characters that the terminal has."""
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable.encode(encoding, "backslashreplace").decode(encoding)
