"""Real engines on this machine, two workers each: Spark, Ray, and an S3 server. `make test-engines` has them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from laion_face_builder.distribute import each
from laion_face_builder.download import cluster
from laion_face_builder.download.part import download_part
from laion_face_builder.errors import LaionFaceError, WorkerDied
from laion_face_builder.index import steps
from laion_face_builder.index.prepare import prepare
from laion_face_builder.layout import DataDir
from laion_face_builder.sandbox import SandboxSpec
from laion_face_builder.sources.fsspec_folder import filesystem_of
from tests.download.test_download import OPTIONS
from tests.download.test_spread_download import deadly_do, require_all, require_one_death, web_of
from tests.index.test_spread_prepare import DEADLY, deadly_run, made, upstream
from tests.test_distribute import kill_if_odd, kill_once, square

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """Set what workers inherit: where the tests' modules are, where the S3 server is, and where they are to die."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "of-nobody")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("SPARK_WORKER_DIR", str(tmp_path_factory.mktemp("spark")))
        patch.setenv(DEADLY, str(tmp_path_factory.mktemp("deadly")))
        yield
    server.stop()


@pytest.fixture(scope="module", params=["pyspark", "ray"])
def engine(request, surroundings):
    """Start an engine, as in a session of a user's own: it is used, and left running."""
    if request.param == "ray":
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
        yield request.param
        assert ray.is_initialized()
        ray.shutdown()
    else:
        from pyspark.sql import SparkSession

        # Two executors, which are processes of their own as on a cluster.
        settings = {"spark.executor.memory": "512m", "spark.ui.enabled": "false", "spark.python.worker.reuse": "true"}
        session = SparkSession.builder.master("local-cluster[2,1,512]").config(map=settings).getOrCreate()
        session.sparkContext.setLogLevel("FATAL")
        yield request.param
        assert session.sparkContext.parallelize([1]).count() == 1
        session.stop()


def forget_deaths():
    for mark in Path(os.environ[DEADLY]).iterdir():
        mark.unlink()


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


def test_workers_that_lack_a_module_are_no_dead_workers(engine, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def give(number):\n    return number\n")
    monkeypatch.syspath_prepend(tmp_path)
    give = __import__("only_here").give
    with pytest.raises(
        LaionFaceError, match="cannot do this: ModuleNotFoundError: No module named 'only_here'"
    ) as found:
        list(each(give, [1], distributor=engine))
    assert type(found.value) is LaionFaceError


def test_a_bucket_has_what_a_folder_has_whoever_dies(engine, make_sandbox, tmp_path, monkeypatch):
    box = make_sandbox(SandboxSpec(parts=(0, 1), rows=90, metadata_files=3))
    prepare(DataDir.at(tmp_path / "here"), [0, 1], upstream(box))
    forget_deaths()
    system, _ = filesystem_of("s3://")
    system.mkdir(engine)
    monkeypatch.setattr(steps, "run_apart", deadly_run)
    prepare(DataDir.kept_at(f"s3://{engine}/data"), [0, 1], upstream(box), distributor=engine)
    assert {mark.name for mark in Path(os.environ[DEADLY]).iterdir()} == {"StageFile", "MakePart"}
    system.get(f"{engine}/data/", str(tmp_path / "there"), recursive=True)
    assert made(tmp_path / "there") == made(tmp_path / "here")


def test_a_bucket_has_the_pictures_whoever_dies(engine, tmp_path, monkeypatch):
    forget_deaths()
    system, _ = filesystem_of("s3://")
    bucket = f"pictures-{engine}"
    system.mkdir(bucket)
    monkeypatch.setattr(cluster, "_do", deadly_do)
    with web_of(tmp_path) as web:
        system.put_file(str(web.folder.index(0)), f"{bucket}/data/index/part-00000.parquet")
        data, how = DataDir.kept_at(f"s3://{bucket}/data"), replace(OPTIONS, distributor=engine, processes_count=2)
        result = download_part(data, 0, how)
        assert (Path(os.environ[DEADLY]) / "sent").exists()
        require_one_death(web)
        system.get(f"{bucket}/data/", str(tmp_path / "there"), recursive=True)
        require_all(web, web.folder)
        asked = len(web.host.log)
        assert download_part(data, 0, how) == result
        assert download_part(web.folder, 0, OPTIONS) == result
        assert len(web.host.log) == asked, "all of it was there"


@pytest.mark.parametrize("distributor", ["pyspark", "ray"])
def test_the_command_has_an_engine_of_its_own(distributor, surroundings, tmp_path):
    with web_of(tmp_path) as web:
        command = [sys.executable, "-m", "laion_face_builder", "download", "20M", "--parts", "0"]
        command += ["--data-dir", str(web.folder.root), "--distributor", distributor, "--processes", "2"]
        how = ["--allow-private-hosts", "--samples-per-shard", "20", "--timeout", "3", "--retries", "0"]
        done = subprocess.run([*command, *how], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        require_all(web, web.folder)
