"""Tables joined beside the index: in streams, Arrow files and resumed streams."""

import pandas as pd
import pytest

import laion_face
from laion_face_builder.errors import OptionError
from tests.support.streams import ids_of

WHICH = {"parts": "0,2", "images": "none", "split": "train"}


@pytest.fixture(scope="session")
def captions(prepared, tmp_path_factory):
    """Write a table of half of the samples, from last to first, and of one that is not ours."""
    ids = [truth.sample_id for truth in prepared.truth][::-2]
    file = tmp_path_factory.mktemp("joined") / "captions.parquet"
    frame = pd.DataFrame({"sample_id": [*ids, 7], "blip": [f"a picture of {i}" for i in [*ids, 7]]})
    frame["numbers"] = [[i % 3] * (i % 4) for i in [*ids, 7]]
    frame.to_parquet(file, index=False)
    return file, dict(zip(frame["sample_id"], frame["blip"], strict=True))


@pytest.mark.parametrize("streaming", [True, False])
def test_joined_columns_come_after_ours(prepared, captions, streaming, tmp_path):
    file, known = captions
    how = {**WHICH, "streaming": streaming, "cache_dir": str(tmp_path), "data_dir": str(prepared.data.root)}
    plain = laion_face.load_dataset("20M", **how)
    joined = laion_face.load_dataset("20M", join=str(file), **how)
    assert list(joined.features) == [*plain.features, "blip", "numbers"]
    examples = list(joined)
    assert [{name: one[name] for name in plain.features} for one in examples] == list(plain)
    assert [one["blip"] for one in examples] == [known.get(one["sample_id"]) for one in examples]
    assert [one["numbers"] for one in examples] == [
        [one["sample_id"] % 3] * (one["sample_id"] % 4) if one["sample_id"] in known else None for one in examples
    ]


def test_inner_leaves_out_what_the_table_lacks(prepared, captions):
    file, known = captions
    how = {**WHICH, "streaming": True, "data_dir": str(prepared.data.root)}
    inner = laion_face.load_dataset("20M", join=str(file), join_how="inner", **how)
    assert ids_of(inner) == [truth.sample_id for truth in prepared.truth if truth.sample_id in known]
    assert laion_face.report(inner).filtered == sum(truth.sample_id not in known for truth in prepared.truth)


def test_a_name_that_is_taken_is_refused_with_a_way_out(prepared, tmp_path):
    pd.DataFrame({"sample_id": [1], "caption": ["x"]}).to_parquet(tmp_path / "mine.parquet")
    how = {**WHICH, "streaming": True, "data_dir": str(prepared.data.root)}
    with pytest.raises(OptionError, match=r"its column .caption. would be 'caption'.*makes it 'mine_caption'"):
        laion_face.load_dataset("20M", join=tmp_path / "mine.parquet", **how)
    named = laion_face.load_dataset("20M", join={"blip": tmp_path / "mine.parquet"}, **how)
    assert list(named.features)[-1] == "blip_caption"
