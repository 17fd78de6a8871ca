"""Placeholders: the very same bytes from many addresses, against a plain count over sidecars and index."""

import shutil
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder.cli import main
from laion_face_builder.download.copies import CopyCount
from laion_face_builder.errors import NotPrepared, OptionError
from laion_face_builder.files import stamped
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.schema import INDEX
from tests.support.streams import ids_of

PLACEHOLDER = "f" * 64
WHICH = {"parts": "0,2", "split": "train", "streaming": True}


@pytest.fixture(scope="module")
def data(prepared, tmp_path_factory):
    """Give a DATA_DIR of which every third picture of each part has the hash of one and the same placeholder."""
    root = tmp_path_factory.mktemp("copies") / "data"
    shutil.copytree(prepared.data.root, root)
    data = DataDir.at(root)
    for part in (0, 2):
        table = pq.read_table(data.sidecar(part))
        rows = table.to_pylist()
        for row in [row for row in rows if row["status"] == "ok"][::3]:
            row["sha256"] = PLACEHOLDER
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), data.sidecar(part))
    return data


@pytest.fixture(scope="module")
def addresses(data):
    """Give of the bytes of each downloaded picture the addresses that gave them, and the samples that have them."""
    found, samples = defaultdict(set), defaultdict(list)
    for part in (0, 2):
        sidecar = pq.read_table(data.sidecar(part)).to_pylist()
        for row, about in zip(pq.read_table(data.index(part)).to_pylist(), sidecar, strict=True):
            if about["status"] == "ok":
                sha256 = about["fetched_sha256"] or about["sha256"]
                found[sha256].add(row["url"])
                samples[sha256].append(row["sample_id"])
    return found, samples


def test_bytes_of_too_many_addresses_are_dropped_and_counted(data, addresses):
    found, samples = addresses
    most = len(found[PLACEHOLDER]) - 1
    copies = {sha256 for sha256, urls in found.items() if len(urls) > most}
    gone = {sample for sha256 in copies for sample in samples[sha256]}
    how = {**WHICH, "data_dir": str(data.root)}
    plain = laion_face.load_dataset("20M", **how)
    ds = laion_face.load_dataset("20M", max_copies=most, **how)
    assert ids_of(ds) == [one for one in ids_of(plain) if one not in gone]
    assert laion_face.report(ds).failed["too_many_copies"] == len(gone) > 10
    assert ids_of(laion_face.load_dataset("20M", max_copies=most + 1, **how)) == ids_of(plain)


def test_stats_lists_them(data, addresses, tmp_path, capsys):
    found, _ = addresses
    most = len(found[PLACEHOLDER]) - 1
    told = ["--data-dir", str(data.root), "--parts", "0,2", "--out", str(tmp_path / "s.html")]
    assert main(["stats", "20M", *told, "--max-copies", str(most)]) == 0
    out = capsys.readouterr().out
    for sha256, urls in found.items():
        assert (f"{sha256}{len(urls):>15,}" in out) == (len(urls) > most)
    assert "too_many_copies" in out


def test_addresses_are_counted_and_not_rows(tmp_path):
    def counted(rows, most):
        """Count in one part of (address, hash as stored, hash as fetched)."""
        full = [dict.fromkeys(INDEX.names) | {"sample_id": 1, "url": url, "part": 0, "faces": []} for url, _, _ in rows]
        pq.write_table(pa.Table.from_pylist(full, schema=INDEX), tmp_path / "index.parquet")
        columns = [("status", ["ok" if stored else "timeout" for _, stored, _ in rows])]
        columns += [("sha256", [stored for _, stored, _ in rows]), ("fetched_sha256", [given for _, _, given in rows])]
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns})
        schema = stamped(table.schema, {"rows": repr(rows)})
        pq.write_table(table.cast(schema), tmp_path / "sidecar.parquet", row_group_size=2)
        shutil.rmtree(tmp_path / "copies", ignore_errors=True)
        count = CopyCount(
            {0: tmp_path / "sidecar.parquet"},
            lambda _: IndexPart.open(tmp_path / "index.parquet"),
            most,
            tmp_path / "copies",
        )
        assert count.found() == count.found()
        return count.found()

    a, b, c = ("a" * 64, "b" * 64, "a" * 16 + "c" * 48)
    assert counted([("u1", a, None), ("u1", a, None), ("u1", a, "")], 1) == {}
    assert counted([("u1", a, None), ("u2", a, None), ("u3", b, None)], 1) == {a: 2}
    # What was encoded again counts by what the host gave; hashes that begin alike are told apart.
    assert counted([("u1", a, b), ("u2", c, b), ("u3", a, None), ("u4", c, None)], 1) == {b: 2}
    assert counted([("u1", None, None), ("u2", None, None), (None, a, None), ("u3", a, None)], 1) == {a: 2}


def test_where_nothing_was_downloaded_nothing_can_be_counted(prepared, tmp_path):
    shutil.copytree(prepared.data.root / "index", tmp_path / "index")
    how = {**WHICH, "data_dir": str(tmp_path), "max_copies": 2}
    with pytest.raises(NotPrepared, match="cannot be known before they have come"):
        laion_face.load_dataset("20M", images="fetch", **how)
    with pytest.raises(OptionError, match="images='none' has none"):
        laion_face.load_dataset("20M", images="none", **how)
