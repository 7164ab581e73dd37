"""Prefix-failure signals: what the teacher says along y_o and along y_r, before any training.

Paper section 1: after a wrong step the teacher proposes the same correction over and over: mass on
epistemic onset tokens. All at step 0, on the tokens and contexts of training, in nats, at
temperature 1. Ours: the onset words; curves aligned at the first mistake; problems resampled."""

import difflib
import itertools
from collections import namedtuple

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit

from trdlib import distill, jobs, models, refine, rollout
from trdlib.analysis import compare
from trdlib.analysis.signals import hidden_at, mistakes, token_signals, up_to
from trdlib.run import Run
from trdlib.settings import Method

VERDICT = {True: "passed", False: "failed"}
BINS, BEFORE, AFTER = 10, 8, 20  # of the relative position; tokens around the first mistake
# What was found of one mode. numbers: of `summary`, and `reference_cosines` where it takes seconds
Diagnosis = namedtuple("Diagnosis", "run responses curves numbers")
_CURVES = ["forward_kl", "reverse_kl", "teacher_entropy", "onset_mass", "own_mass", "pivot_mass"]


def diagnose(run: Run, task, problems: pd.DataFrame, y_o, y_r) -> Diagnosis:
    """All of it. problems: the train set; y_o, y_r: of `rollout` and of the mode's `refine`."""
    found = responses(run, task, problems, y_o, y_r)
    tokens = scores(run, problems, found)
    found = with_likelihoods(found, tokens)
    numbers = [summary(run, found, tokens)]
    numbers += [reference_cosines(run, problems, found)] * ("{seed}" in run.settings.models.student)
    return Diagnosis(run, found, curves(run, tokens), pd.concat(numbers, ignore_index=True))


def responses(run: Run, task, problems: pd.DataFrame, y_o, y_r) -> pd.DataFrame:
    """y_o and y_r of the first diagnosis.problems problems, by trajectory and row (the same of an
    attempt and its rewrite). Besides the columns of a generation file: source, verdict of the
    *attempt*, those of `mistakes`, start (`wrong` of its y_o); of y_r attempt (the y_o), `kept`."""
    wanted = y_o["id"].isin(problems["id"][: run.settings.diagnosis.problems])
    y_o, y_r = y_o[wanted].reset_index(drop=True), y_r[wanted].reset_index(drop=True)
    y_r = y_r.drop(columns="y_o_correct").assign(attempt=y_o["text"])
    y_r["kept"] = [kept(*pair) for pair in zip(y_o["token_ids"], y_r["token_ids"], strict=True)]
    both = pd.concat([y_o, y_r], keys=["y_o", "y_r"], names=["trajectory", "row"]).reset_index()
    both["verdict"] = both["row"].map(y_o["correct"]).map(VERDICT)
    both["source"] = [row["source"] for row in refine.rows_of(problems, both)]
    both = both.join(mistakes(run, task, problems, both))
    both["start"] = both["row"].map(both.loc[both["trajectory"] == "y_o", "wrong"])
    return both


def kept(attempt, rewrite) -> float:
    """Share of the attempt's tokens that stand in the rewrite, in order (difflib's matching)."""
    match = difflib.SequenceMatcher(None, list(attempt), list(rewrite), autojunk=False)
    return sum(block.size for block in match.get_matching_blocks()) / len(attempt)


def transitions(responses: pd.DataFrame) -> pd.DataFrame:
    """Counts of attempts by the verdicts on y_o (rows, by source) and on its y_r (columns)."""
    y_r, names = responses[responses["trajectory"] == "y_r"], ["failed", "passed"]
    after, before = y_r["correct"].map(VERDICT), pd.Categorical(y_r["verdict"], names)
    counts = pd.crosstab([y_r["source"], before], pd.Categorical(after, names), dropna=False)
    return counts.rename_axis(index=["source", "y_o"], columns="y_r")


def counted(counts: pd.DataFrame) -> pd.DataFrame:
    """`transitions` as text: "12 of 60", "none of 60"."""
    whole = counts.groupby("source").transform("sum").sum(axis=1).map(" of {:d}".format)
    return counts.apply(lambda c: c.map("{:d}".format).replace("0", "none") + whole)


def _batches(run: Run, seed: int, problems, table: pd.DataFrame, device):
    """(rows, batch) of the responses of one trajectory, as training makes them."""
    if table["trajectory"].iloc[0] == "y_o":
        table = table.drop(columns="attempt")
    rows, size = refine.pairs(run, seed, table, problems), run.settings.training.micro_batch_size
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        batch = {name: t.to(device) for name, t in distill.collate(rows[part]).items()}
        yield table.iloc[part], batch


def _score(run: Run, seed: int, problems: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    how = run.settings.models, run.context_length
    student, tokenizer = teacher, same = models.load(run.model_path("student", seed), *how)
    if run.mode == "opd":
        teacher, same = models.load(run.model_path("teacher", seed), *how)
    models.check_same_vocabulary(tokenizer, same)
    heads = [models.head(model, len(tokenizer)) for model in (student, teacher)]
    onsets = torch.tensor(models.onset_ids(tokenizer, run.settings.onsets), device=student.device)
    table, parts = table.sort_values("n_tokens", kind="stable"), []  # little padding
    known = ["trajectory", "row", "seed", "id", "source", "verdict", "n_tokens", "wrong", "right"]
    with torch.no_grad(), jobs.model_compute():
        for part, batch in _batches(run, seed, problems, table, student.device):
            labels = batch["labels"]
            each = part.loc[part.index.repeat(part["n_tokens"]), [*known, "start"]]
            each["position"] = each.groupby(level=0).cumcount()
            right = each["right"].where(each["position"] == each["wrong"], -1).to_numpy()
            said = hidden_at(student, batch["input_ids"], labels), heads[0]
            said += hidden_at(teacher, batch["teacher_ids"], batch["teacher_labels"]), heads[1]
            targets, rights = labels[labels != -100], torch.tensor(right, device=student.device)
            found = token_signals(*said, targets, onsets=onsets, rights=rights)
            parts.append(each.assign(**{name: t.cpu().numpy() for name, t in found.items()}))
    return pd.concat(parts)


def scores(run: Run, problems: pd.DataFrame, responses: pd.DataFrame) -> pd.DataFrame:
    """A row per response token: its response's columns, position, `token_signals`. x: tokens after
    the attempt's first mistake. own_mass: the teacher's probability of the token that is there.
    pivot_mass: right_mass (known at the first wrong token only), else onset_mass."""
    groups = responses.groupby(["trajectory", "seed"])
    todo = [(run, int(seed), problems, table) for (_, seed), table in groups]
    parts = rollout.pool(run, _score, todo, "score")
    tokens = pd.concat(parts).sort_values(["trajectory", "row", "position"], ignore_index=True)
    return tokens.assign(
        x=tokens["position"] - tokens["start"],
        own_mass=np.exp(tokens["teacher_logp"]),
        pivot_mass=tokens["right_mass"].fillna(tokens["onset_mass"]),
    )


def with_likelihoods(responses: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """The responses with their mean student_nll and teacher_nll of a token; less: ppl_gap."""
    nll = -tokens.groupby(["trajectory", "row"])[["student_logp", "teacher_logp"]].mean()
    nll.columns = ["student_nll", "teacher_nll"]
    nll["ppl_gap"] = nll["student_nll"] - nll["teacher_nll"]
    return responses.join(nll, on=["trajectory", "row"])


def estimates(run: Run, table, quantities: list[str], by: list[str], over="") -> pd.DataFrame:
    """Mean of each quantity by source and `by`, with an interval over problems. table: tokens or
    responses, with id and source; over: a column to divide by, not the number of rows. NaN is left
    out. -> source, *by, quantity, value, low, high, problems."""
    how, found, tail = run.settings.evaluation, [], (1 - run.settings.evaluation.confidence) / 2
    for source, mine in table.groupby("source", sort=True):
        ids = np.sort(mine["id"].unique())
        # How often each problem is drawn, in whole numbers: sums of counts stay exact.
        drawn = np.rint(compare.weights(len(ids), how.resamples) * len(ids)).T
        for quantity in quantities:
            cells = mine.dropna(subset=[quantity]).groupby([*by, "id"], sort=True)
            if not cells.ngroups:
                continue
            both = cells[quantity].sum(), cells[over].sum() if over else cells.size()
            sums, counts = (s.unstack("id").reindex(columns=ids).fillna(0) for s in both)
            with np.errstate(invalid="ignore", divide="ignore"):
                means = (sums.to_numpy(float) @ drawn) / (counts.to_numpy(float) @ drawn)
                value = sums.sum(axis=1) / counts.sum(axis=1)
            low, high = np.nanquantile(means, [tail, 1 - tail], axis=1)
            one = {"value": value, "low": low, "high": high, "problems": (counts > 0).sum(axis=1)}
            one = pd.DataFrame(one).reset_index().assign(source=source, quantity=quantity)
            if not over and mine[quantity].dropna().isin([0, 1]).all():  # yes or no
                reach = one["problems"].map(lambda n: compare.exact_reach(n, how.confidence))
                one["low"] = one["low"].where(one["value"] < 1, 1 - reach)
                one["high"] = one["high"].where(one["value"] > 0, reach)
            found.append(one)
    order = ["source", *by, "quantity", "value", "low", "high", "problems"]
    return pd.concat(found, ignore_index=True)[order] if found else pd.DataFrame(columns=order)


def curves(run: Run, tokens: pd.DataFrame) -> pd.DataFrame:
    """`estimates` along the response, axis "relative" (0 to 1), and "after" the first mistake; not
    of cells with less than a tenth of the problems of their curve."""
    bins = np.floor((tokens["position"] + 0.5) / tokens["n_tokens"] * BINS)
    after, by = tokens[tokens["x"].between(-BEFORE, AFTER)], ["trajectory", "verdict", "x"]
    axes = {"relative": tokens.assign(x=(bins + 0.5) / BINS), "after": after}
    found = [estimates(run, part, _CURVES, by).assign(axis=axis) for axis, part in axes.items()]
    found = pd.concat([part for part in found if len(part)], ignore_index=True)
    curve = found.groupby(["axis", "source", "trajectory", "verdict", "quantity"])
    return found[found["problems"] >= 0.1 * curve["problems"].transform("max")]


def summary(run: Run, responses: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """`estimates` by trajectory and verdict of the attempt, or "all"; notebook 10_report says what
    the quantities are. kl_ and tokens_before, _at and _after: of the attempts with a known mistake
    (y_r is cut at the same token); departed: it has a wrong token."""
    failed, rewrite = responses["verdict"] == "failed", responses["trajectory"] == "y_r"
    rows = responses.assign(
        unfinished=~responses["finished"],
        departed=responses["wrong"].notna() if responses["start"].notna().any() else np.nan,
        fail_to_pass=(failed & responses["correct"]).where(rewrite),
        pass_to_fail=(~failed & ~responses["correct"]).where(rewrite),
    )
    of_rows = ["correct", "fail_to_pass", "pass_to_fail", "unfinished", "n_tokens", "kept"]
    of_rows += ["prompt_truncated", "departed", "student_nll", "teacher_nll", "ppl_gap"]
    x = tokens["x"]
    here = {"before": x < 0, "at": x == 0, "after": x > 0}
    tokens = tokens.rename(columns={"onset_kl": "onset_share", "own_kl": "own_share"}).assign(
        own_at=tokens["own_mass"].where(here["at"]),
        right_at=tokens["right_mass"].where(tokens["trajectory"] == "y_o"),
        own_after=tokens["own_mass"].where(here["after"]),
        onset_after=tokens["onset_mass"].where(here["after"]),
        **{f"kl_{place}": tokens["forward_kl"] * there for place, there in here.items()},
        **{f"tokens_{place}": there for place, there in here.items()},
    )
    of_tokens = ["forward_kl", "reverse_kl", "teacher_entropy", "onset_mass"]
    of_tokens += ["own_at", "right_at", "own_after", "onset_after"]
    departed, found = tokens[tokens["start"].notna()], []
    todo = [(rows, of_rows, ""), (tokens, of_tokens, "")]
    todo += [(tokens, ["onset_share"], "forward_kl"), (tokens, ["own_share"], "reverse_kl")]
    todo += [(departed, [f"kl_{place}" for place in here], "forward_kl")]
    todo += [(departed, [f"tokens_{place}" for place in here], "")]
    for table, names, over in todo:
        table = table.astype(dict.fromkeys(names, float))
        table = pd.concat([table.assign(verdict="all"), table])
        found.append(estimates(run, table, names, ["trajectory", "verdict"], over))
    return pd.concat([part for part in found if len(part)], ignore_index=True)


def _cosines(run: Run, seed: int, problems, responses: pd.DataFrame) -> list[tuple]:
    """(source, trajectory, quantity, cosine with the reference's gradient) of one base seed."""
    distiller, found = distill.build(run, seed).eval(), []  # a gradient at step 0 has no noise

    def gradient(table: pd.DataFrame, kind: str) -> torch.Tensor:
        """Of the summed loss, by the fresh adapter (of which B alone has a gradient)."""
        distiller.recipe = Method(trajectory="y_o", divergence=kind)
        distiller.zero_grad()
        with jobs.model_compute():
            for _, batch in _batches(run, seed, problems, table, distiller.device):
                distiller.token_losses(**batch).sum().backward()
        gradients = [p.grad for p in distiller.parameters() if p.grad is not None]
        return torch.cat([g.flatten().float() for g in gradients])

    students, limit = {seed: run.model_path("student", seed)}, run.settings.lengths.reference
    solutions = refine.references(problems, students, limit).set_index("id")["token_ids"]
    for source, mine in responses.groupby("source", sort=True):
        few = mine["id"].unique()[: run.settings.diagnosis.gradient_problems]
        mine = mine[mine["id"].isin(few)]
        y_o, y_r = (mine[mine["trajectory"] == name] for name in ("y_o", "y_r"))
        right = y_o.assign(token_ids=solutions[y_o["id"]].tolist())
        target = gradient(right, "cross_entropy")
        todo = [(y_o, "forward_kl"), (y_o, "reverse_kl"), (y_r, "forward_kl")]
        if y_o["start"].notna().any():
            cut = up_to(y_o["token_ids"], y_o["start"])
            todo.append((y_o.assign(token_ids=cut), "forward_kl_cut"))
        for table, name in todo:
            cosine = torch.cosine_similarity(gradient(table, name.removesuffix("_cut")), target, 0)
            trajectory = table["trajectory"].iloc[0]
            found.append((source, trajectory, f"gradient_{name}", float(cosine)))
    return found


def reference_cosines(run: Run, problems: pd.DataFrame, responses: pd.DataFrame) -> pd.DataFrame:
    """Ours: the cosine of a method's summed LoRA gradient at step 0 with that of cross-entropy on
    the references, of diagnosis.gradient_problems: mean and t interval over base seeds, as in
    `summary`. cut: on y_o up to its first wrong token (an oracle)."""
    todo = [(run, int(seed), problems, mine) for seed, mine in responses.groupby("seed")]
    found = rollout.pool(run, _cosines, todo, "gradients", training=True)
    by = ["source", "trajectory", "quantity"]
    table = pd.DataFrame(itertools.chain.from_iterable(found), columns=[*by, "cosine"])
    table = table.groupby(by)["cosine"].agg(value="mean", error="sem").reset_index()
    t = -stdtrit(len(todo) - 1, (1 - run.settings.evaluation.confidence) / 2)
    half, counts = t * table.pop("error"), responses.groupby("source")["id"].nunique()
    counts = counts.clip(upper=run.settings.diagnosis.gradient_problems)
    ends = {"low": table["value"] - half, "high": table["value"] + half}
    return table.assign(**ends, verdict="all", problems=table["source"].map(counts))
