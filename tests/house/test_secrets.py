"""Tokens go to the Hub alone, and only if they may; passwords, signatures and tokens are shown and kept nowhere."""

import base64
import itertools
import json
import logging
import os
import shlex
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import laion_face
from laion_face_builder import cli
from laion_face_builder.download.workers import environment
from laion_face_builder.errors import LaionFaceError, OptionError, SourceError
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.layout import DataDir
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.publish.targets import PublishedPlace
from laion_face_builder.sandbox import TOKEN, WRITER, Answer, FolderHost, SandboxSpec, redirect
from laion_face_builder.sandbox.serving import LoopbackServer
from laion_face_builder.shown import bare, harmless, hushed, shown
from laion_face_builder.sources import url
from laion_face_builder.sources.hub import checked_token
from laion_face_builder.sources.sources import Upstream, Whole
from laion_face_builder.verify.verify import verify

#: In every secret of these tests; no file and no line may have it, in whatever spelling.
NEEDLE = "S3NT1NEL"
USER, PASSWORD = f"me+{NEEDLE}", f"p@/#?: %{NEEDLE}ł"
SIGNATURE = f"{NEEDLE}+/="
GOOD_TOKEN = f"hf_{NEEDLE}{'a' * 26}"
LOGIN = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}@"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
#: base64 of the needle wherever in a text it begins: what is the same for any neighbours.
_IN_BASE64 = [base64.b64encode(b"\0" * pad + NEEDLE.encode())[2 * bool(pad) + 2 : -4].decode() for pad in range(3)]
SPELLINGS = (NEEDLE, quote(PASSWORD), quote_plus(PASSWORD), BASIC, *_IN_BASE64)

_numbers = itertools.count()


def with_login(address: str) -> str:
    return address.replace("://", f"://{LOGIN}", 1)


def whole(place: str) -> Whole:
    found = Upstream(metadata_place=place).metadata_source()
    assert isinstance(found, Whole)
    return found


def told(text: str) -> list[str]:
    """List the spellings of secrets that are in the text."""
    return [spelling for spelling in SPELLINGS if spelling in text]


class Door(FolderHost):
    """A folder for those who have the password, or the signature; `spoil` says what they get instead of its files."""

    def __init__(self, folder: Path, **given) -> None:
        super().__init__(folder, **given)
        self.password = PASSWORD
        self.spoil: Callable[[Any, Any], Any] | None = None

    def answer(self, request):
        known = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {known}" and request.query.get("sig") != SIGNATURE:
            return Answer(401, b"who are you?", {"WWW-Authenticate": 'Basic realm="here"'})
        if self.spoil is None:
            return super().answer(request)
        return self.spoil(request, super().answer(request))


def kept_by(*folders: Path) -> list[str]:
    """List names and contents of all files that have a secret in them."""
    found = []
    for path in (path for folder in folders if folder.exists() for path in folder.rglob("*")):
        content = path.read_bytes().decode("latin-1") if path.is_file() else ""
        found += [f"{path}: {spelling}" for spelling in told(str(path)) + told(content)]
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Give a folder for a test's own files; temporary files go there too, and nobody pauses."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(url, "TIMEOUT", 0.5)
    return tmp_path


@pytest.fixture
def nothing_told(place, caplog, capfd):
    """Give `nothing_told(error)`: it fails if a secret was said, logged or raised, or is on the disk."""
    caplog.set_level(logging.INFO)

    def check(error: BaseException | None = None) -> None:
        said = capfd.readouterr()
        traces = "".join(traceback.format_exception(error)) if error is not None else ""
        logged = "\n".join(logging.Formatter().format(record) for record in caplog.records)
        assert told(said.out + said.err + caplog.text + logged + traces + repr(error)) == []
        assert kept_by(place, Path(os.environ["HF_HOME"]), Path(os.environ["XDG_CACHE_HOME"])) == []

    return check


def load(place: Path, **given):
    with_ = {"data_dir": str(place / "data"), "parts": "0", "images": "none", "streaming": True, "split": "train"}
    return laion_face.load_dataset("20M", cache_dir=str(place / "arrow"), **{**with_, **given})


# -- what is shown ----------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8).map(lambda text: text + NEEDLE)
schemes = st.sampled_from(["http", "https", "s3", "ftp", "memory", "hf", "simplecache::http", "webdav+https"])


@given(schemes, words, words, words, st.sampled_from(["h", "h.example:80", "[::1]:8000"]))
def test_no_address_is_shown_with_its_secrets(scheme, user, password, signature, host):
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    address = f"{scheme}://{login}@{host}/a/b@c/x.parquet?sig={quote(signature, safe='')}&b=1"
    assert shown(address) == f"{scheme}://***@{host}/a/b@c/x.parquet?***"
    assert bare(address) == f"{scheme}://{host}/a/b@c/x.parquet"
    for text in (address, f"GET '{address}': gone", f"({address}), {address}: no", f"url={address}", f"{login}@{host}"):
        assert NEEDLE not in hushed(text)
    assert hushed(hushed(address)) == hushed(address)


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=12))
def test_a_password_that_is_not_percent_encoded_is_not_shown_either(password):
    # What looks like a host behind an @, or like a port before a slash, may as well be one: nobody can tell.
    if "@" not in password:
        assert NEEDLE not in shown(f"http://me:x{password}{NEEDLE}@host/folder")


@pytest.mark.parametrize(
    "text",
    [
        "owner/name@main",
        "hf://datasets/owner/name@refs%2Fconvert/x.parquet: gone",
        "http://127.0.0.1:8000/a@b: HTTP 404",
        "https://host/a: asked 4 times. Try again later. Is it there? No.",
        "hf_hub_download and hf_transfer",
        "basic authentication is required",
        "part 3: 12:30, sha256:0a1b at me@example",
        "",
        "/a folder/what?/x.parquet",
    ],
)
def test_what_is_no_secret_stays(text):
    assert hushed(text) == text


@pytest.mark.parametrize(
    "text",
    [
        f"Invalid header value b'Bearer {NEEDLE}aaaa'",
        f"{{'authorization': 'Bearer {NEEDLE}'}}",
        GOOD_TOKEN,
        f"Authorization: Basic {BASIC}",
        f"headers=[('Authorization', 'Basic {BASIC}')]",
        f"hf_oauth_{'a' * 20}.{NEEDLE}-x",
        f"Max retries exceeded with url: /f/x.parquet?X-Amz-Signature={NEEDLE} (Caused by x)",
        f"netloc 'me:{NEEDLE}@host' contains invalid characters",
        f"proxy me:{NEEDLE}@proxy.example:3128",
    ],
)
def test_words_of_libraries_are_hushed(text):
    assert told(hushed(text)) == []
    assert told(str(LaionFaceError(text)) + repr(OptionError(text))) == []
    error = harmless(ValueError(text))
    assert told("".join(traceback.format_exception(error)) + repr(error)) == []


def test_only_errors_with_a_secret_behind_them_get_a_stand_in():
    try:
        try:
            raise OSError(f"http://{LOGIN}host/")
        except OSError as error:
            raise KeyError("x") from error
    except KeyError as error:
        stand_in, trace = harmless(error), error.__traceback__
    assert str(stand_in) == "KeyError: 'x', from OSError"
    assert stand_in.__traceback__ is trace
    plain = KeyError("y")
    assert harmless(plain) is plain


def test_the_log_is_hushed_whoever_writes_to_it(caplog):
    caplog.set_level(logging.INFO, logger="laion_face")
    log = logging.getLogger("laion_face")
    try:
        raise OSError(f"http://{LOGIN}host/")
    except OSError:
        log.exception("%s of %d", f"http://{LOGIN}host/?{NEEDLE}", 3)
    log.info("%s of %d", "one", 3)
    assert [record.getMessage() for record in caplog.records] == ["http://***@host/?*** of 3", "one of 3"]
    assert "OSError: http://***@host/" in caplog.text
    assert told(caplog.text) == []


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_sandbox(make_sandbox):
    """Make a sandbox whose metadata is not gated."""
    box = make_sandbox(SandboxSpec(rows=60, parts=(0,)))
    box.hub.repos[box.metadata_repo].gated = False
    return box


def sources_of(box):
    return {"source_repo": box.repo, "metadata": box.metadata_repo}


def sent(box, since: int) -> set[str]:
    """Return the Authorization headers that the Hub got since then; "" is a request without one."""
    return {request.headers.get("authorization", "") for request in box.hub.log[since:]}


def test_token_false_sends_none(open_sandbox, place, published):
    box = open_sandbox
    since = len(box.hub.log)
    rows = list(load(place, token=False, **sources_of(box)))
    assert len(rows) == len(box.truth_of(0))
    assert box.hub.count("/lfs/") > 0
    repo = f"{WRITER}/no-token-{next(_numbers)}"
    box.hub.add_repo(repo, published.files)
    for name in (repo, f"hf://datasets/{repo}"):
        ds = load(place, token=False, index=name)
        loader = DataLoader(ds, num_workers=2, collate_fn=list, multiprocessing_context="fork")
        assert sum(map(len, loader)) > 0
    assert list(verify(repo, token=False).problems) == []
    assert len(box.hub.log) - since > 20
    assert sent(box, since) == {""}


@pytest.mark.parametrize(("token", "header"), [(None, TOKEN), (True, TOKEN), (GOOD_TOKEN, GOOD_TOKEN)])
def test_a_token_goes_to_the_hub_alone(open_sandbox, place, token, header):
    box = open_sandbox
    box.hub.tokens.setdefault(GOOD_TOKEN, set())
    since = len(box.hub.log)
    load(place, token=token, source_repo=box.repo, metadata=box.metadata_url)
    asked = box.hub.log[since:]
    # The Hub sends those who want a large file to another host, as the real one does: to a signed address.
    there = [request for request in asked if "/lfs/" in request.path]
    assert there
    assert {request.headers.get("authorization") for request in there} == {None}
    assert {request.token for request in asked if request not in there} == {header}
    assert {request.headers.get("authorization") for request in box.metadata.log} == {None}


def test_no_token_goes_to_hosts_of_pictures(open_sandbox, place):
    box = open_sandbox
    ds = load(place, token=GOOD_TOKEN, images="fetch", allow_private_hosts=True, **sources_of(box))
    assert len(list(ds)) > 0
    assert box.pictures.log
    assert told(str([(request.target, request.headers) for request in box.pictures.log])) == []
    assert kept_by(place) == []


def test_true_wants_a_stored_token(monkeypatch, place, sandbox):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OptionError, match="no stored token"):
        load(place, token=True, source_repo=sandbox.repo)
    with pytest.raises(OptionError, match="no stored token"):
        verify("owner/name", token=True)


def test_the_wish_for_no_implicit_token_holds(monkeypatch, open_sandbox, place):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    since = len(open_sandbox.hub.log)
    load(place, **sources_of(open_sandbox))
    assert sent(open_sandbox, since) == {""}


@pytest.mark.parametrize("token", ["", " ", "a b", f"{NEEDLE}\nx", f"{NEEDLE}ł", b"hf_bytes", 5, ["x"]])
def test_what_cannot_be_a_token(token):
    with pytest.raises(OptionError, match=r"^token: found") as caught:
        Options.of("20M", OptionFields(), token=token)
    assert NEEDLE not in str(caught.value)


def test_blanks_around_a_token_are_not_the_tokens():
    assert checked_token(f" {GOOD_TOKEN}\n") == GOOD_TOKEN


def test_no_child_process_gets_the_token(place, prepared):
    # What `download` starts is seen while it runs.
    seen: set[str] = set()

    class Watched(LoopbackServer):
        def answer(self, request):
            for folder in Path("/proc").iterdir():
                if not folder.name.isdigit() or folder.name == str(os.getpid()):
                    continue
                try:
                    texts = {name: (folder / name).read_bytes().decode("latin-1") for name in ("cmdline", "environ")}
                except OSError:
                    continue
                if "laion_face_builder.download.worker" in texts["cmdline"]:
                    seen.update(name for name, text in texts.items() if text)
                assert not any(GOOD_TOKEN in text for text in texts.values())
            return Answer(404)

    from laion_face_builder.examples import parts

    with Watched() as host:
        options = _one_row_at(host.url(), place, prepared)
        for _ in parts.download(options, parts.download_options(options, processes_count=1)):
            pass
    assert seen == {"cmdline", "environ"}
    assert kept_by(place) == []


def test_workers_do_not_inherit_the_stored_token_either(monkeypatch, place):
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    monkeypatch.setenv("https_proxy", f"http://{LOGIN}proxy:3128")
    assert environment()["PATH"] == os.environ["PATH"]
    assert told(str(environment())) == []


def _one_row_at(url: str, place: Path, prepared) -> Options:
    """Return options with a token, for a DATA_DIR whose index leads to `url` alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = DataDir.at(place / "data")
    table = pq.read_table(prepared.data.index(0)).slice(0, 1)
    urls = pa.array([f"{url}/picture.jpg"], pa.string())
    data.index(0).parent.mkdir(parents=True)
    pq.write_table(table.set_column(table.schema.get_field_index("url"), "url", urls), data.index(0))
    fields = OptionFields(parts="0", allow_private_hosts=True, retries=0)
    return Options.of("20M", fields, data.root, GOOD_TOKEN)


# -- credentials work -------------------------------------------------------------------------------------------------


def test_passwords_open_doors_and_are_found_nowhere_afterwards(sandbox, place, nothing_told):
    with Door(sandbox.metadata_folder) as door:
        address = with_login(door.url())
        given = {"source_repo": sandbox.repo, "metadata": address}
        data = load(place, streaming=False, **given)
        assert len(data) == len(sandbox.truth_of(0))
        builder = laion_face.LaionFace(
            config_name="20M", parts="0", data_dir=str(place / "data"), storage_options={"secret": NEEDLE}, **given
        )
        options = builder.config.options(GOOD_TOKEN)
        assert told(repr(builder) + repr(builder.config) + str(builder.info) + repr(options) + repr(data)) == []
        assert "http://***@127.0.0.1" in repr(options)
        assert options == builder.config.options(GOOD_TOKEN)
        assert cli.main(["status", "20M", "--data-dir", str(place / "data"), "--format", "json"]) == 0
        nothing_told()
        # Nor do they decide what is the same: with another password nothing is fetched or made again.
        door.password = PASSWORD + "2"
        made = {path: path.stat().st_mtime_ns for path in (place / "data").rglob("*.parquet")}
        asked = door.count(".parquet", "GET")
        again = load(place, streaming=False, **{**given, "metadata": address.replace("@127", "2@127")})
        typed = ["--parts", "0", "--source-repo", sandbox.repo, "--metadata", address.replace("@127", "2@127")]
        assert cli.main(["prepare", "20M", "--data-dir", str(place / "data"), *typed]) == 0
        assert again.cache_files == data.cache_files
        assert {path: path.stat().st_mtime_ns for path in made} == made
        assert door.count(".parquet", "GET") == asked
    nothing_told()


@pytest.mark.parametrize("form", ["folder", "file", "folder?sig", "file?sig"])
def test_an_index_behind_a_door(prepared, place, nothing_told, form):
    with Door(prepared.data.root / "index") as door:
        address = door.url() + ("/part-00000.parquet" if form.startswith("file") else "")
        address = f"{address}?sig={quote(SIGNATURE, safe='')}" if form.endswith("sig") else with_login(address)
        data = load(place, index=address, streaming=False)
        assert len(data) == len(prepared.sandbox.truth_of(0))
        assert len(list(load(place, index=address))) == len(data)
        typed = ["--data-dir", str(place / "copied"), "--parts", "0", "--index", address]
        assert cli.main(["prepare", "20M", *typed]) == 0
        out = ["--images", "none", "--out", str(place / "page")]
        assert cli.main(["show", "20M", *typed, "--count", "2", *out]) == 0
        assert cli.main(["stats", "20M", *typed, "--out", str(place / "stats.html")]) == 0
        assert "--index" in (place / "stats.html").read_text(encoding="utf-8")
        publish(PublishRequest(DataDir.at(place / "copied"), str(place / "published/"), token=None))
        # The copy is the same one with any password, and without a door.
        assert (place / "copied/index/part-00000.parquet").read_bytes() == prepared.data.index(0).read_bytes()
    nothing_told()


def test_a_password_goes_along_to_the_same_host_and_to_no_other(sandbox, place):
    class Moved(Door):
        def answer(self, request):
            if request.path.startswith("/old/"):
                return redirect(request.path.removeprefix("/old"))
            return super().answer(request)

    with Moved(sandbox.metadata_folder) as door, FolderHost(sandbox.metadata_folder) as elsewhere:
        source = whole(with_login(f"{door.url()}/old")).files[0]
        assert source.fetch(place / "sources").stat().st_size == source.size
        door.spoil = _files_only(lambda request, answer: redirect(f"{elsewhere.url('localhost')}{request.path}"))
        source = whole(with_login(door.url())).files[0]
        source.fetch(place / "other")
    assert elsewhere.log
    assert {request.headers.get("authorization") for request in elsewhere.log} == {None}
    assert kept_by(place) == []


def test_the_command_that_is_named_has_no_secret(place):
    given = OptionFields(parts="0", source_repo=f"./{NEEDLE.lower()}", metadata=f"http://{LOGIN}host/x?sig={NEEDLE}")
    options = Options.of("20M", given, place / "data", GOOD_TOKEN)
    from laion_face_builder.examples.parts import command

    typed = shlex.split(command("prepare", options, [0]))
    assert typed[typed.index("--metadata") + 1] == "http://***@host/x?***"
    assert told(" ".join(typed)) == []


# -- errors -----------------------------------------------------------------------------------------------------------


def _status(status: int):
    return lambda request, answer: Answer(status, b"no", {"Retry-After": "0"})


def _files_only(spoil):
    return lambda request, answer: answer if request.path.endswith("/") else spoil(request, answer)


#: How a door's answers go wrong, for those who have the password.
SPOILED = {
    "404": _status(404),
    "401": _status(401),
    "403": _status(403),
    "500": _status(500),
    "429": _status(429),
    "404 of files": _files_only(_status(404)),
    "403 of files": _files_only(_status(403)),
    "500 of files": _files_only(_status(500)),
    "cut": _files_only(lambda request, answer: replace(answer, cut_after=100)),
    "cut page": lambda request, answer: replace(answer, cut_after=3),
    "not Parquet": _files_only(lambda request, answer: Answer(200, b"<html>no</html>" * 40)),
    "not HTTP": lambda request, answer: Answer(200, b"x", {"Content-Length": "much"}),
    "loop": lambda request, answer: redirect(request.target),
    "elsewhere": lambda request, answer: redirect(f"http://127.0.0.1:9/x?X-Amz-Signature={NEEDLE}"),
    "elsewhere with a password": lambda request, answer: redirect(f"http://{LOGIN}127.0.0.1:9/x"),
    "no address": lambda request, answer: redirect(f"http://me:{NEEDLE}/x@[127.0.0.1/"),
    "to ftp": lambda request, answer: redirect(f"ftp://me:{NEEDLE}@127.0.0.1:9/x"),
}
FORMS = {
    "metadata": lambda url: {"metadata": with_login(url)},
    "metadata?sig": lambda url: {"metadata": f"{url}?sig={quote(SIGNATURE, safe='')}"},
    "index": lambda url: {"index": with_login(url)},
    "index?sig": lambda url: {"index": f"{url}?sig={quote(SIGNATURE, safe='')}"},
    "index file": lambda url: {"index": with_login(f"{url}/part-00000.parquet")},
    "index file?sig": lambda url: {"index": f"{url}/part-00000.parquet?sig={quote(SIGNATURE, safe='')}"},
}


@pytest.fixture(scope="session")
def behind_the_door(sandbox, prepared, tmp_path_factory):
    """Return the folder of the metadata files and that of the index parts."""
    return {"metadata": sandbox.metadata_folder, "index": prepared.data.root / "index"}


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("form", FORMS)
def test_no_failure_tells_a_password(sandbox, behind_the_door, place, nothing_told, form, spoiled):
    with Door(behind_the_door["metadata" if "metadata" in form else "index"]) as door:
        door.spoil = SPOILED[spoiled]
        with pytest.raises(LaionFaceError) as caught:
            list(load(place, source_repo=sandbox.repo, **FORMS[form](door.url())))
    assert "\n" not in str(caught.value)
    nothing_told(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("host", ["127.0.0.1:9", "nowhere.invalid", "[::1"])
def test_nobody_there(sandbox, place, nothing_told, form, host):
    with pytest.raises(LaionFaceError) as caught:
        list(load(place, source_repo=sandbox.repo, **FORMS[form](f"http://{host}/x")))
    nothing_told(caught.value)


def test_silence(sandbox, place, nothing_told):
    with Door(sandbox.metadata_folder) as door:
        door.spoil = lambda request, answer: replace(answer, delay=60.0)
        with pytest.raises(SourceError, match="timed out") as caught:
            load(place, source_repo=sandbox.repo, metadata=with_login(door.url()))
    nothing_told(caught.value)


ODD = [
    "http://me:{}/x@127.0.0.1:9/x",
    "http://me:{}#x@127.0.0.1:9/x",
    "http://me:x?{}@127.0.0.1:9/x",
    "http://me:{} x@127.0.0.1:9/",
    "http://me:{}@/x",
    "s3://KEY:12/{}+@bucket/x",
    "gs://KEY:{}@bucket",
    "ftp://me:{}@127.0.0.1:9/x",
    "memory://me:{}@nothing/x",
    "simplecache::http://me:{}@127.0.0.1:9/x",
    "zip://x::http://me:{}@127.0.0.1:9/x",
    "nosuch://me:{}@host/x",
    "hf://me:{}@host/x",
    "hf://datasets/me:{}@host/x",
    "me:{}@host/x",
    "http:/me:{}@host/x",
    "//me:{}@host/x",
    "sftp://me:{}@127.0.0.1:9/x",
    "https://127.0.0.1:9/x?sv=1&sig={}",
    "http://127.0.0.1:9/a b?sig={} x",
    "http://127.0.0.1:9/ł?sig={}",
]


@pytest.mark.parametrize("address", ODD)
@pytest.mark.parametrize(
    "option", ["metadata", "index", "source_repo", "images", "exclude", "cache_images", "data_dir"]
)
def test_odd_addresses_in_every_option(sandbox, place, nothing_told, monkeypatch, option, address):
    monkeypatch.chdir(place)
    given = {"source_repo": sandbox.repo, option: address.format(NEEDLE)}
    if option in ("cache_images", "data_dir") and "://" not in address:
        return  # A name that a folder may have.
    with pytest.raises(LaionFaceError) as caught:
        list(load(place, **given))
    nothing_told(caught.value)


@pytest.mark.parametrize("address", ODD)
def test_odd_addresses_on_the_command_line(place, nothing_told, monkeypatch, prepared, address):
    monkeypatch.chdir(place)
    address = address.format(NEEDLE)
    data = ["--data-dir", str(prepared.data.root)]
    lines = [
        ["publish", address, *data],
        ["verify", address],
        ["prepare", address, *data],
        ["prepare", "20M", "--metdata", address],
        ["prepare", "20M", f"--part={address}", *data],
        ["faces", address],
    ]
    for line in lines:
        if line[0] == "publish" and "://" not in address and not address.startswith("me:"):
            continue  # A folder of that name.
        assert _exit_code(line) in (1, 2)
    nothing_told()


def _exit_code(line: list[str]) -> object:
    try:
        return cli.main(line)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
@pytest.mark.parametrize("at", ["/api/", "/resolve/", "/lfs/"])
def test_no_answer_of_the_hub_tells_the_token(open_sandbox, place, nothing_told, status, at):
    hub = open_sandbox.hub
    for method in ("GET", "HEAD", "POST"):
        hub.plant(at, method=method, calls=range(1, 99), status=status, body=f"{GOOD_TOKEN} is no good".encode())
    with pytest.raises(LaionFaceError) as caught:
        load(place, token=GOOD_TOKEN, **sources_of(open_sandbox))
    nothing_told(caught.value)


def test_wrong_bytes_do_not_tell_the_token(open_sandbox, place, nothing_told):
    open_sandbox.hub.plant("/lfs/", calls=range(1, 99), flip=40)
    with pytest.raises(LaionFaceError) as caught:
        load(place, token=GOOD_TOKEN, **sources_of(open_sandbox))
    nothing_told(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_publish_and_verify_do_not_tell_the_token(hub, published, place, nothing_told, status):
    hub.tokens.setdefault(GOOD_TOKEN, set())
    for method in ("GET", "HEAD", "POST"):
        hub.plant("/api/", method=method, calls=range(1, 99), status=status, body=f"{GOOD_TOKEN} is no good".encode())
    target = f"{WRITER}/never-{next(_numbers)}"
    with pytest.raises(LaionFaceError) as caught:
        publish(PublishRequest(published.data, target, token=GOOD_TOKEN))
    nothing_told(caught.value)
    with pytest.raises(LaionFaceError) as caught:
        list(verify(target, token=GOOD_TOKEN).problems)
    nothing_told(caught.value)
    assert told(repr(PublishedPlace.at(target, token=GOOD_TOKEN))) == []


# -- the user's own proxy ---------------------------------------------------------------------------------------------

PROXIES = [
    "http://{}127.0.0.1:9",
    "{}127.0.0.1:9",
    "http:/{}127.0.0.1:9",
    "http://{}nowhere.invalid:3128",
    "socks5://{}127.0.0.1:9",
]


class Refusing(LoopbackServer):
    """A proxy that wants another password."""

    def answer(self, request):
        return Answer(407, b"no", {"Proxy-Authenticate": 'Basic realm="proxy"'})


@pytest.mark.parametrize("proxy", [*PROXIES, "refusing"])
@pytest.mark.parametrize("form", ["metadata", "index"])
def test_the_password_of_a_proxy_is_not_told(sandbox, place, nothing_told, monkeypatch, proxy, form):
    with Refusing() as refusing:
        address = with_login(refusing.url()) if proxy == "refusing" else proxy.format(LOGIN)
        _go_through(monkeypatch, address)
        with pytest.raises(LaionFaceError) as caught:
            list(load(place, source_repo=sandbox.repo, **{form: "http://host.invalid/x"}))
        nothing_told(caught.value)


@pytest.mark.parametrize("proxy", [*PROXIES, "refusing"])
@pytest.mark.parametrize("trusted", [True, False])
def test_nor_when_pictures_are_fetched(prepared, place, nothing_told, monkeypatch, proxy, trusted):
    with Refusing() as refusing:
        address = with_login(refusing.url()) if proxy == "refusing" else proxy.format(LOGIN)
        _go_through(monkeypatch, address)
        given = {"index": str(prepared.data.root), "images": "fetch", "trust_proxy": trusted, "timeout": 2.0}
        try:
            ds = load(place, on_error="raise", retries=0, **given)
            with pytest.raises(LaionFaceError) as caught:
                next(iter(ds))
        except LaionFaceError as error:
            nothing_told(error)
        else:
            nothing_told(caught.value)


def test_limits_do_not_show_the_proxy():
    trusting = Options.of("20M", OptionFields(trust_proxy=True)).fetch
    limits = FetchLimits.of(trusting, environ={"http_proxy": f"http://{LOGIN}proxy:3128"})
    assert limits.proxy
    assert told(repr(limits)) == []


def _go_through(monkeypatch, proxy: str) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)


def test_a_report_has_no_secret(sandbox, place, nothing_told):
    with Door(sandbox.metadata_folder) as door:
        ds = load(place, source_repo=sandbox.repo, metadata=with_login(door.url()))
        list(ds)
        assert told(str(laion_face.report(ds)) + json.dumps(laion_face.report(ds).as_dict(), default=str)) == []
        assert told(repr(ds) + str(ds.info) + repr(ds.state_dict())) == []
    nothing_told()
