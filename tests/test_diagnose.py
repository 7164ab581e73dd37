"""The signals against full logits, the gradients against autograd; means and intervals."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from scipy.stats import beta, sem, t
from test_audit import defined

from trdlib import distill, divergence, models, tasks
from trdlib import settings as params
from trdlib.analysis import compare, diagnose, signals
from trdlib.refine import training_sets
from trdlib.run import get_run
from trdlib.tasks import language

page = defined("6_diagnose")

# ------------------------------------------------------------------------------ values per token


def reference(student_logits, teacher_logits, targets, onsets) -> dict:
    """The signals from full logits in double precision (N, V), without our formulas."""
    s, t = (torch.distributions.Categorical(logits=z) for z in (student_logits, teacher_logits))
    kl = torch.distributions.kl_divergence
    return {
        "forward_kl": kl(t, s),
        "reverse_kl": kl(s, t),
        "student_entropy": s.entropy(),
        "teacher_entropy": t.entropy(),
        "student_logp": s.log_prob(targets),
        "teacher_logp": t.log_prob(targets),
        "onset_mass": t.probs[:, onsets].sum(-1),
        "onset_kl": sum(t.probs[:, o] * (t.probs[:, o] / s.probs[:, o]).log() for o in onsets),
        "own_kl": s.log_prob(targets).exp() * (s.log_prob(targets) - t.log_prob(targets)),
    }


def test_token_signals_equal_full_logits(monkeypatch):
    torch.manual_seed(0)
    hidden, teacher = torch.randn(7, 5), torch.randn(7, 6)
    heads = torch.randn(11, 5), torch.randn(11, 6)
    targets, rights = torch.randint(11, (7,)), torch.tensor([-1, 3, -1, 0, -1, -1, 10])
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", 2 * 11)  # chunks of two, the last of one
    how = {"onsets": torch.tensor([2, 7]), "rights": rights}
    found = signals.token_signals(hidden, heads[0], teacher, heads[1], targets, **how)
    logits = hidden.double() @ heads[0].double().T, teacher.double() @ heads[1].double().T
    expected = reference(*logits, targets, [2, 7])
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5)
    known = rights >= 0
    assert found["right_mass"].isnan().tolist() == (~known).tolist()
    mass = logits[1].softmax(-1)[known, rights[known]]
    torch.testing.assert_close(found["right_mass"][known].double(), mass, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def diagnosed(made):
    """mode -> run, task, problems, tables, responses, tokens at smoke; the working directory is
    theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        found = {}
        for mode, tables in made.tables.items():
            one = found[mode] = SimpleNamespace(run=get_run("smoke", mode), tables=tables)
            one.task, one.problems = tasks.of(one.run), made.sets["train"]
            how = one.run, one.task, one.problems, *one.tables.values()
            one.responses = diagnose.responses(*how)
            one.tokens = diagnose.scores(one.run, one.problems, one.responses)
        yield found


@pytest.mark.parametrize("mode", ["opd", "opsd"])
@pytest.mark.parametrize(("trajectory", "method"), [("y_o", "forward_kl"), ("y_r", "trd")])
def test_scores_equal_plain_models_on_the_training_rows(diagnosed, mode, trajectory, method):
    """Every row, one at a time, from the contexts that training uses, in double precision."""
    one = diagnosed[mode]
    run, responses, tokens = one.run, one.responses, one.tokens
    seed, how = 1, (run.settings.models, run.context_length)
    (trained,) = training_sets([run.with_(method=method)], one.problems, {mode: one.tables})
    rows = trained.rows[seed]
    who = "teacher" if mode == "opd" else "student"
    student = models.load(f"models/tiny/{seed}/student", *how)[0].double()
    teacher = models.load(f"models/tiny/{seed}/{who}", *how)[0].double()
    tokenizer = models.load_tokenizer(f"models/tiny/{seed}/student")
    onsets = tokenizer.convert_tokens_to_ids(["Wait", "Actually", "Hmm", "However"])
    mine = responses[(responses["trajectory"] == trajectory) & (responses["seed"] == seed)]
    tokens = tokens[tokens["trajectory"] == trajectory]
    assert len(mine) == len(rows)
    located = 0
    for (_, response), pair in zip(mine.iterrows(), rows, strict=True):
        found = tokens[tokens["row"] == response["row"]]
        assert found["position"].tolist() == list(range(len(pair.response_ids)))
        assert (found["seed"] == seed).all()
        head, body = student.get_output_embeddings().weight, pair.response_ids
        hidden = student.model(input_ids=torch.tensor([[*pair.student_ids, *body]]))[0][0]
        hidden = hidden[len(pair.student_ids) - 1 : -1]
        with torch.no_grad():
            logits = teacher(input_ids=torch.tensor([[*pair.teacher_ids, *body]])).logits[0]
        logits = logits[len(pair.teacher_ids) - 1 : -1]
        expected = reference(hidden @ head.T, logits, torch.tensor(body), onsets)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value.detach(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found["own_mass"], expected["teacher_logp"].exp(), rtol=1e-3)
        at = found["right_mass"].notna().to_numpy().nonzero()[0].tolist()
        assert at == ([] if np.isnan(response["wrong"]) else [int(response["wrong"])])
        pivot = expected["onset_mass"].numpy().copy()
        if at:
            pivot[at] = logits[at].softmax(-1)[0, response["right"]]
            located += 1
        np.testing.assert_allclose(found["pivot_mass"], pivot, rtol=1e-3, atol=1e-6)
    assert located or trajectory == "y_r"  # smoke's few rewrites may have no mistake


def test_onsets_with_and_without_a_space():
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(["Wait Wait However However Altern Alternat Wait"] * 9, vocab_size=290)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    ids = models.onset_ids(tokenizer, ["Wait", "However"])
    assert [tokenizer.decode([i]) for i in ids if "W" in tokenizer.decode([i])] == ["Wait", " Wait"]
    assert len(ids) in (3, 4)  # "However" never stands at a start of the sample
    with pytest.raises(ValueError, match="no first token for the onset 'Zzz'"):
        models.onset_ids(tokenizer, ["Wait", "Zzz"])


def test_onsets_of_the_tiny_language(tokenizer):
    scales = params.load(REPOSITORY / "params.yaml").scales
    assert scales["tiny"].onsets == scales["smoke"].onsets == language.ONSETS
    found = models.onset_ids(tokenizer, language.ONSETS)
    assert sorted(tokenizer.convert_ids_to_tokens(found)) == sorted(language.ONSETS)


# --------------------------------------------------------------------------- means and intervals


def test_estimates_are_the_bootstrap_of_stats(project):
    """On a complete grid of seeds and problems, to the last bit but rounding."""
    run, rng = get_run("smoke"), np.random.default_rng(0)
    values = rng.random((3, 17))
    table = pd.DataFrame(
        [
            {"source": "a", "seed": s, "id": f"p{i:02d}", "v": values[s, i], "cell": "c"}
            for s in range(3)
            for i in range(17)
        ]
    )
    how = run.settings.evaluation
    expected = compare.bootstrap(values, resamples=how.resamples, confidence=how.confidence)
    found = diagnose.estimates(run, table.sample(frac=1, random_state=0), ["v"], ["cell"]).iloc[0]
    assert found[["value", "low", "high"]].tolist() == pytest.approx(expected, rel=1e-12)
    assert found["problems"] == 17


def test_estimates_of_uneven_cells_equal_a_plain_loop(project):
    """Rows of a problem go together; NaN is left out; shares divide sums."""
    run, rng = get_run("smoke"), np.random.default_rng(1)
    table = pd.DataFrame({"id": rng.integers(0, 20, 90), "v": rng.random(90), "w": rng.random(90)})
    table = table.assign(source="a", cell=rng.integers(0, 2, 90))
    table.loc[::7, "v"] = np.nan
    for over in ("", "w"):
        found = diagnose.estimates(run, table, ["v"], ["cell"], over).set_index("cell")
        used = table.dropna(subset="v").assign(one=1.0)
        ids = table["id"].unique()
        for cell in (0, 1):
            mine, row = used[used["cell"] == cell], found.loc[cell]
            columns = ["v", over or "one"]
            assert row["value"] == pytest.approx(np.divide(*mine[columns].sum()))
            assert row["problems"] == mine["id"].nunique()
            of_problem = mine.groupby("id")[columns].sum().reindex(ids, fill_value=0).to_numpy()
            chosen = rng.integers(0, len(ids), (4000, len(ids)))
            draws = np.divide(*of_problem[chosen].sum(axis=1).T)
            expected = np.quantile(draws, [0.025, 0.975])
            assert row[["low", "high"]].tolist() == pytest.approx(expected, abs=0.3 * draws.std())


def test_a_share_of_nothing_has_an_exact_interval(project):
    """Clopper and Pearson, one trial a problem; a mean that is no share keeps the bootstrap's."""
    run = get_run("smoke")
    table = pd.DataFrame({"source": "a", "id": [f"p{i}" for i in range(20)] * 2, "cell": "c"})
    table = table.assign(none=0.0, all=1.0, some=[0.0, 1.0] * 20, mass=0.0)
    table.loc[0, "mass"] = 1e-9
    names = ["none", "all", "some", "mass"]
    found = diagnose.estimates(run, table, names, ["cell"]).set_index("quantity")
    ends = found[["low", "high"]].T.to_dict("list")
    assert ends["none"] == pytest.approx([0, beta.ppf(0.975, 1, 20)])
    assert ends["all"] == pytest.approx([beta.ppf(0.025, 20, 1), 1])
    assert 0.2 < ends["some"][0] < ends["some"][1] < 0.8
    assert ends["mass"][1] < 1e-8


# ------------------------------------------------------------------------------- the trajectories


def made_up():
    """Two failed attempts with a mistake (at 2 and at 1), a passed one, and rewrites of five
    tokens; the forward KL of a token is 10 times its response's number plus its position."""
    base = {"source": "a", "seed": 0, "sample": 0, "finished": True, "right": 0}
    rows = []
    for row, (start, verdict, rewritten) in enumerate(
        [(2, "failed", True), (1, "failed", False), (np.nan, "passed", True)]
    ):
        shared = {**base, "id": f"p{row}", "row": row, "start": start, "verdict": verdict}
        attempt = {"trajectory": "y_o", "wrong": start, "correct": verdict == "passed"}
        rows.append({**shared, **attempt, "n_tokens": 4, "kept": np.nan})
        rewrite = {"trajectory": "y_r", "wrong": np.nan, "correct": rewritten, "kept": 0.5}
        rows.append({**shared, **rewrite, "n_tokens": 5})
    responses = pd.DataFrame(rows).assign(prompt_truncated=False)
    tokens = responses.loc[responses.index.repeat(responses["n_tokens"])]
    position = tokens.groupby(level=0).cumcount()
    rest = ["reverse_kl", "teacher_entropy", "onset_mass", "own_mass", "pivot_mass"]
    tokens = tokens.assign(
        **dict.fromkeys([*rest, "right_mass"], 0.25),
        position=position,
        x=position - tokens["start"],
        forward_kl=10.0 * tokens["row"] + position,
        onset_kl=position / 2,
        own_kl=0.1,
        student_logp=-1.0,
        teacher_logp=-0.4,
    ).reset_index(drop=True)
    return diagnose.with_likelihoods(responses, tokens), tokens


def test_transitions_count_every_attempt_once(diagnosed):
    responses, _ = made_up()
    counts = diagnose.transitions(responses)
    assert counts.loc["a"].to_numpy().tolist() == [[1, 1], [0, 1]]
    said = diagnose.counted(counts).loc["a"].to_numpy().tolist()
    assert said == [["1 of 3", "1 of 3"], ["none of 3", "1 of 3"]]
    for mode, one in diagnosed.items():
        counts = diagnose.transitions(one.responses)
        by_source = one.responses.query("trajectory == 'y_o'").groupby("source")
        assert (counts.groupby("source").sum().sum(axis=1) == by_source.size()).all(), mode
        passed = counts.xs("passed", level="y_o").sum(axis=1)
        assert (passed == by_source["correct"].sum()).all()


def test_curves_are_aligned_at_the_first_mistake(project):
    lines = diagnose.curves(get_run("smoke"), made_up()[1])
    after = lines[(lines["axis"] == "after") & (lines["quantity"] == "forward_kl")]
    of = after.set_index(["trajectory", "verdict", "x"])["value"]
    assert of["y_o"]["failed"].to_dict() == {-2: 0, -1: 5.5, 0: 6.5, 1: 7.5, 2: 13}
    assert of["y_r"]["failed"].to_dict() == {-2: 0, -1: 5.5, 0: 6.5, 1: 7.5, 2: 8.5, 3: 14}
    assert "passed" not in after["verdict"].to_numpy()  # nowhere to align it
    relative = lines[(lines["axis"] == "relative") & (lines["quantity"] == "forward_kl")]
    of = relative.set_index(["trajectory", "verdict", "x"])["value"]
    assert of["y_o"]["passed"].to_dict() == {0.15: 20, 0.35: 21, 0.65: 22, 0.85: 23}


def test_summary_by_hand(project):
    responses, tokens = made_up()
    numbers = diagnose.summary(get_run("smoke"), responses, tokens)
    found = numbers.set_index(["trajectory", "verdict", "quantity"])["value"].to_dict()
    value = lambda *key: found[key]  # noqa: E731

    # failed y_o: KL 0 1 2 3 and 10 11 12 13, mistakes at 2 and at 1: 1 + 10 before, 2 + 11 at
    shares = [value("y_o", "failed", f"kl_{p}") for p in ("before", "at", "after")]
    assert shares == pytest.approx([11 / 52, 13 / 52, 28 / 52])
    tokens = [value("y_o", "failed", f"tokens_{p}") for p in ("before", "at", "after")]
    assert tokens == [3 / 8, 2 / 8, 3 / 8]
    assert ("y_o", "passed", "kl_after") not in found
    assert ("y_o", "failed", "right_at") in found
    assert ("y_r", "failed", "right_at") not in found
    assert value("y_r", "failed", "kl_after") == pytest.approx((3 + 4 + 12 + 13 + 14) / 70)
    assert value("y_o", "failed", "onset_share") == pytest.approx(6 / 52)
    assert value("y_o", "failed", "own_share") == pytest.approx(0.4)
    assert value("y_o", "all", "correct") == pytest.approx(1 / 3)
    assert value("y_r", "all", "correct") == pytest.approx(2 / 3)
    assert value("y_o", "all", "ppl_gap") == pytest.approx(0.6)
    assert value("y_o", "all", "departed") == pytest.approx(2 / 3)
    assert value("y_r", "all", "departed") == 0
    moves = [value("y_r", "all", name) for name in ("fail_to_pass", "pass_to_fail")]
    assert moves == pytest.approx([1 / 3, 0])
    assert ("y_o", "all", "fail_to_pass") not in found


def test_where_the_mistake_is_unknown_there_are_relative_curves_alone(project):
    unknown = {"start": np.nan, "wrong": np.nan}
    responses, tokens = (table.assign(**unknown) for table in made_up())
    tokens = tokens.assign(right_mass=np.nan, x=np.nan)
    run = get_run("smoke")
    assert set(diagnose.curves(run, tokens)["axis"]) == {"relative"}
    numbers = diagnose.summary(run, responses, tokens)
    located = {"departed", "own_at", "right_at", "own_after", "onset_after", "kl_at", "tokens_at"}
    assert not located & set(numbers["quantity"])
    assert {"forward_kl", "onset_share", "ppl_gap", "kept"} <= set(numbers["quantity"])


def test_the_first_problems_alone(diagnosed):
    one, run = diagnosed["opd"], get_run("smoke diagnosis.problems=4", "opd")
    some = diagnose.responses(run, one.task, one.problems, *one.tables.values())
    assert sorted(some["id"].unique()) == [f"train-{i:04d}" for i in range(4)]
    assert len(some) == 2 * 4 * len(run.settings.seeds)
    both = some.merge(one.responses, on=["trajectory", "seed", "id"])
    assert len(both) == len(some)
    pd.testing.assert_series_equal(both["kept_x"], both["kept_y"], check_names=False)
    pd.testing.assert_series_equal(both["start_x"], both["start_y"], check_names=False)


def test_kept_tokens():
    assert diagnose.kept([1, 2, 3, 4], [1, 2, 9, 4]) == 0.75
    assert diagnose.kept([1, 2], [3, 4]) == 0
    assert diagnose.kept([5, 6], [5, 6, 7, 8]) == 1
    assert diagnose.kept([1] * 300, [1] * 300) == 1  # no junk heuristics


def test_gradients_equal_plain_autograd(diagnosed):
    """The cosine of trd's first gradient with the reference's, from full logits."""
    run, problems, responses = (vars(diagnosed["opd"])[n] for n in ("run", "problems", "responses"))
    found = diagnose.reference_cosines(run, problems, responses)
    runs = [run.with_(method=method) for method in ("trd", "forward_kl", "sft")]
    sets = training_sets(runs, problems, {"opd": diagnosed["opd"].tables})
    assert set(found["trajectory"] + "/" + found["quantity"]) == {
        "y_o/gradient_forward_kl",
        "y_o/gradient_reverse_kl",
        "y_o/gradient_forward_kl_cut",
        "y_r/gradient_forward_kl",
    }
    y_o = responses[responses["trajectory"] == "y_o"]
    cosines = {"trd": [], "forward_kl": []}
    for seed in run.settings.seeds:
        distiller = distill.build(run, seed).eval()
        how = run.settings.models, run.context_length
        teacher = models.load(f"models/tiny/{seed}/teacher", *how)[0]
        mine = y_o[y_o["seed"] == seed]
        gradients = {}
        for method, trained in zip(("trd", "forward_kl", "sft"), sets, strict=True):
            rows = trained.rows[seed]
            distiller.zero_grad()
            for pair, source, wrong in zip(rows, mine["source"], mine["wrong"], strict=True):
                if source != "chain":
                    continue
                body = torch.tensor(pair.response_ids)
                if method == "forward_kl":  # up to the first wrong token
                    body = body[: None if np.isnan(wrong) else int(wrong) + 1]
                ids = torch.tensor([[*pair.student_ids, *body]])
                logits = distiller.student(input_ids=ids).logits[0]
                logits = logits[len(pair.student_ids) - 1 : -1].double()
                if method == "sft":
                    loss = torch.nn.functional.cross_entropy(logits, body, reduction="sum")
                else:
                    ids = torch.tensor([[*pair.teacher_ids, *body]])
                    target = teacher(input_ids=ids).logits[0, len(pair.teacher_ids) - 1 : -1]
                    loss = torch.nn.functional.kl_div(
                        logits.log_softmax(-1), target.double().softmax(-1), reduction="sum"
                    )
                loss.backward()
            parameters = [p for n, p in distiller.named_parameters() if "lora_B" in n]
            gradients[method] = torch.cat([p.grad.flatten() for p in parameters])
        for method, found_ones in cosines.items():
            cosine = torch.cosine_similarity(gradients[method], gradients["sft"], 0)
            found_ones.append(float(cosine))
    quantities = {"trd": "y_r/gradient_forward_kl", "forward_kl": "y_o/gradient_forward_kl_cut"}
    found.index = found["source"] + "/" + found["trajectory"] + "/" + found["quantity"]
    for method, values in cosines.items():
        row = found.loc[f"chain/{quantities[method]}", ["value", "low", "high"]].tolist()
        ends = t.interval(0.95, len(values) - 1, np.mean(values), sem(values))
        assert row == pytest.approx([np.mean(values), *ends], abs=2e-3)


def test_what_is_written_is_the_same_each_time(diagnosed):
    import matplotlib.pyplot as plt

    one, contents = diagnosed["opsd"], []
    for _ in range(2):
        found = diagnose.diagnose(one.run, one.task, one.problems, *one.tables.values())
        written = page.write(found, plt.figure())
        contents.append([path.read_bytes() for path in written])
    assert contents[0] == contents[1]
    folder = one.run.results / "diagnosis" / "smoke"
    assert written == [folder / f"opsd.{end}" for end in ("csv", "md", "png")]
    assert b"nan" not in contents[0][1]
    table = pd.read_csv(written[0])
    assert set(table["axis"]) == {"none", "relative", "after"}
    assert (table["low"] <= table["value"] + 1e-9).all()
    assert (table["value"] <= table["high"] + 1e-9).all()
