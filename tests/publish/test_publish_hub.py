"""A publish to the Hub: the same as to a folder, whatever fails on the way, and read back by this datasets."""

import itertools
import json
import subprocess
import sys
import time
from functools import partial

import datasets
import pytest

from laion_face_builder import cli
from laion_face_builder.errors import StateConflict
from laion_face_builder.publish.card import card_of, split_card
from laion_face_builder.publish.card_snippets import Address
from laion_face_builder.publish.croissant import croissant_of
from laion_face_builder.publish.manifest import Manifest
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.published_files import Bounds
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.sandbox import WRITER
from tests.support.waiting import kill_when

# huggingface_hub's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SMALL = Bounds(row_group_bytes=300_000, row_group_rows=40, file_bytes=900_000)
_names = itertools.count(1)


@pytest.fixture
def repo(hub):
    return f"{WRITER}/published-{next(_names)}"


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def tree(hub, repo, branch="main"):
    """Return {name: bytes} on the Hub, but for what is the Hub's own."""
    files = hub.repos[repo].tree(branch)
    return {name: b"".join(file.data.pieces()) for name, file in files.items() if not name.startswith(".")}


def as_in(folder, repo, branch="main"):
    """Return what a publish to the Hub has to give, by one to a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    manifest = Manifest.from_text(contents["laion_face_manifest.json"], "")
    address = Address(repo, True, branch)
    texts = {"README.md": card_of(manifest, address), "croissant.json": croissant_of(manifest, address)}
    return {**contents, **{name: text.encode() for name, text in texts.items()}}


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["main", "second"])
def test_the_hub_has_what_a_folder_would_have(hub, repo, published, prepared, branch):
    command = ["publish", "--data-dir", str(published.data.root), repo, "--private", "--preview", "5"]
    assert cli.main([*command, "--revision", branch]) == 0
    assert tree(hub, repo, branch) == as_in(published.folder, repo, branch)
    ds = datasets.load_dataset(repo, "20M", split="train", streaming=True, revision=branch)
    assert [row["sample_id"] for row in ds] == [truth.sample_id for truth in prepared.truth]
    assert cli.main(["verify", repo, "--revision", branch]) == 0
    assert cli.main(["verify", repo, "--revision", branch, "--deep"]) == 0


def test_the_card_comes_last(hub, repo, published):
    # At every commit all files that the README names are there.
    publish(PublishRequest(published.data, repo, batch_bytes=1))
    commits = hub.repos[repo].commits
    seen = 0
    for files in commits.values():
        if "README.md" in files:
            seen += 1
            assert {"data/part-00000.parquet", "data/part-00002.parquet", "laion_face_manifest.json"} <= set(files)
    assert seen == 1
    assert len(commits) >= 3


def test_what_is_there_is_not_sent_again(hub, repo, published):
    publish(PublishRequest(published.data, repo, parts="0"))
    commits = len(hub.repos[repo].commits)
    publish(PublishRequest(published.data, repo, parts="0"))
    assert len(hub.repos[repo].commits) == commits
    asked = len(hub.log)
    publish(PublishRequest(published.data, repo))
    sent = [request.path for request in hub.log[asked:] if request.method == "PUT"]
    assert len(sent) == 1  # part 2 alone
    assert {name for name in tree(hub, repo) if name.startswith("data/")} == {
        "data/part-00000.parquet",
        "data/part-00002.parquet",
    }


@pytest.mark.parametrize(
    ("path", "method", "fault"),
    [
        ("/commit/", "POST", {"status": 503, "unheard": True}),
        ("/commit/", "POST", {"status": 503}),
        ("/lfs-uploads/", "PUT", {"status": 503}),
        ("/lfs-uploads/", "PUT", {"take": 10_000}),
        ("/tree/", "GET", {"status": 429}),
    ],
)
def test_failures_that_pass_are_lived_through(hub, repo, published, no_pauses, path, method, fault):
    planted = hub.plant(path, method=method, calls=(1,), **fault)
    publish(PublishRequest(published.data, repo, preview=5, private=True))
    assert planted.seen > 0
    assert tree(hub, repo) == as_in(published.folder, repo)


CHILD = """
import json, sys
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.published_files import Bounds
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.request import PublishRequest
publish(PublishRequest(DataDir.at(sys.argv[1]), sys.argv[2], with_images=True, private=True,
                       bounds=Bounds(**json.loads(sys.argv[3])), batch_bytes=1_500_000))
"""


def has_commits(hub, repo, least):
    return repo in hub.repos and len(hub.repos[repo].commits) >= least


@pytest.mark.slow
def test_killed_between_commits_and_in_an_upload_it_goes_on(hub, repo, published_pictures):
    bounds = json.dumps(vars(SMALL))
    command = [sys.executable, "-c", CHILD, str(published_pictures.data.root), repo, bounds]
    for commits in (1, 2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # The first commit of a repo is its creation.
        kill_when(process, partial(has_commits, hub, repo, 1 + commits))
        assert "README.md" not in tree(hub, repo)
    before = set(tree(hub, repo))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert before
    assert tree(hub, repo) == as_in(published_pictures.folder, repo)
    assert list((published_pictures.data.root / "publish").glob("*/*")) == []


def test_pictures_do_not_go_to_a_public_repo(hub, repo, published):
    publish(PublishRequest(published.data, repo))
    with pytest.raises(StateConflict, match="the repo is public"):
        publish(PublishRequest(published.data, repo, preview=5, private=True))
    assert not any(name.startswith("preview/") for name in tree(hub, repo))


@pytest.mark.slow
def test_a_file_that_changed_on_the_hub_is_found(hub, repo, published, capsys):
    publish(PublishRequest(published.data, repo))
    content = tree(hub, repo)["data/part-00002.parquet"]
    changed = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    hub.repos[repo].commit({"data/part-00002.parquet": changed})
    assert cli.main(["verify", repo]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("data/part-00002.parquet: ") for line in lines)
    publish(PublishRequest(published.data, repo))
    assert cli.main(["verify", repo]) == 0


def test_a_gate_is_set_before_anything_is_sent_and_stays(hub, repo, published, capsys):
    command = ["publish", "--data-dir", str(published.data.root), repo, "--parts"]
    asked = len(hub.log)
    assert cli.main([*command, "0", "--gated", "--contact", "removals@example.org"]) == 0
    log = [(request.method, request.path) for request in hub.log[asked:]]
    setting = log.index(("PUT", f"/api/datasets/{repo}/settings"))
    assert setting < next(place for place, (_, path) in enumerate(log) if "/preupload/" in path)
    assert hub.repos[repo].gated == "auto"
    # What was said holds for later publishes, which need not say it again, and do not set it again.
    asked = len(hub.log)
    assert cli.main([*command, "0,2"]) == 0
    assert not any("/settings" in request.path for request in hub.log[asked:])
    text = tree(hub, repo)["README.md"].decode()
    head, _ = split_card(text, "README.md")
    assert "who asks to be left out" in head["extra_gated_prompt"]
    assert set(head["extra_gated_fields"].values()) == {"text", "country", "checkbox"}
    assert "<removals@example.org>" in text
    assert cli.main(["verify", repo]) == 0
    commits = len(hub.repos[repo].commits)
    assert cli.main([*command, "0,2", "--gated", "manual"]) == 0
    assert hub.repos[repo].gated == "manual"
    assert len(hub.repos[repo].commits) == commits + 1  # the manifest, which says so
    assert cli.main([*command, "0,2", "--gated", "off"]) == 0
    assert hub.repos[repo].gated is False
    assert "extra_gated" not in tree(hub, repo)["README.md"].decode()
    capsys.readouterr()
    assert cli.main([*command, "0", "--dry-run", "--gated"]) == 0
    assert hub.repos[repo].gated is False
    assert "the gate of the Hub dataset is set: auto" in capsys.readouterr().out
