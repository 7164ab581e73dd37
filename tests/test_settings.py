"""params.yaml and runs: what is wrong is said in one sentence, before any model loads."""

import copy
import re
import shlex
import tomllib
from unittest import mock

import pytest
import yaml
from conftest import REPOSITORY

from trdlib import settings, store, tasks
from trdlib.analysis import map as the_map
from trdlib.run import Run, get_run, get_runs


@pytest.fixture
def raw():
    return settings.read_yaml(REPOSITORY / "params.yaml")


def load(raw, tmp_path):
    path = tmp_path / "params.yaml"
    path.touch()
    with mock.patch.object(settings, "read_yaml", return_value=raw):  # slow, and tested below
        known = settings.load(path)
    for name, scale in known.scales.items():  # as `python -m trdlib check`
        tasks.check(name, scale)
        if scale.map:
            the_map.section(get_run(name, settings=known))
    return known


def test_the_shipped_file_is_valid(raw, tmp_path):
    known = load(raw, tmp_path)
    assert {"smoke", "tiny", "tiny-code"} <= set(known.scales)
    assert known.scales["tiny"].methods["reverse_kl_topk"].top_k == 4  # a scale overrides
    assert known.scales["tiny"].training.betas == (0.9, 0.95)  # a default stays
    assert known.scales["tiny-code"].lora == known.scales["tiny"].lora  # what anchors share


CHAIN_SET = {"kind": "chain", "problems": 1, "steps": [3]}


def at(raw, path, value):
    raw = copy.deepcopy(raw)
    *parents, last = path.split("/")
    section = raw
    for part in parents:
        section = section[int(part) if part.isdigit() else part]
    section[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("defaults/training/learning_rat", 1, "learning_rat: unknown key"),
        ("methods/trd/divergence", "wasserstein", "no divergence 'wasserstein': choose"),
        ("methods/reverse_kl_topk/top_k", 1, "top_k: .* equal to 2, not 1"),
        ("scales/tiny/methods/reverse_kl_topk", {"top_k": 1}, "top_k: .* equal to 2, not 1"),
        ("methods/sft/clip", 0.1, "has no teacher: drop top_k, clip"),
        ("methods/sft/skip_onsets", True, "has no teacher: drop top_k, clip"),
        ("methods/sft/divergence", "forward_kl", "y_star is trained with cross_entropy"),
        ("methods/off_policy/subset", "failed", "this subset need y_o or y_r"),
        ("methods/forward_kl/subset", "failed_then_passed", "need the trajectory y_r"),
        ("scales/tiny/models/teacher", None, "opd needs models.teacher"),
        ("scales/smoke/training/micro_batch_size", 3, "multiple of micro_batch_size 3"),
        ("scales/tiny/onsets", [], "onsets.*at least 1 item"),
        ("scales/tiny/rollout/temperature", -1, "temperature.*not -1"),
        ("scales/tiny/refinement/samples", 2, "refinement.samples must be 1"),
        ("run/scales", ["huge"], "no scale 'huge': choose from tiny, .*smoke.*smol"),
        ("run/methods", ["dpo"], "no method 'dpo'"),
        ("scales/tiny/modes", ["opd"], "no mode of the scale 'opsd'"),
        ("scales/tiny/variants/opsd", ["trd_lost"], "no method 'trd_lost'"),
        ("methods/trd_right/rounds", 2, "rounds need all rows: drop subset"),
        ("methods/seq_kd/rounds", 2, "rounds .* need y_o or y_r"),
        ("methods/reverse_kl_tail/top_k", None, "tail is of what top_k leaves out: set top_k"),
        ("methods/seq_kd/prune_below", 0.1, "cross_entropy has no teacher"),
        ("methods/reverse_kl_no_onsets/prune_below", 0.1, "drop skip_onsets"),
        ("scales/smol/only", ["dpo"], "no method 'dpo'"),
        ("methods/forward_kl/context", "plain", "context plain .* need the trajectory y_r"),
        ("scales/tiny-code/lora", {"rank": 8}, "tiny-code.lora.rank: unknown key"),
        ("scales/tiny-code/data/train", [CHAIN_SET], "no kind of problem 'chain'"),
        ("scales/tiny/data/tren", [CHAIN_SET], "data.tren: unknown key"),
        ("scales/tiny/pretraining/tokens", 1, "pretraining.tokens: unknown key"),
    ],
)
def test_one_sentence_for_each_fault(raw, tmp_path, path, value, words):
    with pytest.raises(settings.SettingsError) as error:
        load(at(raw, path, value), tmp_path)
    assert re.search(words, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


NONSENSE = {
    "training.learning_rates": ("[.inf]", "[1e9]", "[true]", "[1e-3,1e-3]", "[]", "[1e-320]"),
    "training.variant_learning_rates": ("[.inf]", "[0.1,0.1]", "[true]"),
    "training.weight_decay": (".inf", "1e9", "true"),
    "training.betas": ("[0.9,1.0]", "[1.0,0.9]", "[true,0.9]"),
    "training.temperature": ("0", "1e-308", ".inf"),
    "training.max_grad_norm": (".inf", "true", "1e-320"),
    "evaluation.confidence": ("0", "1e-300", "1"),
    "seeds": ("[0,0]", "[]", "[true]", "[-1]", "0"),
    "lora.targets": ("[]", "[q_proj,q_proj]", "q_proj"),
    "lora.r": ("true", "0", "1000000000000"),
    "rollout.max_new_tokens": ("1000000000000", "true", "2.5"),
    "rollout.temperature": ("1e-308", ".inf", ".nan", "true", "1e300"),
    "evaluation.also_at": (
        "{.inf: 1}", "{1e-308: 1}", "{1: true}", "{1: 1000000000000}", '{1: 2, "1.0": 4}',
        "{None: 1}", "[]", "text",
    ),
    "models.student": ("models/{run}", "models/{", "{}", "{seed:9}", "''"),
    "models.server.timeout": (".inf",),
    "models": ("None", "[]", "text", "5"),
    "methods.trd": ("None", "[]", "text", "5"),
    "only": ("[trd,trd]",),
}  # fmt: skip


@pytest.mark.parametrize("key", NONSENSE)
def test_nonsense_cannot_be_written_down(project, key):
    for value in NONSENSE[key]:
        with pytest.raises(settings.SettingsError) as error:
            get_run(shlex.join(["smoke", f"{key}={value}"]))
        said = str(error.value)
        assert said.startswith(f"scale smoke: {key}") and "\n" not in said, (value, said)
    with pytest.raises(settings.SettingsError, match=r"scale .* No closing quotation"):
        get_run("smoke 'lora.r=2")


def test_unreadable_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(settings.SettingsError, match=r"no params.yaml"):
        settings.load()
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(settings.SettingsError, match="cannot be read as YAML"):
        settings.load()
    (tmp_path / "params.yaml").write_text("a: 1")
    with pytest.raises(settings.SettingsError, match="needs the sections"):
        settings.load()


EMPTY = "run: {scales: [x], methods: [x]}\ndefaults: {}\nmethods: {}\nscales: {}\n"
BOMB = "b0: &b0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 25)
)

MERGES = "b0: &b0 {a: 1}\n" + "".join(
    f"b{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}]}}\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (EMPTY + "scales: {}\n", 'found duplicate key "scales"'),
        (EMPTY + "x: {a: 1, b: {c: 1, c: 2}}\n", 'line 5.*found duplicate key "c"'),
        (EMPTY + "x: &x {y: *x}\n", "an alias holds itself"),
        (EMPTY + "x: &x [[*x]]\n", "an alias holds itself"),
        (EMPTY + "x: &x {y: &y {<<: *x}}\n", "an alias holds itself"),
        (EMPTY + BOMB, "unfolds into millions of values"),
        (EMPTY + MERGES, "unfolds into millions of values"),
        *((EMPTY + f"{key}: x\n", "Keys should be strings") for key in ("1", "null", "[a]")),
        (EMPTY.replace("scales: {}", "scales: {1: {}}"), "scales.1: .* valid string"),
        (EMPTY + f"x: {'9' * 6000}\n", "cannot be read"),
        (EMPTY + f"x: {2**63}\n", "no number here may be as large as 9223372036854775808"),
        (EMPTY + "x: 2026-13-45\n", "cannot be read as YAML: month must be in"),
        (EMPTY + '"\\ud800": 1\n', "unable to parse raw data as a unicode string"),
        (EMPTY + "x: !!python/object/apply:os.abort []\n", "could not determine a constructor"),
        (EMPTY + "x: " + "[" * 900 + "]" * 900, "maximum recursion depth"),
        (EMPTY + "---\na: 1\n", "expected a single document"),
        ("run: \u00e4".encode("latin-1"), "YAML: unacceptable character"),
        (bytes(range(256)), "YAML: unacceptable character"),
        (EMPTY.encode("utf-16-le"), "YAML: unacceptable character"),
        ("", "needs the sections"),
        ("- a\n", "needs the sections"),
        *(
            (EMPTY.replace(f"{name}: {{}}", f"{name}: {value}"), "the sections .* each a mapping")
            for name in ("defaults", "methods", "scales")
            for value in ("null", "[]", "[1]", "text", "5")
        ),
    ],
)
def test_a_file_that_is_no_settings(tmp_path, content, words):
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(settings.SettingsError) as error:
        settings.load(path)
    assert re.search(words, str(error.value)) and "\n" not in str(error.value), str(error.value)


def test_what_yaml_may_do(tmp_path):
    """Merges that overlap (the first wins, what stands there itself over both), a byte order mark;
    and params.yaml reads as by another library."""
    path = tmp_path / "params.yaml"
    more = "x: &x {a: 1, b: &b [1, 2]}\ny: &y {<<: *x, a: 2, c: *b}\nz: {<<: [*y, *x], d: *b}\n"
    path.write_bytes(b"\xef\xbb\xbf" + more.encode())
    y = {"a": 2, "b": [1, 2], "c": [1, 2]}
    assert settings.read_yaml(path) == {"x": {"a": 1, "b": [1, 2]}, "y": y, "z": y | {"d": [1, 2]}}
    text = (REPOSITORY / "params.yaml").read_text()
    path.write_text(text)
    assert settings.read_yaml(path) == yaml.safe_load(text)


NAMES = ["../x", "a/b", "x;touch y", "a b", "5x", "-x", ".x", "\u00e4", "", "x" * 81, "a\n", "a\0"]
TAKEN = ["train", "validation", "All", "none", "base", "base_again", "teacher", "stamps"]


def test_one_rule_for_names():
    for name in NAMES:
        with pytest.raises(ValueError, match=r"cannot be a name: at most 80 letters, digits"):
            settings.check_name(name)
    for name in (*TAKEN, "models-tiny"):  # the last: a stamp of the scale tiny
        with pytest.raises(ValueError, match="has a meaning of its own here"):
            settings.check_name(name)
    for name in ("qwen3-1.7b", "tiny_code", "A", "models", "training", "sums.py", "x" * 80):
        assert settings.check_name(name) == name


@pytest.mark.parametrize("name", ["../x", "train"])
def test_the_rule_holds_for_scales_methods_benchmarks_and_tasks(raw, tmp_path, name):
    """They become paths, commands, and names beside those of the sets."""
    data = copy.deepcopy(raw["scales"]["qwen3-1.7b"]["data"])
    data["benchmarks"][name] = data["benchmarks"]["aime24"]
    recipe = {"trajectory": "y_o", "divergence": "jsd"}
    for path, value in (
        ("scales", {**raw["scales"], name: raw["scales"]["tiny"]}),
        ("methods", {**raw["methods"], name: recipe}),
        ("scales/tiny/methods", {name: recipe}),
        ("scales/tiny/data/benchmarks", {name: CHAIN_SET}),
        ("scales/qwen3-1.7b/data", data),
        ("scales/tiny/task", f"{name}/sums.py"),
    ):
        with pytest.raises(settings.SettingsError) as error:
            load(at(raw, path, value), tmp_path)
        assert re.search("cannot be a name|a meaning of its own", str(error.value)), str(
            error.value
        )
        assert "\n" not in str(error.value)


def test_paths_follow_the_design(project):
    run = get_run("smoke", "opsd", "trd")
    places = [
        run.data, run.attempts, run.rewrites("y_r"), run.adapter(1), run.samples(1, 0.6, "chain"),
    ]  # fmt: skip
    places += [run.choice, run.metrics]
    assert [str(p.relative_to(project)) for p in places] == [
        "data/smoke", "runs/smoke/y_o.parquet", "runs/smoke/refine/opsd/y_r.parquet",
        "runs/smoke/distill/opsd/trd/1/adapter", "runs/smoke/evaluate/opsd/trd/1/0.6/chain.parquet",
        "results/training/smoke/opsd/trd.json", "results/metrics/smoke/opsd/trd.json",
    ]  # fmt: skip


def test_all_means_what_dvc_runs(project):
    names = [str(run) for run in get_runs("smoke", "all", "all")]
    known = settings.load()
    more = known.scales["smoke"].variants
    assert names == [
        f"smoke/{mode}/{m}" for mode in ("opd", "opsd") for m in (*known.run.methods, *more[mode])
    ]
    assert [str(r) for r in get_runs("smoke", "opsd", "trd")] == ["smoke/opsd/trd"]
    rows = [run.method for run in get_runs("qwen3-8b", "none", "all")]
    assert rows == ["base", "base_again"]  # it has no teacher
    only = ("reverse_kl", "trd", "sft_refined")
    assert [str(r) for r in get_runs("smol", "all", "all")] == [f"smol/opd/{m}" for m in only]


def test_the_refine_prompt_has_the_papers_room():
    """Paper section 3: 18,432 tokens for OPD, 22,528 for OPSD."""
    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    lengths, response = raw["defaults"]["lengths"], raw["defaults"]["rollout"]["max_new_tokens"]
    known = settings.load(REPOSITORY / "params.yaml")
    scale = known.scales["tiny"]
    rollout = scale.rollout.model_copy(update={"max_new_tokens": response})
    changes = {"lengths": settings.Lengths(**lengths), "rollout": rollout}
    known = known.model_copy(update={"scales": {"tiny": scale.model_copy(update=changes)}})
    for mode, room in (("opd", 18_432), ("opsd", 22_528)):
        run = Run("tiny", mode, "trd", known)
        assert run.teacher_prompt_limit(with_attempt=True) == room


def test_hashes_tell_content_apart(tmp_path):
    assert store.content_hash({"a": 1, "b": 2}) == store.content_hash({"b": 2, "a": 1})
    assert store.content_hash([1, 2]) != store.content_hash([2, 1])
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first = store.weights_hash(tmp_path)
    file.write_bytes(b"other")
    assert store.weights_hash(tmp_path) != first
    file.unlink()
    with pytest.raises(FileNotFoundError):
        store.weights_hash(tmp_path)


def test_other_files_name_what_pyproject_does():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    expected = project["dependencies"] + project["optional-dependencies"]["test"]
    assert pip == [*expected, "-e ."]
    assert f"python={project['requires-python'].split(',')[0][2:]}" in conda["dependencies"]
