"""Real engines on this machine, two workers each: Spark, Ray, and an S3 server. `make test-engines` has them."""

import pytest
from test_distribute import kill_if_odd, kill_once, square

from laion_face_builder.distribute import each
from laion_face_builder.errors import WorkerDied

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module", params=["pyspark", "ray"])
def engine(request):
    """An engine that is up, as in a session of a user's own: `each` uses it and leaves it running."""
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
