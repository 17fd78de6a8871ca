"""The request to take something down, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laion_face_builder.files import human_size
from laion_face_builder.index.exclusion import Exclusion
from laion_face_builder.layout import DataDir
from laion_face_builder.sources.hub import Token

#: How often something was taken out, by what it is; of those that end in "bytes" the sum.
Counts = Counter[str]


@dataclass(frozen=True)
class RemovalRequest:
    """What is to be taken down, and from where.

    Attributes:
        data: the DATA_DIR that is to keep to it from now on.
        listed: what is listed; None goes on with what was asked for before.
        reason: kept beside it; may be empty.
        from_metadata: a place with LAION's metadata: rows that it no longer has are taken down too.
        most_gone: how large a share of all rows these may be.
        from_published: a published folder or Hub dataset: what was taken down there is taken down too.
        targets: published folders and Hub datasets "owner/name".
        exports: folders of `laion-face export`.
        cache_images: the folder of a picture cache.
        cache_dir: where `datasets` keeps Arrow caches; None means its own default.
        revision: the branch of Hub datasets; None means "main".
        squash_history: earlier commits of Hub datasets are deleted.
    """

    data: DataDir
    listed: Exclusion | None = None
    reason: str = ""
    from_metadata: str | None = None
    most_gone: float = 0.2
    from_published: str | None = None
    targets: tuple[str, ...] = ()
    exports: tuple[Path, ...] = ()
    cache_images: Path | None = None
    cache_dir: Path | None = None
    revision: str | None = None
    token: Token = field(default=None, repr=False)
    squash_history: bool = False


@dataclass(frozen=True)
class TakenDown:
    """What was taken out of one place, or would be.

    Attributes:
        place: a part of DATA_DIR, or a folder, or a Hub dataset.
        counts: what, and how much of it.
    """

    place: str
    counts: Counts

    def __str__(self) -> str:
        said = ", ".join(
            f"{human_size(count)} of {name.removesuffix('_bytes')}" if name.endswith("_bytes") else f"{count:,} {name}"
            for name, count in self.counts.items()
            if count
        )
        return f"{self.place}: {said or 'nothing'}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for programs."""
        return {"place": self.place, "counts": {name: count for name, count in self.counts.items() if count}}


def total(taken: list[TakenDown]) -> Counts:
    """Return all that was taken out, of all places."""
    return sum((one.counts for one in taken), Counts())


def lines(taken: list[TakenDown]) -> Iterator[str]:
    """Yield a line for each place that had any of it, and one for all."""
    yield from (str(one) for one in taken if any(one.counts.values()))
    yield str(TakenDown("in all", total(taken)))
