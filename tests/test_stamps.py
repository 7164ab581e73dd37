"""What a stage of dvc.yaml depends on is found, all of it, and nothing that does not shape it."""

import json
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from conftest import REPOSITORY

from trdlib import models, store
from trdlib.ops import cli, notebooks
from trdlib.run import get_run
from trdlib.settings import SettingsError

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of trdlib that may be changed: where `notebooks` looks."""
    skip = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(notebooks.PACKAGE, tmp_path / "trdlib", ignore=skip)
    monkeypatch.setattr(notebooks, "PACKAGE", tmp_path / "trdlib")
    return tmp_path / "trdlib"


def hashes(paths=NOTEBOOKS):
    return {path.stem: notebooks.made_of(path) for path in paths}


# ------------------------------------------------------------------ every way to depend on a file

FORMS = {  # file of a package -> source; "used" files are those that the notebook needs
    "__init__.py": "",
    "parenthesised.py": "",
    "aliased.py": "",
    "dotted.py": "def f():\n    from trdlib.inner import late\n",
    "unused.py": "from trdlib import also_unused",
    "also_unused.py": "",
    "read.py": "PAGE = 'page.html'\nimportlib.import_module('trdlib.named')\nRUN = 'script.py'",
    "page.html": "<p>",
    "script.py": "import math\nimport helper\nTEXTS = Path(__file__).with_suffix('.yaml')",
    "script.yaml": "a: 1",
    "read.yaml": "a: 1",
    "helper.py": "",
    "math.py": "",
    "other.html": "<p>",
    "named.py": "'''Not unused.py, nor trdlib.unused: a docstring names them.'''",
    "inner/__init__.py": "from . import sibling\nfrom .. import parent",
    "inner/sibling.py": "from .nephew import thing as other",
    "inner/nephew.py": "thing = 1",
    "inner/late.py": "from ..uncle import thing",
    "inner/unused.py": "",
    "parent.py": "def load(name):\n    return import_module(f'trdlib.plugins.{name}')",
    "uncle.py": "thing = 1",
    "plugins/__init__.py": "",
    "plugins/one.py": "",
    "plugins/two.py": "",
}
CELLS = [
    "%matplotlib inline\nfrom trdlib import (\n    parenthesised,  # a comment\n    read,\n)",
    "import trdlib.aliased as short, json\nimport trdlib.dotted\nx = (5\n     % 3)",
]


def test_every_form_of_import_is_followed_and_nothing_else(tmp_path, monkeypatch):
    package = tmp_path / "trdlib"
    for name, source in FORMS.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    monkeypatch.setattr(notebooks, "PACKAGE", package)
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    cells.append(nbformat.v4.new_markdown_cell("from trdlib import unused"))
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    unused = {
        "unused.py", "also_unused.py", "other.html", "read.yaml", "math.py", "inner/unused.py",
    }  # fmt: skip
    used = {f"trdlib/{name}" for name in FORMS.keys() - unused}
    assert {*notebooks.made_of(path)["trdlib"]} == used
    for name in FORMS:
        before, source = hashes([path]), (package / name).read_text()
        (package / name).write_text(source + "\nchanged = 1\n")
        assert (hashes([path]) != before) == (name not in unused), name
        (package / name).write_text(source)
    assert "trdlib/uncle.py" in notebooks.hashes("from trdlib.inner.late import thing")
    assert "trdlib/dotted.py" not in notebooks.hashes("from trdlib.inner.late import thing")


# -------------------------------------------------------------------------- our own notebooks

# Runs a notebook's imports, and says which files of trdlib that loaded.
LOADED = """
import ast, json, sys
sys.path.insert(0, sys.argv[1])
import matplotlib; matplotlib.use("agg")
found = {}
for path in sys.argv[2:]:
    for name in [n for n in sys.modules if n.partition(".")[0] == "trdlib"]:
        del sys.modules[name]
    cells = json.load(open(path))["cells"]
    code = "\\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), path, "exec"), {})
    used = [m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "trdlib"]
    found[path] = [file for file in used if file]
print(json.dumps(found))
"""
# What no import at a module's top shows, and what must not be there.
KNOWN = {
    "2_rollout": (
        {"tasks/tinycode.py", "tasks/code.py", "sandbox/jail.py", "engines.py"},
        {"distill.py", "analysis/tables.py", "ops/plan.py", "ops/cli.py"},
    ),
    "6_diagnose": ({"distill.py", "divergence.py"}, {"analysis/audit.py", "ops/sweep.py"}),
    "7_tables": (
        {"analysis/show.py", "stats.py"},
        {"analysis/explore.py", "analysis/explore.html"},
    ),
    "8_audit": (
        {"analysis/audit.py", "analysis/compare.py"},
        {"distill.py", "engines.py", "tasks/math.py"},
    ),
    "0_explore": ({"analysis/explore.html", "prompts.py"}, {"analysis/audit.py"}),
}


def test_what_a_notebook_loads_it_depends_on(tmp_path):
    """A lower bound that owes nothing to the parsing of imports, and what we know by hand."""
    (tmp_path / "script.py").write_text(LOADED)
    command = [sys.executable, "-m", "script", str(REPOSITORY), *map(str, NOTEBOOKS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for path, files in json.loads(done.stdout.splitlines()[-1]).items():
        loaded = {file.removeprefix(f"{REPOSITORY}/") for file in files}
        stem = path.rpartition("/")[2].removesuffix(".ipynb")
        found = {*notebooks.made_of(REPOSITORY / "notebooks" / f"{stem}.ipynb")["trdlib"]}
        assert len(loaded) > 5 and loaded <= found, (stem, loaded - found)
        for name in KNOWN.get(stem, [()])[0]:
            assert f"trdlib/{name}" in found, (stem, name)
        for name in KNOWN.get(stem, [(), ()])[1]:
            assert f"trdlib/{name}" not in found, (stem, name)


def test_a_line_of_code_makes_stale_who_depends_on_it_and_a_comment_nobody(package):
    files = [p for p in sorted(package.rglob("*")) if p.is_file()]
    depends = {path.stem: {*notebooks.made_of(path)["trdlib"]} for path in NOTEBOOKS}
    imports = {
        path.stem: "\n".join(
            cell.source for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "code" and "import" in cell.source
        )
        for path in NOTEBOOKS
    }  # fmt: skip

    def stamps():
        return {stem: notebooks.hashes(source) for stem, source in imports.items()}

    before = stamps()
    for path in files:
        source, name = path.read_text(), path.relative_to(package.parent).as_posix()
        path.write_text(source + "\nchanged = 1\n")
        stale = {stem for stem, stamp in stamps().items() if stamp != before[stem]}
        assert stale == {stem for stem, found in depends.items() if name in found}, name
        if path.suffix == ".py":
            words = source.replace('"""', '"""Other words. ', 1) if source[:3] == '"""' else source
            path.write_text(words + "\n# a comment\n")
            assert stamps() == before, name
        path.write_text(source)
    assert stamps() == before
    unused = {p.relative_to(package.parent).as_posix() for p in files} - set.union(
        *depends.values()
    )
    alone = ("__main__.py", "ops/cli.py", "ops/cli.yaml", "ops/plan.py", "ops/plan.yaml",
             "ops/pilot.py", "ops/doctor.py", "ops/project.py", "ops/project.yaml", "ops/export.py",
             "ops/card.md", "ops/papermill_engine.py", "ops/verdict.py",
             "ops/verdict.yaml")  # fmt: skip
    assert unused == {f"trdlib/{name}" for name in alone}  # no stage: the command line


def test_outputs_and_words_of_a_notebook_shape_nothing(tmp_path):
    path = tmp_path / "2_rollout.ipynb"
    shutil.copy(REPOSITORY / "notebooks" / path.name, path)
    before, node = notebooks.made_of(path), nbformat.read(path, as_version=4)
    node.cells[0].source += "\nMore words."
    node.cells[-1].outputs = [nbformat.v4.new_output("stream", text="1")]
    node.cells[-1].source += "\n# a comment"
    nbformat.write(node, path)
    assert notebooks.made_of(path) == before
    node.cells[-1].source += "\nprint()"
    nbformat.write(node, path)
    assert notebooks.made_of(path) != before


# ------------------------------------------------------------------------------- the stamps of DVC


def change(project, path, value):
    params = yaml.safe_load((project / "params.yaml").read_text())
    *parents, last = path.split("/")
    section = params
    for part in parents:
        section = section[int(part) if part.isdigit() else part]
    section[last] = value
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture
def stamped(project, package):
    """stamped() -> {name of a stamp: (its content, when it was written)}, of smoke and tiny."""
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    change(project, "run/scales", ["smoke", "tiny"])

    def stamped(*scales):
        cli.stamp(list(scales))
        paths = (project / "runs" / "stamps").glob("*.json")
        return {path.stem: (path.read_text(), path.stat().st_mtime_ns) for path in paths}

    return stamped


@pytest.mark.parametrize(
    ("path", "value", "stale"),
    [
        ("scales/smoke/lora", {"r": 2, "alpha": 2}, {"smoke"}),
        ("defaults/training/max_grad_norm", 0.5, {"smoke", "tiny"}),
        ("scales/tiny/pretraining/student/steps", 11, {"models-tiny"}),
        ("scales/smoke/workers", 2, set()),
        ("defaults/tracker", "tensorboard", set()),
        ("scales/smoke/map/test_problems", 5, set()),
        ("methods/trd", {"trajectory": "y_r", "divergence": "reverse_kl"}, {"smoke", "tiny"}),
        ("methods/mine", {"trajectory": "y_r", "divergence": "jsd"}, set()),  # it is not run
        ("scales/smoke/only", ["trd"], {"smoke"}),
        ("scales/tiny/variants", {}, {"tiny"}),
    ],
)
def test_a_setting_makes_stale_what_it_shapes(stamped, project, path, value, stale):
    before = stamped()
    change(project, path, value)
    after = stamped()
    assert {name for name in after if after[name][0] != before[name][0]} == stale
    # what is unchanged is not written again: DVC need not read it
    assert {name for name in after if after[name] != before[name]} == stale


def test_a_task_of_ones_own_makes_its_scale_stale(stamped, project):
    part = {"problems": 2, "steps": [1]}
    data = {"train": [part], "validation": [part], "benchmarks": {"own": part}}
    own = {"task": "mine/own.py", "data": data, "pretraining": None, "map": None}
    for name, value in own.items():
        change(project, f"scales/smoke/{name}", value)
    (project / "mine").mkdir()
    found = []
    for source in ("def draw(rng, steps): return 1", "def draw(rng, steps): return 2"):
        (project / "mine" / "own.py").write_text(source)
        found.append(stamped())
    before, after = found
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"smoke", "models-smoke"}  # it may make its models, too


def test_a_scale_with_the_models_of_another_names_them(stamped, project):
    """So that `dvc exp run -S 'run.scales=[...]'` finds its output, and sees when they change."""
    smoke = yaml.safe_load((project / "params.yaml").read_text())["scales"]["smoke"]
    change(project, "scales/borrower", smoke)
    run, before = get_run("borrower", "opd"), stamped("borrower")
    names = [run.model_path(role, s) for s in run.settings.seeds for role in ("student", "teacher")]
    cli.models("borrower")
    used = store.read_json(project / "models" / "borrower" / "used.json")
    assert used == {name: models.identity(name) for name in names}
    weights = project / names[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    assert stamped("borrower")["models-borrower"][0] != before["models-borrower"][0]
    shutil.rmtree(project / names[0])
    owner = names[0].split("/")[1]
    wants = f"uses {names[0]}, which is not there: make them: .* models --scale {owner}"
    with pytest.raises(SettingsError, match=wants):
        cli.models("borrower")


def test_other_scales_are_stamped_when_asked(stamped):
    assert {"smoke-code", "models-smoke-code"} <= {*stamped("smoke-code")}


def test_stages_depend_on_stamps_that_are_written(stamped):
    """Each notebook's stage on what the notebook is made of; no stage on a module by name."""
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    written, ran = stamped(), set()
    assert stages.pop("stamp")["always_changed"]
    for name, stage in stages.items():
        deps = [one.replace("${item.scale}", "smoke") for one in stage.get("deps", [])]
        assert not [one for one in deps if one.startswith("trdlib") or one.endswith(".py")], name
        stamps = {one.removeprefix("runs/stamps/").removesuffix(".json") for one in deps
                  if one.startswith("runs/stamps/")}  # fmt: skip
        assert stamps <= written.keys(), name
        command = " ".join(stage["cmd"]) if isinstance(stage["cmd"], list) else stage["cmd"]
        for path in (word for word in command.split() if word.startswith("notebooks/")):
            stem = path.removeprefix("notebooks/").removesuffix(".ipynb")
            if path.endswith(".ipynb"):
                assert stem in stamps, name
                ran.add(stem)
        if "matrix" in stage:
            assert stamps & {"smoke", "models-smoke"}, name
    by_hand = {"0_explore", "6_map", "9_sweep"}  # not of the pipeline
    assert ran == {path.stem for path in NOTEBOOKS} - by_hand


def test_a_fault_is_said_in_one_sentence_before_torch_is_imported(stamped, project):
    def run():
        command = [sys.executable, "-X", "importtime", "-m", "trdlib", "stamp"]  # the copy here
        done = subprocess.run(command, capture_output=True, text=True)
        imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
        assert "pydantic" in imported
        assert not imported & {"torch", "transformers", "sympy", "nbformat"}
        return done.returncode, done.stderr.splitlines()[-1]

    assert run()[0] == 0
    change(project, "scales/smoke/data/train/0/problem", 6)
    code, said = run()
    assert code == 1 and said.startswith("error: ") and "problem: unknown key" in said
