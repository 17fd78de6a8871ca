"""What was taken down, as hashes: it names what the list named, says none of it, and is remembered as it was."""

import copy
import json
import pickle
import shutil

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import BadFile, StateConflict
from laion_face_builder.index.exclusion import parse_exclusion
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.removals import Removal, Removals, noted, settled
from laion_face_builder.index.removed import Removed, hashes_of_ids
from laion_face_builder.layout import DataDir

HOSTS = ["a.example", "b.a.example", "c.b.a.example", "xa.example", "A.example", "bücher.example", "[::1]", "127.0.0.1"]
PORTS = ["", ":80", ":8080", ":443"]
urls = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "ftp"]),
    st.sampled_from(HOSTS),
    st.sampled_from(PORTS),
    st.sampled_from(["", "/", "/a.jpg", "/a,b.jpg", "/a.jpg?x=1#y", "/ü.jpg", "/%C3%BC.jpg"]),
)
ids = st.integers(-3, 8)
entries = st.one_of(
    ids.map(str),
    urls,
    st.builds("{}{}{}".format, st.sampled_from(["", "*."]), st.sampled_from(HOSTS[:5]), st.sampled_from(PORTS)),
    st.sampled_from(["ab" * 32, "cd" * 32, "0f" * 16]),
)
lists = st.lists(entries, max_size=6)
rows = st.lists(st.tuples(st.none() | ids, st.none() | urls | st.text(max_size=5)), max_size=12)


def table_of(found):
    columns = {"sample_id": pa.array([row[0] for row in found], pa.int64())}
    return pa.table({**columns, "url": pa.array([row[1] for row in found], pa.string())})


@given(lists, rows)
def test_hashes_name_the_rows_that_the_list_names(lines, found):
    listed, table = parse_exclusion(lines), table_of(found)
    assert Removed.of(listed).mask(table).tolist() == listed.mask(table).tolist()
    nameless = table.drop_columns(["url"])
    assert Removed.of(listed).mask(nameless).tolist() == listed.mask(nameless).tolist()


@settings(max_examples=50)
@given(lists, st.binary(max_size=4))
def test_hashes_name_the_pictures_that_the_list_names(lines, data):
    listed = parse_exclusion(lines)
    removed = Removed.of(listed)
    for known in ([], ["ab" * 32], ["ef" * 32, "cd" * 32], ["AB" * 32]):
        assert removed.names_picture(data, known) == listed.names_picture(data, [sha.lower() for sha in known])


@settings(max_examples=50)
@given(lists, lists)
def test_hashes_are_joined_and_told_apart_as_lists_are(one, other):
    first, second = (Removed.of(parse_exclusion(lines)) for lines in (one, other))
    both = Removed.of(parse_exclusion([*one, *other]))
    assert first | second == both
    assert not first - both
    for same in (pickle.loads(pickle.dumps(both)), copy.deepcopy(both), Removed.from_dict(both.as_dict())):
        assert (same, hash(same), str(same)) == (both, hash(both), str(both))


@settings(max_examples=20)
@given(st.lists(st.tuples(lists, st.text(max_size=5), st.dictionaries(st.integers(0, 31), st.sets(ids))), max_size=3))
def test_the_notes_come_back_as_they_were_written(tmp_path_factory, removals):
    data = DataDir.at(tmp_path_factory.mktemp("notes"))
    made = Removals()
    for lines, reason, found in removals:
        made = made.begun(Removal("2026-11-26", reason, Removed.of(parse_exclusion(lines))))
        for part, numbers in found.items():
            made = made.with_found(part, hashes_of_ids(numbers))
    made.write(data)
    read = removals_in_a_copy_of(data)
    assert read == made == Removals.of(data)
    assert read.removed == made.removed


def removals_in_a_copy_of(data):
    """Read what stands in the file: of the file itself it is known what was written to it last."""
    folder = data.root / "copy"
    folder.mkdir(exist_ok=True)
    shutil.copy(data.removed, folder)
    return Removals.of(DataDir.at(folder))


def test_notes_of_many_parts_are_written_at_once_and_not_read_again_until_somebody_else_writes(tmp_path):
    data = DataDir.at(tmp_path)
    Removals().begun(Removal("2026-11-26", "", Removed.of(parse_exclusion(["1"])))).write(data)
    before, file = Removals.of(data), data.removed.stat().st_ino
    held = data.removed.open()  # so that no new file gets the number of the old one
    noted(data, {part: hashes_of_ids([part]) for part in range(32)})
    now = Removals.of(data)
    assert (now is before, now is Removals.of(data), data.removed.stat().st_ino != file) == (False, True, True)
    assert now.removed.sample_ids == hashes_of_ids(range(32))
    assert (
        len(data.removed.read_text().splitlines()) == 3
    )  # a removal a line: indented text is written ten times slower
    noted(data, {part: hashes_of_ids([part]) for part in range(32)})
    assert Removals.of(data) is now
    held.close()
    data.removed.write_text(data.removed.read_text().replace("2026-11-26", "2026-11-2"))
    assert [removal.date for removal in Removals.of(data).done] == ["2026-11-2"]


def test_the_notes_say_nothing_of_what_was_listed(tmp_path):
    data = DataDir.at(tmp_path)
    lines = ["4711", "http://a.example/secret.jpg", "hidden.example", "ab" * 32]
    Removals().begun(Removal("2026-11-26", "asked for", Removed.of(parse_exclusion(lines)))).write(data)
    noted(data, {3: hashes_of_ids([815])})
    said = data.removed.read_text()
    assert not [word for word in (*lines, "secret", "hidden", "815") if word in said]
    assert Removals.of(data).found_in(3) == hashes_of_ids([815])
    assert Removals.of(data).found_in(2) == frozenset()


def test_a_part_is_stamped_with_what_is_gone_from_it_whatever_named_it(tmp_path):
    data = DataDir.at(tmp_path)
    first = Removals().begun(Removal("2026-11-26", "", Removed.of(parse_exclusion(["1", "2"]))))
    at_once = first.with_found(0, hashes_of_ids([1, 2]))
    one_by_one = first.with_found(0, hashes_of_ids([2]))
    one_by_one = one_by_one.begun(Removal("2027-01-01", "", Removed())).with_found(0, hashes_of_ids([1]))
    assert at_once.stamp(0) == one_by_one.stamp(0) != {}
    assert at_once.stamp(1) == {}
    at_once.write(data)
    with pytest.raises(StateConflict, match="not finished"):
        settled(data)
    at_once.finished().write(data)
    assert settled(data).removed == at_once.removed


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "removals": []}', '{"format": 1, "removals": [{}]}', '{"format": 1}', "\xff"],
)
def test_notes_that_are_none_are_refused_rather_than_passed_over(tmp_path, text):
    data = DataDir.at(tmp_path)
    data.removed.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadFile, match=r"removed\.json.*would come back"):
        settled(data)


def test_filters_are_the_same_as_ever_where_no_rows_are_removed():
    pictures, everything = (Removed.of(parse_exclusion(lines)) for lines in (["ab" * 32], ["ab" * 32, "1"]))
    assert Filters(removed=pictures).as_dict() == Filters().as_dict() == {}
    assert Filters(removed=pictures).is_empty
    assert Filters(removed=everything).as_dict() == {"removed": everything.digest}
    assert json.dumps(Filters(min_faces=1, removed=pictures).as_dict()) == json.dumps(Filters(min_faces=1).as_dict())
