"""Rows whose width and height were noted the wrong way round: the picture and its faces say what is right.

Every picture is served, kept in a tar, and kept in a tar resized by img2dataset's own resizer; all over the same index.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import laion_face
from laion_face_builder.files import make_fingerprint, stamped
from laion_face_builder.images.geometry import Frame, Resizing, Size, centres_lie_in, is_swapped
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.sandbox import Answer, PictureHost
from laion_face_builder.schema import INDEX

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in img2dataset's way of calling albumentations

#: Boxes by where their centres lie, for a picture of 120 x 200 that is noted as 200 x 120.
BOTH, TALL, WIDE, NEITHER = [30.0, 30, 60, 70], [20.0, 150, 60, 190], [150.0, 20, 190, 60], [400.0, 400, 440, 440]
#: Reaches beyond the picture's edge, with its centre still inside.
CUT_OFF = [90.0, 160, 140, 230]
NAN = [math.nan, 1, 2, 3]


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: what is noted, what is served, the boxes, and whether these tell that the sizes were swapped."""

    noted: Size | tuple[None, None]
    served: Size
    boxes: list[list[float]]
    swapped: bool

    @property
    def true_size(self) -> Size | tuple[None, None]:
        return self.served if self.swapped else self.noted

    @property
    def faces(self) -> list[dict[str, Any]]:
        return [
            {"box": [float(at) for at in box], "landmarks": [[float(box[0]), float(box[1])]] * 5, "score": 0.9}
            for box in self.boxes
        ]


CASES = {
    "faces fit the picture alone": Case((200, 120), (120, 200), [TALL], True),
    "faces fit either way": Case((200, 120), (120, 200), [BOTH], True),
    "all of several fit": Case((200, 120), (120, 200), [BOTH, TALL, CUT_OFF], True),
    "wide and noted as tall": Case((120, 200), (200, 120), [WIDE, BOTH], True),
    "one of several is outside": Case((200, 120), (120, 200), [TALL, WIDE], False),
    "faces fit the noted size alone": Case((200, 120), (120, 200), [WIDE], False),
    "faces fit nowhere": Case((200, 120), (120, 200), [NEITHER], False),
    "a box is no number": Case((200, 120), (120, 200), [TALL, NAN], False),
    "no faces": Case((200, 120), (120, 200), [], False),
    "as noted": Case((120, 200), (120, 200), [TALL], False),
    "as noted, faces fit the other way": Case((200, 120), (200, 120), [TALL], False),
    "square": Case((150, 150), (150, 150), [BOTH], False),
    "swapped and scaled": Case((200, 120), (240, 400), [TALL], False),
    "one pixel off": Case((200, 120), (120, 199), [TALL], False),
    "scaled": Case((120, 200), (180, 300), [TALL], False),
    "no size noted": Case((None, None), (120, 200), [TALL], False),
    "nearly square": Case((151, 150), (150, 151), [BOTH], True),
}
#: Ways to have the pictures, and how they were resized.
WAYS = {
    "fetched": Resizing(),
    "tar": Resizing(),
    "keep_ratio": Resizing("keep_ratio", 64),
    "keep_ratio_largest": Resizing("keep_ratio_largest", 90),
    "center_crop": Resizing("center_crop", 100),
    "border": Resizing("border", 256),
    "only_if_bigger": Resizing("border", 200, True),
}


def picture(size: Size) -> bytes:
    noise = np.random.default_rng(size[0]).integers(0, 255, (size[1] // 4, size[0] // 4, 3), np.uint8)
    held = io.BytesIO()
    Image.fromarray(noise).resize(size).save(held, "PNG")
    return held.getvalue()


def write_index(data: DataDir, base: str) -> None:
    rows = [
        {
            "sample_id": number,
            "part": 0,
            "url": f"{base}/{number}",
            "width": case.noted[0],
            "height": case.noted[1],
            "faces": case.faces,
            "n_faces": len(case.faces),
        }
        for number, case in enumerate(CASES.values())
    ]
    schema = stamped(INDEX, make_fingerprint("index", part=0))
    data.index(0).parent.mkdir(parents=True)
    with pq.ParquetWriter(data.index(0), schema) as writer:
        for start, stop in row_group_bounds(len(rows)):
            writer.write_table(pa.Table.from_pylist(rows[start:stop], schema=schema))


def write_tar(folder: Path, resizing: Resizing) -> None:
    """Write a tar as img2dataset: its resizer's bytes, and in the .json what it notes of the picture before that."""
    from img2dataset.resizer import Resizer

    resizer = Resizer(resizing.size, resizing.mode, resizing.only_if_bigger, encode_format="png", encode_quality=1)
    folder.mkdir(parents=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, case in enumerate(CASES.values()):
            data = picture(case.served)
            values: dict[str, Any] = {"SAMPLE_ID": number}
            if resizing:
                data, _, _, *original, error = resizer(io.BytesIO(data))
                assert error is None
                values |= {"original_width": original[0], "original_height": original[1], "sha256": "of other bytes"}
            for name, content in (("png", data), ("json", json.dumps(values).encode())):
                member = tarfile.TarInfo(f"{number:09d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@dataclasses.dataclass(frozen=True)
class World:
    folder: Path
    data: DataDir

    def dataset(self, way: str, **options: Any) -> Any:
        size = WAYS[way]
        given = {"images": "fetch" if way == "fetched" else str(self.folder / way), "retries": 0, "parts": "0"}
        if size:
            given |= {"resize_mode": size.mode, "image_size": size.size, "resize_only_if_bigger": size.only_if_bigger}
        given |= {"data_dir": str(self.data.root), "allow_private_hosts": True, "split": "train", "streaming": True}
        return laion_face.load_dataset("20M", **{**given, **options})

    def load(self, way: str, **options: Any) -> dict[str, dict[str, Any]]:
        """Return examples by the name of their case."""
        names = list(CASES)
        return {names[example["sample_id"]]: example for example in self.dataset(way, **options)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("swapped"), DataDir.at(tmp_path_factory.mktemp("data")))
    with PictureHost() as host:
        host.answers.update({f"/{at}": Answer(body=picture(case.served)) for at, case in enumerate(CASES.values())})
        write_index(made.data, host.url())
        for way, resizing in WAYS.items():
            if way != "fetched":
                write_tar(made.folder / way / "split_00000", resizing)
        yield made


@pytest.mark.parametrize("on_size_change", ["rescale", "drop", "keep"])
@pytest.mark.parametrize("way", WAYS)
def test_swapped_sizes_count_as_unchanged_where_the_faces_fit(world: World, way: str, on_size_change: str) -> None:
    examples = world.load(way, on_size_change=on_size_change)
    for name, case in CASES.items():
        same, scaled, known = case.served == case.true_size, name == "scaled", case.noted != (None, None)
        if not (same or scaled) and known and on_size_change == "drop":
            assert name not in examples
            continue
        example, resized = examples[name], WAYS[way].of(case.served)
        assert (example["width"], example["height"]) == example["image"].size == resized.size, name
        assert (example["original_width"], example["original_height"]) == case.true_size, name
        aligned = known and (same or (scaled and on_size_change != "keep"))
        assert example["faces_aligned"] == aligned, name
        copy = Frame(1.5, 1.5, 0.25, 0.25) if scaled else Frame()
        frame = copy.then(resized.frame) if aligned else Frame()
        assert len(example["faces"]) == len(case.faces)
        for found, expected in zip(example["faces"], frame.faces(case.faces), strict=True):
            assert np.allclose(found["box"], expected["box"], atol=1e-3, equal_nan=True), name


def test_a_failed_picture_says_nothing_about_the_size(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "split_00000"
    write_tar(folder, Resizing())
    ds = world.dataset("tar", images=str(tmp_path), on_error="null")
    (folder / "00000.tar").unlink()
    sizes = [(example["original_width"], example["original_height"]) for example in ds]
    assert sizes == [case.noted for case in CASES.values()]


@pytest.mark.parametrize("way", ["fetched", "tar", "border"])
def test_faces_are_blurred_where_they_are(world: World, way: str) -> None:
    # They are where the true size says: by the noted one, another place would be blurred, and the face be seen.
    plain, blurred = world.load(way), world.load(way, blur_faces=True)
    assert {name for name, case in CASES.items() if case.swapped} <= set(blurred)
    lost = {"one of several is outside", "faces fit the noted size alone", "faces fit nowhere", "a box is no number"}
    assert lost.isdisjoint(blurred)
    name = "faces fit the picture alone"
    before, after = (np.asarray(examples[name]["image"].convert("RGB"), int) for examples in (plain, blurred))
    x1, y1, x2, y2 = (round(at) for at in blurred[name]["faces"][0]["box"])
    changed = np.abs(before - after)
    assert changed[y1:y2, x1:x2].mean() > 5 * changed[: y1 // 2].mean()


def test_the_same_come_from_everywhere(world: World) -> None:
    # This is law 4, and holds for Arrow files too.

    def plain(examples: Any) -> list[str]:
        return [repr({**example, "image": example["image"].tobytes()}) for example in examples]

    fetched = plain(world.dataset("fetched"))
    assert plain(world.dataset("tar")) == fetched
    arrow = world.dataset("tar", streaming=False, cache_dir=str(world.folder / "arrow"))
    assert plain(arrow) == fetched


sides = st.integers(1, 50)
boxes = st.lists(st.floats(-10, 60, width=32), min_size=4, max_size=4)


@given(sides, sides, st.tuples(sides, sides), st.lists(boxes, max_size=3))
def test_only_the_exactly_swapped_size_with_all_centres_inside_is_taken_for_swapped(
    width: int, height: int, other: Size, of_faces: list[list[float]]
) -> None:
    faces = [{"box": box} for box in of_faces]
    for served in ((height, width), (width, height), other):
        inside = all(0 <= (x1 + x2) / 2 <= served[0] and 0 <= (y1 + y2) / 2 <= served[1] for x1, y1, x2, y2 in of_faces)
        assert centres_lie_in(faces, served) == inside
        expected = served == (height, width) and width != height and inside and len(faces) > 0
        assert is_swapped((width, height), served, faces) == expected
