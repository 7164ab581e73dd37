"""The jobs of a stage on a real Ray cluster of two nodes, all on this machine."""

import os

import pytest
from conftest import REPOSITORY

from trdlib import jobs

ray = pytest.importorskip("ray", reason="pip install -e '.[cluster]'")
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def cluster(project, monkeypatch):
    """A head that runs no jobs, and two nodes of one core; RAY_ADDRESS names it."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # others work on this machine too
    how = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **how})
    for _ in range(2):
        found.add_node(num_cpus=1, **how)
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    ray.shutdown()
    found.shutdown()


def where(number):
    with jobs.model_compute():
        sum(range(10**6))
    return number, ray.get_runtime_context().get_node_id(), os.getcwd(), jobs.on_ray()


def test_jobs_come_back_in_order_from_both_nodes(cluster, project):
    before = jobs.compute["seconds"]
    found = jobs.run_jobs(where, [(i,) for i in range(6)], workers=1)
    assert [one[0] for one in found] == list(range(6))
    assert {one[2] for one in found} == {str(project)}
    assert {one[3] for one in found} == {0}  # a job does not ask the cluster for more
    assert jobs.compute["seconds"] > before
    assert jobs.on_ray() == 2


def break_on_two(number):
    if number == 2:
        raise ValueError("job 2 broke")


def test_a_job_that_breaks_ends_the_run_with_its_own_error(cluster):
    with pytest.raises(ValueError, match="job 2 broke"):
        jobs.run_jobs(break_on_two, [(i,) for i in range(4)])
