"""What a publish writes: the viewer's rules hold on the files, and whatever interrupts it, the same bytes come out."""

import dataclasses
import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from laion_face_builder import cli
from laion_face_builder.errors import BadFile, LaionFaceError, NotPrepared, OptionError, StateConflict
from laion_face_builder.files import human_size, sha256_of
from laion_face_builder.images import pictures
from laion_face_builder.index.prepare import prepare
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.publish.card import split_card
from laion_face_builder.publish.manifest import Manifest
from laion_face_builder.publish.publish import publish, texts_about
from laion_face_builder.publish.publish_forecast import forecast_publish
from laion_face_builder.publish.published_files import EXAMPLES, Bounds, PartExamples, measured
from laion_face_builder.publish.published_form import index_writer, writer_of
from laion_face_builder.publish.request import PublishRequest, options_of
from laion_face_builder.sandbox import SandboxSpec
from laion_face_builder.schema import INDEX
from laion_face_builder.sources.sources import Upstream
from tests.support.waiting import kill_when

SMALL = Bounds(row_group_bytes=300_000, row_group_rows=40, file_bytes=900_000)


def tree(folder):
    """Return {name: bytes} of every file that readers see."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def parquet_files(folder):
    return sorted(Path(folder).rglob("*.parquet"))


def head_of(folder):
    return split_card((folder / "README.md").read_text(encoding="utf-8"), "README.md")[0]


@pytest.fixture
def data(prepared, tmp_path):
    """Copy the prepared DATA_DIR for this test alone."""
    shutil.copytree(prepared.data.root, tmp_path / "data", ignore=shutil.ignore_patterns("sources", "publish"))
    return DataDir.at(tmp_path / "data")


@pytest.fixture(params=["published", "published_pictures"])
def either(request):
    return request.getfixturevalue(request.param)


# The viewer's rules, on the files that were written.


def test_every_page_can_be_found(either):
    for path in parquet_files(either.folder):
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            columns = [row_group.column(number) for number in range(row_group.num_columns)]
            assert [column.path_in_schema for column in columns if not column.has_offset_index] == []
            assert row_group.total_byte_size < 300_000_000
        assert path.stat().st_size < 200_000_000_000


def test_columns_are_the_schema_and_the_card_knows_them_all(either):
    head = head_of(either.folder)
    infos = {info["config_name"]: info for info in head["dataset_info"]}
    for config in head["configs"]:
        (files,) = config["data_files"]
        assert files["split"] == "train"
        info = infos.pop(config["config_name"])
        rows = 0
        names = sorted(path.relative_to(either.folder).as_posix() for path in either.folder.glob(files["path"]))
        assert names
        for name in names:
            file = pq.ParquetFile(either.folder / name)
            kind = EXAMPLES if name.startswith("preview") or "pictures" in either.folder.name else INDEX
            assert file.schema_arrow.remove_metadata().equals(kind)
            assert file.schema_arrow.names == [feature["name"] for feature in info["features"]]
            rows += file.metadata.num_rows
        assert rows
        assert info["download_size"] == sum((either.folder / name).stat().st_size for name in names)
        assert info["dataset_size"] == sum(pq.read_table(either.folder / name).nbytes for name in names)
    assert infos == {}


def test_no_fixed_size_list_is_null(either):
    for path in parquet_files(either.folder):
        faces = pq.read_table(path, columns=["faces"])["faces"].combine_chunks()
        assert faces.null_count == 0
        flat = faces.flatten()
        points = flat.field("landmarks")
        assert (flat.null_count, flat.field("box").null_count, points.null_count, points.flatten().null_count) == (
            0,
        ) * 4


def test_pictures_are_null_or_decode_unturned(published_pictures, prepared):
    count: Counter[bool] = Counter()
    for path in parquet_files(published_pictures.folder):
        for row in pq.read_table(path, columns=["image", "width", "height"]).to_pylist():
            count[row["image"] is not None] += 1
            if row["image"] is not None:
                assert row["image"]["path"] is None
                found = pictures.inspect(row["image"]["bytes"])
                assert (found.width, found.height, found.orientation) == (row["width"], row["height"], 1)
    assert count == Counter(truth.ok for truth in prepared.truth)
    assert min(count.values()) > 100


def test_a_row_of_the_index_is_short(published):
    for path in parquet_files(published.folder / "data"):
        rows = pq.read_table(path).to_pylist()
        assert np.median([len(json.dumps(row)) for row in rows]) < 2000


def test_rows_are_not_sorted_by_anything_that_matters(either):
    for path in parquet_files(either.folder / "data"):
        table = pq.read_table(path)
        for name in ("url", "caption", "nsfw", "similarity", "n_faces", "max_face_score", "max_face_size"):
            values = [value for value in table[name].to_pylist() if value is not None]
            assert values not in (sorted(values), sorted(values, reverse=True))


def test_no_script_and_nothing_else_stands_in_the_way(either):
    names = {Path(name).name for name in tree(either.folder)}
    assert {name for name in names if not name.endswith(".parquet")} == {
        "LICENSE.md",
        "README.md",
        "croissant.json",
        "laion_face_manifest.json",
    }


@pytest.fixture
def rules(monkeypatch):
    """Give the module that tells what the Hub's viewer makes of a file; it lies with the benchmarks."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("viewer_rules")


def test_the_viewer_takes_every_file_for_optimized(either, rules, tmp_path):
    assert all(rules.is_optimized(path) for path in parquet_files(either.folder))
    # Of small files the pages do not tell, as of larger ones that pyarrow writes: the key does.
    pq.write_table(pq.read_table(parquet_files(either.folder)[0]).replace_schema_metadata(), tmp_path / "x.parquet")
    assert not rules.is_optimized(tmp_path / "x.parquet")


def table_of_index(rows):
    """Return rows of an index as long as real ones, without any order."""
    rng = np.random.default_rng(0)
    faces = [
        {"box": rng.random(4, np.float32), "landmarks": list(rng.random((5, 2), np.float32)), "score": 0.9}
        for _ in range(500)
    ]
    columns = {name: pa.array(rng.integers(0, 30_000, rows), INDEX.field(name).type) for name in INDEX.names[:1]}
    texts = [rng.bytes(60).hex() for _ in range(rows)]
    for field in INDEX:
        if field.name == "faces":
            columns[field.name] = pa.array([[faces[i]] * 2 for i in rng.integers(0, 500, rows)], field.type)
        elif field.type == pa.string():
            columns[field.name] = pa.array(texts)
        else:
            columns[field.name] = pa.array(rng.integers(0, 30_000, rows)).cast(field.type)
    return pa.table(columns, schema=INDEX)


def table_of_pictures(rows, size):
    """Return rows of examples, the sizes of their pictures spread as on the web around `size` bytes."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.lognormal(np.log(size), 0.5, rows), 900_000).astype(int)
    columns = {field.name: pa.nulls(rows, field.type) for field in EXAMPLES}
    columns["image"] = pa.array([{"bytes": rng.bytes(n), "path": None} for n in sizes.tolist()], EXAMPLES.field(1).type)
    return pa.table(columns, schema=EXAMPLES)


@pytest.mark.parametrize("kind", ["index", "pictures"])
def test_a_page_of_a_hundred_rows_scans_little(tmp_path, rules, kind):
    path = tmp_path / "x.parquet"
    if kind == "index":
        table, size, most, opened = table_of_index(24_000), 24_000, 3_000_000, index_writer
    else:
        # Three quarters of a real part's rows have a picture of 60 kB.
        table, size, most, opened = table_of_pictures(400, 45_000), 200, 9_000_000, writer_of
    with opened(path, table.schema) as writer:
        for start in range(0, table.num_rows, size):
            writer.write_table(table.slice(start, size), row_group_size=size)
    groups = rules.viewed(path)
    scanned = [group.scanned(start) for group in groups for start in range(0, group.rows, 50)]
    assert max(scanned) < most
    assert sum(scanned) / len(scanned) > 100_000


@pytest.mark.parametrize("kind", ["index", "pictures"])
def test_chunks_follow_their_content(tmp_path, rules, kind):
    # A row less at the start, and nearly all pages are the same bytes: those that are not sent to the Hub again.
    if kind == "index":
        table, opened = table_of_index(24_000).select(["url"]), index_writer
    else:
        table, opened = table_of_pictures(400, 45_000).select(["image"]), writer_of
    pages = []
    for first in (0, 1):
        path = tmp_path / f"{first}.parquet"
        with opened(path, table.schema) as writer:
            writer.write_table(table.slice(first), row_group_size=table.num_rows)
        content = path.read_bytes()
        (group,) = rules.viewed(path)
        pages.append({content[p.start : p.start + p.size] for column in group.columns for p in column.pages})
    assert len(pages[0] & pages[1]) > 0.7 * len(pages[0])


# What is published.


def test_the_rows_are_those_of_the_index_in_few_groups(published):
    for part in (0, 2):
        path = published.folder / f"data/part-{part:05d}.parquet"
        table = pq.read_table(published.data.index(part))
        assert pq.read_table(path).equals(table)
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        assert sizes == [stop - start for start, stop in row_group_bounds(table.num_rows, 32)]
        with IndexPart.open(path) as theirs, IndexPart.open(published.data.index(part)) as ours:
            assert theirs.fingerprint == ours.fingerprint


def test_files_of_a_part_follow_one_another(published_pictures, data, tmp_path):
    publish(PublishRequest(data, str(tmp_path / "whole"), with_images=True))
    assert len(parquet_files(tmp_path / "whole")) == 2
    for part in (0, 2):
        files = sorted((published_pictures.folder / "data").glob(f"part-{part:05d}-*.parquet"))
        assert len(files) > 2
        pieces = pa.concat_tables([pq.read_table(file) for file in files])
        whole = pq.read_table(tmp_path / "whole" / "data" / f"part-{part:05d}-00000.parquet")
        assert pieces.equals(whole)
        for file in files:
            metadata = pq.read_metadata(file)
            sizes = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            assert max(group.num_rows for group in sizes) <= SMALL.row_group_rows
            assert file.stat().st_size < SMALL.file_bytes + 2 * SMALL.row_group_bytes


def test_a_file_is_the_same_whatever_was_written_before_it(published_pictures, prepared, tmp_path):
    # A publish that was killed relies on this: it goes on behind its last whole file.
    data = published_pictures.data
    manifest = Manifest.from_text((published_pictures.folder / "laion_face_manifest.json").read_bytes(), "")
    options = options_of(PublishRequest(data, "", with_images=True))
    for name, entry in manifest.entries.items():
        rows = len(prepared.sandbox.truth_of(entry.part))
        writer = PartExamples(options, entry.part, entry.first, rows, SMALL)
        assert writer.write(tmp_path / "again.parquet", entry.fingerprint) == entry.stop
        assert sha256_of(tmp_path / "again.parquet") == entry.sha256, name
        assert writer.done == (entry.stop == rows)


def test_a_disk_without_room_is_said_before_anything_is_made(data, prepared, tmp_path, monkeypatch):
    needed = human_size(sum(len(truth.served) for truth in prepared.truth if truth.ok))
    assert needed.endswith(" MB")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(LaionFaceError, match=rf"{re.escape(needed)} are needed .* 1\.0 MB are free"):
        publish(PublishRequest(data, str(tmp_path / "out"), with_images=True))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(LaionFaceError, match=r"B are needed .* 100\.0 kB are free"):
        publish(PublishRequest(data, str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    assert not (data.root / "publish").exists()


def test_a_rotted_copy_is_made_good(data, tmp_path):
    publish(PublishRequest(data, str(tmp_path / "out")))
    whole = tree(tmp_path / "out")
    file = tmp_path / "out" / "data" / "part-00002.parquet"
    file.write_bytes(bytes(file.stat().st_size))
    publish(PublishRequest(data, str(tmp_path / "out")))
    assert tree(tmp_path / "out") == whole


def test_one_part_after_the_other_is_as_all_at_once(published, data, tmp_path):
    for part in ("2", "0"):
        publish(PublishRequest(data, str(tmp_path / "out"), parts=part, preview=5 if part == "0" else 0))
    both = tree(tmp_path / "out")
    publish(PublishRequest(data, str(tmp_path / "at-once"), preview=5))
    assert tree(tmp_path / "at-once") == tree(published.folder)
    # The preview was made when part 0 alone was asked for.
    assert {name: both[name] for name in both if name.startswith("data/")} == {
        name: content for name, content in tree(published.folder).items() if name.startswith("data/")
    }
    assert Manifest.from_text(both["laion_face_manifest.json"], "").parts == (0, 2)


def test_only_configs_with_parts_are_there(make_sandbox, tmp_path):
    box = make_sandbox(SandboxSpec(parts=(1,), rows=90))
    data = DataDir.at(tmp_path / "data")
    prepare(data, [1], Upstream(box.repo, None, str(box.metadata_folder)))
    publish(PublishRequest(data, str(tmp_path / "out")))
    head = head_of(tmp_path / "out")
    assert [config["config_name"] for config in head["configs"]] == ["50M"]
    assert head["configs"][0]["default"] is True
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "0 of the 13 parts of 20M and 1 of the 32 parts of 50M" in text
    assert "Missing are the parts 0, 2-31." in text


def test_nothing_is_made_or_sent_twice(data, tmp_path, capsys):
    command = ["publish", "--data-dir", str(data.root), str(tmp_path / "out"), "--with-images", "--preview", "3"]
    assert cli.main(command) == 0
    first = tree(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in parquet_files(tmp_path / "out")}
    (data.tars(0)).rename(tmp_path / "gone")  # whoever reads a picture of part 0 now finds none
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "0 B were sent" in capsys.readouterr().err
    assert tree(tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in parquet_files(tmp_path / "out")} == times
    assert list((data.root / "publish").glob("*/*")) == []


def test_excluded_rows_are_not_published(data, prepared, tmp_path, caplog):
    truth = prepared.truth
    hosts = {truth[3].sample_id, truth[450].sample_id}
    served = next(one for one in truth if one.ok and one.sample_id not in hosts)
    (tmp_path / "list.txt").write_text(
        f"{truth[3].sample_id}\n{truth[450].url}\n{hashlib.sha256(served.served).hexdigest()}\n"
    )
    exclude = str(tmp_path / "list.txt")
    publish(PublishRequest(data, str(tmp_path / "out"), exclude=exclude))
    assert "hashes leave out nothing of an index" in caplog.text
    rows = [row for path in parquet_files(tmp_path / "out") for row in pq.read_table(path).to_pylist()]
    urls = {truth[450].url}
    assert [row["sample_id"] for row in rows] == [
        one.sample_id for one in truth if one.sample_id != truth[3].sample_id and one.url not in urls
    ]
    for path in parquet_files(tmp_path / "out"):
        assert pq.read_metadata(path).num_row_groups == 32
    assert "Rows on the publisher's exclusion list are left out." in (tmp_path / "out" / "README.md").read_text()
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    publish(PublishRequest(data, str(tmp_path / "pictures"), exclude=exclude, with_images=True))
    pictured = [row for path in parquet_files(tmp_path / "pictures") for row in pq.read_table(path).to_pylist()]
    assert [row["sample_id"] for row in pictured] == [row["sample_id"] for row in rows]
    by_hash = next(row for row in pictured if row["sample_id"] == served.sample_id)
    assert by_hash["image"] is None


@pytest.mark.parametrize("more", [[], ["--with-images", "--preview", "3"]])
def test_only_rows_on_a_list_are_published(prepared, tmp_path, more):
    chosen = [one for one in prepared.truth if one.faces][2:200:9]
    named = [str(one.sample_id) if place % 2 else one.url for place, one in enumerate(chosen)]
    wanted = [one.sample_id for one in prepared.truth if {str(one.sample_id), one.url} & set(named)]
    (tmp_path / "list.txt").write_text("\n".join(named))
    words = ["publish", str(tmp_path / "out"), "--data-dir", str(prepared.data.root)]
    assert cli.main([*words, "--include", str(tmp_path / "list.txt"), *more]) == 0
    found = {
        path: pq.read_table(path, columns=["sample_id"])["sample_id"].to_pylist()
        for path in parquet_files(tmp_path / "out")
    }
    assert [row for path, rows in found.items() if "preview" not in path.name for row in rows] == wanted
    assert {row for rows in found.values() for row in rows} == set(wanted)
    assert "Only rows on the publisher's list are in it." in (tmp_path / "out" / "README.md").read_text()
    assert cli.main(["verify", str(tmp_path / "out")]) == 0


def test_an_index_without_page_index_is_written_anew(data, tmp_path):
    # Versions before this one, or other writers, may have left such an index.
    table = pq.read_table(data.index(0))
    pq.write_table(table, data.index(0), compression="snappy")
    publish(PublishRequest(data, str(tmp_path / "out"), parts="0"))
    (file,) = parquet_files(tmp_path / "out")
    assert pq.read_table(file).equals(table)
    assert pq.read_metadata(file).num_row_groups == 32
    assert pq.read_metadata(file).row_group(5).column(3).has_offset_index


def test_rows_without_a_picture_can_be_left_out(data, published_pictures, tmp_path):
    good = [row for row in pq.read_table(data.sidecar(0)).to_pylist() if row["status"] == "ok"]
    rotted = good[3]
    with (data.tars(0) / rotted["tar"]).open("r+b") as tar:  # it was whole when it was downloaded
        tar.seek(rotted["offset"])
        tar.write(bytes(rotted["length"]))
    command = ["publish", "--data-dir", str(data.root), str(tmp_path / "out"), "--with-images", "--pictures-only"]
    assert cli.main(command) == 0
    with_nulls = pa.concat_tables([pq.read_table(file) for file in parquet_files(published_pictures.folder)])
    expected = with_nulls.filter(
        pc.and_(with_nulls["image"].is_valid(), pc.not_equal(with_nulls["sample_id"], rotted["sample_id"]))
    )
    assert pa.concat_tables([pq.read_table(file) for file in parquet_files(tmp_path / "out")]).equals(expected)
    manifest = Manifest.from_text((tmp_path / "out" / "laion_face_manifest.json").read_bytes(), "")
    assert sum(entry.rows for entry in manifest.entries.values()) == expected.num_rows < with_nulls.num_rows
    ds = datasets.load_dataset(str(tmp_path / "out"), "20M", split="train", streaming=True)
    assert sum(row["image"] is not None for row in ds) == expected.num_rows
    assert cli.main(["verify", str(tmp_path / "out"), "--deep"]) == 0
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Rows whose picture could not be had are left out." in text
    assert f"{expected.num_rows:,} rows, {expected.num_rows:,} of them with their picture" in text
    assert "`image` is null in rows" in (published_pictures.folder / "README.md").read_text(encoding="utf-8")


def as_earlier_version(data, folder):
    """Put part 0 into a published folder as the version before this one did: the very bytes of the prepared file."""
    manifest = Manifest.from_text((folder / "laion_face_manifest.json").read_bytes(), "")
    name = "data/part-00000.parquet"
    shutil.copy(data.index(0), folder / name)
    entry = measured(data.index(0), name, 0, (0, manifest.entries[name].stop))
    older = Manifest("index", {**manifest.entries, name: entry})
    for text, content in texts_about(PublishRequest(data, str(folder)), older).items():
        (folder / text).write_text(content, encoding="utf-8")


def test_what_an_earlier_version_published_is_sent_anew_once(data, tmp_path, capsys):
    out, request = tmp_path / "out", ["publish", "--data-dir", str(data.root), str(tmp_path / "out")]
    assert cli.main(request) == 0
    whole = tree(out)
    rows = {name: content for name, content in whole.items() if name.endswith(".parquet")}
    as_earlier_version(data, out)
    assert tree(out) != whole
    capsys.readouterr()
    assert cli.main(["verify", str(out)]) == 0
    assert "costs readers from afar more: data/part-00000.parquet. Publish again" in capsys.readouterr().err
    said = {step.what: step for step in forecast_publish(PublishRequest(data, str(out))).steps}
    deeds = [said[f"data/part-{part:05d}.parquet"].deed for part in (0, 2)]
    assert deeds == ["sent", "used as it is"]
    assert cli.main(request) == 0
    assert {name: content for name, content in tree(out).items() if name in rows} == rows
    changes = json.loads((out / "laion_face_manifest.json").read_text())["history"]
    assert [change["changed"] for change in changes] == [[0]]
    capsys.readouterr()
    assert cli.main(request) == 0
    assert "0 B were sent" in capsys.readouterr().err


@pytest.mark.parametrize("turned", [False, True])
def test_a_picture_that_rotted_is_left_out(data, prepared, tmp_path, caplog, turned):
    caplog.set_level("INFO", "laion_face")
    good = [truth for truth in prepared.sandbox.truth_of(0) if truth.ok]
    rotted = next(truth for truth in good if (truth.orientation != 1) == turned)
    row = pq.read_table(data.sidecar(0)).to_pylist()[rotted.row]
    assert (row["sample_id"], row["status"]) == (rotted.sample_id, "ok")
    with (data.tars(0) / row["tar"]).open("r+b") as tar:
        tar.seek(row["offset"])
        tar.write(bytes(row["length"]))
    publish(PublishRequest(data, str(tmp_path / "out"), parts="0", with_images=True))
    (file,) = parquet_files(tmp_path / "out")
    found = {one["sample_id"]: one for one in pq.read_table(file).to_pylist()}[row["sample_id"]]
    assert (found["image"], found["width"], found["faces_aligned"]) == (None, None, False)
    assert f"{len(good) - 1} yielded" in caplog.text
    assert "tar_changed 1" in caplog.text


# What is refused.


def test_pictures_do_not_become_public_by_accident(data, capsys):
    for extra in (["--with-images"], ["--preview", "3"]):
        assert cli.main(["publish", "--data-dir", str(data.root), "somebody/faces", *extra]) == 1
        said = capsys.readouterr().err
        assert "belong to their owners" in said
        assert "--private" in said


def test_the_two_kinds_are_not_mixed(data, published, tmp_path):
    shutil.copytree(published.folder, tmp_path / "out")
    with pytest.raises(StateConflict, match="holds the index without pictures"):
        publish(PublishRequest(data, str(tmp_path / "out"), with_images=True))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"parts": "0,5"}, NotPrepared, "no index of parts 5"),
        ({"parts": "99"}, OptionError, "parts='99'"),
        ({"preview": 5000}, OptionError, "expected a whole number, 0 to 1,000"),
        ({"exclude": "nowhere.txt"}, OptionError, "no such file"),
        ({"include": "nowhere.txt"}, OptionError, "no such file"),
        ({"include": ["ab" * 32], "with_images": True}, OptionError, "hashes name pictures, and it is rows"),
        ({"pictures_only": True}, OptionError, "only goes with --with-images"),
        ({"gated": "auto"}, OptionError, "--gated goes only with a Hub id"),
        ({"gated": "yes"}, OptionError, "expected one of auto, manual, off"),
        ({"contact": "me"}, OptionError, "expected an e-mail address"),
        ({"contact": "me@example.org>\n# Title"}, OptionError, "expected an e-mail address"),
        ({"contact": "javascript:alert(1)"}, OptionError, "expected an e-mail address"),
    ],
)
def test_what_is_not_there_is_named(prepared, tmp_path, how, error, message):
    with pytest.raises(error, match=message):
        publish(PublishRequest(prepared.data, str(tmp_path / "out"), **how))
    assert not (tmp_path / "out").exists()


def test_a_readme_that_is_not_ours_is_not_replaced(prepared, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(StateConflict, match=r"README.md: found one that no publish wrote"):
        publish(PublishRequest(prepared.data, str(tmp_path)))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("README.md", "mine")]


def test_an_empty_data_dir_has_nothing_to_publish(tmp_path):
    with pytest.raises(NotPrepared, match="laion-face prepare"):
        publish(PublishRequest(DataDir.at(tmp_path / "data"), str(tmp_path / "out")))


def test_an_index_alone_has_no_pictures_to_publish(data, tmp_path):
    shutil.rmtree(data.root / "images")
    for how in ({"with_images": True}, {"preview": 3}):
        with pytest.raises(NotPrepared, match="laion-face download"):
            publish(PublishRequest(data, str(tmp_path / "out"), **how))


def test_examples_are_not_read_as_an_index(published_pictures):
    file = parquet_files(published_pictures.folder)[0]
    with pytest.raises(BadFile, match="examples with pictures"), IndexPart.open(file) as part:
        part.read(0, 1)


# Law 3.

CHILD = """
import json, sys
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.publish.published_files import Bounds, PartExamples
from laion_face_builder.publish.publish import publish, texts_about
from laion_face_builder.publish.publish_forecast import forecast_publish
from laion_face_builder.publish.request import PublishRequest, options_of
bounds, batch = Bounds(**json.loads(sys.argv[3])), int(sys.argv[4])
data = DataDir.at(sys.argv[1])
publish(PublishRequest(data, sys.argv[2], with_images=True, preview=4, bounds=bounds, batch_bytes=batch))
"""


def child(data, target):
    # Several commits of several files each.
    bounds = json.dumps(dataclasses.asdict(SMALL))
    command = [sys.executable, "-c", CHILD, str(data.root), str(target), bounds, "1500000"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_killed_anywhere_the_same_bytes_come_out(data, tmp_path):
    # The publish is killed when the first staged file, a later one, and files at the target appear.
    publish(PublishRequest(data, str(tmp_path / "undisturbed"), with_images=True, preview=4, bounds=SMALL))
    out, staged = tmp_path / "out", data.root / "publish"
    for there in (
        lambda: list(staged.rglob("part-00000-00000.parquet")),
        lambda: list(staged.rglob(".part-00000-00002*.partial")),
        lambda: list(out.rglob("part-00002-00000.parquet")),
    ):
        process = child(data, out)
        kill_when(process, there)
        assert not (out / "README.md").exists()
    process = child(data, out)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    assert tree(out) == tree(tmp_path / "undisturbed")
    assert list(staged.glob("*/*")) == []
