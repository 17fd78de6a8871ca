"""What prepare does with a part's pickles, and the published way: torch.load, and a pandas merge that loses the faces.

torch.load runs without a check here: only for files that were made here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from laion_face_builder.layout import DataDir

_VERSION = "made up"


@dataclass(frozen=True)
class Sources:
    """The three files of make_full_part.py, in `folder`."""

    folder: Path
    ids: Path
    detections: Path
    metadata: Path

    @classmethod
    def at(cls, folder: Path) -> Sources:
        """Return the sources in a folder."""
        (metadata,) = folder.glob("part-00000-*.parquet")
        return cls(folder, folder / "laion_face_ids.pth", folder / "sample2detect_0.pth", metadata)

    def prepare(self) -> None:
        """Make the part's ids and faces, beside the sources, unless they are there."""
        write_ids(self, DataDir.at(self.folder))
        write_faces(self, DataDir.at(self.folder))


def write_ids(sources: Sources, data: DataDir) -> None:
    """Write the ids of the part, as `prepare` makes them."""
    from laion_face_builder.index import ids

    ids.write_ids(sources.ids, data, [0], _VERSION)


def write_faces(sources: Sources, data: DataDir) -> None:
    """Write the faces of the part, as `prepare` makes them."""
    from laion_face_builder.index import detections

    detections.write_faces(sources.detections, data, 0, _VERSION)


def _faces(sources: Sources, out: Path) -> None:
    write_faces(sources, DataDir.at(out))


def _load_faces(sources: Sources, _: Path) -> None:
    import torch

    torch.load(sources.detections, weights_only=False)  # runs what is in it: our own file


def _everything(sources: Sources, out: Path) -> None:
    from join_engines import Join, Part, ours_by_part

    data = DataDir.at(out)
    write_ids(sources, data)
    write_faces(sources, data)
    part = Part(0, data.ids(0), data.faces(0), data.index(0), rows=0)
    ours_by_part(Join((sources.metadata,), (part,), out))


def _load_and_merge(sources: Sources, out: Path) -> None:
    """Do what the published snippet and converter do."""
    import pandas as pd
    import torch

    _load_faces(sources, out)
    ids = set(torch.load(sources.ids, weights_only=False)[0])  # likewise
    pd.read_parquet(sources.metadata).merge(pd.DataFrame({"SAMPLE_ID": list(ids)}), on="SAMPLE_ID")


Way = Callable[[Sources, Path], None]
DETECTIONS: dict[str, Way] = {"ours": _faces, "torch.load alone": _load_faces}
ALL_OF_A_PART: dict[str, Way] = {"ours": _everything, "as published, without faces": _load_and_merge}
