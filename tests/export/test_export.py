"""What an export writes is opened by those who read it, and is what `load_dataset` and the transforms give."""

import csv
import io
import json
import tarfile
from collections import Counter
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

import laion_face
from laion_face_builder.errors import OptionError, StateConflict
from laion_face_builder.images.modes import to_rgb
from laion_face_builder.images.reasons import Reason
from laion_face_builder.options.export_options import DRAWINGS, LAYOUTS, ExportOptions

LEAST = 65


@pytest.fixture(scope="module")
def made(prepared, tmp_path_factory):
    """Give `made(**options)`: the folder of an export of part 0 in three shards, made once for the same options."""
    known = {}

    def make(**given):
        key = json.dumps(given, sort_keys=True)
        if key not in known:
            out = tmp_path_factory.mktemp("export") / "out"
            how = {"parts": "0", "data_dir": prepared.data.root, "shards_per_part": 3, "processes": 1}
            known[key] = out, laion_face.export("20M", out, **{**how, **given})
        return known[key]

    return make


@pytest.fixture(scope="module")
def examples(prepared):
    """Give the examples of part 0, pictures as bytes, by sample id."""
    ds = laion_face.load_dataset("20M", split="train", parts="0", data_dir=prepared.data.root, streaming=True)
    return {example["sample_id"]: example for example in ds.decode(False)}


def decoded(data):
    """Decode a picture as a viewer shows it, transparency on white."""
    return np.asarray(to_rgb(Image.open(io.BytesIO(data))))


def counting(example):
    """List the faces of an example with a short side of at least LEAST in the original, and their places."""
    scale = example["width"] / example["original_width"]
    sides = [min(x2 - x1, y2 - y1) / scale for x1, y1, x2, y2 in (face["box"] for face in example["faces"])]
    return [(place, face) for place, face in enumerate(example["faces"]) if sides[place] >= LEAST]


# --- whole pictures ---


def test_files_are_the_pictures_of_load_dataset(made, examples):
    out, counts = made()
    pictures = {path.stem: path for path in out.glob("part-*/*") if path.suffix != ".txt"}
    assert set(pictures) == {str(sample_id) for sample_id in examples}
    assert {path.suffix for path in pictures.values()} >= {".jpg", ".png", ".webp"}
    for sample_id, example in examples.items():
        path = pictures[str(sample_id)]
        assert np.array_equal(decoded(path.read_bytes()), decoded(example["image"]["bytes"]))
        assert path.with_suffix(".txt").read_text(encoding="utf-8") == (example["caption"] or "")
        with Image.open(path) as image:
            assert image.format == {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix]
            assert dict(image.getexif()) == {}
    assert (counts.pieces, counts.pictures) == (len(examples), len(examples))
    assert counts.rows == counts.filtered + counts.pictures + counts.failed.total()


def test_imagefolder_and_diffusers_read_files(made, examples, tmp_path):
    out, _ = made()
    ways: dict[str, dict[str, Any]] = {
        "imagefolder": {"path": "imagefolder", "data_dir": str(out)},
        "diffusers' --train_data_dir": {"path": "imagefolder", "data_files": {"train": f"{out}/**"}},
        "the folder alone": {"path": str(out)},
    }
    for name, way in ways.items():
        ds = datasets.load_dataset(**way, split="train", cache_dir=str(tmp_path / name.split()[0]))
        assert set(ds.column_names) >= {"image", "text", "sample_id", "faces"}, name
        found = {row["sample_id"]: row for row in ds}
        assert set(found) == set(examples), name
        for sample_id, row in list(found.items())[:20]:
            assert row["text"] == (examples[sample_id]["caption"] or "")
            assert np.array_equal(np.asarray(to_rgb(row["image"])), decoded(examples[sample_id]["image"]["bytes"]))
            assert [face["score"] for face in row["faces"]] == [f["score"] for f in examples[sample_id]["faces"]]


def test_open_clip_reads_the_csv(made, examples, monkeypatch):
    out, _ = made()
    monkeypatch.chdir(out)
    # As open_clip's CsvDataset: tabs, columns filepath and title, paths as they stand.
    with open("open_clip.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == len(examples)
    captions = Counter(" ".join((example["caption"] or "").split()) for example in examples.values())
    assert Counter(row["title"] for row in rows) == captions
    for row in rows[:20]:
        Image.open(row["filepath"]).load()


# webdataset leaves tars open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_open_clip_and_datasets_read_tars(made, examples, tmp_path):
    out, _ = made(layout="webdataset")
    tars = sorted(map(str, out.glob("*.tar")))
    assert len(tars) == 3
    # As open_clip's pipeline: decode by Pillow, take the picture and its text.
    pipeline = webdataset.WebDataset(tars, shardshuffle=False).decode("pilrgb")
    found = {int(sample["__key__"]): sample for sample in pipeline.rename(image="jpg;png;jpeg;webp", text="txt")}
    assert set(found) == set(examples)
    for sample_id, sample in found.items():
        example = examples[sample_id]
        with Image.open(io.BytesIO(example["image"]["bytes"])) as image:
            assert np.array_equal(np.asarray(sample["image"]), np.asarray(image.convert("RGB")))
        assert sample["text"] == (example["caption"] or "")
        assert sample["json"]["sample_id"] == sample_id
        assert sample["json"]["faces"] == example["faces"]
    ds = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path))
    assert {row["json"]["sample_id"] for row in ds} == set(examples)
    assert {type(row["jpg"]).__name__ for row in ds} <= {"JpegImageFile", "PngImageFile", "WebPImageFile", "Image"}


def test_parquet_has_the_examples_and_their_features(made, examples, tmp_path):
    out, _ = made(layout="parquet")
    ds = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path))
    assert isinstance(ds.features["image"], datasets.Image)
    for row in ds:
        example = examples[row["sample_id"]]
        assert np.array_equal(np.asarray(to_rgb(row["image"])), decoded(example["image"]["bytes"]))
        assert {**row, "image": 0} == {**example, "caption": example["caption"] or "", "image": 0}
    assert len(ds) == len(examples)


def test_lists_have_every_row_and_no_picture(made, prepared, tmp_path):
    out, counts = made(layout="jsonl")
    ds = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path))
    truth = prepared.sandbox.truth_of(0)
    assert {row["sample_id"]: row["url"] for row in ds} == {one.sample_id: one.url for one in truth}
    assert (counts.pieces, counts.failed) == (len(truth), Counter())
    assert "image" not in ds.column_names


# --- faces ---


@pytest.mark.parametrize(
    ("layout", "given", "cut"),
    [
        (
            "files",
            {"crop": True, "size": 96, "margin": 0.5},
            lambda image, face: laion_face.crop_face(image, face, 0.5, 96),
        ),
        ("webdataset", {"align": "arcface"}, lambda image, face: laion_face.align_face(image, face["landmarks"])),
        (
            "parquet",
            {"align": "ffhq", "size": 128},
            lambda image, face: laion_face.align_face(image, face["landmarks"], 128, "ffhq"),
        ),
    ],
    ids=["crop", "arcface", "ffhq"],
)
def test_faces_that_count_are_cut_out_as_the_transforms_do(made, examples, layout, given, cut):
    out, counts = made(layout=layout, crop_format="png", min_face_size=LEAST, **given)
    found, wanted = pieces_in(out, layout), {}
    for sample_id, example in examples.items():
        picture = decoded(example["image"]["bytes"])
        for place, face in counting(example) if example["faces_aligned"] else ():
            try:
                wanted[f"{sample_id}-{place}"] = cut(picture, face).image
            except laion_face.LaionFaceError:
                continue
    assert found.keys() == wanted.keys()
    for name, image in wanted.items():
        assert np.array_equal(decoded(found[name]), image), name
    assert counts.pieces == len(wanted) < sum(len(example["faces"]) for example in examples.values())
    assert counts.failed[Reason.UNSURE_FACES] > 0


def pieces_in(out, layout):
    """Give the bytes of every picture that was exported, by its name."""
    if layout == "files":
        paths = [path for path in out.glob("part-*/*.*") if not path.name.endswith((".txt", ".condition.png"))]
        return {path.stem: path.read_bytes() for path in paths}
    if layout == "webdataset":
        found: dict[str, bytes] = {}
        for path in out.glob("*.tar"):
            with tarfile.open(path) as tar:
                names = [name for name in tar.getnames() if not name.endswith((".txt", ".json", ".condition.png"))]
                found |= {name.partition(".")[0]: tar.extractfile(name).read() for name in names}
        return found
    rows = [row for path in out.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {f"{row['sample_id']}-{row['face']}": row["image"]["bytes"] for row in rows}


def test_the_largest_face_is_one_a_picture_and_one_of_those_that_count(made, examples):
    out, counts = made(align="farl", size=64, largest_face=True, min_face_size=LEAST)
    names = [name.split("-") for name in pieces_in(out, "files")]
    assert len({sample_id for sample_id, _ in names}) == len(names) == counts.pictures == counts.pieces
    for sample_id, place in names:
        areas = {
            place: (face["box"][2] - face["box"][0]) * (face["box"][3] - face["box"][1])
            for place, face in counting(examples[int(sample_id)])
        }
        assert int(place) == max(areas, key=areas.get)


def test_kept_faces_have_the_numbers_that_they_have_in_their_picture(made):
    how = {"crop": True, "size": 64, "min_face_size": LEAST}
    _, all_kept = made(**how)
    for keep in ("counting", "largest"):
        out, counts = made(keep_faces=keep, **how)
        same, _ = made(**how, largest_face=True) if keep == "largest" else made(**how)
        assert set(pieces_in(out, "files")) == set(pieces_in(same, "files"))
        assert counts.pieces <= all_kept.pieces


# --- condition pictures ---


@pytest.mark.parametrize("draw", DRAWINGS)
def test_condition_pictures_mark_the_faces_and_nothing_else(made, draw):
    out, _ = made(align="farl", size=128, draw=draw)
    lines = (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    for row in map(json.loads, lines[:20]):
        drawn = np.asarray(Image.open(out / row["conditioning_image_file_name"]))
        assert drawn.shape == (128, 128, 3)
        (face,) = row["faces"]
        marks = {"boxes": draw == "boxes", "landmarks": draw == "landmarks", "mesh": draw == "mesh-on-black"}
        black = np.zeros((128, 128, 3), np.uint8)
        assert np.array_equal(drawn, laion_face.draw_faces(black, [face], scores=False, **marks))
        assert 0 < (drawn.max(axis=2) > 0).mean() < 0.3


def test_controlnet_and_diffusers_read_the_pairs(made, tmp_path):
    out, counts = made(align="farl", size=128, draw="landmarks")
    # As ControlNet's tutorial_dataset.py: a line each, pictures by OpenCV.
    with (out / "prompt.jsonl").open(encoding="utf-8") as lines:
        pairs = list(map(json.loads, lines))
    assert len(pairs) == counts.pieces
    for pair in pairs[:20]:
        source, target = (cv2.imread(str(out / pair[name])) for name in ("source", "target"))
        assert source.shape == target.shape == (128, 128, 3)
        assert isinstance(pair["prompt"], str)
    # As diffusers' train_controlnet.py: the folder, columns image, conditioning_image and text.
    ds = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path))
    assert set(ds.column_names) >= {"image", "conditioning_image", "text"}
    assert ds[0]["conditioning_image"].size == ds[0]["image"].size == (128, 128)


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_condition_pictures_are_in_tars_and_tables_too(made, layout, tmp_path):
    out, _ = made(layout=layout, draw="boxes", min_faces=1)
    ds = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path))
    picture, drawn = ("jpg", "condition.png") if layout == "webdataset" else ("image", "conditioning_image")
    for row in ds.select(range(10)):
        assert row[drawn].size == row[picture].size
        assert np.asarray(row[drawn]).any()


# --- the ledger ---


def test_the_manifest_says_what_was_asked_and_what_became_of_it(made, prepared):
    out, counts = made(align="farl", size=64, largest_face=True, min_face_size=LEAST)
    text = (out / "__export__" / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert manifest["asked"]["export"] == {"layout": "files", "align": "farl", "size": 64, "largest_face": True}
    assert manifest["asked"]["examples"]["filters"] == {"min_face_size": LEAST}
    assert manifest["counts"] == counts.as_dict()
    assert manifest["shards"] == {"whole": 3, "of": 3}
    assert {"laion-face", "opencv", "pillow"} < manifest["versions"].keys()
    assert sum(file["pieces"] for file in manifest["files"].values()) == counts.pieces
    assert str(prepared.data.root) not in text, "no place of this machine"


def test_another_request_for_the_same_folder_is_refused(made, prepared):
    out, _ = made()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"}
    how = {"parts": "0", "data_dir": prepared.data.root, "shards_per_part": 3, "processes": 1}
    for other in ({"min_faces": 1}, {"draw": "boxes"}, {"layout": "parquet"}, {"shards_per_part": 4}):
        with pytest.raises(StateConflict, match="another"):
            laion_face.export("20M", out, **{**how, **other})
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}.items()


# --- options ---


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layout": "csv"}, "valid are 'files', 'webdataset', 'jsonl', 'parquet'"),
        ({"align": "dlib"}, "valid are 'arcface', 'farl', 'ffhq'"),
        ({"draw": "masks"}, "valid are 'landmarks', 'boxes', 'mesh-on-black'"),
        ({"crop": True, "align": "farl"}, "leave one of them out"),
        ({"size": 64}, "goes with crop or align"),
        ({"size": 0, "crop": True}, "size=0"),
        ({"margin": 0.1, "align": "farl"}, "goes with crop"),
        ({"largest_face": True}, "goes with crop, align or draw"),
        ({"layout": "jsonl", "crop": True}, "has no pictures"),
        ({"crop_format": "gif"}, "valid are 'jpg', 'png', 'webp'"),
        ({"images": "none"}, "without them there is 'jsonl'"),
        ({"images": "download"}, "run `laion-face download` first"),
        ({"on_error": "null"}, "is not exported"),
        ({"shards": "3/3"}, "expected I/N"),
        ({"processes": 0}, "processes=0"),
        ({"sise": 3}, "did you mean size"),
    ],
)
def test_what_makes_no_sense_is_an_error(prepared, tmp_path, given, said):
    with pytest.raises(OptionError, match=said):
        laion_face.export("20M", tmp_path / "out", data_dir=prepared.data.root, parts="0", **given)
    assert not (tmp_path / "out").exists()


def test_layouts_and_drawings_are_told():
    helps = {spec: field.metadata["help"] for spec, field in ExportOptions.__dataclass_fields__.items()}
    assert all(layout in helps["layout"] for layout in LAYOUTS)
    assert all(drawing in helps["draw"] for drawing in DRAWINGS)
