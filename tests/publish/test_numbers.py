"""The card's numbers, proofs and history: what they say is what is in the files, beside the index, and was done."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder import __version__, cli
from laion_face_builder.index.urls import host_of
from laion_face_builder.layout import DataDir
from laion_face_builder.publish import card_sections, published_counts
from laion_face_builder.publish.card_snippets import EXAMPLE_ROW
from laion_face_builder.publish.manifest import Manifest
from laion_face_builder.publish.publish import publish
from laion_face_builder.publish.published_counts import FileCounts, sum_of
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.schema import INDEX


def manifest_in(folder):
    return Manifest.from_text((folder / "laion_face_manifest.json").read_bytes(), "")


def card_in(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture(params=["published", "published_pictures"])
def place(request):
    return request.getfixturevalue(request.param)


def test_the_numbers_are_those_of_the_rows(place):
    manifest = manifest_in(place.folder)
    names = [name for name, entry in manifest.entries.items() if entry.part >= 0]
    rows = [row for name in names for row in pq.read_table(place.folder / name).to_pylist()]
    found = sum_of(manifest.entries[name].counts for name in names)
    faces = [len(row["faces"]) for row in rows]
    captions = [row["caption"] for row in rows if row["caption"]]
    totals = {"rows": len(rows), "faces": sum(faces), "captions": len(captions)}
    totals |= {"caption_bytes": sum(len(one.encode()) for one in captions)}
    if pictures := sum(row.get("image") is not None for row in rows):
        totals["pictures"] = pictures
    assert found["totals"] == totals
    named = {"5-9": range(5, 10), "10 and more": range(10, 10_000)}
    by_number = Counter(next((name for name, of in named.items() if n in of), str(n)) for n in faces)
    assert found["faces"] == by_number
    assert found["nsfw"] == Counter(row["nsfw"] or "unknown" for row in rows)
    assert found["hosts"] == Counter(host_of(row["url"]) for row in rows if host_of(row["url"]))
    sizes = [(row.get("original_width", row["width"]), row.get("original_height", row["height"])) for row in rows]
    short = [min(size) if None not in size else None for size in sizes]
    assert found["short_sides"].get("unknown", 0) == short.count(None)
    assert found["short_sides"].get("256-511", 0) == sum(256 <= side < 512 for side in short if side is not None)
    assert found["face_sizes"].get("32-63", 0) == sum(32 <= (row["max_face_size"] or 0) < 64 for row in rows)
    text = card_in(place.folder)
    assert f"{len(rows):,} rows" in text
    assert f"{sum(faces):,} faces, {sum(faces) / len(rows):.2f} a picture" in text
    (host, most), *_ = Counter(host_of(row["url"]) for row in rows).most_common(1)
    assert f"| {host} | {most:,} | {100 * most / len(rows):.1f} % |" in text


_values = st.none() | st.sampled_from(["", "?", "UNLIKELY", "unknown", "| <b>x</b>\n"])
_rows = st.lists(
    st.fixed_dictionaries(
        {
            "url": st.sampled_from(
                [None, "", "http://a.b/x", "HTTPS://A.b:80/", "//", "http://[::1]/", "http://ä.de/1"]
            ),
            "caption": _values,
            "n_faces": st.none() | st.integers(0, 800),
            "max_face_size": st.none() | st.floats(0, 1e4, width=32),
            "width": st.none() | st.integers(1, 9000),
            "height": st.none() | st.integers(1, 9000),
            "nsfw": _values,
            "license": _values,
        }
    ),
    max_size=30,
)


@settings(max_examples=40)
@given(_rows, st.integers(0, 30))
def test_counts_of_pieces_add_up_and_show_no_strangers_words(rows, cut):
    schema = pa.schema([INDEX.field(name) for name in FileCounts.COLUMNS])
    tables = [pa.Table.from_pylist(some, schema=schema) for some in (rows[:cut], rows[cut:])]
    whole, pieces = FileCounts(), FileCounts()
    whole.add(pa.concat_tables(tables))
    for table in tables:
        pieces.add(table)
    assert whole.as_dict() == pieces.as_dict()
    one_by_one = []
    for table in tables:
        counts = FileCounts()
        counts.add(table)
        one_by_one.append(counts.as_dict())
    total = sum_of(one_by_one)
    assert total == sum_of([whole.as_dict()])
    assert all(sum(total[name].values()) == len(rows) for name in ("faces", "short_sides", "nsfw", "licences"))
    known = {"unknown", "other", "?", *published_counts.NSFW}
    assert set(total["nsfw"]) | set(total["licences"]) <= known
    assert all(re.fullmatch(r"[a-z0-9._-]+", host) for host in total["hosts"])


def test_the_commonest_hosts_are_kept(monkeypatch):
    monkeypatch.setattr(published_counts, "HOSTS", 3)
    monkeypatch.setattr(published_counts, "_MOST_WAITING", 10)
    counts, hosts = FileCounts(), [f"h{n}" for n in range(20) for _ in range(n)]
    for host in np.random.default_rng(0).permutation(hosts):
        row = {"url": f"http://{host}/x"}
        counts.add(pa.Table.from_pylist([row], schema=pa.schema([INDEX.field(name) for name in FileCounts.COLUMNS])))
    assert counts.as_dict()["hosts"] == {"h19": 19, "h18": 18, "h17": 17}


def test_the_card_has_the_proofs_of_the_joins(published, prepared):
    text, manifest = card_in(published.folder), manifest_in(published.folder)
    proofs = {part: json.loads(prepared.data.index(part).with_suffix(".json").read_text()) for part in (0, 2)}
    assert manifest.joins == {str(part): proof for part, proof in proofs.items()}
    asked, found = (sum(proof[name] for proof in proofs.values()) for name in ("ids_asked", "ids_found"))
    assert f"Of the {asked:,} sample ids on the lists {100 * found / asked:.1f} % were found" in text
    assert f"{sum(proof['ambiguous_rows'] for proof in proofs.values()):,} of which nobody can tell" in text
    assert f"`{proofs[0]['made_from']['ids']}`" in text
    for proof in proofs.values():
        assert proof["made_from"]["faces"].removeprefix("sha256:")[:16] in text
    for line in text.splitlines():
        if found := re.fullmatch(r"\| (0|2) \| ([\d,]+) \|.*", line):
            assert int(found[2].replace(",", "")) == proofs[int(found[1])]["rows"]


def test_an_index_without_proof_is_said_to_have_none(published, tmp_path):
    shutil.copytree(published.data.root / "index", tmp_path / "data" / "index")
    (tmp_path / "data/index/part-00002.json").unlink()
    other = tmp_path / "data/index/part-00000.json"
    other.write_text(other.read_text().replace('"kind": "index"', '"kind": "other"'))
    publish(PublishRequest(DataDir.at(tmp_path / "data"), str(tmp_path / "out")))
    assert manifest_in(tmp_path / "out").joins == {}
    assert "Of the parts 0, 2 no proof came" in card_in(tmp_path / "out")


def test_history_says_what_came_on_which_day(published, tmp_path, monkeypatch):
    command = ["publish", "--data-dir", str(published.data.root), str(tmp_path / "out")]
    days = {"0": 86_400, "0,2": 2 * 86_400}
    for parts, day in days.items():
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(day))
        assert cli.main([*command, "--parts", parts]) == 0
    rows = [pq.read_metadata(tmp_path / "out" / f"data/part-0000{part}.parquet").num_rows for part in (0, 2)]
    assert manifest_in(tmp_path / "out").history == (
        {"date": "1970-01-02", "version": __version__, "added": [0], "rows": rows[0]},
        {"date": "1970-01-03", "version": __version__, "added": [2], "rows": sum(rows)},
    )
    text = card_in(tmp_path / "out")
    assert text.index(f"- 1970-01-03, laion-face {__version__}: added parts 2") < text.index("- 1970-01-02")
    # Nothing new, on another day: nothing is written.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(9 * 86_400))
    assert cli.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == times
    gone = pq.read_table(tmp_path / "out/data/part-00002.parquet", columns=["sample_id"])["sample_id"][0].as_py()
    (tmp_path / "list.txt").write_text(f"{gone}\n")
    assert cli.main([*command, "--exclude", str(tmp_path / "list.txt"), "--parts", "2"]) == 0
    latest = manifest_in(tmp_path / "out").history[-1]
    assert (latest["date"], latest["changed"], latest["rows"]) == ("1970-01-10", [2], sum(rows) - 1)


def test_what_an_earlier_version_published_is_read_and_stays(published, tmp_path):
    # Its manifests had neither counts nor proofs, publisher or history.
    shutil.copytree(published.folder, tmp_path / "out")
    path = tmp_path / "out" / "laion_face_manifest.json"
    old = json.loads(path.read_text())
    for name in ("joins", "publisher", "history"):
        del old[name]
    for entry in old["files"].values():
        del entry["counts"]
    path.write_text(json.dumps(old))
    publish(PublishRequest(published.data, str(tmp_path / "out")))
    text = card_in(tmp_path / "out")
    assert "An earlier version published 2 of the 2 files without counting" in text
    assert "None are noted" in text
    assert "sample ids on the lists" in text  # the proofs lie beside the index all the same
    assert cli.main(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    "spoilt",
    [{"history": [{}]}, {"history": {"date": 1}}, {"joins": [1]}, {"publisher": {"x": 1}}, {"joins": {"0": 1}}],
)
def test_a_spoilt_manifest_is_an_error(published, tmp_path, spoilt, capsys):
    shutil.copytree(published.folder, tmp_path / "out")
    path = tmp_path / "out" / "laion_face_manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **spoilt}))
    assert cli.main(["verify", str(tmp_path / "out")]) == 1
    assert "expected a manifest of format 1" in capsys.readouterr().out


def test_the_example_is_a_row(published):
    table = pa.Table.from_pylist([EXAMPLE_ROW], schema=INDEX)
    assert list(EXAMPLE_ROW) == INDEX.names
    (face,) = EXAMPLE_ROW["faces"]
    x1, y1, x2, y2 = face["box"]
    assert (table["n_faces"][0].as_py(), table["max_face_size"][0].as_py()) == (1, min(x2 - x1, y2 - y1))
    assert pc.max(table["max_face_score"]).as_py() == pytest.approx(face["score"])
    shown = re.search(r"```json\n(.*?)```", card_in(published.folder), re.DOTALL)
    assert json.loads(shown[1]) == EXAMPLE_ROW


def test_a_long_history_is_shown_in_part():
    text = "\n".join(card_sections.changes(Manifest("index", history=tuple(_changes(40)))))
    assert text.count("\n- ") == 11
    assert "- 30 more, in `laion_face_manifest.json`" in text


def _changes(count):
    return [{"date": "2026-01-01", "version": "1", "added": [n % 32], "rows": n} for n in range(count)]
