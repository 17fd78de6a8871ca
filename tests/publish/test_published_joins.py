"""Tables that are joined, in published copies: in files, card, Croissant and manifest, and read again as an index."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import laion_face
from laion_face_builder.errors import StateConflict
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.published_columns import features_of, schema_of_features
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.verify.verify import verify


@pytest.fixture(scope="session")
def table(prepared, tmp_path_factory):
    ids = [truth.sample_id for truth in prepared.truth][::2]
    file = tmp_path_factory.mktemp("joined") / "captions.parquet"
    boxes = [[{"name": "eye", "xs": [i % 5, i % 7]}] * (i % 3) for i in ids]
    texts = [f"seen: {i}" for i in ids]
    pq.write_table(pa.table({"sample_id": ids, "text": texts, "boxes": boxes}), file)
    return file, dict(zip(ids, texts, strict=True))


@pytest.mark.parametrize("with_images", [False, True])
def test_joined_columns_are_published_and_read_again(prepared, table, with_images, tmp_path):
    file, known = table
    target = tmp_path / "copy"
    publish(PublishRequest(prepared.data, str(target), join=f"blip={file}", with_images=with_images, preview=3))
    assert list(verify(str(target), deep=True).problems) == []
    with (target / "README.md").open() as card:
        head = yaml.safe_load(card.read().split("---\n")[1])
    for info in head["dataset_info"]:
        assert [column["name"] for column in info["features"]][-2:] == ["blip_text", "blip_boxes"]
    fields = json.loads((target / "croissant.json").read_text())["recordSet"][0]["field"]
    assert [field["name"] for field in fields][-2:] == ["blip_text", "blip_boxes"]
    rows = datasets.load_dataset(str(target), "20M", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["blip_text"] == [known.get(one) for one in rows["sample_id"]]
    assert [one["blip_boxes"] for one in rows if one["sample_id"] not in known][:3] == [None] * 3
    if with_images:
        return
    again = laion_face.load_dataset(
        "20M", index=str(target), parts="0,2", images="none", split="train", streaming=True, data_dir=str(tmp_path)
    )
    assert list(again.features)[-2:] == ["blip_text", "blip_boxes"]
    assert [one["blip_text"] for one in again] == rows["blip_text"][:]


def test_inner_publishes_matching_rows_and_other_columns_do_not_mix(prepared, table, tmp_path):
    file, known = table
    target = tmp_path / "copy"
    publish(PublishRequest(prepared.data, str(target), parts="0", join=str(file), join_how="inner"))
    rows = pq.read_table(target / "data" / "part-00000.parquet")
    of_part = [truth.sample_id for truth in prepared.sandbox.truth_of(0)]
    assert rows["sample_id"].to_pylist() == [one for one in of_part if one in known]
    assert "that the publisher's own tables lack are left out" in (target / "README.md").read_text()
    with pytest.raises(StateConflict, match="has text, boxes beside our columns, and these parts would have nothing"):
        publish(PublishRequest(prepared.data, str(target), parts="2"))


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(), pa.int8(), pa.float64(), pa.bool_(), pa.binary(), pa.date32(), pa.timestamp("us", "UTC"),
        pa.decimal128(10, 2), pa.list_(pa.string()), pa.list_(pa.list_(pa.float32())), pa.struct([("a", pa.int64())]),
        pa.list_(pa.struct([("a", pa.list_(pa.int64())), ("b", pa.struct([("c", pa.string())]))])),
    ],
    ids=str,
)  # fmt: skip
def test_a_column_is_described_so_that_datasets_and_we_read_it(kind):
    schema = pa.schema([("x", kind)])
    features = json.loads(json.dumps(features_of(schema)))
    assert schema_of_features(features) == schema
    assert datasets.Features._from_yaml_list(features).arrow_schema.field("x").type == kind
