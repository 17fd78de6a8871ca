"""Count what is done of a job, and draw nothing: what every kind of bar has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Bar:
    """A bar that counts what is done, and draws nothing. Use as a context manager; see `bar`."""

    def __init__(self, done: int = 0) -> None:
        self.n = done

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> Any:
        """Add `n` to what is done; from any thread."""
        self.n += n

    def advance_to(self, n: int) -> None:
        """Set what is done in all to `n`."""
        self.update(n - self.n)

    def tick(self) -> None:
        """Show that time passes where nothing gets done for long."""

    def note(self, *notes: str) -> None:
        """Show these notes behind the counts, as many as there is room for, the first ones first."""

    def counting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count each when the next one is asked for."""
        with self:
            for item in items:
                yield item
                self.update()

    def close(self) -> None:
        """Remove the bar."""
