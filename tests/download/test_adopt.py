"""Folders that other people have: img2dataset's, whatever its output_format, without SAMPLE_ID, of any parts."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import laion_face
from laion_face_builder.download.foreign import FOREIGN, LookJob, checksum_of
from laion_face_builder.download.matching import RowKeys, matched
from laion_face_builder.download.sidecar import CheckedTar
from laion_face_builder.download.tar_reader import PartPictures
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.sandbox import Sandbox, SandboxSpec
from laion_face_builder.sandbox.spec import Truth

FORMS = ("webdataset", "files", "parquet")
#: As LAION-400M is downloaded by img2dataset's own example, with every byte kept: url and caption, no SAMPLE_ID.
THEIRS = """
import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]), input_format="parquet", url_col="URL", caption_col="TEXT", encode_format="jpg",
             resize_mode="no", disable_all_reencoding=True, compute_hash="sha256", extract_exif=False,
             enable_wandb=False, processes_count=1, thread_count=4, number_sample_per_shard=20, retries=0)
"""


class Lab(NamedTuple):
    """A prepared DATA_DIR, and what somebody downloaded from the same addresses: `folder(form)`."""

    box: Sandbox
    data: DataDir
    at: Path

    def folder(self, form: str) -> Path:
        return self.at / form


@pytest.fixture(scope="module")
def lab(hub, tmp_path_factory):
    at = tmp_path_factory.mktemp("lab")
    spec = SandboxSpec(parts=(0, 1), rows=150, failing=0.1, twisted=0)
    with Sandbox.running(at / "sandbox", spec, hub=hub, namespace="lab") as box:
        fields = OptionFields(parts="0,1", source_repo=box.repo, metadata=box.metadata_repo)
        options = Options.of("50M", fields, at / "data")
        prepare(options.data, options.parts, options.upstream)
        rows = pa.concat_tables(
            pq.read_table(options.data.index(part), columns=["url", "caption"]) for part in options.parts
        )
        order = np.random.default_rng(3).permutation(rows.num_rows)
        pq.write_table(rows.take(order).rename_columns(["URL", "TEXT"]), at / "laion400m.parquet")
        for form in FORMS:
            how = {"url_list": str(at / "laion400m.parquet"), "output_folder": str(at / form), "output_format": form}
            (at / "theirs.py").write_text(THEIRS)
            command = [sys.executable, str(at / "theirs.py"), json.dumps(how)]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
        yield Lab(box, options.data, at)


def pictures_of(lab: Lab, folder: Path, part: int, data: DataDir | None = None) -> dict[int, bytes | None]:
    with PartPictures.adopt(folder, data or lab.data, part) as pictures:
        ids = pq.read_table(lab.data.index(part), columns=["sample_id"])["sample_id"].to_pylist()
        stored = pictures.read(0, pictures.num_rows)
        return {sample_id: one.data for sample_id, one in zip(ids, stored, strict=True)}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_img2dataset_is_adopted_by_url_across_parts(lab, form):
    for part in (0, 1):
        found = pictures_of(lab, lab.folder(form), part)
        held = {sample_id: data for sample_id, data in found.items() if data is not None}
        assert held == {row.sample_id: lab.box.pictures.answers[row.path].body for row in usable(lab, part)}
        assert len(held) > 20


def usable(lab: Lab, part: int) -> list[Truth]:
    """List the rows whose picture img2dataset got, and that is one."""
    return [row for row in lab.box.truth_of(part) if row.fate == "ok"]


@pytest.mark.parametrize("form", FORMS)
def test_examples_come_from_an_adopted_folder(lab, form, tmp_path):
    given = {"split": "train", "data_dir": str(lab.data.root), "parts": "0,1", "streaming": True}
    ds = laion_face.load_dataset("50M", images=str(lab.folder(form)), **given)
    assert {row["sample_id"] for row in ds} == {row.sample_id for part in (0, 1) for row in usable(lab, part)}


def test_a_cut_tar_gives_what_is_whole_in_it(lab, tmp_path, caplog):
    folder = tmp_path / "cut"
    shutil.copytree(lab.folder("webdataset"), folder)
    tars = sorted(folder.glob("*.tar"))
    for tar in tars:
        tar.with_suffix(".parquet").unlink()
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size * 2 // 3])
    data = DataDir.at(tmp_path / "data")
    shutil.copytree(lab.data.root / "index", data.root / "index")
    whole, cut = (pictures_of(lab, one, 0, data) for one in (lab.folder("webdataset"), folder))
    held = {sample_id for sample_id, content in cut.items() if content is not None}
    assert 5 < len(held) < sum(content is not None for content in whole.values())
    assert all(cut[sample_id] == whole[sample_id] for sample_id in held)


@pytest.mark.parametrize("form", FORMS)
def test_one_bad_id_costs_its_sample_alone_and_none_if_it_has_an_address(lab, form, tmp_path):
    folder = tmp_path / form
    shutil.copytree(lab.folder(form), folder)
    tables = sorted(folder.glob("*.parquet"))
    for path in tables:
        table = pq.read_table(path)
        ids = pa.array(["no number"] + [None] * (table.num_rows - 1), pa.string())
        pq.write_table(table.append_column("SAMPLE_ID", ids), path)
    expected = {row.sample_id for row in usable(lab, 1)}
    assert {key for key, data in pictures_of(lab, folder, 1).items() if data is not None} == expected


def test_a_table_without_names_is_told(lab, tmp_path):
    path = tmp_path / "00000.parquet"
    pq.write_table(pa.table({"jpg": [b"x"], "size": [1]}), path)
    with pytest.raises(
        laion_face.LaionFaceError, match=r"00000.parquet.*columns: jpg, size.*SAMPLE_ID, url or caption"
    ):
        LookJob(str(path), str(tmp_path / "out"), 10**6, {}).run()


def test_tables_that_vanish_or_change_are_a_status(lab, tmp_path):
    folder = tmp_path / "parquet"
    shutil.copytree(lab.folder("parquet"), folder)
    tables = sorted(folder.glob("*.parquet"))
    with PartPictures.adopt(folder, lab.data, 0) as pictures:
        before = [one.status for one in pictures.read(0, pictures.num_rows)]
        tables[0].unlink()
        tables[1].write_bytes(tables[1].read_bytes()[:-100])
        tables[2].write_bytes(tables[3].read_bytes())
    with PartPictures(pictures.folder, pictures.sidecar) as again:
        after = [one.status for one in again.read(0, again.num_rows)]
    assert {"ok", "tar_missing", "tar_unreadable", "tar_changed"} <= set(after)
    assert {new for old, new in zip(before, after, strict=True) if old != "ok"}.isdisjoint({"tar_missing"})


TEXTS = st.sampled_from(["", "a", "b", "c", "d"])
SAMPLES = st.tuples(st.none() | st.integers(0, 4), TEXTS, TEXTS, st.booleans())
ROWS = st.tuples(TEXTS, TEXTS)


@settings(max_examples=150)
@given(st.lists(ROWS, min_size=1, max_size=6), st.lists(st.lists(SAMPLES, max_size=5), min_size=1, max_size=3))
def test_rows_are_found_by_id_then_address_then_caption(tmp_path_factory, rows, shards):
    # The oracle looks for every row in every sample; the rule is that of the module's own words.
    folder = tmp_path_factory.mktemp("matching")
    urls, captions = (np.array([checksum_of(one[at]) if one[at] else 0 for one in rows], np.uint64) for at in (0, 1))
    keys = RowKeys(np.arange(len(rows), dtype=np.uint64), urls, captions, urls > 0, captions > 0)
    checked = [CheckedTar(str(number), written(folder, number, shard)) for number, shard in enumerate(shards)]
    found = matched(keys, checked)
    samples = [sample for shard in shards for sample in shard]
    numbers = found.table["offset"].to_pylist()
    places = [None if at < 0 else numbers[at] for at in found.positions.tolist()]
    expected = [best(row, number, rows, samples) for number, row in enumerate(rows)]
    assert places == expected
    assert found.held == len(samples)


def written(folder: Path, number: int, shard: list[Any]) -> Path:
    """Write what was found of a shard; `offset` is the sample's number among all."""
    first = sum(pq.read_metadata(folder / f"{before}.parquet").num_rows for before in range(number))
    table = [
        {
            "id": sample_id,
            "url": checksum_of(url) if url else None,
            "caption": checksum_of(caption) if caption else None,
            "status": "ok" if is_ok else "http_404",
            "offset": first + at,
        }
        for at, (sample_id, url, caption, is_ok) in enumerate(shard)
    ]
    pq.write_table(pa.Table.from_pylist(table, schema=FOREIGN), folder / f"{number}.parquet")
    return folder / f"{number}.parquet"


def best(row: Any, number: int, rows: list[Any], samples: list[Any]) -> int | None:
    url, caption = row
    nameless = [at for at, sample in enumerate(samples) if sample[0] is None]
    captions = [samples[at][2] for at in nameless if not samples[at][1]]
    is_alone = [one[1] for one in rows].count(caption) == 1 == captions.count(caption)
    ways = [
        [at for at, sample in enumerate(samples) if sample[0] == number],
        [at for at in nameless if url and caption and samples[at][1:3] == (url, caption)],
        [at for at in nameless if url and samples[at][1] == url],
        [at for at in nameless if caption and is_alone and not samples[at][1] and samples[at][2] == caption],
    ]
    candidates = [max(way, key=lambda at: (samples[at][3], at)) for way in ways if way]
    succeeded = [at for at in candidates if samples[at][3]]
    return next(iter([*succeeded, *candidates]), None)


def test_nothing_is_chosen_by_chance_of_order(tmp_path):
    # What is found does not depend on which shard comes first, but where two successes have the same name.
    rng = random.Random(1)
    shards = [[(None, f"u{number}", "", True)] for number in range(9)]
    checked = [CheckedTar(str(number), written(tmp_path, number, shard)) for number, shard in enumerate(shards)]
    urls = np.array([checksum_of(f"u{number}") for number in range(9)], np.uint64)
    none = np.zeros(9, bool)
    keys = RowKeys(np.arange(100, 109, dtype=np.uint64), urls, np.zeros(9, np.uint64), ~none, none)
    for _ in range(3):
        rng.shuffle(checked)
        found = matched(keys, checked)
        assert [found.table["tar"][at].as_py() for at in found.positions.tolist()] == [str(at) for at in range(9)]
