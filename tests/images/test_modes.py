"""`mode="RGB"`: whatever pictures are, they come in one mode, and look as they look in a browser on a white page."""

import io
import itertools

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torch.utils.data import DataLoader

import laion_face
from laion_face_builder.errors import PictureError
from laion_face_builder.examples import parts
from laion_face_builder.images import modes, pictures
from laion_face_builder.index.prepare import prepare
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.sandbox import Answer, SandboxSpec

WIDTH, HEIGHT = 48, 40
WHITE = (255, 255, 255)


def halves(mode, left, right):
    """Make a picture whose left half has one value and whose right half another."""
    picture = Image.new(mode, (WIDTH, HEIGHT), left)
    picture.paste(right, (WIDTH // 2, 0, WIDTH, HEIGHT))
    return picture


def of_numbers(left, right, kind):
    """Make such halves of one number a pixel, as Pillow opens an array."""
    values = np.full((HEIGHT, WIDTH), left, kind)
    values[:, WIDTH // 2 :] = right
    return Image.fromarray(values)


def saved(picture, form, **settings):
    out = io.BytesIO()
    picture.save(out, form, **settings)
    return out.getvalue()


def palette(**settings):
    picture = Image.new("P", (WIDTH, HEIGHT), 0)
    picture.putpalette([200, 30, 40, 10, 20, 30])
    picture.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
    return saved(picture, "PNG", **settings)


def cmyk(*inks):
    return saved(halves("CMYK", *inks), "JPEG", quality=100)


def without_adobe(data):
    """Return the JPEG without the segment in which Adobe's software says what its four channels are."""
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def ycck(left, right):
    """Make what Photoshop writes for CMYK: Y, Cb and Cr of the inks, and black, all inverted as Adobe does."""
    y, cb, cr = halves("RGB", left, right).convert("YCbCr").split()
    black = Image.new("L", (WIDTH, HEIGHT), 0)
    # Pillow writes CMYK inverted, so what is to be stored as it is is inverted here.
    planes = [plane.point(lambda value: 255 - value) for plane in (y, cb, cr)]
    data = bytearray(saved(Image.merge("CMYK", [*planes, black]), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2  # "the first three are YCC"
    return bytes(data)


def lab():
    to_lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return saved(ImageCms.profileToProfile(halves("RGB", (200, 40, 40), WHITE), *to_lab, outputMode="LAB"), "TIFF")


#: name -> (bytes, what a person sees on the left, on the right); hidden colours are red, so that nobody misses them.
HOSTILE = {
    "1": (saved(halves("1", 0, 1), "PNG"), (0, 0, 0), WHITE),
    "L": (saved(halves("L", 10, 200), "PNG"), (10, 10, 10), (200, 200, 200)),
    "L jpeg": (saved(halves("L", 10, 200), "JPEG", quality=100), (10, 10, 10), (200, 200, 200)),
    "L, one grey transparent": (saved(halves("L", 10, 200), "PNG", transparency=10), WHITE, (200, 200, 200)),
    "LA": (saved(halves("LA", (10, 0), (200, 255)), "PNG"), WHITE, (200, 200, 200)),
    "P": (palette(), (200, 30, 40), (10, 20, 30)),
    "P, one colour transparent": (palette(transparency=0), WHITE, (10, 20, 30)),
    "P, half transparent": (palette(transparency=bytes([128, 255])), (227, 142, 147), (10, 20, 30)),
    "gif, transparent": (saved(halves("P", 0, 1), "GIF", transparency=0), WHITE, (1, 1, 1)),
    "RGB": (saved(halves("RGB", (200, 30, 40), WHITE), "PNG"), (200, 30, 40), WHITE),
    "RGB, one colour transparent": (
        saved(halves("RGB", (200, 30, 40), (1, 2, 3)), "PNG", transparency=(200, 30, 40)),
        WHITE,
        (1, 2, 3),
    ),
    "RGBA": (saved(halves("RGBA", (255, 0, 0, 0), (10, 20, 30, 255)), "PNG"), WHITE, (10, 20, 30)),
    "RGBA, half": (saved(halves("RGBA", (0, 0, 0, 127), (10, 20, 30, 255)), "PNG"), (128, 128, 128), (10, 20, 30)),
    "webp with alpha": (
        saved(halves("RGBA", (255, 0, 0, 0), (10, 20, 30, 255)), "WEBP", lossless=True, exact=True),
        WHITE,
        (10, 20, 30),
    ),
    "I;16": (saved(of_numbers(257 * 10, 257 * 200, np.uint16), "PNG"), (10, 10, 10), (200, 200, 200)),
    "I;16, dark": (saved(of_numbers(0, 255, np.uint16), "PNG"), (0, 0, 0), (0, 0, 0)),
    "I;16, one grey transparent": (
        saved(of_numbers(257 * 10, 257 * 200, np.uint16), "PNG", transparency=257 * 10),
        WHITE,
        (200, 200, 200),
    ),
    "I;16 tiff": (saved(of_numbers(257 * 10, 257 * 200, np.uint16), "TIFF"), (10, 10, 10), (200, 200, 200)),
    "I": (saved(of_numbers(257 * 10, 257 * 200, np.int32), "TIFF"), (10, 10, 10), (200, 200, 200)),
    "I, all bits": (saved(of_numbers(0, 2**31 - 1, np.int32), "TIFF"), (0, 0, 0), WHITE),
    "F of 0..1": (saved(of_numbers(0.2, 1.0, np.float32), "TIFF"), (51, 51, 51), WHITE),
    "F of 0..255": (saved(of_numbers(10, 200, np.float32), "TIFF"), (10, 10, 10), (200, 200, 200)),
    "F that is none": (saved(of_numbers(np.nan, -3, np.float32), "TIFF"), (0, 0, 0), (0, 0, 0)),
    "CMYK jpeg": (cmyk((0, 255, 255, 0), (0, 0, 0, 255)), (255, 0, 0), (0, 0, 0)),
    "CMYK jpeg without Adobe's word": (without_adobe(cmyk((0, 255, 255, 0), (0, 0, 0, 0))), (255, 0, 0), WHITE),
    "YCCK jpeg": (ycck((0, 255, 255), (0, 0, 0)), (255, 0, 0), WHITE),
    "CMYK tiff": (saved(halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF"), (255, 0, 0), WHITE),
    "YCbCr tiff": (saved(halves("RGB", (200, 30, 40), WHITE).convert("YCbCr"), "TIFF"), (200, 30, 40), WHITE),
    "LAB tiff": (lab(), (200, 40, 40), WHITE),
}


def as_datasets(data, mode):
    """Return what `datasets` makes of these bytes."""
    return datasets.Image(mode=mode).decode_example({"bytes": data, "path": None})


def looks(picture, left, right):
    assert picture.size == (WIDTH, HEIGHT)
    inner = np.asarray(picture).reshape(HEIGHT, WIDTH, -1)[4:-4]
    for part, colour in ((inner[:, 4 : WIDTH // 2 - 8], left), (inner[:, WIDTH // 2 + 8 : -4], right)):
        assert np.abs(part.astype(int) - np.asarray(colour)).max() <= 4


def grey(colour):
    return Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))


@pytest.mark.parametrize("name", HOSTILE)
def test_every_kind_of_picture_looks_as_it_should(name):
    data, left, right = HOSTILE[name]
    pictures.inspect(data)
    rgb, black_and_white = (as_datasets(modes.in_mode(data, mode), mode) for mode in modes.MODES)
    assert (rgb.mode, black_and_white.mode) == ("RGB", "L")
    looks(rgb, left, right)
    looks(black_and_white, [grey(left)], [grey(right)])


def test_pillows_own_way_is_wrong_where_ours_is_taken():
    # If Pillow's way were right, there would be no need for ours.
    wrong = {"I;16", "RGBA", "LA", "P, one colour transparent", "I", "F of 0..1"}
    for name, (data, left, right) in HOSTILE.items():
        if name in wrong:
            with pytest.raises(AssertionError):
                looks(as_datasets(data, "RGB"), left, right)
    with pytest.raises(ValueError, match="LAB"):
        as_datasets(HOSTILE["LAB tiff"][0], "L")


def test_bytes_that_need_nothing_are_left_alone():
    kept = {name for name, (data, *_) in HOSTILE.items() if modes.in_mode(data, "RGB") == data}
    assert kept >= {"1", "L", "L jpeg", "P", "RGB", "CMYK jpeg", "YCCK jpeg", "CMYK tiff"}
    assert not any("transparent" in name or name.startswith(("I", "F", "LA", "RGBA", "webp")) for name in kept)


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_sixteen_bits_keep_their_high_byte(one, other):
    found = modes.to_mode(of_numbers(one, other, np.uint16), "L")
    assert (found.getpixel((0, 0)), found.getpixel((WIDTH - 1, 0))) == (one >> 8, other >> 8)


@given(st.integers(0, 255), st.integers(0, 255))
def test_transparency_goes_over_white(alpha, value):
    seen = np.asarray(modes.to_rgb(Image.new("RGBA", (1, 1), (value, value, value, alpha))))
    assert abs(int(seen[0, 0, 0]) - (255 - alpha * (255 - value) / 255)) <= 1


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "I;16B", "I;16L", "RGBX", "HSV"])
def test_modes_that_hardly_any_file_has_are_no_errors(mode):
    assert modes.to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_what_cannot_be_opened_is_a_picture_error():
    with pytest.raises(PictureError):
        modes.in_mode(HOSTILE["RGBA"][0][:60], "RGB")


@pytest.fixture(scope="module")
def hostile_rows():
    """Give (name, bytes, left, right) without an end, for as many rows as there are."""
    return itertools.cycle([(name, *rest) for name, rest in HOSTILE.items()])


@pytest.fixture
def mixed(make_sandbox, hostile_rows, tmp_path):
    """Give options over a part of the hostile mix of pictures, fetched or from tars; and what each row looks like."""
    box = make_sandbox(SandboxSpec(parts=(0,), rows=150, failing=0, twisted=0))
    truth = box.truth_of(0)
    seen = {}
    for row, (name, data, left, right) in zip(truth, hostile_rows, strict=False):
        box.pictures.answers[row.path] = Answer(body=data)
        seen[row.sample_id] = (name, left, right)
    assert len(seen) >= len(HOSTILE)
    given = {"parts": "0", "metadata": str(box.metadata_folder), "source_repo": box.repo, "allow_private_hosts": True}
    options = Options.of("20M", OptionFields(**given), tmp_path / "data")
    prepare(options.data, options.parts, options.upstream)
    return options, {**given, "data_dir": str(options.data.root), "split": "train"}, seen


def check(ds, seen):
    assert ds.features["image"].mode == "RGB"
    examples = list(ds)
    assert {example["sample_id"] for example in examples} == set(seen)
    for example in examples:
        assert example["image"].mode == "RGB"
        looks(example["image"], *seen[example["sample_id"]][1:])
        assert (example["width"], example["height"]) == (WIDTH, HEIGHT)
    for example in ds.cast_column("image", datasets.Image(mode="RGB", decode=False)):
        looks(Image.open(io.BytesIO(example["image"]["bytes"])).convert("RGB"), *seen[example["sample_id"]][1:])


def test_streams_tars_and_arrow_files_yield_one_mode(mixed, tmp_path):
    options, given, seen = mixed
    check(laion_face.load_dataset("20M", mode="RGB", streaming=True, images="fetch", **given), seen)
    how = parts.download_options(options, processes_count=1)
    assert len(list(parts.download(options, how))) == 1
    check(laion_face.load_dataset("20M", mode="RGB", streaming=True, **given), seen)
    check(laion_face.load_dataset("20M", mode="RGB", cache_dir=str(tmp_path / "arrow"), **given), seen)


def tensor(example):
    """Convert an example as torchvision's ToTensor does."""
    pixels = torch.from_numpy(np.array(example["image"])).permute(2, 0, 1).float() / 255
    return {"image": pixels, "caption": example["caption"] or "", "sample_id": example["sample_id"]}


def test_torchs_own_collate_takes_a_batch_of_the_mix(mixed):
    _, given, seen = mixed

    def loader(**options):
        ds = laion_face.load_dataset("20M", streaming=True, images="fetch", shards_per_part=2, **options, **given)
        return DataLoader(ds.map(tensor, remove_columns=ds.column_names), batch_size=8, num_workers=2)

    batches = list(loader(mode="RGB"))
    assert {batch["image"].shape[1:] for batch in batches} == {(3, HEIGHT, WIDTH)}
    assert sorted(int(one) for batch in batches for one in batch["sample_id"]) == sorted(seen)
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        list(loader())


def test_pictures_keep_their_faces_in_frame(prepared):
    # The pictures are of every kind that the sandbox draws, turned ones too: only the colours are others.
    given = {"parts": "0,2", "data_dir": str(prepared.data.root), "split": "train", "streaming": True}
    plain, converted = (list(laion_face.load_dataset("20M", mode=mode, **given)) for mode in (None, "RGB"))
    assert len({example["image"].mode for example in plain}) > 4
    assert {example["image"].mode for example in converted} == {"RGB"}
    for before, after in zip(plain, converted, strict=True):
        assert after["image"].size == before["image"].size
        assert modes.to_rgb(before["image"]).tobytes() == after["image"].tobytes()
        assert {**after, "image": None} == {**before, "image": None}


def test_the_mode_defines_the_data():
    def of(**given):
        return Options.of("20M", OptionFields(**given)).defining()

    assert of() == of(mode=None) != of(mode="RGB") != of(mode="L")
    assert "mode" not in of()
