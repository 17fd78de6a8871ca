"""Metadata by part is told from whole metadata by exact names, wherever the files are, before anything is fetched."""

import functools
import http.server
import pickle
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile, GatedSource, SourceError, SourceNotFound
from laion_face_builder.files import sha256_of
from laion_face_builder.sandbox import STRANGER, TOKEN, Answer, FolderHost, Hub, Request, redirect
from laion_face_builder.sandbox.serving import LoopbackServer
from laion_face_builder.sources.http_folder import TODAYS
from laion_face_builder.sources.sources import CANONICAL, CONVERTED, ByPart, Upstream, Whole, part_of
from tests.support.sources import parquet

WHOLE = [
    [TODAYS[0]],
    list(TODAYS[3:6]),
    ["0000.parquet", "0001.parquet"],
    ["default/train/0000.parquet", "default/train/0001.parquet"],
    ["train-00000-of-00128.parquet", "data/train-00001-of-00128.parquet"],
    ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"],
    ["00000.parquet", "00001.parquet"],
    ["part-00000.parquet"],
    ["part-00000-deadbeef-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet"],
    [CONVERTED.format(part=32)],
    ["laion_face_part_00000 (1).parquet", "x" + CONVERTED.format(part=0)],
]
BY_PART = [
    [CANONICAL.format(part=0)],
    [CANONICAL.format(part=3), CONVERTED.format(part=31)],
    ["a/" + CANONICAL.format(part=0), "b/c/" + CONVERTED.format(part=2)],
]


def fill(folder: Path, names: list[str]) -> Path:
    for rows, name in enumerate(names, start=5):
        parquet(folder / name, rows)
    (folder / "README.md").write_text("# not metadata")
    return folder


def source(place: str | Path) -> Any:
    return Upstream(metadata_place=place).metadata_source()


@pytest.mark.parametrize("names", BY_PART + WHOLE, ids=lambda names: names[0])
def test_the_kind_is_told_by_exact_names_in_every_place(hub: Hub, tmp_path, names, request):
    folder = fill(tmp_path / "in", names)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    repo = f"tests/kind-{abs(hash(request.node.name))}"
    hub.add_repo(repo, files)
    bucket = repo.replace("/", "-")
    for name, path in files.items():
        fsspec.filesystem("memory").pipe(f"/{bucket}/{name}", path.read_bytes())
    with FolderHost(folder) as host:
        places: list[str | Path] = [folder, repo, f"hf://datasets/{repo}", f"memory://{bucket}"]
        if not any("/" in name for name in names):
            places.append(host.url())
        for place in places:
            found = source(place)
            assert pickle.loads(pickle.dumps(found)) == found
            if names in WHOLE:
                assert isinstance(found, Whole)
                fetched = [file.fetch(tmp_path / "s") for file in found.files]
                assert [sha256_of(path) for path in fetched] == [sha256_of(files[name]) for name in sorted(names)]
                contents = [f"sha256:{sha256_of(files[name])}" for name in sorted(names)]
                assert [file.content(tmp_path / "s") for file in found.files] == contents
                with pytest.raises(SourceError, match="are no parts; expected files such as part-00000-5b54c5d5"):
                    Upstream(metadata_place=place).metadata(0)
            else:
                assert isinstance(found, ByPart)
                for name in names:
                    file = found.part(part_of(name))
                    assert sha256_of(file.fetch(tmp_path / "s")) == sha256_of(files[name])
                with pytest.raises(SourceNotFound, match="no metadata of part 9; found "):
                    found.part(9)


@given(
    st.from_regex(r"(part-|laion_face_part_)?[0-9]{1,6}(-[0-9a-f-]{1,40})?(-c000)?(\.snappy)?\.parquet", fullmatch=True)
)
def test_no_other_name_is_ever_a_parts(name):
    exact = {form.format(part=part) for form in (CANONICAL, CONVERTED) for part in range(32)}
    assert (part_of(name) is not None) == (name in exact)


def test_both_kinds_in_one_place_are_an_error_that_lists_some_of_each(hub: Hub, tmp_path):
    names = [CANONICAL.format(part=0), "more/" + TODAYS[0]]
    folder = fill(tmp_path / "in", names)
    hub.add_repo("tests/mixed", {name: folder / name for name in names})
    for place in (folder, "tests/mixed"):
        with pytest.raises(
            SourceError, match=r"found files of single parts .* and others, .* Name the folder of one kind"
        ) as caught:
            source(place)
        assert all(name in str(caught.value) for name in names)
    assert isinstance(source(folder / "more"), Whole)
    assert isinstance(source("hf://datasets/tests/mixed/more"), Whole)


def test_no_parquet_is_an_error_that_says_what_is_there(hub: Hub, tmp_path):
    hub.add_repo("tests/bare", {"README.md": b"#", "data.csv": b"1"})
    (tmp_path / "a.csv").write_text("1")
    for place, found in ((tmp_path, "a.csv"), ("tests/bare", "README.md, data.csv"), ("memory://void", "no files")):
        fsspec.filesystem("memory").makedirs("/void", exist_ok=True)
        with pytest.raises(SourceNotFound, match=f"no Parquet files; found {found}. Name a place that has it"):
            source(place)


def test_hidden_and_half_written_files_are_none(tmp_path):
    fill(tmp_path, ["0000.parquet"])
    for name in ("._0000.parquet", ".0001.parquet.ab.partial", ".cache/0002.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "folder.parquet").mkdir()
    assert [file.name for file in source(tmp_path).files] == [str(tmp_path / "0000.parquet")]


def test_a_cut_local_file_is_found_at_once(tmp_path):
    fill(tmp_path, ["0000.parquet", "0001.parquet"])
    (tmp_path / "0001.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadFile, match=r"0001\.parquet: found 4 bytes that do not end in a Parquet footer"):
        source(tmp_path)


# The Hub


def test_whole_metadata_on_the_hub_is_one_listing_and_one_question(hub: Hub, tmp_path):
    path = parquet(tmp_path / "one")
    hub.add_repo("tests/today", dict.fromkeys(TODAYS, path), gated=True)
    hub.tokens.setdefault(TOKEN, set()).add("tests/today")
    before = len(hub.log)
    found = source("tests/today")
    asked = hub.log[before:]
    assert [file.name for file in found.files] == [f"tests/today/{name}" for name in TODAYS]
    assert {(file.version, file.size) for file in found.files} == {(f"sha256:{sha256_of(path)}", path.stat().st_size)}
    assert [request.path.rpartition("/")[2] for request in asked if request.method == "HEAD"] == [TODAYS[0]]
    assert sum("/tree/" in request.path for request in asked) == -(-len(TODAYS) // hub.page_size)
    assert len(asked) == 2 + -(-len(TODAYS) // hub.page_size)


@pytest.mark.parametrize(("token", "found"), [(None, "no valid token"), (STRANGER, "has no access")])
def test_gated_whole_metadata_is_refused_before_a_byte_of_it(hub: Hub, tmp_path, monkeypatch, token, found):
    monkeypatch.delenv("HF_TOKEN")
    hub.add_repo("tests/locked", {name: parquet(tmp_path / "one") for name in TODAYS[:3]}, gated=True)
    sent = hub.bytes_sent("/lfs/")
    with pytest.raises(GatedSource, match=found):
        Upstream("x/y", None, "tests/locked", token).metadata_source()
    assert hub.bytes_sent("/lfs/") == sent


def test_a_revision_is_looked_at_not_main(hub: Hub, tmp_path):
    repo = hub.add_repo("tests/branches", {"0000.parquet": parquet(tmp_path / "a")})
    repo.branches["refs/convert/parquet"] = repo.branches["main"]
    repo.commit_files([], ["0000.parquet"], "refs/convert/parquet")
    repo.commit({CONVERTED.format(part=1): parquet(tmp_path / "b")}, "refs/convert/parquet")
    assert isinstance(source("tests/branches"), Whole)
    assert isinstance(source("tests/branches@refs/convert/parquet"), ByPart)
    assert isinstance(source("hf://datasets/tests/branches@refs%2Fconvert%2Fparquet"), ByPart)


def test_a_renamed_repo_is_found_under_its_old_name(hub: Hub, tmp_path, monkeypatch):
    hub.add_repo("tests/new-name", {name: parquet(tmp_path / name) for name in TODAYS[:3]}, gated=True)
    hub.tokens.setdefault(TOKEN, set()).add("tests/new-name")
    answer = hub.answer

    def renamed(request: Request) -> Answer:
        if "tests/old-name" not in request.target:
            return answer(request)
        return redirect(request.target.replace("tests/old-name", "tests/new-name"), 307)

    monkeypatch.setattr(hub, "answer", renamed)
    found = source("tests/old-name")
    assert [file.content(tmp_path) for file in found.files] == [
        f"sha256:{sha256_of(file.fetch(tmp_path / 's'))}" for file in found.files
    ]
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(GatedSource):
        source("tests/old-name")


# http(s)


class Site(LoopbackServer):
    """Pages and files by their path; anything else is `status`."""

    def __init__(self, answers: dict[str, Answer], status: int = 404) -> None:
        super().__init__()
        self.answers, self.status = answers, status

    def answer(self, request: Request) -> Answer:
        return self.answers.get(request.path, Answer(self.status))


def page(text: str) -> Answer:
    return Answer(body=text.encode(), headers={"Content-Type": "text/html; charset=utf-8"})


NGINX = """<html><head><title>Index of /d/</title></head><body><h1>Index of /d/</h1><hr><pre><a href="../">../</a>
<a href="sub/">sub/</a>                   01-Jan-2024 00:00       -
<a href="0000.parquet">0000.parquet</a>   01-Jan-2024 00:00    1234
<a href="with%20blank.parquet">with blank.parquet</a>   01-Jan-2024 00:00    1234
</pre><hr></body></html>"""
APACHE = """<html><body><table><tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Time</a></th></tr>
<tr><td><img src="/icons/back.gif" alt="[PARENTDIR]"></td><td><a href="/">Parent Directory</a></td></tr>
<tr><td><a href="0000.parquet">0000.parquet</a></td><td><a HREF='/d/with%20blank.parquet'>with..&gt;</a></td></tr>
</table>"""
TRICKY = """<a>no target</a><a href="0000.parquet#top">x</a><a href="./with%20blank.parquet?download=1">x</a>
<a href="http://elsewhere.invalid/d/1.parquet">x</a><a href="https://127.0.0.1/d/2.parquet">x</a>
<a href="/3.parquet">x</a>
<a href="sub/4.parquet">x</a><a href="../5.parquet">x</a><a href="..%2F6.parquet">x</a><a href="http://[bad/7.parquet">x</a>
<a href="javascript:0.parquet">x</a><a href="">x</a><link href="8.parquet"><!-- <a href="9.parquet"> -->"""


@pytest.mark.parametrize("text", [NGINX, APACHE, TRICKY], ids=["nginx", "apache", "tricky"])
@pytest.mark.parametrize("address", ["/d", "/d/"])
def test_an_index_page_is_read(tmp_path, text, address):
    paths = {f"/d/{name}": parquet(tmp_path / name) for name in ("0000.parquet", "with blank.parquet")}
    with Site({"/d/": page(text), **{name: Answer(body=path) for name, path in paths.items()}}) as site:
        found = source(site.url() + address)
        assert isinstance(found, Whole)
        assert [file.name for file in found.files] == [
            f"{site.url()}/d/0000.parquet",
            f"{site.url()}/d/with%20blank.parquet",
        ]
        fetched = [file.fetch(tmp_path / "s") for file in found.files]
        assert [path.read_bytes() for path in fetched] == [path.read_bytes() for path in paths.values()]
        assert site.count(method="HEAD") == 2


def test_pythons_own_server(tmp_path):
    folder = fill(tmp_path / "in", ["0000.parquet", "a&b <c>.parquet", "zwölf.parquet"])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            found = source(f"http://127.0.0.1:{server.server_port}")
            fetched = [sha256_of(file.fetch(tmp_path / "s")) for file in found.files]
        finally:
            server.shutdown()
            thread.join()
    assert sorted(fetched) == sorted(sha256_of(path) for path in folder.glob("*.parquet"))


def test_a_dead_link_is_named(tmp_path):
    with (
        Site({"/": page(NGINX), "/0000.parquet": Answer(body=parquet(tmp_path / "a"))}) as site,
        pytest.raises(SourceNotFound, match=r"1 of 2 files cannot be had \(with blank\.parquet: HTTP 404\)"),
    ):
        source(site.url())


@pytest.mark.parametrize("kind", [CANONICAL, CONVERTED])
def test_without_a_page_a_copy_with_a_few_parts_is_found(tmp_path, kind):
    path = parquet(tmp_path / "a")
    with Site({"/" + kind.format(part=5): Answer(body=path)}) as site:
        found = source(site.url())
        assert isinstance(found, ByPart)
        assert found.part(5).fetch(tmp_path / "s").read_bytes() == path.read_bytes()
        with pytest.raises(
            SourceNotFound, match=r"no metadata of part 0 \(part-00000-5b54c5d5.*: HTTP 404, laion_face"
        ):
            found.part(0)


def test_without_a_page_all_of_todays_files_must_be_there(tmp_path):
    answer = Answer(body=parquet(tmp_path / "a"))
    with Site({f"/d/{name}": answer for name in TODAYS}) as site:
        found = source(f"{site.url()}/d?token=x")
        assert [file.name for file in found.files] == [f"{site.url()}/d/{name}" for name in TODAYS]
        for gone in ([TODAYS[77]], [TODAYS[0], TODAYS[77]]):
            site.answers.pop(f"/d/{gone[0]}")
            named = ", ".join(f"{name}: HTTP 404" for name in gone)
            with pytest.raises(SourceNotFound, match=f"{len(gone)} of the 128 files of today's rel.*{named}"):
                source(f"{site.url()}/d")


def test_without_a_page_both_kinds_are_an_error(tmp_path):
    answer = Answer(body=parquet(tmp_path / "a"))
    with (
        Site({"/" + CANONICAL.format(part=0): answer, "/" + TODAYS[0]: answer}) as site,
        pytest.raises(SourceError, match="expected only one kind"),
    ):
        source(site.url())


def test_a_place_with_nothing_and_one_that_is_locked():
    with (
        Site({"/": page("<a href='index.html'>home</a>")}) as site,
        pytest.raises(SourceNotFound, match="no index page with links to Parquet files, and no file of a known name"),
    ):
        source(site.url())
    with Site({}, status=401) as site:
        with pytest.raises(GatedSource, match="HTTP 401"):
            source(site.url())
        assert len(site.log) == 4  # A locked door is not knocked at two hundred times.
