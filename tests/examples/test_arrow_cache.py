"""The Arrow cache: named by what defines the data, whole or not there, and never what a lost network left over."""

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from datasets.exceptions import DatasetGenerationError
from hypothesis import given
from hypothesis import strategies as st

import laion_face
from laion_face_builder import options as options_module
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.download.part import download_part
from laion_face_builder.errors import NotPrepared, SourceError
from laion_face_builder.examples import report
from laion_face_builder.examples.loading import config_id
from laion_face_builder.examples.report import REPORT_FILE
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.options import ALWAYS, DEFINES, FETCHED, NEVER, READ, OptionFields, Options, option_names
from laion_face_builder.sandbox import PictureHost, SandboxSpec, make_content, write_upstream
from laion_face_builder.sources.sources import Upstream
from tests.house.test_versions import PYTHON_36
from tests.support.nested import but
from tests.support.waiting import wait_until

# The rule.


def a_web(seed, count, silent=0.25, gone=0.1):
    """Yield `count` hosts with how they fail: a share is `silent`, and of the others a share has the picture `gone`."""
    rng = random.Random(seed)
    for number in range(count):
        if rng.random() < silent:
            yield f"dead-{rng.randrange(count)}", rng.choice(sorted(report.SILENT))
        else:
            yield f"host-{number}", "http_404" if rng.random() < gone else None


SILENT_ROW = [(f"off-{number}", "dns") for number in range(60)]
ONE_BY_ONE = [pair for number in range(500) for pair in ((f"a-{number}", None), (f"b-{number}", "timeout"))]


@pytest.mark.parametrize(
    ("asked", "is_lost"),
    [
        pytest.param([*a_web(0, 20_000), *SILENT_ROW], True, id="away at the end"),
        pytest.param([*a_web(0, 9000), *SILENT_ROW, *a_web(1, 9000)], True, id="away for a while"),
        pytest.param([*a_web(0, 60), *SILENT_ROW[:15]], True, id="away at the end of a short run"),
        pytest.param([("one", None)] * 300 + [("one", "refused")] * 300, True, id="the one host there is falls silent"),
        pytest.param(SILENT_ROW[:12], True, id="never there"),
        pytest.param([("host", "http_511")] + [(f"h-{n}", "http_511") for n in range(300)], True, id="a sign-in page"),
        pytest.param(
            [("one", None)] * 300 + [("dead", "dns")] * 300, False, id="one dead host, many pictures in a row"
        ),
        pytest.param(ONE_BY_ONE, False, id="every second host dead"),
        pytest.param([(f"h-{n}", "http_404") for n in range(900)], False, id="everything gone, but answered for"),
        pytest.param(SILENT_ROW[:9], False, id="too few to tell"),
        pytest.param([], False, id="nothing asked for"),
    ],
)
def test_a_lost_network_is_told_from_dead_hosts(asked, is_lost):
    assert report.is_outage(asked) is is_lost


@pytest.mark.parametrize("seed", range(20))
def test_a_rotten_web_is_no_lost_network(seed):
    assert not report.is_outage(a_web(seed, 20_000, silent=0.4, gone=0.3))
    assert not any(report.is_outage(a_web(f"{seed}/{short}", short)) for short in range(10, 300, 10))


@given(st.integers(0, 2000), st.integers(0, 10_000), st.integers(1, 256), st.randoms(use_true_random=False))
def test_an_outage_is_seen_from_whenever_it_begins(before, seed, in_flight, rng):
    # Pictures that are in flight when an outage begins come in any order.
    away = max(4 * in_flight, before // 5, 30)
    asked = [*a_web(seed, before), *((f"off-{number}", "unreachable") for number in range(away))]
    middle = asked[max(0, before - in_flight) : before + in_flight]
    rng.shuffle(middle)
    asked[max(0, before - in_flight) : before + in_flight] = middle
    assert report.is_outage(asked)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, "http_404", "not_an_image", "tls"]))))
def test_hosts_that_are_dead_throughout_are_few_however_often_they_come(asked):
    dead = [(host if reason != "tls" else f"dead-{host}", reason) for host, reason in asked]
    assert not report.is_outage(dead)


def test_what_is_remembered_is_bounded():
    listener = report.Listener()
    for number in range(3 * report._REMEMBERED):
        listener.answered(f"a-{number}")
        listener.silent(f"b-{number}")
    assert len(listener._answered) <= report._REMEMBERED
    assert len(listener._silent) < 10


# What an id is made of.

#: Other values than the default, of options that are no numbers.
OTHER = {
    "source_repo": "someone/else", "source_revision": "v2", "metadata": "some/where", "index": "some/index",
    "parts": "0", "nsfw": "UNLIKELY", "images": "none", "on_error": "null", "on_size_change": "drop", "mode": "L",
    "resize_mode": "border", "order": "arrival", "cache_images": "kept", "user_agent_token": "me", "join": "some/table",
    "contact": "me@example.org", "respect": "robots",
    "join_how": "inner", "keep_faces": "largest", "caption_matches": "smil", "caption_excludes": "logo",
}  # fmt: skip
#: What these two need to mean anything.
BESIDES = {"image_size": {"resize_mode": "border"}, "resize_only_if_bigger": {"resize_mode": "border"}}


def another(name):
    """Return another value than the default: a number in the option's range, or what OTHER has."""
    (spec,) = (spec for spec in dataclasses.fields(OptionFields) if spec.name == name)
    kind, valid = spec.metadata["kind"], spec.metadata["valid"]
    if valid is not None:
        return kind(min(valid.least + 2, (valid.least + valid.most) / 2))
    return not spec.default if kind is bool else OTHER[name]


def named(**given):
    return config_id(Options.of("20M", OptionFields(**given)))


def test_every_option_is_classified_with_a_reason():
    # A new option has to say in `options.DEFINES` when it is part of a cache's id, and why.
    assert set(DEFINES) == set(option_names())
    assert {when for when, _ in DEFINES.values()} <= {ALWAYS, FETCHED, READ, NEVER}
    assert all(reason for _, reason in DEFINES.values())


@pytest.mark.parametrize("images", ["auto", "download", "none", "fetch", "folder"])
@pytest.mark.parametrize("name", option_names())
def test_an_option_is_part_of_the_id_as_its_class_says(name, images, tmp_path):
    (tmp_path / "list").write_text("http://host.example/a.jpg\n")
    value = str(tmp_path / "list") if name in ("include", "exclude") else another(name)
    if (name.startswith("resize") or name == "image_size") and images == "fetch":
        value, besides = getattr(OptionFields, name), {}  # refused otherwise: what is fetched keeps its size
    else:
        besides = BESIDES.get(name, {})
    before = {"images": str(tmp_path) if images == "folder" else images, **besides}
    defines = DEFINES[name][0] == ALWAYS or (DEFINES[name][0] == FETCHED and images == "fetch")
    is_other = value != before.get(name, getattr(OptionFields, name))
    assert (named(**{**before, name: value}) != named(**before)) is (defines and is_other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"parts": "0,2"}, {"parts": [2, 0]}),
        ({"parts": (0, 2)}, {"parts": [0, 2, 2]}),
        ({"nsfw": "unsure, UNLIKELY"}, {"nsfw": ["UNLIKELY", "UNSURE"]}),
        ({"min_face_size": 64}, {"min_face_size": 64.0}),
        ({"images": "fetch", "timeout": 30}, {"images": "fetch", "timeout": 30.0}),
        ({"images": "fetch", "timeout": 5}, {"images": "fetch", "timeout": 5.0}),
        ({"images": "auto"}, {"images": "download"}),
    ],
)
def test_the_same_meaning_is_the_same_id_however_it_is_spelled(one, other):
    assert named(**one) == named(**other)


def test_numpys_numbers_are_numbers():
    import numpy as np

    assert named(min_face_size=np.float32(64), min_faces=np.int64(2)) == named(min_face_size=64, min_faces=2)


def test_ids_of_earlier_versions_stay_good_but_for_what_was_fetched():
    # Ids with tars and without pictures stay; what was fetched used to have one id, whatever the bounds.
    before = {"parts": [0, 2], "filters": {"min_face_size": 64}, "on_error": "skip", "on_size_change": "rescale"}
    for images, kept in (("auto", "stored"), ("none", "none")):
        fields = OptionFields(parts="0,2", min_face_size=64, images=images)
        assert options_module.Options.of("20M", fields).defining() == {**before, "parts": (0, 2), "images": kept}
    assert named(images="fetch") != "20M-" + options_digest({**before, "images": "fetch"})


def options_digest(defining):
    from laion_face_builder.files import digest

    return digest({"options": defining, "read": []})


# The cache itself.


class Host(PictureHost):
    """A picture host that can go away after some requests and come back under its old address."""

    def __init__(self, answers, port=0, stop_after=None):
        self._port, self._left = port, stop_after
        super().__init__(answers)

    def server_bind(self):
        self.server_address = ("127.0.0.1", self._port)
        super().server_bind()

    def server_close(self):
        # Worker processes that were forked meanwhile have this socket too: closed here alone, it would go on listening.
        self.socket.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def answer(self, request):
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                threading.Thread(target=self.stop).start()
        return super().answer(request)


@dataclasses.dataclass(frozen=True)
class World:
    """An index whose pictures lie on one host, and, for a quarter of them, on hosts that are not there."""

    data: Path
    answers: dict
    port: int
    truth: list

    @property
    def ids(self):
        return [truth.sample_id for truth in self.truth if f"127.0.0.1:{self.port}" in truth.url]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with Host({}) as host:
        port = host.server_port
    hosts = [f"http://127.0.0.1:{port}"] * 75 + [f"http://127.0.0.{2 + number}:{port}" for number in range(25)]
    content = make_content(SandboxSpec(parts=(0,), rows=900, failing=0, twisted=0, slow=0), hosts)
    write_upstream(content, folder)
    prepare(DataDir.at(folder / "data"), [0], Upstream(str(folder / "laion-face"), None, folder / "metadata"))
    return World(folder / "data", content.answers, port, list(content.truth))


@pytest.fixture
def load(world, tmp_path):
    """Give `laion_face.load_dataset` of the world, fetched, with an Arrow cache of its own."""

    def loaded(**options):
        given = {
            "parts": "0",
            "images": "fetch",
            "allow_private_hosts": True,
            "retries": 0,
            "data_dir": str(world.data),
        }
        given |= {"split": "train", "cache_dir": str(tmp_path / "arrow"), **options}
        return laion_face.load_dataset("20M", **given)

    return loaded


def caches(tmp_path):
    """Return the folders that datasets would take for finished, or has not finished."""
    found = {path.parent for name in ("dataset_info.json", "*.arrow") for path in (tmp_path / "arrow").rglob(name)}
    return found | set((tmp_path / "arrow").rglob("*.incomplete"))


def ids_of(ds):
    return ds["sample_id"][:]


def test_a_web_with_a_quarter_of_dead_links_is_kept(world, load, tmp_path):
    with Host(world.answers, world.port):
        ds = load()
    assert ids_of(ds) == world.ids
    failed = laion_face.report(ds).failed
    assert len(world.truth) / 8 < failed["refused"] == len(world.truth) - len(world.ids)
    assert len(caches(tmp_path)) == 1
    assert ids_of(load()) == world.ids  # with no host there


@pytest.mark.parametrize("how", [{}, {"on_error": "null"}, {"num_proc": 2}, {"num_proc": 2, "on_error": "null"}])
def test_a_network_lost_on_the_way_leaves_no_cache_and_the_next_run_is_right(world, load, tmp_path, how):
    with pytest.raises(SourceError, match=r"network was lost.*failed \(.*refused \d+.*Nothing .* cached"):
        stopping(world, len(world.ids) // 2, load, concurrency=8, lookahead=16, **how)
    assert not caches(tmp_path)
    with Host(world.answers, world.port):
        ds = load(**how)
    assert [e["sample_id"] for e in ds if e["image"] is not None] == world.ids
    assert len(ds) == len(world.truth if "on_error" in how else world.ids)


def stopping(world, after, load, **options):
    """Load while the host goes away after so many requests."""
    host = Host(world.answers, world.port, stop_after=after).start()
    try:
        return load(**options)
    finally:
        if not host.stopping.is_set():
            host.stop()


def test_the_same_builder_tries_again(world, tmp_path):
    # datasets would hold the next run to what the failed one left in the builder's info.
    builder = laion_face.LaionFace(
        config_name="20M", parts="0", images="fetch", allow_private_hosts=True, retries=0, concurrency=8, lookahead=16,
        data_dir=str(world.data), cache_dir=str(tmp_path / "arrow"),
    )  # fmt: skip
    with pytest.raises(SourceError, match="network was lost"):
        stopping(world, len(world.ids) // 2, builder.download_and_prepare)
    with Host(world.answers, world.port):
        builder.download_and_prepare()
    assert ids_of(builder.as_dataset(split="train")) == world.ids


@pytest.mark.parametrize("how", [{}, {"on_error": "null"}, {"num_proc": 2}])
def test_no_network_at_all_leaves_no_cache_and_the_next_run_is_right(world, load, tmp_path, how):
    count = len(world.truth)
    with pytest.raises(SourceError, match=rf"{count} pictures failed \(refused {count}\)\. Nothing .* cached"):
        load(**how)
    assert not caches(tmp_path)
    with Host(world.answers, world.port):
        assert len(load(**how)) == len(world.truth if "on_error" in how else world.ids)


def test_hosts_that_have_nothing_any_more_are_no_dataset_either(world, load, tmp_path):
    with Host({}, world.port), pytest.raises(SourceError, match=r"all of .*http_404 \d+.*refused"):
        load()
    assert not caches(tmp_path)


def test_all_pictures_of_private_hosts_are_refused_and_the_option_helps(world, load, tmp_path):
    # With one id for both, the second call used to get the empty cache of the first.
    with Host(world.answers, world.port):
        with pytest.raises(SourceError, match=r"private_address .*are reached with allow_private_hosts"):
            load(allow_private_hosts=False)
        assert ids_of(load()) == world.ids
        with pytest.raises(SourceError, match="private_address"):
            load(allow_private_hosts=False)


def test_bounds_that_let_less_through_have_a_cache_of_their_own(world, load):
    with Host(world.answers, world.port):
        limit = sorted(len(truth.served) for truth in world.truth)[len(world.truth) // 2]
        few = load(max_bytes=limit)
        many = load()
    assert 0 < len(few) < len(many) == len(world.ids)
    assert laion_face.report(few).failed["too_large"]
    assert ids_of(load(max_bytes=limit, per_host=1, concurrency=2)) == ids_of(few)


@pytest.mark.parametrize("how", [{}, {"num_proc": 2}])
def test_a_picture_that_stops_the_run_leaves_no_cache(world, load, tmp_path, how):
    with Host(world.answers, world.port), pytest.raises(DatasetGenerationError):
        load(on_error="raise", **how)
    assert not caches(tmp_path)


def test_a_good_cache_outlives_a_forced_run_without_network(world, load):
    with Host(world.answers, world.port):
        load()
    with pytest.raises(SourceError, match="Nothing of this run was cached"):
        load(download_mode="force_redownload")
    assert ids_of(load()) == world.ids
    assert laion_face.report(load()).yielded == len(world.ids)


def test_pictures_kept_from_before_do_not_hide_that_the_network_is_lost(world, load, tmp_path):
    # Half of the pictures are kept, all others are silent.
    kept = str(tmp_path / "kept")
    with Host(world.answers, world.port):
        load(cache_images=kept, parts="0", min_faces=2)
    with pytest.raises(SourceError, match="network was lost"):
        load(cache_images=kept)


@pytest.mark.parametrize(("mode", "is_new"), [("reuse_dataset_if_exists", False), ("reuse_cache_if_exists", True)])
def test_download_modes_mean_what_they_mean_in_datasets(prepared, load, tmp_path, mode, is_new):
    # The second name keeps the file, and its number, which a new one could have else.
    (before := tmp_path / "before").hardlink_to(tars(load, prepared).cache_files[0]["filename"])
    ds = tars(load, prepared, download_mode=mode)
    assert before.samefile(ds.cache_files[0]["filename"]) is not is_new
    assert laion_face.report(ds).yielded == len(ds)


def tars(load, prepared, **options):
    return load(**{"parts": "0,2", "images": "auto", "data_dir": str(prepared.data.root), **options})


# Filters that keep nothing.


@pytest.mark.parametrize(
    ("split", "how"),
    [
        ("train", {}),
        ("train[:10%]", {"num_proc": 2}),
        ("train[5%:]", {"keep_in_memory": True}),
        (None, {"images": "none"}),
        ("train", {"on_error": "null", "num_proc": 2}),
    ],
)
def test_filters_that_keep_nothing_give_an_empty_dataset_every_time(world, load, split, how):
    for _ in range(2):
        found = load(min_width=10**6, split=split, **how)
        ds = found["train"] if split is None else found
        assert (ds.num_rows, list(ds)) == (0, [])
        assert ds.features == load(images="none").features
        counts = laion_face.report(found)
        assert counts.rows == counts.filtered == len(world.truth)
    assert ds.map(lambda example: example).num_rows == 0


def test_a_split_that_is_not_there_is_still_refused(load):
    with pytest.raises(ValueError, match="test"):
        load(images="none", min_width=10**6, split="test")


def test_a_report_is_found_for_what_is_held_in_memory(prepared, load):
    ds = tars(load, prepared, keep_in_memory=True)
    assert laion_face.report(ds).yielded == len(ds)


def test_tars_without_a_picture_say_so_and_another_round_is_another_dataset(world, load, tmp_path):
    # The part was downloaded while its hosts were down; the same builder sees what comes later.
    data = DataDir.at(tmp_path / "data")
    shutil.copytree(world.data, data.root)
    how = but(DownloadOptions(), processes_count=1, retries=0, allow_private_hosts=True, timeout=5.0)
    download_part(data, 0, how)
    given = {"images": "download", "data_dir": str(data.root)}
    with pytest.raises(NotPrepared, match=r"all of \d+ pictures .*--retry-failed"):
        load(**given)
    assert not caches(tmp_path)
    builder = laion_face.LaionFace(
        config_name="20M", parts="0", on_error="null", data_dir=str(data.root), cache_dir=str(tmp_path / "arrow")
    )
    builder.download_and_prepare()
    first = builder.as_dataset(split="train")
    with Host(world.answers, world.port):
        download_part(data, 0, how, retry_failed=1)
    builder.download_and_prepare()
    second = builder.as_dataset(split="train")
    assert id_of(first) != id_of(second)
    assert [sum(image is not None for image in ds["image"]) for ds in (first, second)] == [0, len(world.ids)]
    assert ids_of(load(**given)) == world.ids


# Half caches.

CHILD = """
import sys, json, laion_face
data, cache, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
{before}
given = {"parts": "0", "images": "none", "split": "train", **options}
ds = laion_face.load_dataset("20M", data_dir=data, cache_dir=cache, **given)
print(len(ds), laion_face.report(ds).yielded)
"""
#: Where a run is killed, in the order in which it comes by.
KILLS = {
    "writing": ("laion_face_builder.examples.report.Tally.yielded", 100, False),
    "before the report": ("laion_face_builder.examples.report.keep", 1, False),
    "after the report": ("laion_face_builder.examples.report.keep", 1, True),
    "before the info": ("datasets.info.DatasetInfo.write_to_directory", 1, False),
    "after the info": ("datasets.info.DatasetInfo.write_to_directory", 1, True),
    "before the renaming": ("shutil.move", 1, False),
    "after the renaming": ("shutil.move", 1, True),
}
KILLER = """
import functools, importlib, os, signal
def killing(path, count, is_after):
    owner, name = path.rpartition(".")[::2]
    try:
        holder = importlib.import_module(owner)
    except ImportError:
        module, kind = owner.rpartition(".")[::2]
        holder = getattr(importlib.import_module(module), kind)
    real, left = getattr(holder, name), [count]
    @functools.wraps(real)
    def instead(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and not is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(holder, name, instead)
killing{arguments}
"""


def child(data, cache, before="", **options):
    command = [sys.executable, "-c", CHILD.replace("{before}", before), str(data), str(cache), json.dumps(options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("where", KILLS)
def test_killed_anywhere_the_next_run_is_right(world, load, tmp_path, where):
    cache = tmp_path / "arrow"
    before = KILLER.replace("{arguments}", repr(KILLS[where]))
    with child(world.data, cache, before) as killed:
        assert killed.wait(300) == -signal.SIGKILL, killed.stderr.read()
    assert where == "after the renaming" or list(cache.rglob("*.incomplete"))
    ds = load(images="none")
    assert ids_of(ds) == [truth.sample_id for truth in world.truth]
    assert laion_face.report(ds).rows == len(world.truth)
    assert len(caches(tmp_path)) == 1


def test_what_a_killed_run_wrote_does_not_stay_beside_the_next_ones(world, load, tmp_path):
    folder = Path(load(images="none").cache_files[0]["filename"]).parent
    folder.rename(f"{folder}.incomplete")
    (Path(f"{folder}.incomplete") / "laion_face-train-00007-00000-of-NNNNN.arrow").write_bytes(b"half")
    names = {path.name for path in Path(load(images="none").cache_files[0]["filename"]).parent.iterdir()}
    assert names == {"laion_face-train.arrow", "dataset_info.json", "LICENSE", REPORT_FILE}


@pytest.mark.parametrize("missing", ["laion_face-train-00001-of-00002.arrow", "dataset_info.json"])
def test_a_cache_that_lost_a_file_is_made_again(world, load, missing):
    # A forced run that is killed while it removes the old cache leaves some of its files.
    ds = load(images="none", num_proc=2)
    ids, folder = ids_of(ds), Path(ds.cache_files[0]["filename"]).parent
    (folder / missing).unlink()
    assert ids_of(load(images="none")) == ids


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_an_info_file_that_is_cut_short_is_no_cache(world, load, content):
    folder = Path(load(images="none").cache_files[0]["filename"]).parent
    (folder / "dataset_info.json").write_bytes(content)
    assert len(load(images="none")) == len(world.truth)


def test_a_cache_of_nothing_that_an_earlier_version_kept_is_made_again(world, load, tmp_path):
    # The earlier version wrote an empty cache and then the report that says why, if it came to that.
    load(images="none", min_width=10**6)
    (folder,) = caches(tmp_path)
    (before := tmp_path / "before").hardlink_to(folder / "dataset_info.json")
    for poison in ('{"filtered": 0, "yielded": 0, "failed": {"dns": 3}, "hosts": {}}', None):
        (folder / REPORT_FILE).write_text(poison) if poison else (folder / REPORT_FILE).unlink()
        assert laion_face.report(load(images="none", min_width=10**6)).filtered == len(world.truth)
        assert poison is None or not before.samefile(folder / "dataset_info.json")


def test_a_full_disk_leaves_no_cache_and_the_next_run_is_right(world, load, tmp_path):
    # No file may grow beyond 20 kB, which is how a disk without room answers: a write fails.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    with child(world.data, tmp_path / "arrow", limit) as full:
        _, said = full.communicate(timeout=300)
        assert full.returncode == 1
        assert "too large" in said
    assert not caches(tmp_path)
    assert len(load(images="none")) == len(world.truth)


def test_of_two_processes_at_once_one_makes_it_and_both_are_right(world, tmp_path):
    held = "import os, time; from laion_face_builder.examples import report; real = report.Tally.yielded\n"
    held += f"go = {str(tmp_path / 'go')!r}\n"
    held += "report.Tally.yielded = lambda self: ([time.sleep(0.05) for _ in iter(lambda: os.path.exists(go), True)], "
    held += "real(self))[1]"
    both = [child(world.data, tmp_path / "arrow", held) for _ in range(2)]
    heard: list[list[str]] = [[], []]
    with both[0], both[1]:
        readers = [threading.Thread(target=heard[place].extend, args=(one.stderr,)) for place, one in enumerate(both)]
        for reader in readers:
            reader.start()
        try:
            wait_until(lambda: "another process is writing it" in str(heard), seconds=240)
        finally:
            (tmp_path / "go").touch()
        for reader in readers:
            reader.join()
        made = [one.stdout.read().split() for one in both]
    count = len(world.truth)
    assert made == [[str(count), str(count)]] * 2, heard
    assert str(heard).count("another process is writing it") == 1
    assert str(heard).count(f"{count:,} rows") == 1
    assert len(caches(tmp_path)) == 1


# What is read is in the id.


def id_of(ds):
    """Return the ID in `arrow/laion_face/ID/VERSION/laion_face-train.arrow`."""
    return Path(ds.cache_files[0]["filename"]).parent.parent.name


def test_the_id_follows_what_is_read_and_not_where_it_lies(prepared, load, tmp_path):
    first = id_of(tars(load, prepared))
    shutil.copytree(prepared.data.root, tmp_path / "moved")
    moved = DataDir.at(tmp_path / "moved")
    assert id_of(tars(load, prepared, data_dir=str(moved.root))) == first
    excluded = tmp_path / "list"
    excluded.write_text(f"{prepared.truth[0].sample_id}\n")
    second = id_of(tars(load, prepared, exclude=str(excluded)))
    excluded.rename(tmp_path / "renamed")
    assert id_of(tars(load, prepared, exclude=str(tmp_path / "renamed"))) == second != first
    (tmp_path / "renamed").write_text(f"{prepared.truth[1].sample_id}\n")
    assert id_of(tars(load, prepared, exclude=str(tmp_path / "renamed"))) not in (first, second)


def test_another_tar_in_an_adopted_folder_is_another_dataset(prepared, load, tmp_path):
    theirs, data = tmp_path / "theirs", tmp_path / "data"
    shutil.copytree(prepared.data.tars(0), theirs / "split_00000")
    shutil.copytree(prepared.data.index(0).parent, data / "index")
    given = {"parts": "0", "images": str(theirs), "data_dir": str(data)}
    whole = load(**given)
    shutil.copytree(theirs, tmp_path / "copied")
    assert id_of(load(**{**given, "images": str(tmp_path / "copied")})) == id_of(whole)
    kept = sorted((theirs / "split_00000").glob("*.tar"))
    shutil.copy(kept[0], theirs / "split_00000" / "00077.tar")
    assert id_of(load(**given)) != id_of(whole)


def test_another_index_is_another_dataset(world, load, prepared):
    assert id_of(load(images="none")) != id_of(load(images="none", data_dir=str(prepared.data.root)))


# datasets 3.6, where the same file is a loading script.

SCRIPT = """
import sys, json, datasets, laion_face
data, cache, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
given = {"parts": "0", "images": "fetch", "retries": 0, "allow_private_hosts": True, "data_dir": data, **options}
given |= {"cache_dir": cache, "split": "train"}
try:
    ds = datasets.load_dataset(laion_face.__file__, "20M", trust_remote_code=True, **given)
    print(json.dumps({"version": datasets.__version__, "rows": len(ds), "features": len(ds.features)}))
except Exception as error:
    print(json.dumps({"version": datasets.__version__, "error": type(error).__name__, "said": str(error)}))
"""


def script(world, tmp_path, **options):
    command = [PYTHON_36, "-c", SCRIPT, str(world.data), str(tmp_path / "arrow"), json.dumps(options)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("version").startswith("3.6")
    return found


def test_the_loading_script_keeps_no_lost_network_and_gives_the_empty_dataset(world, tmp_path):
    columns = len(laion_face.LaionFace(config_name="20M").info.features)
    for _ in range(2):
        assert script(world, tmp_path, min_width=10**6) == {"rows": 0, "features": columns}
    known = caches(tmp_path)
    found = stopping(world, len(world.ids) // 2, lambda: script(world, tmp_path, concurrency=8, lookahead=16))
    assert (found["error"], "network was lost" in found["said"]) == ("SourceError", True)
    assert caches(tmp_path) == known
    with Host(world.answers, world.port):
        assert script(world, tmp_path)["rows"] == len(world.ids)
    assert script(world, tmp_path)["rows"] == len(world.ids)
