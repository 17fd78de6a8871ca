"""Notice that somebody else has published to a place, or taken rows down from it, since work for it began.

What is sent is made for what the place held then. Sent all the same, it would bring back rows that were taken down in
between, or put older files over newer ones. What a place holds is known by its manifest, which every publish and every
removal changes before anybody can rely on it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from laion_face_builder.errors import StateConflict
from laion_face_builder.sources.hashes import git_hash_of


@dataclass(frozen=True)
class Basis:
    """The manifest of a place when what is sent there was made; `text` is None if it had none."""

    text: bytes | None = field(repr=False)

    @cached_property
    def _hashes(self) -> tuple[str, str] | None:
        return None if self.text is None else (hashlib.sha256(self.text).hexdigest(), git_hash_of(self.text))

    def require(self, place: str, stated: tuple[str | None, str | None] | None) -> None:
        """Check that the manifest there is still this one.

        Args:
            stated: its SHA-256 and what git names it by, as far as they are stated; None if there is none.

        Raises:
            StateConflict: it is another, or gone, or new.
        """
        if stated is None or self._hashes is None:
            is_same = stated is None and self._hashes is None
        else:
            is_same = any(mine == there for mine, there in zip(self._hashes, stated, strict=True))
        if not is_same:
            raise StateConflict(
                f"{place}: somebody else published there, or took rows down, since this began. Nothing is sent over "
                "that: the same command, run again, goes on from what is there now"
            )
