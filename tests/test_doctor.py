"""The doctor's findings, the command line behind a pipe, and a clone whose path is unkind."""

import json
import os
import re
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
    assert "git: none here (a copy without .git): for dvc `git init`" in said
    (project / ".git").mkdir()
    doctor.command(of_project=False, as_json=False)
    assert "git: here\n" in capsys.readouterr().out


def test_a_sweep_has_a_name_by_the_rule(project, capsys, monkeypatch):
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    command = ["trdlib", "sweep", "4_distill", "-p", "learning_rate=1e-3", "--dry-run", "--name"]
    monkeypatch.setattr(sys, "argv", [*command, "../../x"])
    assert cli.main() == 1
    assert "cannot be a name" in capsys.readouterr().err


def test_every_option_has_help_and_plumbing_stands_apart(capsys, monkeypatch):
    listed = yaml.safe_load((REPOSITORY / "trdlib" / "ops" / "cli.yaml").read_text())
    monkeypatch.setattr(sys, "argv", ["trdlib", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    for name, about in listed.items():
        assert (f"\n    {name} " in shown) != about.get("hidden", False), name
        monkeypatch.setattr(sys, "argv", ["trdlib", name, "--help"])
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr().out
        for option, how in about.get("options", {}).items():
            assert option in said or how["metavar"] in said or option.isidentifier()
            assert "".join(how["help"][:20].split()) in "".join(said.split()), (name, option)


def test_what_is_printed_can_be_typed(project, monkeypatch, capsys):
    """Commands that plan, a sweep and an error print, with a scale that holds spaces and brackets:
    a shell takes the scale for one word, and gives it to the option that takes it."""
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    scale, found = "smoke modes=[opd] variants={}", []
    for words in (
        ["plan", "--scale", scale],
        ["sweep", "4_distill", "-p", f"scale={scale}", "-p", "seed=0", "--dry-run"],
        ["plan", "--scale", f"{scale} models.student=models/none/{{seed}}"],
    ):
        monkeypatch.setattr(sys, "argv", ["trdlib", *words])
        cli.main()
        lines = "".join(capsys.readouterr()).splitlines()
        found += re.findall(r"(?:python -m trdlib|papermill) [^()]*", "\n".join(lines))
    assert len(found) == 3
    for command in found:
        checked = [
            "bash",
            "-c",
            f'python() {{ printf \'%s\\n\' "$@"; }}; papermill() {{ python "$@"; }}\n{command}',
        ]
        words = subprocess.run(checked, capture_output=True, text=True, check=True).stdout
        if "models --scale" in command:
            assert words.splitlines()[-1] == "smoke"  # no hash of changes, which is no scale
        else:
            assert scale in words.splitlines(), command


def test_programs_are_answered_in_json(project, monkeypatch, capsys):
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    shutil.copy(REPOSITORY / "pyproject.toml", project)
    monkeypatch.setattr(doctor, "hub", lambda: "off (HF_HUB_OFFLINE)")

    def answer(*words):
        monkeypatch.setattr(sys, "argv", ["trdlib", *words, "--json"])
        cli.main()
        out = capsys.readouterr().out
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    planned = answer("plan", "--scale", "qwen3-8b", "--price", "3")
    whole = planned["stages"][-1]["H100"]
    assert planned["rent"]["H100"] == pytest.approx([3 * end / 3600 for end in whole])
    four = answer("plan", "--scale", "qwen3-8b", "--price", "3", "--gpus", "4")
    assert whole[0] / 4.1 < four["stages"][-1]["H100"][0] < whole[0] / 2
    # the idle ones are paid for (the lengths that the queue draws are others)
    assert four["rent"]["H100"][0] > 0.98 * planned["rent"]["H100"][0]
    small = answer("plan", "--scale", "qwen3-8b training.micro_batch_size=128")
    assert None in small["stages"][-1]["A100"]  # it does not fit
    assert answer("doctor")["scales"]["smoke"] == []
    jobs = answer("sweep", "4_distill", "-p", "learning_rate=1e-3,2e-3", "--dry-run")
    assert [job["learning_rate"] for job in jobs] == [1e-3, 2e-3]


def test_nobody_reads_on(project):
    """Behind `| head -1`: no traceback, whether a command prints or argparse."""
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    for arguments in (["check"], ["sweep", "--help"]):
        reads, writes = os.pipe()
        os.close(reads)  # nobody reads at all
        command = [sys.executable, "-m", "trdlib", *arguments]
        done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
        os.close(writes)
        assert "Error" not in done.stderr and "Traceback" not in done.stderr, arguments
        swallowed = [0] * ("--help" in arguments)  # by argparse, if it is longer than a buffer
        assert done.returncode in [141, *swallowed], arguments


# ------------------------------------------------------------------ a clone whose path is unkind


def environment(folder):
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MAKE", "VIRTUAL_ENV"))}
    return inherited | {"DVC_NO_ANALYTICS": "1"}


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
