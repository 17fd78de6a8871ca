"""Decide which samples are wanted, by a row group's columns, before any picture is touched.

A face counts if its score, the short side of its box and its area reach the thresholds. A sample passes if the number
of counting faces is within min_faces..max_faces and its own columns pass. Boxes are unclipped and in the original
frame. A threshold is compared in the type of what its user sees, so that a row passes with its own value: scores and
sides of boxes are float32, and so are their thresholds (0.9 means what the detector wrote as 0.9); similarity is
float64, and so are the area, (x2 - x1) * (y2 - y1) / (width * height), and the share, the lesser of (x2 - x1) / width
and (y2 - y1) / height, as Python works them out. A null fails every filter on it. Words of a caption are what blanks
separate, as for `str.split`; patterns are RE2's, and are searched for anywhere in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.images.geometry import area_of
from laion_face_builder.index.exclusion import Exclusion, Mask
from laion_face_builder.index.joined_columns import MATCHED
from laion_face_builder.index.removed import Removed

#: The filters that say which faces count, and how many there have to be.
_OF_FACES = (
    "min_score",
    "min_face_size",
    "min_face_area",
    "min_face_share",
    "min_faces",
    "max_faces",
    "max_faces_in_picture",
)
Floats = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Filters:
    """The filters of one dataset; None means no filter. Hashable, comparable, picklable.

    min_faces None means 1 as soon as a threshold on faces is given, else 0: `min_face_size=64` alone asks for pictures
    with such a face.
    """

    min_score: float | None = None
    min_face_size: float | None = None
    min_face_area: float | None = None
    min_face_share: float | None = None
    min_faces: int | None = None
    max_faces: int | None = None
    max_faces_in_picture: int | None = None
    min_width: int | None = None
    min_height: int | None = None
    nsfw: tuple[str, ...] | None = None
    min_similarity: float | None = None
    min_caption_words: int | None = None
    caption_matches: str | None = None
    caption_excludes: str | None = None
    include: Exclusion | None = None
    exclude: Exclusion | None = None
    join_how: str = "left"
    #: What was taken down, as far as rows or pictures of it may still come: see `options.tree`.
    removed: Removed | None = None

    @property
    def face_thresholds(self) -> bool:
        """Whether a face has to reach a threshold in order to count."""
        thresholds = (self.min_score, self.min_face_size, self.min_face_area, self.min_face_share)
        return any(value is not None for value in thresholds)

    @property
    def fewest_faces(self) -> int:
        """The least number of counting faces."""
        return int(self.face_thresholds) if self.min_faces is None else self.min_faces

    @property
    def columns(self) -> tuple[str, ...]:
        """The index columns that `mask` needs besides `faces`."""
        of_picture = self.min_face_area is not None or self.min_face_share is not None
        has_removed = self.removed is not None and self.removed.has_rows
        is_listed = self.include is not None or self.exclude is not None or has_removed
        of_caption = (self.min_caption_words, self.caption_matches, self.caption_excludes)
        wanted = {
            "n_faces": self.fewest_faces > 0 or (self.max_faces, self.max_faces_in_picture) != (None, None),
            "max_face_score": self.min_score is not None,
            "max_face_size": self.min_face_size is not None,
            "width": self.min_width is not None or of_picture,
            "height": self.min_height is not None or of_picture,
            "nsfw": self.nsfw is not None,
            "similarity": self.min_similarity is not None,
            "caption": any(value is not None for value in of_caption),
            "sample_id": is_listed,
            "url": is_listed,
            MATCHED: self.join_how == "inner",
        }
        return tuple(name for name, needed in wanted.items() if needed)

    @property
    def is_empty(self) -> bool:
        """Whether everything passes."""
        return not self.columns

    def as_dict(self) -> dict[str, Any]:
        """Return what defines the filters, for fingerprints: the content of lists, not their paths."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        for name in ("include", "exclude", "removed"):
            if name in values:
                values[name] = values[name].digest
        if self.removed is not None and not self.removed.has_rows:
            del values["removed"]  # Pictures leave the tars with their rows: downloads are not to begin anew for it.
        if self.nsfw is not None:
            values["nsfw"] = sorted(self.nsfw)
        return values

    def flat_mask(self, table: pa.Table) -> Mask:
        """Tell, bool[n], which rows may pass by flat columns: exact for sample filters, necessary for face filters."""
        keep = np.ones(table.num_rows, dtype=bool)
        for column, least in (("width", self.min_width), ("height", self.min_height)):
            keep &= _at_least(table, column, least)
        keep &= _at_least(table, "similarity", self.min_similarity)
        if self.nsfw is not None:
            allowed = pc.is_in(table["nsfw"], value_set=pa.array(self.nsfw, pa.string()))
            keep &= _booleans(pc.and_(allowed, pc.is_valid(table["nsfw"])))
        if self.join_how == "inner":
            keep &= _booleans(table[MATCHED])
        keep &= self._captions(table)
        if self.include is not None and not self.include.has_hashes:
            keep &= self.include.mask(table)
        if self.exclude is not None:
            keep &= ~self.exclude.mask(table)
        if self.removed is not None and self.removed.has_rows:
            keep &= ~self.removed.mask(table)
        if self.fewest_faces > 0:
            keep &= _at_least(table, "n_faces", self.fewest_faces)
            keep &= _at_least(table, "max_face_score", _as_float32(self.min_score))
            keep &= _at_least(table, "max_face_size", _as_float32(self.min_face_size))
        for most in (self.max_faces_in_picture, None if self.face_thresholds else self.max_faces):
            if most is not None:
                keep &= _numbers(table["n_faces"]) <= most
        return keep

    def excluded(self, table: pa.Table) -> Mask:
        """Tell, bool[n], which rows are listed to be left out, or taken down, whatever other filters say of them."""
        named = np.zeros(table.num_rows, dtype=bool) if self.exclude is None else self.exclude.mask(table)
        return named if self.removed is None or not self.removed.has_rows else named | self.removed.mask(table)

    def mask(self, table: pa.Table) -> Mask:
        """Tell, bool[n], which rows of `table` pass. Needs `columns`, and `faces` if there are thresholds on faces."""
        keep = self.flat_mask(table)
        if self.face_thresholds and keep.any():
            counting = self._counting_faces(table)
            keep &= counting >= self.fewest_faces
            if self.max_faces is not None:
                keep &= counting <= self.max_faces
        return keep

    def _captions(self, table: pa.Table) -> Mask | np.bool_:
        """Tell, bool[n], which rows pass by their caption."""
        keep: Mask | np.bool_ = np.True_
        if self.min_caption_words is not None:
            keep = keep & (_words(table["caption"]) >= self.min_caption_words)
        if self.caption_matches is not None:
            keep = keep & _booleans(pc.match_substring_regex(table["caption"], self.caption_matches))
        if self.caption_excludes is not None:
            keep = keep & _booleans(pc.invert(pc.match_substring_regex(table["caption"], self.caption_excludes)))
        return keep

    def alone(self) -> dict[str, Filters]:
        """Return each filter by itself, by its name; those that say which faces count, and how many, are one: faces."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.removed is not None and not self.removed.has_rows:
            del given["removed"]
        faces = {name: given.pop(name) for name in _OF_FACES if name in given}
        found = {"faces": Filters(**faces)} if faces else {}
        return found | {name: Filters(**{name: value}) for name, value in given.items()}

    def count_faces(self, table: pa.Table) -> Floats:
        """Count, int[n], how many faces of each row reach the thresholds. Needs `columns`, `faces` and `n_faces`."""
        if not self.face_thresholds:
            return np.nan_to_num(_numbers(table["n_faces"])).astype(np.int64)
        return self._counting_faces(table)

    def counting(self, row: Mapping[str, Any]) -> list[int]:
        """Tell which faces of one row, as plain values, reach the thresholds: their places in its `faces`."""
        faces = row["faces"]
        if not self.face_thresholds:
            return list(range(len(faces)))
        return [place for place, face in enumerate(faces) if self._counts(face, row["width"], row["height"])]

    def _counts(self, face: Mapping[str, Any], width: int | None, height: int | None) -> bool:
        box = np.asarray(face["box"], np.float32)
        if not _reaches(face["score"], self.min_score) or not _reaches((box[2:] - box[:2]).min(), self.min_face_size):
            return False
        if self.min_face_area is None and self.min_face_share is None:
            return True
        if not width or not height:
            return False
        if self.min_face_area is not None and not area_of(face) / (float(width) * height) >= float(self.min_face_area):
            return False
        x1, y1, x2, y2 = box.astype(np.float64).tolist()
        return self.min_face_share is None or min((x2 - x1) / width, (y2 - y1) / height) >= float(self.min_face_share)

    def _counting_faces(self, table: pa.Table) -> Floats:
        """Count, int[n], how many faces of each row reach the thresholds."""
        faces = _joined(table["faces"])
        lengths = pc.fill_null(pc.list_value_length(faces), 0).to_numpy(zero_copy_only=False)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        flat = faces.flatten()
        counts = np.ones(len(flat), dtype=bool)
        if self.min_score is not None:
            counts &= flat.field("score").to_numpy(zero_copy_only=False) >= _as_float32(self.min_score)
        if self.min_face_size is not None:
            counts &= np.minimum(*box_sides(flat)) >= _as_float32(self.min_face_size)
        if self.min_face_area is not None:
            picture = _numbers(table["width"]) * _numbers(table["height"])
            counts &= _shares(flat, picture[rows]) >= float(self.min_face_area)
        if self.min_face_share is not None:
            width, height = (_numbers(table[name])[rows] for name in ("width", "height"))
            counts &= _least_shares(flat, width, height) >= float(self.min_face_share)
        return np.bincount(rows[counts], minlength=len(lengths))


def box_sides(faces: pa.StructArray) -> tuple[Floats, Floats]:
    """Return width and height of each box in pixels, float32[n] each, of a flat array of `schema.FACE`."""
    boxes = _boxes(faces)
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def _shares(faces: pa.StructArray, pictures: Floats) -> Floats:
    """Return how much of its picture each box covers, float64[n], NaN where that is not known.

    Args:
        faces: `schema.FACE`[n].
        pictures: float64[n], the area of each one's picture in pixels, NaN where it is not known.
    """
    boxes = _boxes(faces).astype(np.float64)
    areas = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    shares = np.full(len(areas), np.nan)
    np.divide(areas, pictures, out=shares, where=pictures > 0)
    return shares


def _least_shares(faces: pa.StructArray, widths: Floats, heights: Floats) -> Floats:
    """Return the lesser of each box's shares of its picture's width and height, float64[n], NaN where not known."""
    boxes = _boxes(faces).astype(np.float64)
    least = np.full(len(boxes), np.inf)
    for low, high, whole in ((0, 2, widths), (1, 3, heights)):
        share = np.full(len(boxes), np.nan)
        np.divide(boxes[:, high] - boxes[:, low], whole, out=share, where=whole > 0)
        least = np.minimum(least, share)
    return least


def _words(captions: pa.ChunkedArray) -> Floats:
    """Count the words of each caption, float64[n]; NaN where there is none."""
    trimmed = pc.utf8_trim_whitespace(captions)
    counts = pc.list_value_length(pc.utf8_split_whitespace(trimmed))
    return _numbers(pc.if_else(pc.equal(trimmed, ""), 0, counts))


def _boxes(faces: pa.StructArray) -> Floats:
    return np.asarray(faces.field("box").flatten().to_numpy(zero_copy_only=False)).reshape(-1, 4)


def _as_float32(least: float | None) -> float | None:
    """Round to the nearest float32, as a float: infinity for what is beyond them all."""
    with np.errstate(over="ignore"):
        return None if least is None else float(np.float32(least))


def _reaches(value: float, least: float | None) -> bool:
    """Say whether a float32 is at least a threshold, which is rounded as float32 are."""
    rounded = _as_float32(least)
    return rounded is None or bool(value >= rounded)


def _at_least(table: pa.Table, column: str, least: float | None) -> Mask | np.bool_:
    return np.True_ if least is None else _numbers(table[column]) >= float(least)


def _numbers(column: pa.ChunkedArray) -> Floats:
    """Return float64[n], a null as NaN, which fails every comparison."""
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _booleans(column: pa.ChunkedArray | pa.Array) -> Mask:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)


def _joined(column: pa.ChunkedArray) -> pa.ListArray:
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)
