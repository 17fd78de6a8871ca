"""The miniature upstream is what it says it is: the real clients can talk to it, and what is drawn can be found."""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from PIL import Image, ImageOps

from laion_face_builder.errors import OptionError
from laion_face_builder.inspect.contact_sheet import contact_sheet, showable
from laion_face_builder.sandbox import (
    FAILURES,
    RELEASES,
    STRANGER,
    TWISTS,
    Answer,
    PickleStyle,
    Sandbox,
    SandboxSpec,
    find_landmarks,
    make_content,
)
from laion_face_builder.sandbox.cartoons import KINDS
from laion_face_builder.sandbox.demo import run_demo
from laion_face_builder.sandbox.plain_join import plain_join
from laion_face_builder.sandbox.upstream import METADATA_NAME, metadata_table, write_detections, write_ids


@pytest.fixture(scope="module")
def box_of_2021(hub, tmp_path_factory):
    """Serve the files by part, a third of the default size."""
    folder = tmp_path_factory.mktemp("then")
    with Sandbox.running(folder, SandboxSpec(rows=400, world="2021"), hub=hub, namespace="then") as box:
        yield box


@pytest.fixture(params=["today", "2021"])
def world(request, sandbox):
    """Give a sandbox of either release of the metadata."""
    return sandbox if request.param == "today" else request.getfixturevalue("box_of_2021")


@pytest.fixture
def name(world):
    """Return the name of the sandbox's first metadata file."""
    return min(world.content.files)


def fetched(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def loaded(path: Path) -> Any:
    multiarray = importlib.import_module("numpy._core.multiarray")
    reconstruct, scalar = multiarray._reconstruct, multiarray.scalar
    named = [(function, f"numpy.core.multiarray.{function.__name__}") for function in (reconstruct, scalar)]
    types = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)]
    with torch.serialization.safe_globals([*named, reconstruct, scalar, np.ndarray, np.dtype, *types]):
        return torch.load(path, weights_only=True)


# --- the Hub ---


@pytest.mark.parametrize("where", ["cache_dir", "local_dir"])
def test_a_file_comes_down_whole(sandbox, tmp_path, where):
    name = "sample2detect_0.pth"
    path = hf_hub_download(sandbox.repo, name, repo_type="dataset", **{where: tmp_path})
    assert Path(path).read_bytes() == (sandbox.folder / "laion-face" / name).read_bytes()


def test_a_cut_download_goes_on_from_the_last_chunk(sandbox, tmp_path):
    big = np.random.default_rng(0).bytes(12 << 20)
    sandbox.hub.add_repo("someone/big", {"big.bin": big})
    sandbox.hub.plant("/lfs/someone/big", cut_after=11 << 20)
    before = len(sandbox.hub.log)
    path = hf_hub_download("someone/big", "big.bin", repo_type="dataset", cache_dir=tmp_path)
    assert Path(path).read_bytes() == big
    gets = [request for request in sandbox.hub.log[before:] if "/lfs/" in request.path and request.method == "GET"]
    assert [request.headers.get("range") for request in gets] == [None, f"bytes={10 << 20}-"]
    assert [request.sent for request in gets] == [11 << 20, 2 << 20]


def test_a_flipped_bit_is_not_noticed_by_the_client(sandbox, tmp_path):
    sandbox.hub.plant("/lfs/", flip=1000)
    path = hf_hub_download(sandbox.repo, "sample2detect_1.pth", repo_type="dataset", cache_dir=tmp_path)
    good = (sandbox.folder / "laion-face" / "sample2detect_1.pth").read_bytes()
    bad = Path(path).read_bytes()
    assert [at for at, (a, b) in enumerate(zip(good, bad, strict=True)) if a != b] == [1000]


def test_only_the_named_call_fails(sandbox):
    sandbox.hub.plant("README.md", calls=(2,), status=503)
    url = f"{sandbox.hub.url()}/datasets/{sandbox.repo}/resolve/main/README.md"
    assert [fetched(url)[0] for _ in range(3)] == [200, 503, 200]


def test_gated_metadata_needs_the_right_token(world, name, tmp_path):
    for token in (False, STRANGER, "hf_unknown"):
        with pytest.raises(GatedRepoError):
            hf_hub_download(world.metadata_repo, name, repo_type="dataset", cache_dir=tmp_path, token=token)
    path = hf_hub_download(world.metadata_repo, name, repo_type="dataset", cache_dir=tmp_path)
    assert pq.read_table(path).equals(metadata_table(world.content, name))


def test_what_is_missing_is_told_apart(sandbox, tmp_path):
    cases = [
        (RepositoryNotFoundError, "no/where", "x", "main"),
        (RevisionNotFoundError, sandbox.repo, "README.md", "no-branch"),
        (EntryNotFoundError, sandbox.repo, "sample2detect_31.pth", "main"),
    ]
    for error, repo, name, revision in cases:
        with pytest.raises(error):
            hf_hub_download(repo, name, repo_type="dataset", revision=revision, cache_dir=tmp_path)


def test_listings_come_in_pages_and_state_the_checksums(sandbox):
    api = HfApi()
    before = sandbox.hub.count("/tree/")
    tree: dict[str, Any] = {entry.path: entry for entry in api.list_repo_tree(sandbox.repo, repo_type="dataset")}
    assert set(tree) == {"README.md", "laion_face_ids.pth", *(f"sample2detect_{part}.pth" for part in range(3))}
    assert sandbox.hub.count("/tree/") == before + 2
    assert tree["README.md"].lfs is None
    info: Any
    [info] = api.get_paths_info(sandbox.repo, ["sample2detect_2.pth"], repo_type="dataset")
    path = sandbox.folder / "laion-face" / "sample2detect_2.pth"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    siblings = {entry.rfilename: entry for entry in api.dataset_info(sandbox.repo, files_metadata=True).siblings}
    for entry in (info, siblings[path.name]):
        assert (entry.size, entry.lfs.sha256) == (path.stat().st_size, sha256)


def test_folders_are_listed_flat_or_whole(sandbox):
    sandbox.hub.add_repo("someone/deep", {"a/b/c.txt": b"c", "a/d.txt": b"d", "e.txt": b"e"})
    api = HfApi()
    flat = [entry.path for entry in api.list_repo_tree("someone/deep", repo_type="dataset")]
    inner = [entry.path for entry in api.list_repo_tree("someone/deep", "a", repo_type="dataset")]
    whole = [entry.path for entry in api.list_repo_tree("someone/deep", repo_type="dataset", recursive=True)]
    assert (flat, inner) == (["a", "e.txt"], ["a/b", "a/d.txt"])
    assert whole == ["a", "a/b", "a/b/c.txt", "a/d.txt", "e.txt"]


def test_a_revision_stays_what_it_was(sandbox, tmp_path):
    repo = sandbox.hub.add_repo("someone/moving", {"x.txt": b"one"})
    first = HfApi().dataset_info("someone/moving").sha
    second = repo.commit({"x.txt": b"two"})
    texts = [
        Path(
            hf_hub_download("someone/moving", "x.txt", repo_type="dataset", revision=name, cache_dir=tmp_path)
        ).read_text()
        for name in (first, second, "main")
    ]
    assert texts == ["one", "two", "two"]


def test_the_hub_file_system_reads_ranges(world, name):
    address = f"datasets/{world.metadata_repo}/{name}"
    files = HfFileSystem(skip_instance_cache=True)
    good = (world.metadata_folder / name).read_bytes()
    assert files.info(address)["size"] == len(good)
    with files.open(address, "rb", cache_type="none") as file:
        file.seek(5000)
        assert file.read(1000) == good[5000:6000]


# --- the metadata over http, and the pickles ---


def test_the_metadata_can_be_read_over_http(world, name):
    url = f"{world.metadata_url}/{name}"
    with fsspec.open(url) as file:
        assert pq.read_table(file).equals(metadata_table(world.content, name))
    status, headers, _ = fetched(url, Range="bytes=10-19")
    assert (status, headers["Content-Range"].partition("/")[0]) == (206, "bytes 10-19")
    assert fetched(url, Range="bytes=10-19", **{"If-Range": '"another"'})[0] == 200
    assert fetched(f"{world.metadata_url}/../laion-face/laion_face_ids.pth")[0] == 404


def rows_of(box, names):
    """Return what the named metadata files say, under the index's names."""
    columns = RELEASES[box.content.spec.world].columns
    tables = (pq.read_table(box.metadata_folder / name) for name in names)
    return [{columns[name]: value for name, value in row.items()} for table in tables for row in table.to_pylist()]


def test_the_metadata_has_the_rows_that_are_said(world):
    assert sorted(path.name for path in world.metadata_folder.iterdir()) == sorted(world.content.files)
    for name, rows in world.content.files.items():
        assert rows_of(world, [name]) == rows
        assert any(row["sample_id"] is None for row in rows)


def test_metadata_and_ids_agree_with_the_truth(world):
    lists = loaded(world.folder / "laion-face" / "laion_face_ids.pth")
    assert len(lists) == 32
    faces = {truth.sample_id: truth.faces for truth in world.content.listed}
    spec = world.content.spec
    for part in spec.parts:
        by_part = spec.world == "2021"
        rows = rows_of(world, [METADATA_NAME.format(part)] if by_part else sorted(world.content.files))
        truths = world.truth_of(part)
        kept, proof = plain_join(rows, set(lists[part]), faces)
        assert kept == [{field: getattr(truth, field) for field in rows[0]} for truth in truths]
        assert proof == world.content.proof[part]
        assert [truth.row for truth in truths] == list(range(len(truths)))
        listed = round(spec.rows * spec.face_share)
        assert proof["asked"] == listed + 1
        if by_part:  # Nothing is odd: whatever is on the list, in the file's order.
            chosen = [row for row in rows if row["sample_id"] in set(lists[part])]
            assert [(row["sample_id"], row["url"], row["caption"]) for row in chosen] == [
                (truth.sample_id, truth.url, truth.caption) for truth in truths
            ]
            assert len(truths) == listed
        else:
            assert len(truths) == proof["found"] - proof["ambiguous"] < proof["found"] == listed * 7 // 8


def test_detections_agree_with_the_truth(sandbox):
    found = loaded(sandbox.folder / "laion-face" / "sample2detect_0.pth")
    for truth in sandbox.truth_of(0):
        faces = found.get(truth.sample_id, [])
        assert [score for _, _, score in faces] == sorted((face.score for face in truth.faces), reverse=True)
        for (box, landmarks, score), face in zip(faces, truth.faces, strict=True):
            assert (box.dtype, landmarks.dtype, type(score)) == (np.float32, np.float32, np.float32)
            assert (tuple(box), landmarks.tolist()) == (face.box, [list(point) for point in face.landmarks])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("old_numpy", [False, True])
def test_pickles_of_every_style_hold_the_same(upstream_files, tmp_path, legacy, old_numpy):
    faces = {truth.sample_id: truth.faces for truth in upstream_files.truth_of(0)}
    outers: list[Any] = ["list", "tuple", "dict"]
    inners: list[Any] = ["list", "array", "tensor"]
    kinds: list[Any] = ["float", "int"]
    for outer, inner, numbers in itertools.product(outers, inners, kinds):
        style = PickleStyle(outer, inner, numbers, legacy=legacy, old_numpy=old_numpy)
        write_ids(tmp_path / "ids.pth", [faces] * 32, style)
        assert [int(one) for one in loaded(tmp_path / "ids.pth")[31]] == list(faces), style
    for shape in ("arrays", "lists", "tensors", "dicts"):
        write_detections(tmp_path / "f.pth", faces, PickleStyle(face=shape, legacy=legacy, old_numpy=old_numpy))
        back = loaded(tmp_path / "f.pth")
        read = [list(face.values()) if isinstance(face, dict) else face for each in back.values() for face in each]
        true = [face for each in faces.values() for face in each]
        assert [[float(edge) for edge in box] for box, _, _ in read] == [list(face.box) for face in true]


# --- the pictures ---


def test_drawn_landmarks_are_found_again(sandbox):
    looked_at: Counter[str] = Counter()
    for truth in sandbox.truth_of(0):
        if not truth.ok or truth.twist in ("rescaled", "reshaped"):
            continue
        with Image.open(io.BytesIO(truth.served)) as picture:
            picture.load()
            assert picture.size == truth.served_size
            for face in truth.faces:
                true = np.asarray(face.landmarks)
                inside = ((true > 9) & (true < np.asarray(picture.size) - 9)).all(axis=1)
                np.testing.assert_allclose(find_landmarks(picture, face.box)[inside], true[inside], atol=1.5)
                looked_at[truth.kind] += inside.sum()
    assert set(looked_at) == set(KINDS)


def test_orientation_turns_the_picture_away_from_its_boxes(sandbox):
    turned = [truth for truth in sandbox.truth if truth.ok and truth.orientation > 1 and len(truth.faces) == 1]
    assert {truth.orientation for truth in turned} == set(range(2, 9))
    for truth in turned:
        with Image.open(io.BytesIO(truth.served)) as picture:
            assert picture.getexif()[0x0112] == truth.orientation
            found = find_landmarks(ImageOps.exif_transpose(picture), truth.faces[0].box)
        assert not np.allclose(found, truth.faces[0].landmarks, atol=2), truth.url


def test_some_boxes_stick_out_and_every_count_of_faces_is_there(sandbox):
    assert {len(truth.faces) for truth in sandbox.truth} == set(range(7))
    ok = [truth for truth in sandbox.truth if truth.ok and truth.twist == ""]
    assert any(face.box[0] < 0 for truth in ok for face in truth.faces)
    assert any(face.box[2] > truth.served_size[0] for truth in ok for face in truth.faces)


def test_the_hosts_answer_as_the_truth_says(sandbox):
    seen = set()
    for truth in sandbox.truth_of(1):
        if not truth.url.startswith("http") or (truth.fate, truth.twist) in seen:
            continue
        seen.add((truth.fate, truth.twist))
        if truth.fate == "cut":
            with pytest.raises(Exception, match="IncompleteRead"):
                fetched(truth.url)
        elif truth.fate == "other_scheme":
            assert sandbox.pictures.answers[truth.path].headers["Location"].startswith("ftp://")
        else:
            status, headers, body = fetched(truth.url)
            assert body == truth.served
            assert status == (int(truth.fate[5:]) if truth.fate.startswith("http_") else 200)
            assert ("X-Robots-Tag" in headers) == (truth.fate == "opted_out")
    assert {fate for fate, _ in seen} == {"ok", *FAILURES} - {"ftp_url", "file_url"}
    assert {twist for _, twist in seen} == {"", *TWISTS}


@pytest.mark.parametrize("world", ["today", "2021"])
def test_shares_are_as_asked_for(world):
    spec = SandboxSpec(parts=(5,), rows=100, face_share=0.5, failing=0.4, twisted=0, world=world)
    content = make_content(spec, ["http://a"])
    assert sum(not truth.ok for truth in content.listed) == 20
    assert len(content.listed) == 50
    assert not any(truth.twist for truth in content.listed)
    proof = content.proof[5]
    assert len(content.truth) == proof["found"] - proof["ambiguous"]
    if world == "2021":
        assert content.truth == content.listed
    else:
        assert (proof["found"], proof["ambiguous"]) == (44, 1)


def test_a_seed_gives_the_same_content_and_another_seed_another():
    spec = SandboxSpec(parts=(0,), rows=60)
    first, again = make_content(spec, ["http://a"]), make_content(spec, ["http://a"])
    assert first == again
    assert first.truth != make_content(SandboxSpec(parts=(0,), rows=60, seed=1), ["http://a"]).truth


def test_answers_can_be_changed_while_it_runs(make_sandbox):
    box = make_sandbox(SandboxSpec(parts=(0,), rows=30))
    truth = box.without_failures()[0]
    box.pictures.answers[truth.path] = Answer(418, b"teapot", {"X-Made-Up": "yes"})
    assert fetched(truth.url)[::2] == (418, b"teapot")
    assert box.pictures.count(truth.path) == 1
    assert box.repo != "FacePerceiver/laion-face"


def test_a_host_can_drip_and_never_end(make_sandbox):
    box = make_sandbox(SandboxSpec(parts=(0,), rows=30))
    box.pictures.answers["/drip"] = Answer(body=b"x" * 60, drip=400)
    box.pictures.answers["/endless"] = Answer(body=b"y" * 1000, endless=True)
    assert fetched(f"{box.pictures.url()}/drip")[2] == b"x" * 60
    with urllib.request.urlopen(f"{box.pictures.url()}/endless", timeout=10) as response:
        assert response.read(100_000) == b"y" * 100_000


# --- the contact sheet and the demo's folder ---


def card(image: Image.Image | None, box=(10.0, 10.0, 60.0, 70.0), caption: str | None = "A face") -> dict:
    face = {"box": list(box), "landmarks": [[20.0, 20.0]] * 5, "score": 0.9}
    return {"image": image, "faces": [face], "caption": caption, "width": 90, "height": 80, "faces_aligned": True}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I", "F", "I;16", "YCbCr"])
def test_a_picture_of_any_mode_stands_on_the_sheet(mode):
    whites: dict[str, Any] = {"I;16": 65535, "I": 65535, "F": 1.0, "CMYK": 0, "YCbCr": (255, 128, 128)}
    white = Image.new(mode, (90, 80), whites.get(mode, "white"))
    sheet = contact_sheet([card(white)], columns=1)
    pixels = np.asarray(sheet).reshape(-1, 3)
    assert (pixels == (0, 158, 96)).all(axis=1).sum() > 200, "the box is drawn in green"
    assert (pixels == (255, 255, 255)).all(axis=1).sum() > 20_000, "the picture is as white as it was"


def test_a_sheet_takes_what_a_dataset_can_hold():
    wide = Image.new("RGB", (4000, 10))
    sheet = contact_sheet(
        [card(None), card(wide, (-50.0, -50.0, 5000.0, 90.0)), card(wide, caption=None)] * 3, columns=4
    )
    assert sheet.width > 4 * 200
    assert contact_sheet([]).height > 0


def test_captions_say_what_cannot_be_shown():
    assert showable("Two\nlines\tof text") == "Two lines of text"
    assert showable("ñandú") in ("ñandú", "nandu")
    assert showable("微笑的 人像 7") in ("微笑的 人像 7", "<cjk> 7")


def test_the_demo_removes_nothing_but_an_earlier_demo(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match="not from an earlier demo"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
