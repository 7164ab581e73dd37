"""Notebooks that are started from a process with their imports: the same, in every way but time."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the usual papermill there"),
    pytest.mark.xdist_group("warm"),  # one server, which the last test ends
]
CODE = """
import os, sys, random, matplotlib, numpy, torch
import matplotlib.pyplot as plt
print(os.getcwd(), os.environ["ASKED"], sys.argv[1:2], sys.path[-1])
open("seeds", "a").write(f"{torch.initial_seed()} {random.random()} {numpy.random.rand()}\\n")
print(matplotlib.get_backend(), "trdlib.config" in sys.modules, given)
plt.plot([1, 2])
plt.show()
"""
WAITS = """
import os, pathlib, time
pathlib.Path("kernel.pid").write_text(str(os.getpid()))
time.sleep(120)
"""


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    process = subprocess.Popen([sys.executable, "-m", "trdlib.warm", str(folder)])
    wait_for((folder / "papermill").exists)
    yield process, folder / "papermill"
    process.kill()


def notebook(path, code, parameter="given = 1"):
    cells = [nbformat.v4.new_code_cell(parameter), nbformat.v4.new_code_cell(code)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def outputs(path):
    found = nbformat.read(path, as_version=4).cells[-1].outputs
    return [(o.output_type, o.get("text"), sorted(o.get("data", {}))) for o in found]


def papermill(program, folder, *more):
    command = [str(program), "--no-progress-bar", "in.ipynb", "out.ipynb", *more]
    env = {**os.environ, "ASKED": "by the test"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_a_notebook_sees_no_difference(server, tmp_path):
    notebook(tmp_path / "in.ipynb", CODE)
    found = []
    usual = os.path.join(os.path.dirname(sys.executable), "papermill")
    for program in (usual, server[1], server[1]):
        done = papermill(program, tmp_path, "-p", "given", "7")
        assert done.returncode == 0, done.stderr
        found.append(outputs(tmp_path / "out.ipynb"))
        (tmp_path / "out.ipynb").unlink()
    assert "by the test" in found[0][0][1] and "image/png" in found[0][-1][2]
    assert found[1] == found[0] and found[2] == found[0]
    drawn = (tmp_path / "seeds").read_text().split()
    assert len(set(drawn)) == len(drawn) == 9


def test_a_failure_is_one_here_too(server, tmp_path):
    notebook(tmp_path / "in.ipynb", "raise ValueError('on purpose')")
    done = papermill(server[1], tmp_path)
    assert done.returncode == 1 and "on purpose" in done.stderr


def test_who_kills_the_client_kills_the_kernel(server, tmp_path):
    notebook(tmp_path / "in.ipynb", WAITS)
    client = subprocess.Popen([str(server[1]), "in.ipynb", "out.ipynb"], cwd=tmp_path)
    pid = tmp_path / "kernel.pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    kernel = int(pid.read_text())
    client.send_signal(signal.SIGKILL)

    def is_gone():
        try:
            os.kill(kernel, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{kernel}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"

    wait_for(is_gone, 20)


def test_without_a_server_it_is_the_usual_papermill(server, tmp_path):
    """The last test of this file: it ends the server."""
    server[0].terminate()
    server[0].wait(30)
    notebook(tmp_path / "in.ipynb", "print(given)")
    done = papermill(server[1], tmp_path, "-p", "given", "7")
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "out.ipynb")[0][1] == "7\n"
