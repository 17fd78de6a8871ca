"""The miniature of today has the Hub's form, and its truth is what the rules of the join make of its rows."""

from __future__ import annotations

import itertools
import re
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfApi, HfFileSystem, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from laion_face_builder.sandbox import STRANGER, Face, FolderHost, Sandbox, SandboxSpec, make_content
from laion_face_builder.sandbox.plain_join import plain_join
from laion_face_builder.sandbox.upstream import metadata_table

COLUMNS = {
    "NSFW": "string",
    "similarity": "double",
    "LICENSE": "string",
    "caption": "string",
    "url": "string",
    "key": "int64",
    "original_width": "int64",
    "original_height": "int64",
}
NOTHING_ODD: dict[str, Any] = {"repeated": 0.0, "misfits": 0.0, "rivals": 0.0, "swapped": 0.0, "unseen_swaps": 0.0}


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """Serve today's world of the default size under the true names, on a Hub of its own."""
    with Sandbox.running(tmp_path_factory.mktemp("today"), SandboxSpec(world="today")) as box:
        yield box


@pytest.fixture(scope="module")
def rows(box):
    """Read every metadata row from the files, with the name of its file, in order."""
    return [
        {**row, "file": path.name}
        for path in sorted(box.metadata_folder.iterdir())
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.fixture
def small(make_sandbox):
    return make_sandbox(SandboxSpec(parts=(0, 3), rows=60, world="today"))


def fetched(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


# --- the form of the files ---


def test_the_files_have_the_form_of_the_hubs(box):
    paths = sorted(box.metadata_folder.iterdir())
    uuid = "4227e361-38e7-40d5-8822-c6db46ea077c"
    assert [path.name for path in paths] == [f"part-0000{number}-{uuid}-c000.snappy.parquet" for number in range(5)]
    for path in paths:
        file = pq.ParquetFile(path)
        assert {name: str(file.schema_arrow.field(name).type) for name in file.schema_arrow.names} == COLUMNS
        assert file.schema_arrow.names == list(COLUMNS)
        assert file.num_row_groups == 4
        assert file.metadata.row_group(0).column(5).compression == "SNAPPY"
    numbers = [pq.read_metadata(path).num_rows for path in paths]
    assert max(numbers) < 1.05 * min(numbers)


def test_every_file_has_rows_of_every_part_in_no_order(box, rows):
    place = {truth.sample_id: (truth.part, truth.row) for truth in box.content.listed}
    for name in box.content.files:
        places = [place[row["key"]] for row in rows if row["file"] == name and row["key"] in place]
        assert {part for part, _ in places} == {0, 1, 2}
        rising = sum(a < b for a, b in itertools.pairwise(places))
        assert 0.4 < rising / len(places) < 0.6


def test_an_eighth_is_gone_and_what_is_left_is_what_was(box, rows):
    listed = {truth.sample_id for truth in box.content.listed}
    left = {row["key"] for row in rows}
    assert len(listed) == 1200
    assert len(listed & left) == 3 * 350
    assert sum(row["key"] is None for row in rows) > 10
    assert box.content.rows_read_for([0]) == len(rows)


def test_the_id_list_and_the_detections_are_those_of_2021(box):
    before = make_content(SandboxSpec(world="2021"), ["http://a"])
    assert [truth.sample_id for truth in box.content.listed] == [truth.sample_id for truth in before.truth]
    lists = torch.load(box.folder / "laion-face" / "laion_face_ids.pth", weights_only=True)
    assert {int(one) for one in lists[1]} > {truth.sample_id for truth in before.truth if truth.part == 1}


def test_repeated_keys_are_of_every_kind(box, rows):
    listed = {truth.sample_id: truth for truth in box.content.listed}
    of_key = defaultdict(list)
    for row in rows:
        of_key[row["key"]].append(row)
    seen: Counter[str] = Counter()
    for key, same in of_key.items():
        if key is None or len(same) == 1:
            continue
        truth = listed[key]
        assert len({row["file"] for row in same}) == len(same), "they lie in different files"
        sizes = [(row["original_width"], row["original_height"]) for row in same]
        fit = [all(face.is_in(*size) or face.is_in(*size[::-1]) for face in truth.faces) for size in sizes if all(size)]
        if len({(row["url"], row["caption"]) for row in same}) == 1:
            seen["five times" if len(same) == 5 else "repeated"] += 1
        elif len({row["url"] for row in same}) == 1:
            seen["caption"] += 1
        elif not truth.faces:
            seen["faceless"] += 1
        elif len(fit) == 1:
            seen["unknown, the other fits" if fit == [True] else "unknown, the other does not"] += 1
        else:
            seen["fit" if fit == [True, True] else "misfit"] += 1
    assert seen == {
        **{"five times": 3, "repeated": 3 * 6, "misfit": 3 * 8, "fit": 6, "faceless": 6, "caption": 3},
        **{"unknown, the other fits": 3, "unknown, the other does not": 3},
    }


def all_rows(content):
    return sorted(map(repr, itertools.chain.from_iterable(content.files.values())))


def test_shares_of_nothing_leave_the_rows_of_2021_shuffled():
    spec = SandboxSpec(parts=(0, 1), rows=90, world="today", removed=0.0, metadata_files=3, **NOTHING_ODD)
    before = SandboxSpec(parts=(0, 1), rows=90, world="2021")
    now, then = make_content(spec, ["http://a"]), make_content(before, ["http://a"])
    assert all_rows(now) == all_rows(then)
    assert {truth.sample_id for truth in now.truth} == {truth.sample_id for truth in then.truth}
    assert now.proof == then.proof


@pytest.mark.parametrize("kind", sorted(NOTHING_ODD))
def test_each_kind_can_be_had_alone(kind):
    content = make_content(SandboxSpec(parts=(4,), rows=300, world="today", **{**NOTHING_ODD, kind: 0.1}), ["http://a"])
    proof, extra = content.proof[4], content.rows_read_for([4]) - (300 - 12 - 25)
    # One kind of rival wants a row of unknown size: of those there are few.
    assert extra == {"repeated": 12, "misfits": 9, "rivals": 8}.get(kind, 0)
    assert (proof["merged"] > 0, proof["ambiguous"] > 0, proof["swapped"] > 0) == (
        kind == "repeated",
        kind == "rivals",
        kind == "swapped",
    )


def test_a_seed_gives_the_same_world_and_another_seed_another():
    spec = SandboxSpec(parts=(0,), rows=60, world="today")
    assert make_content(spec, ["http://a"]) == make_content(spec, ["http://a"])
    other = make_content(SandboxSpec(parts=(0,), rows=60, world="today", seed=1), ["http://a"])
    assert other.files != make_content(spec, ["http://a"]).files


@pytest.mark.parametrize("type_name", ["int64", "float64", "string"])
def test_keys_come_in_the_type_that_is_asked_for(type_name):
    content = make_content(SandboxSpec(parts=(0,), rows=30, world="today", sample_ids=type_name), ["http://a"])
    for name in content.files:
        table = metadata_table(content, name)
        assert (table.column_names, table.schema.field("key").type) == (
            list(COLUMNS),
            {"float64": "double"}.get(type_name, type_name),
        )


# --- the truth ---


def test_the_truth_is_in_the_files_in_their_order(box, rows):
    place = {(row["key"], row["url"], row["caption"]): at for at, row in reversed(list(enumerate(rows)))}
    for part in box.content.spec.parts:
        truths = box.truth_of(part)
        places = [place[truth.sample_id, truth.url, truth.caption] for truth in truths]
        assert places == sorted(places)
        assert [truth.row for truth in truths] == list(range(len(truths)))
        assert len({truth.sample_id for truth in truths}) == len(truths)
        for truth, row in zip(truths, (rows[at] for at in places), strict=True):
            assert (truth.similarity, truth.nsfw, truth.license) == (row["similarity"], row["NSFW"], row["LICENSE"])
            assert {truth.width, truth.height} == {row["original_width"], row["original_height"]}


def test_the_proof_says_what_was_put_in(box):
    for part in box.content.spec.parts:
        proof = box.content.proof[part]
        assert (proof["asked"], proof["found"]) == (401, 350)
        assert (proof["merged"], proof["ambiguous"], proof["swapped"]) == (4 + 6, 7, 7)
        assert len(box.truth_of(part)) == proof["found"] - proof["ambiguous"]
        assert proof["faces_that_fit"] / proof["faces_with_sizes"] > 0.99
        sized = [truth for truth in box.truth_of(part) if truth.width is not None and truth.height is not None]
        assert proof["faces_with_sizes"] == sum(len(truth.faces) for truth in sized)


def test_sizes_are_those_of_the_pictures_or_hidden_swaps(box):
    swapped: Counter[str] = Counter()
    for truth in box.truth:
        plain = truth.ok and truth.twist in ("", "redirected", "slow") and None not in (truth.width, truth.height)
        if plain and truth.served_size != (truth.width, truth.height):
            assert truth.served_size == (truth.height, truth.width)
            assert all(face.is_in(truth.width, truth.height) for face in truth.faces)
            swapped[truth.part] += 1
        assert truth.aligned == (truth.ok and truth.twist != "reshaped" and None not in (truth.width, truth.height))
    assert swapped == {0: 4, 1: 4, 2: 4}


def test_every_kept_picture_is_served_and_no_other_row_names_one(box, rows):
    kept = {truth.url for truth in box.truth}
    elsewhere = [row["url"] for row in rows if "/elsewhere/" in row["url"]]
    assert not kept & set(elsewhere)
    assert {fetched(url)[0] for url in elsewhere} == {404}
    for truth in box.without_failures()[:30]:
        assert fetched(truth.url) == (200, truth.served)


@pytest.mark.parametrize("rows", [30, 60, 90, 240])
def test_small_worlds_have_every_kind_and_coverage_enough(rows):
    content = make_content(SandboxSpec(parts=(0, 5), rows=rows, world="today"), ["http://a"])
    for proof in content.proof.values():
        assert proof["found"] > 0.8 * proof["asked"]
        assert min(proof["merged"], proof["ambiguous"], proof["swapped"]) > 0


# --- the rules, by hand ---

CENTRE, CORNER = (50, 50), (150, 50)


def face(x: float, y: float) -> Face:
    return Face((x - 10.0, y - 20.0, x + 10.0, y + 20.0), (), 0.9)


def row(url: str, width: int | None, height: int | None, caption: str | None = None, sample_id: int | None = 1) -> dict:
    return {"sample_id": sample_id, "url": url, "caption": caption, "width": width, "height": height}


@pytest.mark.parametrize(
    ("faces", "given", "kept"),
    [
        pytest.param([CENTRE], [], None, id="not there"),
        pytest.param([CENTRE], [row("a", 100, 100, sample_id=None), row("b", 9, 9, sample_id=2)], None, id="not asked"),
        pytest.param([CENTRE], [row("a", 100, 100)], ("a", 100, 100), id="single"),
        pytest.param([CENTRE], [row("a", 20, 20)], ("a", 20, 20), id="single, does not fit"),
        pytest.param([CENTRE], [row("a", None, 20)], ("a", None, 20), id="single, unknown"),
        pytest.param([], [row("a", 20, 20)], ("a", 20, 20), id="single, no faces"),
        pytest.param([CORNER], [row("a", 100, 200)], ("a", 200, 100), id="swapped"),
        pytest.param([CORNER, (50, 150)], [row("a", 100, 200)], ("a", 100, 200), id="one face either way: as it is"),
        pytest.param([(150, 100)], [row("a", 100, 150)], ("a", 150, 100), id="on the rim is in"),
        pytest.param([CENTRE], [row("a", 100, 100)] * 3, ("a", 100, 100), id="the same, null captions"),
        pytest.param([CENTRE], [row("a", 20, 20), row("a", 100, 100)], ("a", 20, 20), id="the same: first counts"),
        pytest.param([CENTRE], [row("a", 99, 99, ""), row("a", 99, 99)], None, id="no caption is not an empty one"),
        pytest.param([CENTRE], [row("b", 20, 20), row("a", 100, 100)], ("a", 100, 100), id="only one fits"),
        pytest.param([CORNER], [row("b", 100, 100), row("a", 100, 200)], ("a", 200, 100), id="only one, swapped"),
        pytest.param([CENTRE], [row("a", 100, 100), row("b", 90, 90)], None, id="two fit"),
        pytest.param([CENTRE], [row("a", 20, 20), row("b", 30, 30)], None, id="none fits"),
        pytest.param([CENTRE], [row("a", 100, 100), row("b", None, 90)], None, id="fits, unknown"),
        pytest.param([CENTRE], [row("a", 20, 20), row("b", 90, None)], None, id="does not fit, unknown"),
        pytest.param([], [row("a", 100, 100), row("b", 100, 100)], None, id="no faces, two"),
        pytest.param([], [row("a", 100, 100), row("b", None, None)], None, id="no faces, one unknown"),
        pytest.param([CENTRE], [row("b", 20, 20), row("a", 100, 100), row("a", 100, 100)], ("a", 100, 100), id="both"),
    ],
)
def test_the_plain_join_keeps(faces, given, kept):
    found, proof = plain_join(given, {1}, {1: [face(*centre) for centre in faces]})
    assert [(row["url"], row["width"], row["height"]) for row in found] == ([kept] if kept else [])
    mine = [row for row in given if row["sample_id"] == 1]
    assert (proof["asked"], proof["found"]) == (1, int(bool(mine)))
    assert proof["ambiguous"] == int(bool(mine) and kept is None)
    assert proof["merged"] == len(mine) - len({(row["url"], row["caption"]) for row in mine})


def test_the_plain_join_counts_faces_the_way_up_that_takes_more():
    rows = [row("a", 100, 200), row("b", 100, 200, sample_id=2), row("c", None, 5, sample_id=3)]
    faces = {1: [face(150, 50), face(150, 60), face(50, 150)], 2: [face(999, 9), face(9, 9)], 3: [face(1, 1)]}
    _, proof = plain_join(rows, {1, 2, 3}, faces)
    assert (proof["faces_with_sizes"], proof["faces_that_fit"], proof["swapped"]) == (5, 3, 0)


# --- the old name, and the folder over http ---


def old_name(box: Sandbox) -> str:
    return box.metadata_repo.replace("/relaion400m", "/laion400m")


def test_the_true_names_are_those_of_the_hub(box):
    assert box.metadata_repo == "laion/relaion400m"
    api = HfApi(endpoint=box.hub.url())
    assert api.dataset_info("laion/laion400m").id == "laion/relaion400m"
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("laion/laion400")


def test_the_client_reads_the_metadata_under_its_old_name(small, tmp_path):
    name, old = next(iter(small.content.files)), old_name(small)
    good = (small.metadata_folder / name).read_bytes()
    api = HfApi()
    assert api.dataset_info(old).id == small.metadata_repo
    assert {entry.path for entry in api.list_repo_tree(old, repo_type="dataset")} == {"README.md", *small.content.files}
    info: Any
    [info] = api.get_paths_info(old, [name], repo_type="dataset")
    about = get_hf_file_metadata(hf_hub_url(old, name, repo_type="dataset"))
    assert (info.size, about.size, about.etag) == (len(good), len(good), info.lfs.sha256)
    for repo in (old, small.metadata_repo):
        path = hf_hub_download(repo, name, repo_type="dataset", cache_dir=tmp_path / repo)
        assert Path(path).read_bytes() == good
    files = HfFileSystem(skip_instance_cache=True)
    with files.open(f"datasets/{old}/{name}", "rb", cache_type="none") as file:
        file.seek(100)
        assert file.read(50) == good[100:150]


def test_the_old_name_is_as_gated_as_the_new_one(small, tmp_path):
    name = next(iter(small.content.files))
    for repo in (old_name(small), small.metadata_repo):
        for token in (False, STRANGER):
            with pytest.raises(GatedRepoError):
                hf_hub_download(repo, name, repo_type="dataset", cache_dir=tmp_path, token=token)


def test_a_redirect_keeps_method_path_and_query(small):
    class Still(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    opener = urllib.request.build_opener(Still)
    for rest in ("/tree/main?recursive=true&cursor=2", "/resolve/main/a%20b.parquet", ""):
        for method in ("GET", "HEAD"):
            for root in ("/api/datasets/", "/datasets/"):
                url = f"{small.hub.url()}{root}{old_name(small)}{rest}"
                with pytest.raises(urllib.error.HTTPError) as refused:
                    opener.open(urllib.request.Request(url, method=method), timeout=10)
                with refused.value as answer:
                    assert (answer.code, answer.headers["Location"]) == (307, f"{root}{small.metadata_repo}{rest}")


def test_a_repo_of_the_old_name_ends_its_redirect(hub):
    hub.add_repo("someone/new", {"x": b"new"})
    hub.renamed["someone/old"] = "someone/new"
    assert HfApi().dataset_info("someone/old").id == "someone/new"
    hub.add_repo("someone/old", {"x": b"old"})
    assert HfApi().dataset_info("someone/old").id == "someone/old"


@pytest.mark.parametrize("listing", ["nginx", "apache"])
def test_index_pages_link_to_every_file(tmp_path, listing):
    names = [f"part-0000{number}-4227e361-38e7-40d5-8822-c6db46ea077c-c000.snappy.parquet" for number in range(3)]
    names += ["a b&c.txt", "ñ.txt"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "x.txt").write_bytes(b"x")
    with FolderHost(tmp_path, listing) as host:
        status, page = fetched(f"{host.url()}/")
        hrefs = [unescape(href) for href in re.findall('href="([^"]*)"', page.decode())]
        linked = [unquote(href) for href in hrefs if not href.startswith(("?", "/", ".."))]
        assert (status, sorted(linked)) == (200, sorted([*names, "deeper/"]))
        assert names[0] not in re.sub("<[^>]*>", "", page.decode()), "texts are cut, as servers cut them"
        for href, name in zip(hrefs[-len(linked) :], linked, strict=True):
            assert fetched(f"{host.url()}/{href}") == fetched(f"{host.url()}/{href.rstrip('/')}"), name
        assert b'"x.txt"' in fetched(f"{host.url()}/deeper")[1]
        found = fsspec.filesystem("http", skip_instance_cache=True).ls(f"{host.url()}/", detail=False)
        assert {f"{host.url()}/{name}" for name in names[:3]} <= set(found)


def test_a_host_need_not_list(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    with FolderHost(tmp_path, None) as host:
        assert [fetched(f"{host.url()}/{name}")[0] for name in ("", "x", "y")] == [403, 200, 404]


def test_the_metadata_folder_over_http_is_that_of_today(box):
    for name, rows in box.content.files.items():
        with fsspec.open(f"{box.metadata_url}/{name}") as file:
            keys = pq.read_table(file)["key"].to_pylist()
        assert keys == [row["sample_id"] for row in rows]
    assert all(name.encode() in fetched(f"{box.metadata_url}/")[1] for name in box.content.files)
