"""What a sandbox is made of, and what is true of each of its face rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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
        sample_ids: type of the SAMPLE_ID column.
        row_groups: row groups of a metadata file.
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
    pickles: PickleStyle = field(default_factory=PickleStyle)


@dataclass(frozen=True)
class Face:
    """A drawn face: box x1, y1, x2, y2 and five (x, y) in pixels, every number a float32."""

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the index."""
        return {"box": list(self.box), "landmarks": [list(point) for point in self.landmarks], "score": self.score}


@dataclass(frozen=True)
class Truth:
    """What is known of one face row, that is: one row of the index.

    Args:
        row: its place in the index of its part.
        width, height: the original picture's, as the metadata has them (None where it has nulls).
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
        """Whether the picture can be had."""
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
    def aligned(self) -> bool:
        """Whether boxes can be brought into the served picture's frame: it has the original's size, or a scaled one."""
        return self.ok and self.width is not None and self.height is not None and self.twist != "reshaped"
