"""Make a local index part from a published one, whichever program saved that last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laion_face_builder import progress
from laion_face_builder.errors import StateConflict
from laion_face_builder.files import (
    Fingerprint,
    digest,
    locked,
    make_fingerprint,
    read_fingerprint,
    remove_partials,
)
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.prepare_plan import has_pictures
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import REMOVED_THERE, STAMP, Removals, as_made, settled
from laion_face_builder.index.withheld import Withheld
from laion_face_builder.index.writer import kept_rows, proof_path, write_kept
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.shown import shown
from laion_face_builder.sources.hub import Token


def copy_parts(data: DataDir, parts: Sequence[int], place: str, token: Token = None) -> None:
    """Make the local index of `parts` from a published one, as far as it is not there yet; nothing else is needed.

    Args:
        place: as for `published.find_published`.

    Raises:
        SourceError: a part is not there, or cannot be had; BadFile: it is no index.
        StateConflict: pictures were downloaded for another index.
    """
    settled(data)
    with progress.bar("prepare", len(parts)) as bar:
        for number, part in enumerate(parts, 1):
            with progress.nth("part", number, len(parts)), locked(data.index(part)):
                _copy_part(data, part, place, token)
            bar.update()


@dataclass(frozen=True)
class CopyPlan:
    """The copying of one part: what lies in DATA_DIR, and what the published index has.

    Attributes:
        place: where the published index is.
        ours: what the local index was made from; None if there is none.
        theirs: the fingerprint that the copy would carry.
        size: compressed bytes of the part's rows in the published index.
        is_remote: whether they come over the network.
    """

    data: DataDir
    part: int
    place: str
    ours: Fingerprint | None
    theirs: Fingerprint
    size: int
    is_remote: bool

    @classmethod
    def of(cls, data: DataDir, part: int, place: str, token: Token) -> CopyPlan:
        """Look up the local and the published part; only footers of the published one are read.

        Raises:
            SourceError: the part is not there, or cannot be had; BadFile: it is no index.
        """
        with IndexPart.open(find_published(place, part, token), token) as source:
            theirs = copied_fingerprint(source, part)
            size, is_remote = sum(source.row_group_bytes), "://" in source.address
        return cls(data, part, place, read_fingerprint(data.index(part)), theirs, size, is_remote)

    @property
    def is_done(self) -> bool:
        """Whether the copy is there already, without what was taken down here."""
        return self.ours == {**self.theirs, **Removals.of(self.data).stamp(self.part)}

    def refuse_conflict(self) -> None:
        """Refuse to replace an index that pictures were downloaded for.

        Raises:
            StateConflict: the published part is another one.
        """
        if self.ours is None or as_made(self.ours) == as_made(self.theirs) or not has_pictures(self.data, self.part):
            return
        raise StateConflict(
            f"{self.data.index(self.part)}: pictures were downloaded for it, and it is not the part that "
            f"{shown(self.place)} has. Name the sources that it was made from, or move {self.data.tars(self.part)} and "
            f"{self.data.sidecar(self.part).name} away to start this part anew."
        )


def _copy_part(data: DataDir, part: int, place: str, token: Token) -> None:
    plan = CopyPlan.of(data, part, place, token)
    plan.refuse_conflict()
    if plan.is_done:
        return
    target = data.index(part)
    remove_partials(target.parent, target.name)
    proof_path(target).unlink(missing_ok=True)  # It is the proof of the index that is replaced.
    rows = copy_index(target, place, part, token, Withheld.of(data))
    logger.info("part %d: %d rows from %s", part, rows, shown(place))


def copy_index(target: Path, place: str, part: int, token: Token = None, withheld: Withheld | None = None) -> int:
    """Write the part of the published index at `place` to `target`; return its number of rows.

    A part that laion-face wrote keeps its fingerprint. One row group is in memory at a time.

    Args:
        place: as for `published.find_published`.
        withheld: what was taken down where the copy goes.

    Raises:
        SourceError: the part is not there, or cannot be had; BadFile: it is no index.
    """
    with IndexPart.open(find_published(place, part, token), token) as source:
        keep = _kept(source, part, withheld)
        rows = int(keep.sum())
        made_from = copied_fingerprint(source, part)
        if left := source.more.names:
            logger.warning(
                "%s: its columns %s are not copied; with index= they are read there, with join= beside a copy",
                source.address,
                ", ".join(left),
            )
        with progress.bar(target.name, source.num_rows, "row") as bar:
            tables = kept_rows(source, keep, bar.update)
            write_kept(target, tables, rows, made_from if withheld is None else withheld.stamped(part, made_from))
    return rows


def _kept(source: IndexPart, part: int, withheld: Withheld | None) -> Mask:
    """Tell, bool[n], which rows of a part may be copied."""
    if withheld is None or not withheld.removed.has_rows:
        return np.ones(source.num_rows, bool)
    groups = [source.read(*bounds, ["sample_id", "url"]) for bounds in source.row_groups]
    masks = [withheld.kept_rows(part, rows) for rows in groups]
    return np.concatenate([np.zeros(0, bool), *masks])


def copied_fingerprint(source: IndexPart, part: int) -> Fingerprint:
    """Return a copy's fingerprint: the part's own if laion-face wrote it, else one that names the content copied."""
    own = source.fingerprint
    if own.get("kind") != "index":
        return make_fingerprint("index", part=part, copy=digest(own, 64))
    # What they took down is none of what is taken down here.
    return {REMOVED_THERE if name == STAMP else name: value for name, value in own.items()}
