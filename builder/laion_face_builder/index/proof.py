"""Measure whether the join of a part is right, and refuse it, or warn, by these figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from laion_face_builder.errors import JoinRefused

#: Below the first a join is refused, below the second there is a warning.
COVERAGE = (0.01, 0.80)
FIT = (0.85, 0.95)
#: The fit says nothing of fewer faces in rows of known size.
FACES_FOR_FIT = 100


@dataclass(frozen=True)
class Proof:
    """What speaks for the join of a part, and what was left out.

    Attributes:
        part: the part.
        ids_asked, ids_found: how many sample ids are on the part's list; how many of them some metadata row has.
        rows: how many the index has.
        repeated_rows: left out, since an earlier row has the same id, URL and caption.
        ambiguous_ids, ambiguous_rows: left out, since nobody can tell which of the rows with the same id is right.
        disproved_rows: left out, since the faces fit another row with the same id only.
        swapped_rows: rows of the index whose width and height were exchanged.
        faces_with_size, faces_that_fit: faces in rows of known size, and those whose centre lies in their picture.
    """

    part: int
    ids_asked: int
    ids_found: int
    rows: int
    repeated_rows: int
    ambiguous_ids: int
    ambiguous_rows: int
    disproved_rows: int
    swapped_rows: int
    faces_with_size: int
    faces_that_fit: int

    @property
    def coverage(self) -> float | None:
        """The share of the ids asked for that were found; None if none were asked for."""
        return self.ids_found / self.ids_asked if self.ids_asked else None

    @property
    def fit(self) -> float | None:
        """The share of the faces that fit; None without faces in rows of known size."""
        return self.faces_that_fit / self.faces_with_size if self.faces_with_size else None

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, with both shares, for JSON."""
        return {**asdict(self), "coverage": self.coverage, "fit": self.fit}

    def __str__(self) -> str:
        left_out = (
            f"{self.repeated_rows:,} repeated, {self.ambiguous_rows:,} ambiguous and {self.disproved_rows:,} disproved"
        )
        return (
            f"part {self.part}: {self.rows:,} rows; {_percent(self.coverage)} of {self.ids_asked:,} ids found; "
            f"{_percent(self.fit)} of {self.faces_with_size:,} faces fit; {left_out} rows left out; "
            f"{self.swapped_rows:,} swapped sizes"
        )

    def refuse_wrong(self, where: str) -> None:
        """Refuse a join that cannot be right.

        Args:
            where: the metadata, for the message.

        Raises:
            JoinRefused: next to no id was found, or too few faces lie in their pictures.
        """
        other = "Name other metadata with metadata= (LAION-400M's, whole or by part), or a published index with index=."
        if self.coverage is not None and self.coverage < COVERAGE[0]:
            raise JoinRefused(
                f"{where}: has {self.ids_found:,} of the {self.ids_asked:,} sample ids of part {self.part} "
                f"({_percent(self.coverage)}; at least {_percent(COVERAGE[0])} are expected): these ids are not "
                f"LAION's. {other}"
            )
        if self._is_fit_known and (self.fit or 0) < FIT[0]:
            raise JoinRefused(
                f"{where}: {self.faces_that_fit:,} of {self.faces_with_size:,} faces of part {self.part} lie in their "
                f"pictures ({_percent(self.fit)}; at least {_percent(FIT[0])} are expected, wrong rows give 60 to "
                f"75 %): its ids match, but its rows are of other pictures. {other}"
            )

    def warnings(self) -> list[str]:
        """Describe what is doubtful, a line each, with the figures."""
        doubts = []
        if self.coverage is not None and self.coverage < COVERAGE[1]:
            doubts.append(
                f"part {self.part}: only {_percent(self.coverage)} of its {self.ids_asked:,} ids are in the metadata; "
                "today's release has about 87 %. Is the copy complete?"
            )
        if self._is_fit_known and (self.fit or 0) < FIT[1]:
            doubts.append(
                f"part {self.part}: only {_percent(self.fit)} of {self.faces_with_size:,} faces lie in their pictures; "
                f"{_percent(FIT[1])} and more are usual. Is it LAION-400M's metadata?"
            )
        return doubts

    @property
    def _is_fit_known(self) -> bool:
        return self.faces_with_size >= FACES_FOR_FIT


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
