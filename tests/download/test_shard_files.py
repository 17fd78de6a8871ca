"""The tar of a shard is webdataset's own, byte for byte, and says truly where its pictures lie."""

import io
import json
import tarfile

import webdataset  # type: ignore[import-untyped,unused-ignore]  # it has no types of its own
from hypothesis import given
from hypothesis import strategies as st

from laion_face_builder.download.shard_files import ShardTar, read_members

SECONDS = 1_700_000_000
SAMPLES = st.lists(
    st.tuples(
        st.binary(max_size=3000),
        st.dictionaries(st.text(max_size=8), st.none() | st.text(max_size=40) | st.integers() | st.booleans()),
        st.none() | st.text(max_size=1200),
    ),
    max_size=12,
)


def written(path, samples):
    tar = ShardTar(path, "jpg", SECONDS)
    places = [tar.write(f"{number:09d}", *sample) for number, sample in enumerate(samples)]
    tar.finish()
    return places


@given(samples=SAMPLES)
def test_it_is_what_webdataset_writes(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    written(path, samples)
    theirs = io.BytesIO()
    with webdataset.TarWriter(theirs, mtime=SECONDS) as writer:
        for number, (picture, values, caption) in enumerate(samples):
            document = json.dumps(values)
            writer.write({"__key__": f"{number:09d}", "jpg": picture, "json": document, "txt": caption or ""})
    assert path.read_bytes() == theirs.getvalue()


@given(samples=SAMPLES)
def test_pictures_lie_where_it_says(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    places = written(path, samples)
    assert [member for member in read_members(path) if member.extension == "jpg"] == places
    data = path.read_bytes()
    assert [data[place.offset : place.offset + place.length] for place in places] == [one[0] for one in samples]
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 3 * len(samples)
