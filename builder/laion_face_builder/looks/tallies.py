"""The counters of `laion-face stats`: of everything and of what a filter keeps, in bins, by reason and by host."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laion_face_builder.index.exclusion import Mask

Array = np.ndarray[Any, np.dtype[Any]]

#: The last bin of each is open, and so is the first where it starts at -inf.
EDGES: dict[str, tuple[float, ...]] = {
    "faces a picture": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    "face size": (-np.inf, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "score": (-np.inf, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
    "picture size": (-np.inf, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
}
#: Hosts are counted one by one within a part; of those before it, so many are kept, the others put together.
MOST_HOSTS = 10_000
OTHER_HOSTS = "(other hosts)"


@dataclass
class Kept:
    """A count of everything, and of what the filter keeps."""

    all: float = 0
    kept: float = 0

    def add(self, other: Kept) -> None:
        """Add both numbers of `other`."""
        self.all += other.all
        self.kept += other.kept

    @property
    def share(self) -> float:
        """Share of all that is kept, 0 to 1; 1 where there is nothing."""
        return self.kept / self.all if self.all else 1.0


@dataclass
class Spread:
    """How many values lie in each bin [edge, next edge), of everything and of what is kept; `unknown` are nulls."""

    edges: tuple[float, ...]
    all: Array
    kept: Array
    unknown: Kept = field(default_factory=Kept)

    @classmethod
    def empty(cls, name: str) -> Spread:
        """Make a spread with nothing counted yet, in the bins of `EDGES[name]`."""
        edges = EDGES[name]
        return cls(edges, np.zeros(len(edges), np.int64), np.zeros(len(edges), np.int64))

    def count(self, values: Array, keep: Mask) -> None:
        """Count values, float[n], NaN where unknown; `keep` says which are kept. Edges are float32, as faces are."""
        known = ~np.isnan(values)
        bins = (np.searchsorted(np.asarray(self.edges, np.float32), values, side="right") - 1).clip(0)
        self.all += np.bincount(bins[known], minlength=len(self.edges))
        self.kept += np.bincount(bins[known & keep], minlength=len(self.edges))
        self.unknown.add(Kept(int((~known).sum()), int((~known & keep).sum())))

    @property
    def bins(self) -> list[tuple[str, int, int]]:
        """Label, all and kept of each bin, from the first to the last that is not empty; unknown ones last."""
        bins = list(zip(self._labels, self.all.tolist(), self.kept.tolist(), strict=True))
        used = np.flatnonzero(self.all)
        shown = bins[used[0] : used[-1] + 1] if len(used) else []
        return [*shown, ("unknown", int(self.unknown.all), int(self.unknown.kept))] if self.unknown.all else shown

    @property
    def _labels(self) -> list[str]:
        """Names of the bins, such as "16 to 24", "512 and more"; single numbers where bins hold one."""
        named = []
        for low, high in zip(self.edges, (*self.edges[1:], None), strict=True):
            if high is None:
                named.append(f"{low:g} and more")
            elif low == -np.inf:
                named.append(f"below {high:g}")
            else:
                named.append(f"{low:g}" if high - low == 1 and low < 10 else f"{low:g} to {high:g}")
        return named


@dataclass
class PartStats:
    """The counts of one part, or of several added up.

    Attributes:
        samples, faces: rows of the index and all faces in them; of a sample that is kept all faces are.
        index_bytes: of the index, compressed; a row has its row group's average.
        excluded: samples that the exclusion list names by id, address or host, whatever the other filters say of them.
        asked, usable: kept samples whose picture was asked for, and those whose picture can be used.
        picture_bytes: of the usable pictures, of everything and of what is kept.
        reasons: why kept samples have no picture.
        hosts, usable_hosts: `asked` and `usable` by host.
        spreads: by the names in `EDGES`.
    """

    samples: Kept = field(default_factory=Kept)
    faces: Kept = field(default_factory=Kept)
    index_bytes: Kept = field(default_factory=Kept)
    pictures: Kept = field(default_factory=Kept)
    picture_bytes: Kept = field(default_factory=Kept)
    excluded: int = 0
    asked: int = 0
    usable: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    usable_hosts: Counter[str] = field(default_factory=Counter)
    spreads: dict[str, Spread] = field(default_factory=lambda: {name: Spread.empty(name) for name in EDGES})

    def add(self, other: PartStats) -> None:
        """Add all counts of `other`."""
        for name in ("samples", "faces", "index_bytes", "pictures", "picture_bytes"):
            getattr(self, name).add(getattr(other, name))
        self.excluded += other.excluded
        self.asked += other.asked
        self.usable += other.usable
        for name in ("reasons", "hosts", "usable_hosts"):
            getattr(self, name).update(getattr(other, name))
        for name, spread in self.spreads.items():
            spread.all += other.spreads[name].all
            spread.kept += other.spreads[name].kept
            spread.unknown.add(other.spreads[name].unknown)

    def keep_hosts(self, most: int = MOST_HOSTS) -> None:
        """Merge all hosts but the `most` with the most pictures into one entry."""
        kept = {host for host, _ in self.hosts.most_common(most)} | {OTHER_HOSTS}
        for counts in (self.hosts, self.usable_hosts):
            for host in [host for host in counts if host not in kept]:
                counts[OTHER_HOSTS] += counts.pop(host)
