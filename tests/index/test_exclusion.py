"""Exclusion lists: every way of writing an entry, every line that is none, and what a list then leaves out."""

import copy
import hashlib
import logging
import multiprocessing
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import laion_face
from laion_face_builder import cli
from laion_face_builder.errors import BadFile
from laion_face_builder.index.exclusion import Exclusion, entry_of, parse_exclusion, read_exclusion
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.urls import host_of
from laion_face_builder.inspect.counts import count
from laion_face_builder.options import OptionFields, Options

SHA, MD5 = "aB" * 32, "0f" * 16


def named(exclusion):
    """Return everything that a list names, as text."""
    ids = map(str, exclusion.sample_ids.tolist())
    return {*ids, *exclusion.urls, *exclusion.hosts, *exclusion.sha256s, *exclusion.md5s}


def table_of(*rows):
    return pa.table(
        {"sample_id": pa.array([r[0] for r in rows], pa.int64()), "url": pa.array([r[1] for r in rows], pa.string())}
    )


def left_out(lines, *urls):
    return parse_exclusion(lines).mask(table_of(*enumerate(urls))).tolist()


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("123", "123"),
        ("  123\t", "123"),
        ("123.0", "123"),
        ("123.000", "123"),
        ("-4", "-4"),
        ('"123"', "123"),
        ("'123.0'", "123"),
        ("123,http://a.example/1.jpg,a cat", "123"),
        ('"123","a ""cat"", sitting"', "123"),
        ("123 , a cat", "123"),
        ("123 # withdrawn in May", "123"),
        ("123\t#withdrawn", "123"),
        ('"123" # withdrawn', "123"),
        ("9223372036854775807", str(2**63 - 1)),
        ("http://a.example/1.jpg", "http://a.example/1.jpg"),
        ("HTTP://A.Example/B.JPG?C=D#E", "http://a.example/B.JPG?C=D#E"),
        ("http://User:Pw@A.example:80/", "http://User:Pw@a.example:80/"),
        ("http://A.example", "http://a.example"),
        ("http://a.example/1,2.jpg", "http://a.example/1,2.jpg"),
        ("http://a.example/a b.jpg  # gone", "http://a.example/a b.jpg"),
        ("http://a.example/#top", "http://a.example/#top"),
        ("http://a.example/*.jpg", "http://a.example/*.jpg"),
        ('"http://a.example/1,2.jpg",a cat', "http://a.example/1,2.jpg"),
        ('"http://a.example/""x"".jpg"', 'http://a.example/"x".jpg'),
        ("'http://a.example/1.jpg'", "http://a.example/1.jpg"),
        ("A.Example.", "a.example"),
        (".a.example", "a.example"),
        ("a.example,spam", "a.example"),
        ("a.example:8080", "a.example:8080"),
        ("a.example:0080", "a.example:80"),
        ("*.a.example", "*.a.example"),
        ("*.a.example:81", "*.a.example:81"),
        ("*.example", "*.example"),
        ("-my_cdn.a.example", "-my_cdn.a.example"),
        ("localhost", "localhost"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1:81", "127.0.0.1:81"),
        ("[::1]:81", "[::1]:81"),
        ("::1", "[::1]"),
        ("[0:0::1]", "[::1]"),
        (SHA, SHA.lower()),
        (f"{SHA}  # a picture", SHA.lower()),
        (f"{MD5},why", MD5),
        ("1" * 32, "1" * 32),
        ("1" * 64, "1" * 64),
    ],
)
def test_an_entry_is_what_it_looks_like(line, entry):
    found = parse_exclusion([line])
    assert named(found) == {entry}
    assert sum(found.counts.values()) == 1


@pytest.mark.parametrize(
    "line",
    [
        *("1.5", "1e6", "12 34", "+5", "9223372036854775808", "1" * 20, "nan", ",5", '"123', "'1\"", '""'),
        *("word", "caption", "two words", "a.example/1.jpg", "//a.example/1.jpg", "http://", "me@a.example", "a..5"),
        *("597,155,409,472", "12,345"),  # an id with commas, or several fields
        *("*", "*.", "ads*.a.example", "http://*.a.example/", "*.127.0.0.1", "a.example:0", "a.example:65536", "1.2.3"),
        *("a.example:http", "300.1.1.1", ":::", "[a]", "ab" * 31, "xy" * 32, "0\0", "\ufeff5", "ü" * 70 + ".example"),
    ],
)
def test_what_can_be_nothing_is_refused_by_its_number(line, tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(f"# a list\r\n\r\n7\r\n{line}\r\n8\r\n".encode())
    with pytest.raises(BadFile) as caught:
        read_exclusion(str(path))
    said = str(caught.value)
    assert said.startswith(f"{path}:4: found {line!r}, expected a sample id, a URL")
    assert "\n" not in said


def test_the_first_line_may_be_a_header_and_says_whether_all_are_csv():
    for header in ("sample_id", "SAMPLE_ID,url", '"id","caption"', "url", "key,url # of LAION"):
        assert named(parse_exclusion(["# ours", "", header, "5"])) == {"5"}
    both = ["http://a.example/1.jpg,0.3", "2"]
    assert named(parse_exclusion(["url,similarity", *both])) == {"http://a.example/1.jpg", "2"}
    assert named(parse_exclusion(["url", *both])) == {"http://a.example/1.jpg,0.3", "2"}
    with pytest.raises(BadFile, match=r"list:2: found 'url', expected"):
        parse_exclusion(["5", "url"], "list")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_may_come_from_any_editor(tmp_path, end, encoding, caplog):
    lines = [
        "sample_id",
        "# a comment",
        "",
        "  # another",
        "5.0",
        "ünder.example",
        "http://x.example/\u2028a",
        SHA,
        MD5,
    ]
    path = tmp_path / "list.csv"
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    with caplog.at_level(logging.INFO, "laion_face"):
        found = read_exclusion(str(path))
        assert read_exclusion(str(path)) is found
    assert found.counts == {"ids": 1, "urls": 1, "hosts": 1, "hashes": 2}
    assert caplog.messages == [f"{path}: names 1 id, 1 URL, 1 host, 2 hashes, which are left out"]


def test_lists_that_name_nothing_or_leave_room_for_doubt_are_spoken_of(tmp_path, caplog):
    (tmp_path / "empty").write_text("# nothing yet\n")
    assert named(read_exclusion(str(tmp_path / "empty"))) == set()
    assert "names nothing" in caplog.text
    with caplog.at_level(logging.INFO, "laion_face"):
        parse_exclusion(["http://a.example/1.jpg,0.3", '"http://a.example/2.jpg",0.3'], "list")
    assert "list: 1 URLs have a comma and no quotes" in caplog.text


def test_files_that_are_no_text_are_named(tmp_path):
    for content in (b"\xff\xfe1\x00", b"\x80"):
        (tmp_path / "e").write_bytes(content)
        with pytest.raises(BadFile, match=r"e: found no readable text"):
            read_exclusion(str(tmp_path / "e"))
    with pytest.raises(BadFile, match="no readable text"):
        read_exclusion(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("entry", "named", "others"),
    [
        (
            "http://A.example/x.jpg",
            ["http://a.example/x.jpg", "HTTP://a.EXAMPLE/x.jpg", " http://a.example/x.jpg "],
            ["http://a.example/X.jpg", "https://a.example/x.jpg", "http://a.example:80/x.jpg", "http://a.example/x.jpg?"],
        ),
        (
            "a.example",
            ["http://a.example", "HTTPS://cdn.A.example.:81/x", "http://u@b.c.a.example/", "x://a.example?q"],
            ["http://aa.example/", "http://a.example.org/", "http://b.example/a.example", "a.example", "", "http://["],
        ),
        (
            "*.a.example",
            ["http://cdn.a.example/", "http://b.c.A.example/"],
            ["http://a.example/", "http://xa.example/", "http://*/"],
        ),
        (
            "a.example:80",
            ["http://a.example/", "http://a.example:80/x", "http://cdn.a.example/", "ftp://a.example:80/", "HTTP://A.example"],
            ["https://a.example/", "http://a.example:8080/", "http://a.example:99999/", "ftp://a.example/"],
        ),
        (
            "*.a.example:443",
            ["https://b.a.example/"],
            ["https://a.example/", "http://b.a.example/"],
        ),
        ("[::1]", ["http://[0::1]/", "http://[::1]:81/"], ["http://[::2]/", "http://1/"]),
        ("10.0.0.1", ["http://10.0.0.1:81/"], ["http://10.0.0.10/", "http://0.0.1/"]),
        ("bücher.example", ["http://xn--bcher-kva.example/", "http://www.BÜCHER.example/"], ["http://bucher.example/"]),
        ("*.example", ["http://a.example/"], ["http://example/"]),
    ],
)  # fmt: skip
def test_addresses_and_hosts_name_what_they_should(entry, named, others):
    assert left_out([entry], *named, None) == [True] * len(named) + [False]
    assert left_out([entry], *others, None) == [False] * (len(others) + 1)


def test_ids_name_rows_and_nulls_are_never_named():
    table = pa.concat_tables([table_of((7, "http://a.example/"), (None, None)), table_of((0, None), (2**63 - 1, None))])
    assert parse_exclusion(["7", str(2**63 - 1), "-1"]).mask(table).tolist() == [True, False, False, True]
    assert parse_exclusion(["0"]).mask(table).tolist() == [False, False, True, False]
    assert parse_exclusion(["a.example"]).mask(table).tolist() == [True, False, False, False]
    for lines in ([], ["7"], ["a.example"]):
        assert parse_exclusion(lines).mask(table.slice(4)).tolist() == []


labels = st.text("ab-_", min_size=1, max_size=2)
hosts = st.lists(labels, min_size=1, max_size=3).map(lambda names: ".".join([*names, "example"]))
urls = st.builds(
    "{}://{}{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "ftp"]),
    st.sampled_from(["", "", "user@", "User:pw@"]),
    st.one_of(hosts, hosts.map(str.upper), st.sampled_from(["[::1]", "a.example.", "127.0.0.1", "Bü.example"])),
    st.sampled_from(["", ":80", ":8080"]),
    st.sampled_from(["", "/", "/a@b:c/d.jpg?e=f#g", "?q=http://a.example/", "#x", "/a b", "/ü", "/1,2"]),
)
entries = st.one_of(urls, hosts, hosts.map("*.{}".format), hosts.map("{}:80".format), st.integers(0, 9).map(str))


@settings(max_examples=300)
@given(
    st.lists(entries, max_size=5), st.lists(st.one_of(urls, st.sampled_from([None, "", "x", "http://["])), max_size=8)
)
def test_columns_are_matched_as_single_addresses_are(lines, column):
    exclusion = parse_exclusion(lines)
    expected = [
        row in exclusion.sample_ids or (url is not None and exclusion.names_address(url))
        for row, url in enumerate(column)
    ]
    assert exclusion.mask(table_of(*enumerate(column))).tolist() == expected


@settings(max_examples=300)
@given(urls)
def test_an_address_from_the_data_names_its_row_however_it_is_written_down(url):
    for line in (url, f'"{url}"', f'"{url}",caption', f"{url}  # gone"):
        assert left_out([line], url, "http://other.example/") == [True, False]
    assert left_out(["url,caption", f'"{url}",a cat'], url) == [True]
    if host_of(url):
        assert left_out([host_of(url)], url, "http://else.test/") == [True, False]


def test_hostile_addresses_cost_no_time():
    many = "http://" + "a." * 200_000 + "example/"
    assert left_out(["example.org", "*.b.example"], many, many.upper()) == [False, False]


def test_a_million_entries_are_matched_without_making_a_table_for_each_row_group():
    rng = np.random.default_rng(1)
    ids = np.unique(rng.integers(0, 1 << 53, 1_000_000))
    urls = frozenset(f"http://h{number % 1000}.example/{number}.jpg" for number in range(300_000))
    hosts = frozenset(f"c{number}.example" for number in range(100_000))
    numbers, known = rng.integers(0, 600_000, 3000).tolist(), set(ids.tolist())
    rows = [(int(ids[n]) + n % 2, f"http://h{n % 1000}.example/{n}.jpg") for n in numbers[:1500]]
    rows += [(-1, f"http://b.c{n // 2}.example/") for n in numbers[1500:]]
    expected = [i in known or n < 300_000 for (i, _), n in zip(rows[:1500], numbers, strict=False)]
    expected += [n // 2 < 100_000 for n in numbers[1500:]]
    assert Exclusion("list", ids, urls, hosts).mask(table_of(*rows)).tolist() == expected
    assert 500 < sum(expected) < 2500


def test_equal_lists_are_equal_in_whatever_order_and_travel():
    one = parse_exclusion(["bad.example", SHA, "7", "http://x.example/1"], "one")
    other = parse_exclusion(["7.0", "HTTP://X.example/1", SHA.lower(), "BAD.example."], "other")
    assert one == other
    assert hash(one) == hash(other)
    assert one != parse_exclusion(["7"])
    assert Filters(exclude=one) == Filters(exclude=other)
    assert Filters(exclude=one).as_dict() == Filters(exclude=other).as_dict() == {"exclude": one.digest}
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)
    assert len({one.digest, *(parse_exclusion([line]).digest for line in ("7", SHA, MD5, "*.bad.example"))}) == 5
    assert repr(one) == "Exclusion('one', 1 id, 1 URL, 1 host, 1 hash)"


def test_entries_are_sorted_by_kind():
    assert entry_of("7") == ("sample_ids", 7)
    assert [entry_of(text).kind for text in ("a://b", "a.example", SHA, MD5)] == ["urls", "hosts", "sha256s", "md5s"]
    assert entry_of("?") is None


# What follows runs on the prepared miniature.


def write_list(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def test_what_matched_is_counted_and_the_file_is_read_once(prepared, tmp_path):
    truth = prepared.truth
    chosen = [one for one in truth if one.ok and one.part == 0][:3]
    listed = write_list(tmp_path / "list", chosen[0].sample_id, f'"{chosen[1].url}"', "424242")
    ds = laion_face.load_dataset(
        "20M", split="train", streaming=True, parts="0", data_dir=prepared.data.root, images="none", exclude=listed
    )
    (tmp_path / "list").unlink()  # what has been read is carried along, to other processes too
    gone = {one.sample_id for one in truth if one.sample_id == chosen[0].sample_id or one.url == chosen[1].url}
    seen = {example["sample_id"] for example in ds}
    assert seen == {one.sample_id for one in truth if one.part == 0} - gone
    report = laion_face.report(ds)
    assert report.excluded == report.filtered == sum(one.sample_id in gone and one.part == 0 for one in truth) >= 2
    assert f"({report.excluded} by the exclusion list)" in str(report)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(sorted_ids, (ds,)) == sorted(seen)


def sorted_ids(ds):
    return sorted(example["sample_id"] for example in ds)


def test_a_list_that_changes_while_the_data_are_made_changes_nothing(prepared, tmp_path):
    part = [one.sample_id for one in prepared.truth if one.part == 0]
    listed = write_list(tmp_path / "list", part[0])

    class Edited(laion_face.LaionFace):
        def _split_generators(self, dl_manager):
            write_list(tmp_path / "list", *part[:5])  # someone saves it while pictures are being downloaded
            return super()._split_generators(dl_manager)

    given = {"parts": "0", "images": "none", "exclude": listed, "data_dir": str(prepared.data.root)}
    seen = []
    for _ in range(2):
        builder = Edited(config_name="20M", cache_dir=str(tmp_path / "cache"), **given)
        builder.download_and_prepare()
        seen.append([example["sample_id"] for example in builder.as_dataset(split="train")])
    assert seen == [[one for one in part if one not in gone] for gone in (part[:1], part[:5])]


def test_md5s_name_pictures_by_their_bytes(prepared, tmp_path, caplog):
    victim = next(one for one in prepared.truth if one.ok)
    md5 = hashlib.md5(victim.served, usedforsecurity=False).hexdigest()
    same = {one.sample_id for one in prepared.truth if one.ok and one.served == victim.served}
    listed = write_list(tmp_path / "list", md5.upper())
    which = {"parts": str(victim.part), "exclude": listed, "data_dir": prepared.data.root}
    ds = laion_face.load_dataset("20M", split="train", streaming=True, **which)
    assert same.isdisjoint(example["sample_id"] for example in ds)
    assert laion_face.report(ds).failed["excluded"] == len(same)
    assert laion_face.report(ds).excluded == 0


def test_stats_say_how_many_rows_a_list_names(prepared, tmp_path, capsys):
    truth = [one for one in prepared.truth if one.part in (0, 2)]
    listed = write_list(tmp_path / "list", *(one.sample_id for one in truth[:5]))
    options = Options.of("20M", OptionFields(parts="0,2", exclude=listed, min_faces=99), prepared.data.root)
    counted = count(options)
    assert counted.total.excluded == sum(one.sample_id in {t.sample_id for t in truth[:5]} for one in truth)
    command = ["stats", "20M", "--parts", "0,2", "--data-dir", str(prepared.data.root), "--exclude", listed]
    assert cli.main([*command, "--out", str(tmp_path / "stats.html")]) == 0
    assert f"{'on the exclusion list':28}{counted.total.excluded:>15,}" in capsys.readouterr().out
    assert f" {counted.total.excluded} are on the exclusion list." in (tmp_path / "stats.html").read_text()
    write_list(tmp_path / "list", "5", "not a host")
    assert cli.main(command) == 1
    assert capsys.readouterr().err.startswith(
        f"laion-face: error: {listed}:2: found 'not a host', expected a sample id"
    )
