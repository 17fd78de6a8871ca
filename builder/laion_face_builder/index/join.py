"""Join a part's rows with its faces, and prove that the rows are the samples that the faces were found in.

Ids repeat, sizes are sometimes swapped, and a wrong copy of the metadata can match by chance. So the faces bear
witness: their boxes have to lie in the pictures that the rows speak of.

- *Coverage*: the ids found, out of those asked for.
- *One row an id*: rows with the same URL and caption are one, the first. Of others with the same id only the one is
  kept in which all faces fit, if no other one can be it; else none of them: the id is ambiguous.
- *Swapped*: where all faces fit only with width and height exchanged, they are exchanged.
- *Fit*: the share of the faces whose box's centre lies in their picture, either way up, over the rows of known size.

A face fits if the centre of its box lies within 0..width and 0..height. A row of unknown size may be the right one, but
nothing proves it. Wrongly joined rows give a fit of 60 to 75 %; pictures that changed since 2021 cost a few per cent.

By these figures a join is accepted, warned of, or refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import JoinRefused
from laion_face_builder.index.faces import FaceTable, RowFaces

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

    def without(self, rows: int, ids: int) -> Proof:
        """Return the proof of an index from which `rows` were taken down, and `ids` from the part's list.

        What it says of faces, and of rows that are left out, stays as it was found.
        """
        return replace(self, ids_asked=self.ids_asked - ids, ids_found=self.ids_found - rows, rows=self.rows - rows)

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


Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Join:
    """The rows of an index part, before they are written.

    Attributes:
        table: sample_id and the metadata's columns.
        faces: the faces of each row.
        proof: the figures that show whether the join is right.
    """

    table: pa.Table
    faces: RowFaces
    proof: Proof

    def without(self, gone: Mask) -> Join:
        """Return it without some rows, bool[n], and their ids."""
        which, count = np.flatnonzero(~gone), int(gone.sum())
        return Join(self.table.take(pa.array(which)), self.faces.at(which), self.proof.without(count, count))


def join(part: int, ids_asked: int, rows: pa.Table, faces: FaceTable) -> Join:
    """Join the metadata rows of a part with its faces.

    Args:
        ids_asked: how many ids are on the part's list.
        rows: the metadata rows whose id is on the list, in the metadata's order, columns as in `schema.INDEX`.
        faces: all faces of the part.
    """
    ids = rows["sample_id"].to_numpy()
    of_rows = faces.of_rows(ids)
    witness = _Witness.of(rows, of_rows)
    kept, left_out = _one_an_id(rows, ids, witness)
    if not kept.all():
        which = np.flatnonzero(kept)
        rows, of_rows, witness = rows.take(pa.array(which)), of_rows.at(which), witness.at(which)
    swapped = witness.swapped
    known = witness.known
    proof = Proof(
        part=part,
        ids_asked=ids_asked,
        ids_found=_distinct(ids),
        rows=rows.num_rows,
        **left_out,
        swapped_rows=int(swapped.sum()),
        faces_with_size=int(witness.faces[known].sum()),
        faces_that_fit=int(np.maximum(witness.upright, witness.turned)[known].sum()),
    )
    return Join(_put_right(rows, swapped), of_rows, proof)


@dataclass(frozen=True)
class _Witness:
    """Counts for n rows, int64[n]: all faces, those that fit, and those that fit with width and height exchanged."""

    known: Mask
    faces: Ints
    upright: Ints
    turned: Ints

    @classmethod
    def of(cls, rows: pa.Table, faces: RowFaces) -> _Witness:
        width, height = _sizes(rows["width"]), _sizes(rows["height"])
        counts, boxes = faces.counts, faces.boxes
        owner = np.repeat(np.arange(len(counts)), counts)
        # In float64 the halves of float32 sums are exact.
        x = (boxes[:, 0].astype(np.float64) + boxes[:, 2]) / 2
        y = (boxes[:, 1].astype(np.float64) + boxes[:, 3]) / 2
        wide, high = width[owner], height[owner]
        positive = (x >= 0) & (y >= 0)
        upright = positive & (x <= wide) & (y <= high)
        turned = positive & (x <= high) & (y <= wide)
        sums = (np.bincount(owner[fits], minlength=len(counts)) for fits in (upright, turned))
        return cls(~(np.isnan(width) | np.isnan(height)), counts, *sums)

    @property
    def fits(self) -> Mask:
        """Rows in which all faces fit, one way up or the other; those without faces too."""
        fits: Mask = (self.upright == self.faces) | (self.turned == self.faces)
        return fits

    @property
    def may_fit(self) -> Mask:
        """Rows in which all faces fit, or whose size is not known."""
        return self.fits | ~self.known

    @property
    def swapped(self) -> Mask:
        """Rows in which all faces fit the other way up only."""
        swapped: Mask = self.known & (self.upright < self.faces) & (self.turned == self.faces)
        return swapped

    def at(self, which: Ints) -> _Witness:
        """Return the counts of some rows."""
        return _Witness(self.known[which], self.faces[which], self.upright[which], self.turned[which])


def _one_an_id(rows: pa.Table, ids: Ints, witness: _Witness) -> tuple[Mask, dict[str, int]]:
    """Choose the rows to keep, bool[n]; and count the others by why they are left out."""
    kept = np.ones(len(ids), np.bool_)
    several = np.flatnonzero(_has_twin(ids))
    repeated = several[_repeats(rows.select(["url", "caption"]).take(pa.array(several)), ids[several])]
    kept[repeated] = False
    several = np.setdiff1d(several, repeated, assume_unique=True)
    several = several[_has_twin(ids[several])]
    _, group, size = np.unique(ids[several], return_inverse=True, return_counts=True)
    possible = np.bincount(group, weights=witness.may_fit[several], minlength=len(size))
    proven = witness.fits[several] & (possible[group] == 1)
    kept[several] = proven
    decided = np.bincount(group, weights=proven, minlength=len(size)) > 0
    return kept, {
        "repeated_rows": len(repeated),
        "ambiguous_ids": int((~decided).sum()),
        "ambiguous_rows": int(size[~decided].sum()),
        "disproved_rows": int((size[decided] - 1).sum()),
    }


def _has_twin(ids: Ints) -> Mask:
    """Tell which ids come more than once."""
    order = np.argsort(ids, kind="stable")
    same = np.append(ids[order][1:] == ids[order][:-1], False)[: len(ids)]
    found = np.zeros(len(ids), np.bool_)
    found[order] = same | np.append(False, same[:-1])[: len(ids)]
    return found


def _repeats(texts: pa.Table, ids: Ints) -> Mask:
    """Tell which rows have id, URL and caption of an earlier one; a null is like a null."""
    if not len(ids):
        return np.zeros(0, np.bool_)
    codes = [_codes(texts["url"]), _codes(texts["caption"])]
    order = np.lexsort((*codes, ids))  # stable: of equal rows the earlier one comes first
    same = np.ones(len(ids) - 1, np.bool_)
    for column in (ids, *codes):
        same &= column[order][1:] == column[order][:-1]
    found = np.zeros(len(ids), np.bool_)
    found[order[1:]] = same
    return found


def _codes(column: pa.ChunkedArray) -> Ints:
    """Return a number for each distinct text."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    codes: Ints = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _distinct(ids: Ints) -> int:
    ordered = np.sort(ids)
    return int((ordered[1:] != ordered[:-1]).sum()) + 1 if len(ids) else 0


def _sizes(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _put_right(rows: pa.Table, swapped: Mask) -> pa.Table:
    """Return `rows` with width and height exchanged where they are swapped."""
    if not swapped.any():
        return rows
    width, height, turned = rows["width"], rows["height"], pa.chunked_array([pa.array(swapped)])
    rows = rows.set_column(rows.schema.get_field_index("width"), "width", pc.if_else(turned, height, width))
    return rows.set_column(rows.schema.get_field_index("height"), "height", pc.if_else(turned, width, height))
