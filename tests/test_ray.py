"""The jobs of a stage on a real Ray cluster of two nodes, all on this machine."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from trdlib import jobs
from trdlib.distill import distill
from trdlib.evaluate import evaluate
from trdlib.ops import cluster as cluster_of_ours
from trdlib.refine import refine
from trdlib.rollout import rollout
from trdlib.run import get_run
from trdlib.settings import SettingsError

ray = pytest.importorskip("ray", reason="pip install -e '.[cluster]'")


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
    return number, ray.get_runtime_context().get_node_id(), os.getcwd(), cluster_of_ours.places()


def test_jobs_come_back_in_order_from_both_nodes(cluster, project):
    before = jobs.compute["seconds"]
    found = jobs.run_jobs(where, [(i,) for i in range(6)], workers=1)
    assert [one[0] for one in found] == list(range(6))
    assert {one[2] for one in found} == {str(project)}
    assert {one[3] for one in found} == {0}  # a job does not ask the cluster for more
    assert jobs.compute["seconds"] > before
    assert cluster_of_ours.places() == 2


def break_on_two(number):
    if number == 2:
        raise ValueError("job 2 broke")


def test_a_job_that_breaks_ends_the_run_with_its_own_error(cluster):
    with pytest.raises(ValueError, match="job 2 broke"):
        jobs.run_jobs(break_on_two, [(i,) for i in range(4)])


def hang_on(number, dying):
    """A job that notes each of its beginnings, and has no end on the node that will die."""
    here = ray.get_runtime_context().get_node_id()
    Path(f"{number}-{here}").touch()
    while here == dying:
        time.sleep(0.1)
    return number


def test_of_a_node_that_dies_the_jobs_run_elsewhere(cluster, project):
    dying = max(cluster.worker_nodes, key=lambda node: node.node_id)

    def kill():
        while not list(project.glob(f"*-{dying.node_id}")):
            time.sleep(0.1)
        cluster.remove_node(dying, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    found = jobs.run_jobs(hang_on, [(i, dying.node_id) for i in range(4)])
    killer.join()
    assert found == [0, 1, 2, 3]
    begun = [path.name.split("-") for path in project.glob("?-*")]
    (lost,) = [number for number, node in begun if node == dying.node_id]
    assert sorted(number for number, _ in begun) == sorted(["0", "1", "2", "3", lost])


def test_a_node_without_the_files_says_so(cluster, project):
    cluster_of_ours.places()
    gone = ray.remote(cluster_of_ours._there).remote(project, str(project / "gone"), where, (0,))
    with pytest.raises(SettingsError, match=r"does not share the folder .* mount it there"):
        try:
            ray.get(gone)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def test_no_cluster_is_one_sentence(project, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SettingsError, match="no Ray cluster answers at RAY_ADDRESS=127"):
        cluster_of_ours.places()


def made(run, task, sets) -> dict[str, bytes]:
    """Every table and weight of a small pipeline, from y_o to the samples."""
    tables = {"y_o": rollout(run, task, sets["train"])}
    tables["y_r"] = refine(run, task, sets["train"], tables["y_o"])
    (trained,) = distill([run], task, sets, {run.mode: tables})
    evaluate([run], task, sets, [trained.adapters])
    found = [*Path("runs").rglob("*.parquet"), *Path("runs").rglob("*.safetensors")]
    return {str(path): path.read_bytes() for path in found}


def test_the_pipeline_gives_the_bytes_of_one_machine(cluster, smoke, task, sets, monkeypatch):
    run = get_run("smoke", "opd", "trd", learning_rate=6e-3)
    there = made(run, task, sets)
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS")
    shutil.rmtree("runs")
    assert len(there) > 10 and made(run, task, sets) == there
