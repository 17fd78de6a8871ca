"""Pictures fetched while iterating: the same examples as from tars, whatever hosts do, and nothing left behind."""

import gc
import itertools
import logging
import os
import shutil
import threading
from types import SimpleNamespace

import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

import laion_face
from laion_face_builder.errors import PictureError
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import Answer, SandboxSpec
from laion_face_builder.sources.sources import Upstream
from tests.support.streams import ids_of
from tests.support.waiting import wait_until


def fetching(data_dir, **options):
    given = {"parts": "0,2", "images": "fetch", "allow_private_hosts": True, "retries": 0, "shards_per_part": 8}
    return laion_face.load_dataset("20M", split="train", streaming=True, data_dir=str(data_dir), **{**given, **options})


@pytest.fixture(scope="module")
def index_only(prepared, tmp_path_factory):
    """Make a DATA_DIR with the index and nothing else."""
    folder = tmp_path_factory.mktemp("index-only")
    shutil.copytree(prepared.data.index(0).parent, folder / "index")
    return folder


@pytest.fixture
def small(make_sandbox, tmp_path):
    """Make a sandbox of its own, with part 0 prepared, whose hosts can be made to change their minds."""
    box = make_sandbox(SandboxSpec(parts=(0,), rows=240, twisted=0, failing=0.1))
    data = DataDir.at(tmp_path / "data")
    prepare(data, [0], Upstream(box.repo, None, box.metadata_folder))
    return SimpleNamespace(box=box, data=data.root, truth=box.truth_of(0))


def plain(example):
    image = example["image"]
    return {**example, "image": image and (image.size, image.mode, image.tobytes())}


@pytest.fixture(scope="module")
def from_tars(prepared):
    ds = laion_face.load_dataset("20M", parts="0,2", data_dir=str(prepared.data.root), split="train", streaming=True)
    return [plain(example) for example in ds]


def test_the_same_examples_come_from_the_web_and_from_tars(index_only, from_tars, prepared):
    ds = fetching(index_only)
    assert [plain(example) for example in ds] == from_tars
    report = laion_face.report(ds)
    assert report.rows == len(prepared.truth)
    assert report.failures == sum(not truth.ok for truth in prepared.truth)
    assert report.failed["http_404"] == sum(truth.fate == "http_404" for truth in prepared.truth)
    assert sum(report.hosts.values()) == report.failures
    assert {"127.0.0.1", "localhost"} <= set(report.hosts)


def test_auto_fetches_the_parts_that_have_no_tars(prepared, from_tars, tmp_path):
    shutil.copytree(prepared.data.root / "index", tmp_path / "index")
    images = prepared.data.root / "images"
    shutil.copytree(images, tmp_path / "images", ignore=lambda folder, names: [n for n in names if "00002" in n])
    asked = len(prepared.sandbox.pictures.log)
    ds = fetching(tmp_path, images="auto")
    assert [plain(example) for example in ds] == from_tars
    paths = {request.path for request in prepared.sandbox.pictures.log[asked:]}
    part_0 = {truth.path for truth in prepared.truth if truth.part == 0}
    assert paths
    assert not paths & part_0


def test_what_is_fetched_can_become_arrow_files(index_only, from_tars, tmp_path):
    ds = laion_face.load_dataset(
        "20M",
        parts="0,2",
        data_dir=str(index_only),
        cache_dir=str(tmp_path),
        split="train",
        images="fetch",
        allow_private_hosts=True,
        retries=0,
    )
    assert [plain(example) for example in ds] == from_tars


def test_failures_can_be_null_or_raise(small):
    examples = list(fetching(small.data, parts="0", on_error="null"))
    assert ids_of(examples) == [truth.sample_id for truth in small.truth]
    assert [example["image"] is not None for example in examples] == [truth.ok for truth in small.truth]
    with pytest.raises(PictureError, match="http"):
        list(fetching(small.data, parts="0", on_error="raise"))


def test_filters_save_fetches_and_say_how_many(small):
    def passes(truth):
        return any(min(f.box[2] - f.box[0], f.box[3] - f.box[1]) >= 40 for f in truth.faces)

    ds = fetching(small.data, parts="0", min_face_size=40)
    assert ids_of(ds) == [truth.sample_id for truth in small.truth if passes(truth) and truth.ok]
    asked = {request.path for request in small.box.pictures.log}
    assert asked.isdisjoint(truth.path for truth in small.truth if not passes(truth))
    assert laion_face.report(ds).filtered == sum(not passes(truth) for truth in small.truth) > 0


@pytest.mark.parametrize("stop", [1, 17, 40])
def test_a_resume_repeats_and_skips_no_row_when_hosts_change_their_minds(small, stop):
    # Law 9: before the stop some pictures fail that come later, after it others fail that came before.
    rows = {truth.sample_id: truth.row for truth in small.truth}
    good = [truth for truth in small.truth if truth.ok]
    for truth in good[::3]:
        small.box.pictures.answers[truth.path] = Answer(404)
    first = fetching(small.data, parts="0")
    iterator = iter(first)
    before = [rows[next(iterator)["sample_id"]] for _ in range(stop)]
    state = first.state_dict()
    iterator.close()
    for truth in good[::3]:
        small.box.pictures.answers[truth.path] = Answer(body=truth.served)
    for truth in good[1::3]:
        small.box.pictures.answers[truth.path] = Answer(410)
    again = fetching(small.data, parts="0")
    again.load_state_dict(state)
    asked = len(small.box.pictures.log)
    after = [rows[example["sample_id"]] for example in again]
    gone_now = {truth.row for truth in good[1::3]}
    assert after == [truth.row for truth in good if truth.row > before[-1] and truth.row not in gone_now]
    fetched_again = {request.path for request in small.box.pictures.log[asked:]}
    assert fetched_again.isdisjoint(truth.path for truth in small.truth if truth.row <= before[-1])


def test_a_second_epoch_comes_from_the_cache(small, tmp_path):
    ds = fetching(small.data, parts="0", cache_images=str(tmp_path / "kept"))
    first = [plain(example) for example in ds]
    asked = len(small.box.pictures.log)
    assert [plain(example) for example in ds] == first
    later = {request.path for request in small.box.pictures.log[asked:]}
    assert later.isdisjoint(truth.path for truth in small.truth if truth.ok)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers_fetch_and_report(small, context):
    ds = fetching(small.data, parts="0")
    loader = DataLoader(ds, batch_size=8, num_workers=2, collate_fn=laion_face.collate, multiprocessing_context=context)
    seen = list(itertools.chain(*(batch["sample_id"].tolist() for batch in loader)))
    assert sorted(seen) == sorted(truth.sample_id for truth in small.truth if truth.ok)
    assert laion_face.report(ds).rows == len(small.truth)


def test_ranks_fetch_their_shares(small):
    shares = [ids_of(split_dataset_by_node(fetching(small.data, parts="0"), rank, 2)) for rank in range(2)]
    assert shares[0]
    assert sorted(itertools.chain(*shares)) == sorted(truth.sample_id for truth in small.truth if truth.ok)


def test_private_addresses_are_refused_unless_allowed(small, caplog):
    asked = len(small.box.pictures.log)
    ds = fetching(small.data, parts="0", allow_private_hosts=False)
    with caplog.at_level(logging.INFO, "laion_face"):
        assert list(ds) == []
    assert len(small.box.pictures.log) == asked
    assert set(laion_face.report(ds).failed) <= {"private_address", "bad_url"}
    assert "private_address" in caplog.text


def test_a_published_index_is_all_that_is_needed(small, tmp_path):
    part = small.data / "index" / "part-00000.parquet"
    name = f"{small.box.repo.split('/')[0]}/published"
    small.box.hub.add_repo(name, {"index/part-00000.parquet": part.read_bytes()})
    wanted = [truth.sample_id for truth in small.truth if truth.ok]
    for place in (str(part.parent), name):
        data = tmp_path / f"unused-{len(place)}"
        ds = laion_face.load_dataset(
            "20M",
            parts="0",
            split="train",
            streaming=True,
            index=place,
            data_dir=str(data),
            allow_private_hosts=True,
            retries=0,
        )
        assert ids_of(ds) == wanted
        assert not data.exists()


def things_open():
    gc.collect()
    return sum(is_socket(fd) for fd in os.listdir("/proc/self/fd")), threading.active_count()


def is_socket(fd):
    try:
        return "socket" in os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # Another thread has closed it since it was listed.
        return False


@pytest.mark.parametrize("how", ["break", "error", "end"])
def test_nothing_is_left_behind(small, how):
    def run():
        ds = fetching(small.data, parts="0")
        iterator = iter(ds)
        next(iterator)
        if how == "error":
            raise_inside(iterator)
        if how == "end":
            for _ in iterator:
                pass

    before = things_open()
    if how == "error":
        with pytest.raises(ZeroDivisionError):
            run()
    else:
        run()
    # The host's own ends of the connections, and its threads, live in this process too, and end a moment later.
    wait_until(lambda: not more_open(before))


def more_open(before):
    return [(now, then) for now, then in zip(things_open(), before, strict=True) if now > then]


def raise_inside(iterator):
    for _ in iterator:
        1 / 0  # noqa: B018 what a training step may do
