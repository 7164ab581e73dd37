"""Looking inside: the numbers are those of a full softmax and of training, the page is safe, and
the notebook works in a real browser against a real server, by keyboard."""

import base64
import contextlib
import hashlib
import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audit import defined

from trdlib import distill, models, prompts, store, tasks
from trdlib.analysis import explore
from trdlib.evaluate import evaluate
from trdlib.refine import Pair, rows_of, training_sets
from trdlib.run import get_run

notebook = defined("0_explore")


def shake(student) -> None:
    """An adapter that does something: as after training."""
    torch.manual_seed(5)
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)


@pytest.fixture
def project(made_project):
    return made_project


# ------------------------------------------------------------------------------------ the numbers


def in_float64(run, role, seed, prompt, response, merged=None):
    """log-softmax (n, V) at the response positions, from a model's own full logits."""
    name = run.model_path(role, seed)
    model, tokenizer = models.load(name, run.settings.models, run.context_length)
    model = (merged or model).double()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    return logits[len(prompt) - 1 : -1, : len(tokenizer)].log_softmax(-1)


@pytest.mark.parametrize("mode", ["opd", "opsd"])
def test_numbers_are_those_of_a_full_softmax_in_float64(project, made, mode):
    run = get_run("smoke", mode, "reverse_kl")
    loaded = explore.load(run, 1)._replace(trained=True)
    shake(loaded.distiller.student)
    row = made.sets["train"].iloc[0].to_dict()
    response = [*loaded.tokenizer.encode("o-6=0\nWait,p+0=1\n\\boxed{1}"), 2]
    x = prompts.student_prompts(run, 1, [row])[0].ids
    context = prompts.teacher_prompts(run, 1, [row], ["o-6=3\n"])[0].ids
    pair = Pair(x, context, response)
    teacher = in_float64(run, "student" if mode == "opsd" else "teacher", 1, context, response)
    step0 = in_float64(run, "student", 1, x, response)
    found = {trained: explore.score(loaded, pair, trained=trained) for trained in (False, True)}
    after = in_float64(run, "student", 1, x, response, loaded.distiller.student.merge_and_unload())
    onsets = [loaded.tokenizer.convert_tokens_to_ids(w) for w in run.settings.onsets]
    index = torch.tensor(response)[:, None]
    for trained, s in ((False, step0), (True, after)):
        t, values = teacher, found[trained]["values"]
        expected = {
            "student_logp": s.gather(1, index)[:, 0],
            "teacher_logp": t.gather(1, index)[:, 0],
            "student_entropy": -(s.exp() * s).sum(-1),
            "teacher_entropy": -(t.exp() * t).sum(-1),
            "forward_kl": (t.exp() * (t - s)).sum(-1),
            "reverse_kl": (s.exp() * (s - t)).sum(-1),
            "divergence": (s.exp() * (s - t)).sum(-1),  # the method's
            "onset_mass": t.exp()[:, onsets].sum(-1),
        }
        assert set(values) == set(expected)
        for name, numbers in expected.items():
            assert values[name] == pytest.approx(numbers.tolist(), rel=1e-3, abs=2e-5), name
        for role, said in (("student", s), ("teacher", t)):
            top = found[trained]["top"][role]
            best = said.exp().topk(explore.TOP)
            assert np.allclose(top["p"], best.values, rtol=1e-3, atol=2e-5)
            own = said.exp().gather(1, torch.tensor(top["ids"]))
            assert np.allclose(own, best.values, rtol=1e-3, atol=2e-5)
    assert found[True]["values"]["student_logp"] != found[False]["values"]["student_logp"]


def test_a_view_shows_what_training_sees(project, made):
    tables, problems = made.tables["opd"], made.sets["train"]
    for method, name in (("trd", "y_r"), ("forward_kl_clip", "y_o"), ("trd_plain", "y_r"),
                         ("sft_refined", "y_r")):  # fmt: skip
        run = get_run("smoke", "opd", method)
        task = tasks.of(run)
        rows = training_sets([run], problems, {"opd": tables})[0].rows[0]
        losses = explore.token_losses(distill.build(run, 0), rows)
        y_o = tables["y_o"]
        case = y_o[y_o["seed"] == 0][3:4]
        row = rows_of(problems, case)[0]
        loaded = explore.load(run, 0)
        view = explore.view(loaded, task, tables, row)
        text = next(t for t in view["texts"] if t["name"] == name)
        assert text["ids"] == rows[3].response_ids == list(tables[name]["token_ids"][3])
        assert text["values"]["divergence"] == pytest.approx(losses[3].tolist(), rel=1e-3, abs=1e-5)
        sees = {t["name"]: t["teacher_sees"] for t in view["texts"]}
        attempt = f"Attempt:\n{tables['y_o']['text'][3]}\nRewrite"
        assert (attempt in sees["y_r"]) == (method != "trd_plain") and "Attempt" not in sees["y_o"]
        for shown in view["texts"]:
            spelled = loaded.tokenizer.convert_ids_to_tokens(shown["ids"])
            wrong = task.first_wrong(row["problem"], spelled)
            assert shown["wrong"] == (wrong and wrong.index)
        assert view["texts"][-1]["name"] == "y_star" and view["texts"][-1]["wrong"] is None
        spelled = "".join(view["vocabulary"][str(i)] for i in text["ids"])
        assert spelled == loaded.tokenizer.decode(text["ids"])
        json.dumps(view, allow_nan=False)


# ------------------------------------------------------------------------------ diff and filters


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_matches_are_shared_tokens_in_order(drawn):
    ids = st.lists(st.integers(0, 4), max_size=25)
    a, b = drawn.draw(ids), drawn.draw(ids)
    end_a = end_b = 0
    for i, j, n in explore.matches(a, b, {0}):
        assert n > 0 and i >= end_a and j >= end_b
        assert a[i : i + n] == b[j : j + n]
        end_a, end_b = i + n, j + n
    assert explore.matches(a, a, {0}) == ([[0, 0, len(a)]] if a else [])


def test_matches_whole_lines_then_tokens_within():
    # lines (0 ends one): [1 2 0][3 4 0][5]  against  [9 9 0][1 2 0][3 7 0][5]
    assert explore.matches([1, 2, 0, 3, 4, 0, 5], [9, 9, 0, 1, 2, 0, 3, 7, 0, 5], {0}) == [
        [0, 3, 4], [5, 8, 2],
    ]  # fmt: skip


def test_each_filter_keeps_what_it_says():
    names = ["fp", "pf", "ff", "pp"]
    cases = pd.DataFrame(
        {
            "id": names,
            "correct": [False, True, False, True],
            "correct_after": [True, False, False, True],
            "n_tokens": [5, 9, 7, 9],
            "finished": [True, True, False, True],
            "finished_after": [True, True, True, True],
        }
    )
    found = {which: list(cases.query(kept)["id"]) for which, kept in notebook.FILTERS.items()}
    assert found == {
        "all": names,
        "failed → passed": ["fp"],
        "passed → failed": ["pf"],
        "longest": names,
        "unfinished": ["ff"],
    }


def test_answers_before_and_after_training(project, made):
    run, base = get_run("smoke", "opd", "trd"), get_run("smoke", "none", "base")
    task, adapters = tasks.of(run), {}
    for seed in run.settings.seeds:
        student = distill.build(run, seed).student
        shake(student)
        adapters[seed] = run.adapter(seed)
        student.save_pretrained(adapters[seed])
    before, after = (at[0.6] for at in evaluate([base, run], task, made.sets, [None, adapters]))
    tables = {"base": before["chain"], "trd": after["chain"]}
    row = made.sets["chain"].iloc[1].to_dict()
    view = explore.view(explore.load(run, 0, adapters[0]), task, tables, row, 1)
    looked = {t["name"]: t["student"] for t in view["texts"]}
    assert looked == {"base": "at step 0", "trd": "after training", "y_star": "at step 0"}
    for name, table in tables.items():
        mine = table[(table["id"] == row["id"]) & (table["sample"] == 1) & (table["seed"] == 0)]
        text = next(t for t in view["texts"] if t["name"] == name)
        assert text["ids"] == list(mine["token_ids"].iloc[0])
    with pytest.raises(ValueError, match="no sample 9 of chain-0001 for seed 0"):
        explore.view(explore.load(run, 0), task, tables, row, 9)
    with pytest.raises(ValueError, match="no reference solution, and in mode opsd"):
        explore.view(explore.load(run.with_("opsd"), 0), task, tables, row | {"solution": ""})


# -------------------------------------------------------------------------- a problem of one's own


def test_a_live_problem_is_attempted_rewritten_and_graded(project):
    run = get_run("smoke", "opsd", "trd")
    task, loaded = tasks.of(run), explore.load(run, 0)
    row = task.problem("Route#BLQfl")
    first, again, other = (explore.live(loaded, task, row, draw=draw) for draw in (0, 0, 1))
    assert first == again and first["texts"] != other["texts"]
    y_o, y_r, y_star = first["texts"]
    said = loaded.tokenizer.decode(y_o["ids"], skip_special_tokens=True)
    assert f"Reference:\n{row['solution']}\nAttempt:\n{said}" in y_r["teacher_sees"]
    assert y_star["correct"] and y_star["wrong"] is None
    ungraded = explore.live(loaded, task, row | {"answer": ""})
    assert [t["correct"] for t in ungraded["texts"]] == [None, None, True]
    with pytest.raises(ValueError, match="not been trained: run notebook 4_distill"):
        explore.live(loaded, task, row, trained=True)


def test_a_frame_holds_the_page_apart_from_the_notebook(recwarn):
    view = a_view(["a", '"></iframe><script>window.hacked=1</script>'])
    shown = explore.frame(view).data.strip()
    assert not recwarn.list  # it would stand in the notebook, in red
    assert shown.startswith('<iframe title="the view" sandbox="allow-scripts" ')
    assert shown.count("<") == 2  # the frame's own two
    inside = shown.partition('srcdoc="')[2].removesuffix('"></iframe>')
    assert html.unescape(inside) == explore.page(view)


# ----------------------------------------------------------------------------------------- the page

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "</pre></noscript><svg onload=window.hacked=1>",
    "{{view}}{{policy}}\\1\\g<0>",
    "\"'`${window.hacked=1}\u2028\u202e\x00\ufeff&lt;",
]


def a_view(words: list[str]) -> dict:
    """A view as explore makes them, with these words in every place where text stands."""
    n, text = len(words), " ".join(words)
    values = dict.fromkeys(
        ("divergence", "forward_kl", "reverse_kl", "student_entropy", "teacher_entropy"), [0.5] * n
    )
    values |= {"student_logp": [-0.1] * n, "teacher_logp": [-2.0] * n, "onset_mass": [0.1] * n}
    tops = {"ids": [list(range(n))] * n, "p": [[1 / n] * n] * n}

    def one(name, ids, wrong):
        return {
            "name": name, "label": text, "ids": ids, "correct": wrong is None, "finished": True,
            "student": "at step 0", "student_sees": text, "teacher_sees": text, "wrong": wrong,
            "right": 0, "values": values, "top": {"student": tops, "teacher": tops},
        }  # fmt: skip

    ids = list(range(n))
    return {
        "run": {"scale": text, "mode": "opd", "method": text, "seed": 0,
                "divergence": "forward_kl", "trajectory": "y_r", "clip": None, "top_k": None},
        "problem": dict.fromkeys(("id", "source", "problem", "answer", "solution"), text),
        "vocabulary": {str(i): w for i, w in enumerate(words)}, "end": n - 1,
        "texts": [one("y_o", ids, 1), one("y_r", [0, 0, *ids[2:]], None)],
        "matches": {"y_o/y_r": [[0, 0, 1], [2, 2, n - 2]]},
    }  # fmt: skip


def script_of(page: str) -> str:
    return re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)[1]


def test_an_export_is_one_safe_file():
    harmless = explore.page(a_view(["a", "b", "c", "d", "e"]))
    page = explore.page(a_view(HOSTILE))
    for tag in ("<script", "</script", "<img", "<svg", "<noscript", "</noscript", "<pre", "</pre"):
        assert page.count(tag) == harmless.count(tag), tag
    stored = re.search(r'<script type="application/json" id="trd-view">(.*?)</script>', page, re.S)
    assert json.loads(stored[1]) == json.loads(json.dumps(a_view(HOSTILE)))
    assert script_of(page) == script_of(harmless)
    digest = base64.b64encode(hashlib.sha256(script_of(page).encode()).digest()).decode()
    policy = re.search(r'Policy" content="([^"]*)"', page)[1]
    style, script = "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'"
    assert policy == f"default-src 'none'; img-src data:; {style}; {script}"
    rest = page.replace(stored[1], "")
    assert not re.search(r"https?:|(?:src|href)=\"(?!data:)|@import|url\(|\bfetch\(|XMLHttp", rest)
    # model output goes onto the page as text only
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", page)


# ------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra [test])")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{switch}")
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


def wait(browser, condition, seconds=90):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.1).until(lambda _: condition())


def find(where, selector):
    return where.find_elements("css selector", selector)


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def errors(browser) -> list[str]:
    return [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def at_cursor(pane) -> str:
    cursor = find(pane, ".t.cursor")
    assert len(cursor) == 1
    assert find(pane, ".text")[0].get_attribute("aria-activedescendant") == cursor[0].get_attribute(
        "id"
    )
    return cursor[0].get_attribute("aria-label")


PAINTED = """
return [...arguments[0].querySelectorAll(".t")].map(t => t.style.getPropertyValue("--p"));
"""


def by_keyboard(browser, root) -> None:
    """Walk through a view, with two different texts, as one who has no mouse."""
    from selenium.webdriver.common.keys import Keys

    left, right = find(root, ".pane")
    browser.execute_script("arguments[0].focus()", find(left, "select")[0])
    press(browser, Keys.TAB)
    assert browser.switch_to.active_element == find(left, ".text")[0]
    assert browser.execute_script(
        "return getComputedStyle(document.activeElement).outlineStyle") == "solid"  # fmt: skip
    words = [t.get_attribute("aria-label") for t in find(left, ".t")]
    wrong = [i for i, t in enumerate(find(left, ".t")) if "first wrong token" in words[i]]
    press(browser, Keys.HOME)
    assert at_cursor(left) == words[0]
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert at_cursor(left) == words[1]
    assert f"token 2 of {len(words)}" in find(root, ".detail h3")[0].text
    press(browser, Keys.END)
    assert at_cursor(left) == words[-1]
    press(browser, "w")
    assert at_cursor(left) == words[wrong[0] if wrong else -1]
    press(browser, Keys.HOME, "d")
    assert "not in" in at_cursor(left)
    legend, shades = find(root, ".legend")[0], set()
    for digit in "1234567":
        press(browser, digit)
        painted = browser.execute_script(PAINTED, root)
        shades.add((legend.text, tuple(painted)))
        assert find(root, ".values .shade td")[0].text == legend.text.split(",")[0].split("\n")[0]
    assert len(shades) == 7
    press(browser, Keys.TAB, Keys.TAB, Keys.TAB)  # the contexts, the choice on the right, its text
    assert browser.switch_to.active_element == find(right, ".text")[0]
    at_cursor(right)


def test_the_export_works_from_disk(browser, tmp_path):
    page = store.write_text(tmp_path / "hostile.html", explore.page(a_view(HOSTILE)))
    browser.get(page.as_uri())
    root = wait(browser, lambda: find(browser, "main"))[0]
    by_keyboard(browser, root)
    assert browser.execute_script("return window.hacked") is None
    shown = find(root, ".pane")[0]
    assert HOSTILE[0] in shown.text and HOSTILE[1] in shown.text
    assert not find(browser, "img, svg") and len(find(browser, "script")) == 2
    # neither the difference nor the mistake is told by colour alone
    assert find(shown, ".t.wrong")[0].get_attribute("aria-label").endswith(f"right is {HOSTILE[0]}")
    style = "return getComputedStyle(arguments[0]{}).{}"
    assert (
        browser.execute_script(style.format(", '::before'", "content"), find(shown, ".t.wrong")[0])
        == '"✗"'
    )
    borders = [find(root, f".text .t.only.{side}")[0] for side in ("left", "right")]
    assert [browser.execute_script(style.format("", "borderBottomStyle"), b) for b in borders] == [
        "dashed",
        "double",
    ]
    # the mouse: numbers on hover, and back to the cursor; a click moves the cursor
    from selenium.webdriver import ActionChains

    heading = lambda: find(root, ".detail h3")[0].text  # noqa: E731
    at_first, tokens = heading(), find(shown, ".t")
    ActionChains(browser).move_to_element(tokens[3]).perform()
    assert "token 4 of 5 in y_o" in heading() != at_first
    ActionChains(browser).move_to_element(find(root, ".legend")[0]).perform()
    assert heading() == at_first
    tokens[2].click()
    assert "token 3 of 5 in y_o" in heading()
    # readable by night, and no wider than a narrow screen
    night = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", night)
    size = {"width": 900, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page = "document.documentElement"
        fits = f"return {page}.scrollWidth <= {page}.clientWidth"
        assert browser.execute_script(fits)
        dark, worst = browser.execute_script(CONTRAST)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert dark < 0.1 and worst >= 4.5
    light, worst = browser.execute_script(CONTRAST)
    assert light > 0.9 and worst >= 4.5
    assert errors(browser) == []


# The paper's lightness, and the lowest contrast (WCAG) of ink on it, on a token, on all shades.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const light = (color) => {
  canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
};
const style = getComputedStyle(document.documentElement);
const on = (name) => light(style.getPropertyValue(name));
const ink = on("--ink"), faint = on("--faint");
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
return [on("--paper"), Math.min(
  ...["--paper", "--panel", "--high", "--low"].map(n => ratio(ink, on(n))),
  ...["--paper", "--panel"].map(n => ratio(faint, on(n))), ratio(on("--wrong"), on("--paper")))];
"""


@pytest.fixture
def lab(project):
    """A running JupyterLab in the project; its address."""
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = project / "home"
    quiet = home / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    news = {"fetchNews": "false", "checkForUpdates": False}
    (quiet / "notification.jupyterlab-settings").write_text(json.dumps(news))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    places |= {"JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings"}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"]
    options += ["--IdentityProvider.token=", "--LabApp.extension_manager=readonly"]
    log = open(project / "lab.log", "w")  # noqa: SIM115
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], cwd=project, stdout=log, stderr=log,
        env=os.environ | {name: str(home / place) for name, place in places.items()},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, (project / "lab.log").read_text()[-3000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()
        log.close()


def test_the_notebook_works_in_jupyterlab_by_keyboard(browser, lab):
    browser.get(f"{lab}/lab/tree/notebooks/0_explore.ipynb")
    run = wait(browser, lambda: [n for n in find(browser, ".lm-MenuBar-item") if n.text == "Run"])
    wait(browser, lambda: find(browser, ".jp-Notebook .jp-CodeCell"))
    wait(browser, lambda: "Idle" in find(browser, "#jp-main-statusbar")[0].text)
    run[0].click()
    wait(browser, lambda: find(browser, "[data-command='runmenu:run-all']"))[0].click()
    frames = wait(browser, lambda: (f := find(browser, "iframe[title='the view']"))[1:] and f)
    wait(browser, lambda: find(browser, ".jp-OutputArea-output table.dataframe"))  # the last cell
    assert not find(browser, "[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg")
    browser.execute_script("arguments[0].scrollIntoView()", frames[0])
    browser.switch_to.frame(frames[0])
    by_keyboard(browser, wait(browser, lambda: find(browser, "main"))[0])
    assert browser.execute_script("try { parent.document } catch { return 'apart' }") == "apart"
    browser.switch_to.default_content()
    assert errors(browser) == []
