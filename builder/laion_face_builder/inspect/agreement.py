"""How far two detectors agree: faces matched by their boxes, and shares with the interval that a small sample leaves.

A face is found again if a box of the other detector overlaps its own with an IoU of `IOU` or more; each box counts for
one face at most. Shares have 95 % intervals after Wilson, which hold near 0 and 1 too. They take faces as independent;
those of one picture are not, so that the true intervals are a little wider.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from laion_face_builder.inspect.counts import Spread

Boxes = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

IOU = 0.5
#: The first and the last band of each are open. Sizes are short sides in pixels of the picture that was looked at.
SCORES = (-np.inf, 0.5, 0.7, 0.9)
SIZES = (-np.inf, 32, 64, 128)
#: Of the normal distribution, on both sides: 95 %.
_DEVIATIONS = 1.959964


@dataclass(frozen=True)
class Detected:
    """Faces that a detector found in one picture.

    Attributes:
        boxes: float[n, 4], xyxy in pixels of the picture, from pixels' centres as everywhere here.
        scores: float[n], 0 to 1.
    """

    boxes: Boxes
    scores: Scores

    def within(self, width: int, height: int) -> Detected:
        """Cut the boxes at the picture's edges: detectors differ in how far they guess beyond them."""
        most: Boxes = np.array([width, height, width, height]) - 0.5
        return Detected(np.clip(self.boxes.reshape(-1, 4), -0.5, most), self.scores)

    @property
    def sizes(self) -> Scores:
        """Short sides of the boxes, float[n], pixels."""
        sides: Scores = np.min(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)
        return sides


def overlaps(ours: Boxes, theirs: Boxes) -> npt.NDArray[np.float64]:
    """Give the intersection over union of every two boxes, float[n, m], 0 where one has no area.

    Args:
        ours: float[n, 4], xyxy.
        theirs: float[m, 4].
    """
    first, second = ours[:, None], theirs[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = np.clip(sides, 0, None).prod(axis=-1)
    union = _areas(first) + _areas(second) - common
    # Not plain division: 0 / 0 where boxes have no area, and what is not finite counts as no overlap.
    share: npt.NDArray[np.float64] = np.zeros_like(common)
    np.divide(common, union, out=share, where=(union > 0) & np.isfinite(union))
    return share


def _areas(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    areas: npt.NDArray[np.float64] = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)
    return areas


def matched(ours: Detected, theirs: Detected) -> list[tuple[int, int]]:
    """Match the faces of one picture: pairs of places in `ours` and in `theirs`, with an IoU of `IOU` or more.

    As many pairs as can be had, each face in one at most; where not all of ours can have one, the surest have.
    """
    overlap = overlaps(ours.boxes, theirs.boxes)
    partners = [[int(j) for j in np.argsort(-row, kind="stable") if row[j] >= IOU] for row in overlap]
    taken: dict[int, int] = {}
    for face in np.argsort(-ours.scores, kind="stable").tolist():
        _give_a_partner(face, partners, taken)
    return sorted((face, partner) for partner, face in taken.items())


def _give_a_partner(face: int, partners: list[list[int]], taken: dict[int, int]) -> None:
    """Find the shortest chain of faces that can move on to another partner so that `face` gets one, and move them.

    Who has a partner keeps one: so faces that come first never lose theirs.
    """
    came_from: dict[int, int] = {}
    waiting = deque([face])
    while waiting:
        asking = waiting.popleft()
        for partner in partners[asking]:
            if partner in came_from:
                continue
            came_from[partner] = asking
            if partner in taken:
                waiting.append(taken[partner])
                continue
            has = {owner: theirs for theirs, owner in taken.items()}
            here: int | None = partner
            while here is not None:
                owner = came_from[here]
                taken[here], here = owner, has.get(owner)
            return


def wilson(found: int, of: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of the share `found` / `of`; 0 to 1 where there is nothing."""
    if not of:
        return 0.0, 1.0
    share, squared = found / of, _DEVIATIONS**2
    middle = share + squared / (2 * of)
    half = _DEVIATIONS * math.sqrt(share * (1 - share) / of + squared / (4 * of * of))
    low, high = (middle - half) / (1 + squared / of), (middle + half) / (1 + squared / of)
    # At both ends it is exact, and rounding would leave crumbs.
    return (0.0 if not found else low), (1.0 if found == of else high)


@dataclass(frozen=True)
class Band:
    """Faces of one band of scores or sizes, and how many of them the other detector has too."""

    name: str
    faces: int
    found: int

    @property
    def share(self) -> float:
        """Share that was found, 0 to 1; 1 where there is no face."""
        return self.found / self.faces if self.faces else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share."""
        return wilson(self.found, self.faces)

    def as_dict(self) -> dict[str, Any]:
        """Return the band as plain values; the share is null where there is no face."""
        low, high = self.interval
        share = self.share if self.faces else None
        return {"bin": self.name, "faces": self.faces, "found": self.found, "share": share, "low": low, "high": high}


@dataclass
class Agreement:
    """What the pictures of a sample said.

    Attributes:
        by_score, by_size: of LAION-Face's faces, all and those that the other detector found again.
        others: of the other detector's faces by its score, all and those that LAION-Face has.
        pictures: that were looked at.
        unplaced: pictures left out since it is not known where in them the boxes lie.
        failed: why others of the sample have no picture.
    """

    by_score: Spread = field(default_factory=lambda: Spread.over(SCORES))
    by_size: Spread = field(default_factory=lambda: Spread.over(SIZES))
    others: Spread = field(default_factory=lambda: Spread.over(SCORES))
    pictures: int = 0
    unplaced: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, ours: Detected, theirs: Detected) -> None:
        """Count one picture: LAION-Face's faces in it, and the other detector's."""
        pairs = matched(ours, theirs)
        found, known = np.zeros(len(ours.scores), np.bool_), np.zeros(len(theirs.scores), np.bool_)
        found[[face for face, _ in pairs]] = True
        known[[partner for _, partner in pairs]] = True
        self.by_score.count(ours.scores.astype(np.float32), found)
        self.by_size.count(ours.sizes.astype(np.float32), found)
        self.others.count(theirs.scores.astype(np.float32), known)
        self.pictures += 1

    @property
    def ours(self) -> Band:
        """All faces of LAION-Face."""
        return _all(self.by_score)

    @property
    def theirs(self) -> Band:
        """All faces of the other detector."""
        return _all(self.others)


def bands(spread: Spread) -> list[Band]:
    """Give the bands of a spread that are not empty, and those between them."""
    return [Band(name, every, found) for name, every, found in spread.bins]


def _all(spread: Spread) -> Band:
    rows = bands(spread)
    return Band("all", sum(row.faces for row in rows), sum(row.found for row in rows))
