"""Rows leave a dataset on the Hub, whatever fails on the way, and nobody's work is sent over.

They leave main, and with its history whatever else the Hub keeps; the other refs that have them are told.
"""

import itertools
import json
import shutil
import threading
import time
from dataclasses import replace

import datasets
import pytest

from laion_face_builder import cli
from laion_face_builder.errors import NotPrepared, PublishError, SourceError, StateConflict
from laion_face_builder.files import locked
from laion_face_builder.layout import DataDir
from laion_face_builder.publish import publish as publishing
from laion_face_builder.publish import staging
from laion_face_builder.publish.manifest import Manifest
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.removal import elsewhere
from laion_face_builder.removal.published_copy import TargetRequest, free_staging, remove_from_target
from laion_face_builder.removal.removal_request import RemovalRequest
from laion_face_builder.sandbox import STRANGER, WRITER
from laion_face_builder.sandbox.hub_repos import ServedFile, ServedRepo
from tests.support.hub_faults import ONCE, Interruptions, every_request_fails_once
from tests.support.taken_down import copy_of, gone_in, removal_of, rows_in, tree
from tests.support.waiting import wait_until

# huggingface_hub's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MANIFEST, REWRITTEN = "laion_face_manifest.json", "data/part-00002.parquet"
_names = itertools.count(1)


def on_hub(repo):
    """Return every byte that the Hub has of a repo, by where it is: in whatever commit, or in none."""
    commits = {(sha, path): file for sha, files in repo.commits.items() for path, file in files.items()}
    served = {at: b"".join(file.data.pieces()) for at, file in commits.items()}
    return {**served, **{("object", sha): content for sha, content in repo.objects.items()}}


def at_head(repo, ref="main"):
    return {path: b"".join(file.data.pieces()) for path, file in repo.tree(ref).items()}


def everything(repo):
    return {str(at): content for at, content in on_hub(repo).items()}


def served(hub, published):
    """Have the Hub serve what is published, as if it had been sent there."""
    repo = ServedRepo(f"{WRITER}/taken-down-{next(_names)}")
    contents = {name: path.read_bytes() for name, path in published.files.items() if name[0] != "."}
    files = [ServedFile(name, content) for name, content in contents.items()]
    repo.objects |= {file.sha256: contents[file.path] for file in files if file.is_lfs}
    repo.pushed |= {file.sha256: file.path for file in files if file.is_lfs}
    repo.commit_files(files, (), "main")
    hub.repos[repo.id] = repo
    return repo


@pytest.fixture
def repo(hub, published):
    return served(hub, published)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def named(prepared):
    return gone_in(prepared.truth, 2, 3)


@pytest.fixture(scope="module")
def request_for(named):
    """Give `request_for(repo)`: a removal of three rows of part 2, by their addresses."""
    removals = removal_of(*(one.url for one in named))
    return lambda repo, **more: TargetRequest(repo if isinstance(repo, str) else repo.id, removals, **more)


@pytest.fixture(scope="module")
def without_faults(hub, published, request_for):
    """Return what the Hub has at main when nothing failed, but for the two files that name the repo."""
    repo = served(hub, published)
    remove_from_target(request_for(repo, squash_history=True))
    return data_of(repo)


def data_of(repo):
    return {name: content for name, content in at_head(repo).items() if name not in ("README.md", "croissant.json")}


# --- what fails ---


@pytest.mark.parametrize("how", ONCE)
def test_each_request_may_fail_once(hub, repo, named, request_for, without_faults, no_pauses, monkeypatch, how):
    with every_request_fails_once(hub, monkeypatch, how) as failed:
        remove_from_target(request_for(repo, squash_history=True))
    assert {"POST", "PUT", "GET"} <= {method for method, _ in failed}
    assert data_of(repo) == without_faults
    assert not {one.sample_id for one in named} & rows_in(everything(repo))
    assert len(repo.commits) == 1


def test_interrupted_before_and_after_each_change_it_goes_on(
    hub, repo, named, request_for, without_faults, monkeypatch
):
    interruptions, asked, before = Interruptions(hub, monkeypatch), len(hub.log), at_head(repo)
    while True:
        with interruptions.next_one():
            remove_from_target(request_for(repo, squash_history=True))
            break
        # Whoever reads in between finds whole files, and all that the manifest speaks of.
        found = at_head(repo)
        assert set(Manifest.from_text(found[MANIFEST], "").entries) <= set(found)
        assert found[REWRITTEN] in (before[REWRITTEN], without_faults[REWRITTEN])
    kinds = ["commit", "/lfs-uploads/", "commit with data", "/super-squash/", "/lfs-files/batch"]
    assert sorted(interruptions.done) == sorted((kind, is_done) for kind in kinds for is_done in (False, True))
    assert data_of(repo) == without_faults
    assert not {one.sample_id for one in named} & rows_in(everything(repo))
    # The one file that had rows went twice, since it was first taken and not kept; the others never.
    assert sum(request.method == "PUT" for request in hub.log[asked:]) == 2


# --- others at work ---


def test_what_somebody_publishes_in_between_is_kept(hub, repo, request_for, monkeypatch):
    """A file that is nobody's is lived through; another manifest ends the removal, and the next keeps both."""
    answer = hub.answer

    def overtaking(request):
        if "/commit/" in request.path and others:
            repo.commit(others.pop())
        return answer(request)

    manifest = Manifest.from_text(at_head(repo)[MANIFEST], "")
    theirs = replace(manifest, publisher=replace(manifest.publisher, contact="out@example.org")).as_text().encode()
    others = [{MANIFEST: theirs}, {"notes.txt": b"mine"}]
    monkeypatch.setattr(hub, "answer", overtaking)
    with pytest.raises(StateConflict, match="somebody else published there, or took rows down, since this began"):
        remove_from_target(request_for(repo))
    assert (others, at_head(repo)[MANIFEST]) == ([], theirs)
    remove_from_target(request_for(repo))
    found = at_head(repo)
    now = Manifest.from_text(found[MANIFEST], "")
    assert (now.publisher.contact, len(now.removals.done), found["notes.txt"]) == ("out@example.org", 1, b"mine")


@pytest.mark.parametrize("is_hub", [False, True], ids=["folder", "Hub"])
def test_a_publish_that_began_before_brings_nothing_back(
    hub, published, request_for, named, tmp_path, monkeypatch, is_hub
):
    repo = served(hub, published)
    repo.private = True
    target = repo.id if is_hub else str(shutil.copytree(published.folder, tmp_path / "copy"))

    def now():
        return at_head(repo) if is_hub else tree(target)

    made, removals = staging.made_preview, [request_for(target)]

    def removed_meanwhile(*args):
        yield from made(*args)
        remove_from_target(removals.pop())

    monkeypatch.setattr(publishing, "made_preview", removed_meanwhile)
    request = PublishRequest(published.data, target, preview=6, private=is_hub)
    with pytest.raises(StateConflict, match="run again, goes on from what is there now"):
        publish(request)
    monkeypatch.undo()
    gone = {one.sample_id for one in named}
    assert not gone & rows_in(now())
    publish(request)
    assert not gone & rows_in(now())
    assert Manifest.from_text(now()[MANIFEST], "").preview.rows == 6


def test_a_publish_sends_nothing_that_left_its_data_dir_meanwhile(published, named, tmp_path, monkeypatch):
    data, target, made = copy_of(published.data, tmp_path), tmp_path / "new", staging.made_index
    removals = removal_of(*(one.url for one in named)).finished()

    def removed_meanwhile(options, part, *args):
        yield from made(options, part, *args)
        if part == 2:
            removals.write(data)

    monkeypatch.setattr(publishing, "made_index", removed_meanwhile)
    with pytest.raises(StateConflict, match=r"3 URLs were taken down since this publish began"):
        publish(PublishRequest(data, str(target)))
    assert not target.exists()


def test_what_waits_to_be_sent_is_freed_once_its_publish_has_ended(tmp_path, caplog):
    folder = tmp_path / "publish" / "index-0123"
    folder.mkdir(parents=True)
    (folder / "part.parquet").write_bytes(b"rows")
    freed = []
    with locked(folder):
        freeing = threading.Thread(target=lambda: freed.append(free_staging(DataDir.at(tmp_path))))
        freeing.start()
        wait_until(lambda: "a publish is going on; waiting for it" in caplog.text)
        assert (freed, (folder / "part.parquet").read_bytes()) == ([], b"rows")
    freeing.join(timeout=60)
    assert (freed, folder.exists()) == ([4], False)


# --- what else the Hub has ---


def test_the_history_serves_them_until_it_is_squashed(hub, repo, prepared, named, request_for):
    first, before, asked = repo.branches["main"], repo.tree("main"), len(hub.log)
    result = remove_from_target(request_for(repo))
    assert result.rewritten == (REWRITTEN,)
    assert sum(request.method == "PUT" for request in hub.log[asked:]) == 1
    assert repo.tree("main")["data/part-00000.parquet"] is before["data/part-00000.parquet"]
    gone, wanted = named[0].url.encode(), {one.sample_id for one in named}
    assert not any(gone in content for content in at_head(repo).values())
    assert wanted & rows_in({path: content for (sha, path), content in on_hub(repo).items() if sha == first})
    (note,) = result.history.notes
    assert "earlier commits of main still serve what was taken down" in note
    assert f"`laion-face remove --data-dir DATA_DIR --target {repo.id} " in note
    result = remove_from_target(request_for(repo, squash_history=True))
    assert (result.history.is_squashed, result.history.notes, result.rows, result.history.freed) == (True, [], 0, 1)
    assert not wanted & rows_in(everything(repo))
    assert not any(gone in content for content in on_hub(repo).values())
    assert len(repo.commits) == 1
    assert cli.main(["verify", repo.id, "--deep"]) == 0
    rows = datasets.load_dataset(repo.id, "20M", split="train", streaming=True)
    assert [row["sample_id"] for row in rows] == [one.sample_id for one in prepared.truth if one not in named]


def test_other_refs_that_have_them_are_told_and_the_hubs_own_copies_freed(repo, published, named, request_for):
    first, content = repo.branches["main"], (published.folder / REWRITTEN).read_bytes()
    # The Hub copies what is Parquet already as it is, under other names, or writes it anew; and indexes the words.
    copies = {
        "20M/train/0000.parquet": (published.folder / "data/part-00000.parquet").read_bytes(),
        "20M/train/0001.parquet": content,
        "20M/train/index.duckdb": named[0].url.encode(),
    }
    files = [ServedFile(name, data, lfs=True) for name, data in copies.items()]
    repo.objects |= {file.sha256: copies[file.path] for file in files}
    repo.pushed |= {file.sha256: file.path for file in files if file.sha256 not in repo.pushed}
    repo.converts["parquet"] = repo.commit_files(files, at_head(repo), "converting")
    repo.branches.pop("converting")
    repo.objects["0" * 64] = b"of a publish that was killed: " + named[0].url.encode()
    result = remove_from_target(request_for(repo))
    assert [(ref.name, ref.rows) for ref in result.history.copies] == [("refs/convert/parquet", 3)]
    assert "refs/convert/parquet still has 3 rows of it: the Hub makes it by itself" in result.history.notes[-1]
    repo.tags["v1"], repo.pulls["2"], repo.branches["old"] = first, first, first
    result = remove_from_target(request_for(repo, squash_history=True))
    refs = ["refs/heads/old", "refs/pr/2", "refs/tags/v1"]
    assert sorted((ref.name, ref.rows) for ref in result.history.elsewhere) == [(name, 3) for name in refs]
    assert [note.partition(": delete it; ")[1] != "" for note in result.history.notes].count(True) == 1
    assert sum("close the pull request, and choose 'Delete ref'" in note for note in result.history.notes) == 1
    assert sum("delete the branch, or name it: --revision old" in note for note in result.history.notes) == 1
    assert content in repo.objects.values(), "it is theirs until they delete it"
    del repo.tags["v1"], repo.pulls["2"], repo.branches["old"]
    result = remove_from_target(request_for(repo, squash_history=True))
    assert result.history.notes == []
    assert not {one.sample_id for one in named} & rows_in(everything(repo))
    assert not any(named[0].url.encode() in data for data in on_hub(repo).values())
    assert set(repo.tree(repo.converts["parquet"])) == {"20M/train/0000.parquet"}


def test_what_this_machine_has_kept_of_the_dataset_is_told(repo, request_for, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / f"datasets--{repo.id.replace('/', '--')}"
    request = RemovalRequest(DataDir.at(tmp_path / "data"), targets=(repo.id,), cache_dir=tmp_path / "none")
    for has_kept in (False, True):
        list(elsewhere.take_out_of_copies(request, request_for(repo).removals))
        assert (f"{kept}: the Hub's cache on this machine has files of {repo.id}" in caplog.text) == has_kept
        (kept / "blobs").mkdir(parents=True, exist_ok=True)
        (kept / "blobs" / "0123").write_bytes(b"rows")
    assert f"`hf cache rm dataset/{repo.id}` deletes them" in caplog.text


# --- who may not ---


def test_what_cannot_be_done_is_said_and_nothing_is_changed(hub, repo, request_for):
    before = everything(repo)
    hub.repos[f"{WRITER}/empty"] = ServedRepo(f"{WRITER}/empty")
    hub.repos[f"{WRITER}/empty"].commit({"README.md": b"mine"})
    cases = [
        (request_for(f"{WRITER}/nowhere"), SourceError, "nowhere"),
        (request_for(f"{WRITER}/empty"), NotPrepared, "nothing was published there"),
        (request_for(repo, revision="nowhere"), SourceError, "nowhere"),
        (request_for(repo, token=STRANGER), PublishError, f"may not write to {WRITER}"),
        (request_for(repo, token=False), PublishError, "Give one that may write"),
    ]
    for case, error, said in cases:
        with pytest.raises(error, match=said):
            remove_from_target(case)
    repo.private = True
    for token in (STRANGER, False):
        with pytest.raises(SourceError, match=repo.id):
            remove_from_target(request_for(repo, token=token))
    assert everything(repo) == before
    repo.gated = "manual"
    assert remove_from_target(request_for(repo)).rows == 3
    assert json.loads(at_head(repo)[MANIFEST])["removed"]
