"""Track how a shard is tried, and search for the sample that kills every process that decodes it.

A process may die for reasons of its own: somebody killed it, memory ran out, its other shard did it. So a shard whose
process died is tried again by itself. If that dies too, halves of it are fetched and decoded without being written,
until the one sample is found; the shard is then made without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from laion_face_builder.download.task import Span

#: Searches without a result, after which a shard is given up.
_MOST_VAIN = 3


class Stage(Enum):
    """How a shard is tried."""

    TOGETHER = "beside another shard"
    ALONE = "by itself"
    HALVING = "in halves"


@dataclass
class Attempts:
    """The tries of one shard: those so far, and the next one.

    Attributes:
        samples: of the shard.
        stage: how it is tried next.
        left_out: positions of the samples that were found, and are left out.
        is_hopeless: whether processes go on dying, and no sample is found that kills them.
    """

    samples: int
    stage: Stage = Stage.TOGETHER
    left_out: list[int] = field(default_factory=list)
    _span: Span = (0, 0)
    _vain: int = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether processes go on dying, and no sample is found that kills them."""
        return self._vain >= _MOST_VAIN

    @property
    def probe(self) -> Span | None:
        """The samples to be tried next; None for the whole shard."""
        if self.stage is not Stage.HALVING:
            return None
        start, stop = self._span
        return (start, max(start + 1, (start + stop) // 2))

    def died(self) -> None:
        """Note that the process of the last try died."""
        probe = self.probe
        if self.stage is Stage.TOGETHER:
            self.stage = Stage.ALONE
        elif probe is None:
            self.stage, self._span = Stage.HALVING, (0, self.samples)
        elif probe[1] - probe[0] == 1:
            self.left_out.append(probe[0])
            self.stage = Stage.ALONE
        else:
            self._span = probe

    def survived(self) -> None:
        """Note that the process survived the probe: if any sample kills it, that is in the rest."""
        probe = self.probe
        assert probe is not None, "only probes are survived"  # noqa: S101 - a shard that is made is done
        self._span = (probe[1], self._span[1])
        if self._span[0] == self._span[1]:
            self._vain += 1
            self.stage = Stage.ALONE
