"""Lists to keep, lists in columns of files and on the standard input, and filters by caption, from end to end."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import laion_face
from laion_face_builder.cli import main
from laion_face_builder.errors import BadFile, OptionError
from laion_face_builder.index.exclusion import parse_exclusion
from laion_face_builder.index.listed_column import read_column
from laion_face_builder.options import OptionFields, Options
from tests.support.streams import ids_of


@pytest.fixture
def of_part_0(prepared):
    """Give what opens part 0 with further options."""

    def opened(**options):
        how = {"parts": "0", "images": "none", "split": "train", "streaming": True, **options}
        return laion_face.load_dataset("20M", data_dir=str(prepared.data.root), **how)

    return opened


@pytest.mark.parametrize(
    ("table", "same"),
    [
        ({"sample_id": pa.array([3, 1, 3])}, ["3", "1"]),
        ({"x": ["?"], "SAMPLE_ID": pa.array([5.0])}, ["5"]),
        ({"url": ["http://a.example/1"], "caption": ["x"]}, ["http://a.example/1"]),
        ({"host": ["*.a.example", "b.example:80"]}, ["*.a.example", "b.example:80"]),
        ({"sha256": pa.array(["AB" * 32]).dictionary_encode()}, ["ab" * 32]),
        # An id says more than an address: of several columns that of ids counts.
        ({"url": ["http://a.example/1"], "sample_id": ["17"]}, ["17"]),
        ({"sample_id": pa.array([], pa.int64())}, []),
    ],
)
def test_a_column_means_what_the_lines_mean(table, same, tmp_path):
    pq.write_table(pa.table(table), tmp_path / "l.parquet")
    assert read_column(str(tmp_path / "l.parquet"), "include") == parse_exclusion(same)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"caption": ["x"]}, "found the columns caption, expected Parquet with a column sample_id"),
        ({"sample_id": pa.array([1, None])}, "a null in column sample_id"),
        ({"url": ["not an address"]}, "'not an address' in column url"),
        ({"sample_id": [1.5]}, "sample id 1.5"),
    ],
)
def test_a_column_that_is_no_list_says_why(table, said, tmp_path):
    pq.write_table(pa.table(table), tmp_path / "l.parquet")
    with pytest.raises(BadFile, match=said):
        read_column(str(tmp_path / "l.parquet"), "exclude")
    (tmp_path / "l.parquet").write_bytes(b"no Parquet")
    with pytest.raises(BadFile):
        read_column(str(tmp_path / "l.parquet"), "exclude")


@pytest.mark.parametrize(
    ("lines", "same"),
    [
        (["caption,url", '"two, three",http://a.example/1'], ["http://a.example/1"]),
        (["url,SAMPLE_ID,x", "http://a.example/1,4,y"], ["http://a.example/1"]),
        (["x,sample_id,url", "y,4,http://a.example/1"], ["4"]),
        # A first line that is an entry is no header, whatever follows it.
        (["5,url", "6,why"], ["5", "6"]),
    ],
)
def test_a_csv_file_goes_by_the_column_that_its_header_names(lines, same):
    assert parse_exclusion(lines) == parse_exclusion(same)
    with pytest.raises(BadFile, match=":2: found"):
        parse_exclusion(["x,sample_id", "only one field"])


def test_include_keeps_what_it_names_and_nothing_else(of_part_0, prepared, tmp_path):
    truth = prepared.sandbox.truth_of(0)
    some = [one.sample_id for one in truth][5::7]
    pq.write_table(pa.table({"sample_id": some[::-1]}), tmp_path / "l.parquet")
    ds = of_part_0(include=tmp_path / "l.parquet")
    assert ids_of(ds) == some
    assert laion_face.report(ds).filtered == len(truth) - len(some)
    assert ids_of(of_part_0(include=some, exclude=some[:3])) == some[3:]


def test_include_by_the_bytes_of_a_picture(of_part_0, prepared):
    rows = pq.read_table(prepared.data.sidecar(0), columns=["sample_id", "status", "sha256"]).to_pylist()
    there = [row for row in rows if row["status"] == "ok"]
    chosen, by_id = there[4], there[9]
    ds = of_part_0(include=[chosen["sha256"], by_id["sample_id"]], images="auto")
    same = [row["sample_id"] for row in there if row["sha256"] == chosen["sha256"] or row is by_id]
    assert ids_of(ds) == same
    assert laion_face.report(ds).failed["not_included"] == len(there) - len(same)


def test_a_list_on_the_standard_input(prepared, tmp_path, monkeypatch, capsys):
    some = [one.sample_id for one in prepared.sandbox.truth_of(0)][::3]
    told = ["stats", "20M", "--parts", "0", "--data-dir", str(prepared.data.root), "--out", str(tmp_path / "s.html")]
    for option, kept in (("--include", len(some)), ("--exclude", len(prepared.sandbox.truth_of(0)) - len(some))):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(str, some))))
        assert main([*told, option, "-"]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("samples"))
        assert line.split()[2] == f"{kept:,}"
    monkeypatch.setattr("sys.stdin", io.StringIO("1"))
    assert main([*told, "--include", "-", "--exclude", "-"]) != 0
    assert "the standard input is one list" in capsys.readouterr().err


def test_captions_decide_before_anything_is_fetched_and_stats_tells_each_filter(of_part_0, prepared, tmp_path, capsys):
    captions = {one["sample_id"]: one["caption"] for one in of_part_0()}
    words = {one: len(caption.split()) for one, caption in captions.items() if caption is not None}
    most = sorted(words.values())[len(words) // 2]
    assert ids_of(of_part_0(min_caption_words=most)) == [one for one, count in words.items() if count >= most]
    with_a = [one for one, caption in captions.items() if caption is not None and "a" in caption.lower()]
    assert 0 < len(with_a) < len(captions)
    assert ids_of(of_part_0(caption_matches="(?i)a")) == with_a
    assert ids_of(of_part_0(caption_excludes="(?i)a")) == [one for one in words if one not in with_a]
    told = ["stats", "20M", "--parts", "0", "--data-dir", str(prepared.data.root), "--out", str(tmp_path / "s.html")]
    assert main([*told, "--caption-matches", "(?i)a", "--min-caption-words", str(most), "--min-faces", "99"]) == 0
    out = capsys.readouterr().out
    for name, dropped in (
        ("caption_matches", len(captions) - len(with_a)),
        ("min_caption_words", len(captions) - sum(count >= most for count in words.values())),
        ("faces", len(captions)),
    ):
        assert f"  {name:26}{dropped:>15,}" in out


@pytest.mark.parametrize("option", ["caption_matches", "caption_excludes"])
@pytest.mark.parametrize("pattern", ["(", "a(?=b)", r"\1", "x{2000}", "", 5])
def test_a_pattern_that_is_none_is_one_clear_error(option, pattern):
    with pytest.raises(OptionError, match="regular expression") as caught:
        Options.of("20M", OptionFields(**{option: pattern}))
    assert str(caught.value).startswith(f"{option}=")
    assert "\n" not in str(caught.value)
