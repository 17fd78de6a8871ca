"""Pictures that img2dataset resized, encoded again or blurred: faces fit wherever they come from (law 2 and law 4).

img2dataset takes seconds to be imported, so one story is lived through once: a host with pictures of every container
and EXIF turn, one index, and a download of it in each way.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import laion_face
from laion_face_builder import cli
from laion_face_builder.download.blur import blurred, boxes_to_blur
from laion_face_builder.download.part import DownloadOptions, download_part
from laion_face_builder.download.tar_reader import PartPictures
from laion_face_builder.errors import NotPrepared, OptionError, PictureError, StateConflict
from laion_face_builder.examples import parts
from laion_face_builder.files import make_fingerprint, stamped
from laion_face_builder.images.geometry import Resizing
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.options import OptionFields, Options, option_names
from laion_face_builder.sandbox import Answer, PictureHost, find_landmarks
from laion_face_builder.sandbox.cartoons import Scene, draw, encode, plan
from laion_face_builder.schema import EXAMPLE_COLUMNS, INDEX, SIDECAR_LATER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # in img2dataset's way of calling albumentations
]

KINDS = (
    *(f"{form}-exif-{turn}" for form in ("jpeg", "png", "webp") for turn in range(1, 9)),
    *("jpeg", "jpeg-gray", "jpeg-cmyk", "png", "png-rgba", "png-palette", "webp-alpha", "gif"),
)
#: What was made of these colours hides some landmarks from a search by colour.
OTHER_COLOURS = ("gif", "png-palette", "jpeg-gray", "jpeg-cmyk", "png-rgba", "webp-alpha")
#: What is odd about the pictures that come last.
ODD = ("rescaled", "reshaped", "no_size", "no_faces", "outside", "not_a_number")
#: Downloads by name. Where small landmarks are searched for it is PNG: 4:2:0 washes their colours out.
WAYS: dict[str, dict[str, Any]] = {
    "original": {},
    "border": {"resize_mode": "border", "image_size": 170, "encode_format": "png"},
    "cropped": {
        "resize_mode": "center_crop",
        "image_size": 140,
        "resize_only_if_bigger": True,
        "blur_faces": True,
        "encode_quality": 90,
    },
    "blurred": {"blur_faces": True},
}
TRANSFER: dict[str, Any] = {
    "concurrency": 8,
    "timeout": 5.0,
    "retries": 0,
    "allow_private_hosts": True,
    "processes_count": 1,
}


def how_of(**given: Any) -> DownloadOptions:
    """Give the options of a download as a dataset with these options has it downloaded."""
    its_own = {name: given.pop(name) for name in given.keys() - set(option_names())}
    return parts.download_options(Options.of("20M", OptionFields(**given)), **its_own)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One index row, and what its host gives."""

    row: int
    scene: Scene
    kind: str
    odd: str
    data: bytes

    @property
    def path(self) -> str:
        return f"/{self.row}"

    @property
    def size(self) -> tuple[int, int]:
        """The stored width and height of what the host gives."""
        with Image.open(BytesIO(self.data)) as image:
            return image.size

    def faces(self) -> list[dict[str, Any]]:
        faces = [face.as_dict() for face in self.scene.faces]
        if self.odd == "no_faces":
            return []
        strays = {
            "outside": [
                [-500.0, -900.0, -20.0, -10.0],
                [90.0, 80.0, 60.0, 70.0],
                [5.0, 5.0, 5.0, 5.0],
                [-1e9, 9, 9, 1e9],
            ],
            "not_a_number": [[float("nan"), 1.0, 2.0, 3.0]],
        }
        return faces + [{**faces[0], "box": box, "score": 0.5} for box in strays.get(self.odd, [])]

    def as_row(self, base: str) -> dict[str, Any]:
        known = self.odd != "no_size"
        faces = self.faces()
        return {
            "sample_id": 1000 + self.row,
            "part": 0,
            "url": base + self.path,
            "caption": f"{self.kind} {self.odd}",
            "width": self.scene.width if known else None,
            "height": self.scene.height if known else None,
            "similarity": 0.3,
            "faces": faces,
            "n_faces": len(faces),
        }


def make_sample(row: int, kind: str, odd: str = "") -> Sample:
    scene = plan(random.Random(row), 1 + row % 2)
    picture = draw(scene, plain=kind in ("gif", "png-palette"))
    if odd == "rescaled":
        picture = picture.resize((scene.width * 3 // 2, scene.height * 3 // 2), Image.Resampling.LANCZOS)
    if odd == "reshaped":
        picture = ImageOps.fit(picture, (scene.width, scene.height // 2))
    return Sample(row, scene, kind, odd, encode(picture, kind))


@dataclasses.dataclass(frozen=True)
class Story:
    folder: Path
    host: PictureHost
    samples: list[Sample]
    printed: str

    def data(self, way: str) -> DataDir:
        return DataDir.at(self.folder / way)

    def load(self, way: str, **options: Any) -> list[dict[str, Any]]:
        return list(self.dataset(way, **options))

    def dataset(self, way: str, **options: Any) -> Any:
        given = {
            "data_dir": str(self.data(way).root),
            "parts": "0",
            "allow_private_hosts": True,
            "retries": 0,
            **options,
        }
        return laion_face.load_dataset("20M", split="train", streaming=True, **given)

    def sample_of(self, example: dict[str, Any]) -> Sample:
        return self.samples[example["sample_id"] - 1000]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("resized")
    samples = [make_sample(row, kind) for row, kind in enumerate(KINDS)]
    samples += [make_sample(len(samples) + at, "jpeg", odd) for at, odd in enumerate(ODD)]
    with PictureHost() as host:
        host.answers.update({sample.path: Answer(body=sample.data) for sample in samples})
        for way in (*WAYS, "index-only"):
            write_index(DataDir.at(folder / way), [sample.as_row(host.url()) for sample in samples])
        with ThreadPoolExecutor(2) as two:
            results = list(two.map(lambda way: download(DataDir.at(folder / way), way), WAYS))
        yield Story(folder, host, samples, results[list(WAYS).index("cropped")])


def write_index(data: DataDir, rows: list[dict[str, Any]]) -> None:
    schema = stamped(INDEX, make_fingerprint("index", part=0))
    table = pa.Table.from_pylist(rows, schema=schema)
    data.index(0).parent.mkdir(parents=True)
    with pq.ParquetWriter(data.index(0), schema, compression="zstd") as writer:  # as ours: others may have no NaN
        for start, stop in row_group_bounds(len(rows)):
            writer.write_table(table.slice(start, stop - start))


def download(data: DataDir, way: str) -> str:
    return str(download_part(data, 0, how_of(**TRANSFER, **WAYS[way])))


def original_pixels(sample: Sample) -> Image.Image:
    """Return the picture as stored, with no orientation applied."""
    with Image.open(BytesIO(sample.data)) as image:
        image.load()
        return image.copy()


def landmarks(example: dict[str, Any]) -> tuple[int, int]:
    """Count landmarks seen where the example says, and those not cut off; fail if one is elsewhere."""
    image = example["image"]
    scale = max(example["width"] / example["original_width"], example["height"] / example["original_height"])
    found = whole = 0
    for face in example["faces"]:
        width = face["box"][2] - face["box"][0]
        for number, point in enumerate(face["landmarks"]):
            reach = width / 8
            if not all(reach < at < length - reach for at, length in zip(point, image.size, strict=True)):
                continue
            whole += 1
            near = find_landmarks(image, [*(at - reach for at in point), *(at + reach for at in point)])[number]
            if not np.isnan(near).any():
                # The discs are drawn around whole pixels.
                assert np.abs(near - point).max() <= 0.5 * scale + 1, (example["caption"], number)
                found += 1
    return found, whole


@pytest.mark.parametrize("way", ["original", "border"])
def test_faces_fit_the_picture_that_is_yielded(story: Story, way: str) -> None:
    resizing = how_of(**WAYS[way]).resizing
    examples = story.load(way)
    assert len(examples) == len(story.samples)
    found = 0
    for example in examples:
        sample = story.sample_of(example)
        assert tuple(example) == EXAMPLE_COLUMNS
        assert (example["width"], example["height"]) == example["image"].size == resizing.of(sample.size).size
        assert example["faces_aligned"] == (sample.odd not in ("reshaped", "no_size"))
        if example["faces_aligned"] and sample.odd in ("", "rescaled"):
            count, whole = landmarks(example)
            found += count
            assert count == whole or sample.kind in OTHER_COLOURS, example["caption"]
    assert found > 150


@pytest.mark.parametrize("way", ["border", "cropped"])
def test_the_mapped_faces_are_the_original_ones_in_the_frame(story: Story, way: str) -> None:
    resizing = how_of(**WAYS[way]).resizing
    blur = {"blur_faces": True} if WAYS[way].get("blur_faces") else {}
    for example in story.load(way, **blur):
        sample = story.sample_of(example)
        if sample.odd == "":
            assert example["faces"] == resizing.of(sample.size).frame.faces(sample.faces())
            assert example["faces_aligned"]
            assert (example["original_width"], example["original_height"]) == sample.size


def test_one_frame_for_every_exif_turn_on_every_path(story: Story) -> None:
    # Fetched, from original bytes, or encoded again: it is the same picture, with the same faces in it.
    paths = {
        "fetched": story.load("index-only", images="fetch"),
        "original": story.load("original"),
        "encoded again": story.load("blurred", blur_faces=True),
        "border": story.load("border"),
    }
    by_id = {path: {e["sample_id"]: e for e in examples} for path, examples in paths.items()}
    turned = [sample for sample in story.samples if "exif" in sample.kind]
    assert len(turned) == 24
    compared = 0
    for sample in turned:
        fetched, original, again, border = (by_id[path][1000 + sample.row] for path in paths)
        stored = np.asarray(original_pixels(sample).convert("RGB"), int)
        assert (np.asarray(fetched["image"].convert("RGB"), int) == stored).all()
        assert {k: v for k, v in fetched.items() if k != "image"} == {k: v for k, v in original.items() if k != "image"}
        assert fetched["image"].tobytes() == original["image"].tobytes()
        assert again["faces"] == fetched["faces"]
        outside = ~covered(sample.faces(), again["image"].size, 0.35)
        if outside.any():
            assert np.abs(np.asarray(again["image"], int) - stored)[outside].mean() < 4
            compared += 1
        frame = Resizing("border", 170).of(sample.size).frame
        assert border["faces"] == frame.faces(fetched["faces"])
    assert compared > 12


def covered(faces: list[dict[str, Any]], size: tuple[int, int], margin: float) -> np.ndarray:
    """Return bool[height, width]: what lies in a box, or within `margin` of its long side around it."""
    inside = np.zeros(size[::-1], dtype=bool)
    for face in faces:
        x1, y1, x2, y2 = face["box"]
        more = margin * max(x2 - x1, y2 - y1)
        left, top = max(0, int(x1 - more)), max(0, int(y1 - more))
        inside[top : max(0, int(y2 + more)), left : max(0, int(x2 + more))] = True
    return inside


def bytes_of(dataset: Any) -> dict[int, dict[str, Any]]:
    """Return examples by id, with the bytes of the picture instead of the picture."""
    undecoded = dataset.cast_column("image", ImageFeature(decode=False))
    return {e["sample_id"]: {**e, "image": e["image"]["bytes"]} for e in undecoded}


def test_fetched_pictures_are_blurred_as_img2dataset_blurs(story: Story) -> None:
    # This is law 4 to the byte: blurred on disk, on the way from the disk, or on the way from the web.
    from_tars = bytes_of(story.dataset("blurred", blur_faces=True))
    fetched = bytes_of(story.dataset("index-only", images="fetch", blur_faces=True))
    on_the_way = bytes_of(story.dataset("original", blur_faces=True))
    assert fetched == on_the_way
    assert list(fetched) == list(from_tars)
    for sample_id, example in fetched.items():
        if example["faces"]:
            assert example == from_tars[sample_id], example["caption"]


def test_blurred_examples_say_so_and_have_lost_their_detail(story: Story) -> None:
    plain = {example["sample_id"]: example for example in story.load("original")}
    left, seen, whole = [], 0, 0
    for way in ("blurred", "cropped"):
        examples = story.load(way, blur_faces=True)
        assert len(examples) > 30
        for example in examples:
            assert tuple(example) == (*EXAMPLE_COLUMNS, "faces_blurred")
            assert example["faces_blurred"] is True
            if example["faces_aligned"] and story.sample_of(example).odd == "":
                seen, whole = (sum(pair) for pair in zip((seen, whole), landmarks(example), strict=True))
            if way == "blurred" and example["faces"] and story.sample_of(example).odd == "":
                box = [round(at) for at in example["faces"][0]["box"]]
                before, after = (detail(one["image"].crop(box)) for one in (plain[example["sample_id"]], example))
                left.append(after / before)
    assert whole > 200
    assert seen < 0.02 * whole
    assert max(left) < 0.6
    assert np.mean(left) < 0.4


def detail(image: Image.Image) -> float:
    """Measure how much neighbouring pixels differ."""
    grey = np.asarray(image.convert("L"), float)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def test_what_cannot_be_blurred_is_not_yielded_and_not_kept(story: Story) -> None:
    lost = {1000 + sample.row for sample in story.samples if sample.odd in ("reshaped", "no_size", "not_a_number")}
    for way, images in (("blurred", "auto"), ("original", "auto"), ("index-only", "fetch")):
        ds = story.dataset(way, blur_faces=True, images=images)
        assert {example["sample_id"] for example in ds} == {1000 + s.row for s in story.samples} - lost
        assert laion_face.report(ds).failed == {"cannot_blur": 3}
    data = story.data("blurred")
    with PartPictures.open(data, 0) as pictures:
        statuses = {row: stored.status for row, stored in enumerate(pictures.read(0, pictures.num_rows))}
    assert {1000 + row for row, status in statuses.items() if status == "cannot_blur"} == lost
    # Only the reshaped one was fetched at all; no tar ever had its picture.
    assert not any(sample.odd == "no_size" for sample in in_tar(data, story))
    reshaped = next(sample for sample in story.samples if sample.odd == "reshaped")
    assert reshaped not in in_tar(data, story)
    assert "cannot_blur 3" in story.printed


def in_tar(data: DataDir, story: Story) -> dict[Sample, bytes]:
    import tarfile

    found = {}
    with tarfile.open(data.tars(0) / "00000.tar") as tar:
        for name in [name for name in tar.getnames() if name.endswith(".json")]:
            row = json.load(tar.extractfile(name))["row"]
            found[story.samples[row]] = tar.extractfile(name.replace(".json", ".jpg")).read()
    return found


def test_null_pictures_were_not_blurred(story: Story) -> None:
    examples = story.load("original", blur_faces=True, on_error="null")
    assert len(examples) == len(story.samples)
    assert all(example["faces_blurred"] is (example["image"] is not None) for example in examples)


def without_pictures(examples: Any) -> list[str]:
    """Return examples without pictures, as text, since NaN is not equal to itself."""
    return [repr({**example, "image": None}) for example in examples]


def test_arrow_files_have_the_column_too(story: Story, tmp_path: Path) -> None:
    given = {"parts": "0", "data_dir": str(story.data("cropped").root), "cache_dir": str(tmp_path), "split": "train"}
    table = laion_face.load_dataset("20M", blur_faces=True, **given)
    assert table.column_names == [*EXAMPLE_COLUMNS, "faces_blurred"]
    streamed = story.load("cropped", blur_faces=True)
    assert without_pictures(table) == without_pictures(streamed)


def test_what_lies_there_is_not_taken_for_something_else(story: Story) -> None:
    for way in ("blurred", "cropped"):
        with pytest.raises(StateConflict, match="blur_faces=True"):
            story.load(way)
    with pytest.raises(StateConflict, match=r"resize_mode='border', image_size=170, not with resize_mode='keep_ratio'"):
        story.load("border", resize_mode="keep_ratio")
    with pytest.raises(StateConflict, match="resize_mode='no', not with"):
        story.load("original", resize_mode="border", image_size=170)
    assert story.load("border", resize_mode="border", image_size=170)
    with pytest.raises(NotPrepared, match="laion-face download"):
        story.load("index-only", resize_mode="border")
    for other in ({}, {"resize_mode": "border", "image_size": 300}, {**WAYS["border"], "blur_faces": True}):
        with pytest.raises(StateConflict, match="downloaded with something else"):
            download_part(story.data("border"), 0, how_of(**TRANSFER, **other))
    with pytest.raises(StateConflict, match="blur_faces"):
        story.load("original", images="download", blur_faces=True)
    written = story.data("blurred").sidecar(0).stat().st_mtime_ns
    assert story.load("blurred", images="download", blur_faces=True)
    assert story.data("blurred").sidecar(0).stat().st_mtime_ns == written


def test_downloads_begun_before_there_was_resizing_go_on() -> None:
    # The fingerprint of a download with the defaults has no key that it had not then.
    assert set(DownloadOptions().defining()) == {"samples_per_shard", "opt_out"}
    assert set(how_of(image_size=99, resize_only_if_bigger=True).defining()) == {
        "samples_per_shard",
        "opt_out",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"encode_format": "png"}, "every original byte is kept"),
        ({"encode_quality": 80}, "every original byte is kept"),
        ({"encode_format": "gif", "blur_faces": True}, "valid are jpg, png, webp"),
        ({"encode_quality": 101, "blur_faces": True}, "jpg takes 1 to 100"),
        ({"encode_quality": 95, "encode_format": "png", "blur_faces": True}, "png takes 0 to 9"),
        ({"resize_mode": "stretch"}, "valid are 'no', 'keep_ratio'"),
    ],
)
def test_encodings_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        how_of(**given)


def test_a_folder_of_somebody_else_is_placed_by_what_its_options_are_said_to_be(story: Story, tmp_path: Path) -> None:
    folder = tmp_path / "split_00000"
    shutil.copytree(story.data("border").tars(0), folder)
    said = {"resize_mode": "border", "image_size": 170, "images": str(tmp_path)}
    adopted = story.load("index-only", **said)
    assert without_pictures(adopted) == without_pictures(story.load("border"))
    # A passer-by who does not say it gets what can be known from the sizes alone.
    assert sum(e["faces_aligned"] for e in story.load("index-only", images=str(tmp_path))) < 5
    assert [e["faces_blurred"] for e in story.load("index-only", blur_faces=True, **said)].count(True) == 36 - 1
    for path in folder.glob("*.parquet"):
        path.unlink()  # the .json in the tars say the same
    assert without_pictures(story.load("index-only", **said)) == without_pictures(adopted)


def test_hashes_of_what_the_host_gave_are_excluded_in_whatever_form_it_is_kept(story: Story, tmp_path: Path) -> None:
    import hashlib

    sample = story.samples[3]
    (tmp_path / "excluded.txt").write_text(hashlib.sha256(sample.data).hexdigest() + "\n")
    for way in ("original", "border"):
        ds = story.dataset(way, exclude=str(tmp_path / "excluded.txt"))
        assert 1000 + sample.row not in [example["sample_id"] for example in ds]
        assert laion_face.report(ds).failed == {"excluded": 1}


def test_md5s_that_cannot_be_known_any_more_are_spoken_of(
    story: Story, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import hashlib

    sample = story.samples[3]
    listed = tmp_path / "excluded.txt"
    listed.write_text(hashlib.md5(sample.data, usedforsecurity=False).hexdigest() + "\n")
    for way, missed in (("original", False), ("border", True)):
        ids = [example["sample_id"] for example in story.dataset(way, exclude=str(listed))]
        assert (1000 + sample.row in ids) == missed
        assert [str(listed) in said and "MD5s do not reach" in said for said in caplog.messages].count(True) == missed


def test_older_sidecars_load(story: Story, tmp_path: Path) -> None:
    with PartPictures.open(story.data("original"), 0) as pictures:
        table = pq.read_table(pictures.sidecar)
        before = list(pictures.read(0, pictures.num_rows))
    older = table.drop_columns(list(SIDECAR_LATER))
    pq.write_table(older, tmp_path / "sidecar.parquet")
    with PartPictures(story.data("original").tars(0), tmp_path / "sidecar.parquet") as pictures:
        assert list(pictures.read(0, pictures.num_rows)) == before
        assert not pictures.resizing
        assert not pictures.are_blurred


def test_the_command_line_downloads_resized_and_blurred(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The part is there already, made with just this: nothing is fetched, and nothing is refused.
    shutil.copytree(story.data("cropped").root, tmp_path / "data")
    command = ["download", "20M", "--parts", "0", "--data-dir", str(tmp_path / "data"), "--allow-private-hosts"]
    asked = len(story.host.log)
    how = ["--resize-mode", "center_crop", "--image-size", "140", "--resize-only-if-bigger"]
    how += ["--blur-faces", "--encode-quality"]
    assert cli.main([*command, *how, "90", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == {"cannot_blur": 3}
    assert cli.main([*command, *how, "91"]) == 1
    assert "encode: jpg 90 on disk, jpg 91 now" in capsys.readouterr().err
    assert cli.main([*command, "--encode-format", "png"]) == 1
    assert "every original byte is kept" in capsys.readouterr().err
    assert len(story.host.log) == asked


def test_blurring_leaves_the_users_random_numbers_alone(story: Story) -> None:
    sample = story.samples[0]
    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.random()
    random.seed(7)
    np.random.seed(7)
    blurred(sample.data, sample.faces(), sample.size, sample.size)
    assert (random.random(), np.random.random()) == expected


def test_blurring_refuses_what_it_does_not_see_alike(story: Story) -> None:
    sample = story.samples[0]
    with pytest.raises(PictureError, match="cannot_blur"):
        blurred(sample.data, sample.faces(), sample.size, (sample.size[0] + 1, sample.size[1]))
    with pytest.raises(PictureError, match="undecodable"):
        blurred(b"GIF89a", sample.faces(), sample.size, sample.size)
    deep = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))
    buffer = BytesIO()
    deep.save(buffer, "PNG")
    seen = Image.open(BytesIO(blurred(buffer.getvalue(), [{"box": [40, 40, 50, 50]}], (64, 64), (64, 64))))
    assert abs(np.asarray(seen, int)[:20] - np.asarray(deep)[:20] // 257).max() <= 3


box = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4)
near = st.lists(st.floats(-60, 120), min_size=4, max_size=4)


@settings(max_examples=60)
@given(st.lists(box | near, min_size=1, max_size=4), st.sampled_from([(48, 32), (31, 50), (1, 1), (2, 90)]))
def test_no_box_of_numbers_stops_the_blurring(boxes: list[list[float]], size: tuple[int, int]) -> None:
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    image = Image.open(BytesIO(blurred(buffer.getvalue(), [{"box": box} for box in boxes], size, size)))
    assert image.size == size


def test_only_the_faces_are_blurred() -> None:
    # The upside-down box that sets the strength leaves the rest of the picture alone.
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 400), np.uint8))
    buffer = BytesIO()
    noise.save(buffer, "PNG")
    seen = np.asarray(
        Image.open(BytesIO(blurred(buffer.getvalue(), [{"box": [20, 20, 80, 80]}], *[(400, 200)] * 2))), int
    )
    difference = np.abs(seen - np.asarray(noise, int))
    assert difference[:, 140:].mean() < 3
    assert difference[20:80, 20:80].mean() > 40


def test_boxes_to_blur_are_shares_within_the_picture() -> None:
    boxes = [[-10, 5, 50, 20], [90, 30, 20, 10], [200, 200, 300, 300]]
    nan = [[float("inf"), 0, 1, 1]]
    faces = [
        [{"box": box, "landmarks": [[0, 0]] * 5, "score": 1.0} for box in group] for group in (boxes, nan, [], boxes)
    ]
    table = pa.table(
        {
            "width": pa.array([100, 100, None, None], pa.int32()),
            "height": pa.array([50, 50, None, 50], pa.int32()),
            "faces": pa.chunked_array(
                [pa.array(faces[:1], INDEX.field("faces").type), pa.array(faces[1:], INDEX.field("faces").type)]
            ),
        }
    )
    # The last one is upside down and 10/3 of the widest.
    expected = [[0, 0.1, 0.5, 0.4], [0.2, 0.2, 0.9, 0.6], [1, 1, 1, 1], [0, 1000, pytest.approx(7 / 3), -1000]]
    assert boxes_to_blur(table).to_pylist() == [expected, None, [], None]
    assert boxes_to_blur(table.slice(2)).to_pylist() == [[], None]
