"""Loading prepares, iterating only reads: what has gone by then is an error that names the command."""

import multiprocessing
import pickle
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import laion_face
from laion_face_builder import cli
from laion_face_builder.cli import arguments, commands
from laion_face_builder.errors import NotPrepared, SourceNotFound
from laion_face_builder.examples.parts import command
from laion_face_builder.options import OptionFields, Options
from laion_face_builder.sandbox import SandboxSpec
from tests.support.streams import ids_of


@pytest.fixture
def box(make_sandbox):
    """Make a small upstream with parts 0 and 2, of which nothing is prepared."""
    return make_sandbox(SandboxSpec(parts=(0, 2), rows=60, twisted=0))


@pytest.fixture
def load(box, tmp_path):
    """Give what streams both of its parts, prepared in tmp_path/data."""

    def loaded(**options):
        given = {"parts": "0,2", "images": "none", "source_repo": box.repo, "metadata": box.metadata_repo}
        given |= {"data_dir": str(tmp_path / "data"), "split": "train", "streaming": True, **options}
        return laion_face.load_dataset("20M", **given)

    return loaded


def command_in(error):
    """Return the words of the command that a message names."""
    return shlex.split(re.search(r"`laion-face (.*?)`", str(error))[1])


def test_loading_prepares_every_part_and_iterating_asks_nobody(box, load, tmp_path, caplog):
    caplog.set_level("INFO", "laion_face")
    ds = load()
    for part in (0, 2):
        assert (tmp_path / "data" / "index" / f"part-{part:05d}.parquet").exists()
    assert re.search(r"parts 0, 2: .* to download; .* free at", caplog.text)
    asked = len(box.hub.log)
    assert ids_of(ds) == [truth.sample_id for truth in box.truth]
    assert ids_of(load()) == ids_of(ds)
    assert len(box.hub.log) == asked


def test_a_published_index_that_lacks_a_part_is_refused_before_the_first_row(load, tmp_path):
    load(parts="0")
    with pytest.raises(SourceNotFound, match=r"with parts 0; expected one part-00002.* Ask with parts= for those"):
        load(index=str(tmp_path / "data"))


@pytest.mark.parametrize("option", ["index", "metadata", "source_repo"])
@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_wrong_with_a_source_is_not_taken_for_a_disk(load, box, tmp_path, option, streaming):
    typo = f"{box.repo}-typo"
    # Addresses on the Hub have the very word that datasets' cache is called by.
    with pytest.raises(SourceNotFound, match=rf"^Hub dataset {typo}: there is no such repo"):
        load(**{option: typo, "streaming": streaming, "cache_dir": str(tmp_path / "datasets")})


def test_making_a_builder_touches_nothing(box, tmp_path):
    builder = laion_face.LaionFace(
        config_name="20M", parts="0", images="none", source_repo=box.repo, metadata=box.metadata_repo,
        data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "arrow"),
    )  # fmt: skip
    asked = len(box.hub.log)
    assert not (tmp_path / "data").exists()
    assert len(box.hub.log) == asked
    rows = [truth.sample_id for truth in box.truth_of(0)]
    assert ids_of(builder.as_streaming_dataset(split="train")) == rows
    shutil.rmtree(tmp_path / "data")
    builder.download_and_prepare()
    assert ids_of(builder.as_dataset(split="train")) == rows


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"split": "test"}, ValueError),  # datasets' own
        ({"images": "auto", "resize_mode": "border"}, NotPrepared),
        ({"images": "auto", "streaming": False}, NotPrepared),
    ],
)
def test_what_cannot_be_given_is_refused_before_anything_is_prepared(box, load, tmp_path, options, error):
    asked = len(box.hub.log)
    with pytest.raises(error):
        load(**options)
    assert not (tmp_path / "data").exists()
    assert len(box.hub.log) == asked


def test_a_folder_without_one_of_the_parts_is_refused_before_anything_is_prepared(box, load, prepared, tmp_path):
    shutil.copytree(prepared.data.tars(0), tmp_path / "theirs" / "split_00000")
    with pytest.raises(NotPrepared, match="no pictures of part 2"):
        load(images=str(tmp_path / "theirs"))
    assert not (tmp_path / "data").exists()


def test_what_has_gone_since_is_an_error_with_the_command_and_the_command_helps(box, load, tmp_path):
    ds = load()
    rows = ids_of(ds)
    travelled = pickle.dumps(ds)
    (tmp_path / "data").rename(tmp_path / "moved")
    asked = len(box.hub.log)
    for dataset in (ds, ds.map(dict), pickle.loads(travelled)):
        with pytest.raises(NotPrepared, match=r"no index of parts 0,2\. Run `laion-face prepare") as caught:
            next(iter(dataset))
    assert len(box.hub.log) == asked
    assert not (tmp_path / "data").exists()
    expected = ["prepare", "20M", "--parts", "0,2", "--data-dir", str(tmp_path / "data")]
    expected += ["--source-repo", box.repo, "--metadata", box.metadata_repo]
    assert command_in(caught.value) == expected
    assert cli.main(expected) == 0
    assert ids_of(pickle.loads(travelled)) == rows


def test_only_the_parts_that_are_missing_are_named(load, tmp_path):
    ds = load()
    (tmp_path / "data" / "index" / "part-00002.parquet").unlink()
    with pytest.raises(NotPrepared, match=r"prepare 20M --parts 2 "):
        list(ds)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_prepares_nothing(box, load, tmp_path, context):
    ds = load()
    shutil.rmtree(tmp_path / "data")
    # One alone: a second that is still being spawned when the first has failed complains that its parent has gone on.
    loader = DataLoader(ds, batch_size=None, num_workers=1, multiprocessing_context=context)
    asked = len(box.hub.log)
    with pytest.raises(NotPrepared, match="laion-face prepare 20M --parts 0,2 "):
        next(iter(loader))
    assert len(box.hub.log) == asked
    assert not (tmp_path / "data").exists()


def test_pictures_are_downloaded_when_a_stream_is_loaded(box, load, tmp_path, caplog):
    caplog.set_level("INFO", "laion_face")
    given = {"parts": "0", "images": "download", "allow_private_hosts": True, "retries": 0, "min_faces": 1}
    ds = load(**given)
    assert re.search(r"parts 0: pictures to download, about .* free at", caplog.text)
    wanted = [truth.sample_id for truth in box.truth_of(0) if truth.ok and truth.faces]
    asked = len(box.hub.log), len(box.pictures.log)
    assert ids_of(ds) == ids_of(load(**given)) == wanted
    (tmp_path / "data" / "images" / "part-00000.parquet").unlink()
    with pytest.raises(NotPrepared, match=r"no pictures of parts 0\. Run") as caught:
        next(iter(ds))
    words = command_in(caught.value)
    assert words[:4] == ["download", "20M", "--parts", "0"]
    assert {"--allow-private-hosts", "--min-faces", "--retries"} <= {*words}
    assert cli.main(words) == 0  # the same download: nothing is fetched again, and nothing refused
    assert ids_of(ds) == wanted
    assert (len(box.hub.log), len(box.pictures.log)) == asked


@pytest.mark.parametrize(("images", "named"), [("none", "prepare"), ("download", "download")])
def test_ranks_are_told_to_make_it_once(box, load, monkeypatch, images, named):
    if images == "download":
        load()
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = len(box.hub.log)
    with pytest.raises(NotPrepared, match=rf"WORLD_SIZE is 2 .*`laion-face {named} 20M --parts 0,2 .*` once"):
        load(images=images)
    assert len(box.hub.log) == asked


@pytest.fixture
def theirs(prepared, tmp_path):
    """Make a folder of the original scripts with both parts; give what loads it over an index that lies elsewhere."""
    for part in (0, 2):
        shutil.copytree(prepared.data.tars(part), tmp_path / "theirs" / f"split_{part:05d}")

    def load():
        return laion_face.load_dataset(
            "20M",
            parts="0,2",
            images=str(tmp_path / "theirs"),
            index=str(prepared.data.root),
            data_dir=str(tmp_path / "data"),
            split="train",
            streaming=True,
        )

    return load


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_folder_is_looked_through_when_it_is_loaded(prepared, theirs, tmp_path):
    ds = theirs()
    made = files_in(tmp_path / "data")
    assert sum(path.name in ("part-00000.parquet", "part-00002.parquet") for path in made) == 2
    assert ids_of(ds) == [truth.sample_id for truth in prepared.truth if truth.ok]
    loader = DataLoader(ds, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert ids_of(loader) == ids_of(ds)
    theirs()
    assert files_in(tmp_path / "data") == made


def test_a_tar_that_vanishes_then_is_a_status_and_nothing_is_looked_through_again(prepared, theirs, tmp_path):
    ds = theirs()
    made = files_in(tmp_path / "data")
    for tar in (tmp_path / "theirs" / "split_00000").glob("*.tar"):
        tar.unlink()
    assert ids_of(ds) == [truth.sample_id for truth in prepared.truth if truth.ok and truth.part == 2]
    lost = sum(truth.ok and truth.part == 0 for truth in prepared.truth)
    assert laion_face.report(ds).failed["tar_missing"] == lost
    assert files_in(tmp_path / "data") == made


@pytest.mark.parametrize(("gone", "said"), [("data", "Load the dataset again"), ("theirs", "no pictures of part 0")])
def test_a_folder_that_is_not_known_here_is_an_error(theirs, tmp_path, gone, said):
    ds = theirs()
    shutil.rmtree(tmp_path / gone)
    with pytest.raises(NotPrepared, match=said):
        next(iter(ds))
    assert not (tmp_path / gone).exists()


_CHILD = """
import sys, laion_face
ds = laion_face.load_dataset("20M", parts="0,2", data_dir=sys.argv[1], images=sys.argv[2], split="train",
                             streaming=True, source_repo="nobody/has-this")
next(iter(ds.decode(False)))
heavy = "img2dataset", "laion_face_builder.index.prepare", "laion_face_builder.download.part"
print([name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize("images", ["none", "auto"])
def test_nothing_that_makes_is_imported_where_nothing_is_missing(prepared, images):
    child = [sys.executable, "-c", _CHILD, str(prepared.data.root), images]
    done = subprocess.run(child, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def _iterated(dataset, queue):
    try:
        queue.put(ids_of(dataset))
    except NotPrepared as error:
        queue.put(str(error))


def test_a_dataset_that_travelled_reads_where_the_parts_are(box, load, tmp_path):
    ds = load()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for expected in ("rows", "error"):
        worker = context.Process(target=_iterated, args=(ds, queue))
        worker.start()
        found = queue.get(timeout=120)
        worker.join()
        if expected == "rows":
            assert found == [truth.sample_id for truth in box.truth]
            shutil.rmtree(tmp_path / "data")
    assert "laion-face prepare 20M --parts 0,2" in found


numbers = st.floats(0, 1, allow_nan=False)
fields = st.fixed_dictionaries(
    {},
    optional={
        "source_repo": st.sampled_from(["me/mirror", "FacePerceiver/laion-face"]),
        "source_revision": st.sampled_from(["main", "v 1"]),
        "metadata": st.sampled_from(["/a folder/of mine", "https://host/meta data/"]),
        "min_score": numbers,
        "min_faces": st.integers(0, 9),
        "min_similarity": numbers,
        "nsfw": st.sampled_from(["UNLIKELY", ["UNSURE", "UNLIKELY"]]),
        "resize_mode": st.sampled_from(["no", "border", "keep_ratio"]),
        "image_size": st.integers(1, 999),
        "resize_only_if_bigger": st.booleans(),
        "blur_faces": st.booleans(),
        "timeout": st.floats(0.5, 99),
        "retries": st.integers(0, 5),
        "concurrency": st.integers(1, 500),
        "user_agent_token": st.sampled_from(["mine", 'it\'s "odd"']),
        "trust_proxy": st.booleans(),
    },
)


@given(fields, st.sampled_from(["prepare", "download"]))
def test_the_command_means_just_what_the_dataset_does(given_fields, name):
    options = Options.of("20M", OptionFields(**given_fields, parts="0,2,5"), "/data dir/'here'")
    words = shlex.split(command(name, options, [2, 5]))
    assert words[:2] == ["laion-face", name]
    typed = commands.options_of(arguments.make_parser().parse_args(words[1:]))
    assert (typed.parts, typed.data, typed.upstream) == ((2, 5), options.data, options.upstream)
    if name == "download":
        same = ("filters", "resizing", "blur_faces", "fetch")
        assert [getattr(typed, one) for one in same] == [getattr(options, one) for one in same]


def test_no_token_is_in_the_command():
    options = Options.of("20M", OptionFields(), "/data", "hf_secret")
    assert command("prepare", options, [0]) == "laion-face prepare 20M --parts 0 --data-dir /data"
