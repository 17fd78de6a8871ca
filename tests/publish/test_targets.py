"""A publish ends with what was to be there, in a folder and on the Hub, whatever happens on the way."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile, OptionError, PublishError, StateConflict
from laion_face_builder.publish.destination import destination_at
from laion_face_builder.publish.hub_target import HubDestination
from laion_face_builder.publish.targets import (
    Destination,
    FolderDestination,
    OutgoingFile,
    PublishedFile,
    missing,
    problems,
)
from laion_face_builder.sandbox import STRANGER, TOKEN, WRITER, Hub
from tests.support.waiting import kill_when

# huggingface_hub's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = b"---\nlicense: cc-by-4.0\n---\n# Faces\n"
_numbers = itertools.count(1)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def written(folder: Path, contents: dict[str, bytes]) -> list[OutgoingFile]:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [OutgoingFile.of(name, folder / name) for name in contents]


CONTENTS = {"README.md": CARD, "data/part-00000.parquet": noise(50_000, 1), "data/part-00002.parquet": noise(30_000, 2)}


@pytest.fixture
def files(tmp_path) -> list[OutgoingFile]:
    return written(tmp_path / "out", CONTENTS)


@pytest.fixture
def repo(hub) -> str:
    """Return a name on the Hub that nobody has."""
    return f"{WRITER}/repo-{next(_numbers)}"


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Note the seconds that anybody wanted to sleep; nobody does."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def on_hub(hub: Hub, repo: str, revision: str = "main") -> dict[str, bytes]:
    tree = hub.repos[repo].tree(revision)
    return {name: b"".join(file.data.pieces()) for name, file in tree.items() if name != ".gitattributes"}


def in_folder(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".publish.lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def puts(hub: Hub) -> list[int]:
    return [request.received for request in hub.log if request.method == "PUT"]


@pytest.fixture
def log(hub) -> None:
    hub.log.clear()


# --- what is to be sent ---

held_files = st.dictionaries(
    st.sampled_from("abcd"), st.builds(PublishedFile, st.integers(0, 2), st.sampled_from(["0" * 64, "1" * 64, None]))
)
wanted_files = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 2), st.sampled_from("01")))


@given(wanted_files, held_files)
def test_what_is_sent_is_exactly_the_difference(wanted, held):
    files = [OutgoingFile(name, Path(name), size, digit * 64) for name, (size, digit) in wanted.items()]
    left = missing(files, held)
    same = {name for name, there in held.items() if wanted.get(name) == (there.size, (there.sha256 or "x")[0])}
    assert {file.name for file in left} == wanted.keys() - same
    assert [line.partition(":")[0] for line in problems(files, held)] == [file.name for file in left]
    then = held | {file.name: PublishedFile(file.size, file.sha256) for file in left}
    assert missing(files, then) == []
    assert problems(files, then) == []


def test_two_files_of_one_name_are_refused():
    with pytest.raises(OptionError, match=r"under one name: data/x\.parquet"):
        missing([OutgoingFile("data/x.parquet", Path(name), 1, "0" * 64) for name in "ab"], {})


@pytest.mark.parametrize("name", ["", "/x", "../x", "a/../../x", "a//b", ".gitattributes", "a/.lock", "a\\b", "a/"])
def test_a_name_that_leads_elsewhere_is_refused(name, tmp_path):
    with pytest.raises(OptionError, match="no name of a published file"):
        OutgoingFile(name, tmp_path, 0, "0" * 64)


@pytest.mark.parametrize("target", ["{}", "{}/not there yet", "./owner/name", ".", "owner/", "here/too"])
def test_a_target_can_be_a_folder(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "too").mkdir(parents=True)
    assert isinstance(destination_at(target.format(tmp_path)), FolderDestination)


def test_a_target_can_be_a_hub_repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = destination_at("owner/laion-face.v1", private=True, revision="next", token="secret")
    assert place == HubDestination("owner/laion-face.v1", private=True, revision="next", token="secret")
    assert "secret" not in repr(place)


@pytest.mark.parametrize(
    "target", ["name", "a/b/c", "owner/na me", "", "hf://datasets/a/b", "owner/a--b", "owner/x.git"]
)
def test_a_target_can_be_neither(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"neither a Hub id|no name of a Hub dataset"):
        destination_at(target)


def test_options_of_the_hub_do_not_go_with_a_folder(tmp_path):
    with pytest.raises(OptionError, match="is a folder: --private, --token go only with a Hub id"):
        destination_at(str(tmp_path), private=True, token="secret")
    with pytest.raises(OptionError, match="is a commit"):
        destination_at("owner/name", revision="0" * 40)


# --- both places ---

names = st.sampled_from(["README.md", "data/a.parquet", "data/b.parquet", "preview/c.parquet"])
contents = st.sampled_from([b"", b"text", b"other", CARD, noise(2_000).hex().encode()])
steps = st.lists(st.one_of(st.dictionaries(names, contents), st.sets(names)), min_size=1, max_size=5)


def played(place: Destination, now: Callable[[], dict[str, bytes]], moves: list) -> None:
    """Send what dictionaries say, remove what sets name; after each move the place has what it should."""
    there: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for move in moves:
            if isinstance(move, set):
                place.remove(sorted(move), "Remove")
                there = {name: content for name, content in there.items() if name not in move}
            else:
                expected = sum(len(content) for name, content in move.items() if there.get(name) != content)
                assert place.send(written(Path(folder), move), "Send") == expected
                there |= move
            assert place.check(written(Path(folder), there)) == []
            assert {name: held.size for name, held in place.listing().items()} == {n: len(c) for n, c in there.items()}
            if there:
                assert now() == there


@settings(max_examples=25)
@given(steps)
def test_any_sends_and_removals_leave_a_folder_with_what_they_say(moves):
    with tempfile.TemporaryDirectory() as folder:
        played(FolderDestination(Path(folder) / "place"), lambda: in_folder(Path(folder) / "place"), moves)


@settings(max_examples=20)
@given(moves=steps)
def test_any_sends_and_removals_leave_the_hub_with_what_they_say(hub, moves):
    repo = f"{WRITER}/played-{next(_numbers)}"
    played(destination_at(repo), lambda: on_hub(hub, repo), moves)


def test_an_empty_send_makes_nothing(tmp_path, hub, repo):
    for place in (destination_at(repo), destination_at(str(tmp_path / "new"))):
        assert place.check([]) == []
        assert place.listing() == {}
    assert repo not in hub.repos


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_what_was_sent_can_be_checked_when_the_local_files_are_gone(tmp_path, repo, files, where):
    place = destination_at(repo if where == "hub" else str(tmp_path / "place"))
    place.send(files, "All")
    for file in files[1:]:
        file.path.unlink()
    assert place.check(files) == []
    assert place.send(files, "Again") == 0
    other = OutgoingFile(files[1].name, files[1].path, files[1].size, "0" * 64)
    assert place.check([other]) == [f"{other.name}: found SHA-256 {files[1].sha256}, expected SHA-256 {'0' * 64}"]


# --- a folder ---


def test_what_stands_in_a_folder_is_not_copied_again(tmp_path, files):
    place = FolderDestination(tmp_path / "place")
    assert place.send(files, "All") == sum(file.size for file in files)
    before = {path: path.stat().st_ino for path in (tmp_path / "place").rglob("*")}
    (tmp_path / "place" / files[1].name).write_bytes(b"x" * files[1].size)
    other = hashlib.sha256(b"x" * files[1].size).hexdigest()
    assert place.check(files) == [f"{files[1].name}: found SHA-256 {other}, expected SHA-256 {files[1].sha256}"]
    assert place.send(files, "All") == files[1].size
    changed = [path for path, inode in before.items() if path.stat().st_ino != inode]
    assert changed == [tmp_path / "place" / files[1].name]
    assert in_folder(tmp_path / "place") == CONTENTS


def test_what_else_is_in_a_folder_stays(tmp_path, files):
    (tmp_path / "place" / "data").mkdir(parents=True)
    (tmp_path / "place" / "data" / "mine.txt").write_text("mine")
    place = FolderDestination(tmp_path / "place")
    place.send(files, "All")
    place.remove([file.name for file in files], "None")
    assert in_folder(tmp_path / "place") == {"data/mine.txt": b"mine"}


def test_a_file_that_changes_while_it_is_copied_is_not_taken_for_whole(tmp_path, files):
    files[2].path.write_bytes(b"other")
    with pytest.raises(BadFile, match=r"part-00002.*as it was when the publish began"):
        FolderDestination(tmp_path / "place").send(files, "All")
    there = in_folder(tmp_path / "place")
    assert there == {files[1].name: CONTENTS[files[1].name]}  # no README that names what is not there


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, files):
    (tmp_path / "place").write_text("a file")
    with pytest.raises(PublishError, match=r"place.* cannot be written .*File exists.* name another"):
        FolderDestination(tmp_path / "place").send(files, "All")


# --- the Hub ---


def test_a_repo_is_made_and_filled_in_one_commit(hub, repo, files, log):
    place = destination_at(repo)
    assert place.send(files, "Add the first parts") == sum(file.size for file in files)
    assert on_hub(hub, repo) == CONTENTS
    assert list(hub.repos[repo].messages.values()) == ["Add the first parts"]
    assert sorted(puts(hub)) == [30_000, 50_000]
    assert not hub.repos[repo].private
    assert place.check(files) == []


def test_what_is_there_is_not_sent_again(hub, repo, files, log):
    destination_at(repo).send(files, "All")
    hub.log.clear()
    assert destination_at(repo).send(files, "All") == 0
    assert hub.count(method="PUT") == hub.count(method="POST") == 0
    files[2].path.write_bytes(b"changed")
    changed = [*files[:2], OutgoingFile.of(files[2].name, files[2].path)]
    assert destination_at(repo).send(changed, "One") == len(b"changed")
    assert puts(hub) == [len(b"changed")]
    assert list(hub.repos[repo].messages.values()) == ["All", "One"]


def test_large_files_go_in_parts(hub, repo, tmp_path, log, monkeypatch):
    monkeypatch.setattr(hub, "multipart_over", 20_000)
    files = written(tmp_path / "out", CONTENTS)
    destination_at(repo).send(files, "All")
    assert puts(hub) == [20_000, 20_000, 10_000, 20_000, 10_000]
    assert on_hub(hub, repo) == CONTENTS


def test_a_private_repo_is_private(hub, repo, files):
    place = destination_at(repo, private=True)
    place.send(files, "All")
    assert hub.repos[repo].private
    assert place.check(files) == []
    for token in (STRANGER, "hf_nobody"):
        with pytest.raises(PublishError, match=r"Give one that may write|or give another"):
            destination_at(repo, token=token).send(files, "All")


@pytest.mark.parametrize("changed", [0, 2])
def test_a_file_that_changed_is_not_committed(hub, repo, files, changed):
    files[changed].path.write_bytes(b"other")
    with pytest.raises(BadFile, match="as it was when the publish began"):
        destination_at(repo).send(files, "All")
    assert on_hub(hub, repo) == {}


def test_private_is_not_promised_of_a_public_repo(hub, repo, files, log):
    destination_at(repo).send(files[:1], "Public")
    with pytest.raises(StateConflict, match="the repo is public"):
        destination_at(repo, private=True).send(files, "All")
    assert puts(hub) == []


def test_a_revision_is_a_branch_of_its_own(hub, repo, files, log):
    destination_at(repo).send(files[:2], "Main")
    place = destination_at(repo, revision="v2/next")
    assert place.listing() == {}
    assert place.send(files, "Next") == files[2].size  # a branch begins as main is
    place.remove([files[1].name], "Fewer")
    assert on_hub(hub, repo) == {file.name: CONTENTS[file.name] for file in files[:2]}
    assert on_hub(hub, repo, "v2/next") == {file.name: CONTENTS[file.name] for file in (files[0], files[2])}


def test_check_says_what_is_wrong(hub, repo, files):
    place = destination_at(repo)
    place.send(files, "All")
    hub.repos[repo].commit({files[0].name: CARD[::-1], files[1].name: b"short"})
    place.remove([files[2].name, "never.txt"], "Without")
    assert place.check(files) == [
        f"README.md: found other content, or none that can be compared, expected SHA-256 {files[0].sha256}",
        f"{files[1].name}: found 5 bytes, expected 50000",
        f"{files[2].name}: is not there",
    ]


# --- the Hub, failing ---

LOOKS = [("GET", "/revision/main"), ("GET", "/tree/")]
WRITES = [
    ("POST", "/api/repos/create"),
    ("POST", "/branch/"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/lfs-uploads/"),
    ("POST", "/complete"),
    ("POST", "/objects/verify"),
    ("POST", "/api/validate-yaml"),
    ("POST", "/commit/"),
]
FAULTS: dict[str, dict[str, Any]] = {
    "503 before": {"status": 503, "unheard": True},
    "503 after": {"status": 503},
    "429": {"status": 429, "unheard": True, "body": b"{}", "headers": {"Retry-After": "7"}},
    "429 rate": {"status": 429, "unheard": True, "body": b"{}", "headers": {"RateLimit": '"api";r=0;t=7'}},
    "cut request": {"take": 0},
    "cut answer": {"body": b"{}", "cut_after": 1},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("method", "route"), [*LOOKS, *WRITES], ids=lambda value: value.strip("/").replace("/", "-"))
def test_a_failure_that_passes_is_lived_through(hub, repo, tmp_path, log, pauses, monkeypatch, method, route, fault):
    monkeypatch.setattr(hub, "multipart_over", 40_000)
    files = written(tmp_path / "out", CONTENTS)
    planted = hub.plant(route, method=method, **FAULTS[fault])
    place = destination_at(repo, revision="next")
    if method == "GET":
        place.send(files[:1], "First")  # a look at what is there has a repo to look at
        hub.faults.remove(planted)
        planted = hub.plant(route.replace("main", "next"), method=method, **FAULTS[fault])
    place.send(files, "Second")
    assert planted.seen >= 1
    assert on_hub(hub, repo, "next") == CONTENTS
    assert list(hub.repos[repo].messages.values()) == (["First", "Second"] if method == "GET" else ["Second"])
    assert place.check(files) == []
    if fault.startswith("429"):
        assert max(pauses) >= 7


@pytest.mark.parametrize("spoil", [{"take": 20_000}, {"take_rate": 1e5}, {"take": 20_000, "take_rate": 1e5}])
def test_an_upload_that_is_cut_or_slow_comes_whole(hub, repo, files, log, pauses, spoil):
    hub.plant("/lfs-uploads/", method="PUT", **spoil)
    destination_at(repo).send(files, "All")
    assert on_hub(hub, repo) == CONTENTS
    assert puts(hub) == ([20_000] if "take" in spoil else []) + [50_000, 30_000]


def test_tries_are_bounded_and_what_was_sent_is_kept(hub, repo, files, log, pauses):
    planted = hub.plant("/commit/", method="POST", calls=range(1, 100), status=503, unheard=True)
    with pytest.raises(PublishError, match=r"commit: HTTP 503; asked 4 times.* the same command goes on") as raised:
        destination_at(repo).send(files, "All")
    assert "\n" not in str(raised.value)
    assert planted.seen == 4
    assert destination_at(repo).listing() == {}
    hub.faults.clear()
    hub.log.clear()
    destination_at(repo).send(files, "All")
    assert puts(hub) == []
    assert on_hub(hub, repo) == CONTENTS


def test_what_others_commit_in_between_stays(hub, repo, files, log, pauses, monkeypatch):
    place = destination_at(repo)
    place.send(files[:1], "First")
    true_answer, others = hub.answer, iter([{"their.txt": b"theirs"}])

    def answer(request):
        if "/commit/" in request.path:
            for theirs in others:
                hub.repos[repo].commit(theirs)
        return true_answer(request)

    monkeypatch.setattr(hub, "answer", answer)
    place.send(files, "Second")
    assert on_hub(hub, repo) == {**CONTENTS, "their.txt": b"theirs"}
    assert list(hub.repos[repo].messages.values()) == ["First", "Second"]
    assert hub.count("/commit/") == 3  # one was on top of a commit that was no longer the last


@pytest.mark.parametrize(
    ("token", "name", "expected"),
    [
        (STRANGER, f"{WRITER}/theirs", "don't have the rights .* Make room, or give another: .*HF_TOKEN"),
        (TOKEN, "someone/else", "don't have the rights .* The token may not write to someone"),
        ("hf_nobody", f"{WRITER}/theirs", "No valid token was given"),
    ],
)
def test_a_token_without_access_is_a_clear_error(hub, files, token, name, expected):
    with pytest.raises(PublishError, match=expected) as raised:
        destination_at(name, token=token).send(files, "All")
    assert "\n" not in str(raised.value)
    assert name not in hub.repos


@pytest.mark.parametrize("route", ["/objects/batch", "/commit/"])
def test_a_full_storage_is_a_clear_error(hub, repo, files, route):
    hub.plant(route, method="POST", status=413, unheard=True)
    with pytest.raises(PublishError, match=f"for {WRITER}'s storage. Make room"):
        destination_at(repo).send(files, "All")
    assert on_hub(hub, repo) == {}


def test_a_card_that_the_hub_refuses_is_a_clear_error(hub, repo, tmp_path, log):
    files = written(tmp_path / "out", {"README.md": b"---\n- not\n- a mapping\n---\n", "data/a.parquet": b"a"})
    with pytest.raises(PublishError, match=r"Invalid metadata in README\.md"):
        destination_at(repo).send(files, "All")
    assert on_hub(hub, repo) == {}


# --- killed ---

SENDING = """
import sys, json
from pathlib import Path
from laion_face_builder.publish.targets import OutgoingFile
from laion_face_builder.publish.destination import destination_at
place = destination_at(sys.argv[1])
files = [OutgoingFile(name, Path(path), size, sha256) for name, path, size, sha256 in json.loads(sys.argv[2])]
print(place.send(files, "All"))
assert place.check(files) == []
"""


def sending(target: str, files: list[OutgoingFile], **more: str) -> subprocess.Popen[str]:
    told = json.dumps([(file.name, str(file.path), file.size, file.sha256) for file in files])
    shown = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    environment = shown | {"PYTHONPATH": os.pathsep.join(sys.path)} | more
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SENDING, target, told]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    out, err = process.communicate(timeout=60)
    return out, err, process.returncode


def test_offline_is_a_clear_error(repo, files):
    _, err, _ = finished(sending(repo, files, HF_HUB_OFFLINE="1"))
    assert err.splitlines()[-1].endswith("HF_HUB_OFFLINE is set: unset it to publish to the Hub")


def test_killed_in_an_upload_the_hub_is_as_before_and_then_as_without_the_kill(hub, repo, files, log):
    # So slow that it is still reading what a dead client left in the socket when the next one comes.
    hub.plant("/lfs-uploads/", method="PUT", calls=(2,), take_rate=1_000)
    kill_when(sending(repo, files), lambda: len(puts(hub)) == 2 and 0 < puts(hub)[1] < 30_000)
    assert on_hub(hub, repo) == {}
    assert len(hub.repos[repo].objects) == 1  # of the file that was whole
    hub.faults.clear()
    hub.log.clear()
    out, err, code = finished(sending(repo, files))
    assert (out, err, code) == (f"{sum(file.size for file in files)}\n", "", 0)  # no bars in a log file either
    assert puts(hub) == [30_000]
    assert on_hub(hub, repo) == CONTENTS
    assert list(hub.repos[repo].messages.values()) == ["All"]


def test_killed_in_a_copy_the_folder_has_whole_files_and_then_all(tmp_path, files):
    place = tmp_path / "place"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    first, stuck = files[1], OutgoingFile(files[2].name, pipe, files[2].size, files[2].sha256)
    process = sending(str(place), [first, stuck])
    with pipe.open("wb") as writer:
        writer.write(CONTENTS[stuck.name][:10_000])
        writer.flush()
        kill_when(process, lambda: len(list((place / "data").glob(".*.partial"))) == 1)
    assert (place / first.name).read_bytes() == CONTENTS[first.name]
    assert not (place / stuck.name).exists()
    assert FolderDestination(place).listing().keys() == {first.name}
    assert FolderDestination(place).send(files, "All") == sum(file.size for file in files) - first.size
    assert in_folder(place) == CONTENTS


# --- the stand-in is as strict as the Hub ---


def asked(hub: Hub, path: str, body: bytes, method: str = "POST", token: str = TOKEN) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(hub.url() + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("X-Error-Message", "")


def commit(hub: Hub, repo: str, *entries: tuple[str, dict[str, Any]], **header: str) -> tuple[int, str]:
    lines = [("header", {"summary": "Try", **header}), *entries]
    body = b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in lines)
    return asked(hub, f"/api/datasets/{repo}/commit/main", body)


def test_the_stand_in_refuses_what_the_hub_refuses(hub, repo, files):
    destination_at(repo).send(files[:1], "First")
    before = on_hub(hub, repo)
    lfs = {"path": "a.parquet", "algo": "sha256", "oid": files[1].sha256, "size": files[1].size}
    file = {"path": "a.parquet", "content": "YQ==", "encoding": "base64"}
    assert commit(hub, repo, ("lfsFile", lfs)) == (400, f"a.parquet: LFS object {files[1].sha256} was not uploaded")
    assert commit(hub, repo, ("file", file)) == (400, "a.parquet: has to be in LFS")
    assert commit(hub, repo, ("deletedFile", {"path": "a.parquet"}))[0] == 404
    assert commit(hub, repo, parentCommit="0" * 40)[0] == 412
    assert asked(hub, f"/api/datasets/{repo}/commit/main", b"")[0] == 400
    assert asked(hub, f"/api/datasets/{repo}/commit/main", b"", token=STRANGER)[0] == 403
    assert asked(hub, f"/api/datasets/{repo}/commit/main", b"", token="hf_nobody")[0] == 401
    assert on_hub(hub, repo) == before


def test_the_stand_in_takes_no_other_bytes_than_announced(hub, repo, files):
    destination_at(repo).send(files[:1], "First")
    told = {"operation": "upload", "hash_algo": "sha256", "objects": [{"oid": files[1].sha256, "size": 50_000}]}
    _, answer = asked(hub, f"/datasets/{repo}.git/info/lfs/objects/batch", json.dumps(told).encode())
    actions = json.loads(answer)["objects"][0]["actions"]
    address = actions["upload"]["href"].removeprefix(hub.url("localhost"))
    for wrong in (CONTENTS[files[1].name][:-1], CONTENTS[files[1].name][:-1] + b"x", b""):
        assert asked(hub, address, wrong, "PUT")[0] == 400
    verify = actions["verify"]["href"].removeprefix(hub.url())
    body = json.dumps({"oid": files[1].sha256, "size": 50_000}).encode()
    assert asked(hub, verify, body)[0] == 404
    assert asked(hub, address, CONTENTS[files[1].name], "PUT")[0] == 200
    assert asked(hub, verify, body)[0] == 200
    assert asked(hub, "/lfs-uploads/0123/1", b"", "PUT")[0] == 403
