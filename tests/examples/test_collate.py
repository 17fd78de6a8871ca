"""Batches of examples of all kinds: whatever is missing in one, a column has the type that it has in the next."""

import math
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laion_face_builder.examples.collate import NULLABLE, collate
from laion_face_builder.schema import example_features

FACE = {"box": [0.0, 1.0, 2.0, 3.0], "landmarks": [[0.0, 1.0]] * 5, "score": 0.5}
SIZES = st.none() | st.integers(1, 9000)
TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
EXAMPLES = st.fixed_dictionaries(
    {
        "sample_id": st.integers(0, 2**53 - 1),
        "caption": TEXTS,
        "faces": st.lists(st.just(FACE), max_size=3),
        "url": st.text("ab", min_size=1),
        "width": SIZES,
        "height": SIZES,
        "original_width": SIZES,
        "original_height": SIZES,
        "faces_aligned": st.booleans(),
        "part": st.integers(0, 31),
        "nsfw": TEXTS,
        "similarity": st.none() | st.floats(0, 1),
        "license": TEXTS,
    }
)
TYPES = {
    "sample_id": torch.int64,
    "faces_aligned": torch.bool,
    "part": torch.int64,
    **dict.fromkeys(NULLABLE, torch.float64),
}
FEATURES = datasets.Features({name: kind for name, kind in example_features().items() if name != "image"})


@given(st.lists(EXAMPLES, min_size=1, max_size=4), st.sampled_from([None, "numpy", "torch"]))
def test_a_column_has_one_type_in_every_batch_and_format(examples, form):
    table = datasets.Dataset.from_list(examples, features=FEATURES)
    batch = collate(list(table.with_format(form) if form else table))
    assert set(batch) == set(FEATURES)
    for name, values in batch.items():
        if name == "faces":
            assert [face["scores"].tolist() for face in values] == [[0.5] * len(row["faces"]) for row in examples]
            assert all(face["boxes"].shape == (len(face["scores"]), 4) for face in values)
            assert all(face["landmarks"].shape == (len(face["scores"]), 5, 2) for face in values)
            assert all(tensor.dtype == torch.float32 for face in values for tensor in face.values())
        elif name in TYPES:
            assert values.dtype == TYPES[name], name
            # Formats of datasets make float32 of numbers where some are missing.
            assert values.tolist() == pytest.approx([nan_for(row[name]) for row in examples], nan_ok=True), name
        else:
            assert values == [row[name] for row in examples]


def nan_for(value: Any) -> Any:
    return math.nan if value is None else value


def test_every_number_of_an_example_is_told_of():
    numbers = {name for name, kind in FEATURES.items() if getattr(kind, "dtype", "string") != "string"} - {"faces"}
    assert numbers == set(TYPES)


def test_ids_are_exact():
    assert collate([{"sample_id": 2**52 + 1}, {"sample_id": 1}])["sample_id"].tolist() == [2**52 + 1, 1]


def test_images_are_stacked_only_if_they_fit():
    one, two = torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)
    assert collate([{"image": one}, {"image": one}])["image"].shape == (2, 3, 4, 4)
    assert len(collate([{"image": one}, {"image": two}])["image"]) == 2
    array = np.zeros((4, 4, 3), np.uint8)
    assert collate([{"image": array}, {"image": array}])["image"].shape == (2, 4, 4, 3)
    picture = Image.new("RGB", (2, 2))
    assert collate([{"image": picture}, {"image": None}])["image"] == [picture, None]
    assert collate([]) == {}


OWN = [
    ([1, 2], torch.tensor([1, 2])),
    ([1, None], torch.tensor([1, math.nan], dtype=torch.float64)),
    ([0.5, np.float32(1.5)], torch.tensor([0.5, 1.5])),
    ([torch.tensor(3), torch.tensor(4)], torch.tensor([3, 4])),
    ([np.arange(2), np.arange(2)], torch.tensor([[0, 1], [0, 1]])),
    ([np.arange(2), np.arange(3)], list),
    ([np.array(["a", "b"]), np.array(["c", "d"])], list),
    ([None, None], list),
    ([[1], [2, 3]], list),
    (["a", 1], list),
]


@pytest.mark.parametrize(("values", "expected"), OWN)
def test_columns_of_your_own(values, expected):
    made = collate([{"mine": value} for value in values])["mine"]
    if expected is list:
        assert isinstance(made, list)
        return
    assert torch.equal(made.nan_to_num(-1), expected.nan_to_num(-1))
    assert made.dtype == expected.dtype
