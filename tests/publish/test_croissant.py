"""croissant.json is valid, and mlcroissant iterates its records: from a folder, and from the Hub by URL alone."""

import json

import datasets
import mlcroissant
import pytest
from etils import epath
from mlcroissant._src.core import constants
from mlcroissant._src.core.rdf import make_context

from laion_face_builder.publish.card_snippets import Address
from laion_face_builder.publish.croissant import croissant_of, section_of
from laion_face_builder.publish.manifest import Manifest
from tests.support.git_server import GitServer

# rdflib reads JSON-LD with a class of its own that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph:DeprecationWarning")

RESPONSIBLE = (
    *("data_collection", "data_collection_type", "data_collection_timeframe", "data_annotation_protocol"),
    *("annotations_per_item", "machine_annotation_tools", "data_biases", "data_limitations", "data_use_cases"),
    *("data_social_impact", "personal_sensitive_information", "data_release_maintenance_plan"),
)


@pytest.fixture(params=["published", "published_pictures"])
def place(request):
    return request.getfixturevalue(request.param)


def test_a_folder_is_valid_and_iterates(place):
    check(mlcroissant.Dataset(str(place.folder / "croissant.json")), place)


@pytest.mark.git_lfs
def test_the_hub_iterates_by_url(hub, place, tmp_path, monkeypatch):
    # mlcroissant knows git repositories on the Hub by its address: git is told to come here for them.
    monkeypatch.setattr(constants, "DOWNLOAD_PATH", epath.Path(tmp_path / "cache"))
    monkeypatch.setenv("GIT_LFS_SKIP_SMUDGE", "1")  # mlcroissant sets it for good
    branch = "main" if place.folder.name == "published" else "second"
    repo, address = f"described/{place.folder.name}", Address(f"described/{place.folder.name}", True, branch)
    manifest = Manifest.from_text((place.folder / "laion_face_manifest.json").read_bytes(), "")
    files = {name: path.read_bytes() for name, path in place.files.items()}
    files["croissant.json"] = croissant_of(manifest, address).encode()
    hub.add_repo(repo, files)
    with GitServer(tmp_path / "git") as server:
        for name, value in server.stands_in_for("https://huggingface.co/datasets/").items():
            monkeypatch.setenv(name, value)
        server.add_repo(repo, {"README.md": b"of the branch main"} if branch != "main" else files)
        if branch != "main":
            server.add_repo(repo, files, branch)
        check(mlcroissant.Dataset(f"{hub.url()}/datasets/{repo}/resolve/main/croissant.json"), place)
        assert server.count("git-upload-pack") > 0
        assert server.count("/large/") > 0


def check(dataset, place):
    """Compare what mlcroissant gives with what `datasets` gives."""
    assert not dataset.metadata.issues.errors
    assert not dataset.metadata.issues.warnings
    assert [name for name in RESPONSIBLE if not getattr(dataset.metadata, name)] == []
    assert {record_set.name for record_set in dataset.metadata.record_sets} >= {"20M", "50M"}
    rows = datasets.load_dataset(str(place.folder), "20M", split="train", streaming=True)
    compared = faces = 0
    for found, row in zip(dataset.records("20M"), rows.take(60), strict=False):
        compared, faces = compared + 1, faces + len(row["faces"])
        assert found["20M/sample_id"] == row["sample_id"]
        assert text(found["20M/url"]) == row["url"]
        assert text(found["20M/caption"]) == (row["caption"] or None)
        assert found["20M/n_faces"] == len(row["faces"])
        boxes = [face["20M/faces/box"] for face in found["20M/faces"] if face]
        assert [list(map(float, box)) for box in boxes] == [face["box"] for face in row["faces"]]
        if "image" in row:
            assert (found["20M/image"] and found["20M/image"].size) == (row["image"] and row["image"].size)
    assert compared == 60
    assert faces > 60


def text(value):
    return value.decode() if isinstance(value, bytes) and value else value or None


def test_the_context_is_the_standards(published):
    # mlcroissant logs which of the standard's terms are missing, and says no more of it.
    assert json.loads((published.folder / "croissant.json").read_text(encoding="utf-8"))["@context"] == make_context()


def test_what_is_responsible_is_what_the_card_says(published):
    document = json.loads((published.folder / "croissant.json").read_text(encoding="utf-8"))
    card = (published.folder / "README.md").read_text(encoding="utf-8")
    said = document["rai:personalSensitiveInformation"]
    assert said == section_of(card, "Personal and Sensitive Information")
    assert "Article 9" in said
    assert "**" not in said
    assert "](" not in said
