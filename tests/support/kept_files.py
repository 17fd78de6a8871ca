"""Every kind of file that a run keeps, and how all of what is in it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laion_face_builder.download.sidecar import result_of
from laion_face_builder.download.tar_reader import PartPictures
from laion_face_builder.index.detections import read_faces as read_detections
from laion_face_builder.index.faces import FaceTable
from laion_face_builder.index.ids import read_ids
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import rows_in
from laion_face_builder.torch_pickle.torch_file import load_pickle


@dataclass(frozen=True)
class World:
    """Folders that a run has left, with part 0.

    Attributes:
        data: DATA_DIR.
        published: what was published of it.
        metadata: the folder with upstream's metadata.
        pickles: the folder with upstream's pickles.
    """

    data: Path
    published: Path
    metadata: Path
    pickles: Path

    @property
    def of_part(self) -> DataDir:
        """The files in `data`."""
        return DataDir.at(self.data)

    @property
    def index(self) -> Path:
        """The published index."""
        (path,) = self.published.rglob("part-00000.parquet")
        return path

    @property
    def tar(self) -> Path:
        """A tar with pictures."""
        return min(self.of_part.tars(0).rglob("*.tar"))


def read_faces(data: DataDir) -> dict[str, Any]:
    """Read all faces of part 0."""
    return _plain(FaceTable.read(data.faces(0)))


def _plain(arrays: object) -> dict[str, Any]:
    return {name: (value.shape, value.tobytes()) for name, value in vars(arrays).items()}


def read_index(data: DataDir) -> list[Any]:
    """Read the index of part 0, whole and in pieces."""
    with IndexPart.open(data.index(0)) as part:
        whole = part.read(0, part.num_rows)
        pieces = [part.read(start, stop, ["sample_id", "faces"]).to_pylist() for start, stop in part.row_groups[::16]]
    return [whole.to_pylist(), pieces]


def read_published(folder: Path) -> list[Any]:
    """Read part 0 of what is published."""
    with IndexPart.open(find_published(str(folder), 0)) as part:
        return [part.num_rows, *part.read(0, part.num_rows).to_pylist()]


def read_sidecar(data: DataDir) -> list[Any]:
    """Read the sidecar of part 0."""
    with PartPictures(data.tars(0), data.sidecar(0)) as pictures:
        stored = list(pictures.read(0, pictures.num_rows, [False] * pictures.num_rows))
    return [stored, str(result_of(data.sidecar(0), 0))]


def read_pictures(data: DataDir) -> list[Any]:
    """Read the pictures of part 0, with their bytes."""
    with PartPictures(data.tars(0), data.sidecar(0)) as pictures:
        return list(pictures.read(0, pictures.num_rows))


#: How the Parquet files of a DATA_DIR are read, by the name of their place in `DataDir`.
OF_DATA_DIR: dict[str, Callable[[DataDir], Any]] = {
    "ids": lambda data: (rows_in(data.ids(0)), read_ids(data.ids(0)).tolist()),
    "faces": read_faces,
    "index": read_index,
    "sidecar": read_sidecar,
}

#: Where each kind of file lies, and how it is read.
KINDS: dict[str, tuple[Callable[[World], Path], Callable[[World], Any]]] = {
    "ids": (lambda world: world.of_part.ids(0), lambda world: OF_DATA_DIR["ids"](world.of_part)),
    "faces": (lambda world: world.of_part.faces(0), lambda world: read_faces(world.of_part)),
    "index": (lambda world: world.of_part.index(0), lambda world: read_index(world.of_part)),
    "sidecar": (lambda world: world.of_part.sidecar(0), lambda world: read_sidecar(world.of_part)),
    "published": (lambda world: world.index, lambda world: read_published(world.published)),
    "pictures": (lambda world: world.tar, lambda world: read_pictures(world.of_part)),
    "pickled ids": (
        lambda world: world.pickles / "laion_face_ids.pth",
        lambda world: repr(load_pickle(world.pickles / "laion_face_ids.pth")),
    ),
    "pickled faces": (
        lambda world: world.pickles / "sample2detect_0.pth",
        lambda world: _plain(read_detections(world.pickles / "sample2detect_0.pth", 1 << 20)),
    ),
}
