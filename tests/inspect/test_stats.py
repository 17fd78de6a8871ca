"""Statistics: every number against a plain loop over what is true, and a page that a browser shows as it should."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import laion_face
from laion_face_builder import cli
from laion_face_builder.errors import OptionError
from laion_face_builder.index.urls import host_of
from laion_face_builder.inspect import plots
from laion_face_builder.inspect.counts import EDGES, OTHER_HOSTS, PartStats, Spread, count, hosts_of
from laion_face_builder.inspect.stats import as_json, lines, stats_page
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.sandbox import Truth
from tests.support import browser

f32 = np.float32
GREEN, GREY, ORANGE = (0, 122, 75), (195, 200, 207), (210, 105, 30)


def counted(data, **filters):
    return count(Options.of("20M", OptionFields(parts="0,2", **filters), data))


def short(face):
    return min(f32(face.box[2]) - f32(face.box[0]), f32(face.box[3]) - f32(face.box[1]))


FILTERS: dict[str, tuple[dict[str, Any], Callable[[Truth], Any]]] = {
    "none": ({}, lambda truth: True),
    "size": ({"min_face_size": 70}, lambda truth: any(short(face) >= 70 for face in truth.faces)),
    "faces": ({"min_faces": 1, "max_faces": 2}, lambda truth: 1 <= len(truth.faces) <= 2),
    "width": ({"min_width": 160}, lambda truth: truth.width is not None and truth.width >= 160),
    "score": ({"min_score": 0.9, "min_faces": 2}, lambda truth: sum(f.score >= f32(0.9) for f in truth.faces) >= 2),
    "nothing": ({"min_faces": 99}, lambda truth: False),
}


@pytest.mark.parametrize("name", FILTERS)
def test_counts_are_those_of_a_plain_loop(prepared, name):
    filters, passes = FILTERS[name]
    stats = counted(prepared.data.root, **filters)
    total, truths = stats.total, prepared.truth
    kept = [truth for truth in truths if passes(truth)]
    assert vars(total.samples) == {"all": len(truths), "kept": len(kept)}
    assert vars(total.faces) == {"all": sum(len(t.faces) for t in truths), "kept": sum(len(t.faces) for t in kept)}
    for wanted, which in ((truths, "all"), (kept, "kept")):
        values = {
            "faces a picture": [len(truth.faces) for truth in wanted],
            "face size": [short(face) for truth in wanted for face in truth.faces],
            "score": [f32(face.score) for truth in wanted for face in truth.faces],
            "picture size": [min(t.width, t.height) for t in wanted if None not in (t.width, t.height)],
        }
        for key, found in values.items():
            assert getattr(total.spreads[key], which).tolist() == binned(key, found), key
        unknown = sum(None in (truth.width, truth.height) for truth in wanted)
        assert getattr(total.spreads["picture size"].unknown, which) == unknown
    assert (total.asked, total.usable) == (len(kept), sum(truth.ok for truth in kept))
    assert total.reasons.total() == total.asked - total.usable
    assert total.reasons["http_404"] == sum(truth.fate == "http_404" for truth in kept)
    assert total.hosts == Counter(host_of(truth.url) or "(no host)" for truth in kept)
    assert +total.usable_hosts == Counter(host_of(truth.url) for truth in kept if truth.ok)
    for part in (0, 2):
        here = [truth for truth in kept if truth.part == part]
        if here:
            assert stats.by_part[part] == (len(here), sum(truth.ok for truth in here))


def binned(key, values):
    """Count the values in each bin, one value after the other."""
    edges = [f32(edge) for edge in EDGES[key]]
    counts = [0] * len(edges)
    for value in values:
        counts[max(place for place, edge in enumerate(edges) if value >= edge)] += 1
    return counts


def test_bytes_of_the_index_and_of_the_pictures(prepared):
    # A row has its row group's average; of pictures that are here the average is known.
    stats = counted(prepared.data.root, min_face_size=70)
    whole, kept = 0, 0.0
    for part in (0, 2):
        file = pq.ParquetFile(prepared.data.index(part))
        for group in range(file.metadata.num_row_groups):
            found = file.metadata.row_group(group)
            size = sum(found.column(column).total_compressed_size for column in range(found.num_columns))
            sizes = file.read_row_group(group, columns=["max_face_size"])["max_face_size"].to_pylist()
            whole += size
            kept += size * sum(value is not None and value >= 70 for value in sizes) / len(sizes)
        file.close()
    assert stats.total.index_bytes.all == whole
    assert math.isclose(stats.total.index_bytes.kept, kept)
    assert whole < sum(prepared.data.index(part).stat().st_size for part in (0, 2))
    served = [len(truth.served) for truth in prepared.truth if truth.ok]
    assert math.isclose(stats.bytes_a_picture, sum(served) / len(served))
    assert as_json(stats)["picture_bytes"]["kept"] == round(stats.total.samples.kept * stats.bytes_a_picture)


def test_a_filter_saves_the_fetches_that_stats_says(prepared, tmp_path):
    # What `stats` says before any download is what the picture hosts then see.
    shutil.copytree(prepared.data.root / "index", tmp_path / "index")
    host = prepared.sandbox.pictures
    asked = {}
    for size in (None, 70):
        said = counted(tmp_path, **({} if size is None else {"min_face_size": size}))
        assert said.total.asked == 0, "nothing was downloaded here"
        before = len(host.log)
        ds = laion_face.load_dataset(
            "20M", split="train", streaming=True, parts="0,2", data_dir=str(tmp_path), images="fetch", retries=0,
            allow_private_hosts=True, min_face_size=size,
        )  # fmt: skip
        yielded = sum(1 for _ in ds)
        report = laion_face.report(ds)
        assert report.rows - report.filtered == said.total.samples.kept
        assert yielded <= said.total.samples.kept
        # Redirects are asked for twice; ftp:// and file:// never.
        asked[size] = sum(not request.path.startswith("/moved") for request in host.log[before:])
        wanted = [t for t in prepared.truth if size is None or any(short(face) >= size for face in t.faces)]
        assert asked[size] == sum(t.url.startswith("http") for t in wanted)
        assert said.total.samples.kept == len(wanted)
    assert asked[70] < 0.7 * asked[None]


values = st.one_of(st.just(math.nan), st.floats(-50, 3000, width=32), st.sampled_from([0.5, 16.0, 64.0, 512.0, 0.0]))


@settings(max_examples=100)
@given(st.sampled_from(sorted(EDGES)), st.lists(st.tuples(values, st.booleans()), max_size=30))
def test_bins_against_a_plain_loop(key, rows):
    if key == "faces a picture":
        rows = [(value if math.isnan(value) else float(abs(int(value)) % 15), keep) for value, keep in rows]
    spread = Spread.empty(key)
    half = len(rows) // 2
    for part in (rows[:half], rows[half:]):
        spread.count(np.array([value for value, _ in part], f32), np.array([keep for _, keep in part], bool))
    known = [(f32(value), keep) for value, keep in rows if not math.isnan(value)]
    assert spread.all.tolist() == binned(key, [value for value, _ in known])
    assert spread.kept.tolist() == binned(key, [value for value, keep in known if keep])
    assert spread.unknown.all == len(rows) - len(known)
    assert sum(number for _, number, _ in spread.bins) == len(rows)


names = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9.-]{0,12}", fullmatch=True)
addresses = st.builds(
    "{}://{}{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "ftp"]),
    st.sampled_from(["", "user@", "User:pw@"]),
    st.one_of(names, st.sampled_from(["[::1]", "Host.Example.", "127.0.0.1"])),
    st.sampled_from(["", ":80", ":8080"]),
    st.sampled_from(["", "/", "/a@b:c/d.jpg?e=f#g", "?q=http://other.example/", "#x"]),
)


@settings(max_examples=150)
@given(st.lists(st.one_of(addresses, st.sampled_from([None, "", "nothing", "http://", "file:///etc/passwd"]))))
def test_hosts_are_those_of_the_filters(urls):
    assert hosts_of(pa.array(urls, pa.string())).to_pylist() == [host_of(url) or "(no host)" for url in urls]


def test_rare_hosts_are_put_together_and_none_is_lost():
    stats = PartStats()
    stats.hosts.update({f"h{n}": n for n in range(100)})
    stats.usable_hosts.update({f"h{n}": n // 2 for n in range(100)})
    before = stats.hosts.total(), stats.usable_hosts.total()
    stats.keep_hosts(10)
    assert len(stats.hosts) == 11
    assert stats.hosts["h99"] == 99
    assert OTHER_HOSTS in stats.hosts
    assert (stats.hosts.total(), stats.usable_hosts.total()) == before


def run(capsys, *arguments):
    code = cli.main(["stats", "20M", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.browser
def test_the_command_prints_a_table_and_writes_a_page(prepared, tmp_path, capsys):
    given = ["--data-dir", prepared.data.root, "--min-face-size", "70.0"]
    code, out, err = run(capsys, *given, "--out", tmp_path / "page.html")
    assert code == 0
    stats = counted(prepared.data.root, min_face_size=70.0)
    assert out.splitlines() == "\n".join(lines(stats)).splitlines()
    assert out.startswith("20M, parts 0,2; min_face_size=70\n")
    assert str(tmp_path / "page.html") in err
    kept, every = int(stats.total.samples.kept), int(stats.total.samples.all)
    assert re.search(rf"^samples +{every} +{kept} +{kept / every:.1%}$", out, re.MULTILINE)
    seen = browser.look_at(tmp_path / "page.html", (1250, 2000))
    assert seen.complaints == []
    assert seen.dom.count('<svg role="img"') == 7
    assert seen.dom.count("<figure>") == 7
    assert "--min-face-size 70" in seen.dom
    assert f"<b>{kept}</b>" in seen.dom
    pixels = np.asarray(seen.picture, int)
    for colour in (GREEN, GREY, ORANGE):
        assert (np.abs(pixels - colour).max(axis=-1) <= 3).mean() > 0.005, "bars are drawn"
    again = tmp_path / "again.html"
    run(capsys, *given, "--out", again)
    assert again.read_bytes() == (tmp_path / "page.html").read_bytes()


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_without_matplotlib_the_extra_is_named_before_anything_is_counted(prepared, tmp_path, how):
    given = ["--data-dir", str(prepared.data.root), "--out", str(tmp_path / "p.html"), *how]
    code = (
        f"import sys; sys.modules['matplotlib'] = None  # not to be had\n"
        f"from laion_face_builder import cli\nsys.exit(cli.main(['stats', '20M', *{given!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "matplotlib, which is not installed. Install it: `pip install 'laion-face[plots]'`" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_json_has_the_same_numbers(prepared, tmp_path, capsys):
    code, out, _ = run(capsys, "--data-dir", prepared.data.root, "--json", "--out", tmp_path / "p.html")
    found = json.loads(out)
    assert code == 0
    assert found == json.loads(json.dumps(as_json(counted(prepared.data.root))))
    assert found["samples"] == {"all": len(prepared.truth), "kept": len(prepared.truth)}
    assert sum(found["failed"].values()) == found["asked"] - found["usable"]


@pytest.mark.browser
def test_before_any_download_the_page_says_so(prepared, tmp_path, capsys):
    shutil.copytree(prepared.data.root / "index", tmp_path / "data" / "index")
    code, out, _ = run(capsys, "--data-dir", tmp_path / "data", "--out", tmp_path / "p.html")
    assert code == 0
    assert "No pictures have been downloaded here yet" in out
    seen = browser.look_at(tmp_path / "p.html", (800, 900))
    assert seen.complaints == []
    assert seen.dom.count('<svg role="img"') == 4
    assert "laion-face download" in seen.dom
    assert "what such pictures usually have" in seen.dom


def test_nothing_kept_is_a_page_too(prepared):
    page = stats_page(counted(prepared.data.root, min_faces=99), "command")
    assert page.count("<figure>") == 4
    assert "No picture of a sample that is kept was asked for" in page
    assert "<b>0</b>" in page


@settings(max_examples=15)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_names_of_others_are_drawn_as_text(found):
    hosts = [*found, "$x^2", "<script>alert(1)</script>", "微笑.example", "a" * 300]
    plot = plots.bars("Hosts", "samples", hosts, [1] * len(hosts), [2] * len(hosts))
    tree = ElementTree.fromstring(plot.svg)
    assert {element.tag.rpartition("}")[2] for element in tree.iter()} <= {
        "svg", "title", "defs", "style", "g", "path", "use", "text", "clipPath", "rect", "tspan",
    }  # fmt: skip
    drawn = [text for element in tree.iter() if (text := (element.text or "").strip())]
    assert all(plots.named(host).strip() in drawn for host in hosts if plots.named(host).strip())


def test_plots_of_one_page_share_no_ids(prepared):
    page = stats_page(counted(prepared.data.root), "command")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert used
    assert set(used) <= set(ids)


def test_what_cannot_be_counted_is_said(prepared, tmp_path, capsys):
    code, out, err = run(capsys, "--data-dir", tmp_path, "--out", tmp_path / "p.html")
    assert (code, out) == (1, "")
    assert re.search(r"no index of parts .*laion-face prepare", err)
    with pytest.raises(OptionError, match="laion-face download"):
        counted(prepared.data.root, images="download")
    assert list(tmp_path.iterdir()) == []
