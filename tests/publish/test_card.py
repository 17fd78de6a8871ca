"""The card is complete, true of what is there, and understood by `datasets` and the Hub."""

from dataclasses import replace
from pathlib import PurePosixPath

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile
from laion_face_builder.layout import CONFIG_PARTS
from laion_face_builder.publish import card
from laion_face_builder.publish.card_snippets import Address
from laion_face_builder.publish.manifest import GLOBS, Entry, Manifest, index_name
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.published_columns import features_of
from laion_face_builder.publish.published_files import EXAMPLES
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.sandbox import WRITER
from laion_face_builder.schema import INDEX, example_features

#: The sections of the Hub's dataset card template, without the optional ones that say nothing here.
TEMPLATE = """
Dataset Details|Dataset Description|Dataset Sources|Uses|Direct Use|Out-of-Scope Use|Dataset Structure|Dataset Creation
Curation Rationale|Source Data|Data Collection and Processing|Who are the source data producers?|Annotations
Annotation process|Who are the annotators?|Personal and Sensitive Information|Bias, Risks, and Limitations
Recommendations|Citation|Glossary|Dataset Card Contact
"""


def entry(part, rows=100, size=1000):
    return Entry(index_name(part), part, rows, 0, rows, 1, size, 2 * size, "0" * 64, "0" * 64, {"kind": "index"})


def manifest_of(parts, rows=100):
    return Manifest("index", {index_name(part): entry(part, rows) for part in parts})


def test_the_card_has_every_section_of_the_template(published):
    text = (published.folder / "README.md").read_text(encoding="utf-8")
    headings = {line.lstrip("# ") for line in text.splitlines() if line.startswith("#")}
    wanted = {name for line in TEMPLATE.split("\n") for name in line.split("|") if name}
    assert wanted - headings == set()
    assert "[More Information Needed]" not in text
    assert "<!--" not in text


@pytest.mark.parametrize(
    "said",
    [
        *("CC-BY-4.0", "LAION's terms", "their owners'", "biometric", "Not for identifying people", "not clipped"),
        *("withdrawn in December 2023", "false positives", "--exclude", "zheng2021farl", "threshold 0.5"),
        *("Article 9", "more than 800 faces", "one in eight is gone", "counts them twice", "whoever published it"),
    ],
)
def test_the_card_says(said, published):
    assert said in (published.folder / "README.md").read_text(encoding="utf-8")


def test_datasets_reads_the_features_as_they_are():
    # `datasets` reads them on this version, from the YAML alone.
    read = datasets.Features._from_yaml_list(features_of(EXAMPLES))
    features = {**example_features(), **datasets.Features.from_arrow_schema(INDEX)}
    assert read == datasets.Features({name: features[name] for name in EXAMPLES.names})
    assert read.arrow_schema.remove_metadata().field("faces").type == INDEX.field("faces").type
    assert datasets.Features._from_yaml_list(features_of(INDEX)) == datasets.Features.from_arrow_schema(INDEX)


def test_no_tag_switches_the_viewer_off(published, published_pictures):
    for place in (published, published_pictures):
        head, _ = card.split_card((place.folder / "README.md").read_text(encoding="utf-8"), "README.md")
        assert not card.FORBIDDEN_TAGS & {str(tag).lower() for tag in head["tags"]}
        assert {key for key in head if "gated" in key} == set()


def test_the_licence_is_that_of_the_text(published, published_pictures):
    for place in (published, published_pictures):
        head, text = card.split_card((place.folder / "README.md").read_text(encoding="utf-8"), "README.md")
        # By the Hub's specification: `other` has a name, and a link to LICENSE.md in the repo, or to a URL.
        assert (head["license"], head["license_name"], head["license_link"]) == ("other", "mixed", "LICENSE.md")
        licences = (place.folder / "LICENSE.md").read_text(encoding="utf-8")
        assert licences.removeprefix("# ").rstrip() in text
        assert "for private use" in licences


def test_pictures_that_may_be_shown_are_not_said_to_be_private(hub, published_pictures):
    repo = f"{WRITER}/shown"
    publish(PublishRequest(published_pictures.data, repo, public_pictures=True, parts="0", with_images=True))
    files = hub.repos[repo].tree("main")
    for name in ("README.md", "LICENSE.md"):
        text = b"".join(files[name].data.pieces()).decode()
        assert "has stated the right to show every one of them" in text
        assert "private use" not in text


def test_sources_are_the_hubs_datasets(published):
    by_part = Manifest("index", {index_name(0): entry(0)}, {"0": {"made_from": {"metadata": "sha256:0"}}})
    assert card.source_datasets(by_part) == ["FacePerceiver/laion-face", "laion/laion400m"]
    assert card.source_datasets(manifest_of([0])) == ["FacePerceiver/laion-face", "laion/relaion400m"]
    head, _ = card.split_card((published.folder / "README.md").read_text(encoding="utf-8"), "README.md")
    assert head["source_datasets"] == card.source_datasets(manifest_in(published))
    assert {"object-detection", "keypoint-detection"} <= set(head["task_categories"])


def manifest_in(place):
    return Manifest.from_text((place.folder / "laion_face_manifest.json").read_bytes(), "")


@settings(max_examples=30)
@given(st.sets(st.integers(0, 31), min_size=1), st.integers(0, 2_000_000))
def test_the_card_is_true_of_any_set_of_parts(parts, rows):
    head, text = card.split_card(card.card_of(manifest_of(parts, rows), Address("owner/name", True)), "README.md")
    for name, of in CONFIG_PARTS.items():
        there = sorted(parts & set(of))
        assert f"{len(there)} of the {len(of)} parts of {name}" in text
        configs = [config for config in head["configs"] if config["config_name"] == name]
        assert [c["data_files"][0]["path"] for c in configs] == ([GLOBS[name]] if there else [])
        matched = [p for p in sorted(parts) if PurePosixPath(index_name(p)).match(GLOBS[name])]
        assert matched == there
        for info in head["dataset_info"]:
            if info["config_name"] == name:
                assert "splits" not in info  # or datasets would refuse to filter
                assert info["download_size"] == 1000 * len(there)
    assert sum(config.get("default", False) for config in head["configs"]) == 1
    default = "20M" if parts & set(CONFIG_PARTS["20M"]) else "50M"
    assert [config["config_name"] for config in head["configs"] if config.get("default")] == [default]
    # The Hub's viewer sees whether pages are small in the first config, where that is one file.
    (first,) = head["configs"][0]["data_files"]
    assert [PurePosixPath(index_name(p)).match(first["path"]) for p in sorted(parts)].count(True) == 1
    assert ("Missing" in text.split("###")[1]) == (len(parts) < 32)


def test_files_of_an_earlier_version_are_named_one_by_one():
    # It kept all parts in data/.
    kept = manifest_of([0, 1])
    older = [replace(entry, name=f"data/part-{entry.part:05d}.parquet") for entry in kept.entries.values()]
    entries = {entry.name: entry for entry in older}
    manifest = Manifest("index", {**entries, **manifest_of([2, 3]).entries})
    assert card.data_files(manifest, "20M") == ["data/part-00000.parquet", "data/part-00002.parquet"]
    assert card.data_files(manifest, "50M") == "*/part-*.parquet"


@pytest.mark.parametrize(
    ("rows", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (800_000, "100K<n<1M"), (1_560_000, "1M<n<10M"), (49_920_000, "10M<n<100M")],
)
def test_the_size_category_is_measured(rows, category):
    assert card.measured_head(manifest_of([3], rows))["size_categories"] == [category]


def test_a_head_that_is_none_is_an_error():
    for text in ("", "# no head", "---\n- a list\n---\n", "---\n: : :\n---\n"):
        with pytest.raises(BadFile, match="no YAML head"):
            card.split_card(text, "README.md")


def test_flat_columns_keep_arrow_types():
    assert pa.schema([EXAMPLES.field(name) for name in ("n_faces", "max_face_score", "max_face_size")]).equals(
        pa.schema([INDEX.field(name) for name in ("n_faces", "max_face_score", "max_face_size")])
    )
