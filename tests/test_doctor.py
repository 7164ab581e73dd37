"""The doctor's findings, the command line behind a pipe, and a clone whose path is unkind."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from conftest import REPOSITORY

from trdlib.ops import cli, doctor


def test_a_scale_that_cannot_be_judged_does_not_hide_the_others(project, monkeypatch, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    scales = {"smoke": params["scales"]["smoke"]}
    for name, student in (("moving", "Qwen/Qwen3-8B"), ("broken", "models/broken")):
        scales[name] = scales["smoke"] | {"modes": ["opsd"], "variants": {}}
        scales[name]["models"] = scales["smoke"]["models"] | {"student": student, "teacher": None}
    (project / "models" / "broken").mkdir()
    (project / "models" / "broken" / "config.json").write_text('{"model_type": "gpt2"}')
    params |= {"scales": scales, "run": params["run"] | {"scales": ["smoke"]}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(doctor, "packages", list)
    monkeypatch.setattr(doctor, "hub", lambda: "off (HF_HUB_OFFLINE)")
    assert doctor.command(of_project=False, as_json=False) == 0
    said = capsys.readouterr().out
    assert "smoke: runs here" in said
    assert "moving:\n  - models.student 'Qwen/Qwen3-8B' is neither a folder here nor a hub" in said
    assert "broken:\n  - " in said
    assert "git: none here (a copy without .git): notebooks, sweeps" in said
    (project / ".git").mkdir()
    assert doctor.git() == "here"


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "all", "a b"])
def test_a_sweep_has_a_name_by_the_rule(project, name, capsys, monkeypatch):
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    command = [
        "trdlib",
        "sweep",
        "4_distill",
        "-p",
        "learning_rate=1e-3",
        "--name",
        name,
        "--dry-run",
    ]
    monkeypatch.setattr(sys, "argv", command)
    assert cli.main() == 1
    said = capsys.readouterr().err
    assert "cannot be a name" in said or "has a meaning of its own" in said


def test_nobody_reads_on(project):
    """Behind `| head -1`: no traceback, whatever the command."""
    for arguments in (["check"], ["stamp"], ["plan", "--scale", "smoke"], ["sweep", "--help"]):
        shutil.copytree(REPOSITORY / "notebooks", project / "notebooks", dirs_exist_ok=True)
        reads, writes = os.pipe()
        os.close(reads)  # nobody reads at all
        command = [sys.executable, "-m", "trdlib", *arguments]
        done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
        os.close(writes)
        assert "Error" not in done.stderr and "Traceback" not in done.stderr, arguments
        assert done.returncode == (0 if "--help" in arguments else 141), arguments


# ------------------------------------------------------------------ a clone whose path is unkind


def environment(folder):
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MAKE", "VIRTUAL_ENV"))}
    return inherited | {"PYTHONPATH": str(REPOSITORY), "DVC_NO_ANALYTICS": "1"}


@pytest.fixture
def clone(tmp_path):
    """Makefile, dvc.yaml's way to run a notebook and one notebook, in a folder of such a name. Its
    .venv has our packages, and scripts that cannot start, as there."""
    folder = tmp_path / "Übung eins"
    (folder / "notebooks").mkdir(parents=True)
    shutil.copy(REPOSITORY / "Makefile", folder)
    (folder / "pyproject.toml").touch()
    (folder / "params.yaml").write_text("run: {scales: [a]}\n")
    made = [sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")]
    subprocess.run(made, check=True)
    (packages,) = (folder / ".venv").glob("lib/*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "ours.pth").write_text("\n".join(ours) + "\n")
    for name in ("pip", "dvc", "papermill", "jupyter", "jupyter-nbconvert", "pytest", "jupytext"):
        script = folder / ".venv" / "bin" / name
        script.write_text("#!/there/is no/python\n")
        script.chmod(0o755)
    (folder / ".venv" / ".ready").touch()
    code = "import sys; open('done', 'a').write(sys.executable + chr(10))"
    tags = {"tags": ["parameters"]}
    cells = [
        nbformat.v4.new_code_cell("scale = ''", metadata=tags),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    node = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(node, folder / "notebooks" / "6_map.ipynb")
    (folder / "runs" / "executed").mkdir(parents=True)
    ours = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["vars"]
    command = "${run_notebook} notebooks/6_map.ipynb runs/out.ipynb -p scale a"
    stages = {"only": {"cmd": command, "deps": ["notebooks/6_map.ipynb"]}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"vars": ours, "stages": stages}))
    return folder


def test_make_and_dvc_in_a_folder_with_a_space(clone):
    def make(target):
        return subprocess.run(["make", target], cwd=clone, env=environment(clone), text=True,
                              capture_output=True)  # fmt: skip

    done = make("map")
    assert done.returncode == 0, done.stderr[-2000:]
    python = str(clone / ".venv" / "bin")
    assert (clone / "done").read_text().startswith(python)  # the kernel is the clone's too
    git = {"cwd": clone, "check": True}
    subprocess.run(["git", "init", "--quiet"], **git)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], **git)
    done = make("repro")  # its report fails: there is no project here
    assert "Running stage 'only'" in done.stdout, done.stdout[-1000:] + done.stderr[-2000:]
    assert (clone / "done").read_text().count(python) == 2
    assert "cannot execute" not in done.stderr and "not found" not in done.stderr


def test_nothing_is_started_by_a_script_of_the_environment():
    """They do not start where the path to them holds a space; `python -m` does."""
    scripts = {"pip", "dvc", "papermill", "jupyter", "jupytext", "pytest", "ruff"}
    makefile = (REPOSITORY / "Makefile").read_text().splitlines()
    lines = [line.strip().lstrip("@") for line in makefile if line.startswith("\t")]
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    lines += [one["run_notebook"] for one in stages["vars"]]
    for stage in stages["stages"].values():
        lines += stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]
    first = {part.split()[0] for line in lines for part in line.split("&&") if part.split()}
    assert "python" in first and not first & scripts, first & scripts
