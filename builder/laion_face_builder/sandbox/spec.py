"""What a sandbox is made of, and what is true of each of its face rows.

The releases of the metadata differ in what their repos, files and columns are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

World = Literal["today", "2021"]
#: One metadata row, with the index's names for what it holds; each release has names of its own (`Release.columns`).
Row = dict[str, Any]
_NUMBERS = {"sample_id": pa.int64(), "height": pa.int64(), "width": pa.int64(), "similarity": pa.float64()}


@dataclass(frozen=True)
class Release:
    """What one release is called.

    Args:
        repo, former: the Hub repo's name without its owner, and the one that it had before, which redirects.
        file_name: of a metadata file, by its number.
        columns: the columns in order, and which field of a `Row` each of them holds.
    """

    repo: str
    former: str | None
    file_name: str
    columns: Mapping[str, str]

    @property
    def schema(self) -> pa.Schema:
        """The columns in Arrow's types."""
        return pa.schema([(name, _NUMBERS.get(field, pa.string())) for name, field in self.columns.items()])

    @property
    def id_column(self) -> str:
        """The column with the sample ids."""
        return next(name for name, field in self.columns.items() if field == "sample_id")


RELEASES: Mapping[World, Release] = {
    "2021": Release(
        "laion400m",
        None,
        "part-{:05d}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet",
        {
            "SAMPLE_ID": "sample_id",
            "URL": "url",
            "TEXT": "caption",
            "HEIGHT": "height",
            "WIDTH": "width",
            "LICENSE": "license",
            "NSFW": "nsfw",
            "similarity": "similarity",
        },
    ),
    "today": Release(
        "relaion400m",
        "laion400m",
        "part-{:05d}-4227e361-38e7-40d5-8822-c6db46ea077c-c000.snappy.parquet",
        {
            "NSFW": "nsfw",
            "similarity": "similarity",
            "LICENSE": "license",
            "caption": "caption",
            "url": "url",
            "key": "sample_id",
            "original_width": "width",
            "original_height": "height",
        },
    ),
}
#: Why a row has no picture, as this sandbox made it; several of each kind in a default part.
FAILURES = (
    "http_404",
    "html",
    "http_410",
    "opted_out",
    "http_404",
    "truncated",
    "http_500",
    "cut",
    "empty",
    "other_scheme",
    "ftp_url",
    "file_url",
)
#: What is odd about a picture that does arrive.
TWISTS = ("rescaled", "redirected", "reshaped", "slow")


@dataclass(frozen=True)
class PickleStyle:
    """How torch.save wrote the id list and the detections; upstream's exact shapes are partly unknown.

    Args:
        outer: what holds the 32 lists of ids.
        inner: what each of them is.
        numbers: what the ids are in lists, tuples and sets.
        face: a face is a tuple of arrays, of lists, of tensors, or a dict with the keys box, kps, score.
        legacy: torch's older stream instead of its zip.
        old_numpy: numpy's functions under their names before numpy 2, as upstream has them.
    """

    outer: Literal["list", "tuple", "dict"] = "list"
    inner: Literal["list", "tuple", "set", "array", "tensor"] = "list"
    numbers: Literal["float", "int", "numpy"] = "float"
    face: Literal["arrays", "lists", "tensors", "dicts"] = "arrays"
    legacy: bool = False
    old_numpy: bool = True


@dataclass(frozen=True)
class SandboxSpec:
    """How large and how broken the miniature is. The same spec gives the same content, addresses aside.

    Args:
        rows: metadata rows a part.
        face_share: share of them that are face rows.
        failing: share of the face rows whose picture cannot be had.
        twisted: share of the face rows with a picture that arrives rescaled, redirected, reshaped or slowly.
        slow: seconds that a slow picture takes.
        sample_ids: type of the column with the ids.
        row_groups: row groups of a metadata file.
        world: the release of the metadata: "2021" has one file a part; "today" has the rows of all parts shuffled over
            `metadata_files`, and what follows. Ids and detections are those of 2021 in both.
        removed: share of the rows of 2021 that are gone.

    Of a part's face rows that are left, at least one of each kind unless its share is 0:
        repeated: share that stands more than once under the same url and caption.
        misfits: share whose key has another url too, whose size cannot be the faces'.
        rivals: share whose key has another row too, and either could be right: both fit, or the size of one is not
            known, or only the caption is another, or there are no faces to tell. None of them is kept.
        swapped: share with width and height exchanged, which the faces tell.
        unseen_swaps: share with width and height exchanged, where the faces fit either way.
    """

    parts: tuple[int, ...] = (0, 1, 2)
    rows: int = 1200
    face_share: float = 1 / 3
    failing: float = 0.2
    twisted: float = 0.12
    slow: float = 0.2
    seed: int = 0
    sample_ids: Literal["int64", "float64", "string"] = "int64"
    row_groups: int = 4
    world: World = "today"
    metadata_files: int = 5
    removed: float = 1 / 8
    repeated: float = 0.02
    misfits: float = 0.02
    rivals: float = 0.02
    swapped: float = 0.02
    unseen_swaps: float = 0.01
    pickles: PickleStyle = field(default_factory=PickleStyle)


@dataclass(frozen=True)
class Face:
    """A drawn face: box x1, y1, x2, y2 and five (x, y) in pixels, every number a float32."""

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box, x and y."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    def is_in(self, width: int, height: int) -> bool:
        """Say whether the middle of the box lies in a picture of that size."""
        x, y = self.centre
        return 0 <= x <= width and 0 <= y <= height

    def as_dict(self) -> dict[str, Any]:
        """Return the face as it stands in the index."""
        return {"box": list(self.box), "landmarks": [list(point) for point in self.landmarks], "score": self.score}


@dataclass(frozen=True)
class Truth:
    """What is known of one face row, that is: one row of the index.

    Args:
        row: its place in the index of its part.
        width, height: the original picture's, as the index has them: the metadata's, and where the faces fit only the
            other way up, those exchanged (None where the metadata has nulls).
        faces: in the frame of the original's stored pixels, by falling score.
        kind: what the picture is, such as "jpeg-exif-6" or "png-palette" (see `pictures.KINDS`).
        fate: "ok", or one of `FAILURES`.
        twist: "" or one of `TWISTS`.
        served: the bytes that a client which follows redirects ends up with; b"" where there are none.
        served_size: width and height of the stored pixels in `served`; None unless `fate` is "ok".
    """

    sample_id: int
    part: int
    row: int
    url: str
    caption: str | None
    width: int | None
    height: int | None
    license: str | None
    nsfw: str | None
    similarity: float | None
    faces: tuple[Face, ...]
    kind: str
    fate: str
    twist: str
    served: bytes = field(repr=False)
    served_size: tuple[int, int] | None

    @property
    def ok(self) -> bool:
        """Whether the picture can be fetched."""
        return self.fate == "ok"

    @property
    def path(self) -> str:
        """The path under which the picture host has its answer."""
        return "/" + self.url.split("/", 3)[-1]

    @property
    def orientation(self) -> int:
        """The EXIF orientation of the served bytes, 1 where they have none."""
        return int(self.kind.rpartition("-exif-")[2]) if "-exif-" in self.kind else 1

    @property
    def original_size(self) -> tuple[int | None, int | None]:
        """The original's width and height as an example with the served picture has them.

        They are the index's; exchanged where the picture has exactly the other size, and faces, which all lie in it.
        """
        size, served = (self.width, self.height), self.served_size
        if served is None or served[::-1] != size or not self.faces:
            return size
        return served if all(face.is_in(*served) for face in self.faces) else size

    @property
    def aligned(self) -> bool:
        """Whether boxes can be brought into the served picture's frame: it has the original's size, or a scaled one."""
        width, height = self.original_size
        if self.served_size is None or width is None or height is None:
            return False
        served_width, served_height = self.served_size
        return 0.98 < served_width * height / (served_height * width) < 1.02


def row_of(truth: Truth) -> Row:
    """Return `truth` as a row of the metadata."""
    return {field: getattr(truth, field) for field in RELEASES["2021"].columns.values()}
