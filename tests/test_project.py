"""A trained project: exported, loaded elsewhere by stock libraries; damaged, and looked over."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

from trdlib import distill, generate, models, prompts, rollout, store, tasks
from trdlib.ops import cli, export, project
from trdlib.run import get_run
from trdlib.settings import load

# Folders (each of a model, and "", or of an adapter, and its base) loaded by stock transformers and
# PEFT alone: the tokens of a prompt, greedy ones behind it, and logits.
ELSEWHERE = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
text, *folders = sys.argv[1:]
for folder, base in zip(folders[::2], folders[1::2]):
    model = AutoModelForCausalLM.from_pretrained(base or folder)
    model = (PeftModel.from_pretrained(model, folder) if base else model).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, eos_token_id=-1)
        logits = model(input_ids=ids).logits[0, -1]
    print(json.dumps([ids.tolist(), found[0, ids.shape[1]:].tolist(), logits.tolist()]))
assert "trdlib" not in sys.modules
"""


def elsewhere(place: Path, text: str, *folders) -> list:
    (place / "script.py").write_text(ELSEWHERE)
    command = [sys.executable, "-m", "script", text, *map(str, folders)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A smoke project with y_o and the adapters of one method, OPD."""
    folder, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        shutil.copy(REPOSITORY / name, folder)
    own = get_run("smoke").model_path("student", 0).split("/")[1]
    shutil.copytree(REPOSITORY / "models" / own, folder / "models" / own)
    os.chdir(folder)
    run = get_run("smoke", "opd", "sft")
    task = tasks.of(run)
    rollout.rollout(run, task, task.sets()["train"])
    distill.distill([run], task, task.sets(), {"opd": {}})
    os.chdir(before)
    return folder


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """A copy of it to damage, the working directory."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_equal_trainings_leave_equal_files(trained):
    """No path of this machine, no order by chance (the storm of kills found both)."""
    adapter = trained / "runs/smoke/distill/opd/sft/0/adapter"
    names = {path.name for path in adapter.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "run.json",
                     "training_log.json"}  # fmt: skip
    assert not [n for n in names if bytes(trained) in (adapter / n).read_bytes()]
    targets = store.read_json(adapter / "adapter_config.json")["target_modules"]
    assert targets == sorted(targets) and len(targets) == 7


# ------------------------------------------------------------------------------------------ export


def test_what_is_exported_is_the_same_model_elsewhere(copy, tmp_path, monkeypatch, capsys):
    run, places, text = get_run("smoke", "opd", "sft"), [], "0o-1p"
    name, how = run.model_path("student", 1), run.settings.models
    for merged in (False, True):
        words = ["trdlib", "export", "smoke/opd/sft", "--seed", "1", *["--merged"] * merged]
        monkeypatch.setattr(sys, "argv", words)
        assert cli.main() == 0, capsys.readouterr().err
        where = copy / "runs" / "export" / f"smoke-opd-sft-1{'-merged' if merged else ''}"
        away = shutil.move(where, tmp_path / f"away{merged}")  # it needs nothing beside it
        places += [away, "" if merged else copy / name]
        said = (away / "README.md").read_text()
        assert str(copy) not in said and str(REPOSITORY) not in said and "{{" not in said
        assert "not run" in said and f"`{name}`" in said and "2606.08432" in said
        assert yaml.safe_load(said.split("---")[1])["library_name"] in ("peft", "transformers")
        code = said.split("```python\n")[1].split("```")[0].replace("FOLDER", str(away))
        exec(code.replace("PROBLEM", text), scope := {})  # the card's own lines, in the project
        asked = prompts.student_prompts(run, 1, [{"problem": text, "id": "0"}])
        assert scope["ids"]["input_ids"].tolist() == [asked[0].ids]
        assert scope["tokenizer"].decode(asked[0].ids) in capsys.readouterr().out
    import torch

    model = models.with_adapter(models.load(name, how, run.context_length)[0], run.adapter(1))
    alone, whole = elsewhere(tmp_path, text, *places)
    (ids,), greedy, logits = alone
    ours = generate.decode(model, [ids], max_new_tokens=12, temperature=0.0, top_p=1.0, top_k=0,
                           stop_ids=[])  # fmt: skip
    assert list(ours[0].token_ids) == greedy == whole[1]
    with torch.no_grad():
        mine = model(input_ids=torch.tensor([ids])).logits[0, -1]
        plain = models.load(name, how, run.context_length)[0](input_ids=torch.tensor([ids])).logits
    for found in (logits, whole[2]):
        torch.testing.assert_close(torch.tensor(found), mine, atol=1e-4, rtol=1e-4)
    assert (plain[0, -1] - mine).abs().max() > 1e-3  # the adapter is in it


def test_what_cannot_be_exported_is_said_in_one_sentence(copy, monkeypatch, capsys):
    def said(*words):
        monkeypatch.setattr(sys, "argv", ["trdlib", "export", *words])
        assert cli.main() == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "has no whole adapter of seed 0: train it" in said("smoke/opd/trd")
    assert "write scale/mode/method" in said("smoke")
    assert "no method 'x'" in said("smoke/opd/x")
    (copy / "mine").mkdir()
    assert "it is there already" in said("smoke/opd/sft", "--to", "mine")
    weights = copy / "runs/smoke/distill/opd/sft/0/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    assert "no whole adapter of seed 0" in said("smoke/opd/sft")
    assert not (copy / "runs" / "export").exists()  # nothing half-made
    code = "from pathlib import Path; from trdlib.ops import export\n"
    code += "for repo in ('owner/name', 'no/such/name'):\n try: export.push(Path('mine'), repo)\n"
    code += " except RuntimeError as error: print(error, error.__suppress_context__)\n"
    how = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), "PATH": "", "HF_HOME": "none"}
    done = subprocess.run([sys.executable, "-c", code], env=how, capture_output=True, text=True)
    for repo, line in zip(("owner/name", "no/such/name"), done.stdout.splitlines(), strict=True):
        assert line.startswith(f"the hub did not take {repo} (") and line.endswith(" True")
    assert not done.stderr


def test_the_card_has_our_row_of_the_table(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    run, about = get_run("tiny", "opd", "trd"), {"rows": 768, "learning_rate": 0.006}
    said = export.card(run, 0, about, merged=False)
    for name, at in store.read_json(run.metrics)["benchmarks"]["0.6"].items():
        found = at["avg_at_k"]
        low, high = 100 * found["low"], 100 * found["high"]
        assert f"{100 * found['value']:.1f} [{low:.1f}, {high:.1f}]" in said, name
    assert "trajectory y_r, divergence forward_kl" in said
    hub = get_run("qwen3-8b", "opsd", "trd")
    name, commit = hub.model_path("student", 0).split("@")
    said = export.card(hub, 0, about, merged=False)
    assert f"base_model: {name}" in said and f'("{name}", revision="{commit}")' in said
    assert hub.settings.data["train"]["repo"] in said


# ------------------------------------------------------------------------- doctor --project


def doctor(monkeypatch, capsys, *more):
    monkeypatch.setattr(sys, "argv", ["trdlib", "doctor", "--project", *more])
    code = cli.main()
    return code, capsys.readouterr().out


def lock_of(folder, stages):
    """A dvc.lock that knows these stages."""
    about = {name: {"cmd": "x", "outs": [{"path": "x", "md5": "x"}]} for name in stages}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": about}))


def test_a_whole_project_has_nothing_wrong(copy, monkeypatch, capsys):
    assert doctor(monkeypatch, capsys) == (0, "nothing is wrong\n")


def test_each_damage_is_named_with_what_happens_next(copy, monkeypatch, capsys):
    adapter = copy / "runs" / "smoke" / "distill" / "opd" / "sft" / "1" / "adapter"
    weights, y_o = adapter / "adapter_model.safetensors", copy / "runs" / "smoke" / "y_o.parquet"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    y_o.write_bytes(y_o.read_bytes()[: y_o.stat().st_size // 2])
    (copy / "results" / "training" / "smoke" / "opd" / "sft.json").write_text('{"grid": [')
    page = copy / "data" / "smoke" / "train.parquet"
    raw = bytearray(page.read_bytes())
    raw[60] ^= 255  # inside of a page: its checksum knows
    page.write_bytes(raw)
    code = "import os; from trdlib import store\n"
    code += "store.write_text('runs/smoke/a.json', '{}')\n"
    code += "store.write_whole('runs/smoke/a.json', lambda p: (p.touch(), os.kill(os.getpid(), 9)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    (half,) = (copy / "runs" / "smoke").glob(".a.json.*")
    (copy / "runs" / "smoke" / "evaluate" / "x.parquet.parts" / "f00").mkdir(parents=True)
    (copy / "runs" / "smoke" / "old.parquet.damaged").touch()
    code, said = doctor(monkeypatch, capsys, "--json")
    wrong = json.loads(said)["wrong"]
    assert code == 1
    assert wrong.keys() == {
        "data/smoke/train.parquet", "results/training/smoke/opd/sft.json", "runs/smoke/y_o.parquet",
        "runs/smoke/distill/opd/sft/1/adapter/run.json", f"runs/smoke/{half.name}",
        "runs/smoke/evaluate/x.parquet.parts", "runs/smoke/old.parquet.damaged",
    }  # fmt: skip
    # what it says will happen happens: moved aside, and made again with the same numbers
    before = store.read_json(adapter / "run.json")["weights"]
    run = get_run("smoke", "opd", "sft")
    task = tasks.of(run)
    distill.distill([run], task, task.sets(), {"opd": {}})
    rollout.rollout(run, task, task.sets()["train"])
    assert store.weights_hash(adapter) == before
    for name in wrong:
        if name.endswith(".damaged"):
            (copy / name).unlink()
        elif name.endswith((".parts", ".tmp")):
            shutil.rmtree(copy / name)
    left = json.loads(doctor(monkeypatch, capsys, "--json")[1])["wrong"]
    assert all(name.endswith(".damaged") for name in left), left


def test_the_lock_of_dvc(copy):
    def said():
        return project.wrong(load()).get("dvc.lock", "")

    whole = (copy / "dvc.lock").read_text()
    (copy / "dvc.lock").write_text(whole[: len(whole) // 2] + "\n  x: [")
    assert said().startswith("it is cut off, so dvc stops there: python -m trdlib lock")
    (copy / "dvc.lock").write_text("")
    assert "cut off" in said()
    (copy / "dvc.lock").unlink()
    assert "every stage" in said()
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["run"]["scales"] = ["smoke"]
    (copy / "params.yaml").write_text(yaml.safe_dump(params))
    lock_of(copy, ["models@smoke", "prepare@smoke"])
    there = said()
    assert "rollout@smoke" in there and "distill@smoke" in there
    assert "prepare" not in there and "evaluate" not in there  # it was never run
    names = ["models", "prepare", "rollout", "distill"]
    lock_of(copy, [f"{name}@smoke" for name in names])
    assert said() == ""


def test_a_lock_that_is_cut_off_is_mended(copy, monkeypatch, capsys):
    """Wherever a kill cuts it, DVC can read what is left, or `lock` puts git's in its place."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    def mend():
        monkeypatch.setattr(sys, "argv", ["trdlib", "lock"])
        assert cli.main() == 0
        return capsys.readouterr().err

    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", *who, *words], check=True, capture_output=True)

    path, aside = copy / "dvc.lock", copy / "dvc.lock.damaged"
    whole = path.read_bytes()
    assert mend() == "" and path.read_bytes() == whole and not aside.exists()
    half = whole[: len(whole) // 2]
    path.write_bytes(half)
    assert "git has none" in mend() and aside.read_bytes() == half and not path.exists()
    assert mend() == "" and not path.exists()
    git("init")
    git("add", "-f", "dvc.yaml", "params.yaml")
    path.write_bytes(whole)
    git("add", "-f", "dvc.lock")
    git("commit", "-m", "x")
    for left in (0, 1, *np.random.default_rng(0).integers(2, len(whole), 40)):
        path.write_bytes(whole[:left])
        said, now = mend(), path.read_bytes()
        assert len(said.splitlines()) == (now == whole), left
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(now))
    path.write_bytes(half)
    assert "git's is in its place" in mend() and path.read_bytes() == whole
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    rwlock = copy / project.RWLOCK
    status = lambda: Repo().status(["prepare@tiny"])  # noqa: E731
    status()
    for half in (b"", b'{"runs/stamps": {"wri'):
        rwlock.write_bytes(half)
        with pytest.raises(DvcException, match="rwlock"):  # DVC stops there
            status()
        assert project.wrong(load())[project.RWLOCK].startswith("it is cut off, so dvc stops")
        assert mend() == f"{project.RWLOCK} was cut off: deleted, DVC makes it anew\n"
        status()


def test_who_holds_a_lock(copy, monkeypatch, capsys):
    code = "import sys, time; from trdlib import store\n"
    code += (
        "with store.locked('runs/smoke/y_o.parquet'):\n print('held', flush=True)\n time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        code, said = doctor(monkeypatch, capsys)
        assert code == 0 and f"open lock runs-smoke-y_o.parquet: {holder.pid}, " in said
    finally:
        holder.kill()
        holder.wait()
    assert "open lock" not in doctor(monkeypatch, capsys)[1]
