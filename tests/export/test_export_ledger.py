"""An export that is killed goes on, shards are whole or not there, several jobs and processes make what one makes."""

import json
import os
import shutil
import signal
import subprocess

import jsonschema
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder import cli
from laion_face_builder.cli.schemas import FORECAST, SCHEMAS
from laion_face_builder.errors import PictureError, SourceError
from laion_face_builder.examples.report import Tally
from laion_face_builder.export.pieces import Piece, PieceMaker
from laion_face_builder.export.shard_sinks import line_of, open_sink
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.options.export_options import LAYOUTS, ExportOptions
from laion_face_builder.parallel import python
from tests.support.waiting import wait_until

HOW = {"parts": "0", "shards_per_part": 5, "align": "farl", "size": 64, "draw": "boxes"}


def export(prepared, out, **given):
    return laion_face.export("20M", out, data_dir=prepared.data.root, **{**HOW, "processes": 1, **given})


def tree(out):
    """Give the bytes of every file, but for lock files."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def expected(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    return export(prepared, out), tree(out)


def test_the_same_again_does_nothing(prepared, expected, tmp_path):
    counts, files = expected
    out = tmp_path / "out"
    assert export(prepared, out) == counts
    assert tree(out) == files
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*/*")}
    assert export(prepared, out) == counts
    assert {path: path.stat().st_mtime_ns for path in out.glob("part-*/*")} == before
    assert tree(out) == files


def test_shares_and_processes_make_what_one_makes(prepared, expected, tmp_path):
    counts, files = expected
    for share in ("1/2", "0/2"):
        export(prepared, tmp_path / "shares", shards=share)
    assert tree(tmp_path / "shares") == files
    manifest = json.loads(files["__export__/manifest.json"])
    assert manifest["shards"] == {"whole": 5, "of": 5}
    assert export(prepared, tmp_path / "processes", processes=2) == counts
    assert tree(tmp_path / "processes") == files


def test_parts_may_come_one_after_the_other(prepared, tmp_path):
    both = {**HOW, "shards_per_part": 1, "layout": "files"}
    counts = export(prepared, tmp_path / "both", **{**both, "parts": "0,2"})
    for part in ("2", "0"):
        export(prepared, tmp_path / "out", **{**both, "parts": part})
    assert tree(tmp_path / "out") == tree(tmp_path / "both")
    assert len((tmp_path / "out" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()) == counts.pieces


def test_a_share_says_that_the_rest_is_missing(prepared, tmp_path):
    export(prepared, tmp_path / "out", shards="1/2")
    manifest = json.loads((tmp_path / "out" / "__export__" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["shards"] == {"whole": 2, "of": 5}
    lines = (tmp_path / "out" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == manifest["counts"]["pieces"] > 0


@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
def test_killed_and_started_again_it_is_as_without_the_kill(prepared, tmp_path, layout):
    whole, out = tmp_path / "whole", tmp_path / "out"
    counts = export(prepared, whole, layout=layout)
    code = "import sys, json, laion_face; laion_face.export('20M', sys.argv[1], **json.loads(sys.argv[2]))"
    given = {**HOW, "layout": layout, "processes": 1, "data_dir": str(prepared.data.root)}
    child = subprocess.Popen(
        python("-c", code, str(out), json.dumps(given)), stderr=subprocess.DEVNULL, env=os.environ.copy()
    )
    try:
        # As soon as the second shard is whole: the third is then under way.
        wait_until(lambda: child.poll() is not None or (out / "__export__" / "part-00000-00001.json").exists())
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    for path in out.glob("part-*"):
        wanted = whole / path.name
        if path.is_dir():
            assert {one.name for one in path.iterdir()} == {one.name for one in wanted.iterdir()}
        else:
            assert path.read_bytes() == wanted.read_bytes()
    assert export(prepared, out, layout=layout) == counts
    assert tree(out) == tree(whole)


def test_a_shard_whose_ledger_is_missing_is_made_again(prepared, expected, tmp_path):
    counts, files = expected
    out = tmp_path / "out"
    export(prepared, out)
    (out / "__export__" / "part-00000-00002.json").unlink()
    shard = out / "part-00000-00002"
    next(shard.iterdir()).write_bytes(b"half of it")
    (shard / "foreign").write_bytes(b"")
    shutil.copytree(shard, out / ".part-00000-00002.4711.partial")
    assert export(prepared, out) == counts
    assert tree(out) == files


def test_from_the_web_as_from_the_tars(prepared, expected, tmp_path):
    _, files = expected
    web = {"images": "fetch", "allow_private_hosts": True, "retries": 0}
    export(prepared, tmp_path / "one", **web)
    export(prepared, tmp_path / "two", processes=2, **web)
    pictures = {name: data for name, data in files.items() if name.startswith("part-")}
    for out in ("one", "two"):
        assert {name: data for name, data in tree(tmp_path / out).items() if name.startswith("part-")} == pictures


def test_a_shard_of_a_lost_network_is_not_kept(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(Tally, "lost_network", property(lambda tally: tally.counts.failures > 20))
    with pytest.raises(SourceError, match="the network was lost"):
        export(prepared, tmp_path / "out")
    whole = sorted(path.stem for path in (tmp_path / "out" / "__export__").glob("part-*.json"))
    assert whole == sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    assert len(whole) < 5


def test_one_bad_picture_raises_or_is_counted(prepared, monkeypatch):
    options = Options.of("20M", OptionFields(on_error="raise"), prepared.data.root)
    example = {"sample_id": 1, "image": {"bytes": b"\0" * 50}, "caption": None, "faces": [], "faces_aligned": True}
    maker = PieceMaker(options, ExportOptions())
    with pytest.raises(PictureError):
        list(maker.pieces(example, example))
    lenient = PieceMaker(Options.of("20M", OptionFields(), prepared.data.root), ExportOptions())
    assert list(lenient.pieces(example, example)) == []
    assert lenient.failed.total() == maker.failed.total() == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_others_come_along(prepared, tmp_path, layout):
    options = Options.of("20M", OptionFields(), prepared.data.root)
    how = ExportOptions(layout=layout)
    row = {"sample_id": 7, "image": {"bytes": _jpeg()}, "caption": "A", "faces": [], "faces_aligned": True}
    row |= {"width": 9, "height": 8, "my_score": float("nan"), "my_tags": ["a", "b"], "my_caption": "Ωé"}
    with open_sink(tmp_path, "part-00000-00000", how, options) as sink:
        for piece in PieceMaker(options, how).pieces(row, row):
            said = dict(sink.add(piece))
    assert len(list(tmp_path.iterdir())) == 1
    if layout == "parquet":
        (found,) = pq.read_table(next(tmp_path.iterdir())).to_pylist()
        assert (found["my_tags"], found["my_caption"], found["sample_id"]) == (["a", "b"], "Ωé", 7)
    else:
        found = json.loads(line_of(said))
        assert (found["my_score"], found["my_tags"], found["sample_id"]) == (None, ["a", "b"], 7)


def _jpeg():
    from io import BytesIO

    from PIL import Image

    out = BytesIO()
    Image.new("RGB", (9, 8), "red").save(out, "JPEG")
    return out.getvalue()


def _break_off(_):
    raise RuntimeError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_that_breaks_off_leaves_nothing_and_an_empty_one_no_file(prepared, tmp_path, layout):
    options, how = Options.of("20M", OptionFields(), prepared.data.root), ExportOptions(layout=layout)
    piece = Piece("7", "A", {"sample_id": 7}, _jpeg(), "jpg")
    with pytest.raises(RuntimeError), open_sink(tmp_path, "part-00000-00000", how, options) as sink:
        _break_off(sink.add(piece))
    with open_sink(tmp_path, "part-00000-00000", how, options):
        pass
    assert list(tmp_path.iterdir()) == []


# --- the command ---


def run(capsys, *arguments):
    code = cli.main(["export", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_says_before_what_it_then_does(prepared, tmp_path, capsys):
    given = ["--data-dir", prepared.data.root, "--parts", "0", "--align", "farl", "--size", 64, "--shards-per-part", 5]
    given += ["--processes", 1, "--format", "json", "--draw", "boxes"]
    code, out, err = run(capsys, tmp_path / "out", *given, "--dry-run")
    assert code == 0, err
    forecast = json.loads(out)
    jsonschema.validate(forecast, FORECAST)
    assert not (tmp_path / "out").exists()
    assert [step["deed"] for step in forecast["steps"]] == ["made"]
    code, out, err = run(capsys, tmp_path / "out", *given)
    assert code == 0, err
    counts = json.loads(out)
    jsonschema.validate(counts, SCHEMAS["export"])
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("part-*/*"))
    reckoned = forecast["disks"][0]["write_bytes"]
    assert reckoned["exact"] is False
    assert size / 4 < reckoned["count"] < size * 4
    again = json.loads(run(capsys, tmp_path / "out", *given, "--dry-run")[1])
    assert [step["deed"] for step in again["steps"]] == ["used as it is"]
    code, out, err = run(capsys, tmp_path / "out", *given[:-2], "--dry-run")
    assert code == 1
    assert "holds an export with another export" in err


def test_the_forecast_of_the_web_counts_requests(prepared, tmp_path, capsys):
    given = ["--data-dir", prepared.data.root, "--parts", "0", "--images", "fetch", "--allow-private-hosts"]
    before = len(prepared.sandbox.pictures.log)
    _, out, _ = run(capsys, tmp_path / "out", *given, "--dry-run", "--format", "json")
    assert json.loads(out)["pictures"] == {"count": len(prepared.sandbox.truth_of(0)), "exact": False}
    assert len(prepared.sandbox.pictures.log) == before
