"""Real engines on this machine, two workers each: Spark, Ray, and an S3 server. `make test-engines` has them."""

import os
from pathlib import Path

import pytest
from test_distribute import kill_if_odd, kill_once, square
from test_spread_prepare import DEADLY, deadly_run, made, upstream

from laion_face_builder.distribute import each
from laion_face_builder.errors import WorkerDied
from laion_face_builder.index import steps
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import SandboxSpec
from laion_face_builder.upstream.source_fsspec import filesystem_of

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """What workers inherit: where the tests' modules are, where the S3 server is, and where they are to die."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "of-nobody")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv(DEADLY, str(tmp_path_factory.mktemp("deadly")))
        yield
    server.stop()


@pytest.fixture(scope="module", params=["pyspark", "ray"])
def engine(request, surroundings):
    """An engine that is up, as in a session of a user's own: it is used, and left running."""
    if request.param == "ray":
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
        yield request.param
        assert ray.is_initialized()
        ray.shutdown()
    else:
        from laion_face_builder.engines import _spark_session

        session = _spark_session(2)
        yield request.param
        assert session.sparkContext.parallelize([1]).count() == 1
        session.stop()


def test_every_task_ends_once(engine):
    found = sorted((done.task, done.result()) for done in each(square, range(10), distributor=engine))
    assert found == [(number, number * number) for number in range(10)]


def test_a_worker_that_dies_once_costs_nothing_else(engine, tmp_path):
    tasks = [str(tmp_path / f"{number}") for number in range(3)]
    assert sorted(done.result() for done in each(kill_once, tasks, distributor=engine)) == ["0", "1", "2"]


def test_a_task_that_always_kills_its_worker_fails_alone(engine):
    found = {done.task: done.error for done in each(kill_if_odd, [0, 1, 2], distributor=engine)}
    assert type(found.pop(1)) is WorkerDied
    assert found == {0: None, 2: None}


def test_a_bucket_has_what_a_folder_has_whoever_dies(engine, make_sandbox, tmp_path, monkeypatch):
    box = make_sandbox(SandboxSpec(parts=(0, 1), rows=90, metadata_files=3))
    prepare(DataDir.at(tmp_path / "here"), [0, 1], upstream(box))
    for mark in Path(os.environ[DEADLY]).iterdir():
        mark.unlink()
    system, _ = filesystem_of("s3://")
    system.mkdir(engine)
    monkeypatch.setattr(steps, "run_apart", deadly_run)
    prepare(DataDir.kept_at(f"s3://{engine}/data"), [0, 1], upstream(box), distributor=engine)
    assert {mark.name for mark in Path(os.environ[DEADLY]).iterdir()} == {"StageFile", "MakePart"}
    system.get(f"{engine}/data/", str(tmp_path / "there"), recursive=True)
    assert made(tmp_path / "there") == made(tmp_path / "here")
