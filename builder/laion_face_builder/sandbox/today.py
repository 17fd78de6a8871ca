"""Today's metadata, made from that of 2021: rows are removed, keys repeat, sizes are swapped, parts are mixed up.

    2021: part 0 │ part 1 │ part 2  ──► less an eighth ──► stacks of rows with one key ──► file 0 │ file 1 │ … │ file 4

What is done to a face row is chosen by its faces, so that the join's rules (see `plain_join`) can tell.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

from laion_face_builder.sandbox.spec import RELEASES, Row, SandboxSpec, Truth, row_of


class _Deck:
    """The face rows of a part in any order; each is taken once."""

    def __init__(self, truths: list[Truth]) -> None:
        self.left = truths
        self.whole = len(truths)

    def count(self, share: float) -> int:
        """Count the rows that a share of the deck is: at least one, unless the share is 0."""
        return max(1, round(share * self.whole)) if share else 0

    def take(self, count: int, fitting: Callable[[Truth], bool]) -> list[Truth]:
        """Take out `count` fitting rows, fewer if there are no more."""
        taken = [truth for truth in self.left if fitting(truth)][:count]
        self.left = [truth for truth in self.left if truth not in taken]
        return taken


def files_of_today(
    spec: SandboxSpec, parts: Mapping[int, Sequence[Row]], listed: Iterable[Truth], hosts: Sequence[str]
) -> dict[str, list[Row]]:
    """Return the metadata files of today by their names.

    Args:
        parts: the rows of 2021 by part.
        listed: what is known of the face rows among them.
        hosts: addresses for the pictures of rows that should not be kept; nothing answers there.
    """
    rng = random.Random(f"{spec.seed}/today")  # noqa: S311 - variety, not secrets
    by_part: dict[int, list[Truth]] = {part: [] for part in parts}
    for truth in listed:
        by_part[truth.part].append(truth)
    maker = _Maker(spec, rng, hosts)
    stacks = list(chain.from_iterable(maker.stacks(rows, by_part[part]) for part, rows in parts.items()))
    rng.shuffle(stacks)
    files: list[list[Row]] = [[] for _ in range(spec.metadata_files)]
    for number, stack in enumerate(stacks):
        others = rng.sample(range(len(files)), len(files))
        others.remove(first := number % len(files))
        for row, file in zip(stack, cycle([first, *others])):
            files[file].append(row)
    for rows in files:
        rng.shuffle(rows)
    return {RELEASES["today"].file_name.format(number): rows for number, rows in enumerate(files)}


@dataclass(frozen=True)
class _Maker:
    spec: SandboxSpec
    rng: random.Random
    hosts: Sequence[str]

    def stacks(self, rows: Sequence[Row], truths: Sequence[Truth]) -> list[list[Row]]:
        """Return what is left of a part as stacks of rows with one key; the rows of a stack go to different files."""
        known = {truth.sample_id: truth for truth in truths}
        face_rows = self._thinned([row for row in rows if row["sample_id"] in known])
        others = self._thinned([row for row in rows if row["sample_id"] not in known])
        stacks = {row["sample_id"]: [row] for row in face_rows}
        deck = [known[sample_id] for sample_id in stacks]
        self.rng.shuffle(deck)
        self._spoil(stacks, _Deck(deck))
        return [*stacks.values(), *([row] for row in others)]

    def _thinned(self, rows: Sequence[Row]) -> list[Row]:
        gone = set(self.rng.sample(range(len(rows)), round(self.spec.removed * len(rows))))
        return [row for at, row in enumerate(rows) if at not in gone]

    def _spoil(self, stacks: dict[int, list[Row]], deck: _Deck) -> None:
        spec = self.spec
        swapped = deck.take(deck.count(spec.swapped), _tells_swapping)
        for truth in [*swapped, *deck.take(deck.count(spec.unseen_swaps), _hides_swapping)]:
            row = stacks[truth.sample_id][0]
            stacks[truth.sample_id] = [{**row, "width": truth.height, "height": truth.width}]
        misfits = deck.take(deck.count(spec.misfits), _fits)
        # A row may be the only one that fits, and fit only the other way up.
        for truth in [*misfits, *(swapped[:1] if misfits else [])]:
            stacks[truth.sample_id].append(self._misfit(truth))
        for rival, fitting in islice(cycle(self._rivals()), deck.count(spec.rivals)):
            for truth in deck.take(1, fitting):
                stacks[truth.sample_id].append(rival(truth))
        count = deck.count(spec.repeated)
        repeated = deck.take(min(1, count // 2), lambda truth: truth.caption is None)
        repeated += deck.take(count - len(repeated), lambda truth: True)
        for number, truth in enumerate(repeated):
            row = stacks[truth.sample_id][0]
            times = 4 if number == 0 else 1  # people met "each image 5 times"
            # Only url and caption are the same: of the rest the first row's counts.
            stacks[truth.sample_id] += [{**row, "similarity": self.rng.uniform(0.3, 0.45)} for _ in range(times)]

    def _rivals(self) -> list[tuple[Callable[[Truth], Row], Callable[[Truth], bool]]]:
        """Return the kinds of second rows that could be right as well, and for which rows each of them is made."""
        return [
            (lambda truth: self._elsewhere(truth) | {"width": 2000, "height": 2000}, _fits),
            (self._elsewhere, lambda truth: not truth.faces),
            (lambda truth: self._elsewhere(truth) | {"width": None}, _fits),
            (self._misfit, lambda truth: bool(truth.faces) and truth.width is None),
            (lambda truth: row_of(truth) | {"caption": f"{truth.caption}, in other words"}, _fits),
        ]

    def _misfit(self, truth: Truth) -> Row:
        """Make another picture's row, so small that the farthest face lies outside of it, either way up."""
        far = int(max(edge for face in truth.faces for edge in face.centre))
        width, height = (self.rng.randint(far // 2, far - 1) for _ in range(2))
        return self._elsewhere(truth) | {"width": width, "height": height}

    def _elsewhere(self, truth: Truth) -> Row:
        """Make a row with the same key for a picture that nobody should ask for."""
        return row_of(truth) | {
            "url": f"{self.rng.choice(list(self.hosts))}/elsewhere/{truth.sample_id}.jpg",
            "caption": f"Not what {truth.sample_id} was",
            "width": self.rng.randint(64, 2000),
            "height": self.rng.randint(64, 2000),
        }


def _fits(truth: Truth, *, exchanged: bool = False) -> bool:
    """Say whether the faces are known to lie in the picture, as it is or with width and height `exchanged`."""
    if not truth.faces or truth.width is None or truth.height is None:
        return False
    size = (truth.height, truth.width) if exchanged else (truth.width, truth.height)
    return all(face.is_in(*size) for face in truth.faces)


def _tells_swapping(truth: Truth) -> bool:
    return _fits(truth) and not _fits(truth, exchanged=True)


def _hides_swapping(truth: Truth) -> bool:
    """Say whether faces fit either way up, the two sizes clearly differ in shape, and the picture comes as it was."""
    if not (_fits(truth) and _fits(truth, exchanged=True) and truth.ok) or truth.twist in ("rescaled", "reshaped"):
        return False
    sides = sorted((truth.width or 1, truth.height or 1))
    return sides[1] > 1.1 * sides[0]
