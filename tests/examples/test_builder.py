"""Examples as users get them: streamed or not, on both versions of datasets, against what is true of the sandbox."""

import itertools
import json
import shutil
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import laion_face
from laion_face_builder.errors import NotPrepared, OptionError, PictureError
from laion_face_builder.files import canonical_json
from laion_face_builder.sandbox import SandboxSpec
from laion_face_builder.schema import EXAMPLE_COLUMNS, example_features


@pytest.fixture
def load(prepared, tmp_path):
    """Give `laion_face.load_dataset` over the prepared parts, with an Arrow cache of its own."""

    def loaded(**options):
        given = {"parts": "0,2", "data_dir": str(prepared.data.root), "split": "train", **options}
        return laion_face.load_dataset("20M", cache_dir=str(tmp_path / "arrow"), **given)

    return loaded


def plain(examples):
    """Return examples without PIL objects: size, mode and pixels instead."""
    return [{**example, "image": picture_of(example["image"])} for example in examples]


def picture_of(image):
    return None if image is None else (image.size, image.mode, image.tobytes())


def stored_pixels(truth):
    """Return the served picture as stored, with no orientation applied."""
    with Image.open(BytesIO(truth.served)) as image:
        image.load()
        return image.copy()


@pytest.fixture(scope="session")
def streamed(prepared):
    """Return all examples of parts 0 and 2, in order."""
    return list(
        laion_face.load_dataset("20M", parts="0,2", data_dir=str(prepared.data.root), split="train", streaming=True)
    )


def test_every_picture_that_can_be_had_is_yielded_in_index_order(prepared, streamed):
    wanted = [truth.sample_id for truth in prepared.truth if truth.ok]
    assert len(wanted) > 100
    assert [example["sample_id"] for example in streamed] == wanted


def test_examples_say_what_is_true(prepared, streamed):
    truths = {truth.sample_id: truth for truth in prepared.truth}
    for example in streamed:
        truth = truths[example["sample_id"]]
        assert tuple(example) == EXAMPLE_COLUMNS
        assert (example["caption"], example["url"], example["part"]) == (truth.caption, truth.url, truth.part)
        assert (example["nsfw"], example["license"]) == (truth.nsfw, truth.license)
        assert example["similarity"] == truth.similarity
        assert (example["original_width"], example["original_height"]) == truth.original_size
        assert (example["width"], example["height"]) == truth.served_size == example["image"].size
        assert example["faces_aligned"] == truth.aligned
    shown = {truth.part for truth in truths.values() if truth.ok and truth.original_size != (truth.width, truth.height)}
    assert shown == {0, 2}


def test_pictures_are_the_stored_pixels_whatever_exif_says(prepared, streamed):
    truths = {truth.sample_id: truth for truth in prepared.truth}
    turned = 0
    for example in streamed:
        truth = truths[example["sample_id"]]
        turned += truth.orientation != 1
        expected = stored_pixels(truth)
        assert expected.size == example["image"].size
        difference = np.abs(np.asarray(expected.convert("RGB"), int) - np.asarray(example["image"].convert("RGB"), int))
        assert difference.max() == 0, truth.kind
    assert turned > 10


def test_faces_follow_a_rescaled_picture(prepared, streamed):
    truths = {truth.sample_id: truth for truth in prepared.truth}
    rescaled = 0
    for example in streamed:
        truth = truths[example["sample_id"]]
        if not truth.aligned:
            continue
        width, height = truth.original_size
        scale = np.array([example["width"] / width, example["height"] / height])
        rescaled += bool(truth.faces) and not np.allclose(scale, 1)
        assert len(example["faces"]) == len(truth.faces)
        for found, face in zip(example["faces"], truth.faces, strict=True):
            box = (np.array(face.box) + 0.5) * np.tile(scale, 2) - 0.5  # a pixel's centre is a whole number
            assert np.allclose(found["box"], box, atol=1e-3)
            assert np.allclose(found["landmarks"], (np.array(face.landmarks) + 0.5) * scale - 0.5, atol=1e-3)
            assert found["score"] == face.score
    assert rescaled > 2


@pytest.mark.parametrize("streaming", [True, False])
def test_one_example_a_face_by_map(load, streamed, streaming):
    # The recipe of the docs; on a stream it is done batch by batch, while the pictures arrive.
    wanted = [
        (example["sample_id"], laion_face.crop_face(example["image"], face, size=96))
        for example in streamed
        if example["faces_aligned"]
        for face in example["faces"]
    ]
    made = load(streaming=streaming).map(
        laion_face.crop_faces, batched=True, batch_size=16, fn_kwargs={"size": 96}, **features_unless(streaming)
    )
    crops = list(made)
    assert [crop["sample_id"] for crop in crops] == [sample_id for sample_id, _ in wanted]
    for crop, (_, expected) in zip(crops, wanted, strict=True):
        assert tuple(crop) == EXAMPLE_COLUMNS
        assert picture_of(crop["image"].convert("RGB")) == picture_of(expected.image.convert("RGB"))
        assert crop["faces"] == [expected.face]
        assert (crop["width"], crop["height"]) == (96, 96)
    assert laion_face.collate(crops[:3])["faces"][0]["boxes"].shape == (1, 4)


def features_unless(streaming):
    """Return what tells Arrow that a batch may have no face at all, and that pictures are pictures."""
    return {} if streaming else {"features": example_features()}


def test_numbers_are_plain_python_numbers(streamed):
    for example in streamed:
        assert type(example["sample_id"]) is int
        assert type(example["faces_aligned"]) is bool
        for face in example["faces"]:
            numbers = [*face["box"], *itertools.chain(*face["landmarks"]), face["score"]]
            assert all(type(number) is float and number == float(np.float32(number)) for number in numbers)


def test_not_streamed_is_the_same(load, streamed):
    assert plain(load()) == plain(streamed)


def test_several_processes_make_the_same_examples(load, streamed):
    assert plain(load(num_proc=2)) == plain(streamed)


def test_without_pictures(load, prepared):
    for streaming in (True, False):
        examples = list(load(images="none", streaming=streaming))
        assert [example["sample_id"] for example in examples] == [truth.sample_id for truth in prepared.truth]
        assert {example["image"] for example in examples} == {None}
        assert [e["faces"] for e in examples] == [[f.as_dict() for f in t.faces] for t in prepared.truth]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_failed_picture_can_be_null(load, prepared, streaming):
    examples = list(load(on_error="null", streaming=streaming))
    assert [example["sample_id"] for example in examples] == [truth.sample_id for truth in prepared.truth]
    assert [example["image"] is not None for example in examples] == [truth.ok for truth in prepared.truth]


def test_a_failed_picture_can_stop_the_iteration(load):
    with pytest.raises(PictureError, match="http"):
        list(load(on_error="raise", streaming=True))


def test_what_to_do_when_the_size_has_changed(load, prepared, streamed):
    reshaped = {truth.sample_id for truth in prepared.truth if truth.twist == "reshaped" and truth.width and truth.ok}
    rescaled = {t.sample_id for t in prepared.truth if t.twist == "rescaled" and t.width and t.height and t.ok}
    assert reshaped
    assert rescaled
    dropped = load(on_size_change="drop", streaming=True)
    known = {e["sample_id"] for e in streamed} - {e["sample_id"] for e in dropped}
    assert known == {e["sample_id"] for e in streamed if e["sample_id"] in reshaped and e["original_height"]}
    assert laion_face.report(dropped).failed["size_changed"] == len(known)
    kept = {example["sample_id"]: example for example in load(on_size_change="keep", streaming=True)}
    assert not any(kept[sample_id]["faces_aligned"] for sample_id in rescaled)


@pytest.mark.parametrize("streaming", [True, False])
def test_filters_drop_samples_and_are_counted(load, prepared, streaming):
    def wanted(truth):
        return any(min(f.box[2] - f.box[0], f.box[3] - f.box[1]) >= 30 for f in truth.faces)

    ds = load(min_face_size=30, streaming=streaming)
    assert [e["sample_id"] for e in ds] == [t.sample_id for t in prepared.truth if wanted(t) and t.ok]
    assert laion_face.report(ds).filtered == sum(not wanted(truth) for truth in prepared.truth) > 0


def test_exclusion_by_the_bytes_of_a_picture(load, prepared, tmp_path):
    import hashlib

    victim = next(truth for truth in prepared.truth if truth.ok)
    (tmp_path / "list").write_text(hashlib.sha256(victim.served).hexdigest())
    ds = load(exclude=str(tmp_path / "list"), streaming=True)
    assert victim.sample_id not in {example["sample_id"] for example in ds}
    assert laion_face.report(ds).failed["excluded"] == 1


@pytest.mark.parametrize("streaming", [True, False])
def test_nothing_vanishes_without_being_counted(load, prepared, streaming):
    ds = load(streaming=streaming)
    yielded = len(list(ds))
    report = laion_face.report(ds)
    assert report.rows == len(prepared.truth)
    assert report.yielded == yielded == sum(truth.ok for truth in prepared.truth)
    assert report.failures == sum(not truth.ok for truth in prepared.truth)
    assert report.failed["http_404"] == sum(truth.fate == "http_404" for truth in prepared.truth)
    if streaming:
        assert laion_face.report(ds.map(dict)) == report


def test_a_report_of_something_else_is_refused():
    with pytest.raises(OptionError, match="report"):
        laion_face.report(datasets.Dataset.from_dict({"a": [1]}))


def ids_of_caches(tmp_path):
    return {path.parent.name for path in (tmp_path / "arrow").rglob("dataset_info.json")}


def test_the_cache_is_named_by_data_never_by_transport(load, tmp_path, prepared):
    first = load(images="none").cache_files[0]["filename"]
    assert load(images="none", timeout=3, per_host=1, parts=[2, 0]).cache_files[0]["filename"] == first
    assert load(images="none", min_faces=1).cache_files[0]["filename"] != first


def test_changed_content_never_comes_back_from_the_cache(load, prepared, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(prepared.data.root, data)
    before = load(data_dir=str(data))
    tar = next((data / "images" / "part-00000").glob("*.tar"))
    tar.unlink()
    again = load(data_dir=str(data))
    assert len(again) == len(before)
    for name in ("index", "images"):
        shutil.rmtree(data / name)
    laion_face.load_dataset("20M", parts="0,2", data_dir=str(data), images="none", cache_dir=str(tmp_path / "other"))
    assert len(load(data_dir=str(data), images="none")) > len(before)


def test_tars_of_the_original_scripts_are_a_source_of_pictures(load, prepared, streamed, tmp_path):
    folder = tmp_path / "laion_face_data"
    for part in (0, 2):
        shutil.copytree(prepared.data.tars(part), folder / f"split_{part:05d}")
    ids = [example["sample_id"] for example in streamed]
    for streaming in (True, False):
        examples = list(load(images=str(folder), streaming=streaming))
        assert [example["sample_id"] for example in examples] == ids
    assert plain(examples) == plain(streamed)


def test_pictures_that_are_not_there_are_an_error_with_the_way_out(prepared, tmp_path):
    given = {"parts": "0", "data_dir": str(tmp_path), "split": "train"}
    with pytest.raises(NotPrepared, match=r"images='download'.*once more as Arrow.*free"):
        laion_face.load_dataset("20M", **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"name": "20m"}, "valid are 20M, 50M$"),
        ({"name": "owner/copy"}, r"a published copy goes as load_dataset\('20M', index='owner/copy'\)"),
        ({"name": None}, "valid are 20M, 50M"),
        ({"min_face_sise": 3}, "did you mean min_face_size"),
        ({"data_files": "x"}, "data_dir="),
        ({"features": datasets.Features({})}, r"\.cast"),
        ({"revision": "main"}, "source_revision="),
        ({"save_infos": True}, "info"),
        ({"parts": "1"}, "its parts are 0, 2, 5"),
        ({"streaming": True, "num_proc": 2}, "DataLoader"),
    ],
)
def test_wrong_calls_say_what_is_valid(call, said):
    with pytest.raises(OptionError, match=said):
        laion_face.load_dataset(**{"name": "20M", "images": "none", **call})


def test_configs_of_the_class_are_never_changed(prepared):
    def fields():
        return canonical_json([{**vars(c), "version": str(c.version)} for c in laion_face.LaionFace.BUILDER_CONFIGS])

    before = fields()
    builder = laion_face.LaionFace(config_name="50M", parts="0,2", index=str(prepared.data.root), min_faces=2)
    assert builder.config.options().parts == (0, 2)
    assert builder.as_streaming_dataset(split="train").num_shards == 2 * 128
    laion_face.LaionFace(config_name="50M")
    assert fields() == before


def test_the_builder_itself(prepared, streamed, tmp_path):
    builder = laion_face.LaionFace(
        config_name="20M", parts="0,2", data_dir=str(prepared.data.root), cache_dir=str(tmp_path)
    )
    builder.download_and_prepare()
    assert plain(builder.as_dataset(split="train")) == plain(streamed)
    assert set(builder.as_streaming_dataset()) == {"train"}


def test_the_public_surface():
    functions = ["collate", "export", "in_step", "load_dataset", "look", "report"]
    builders = ["LaionFace", "LaionFaceConfig"]
    builders += ["LaionFaceError", "OptionError", "Report"]
    transforms = ["align_face", "crop_face", "crop_faces", "draw_faces"]
    assert laion_face.__all__ == sorted([*builders, *functions, *transforms])
    assert all(hasattr(laion_face, name) for name in laion_face.__all__)
    assert dir(laion_face) == sorted([*laion_face.__all__, "__version__"])
    assert json.loads(json.dumps(list(laion_face.LaionFace.builder_configs))) == ["20M", "50M"]
    assert Path(laion_face.__file__).read_text().count("\n") < 200


def test_one_call_prepares_downloads_and_loads(make_sandbox, tmp_path):
    # images="download" from nothing: the whole job in one call, and nothing is done again by the next.
    box = make_sandbox(SandboxSpec(parts=(0,), rows=90, twisted=0))
    given = {
        "parts": "0",
        "split": "train",
        "images": "download",
        "source_repo": box.repo,
        "metadata": box.metadata_repo,
        "data_dir": str(tmp_path / "data"),
        "cache_dir": str(tmp_path / "arrow"),
        "allow_private_hosts": True,
        "retries": 0,
    }
    wanted = [truth.sample_id for truth in box.truth if truth.ok]
    assert laion_face.load_dataset("20M", **given)["sample_id"][:] == wanted
    asked = len(box.hub.log), len(box.pictures.log)
    streamed = laion_face.load_dataset("20M", **given, streaming=True)
    assert (len(box.hub.log), len(box.pictures.log)) == asked
    assert [example["sample_id"] for example in streamed] == wanted
    assert (len(box.hub.log), len(box.pictures.log)) == asked
