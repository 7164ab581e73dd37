"""Prefix-failure signals: what the teacher says along y_o and along y_r, before any training.

Paper section 1: after a wrong step the teacher is a mixture of going on and turning back, and
since the frozen prefix never turns back, it proposes the same correction over and over; the mass
on epistemic onset tokens is the signature. Section 4: trajectory analysis. Everything is measured
at step 0, on the very tokens and contexts that training would see (y_o: the teacher's vanilla
context, y_r: its refine context), in nats, at temperature 1.

What is ours, or differs from the paper:

1. The list of onset words is ours (params.yaml, `onsets`): the paper's 16 are unknown.
2. Where the first mistake lies is known for the procedural tasks alone (`departure` of tiny.py and
   tinycode.py). There the curves are aligned at it, and y_r at the same token of the y_o that it
   rewrites. Elsewhere curves run along the relative position only.
3. Every mean comes with an interval from resampling problems; a problem's tokens, samples and base
   seeds go together.
"""

from __future__ import annotations

import difflib
import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from trdlib import config, data, distill, divergence, inputs, models, parallel, refine, rollout

BINS, BEFORE, AFTER = 10, 8, 20  # of the relative position; tokens around the first mistake
_CURVES = ["forward_kl", "reverse_kl", "teacher_entropy", "onset_mass", "own_mass", "pivot_mass"]
_CURVES += ["cosine"]

# ----------------------------------------------------------------------------- the two trajectories


def responses(run: config.Run, limit: int | None = None) -> pd.DataFrame:
    """y_o and y_r of the first `limit` problems (None: diagnosis.problems), one row per response.

    trajectory and row (the same for an attempt and its rewrite) name a response. Besides the
    columns of a generation file: source, attempt (text of the y_o), verdict (was the *attempt*
    "passed" or "failed"?), prompt_truncated and kept (share of the attempt's tokens that survive,
    in order) for y_r, and for procedural tasks wrong (index of the first wrong token of this
    text), right (the token id that would have been right there), start (`wrong` of its attempt).
    """
    problems = data.problems(run.data, "train")
    y_o = rollout.attempts(run)
    wanted = y_o["id"].isin(problems["id"][: limit or run.settings.diagnosis.problems])
    y_r = refine.rewrites(run, y_o).drop(columns="y_o_correct")
    y_o, y_r = y_o[wanted].reset_index(drop=True), y_r[wanted].reset_index(drop=True)
    verdict = y_o["correct"].map({True: "passed", False: "failed"})
    shared = {"row": range(len(y_o)), "attempt": y_o["text"], "verdict": verdict}
    y_r["kept"] = [kept(*pair) for pair in zip(y_o["token_ids"], y_r["token_ids"], strict=True)]
    tables = {"y_o": y_o.assign(**shared), "y_r": y_r.assign(**shared)}
    both = pd.concat([t.assign(trajectory=name) for name, t in tables.items()], ignore_index=True)
    asked = refine.rows_of(problems, both)
    both["source"] = [row["source"] for row in asked]
    tokenizer = models.load_tokenizer(run.model_path("student", run.settings.seeds[0]))
    found = [None] * len(both)
    if run.settings.models.style == "tiny":
        spell = tokenizer.convert_ids_to_tokens
        spelled = [spell(list(map(int, ids))) for ids in both["token_ids"]]
        departure = inputs.language(run).departure
        found = [departure(r["problem"], t) for r, t in zip(asked, spelled, strict=True)]
    both["wrong"] = [np.nan if f is None else f.index for f in found]
    both["right"] = [-1 if f is None else tokenizer.convert_tokens_to_ids(f.right) for f in found]
    both["start"] = both["row"].map(both[both["trajectory"] == "y_o"].set_index("row")["wrong"])
    return both


def kept(attempt, rewrite) -> float:
    """Share of the attempt's tokens that stand in the rewrite, in order (difflib's matching)."""
    match = difflib.SequenceMatcher(None, list(attempt), list(rewrite), autojunk=False)
    return sum(block.size for block in match.get_matching_blocks()) / len(attempt)


def transitions(responses: pd.DataFrame) -> pd.DataFrame:
    """Counts of attempts by the verdicts on y_o (rows, by source) and on its y_r (columns)."""
    y_r = responses[responses["trajectory"] == "y_r"]
    names = ["failed", "passed"]
    after = pd.Categorical(y_r["correct"].map({True: "passed", False: "failed"}), names)
    before = pd.Categorical(y_r["verdict"], names)
    counts = pd.crosstab([y_r["source"], before], after, dropna=False)
    return counts.rename_axis(index=["source", "y_o"], columns="y_r")


# -------------------------------------------------------------------------------------- per token


@torch.no_grad()
def token_signals(
    student_hidden, student_head, teacher_hidden, teacher_head, targets, *, onsets, rights
) -> dict[str, torch.Tensor]:
    """The signals at N positions, each (N,); logits are formed chunk by chunk.

    student_hidden (N, H_S), teacher_hidden (N, H_T): at the positions that predict the tokens
    targets (N,). Heads (V, H). onsets: token ids; rights (N,): the right token, or -1 where none
    is known. forward_kl, reverse_kl, teacher_entropy in nats; student_logp, teacher_logp of the
    target; onset_mass and right_mass: the teacher's probability (right_mass NaN where unknown);
    onset_kl: what the onset words add to the forward KL; own_kl: what the target adds to the
    reverse KL; gradient (N, H_S): of the forward KL by the student's hidden state, (s - t) @ head.
    """
    parts, size = [], max(1, divergence.CHUNK_ELEMENTS // len(student_head))
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        log_s = (student_hidden[rows].to(student_head.dtype) @ student_head.T).float()
        log_t = (teacher_hidden[rows].to(teacher_head.dtype) @ teacher_head.T).float()
        log_s, log_t = log_s.log_softmax(-1), log_t.log_softmax(-1)
        s, t, target, right = log_s.exp(), log_t.exp(), targets[rows, None], rights[rows, None]
        right_mass = t.gather(-1, right.clamp(min=0)).where(right >= 0, torch.nan)
        parts.append(
            {
                "forward_kl": (t * (log_t - log_s)).sum(-1),
                "reverse_kl": (s * (log_s - log_t)).sum(-1),
                "teacher_entropy": -(t * log_t).sum(-1),
                "student_logp": log_s.gather(-1, target)[:, 0],
                "teacher_logp": log_t.gather(-1, target)[:, 0],
                "onset_mass": t[:, onsets].sum(-1),
                "onset_kl": (t * (log_t - log_s))[:, onsets].sum(-1),
                "own_kl": (s * (log_s - log_t)).gather(-1, target)[:, 0],
                "right_mass": right_mass[:, 0],
                "gradient": ((s - t).to(student_head.dtype) @ student_head).float(),
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def pairs(run: config.Run, seed: int, table: pd.DataFrame) -> list[distill.Pair]:
    """What student and teacher see of the responses of one trajectory and base seed."""
    asked = refine.rows_of(data.problems(run.data, "train"), table)
    attempts = table["attempt"].tolist() if table["trajectory"].iloc[0] == "y_r" else None
    student = rollout.student_prompts(run, seed, asked)
    teacher = refine.teacher_prompts(run, seed, asked, attempts)
    tokens = (list(map(int, ids)) for ids in table["token_ids"])
    return [distill.Pair(s.ids, t.ids, r) for s, t, r in zip(student, teacher, tokens, strict=True)]


def _score(run: config.Run, seed: int, table: pd.DataFrame) -> pd.DataFrame:
    student, tokenizer = models.load(run.model_path("student", seed), run)
    teacher, same = student, tokenizer
    if run.mode == "opd":
        teacher, same = models.load(run.model_path("teacher", seed), run)
    models.check_same_vocabulary(tokenizer, same)
    table = table.sort_values("n_tokens", kind="stable")  # little padding
    heads = [models.head(model, len(tokenizer)) for model in (student, teacher)]
    onsets = torch.tensor(models.onset_ids(tokenizer, run.settings.onsets), device=student.device)
    size, rows, parts = run.settings.training.micro_batch_size, pairs(run, seed, table), []
    with torch.no_grad(), parallel.model_compute():
        for start in range(0, len(rows), size):
            batch = distill.collate(rows[start : start + size])
            batch = {name: tensor.to(student.device) for name, tensor in batch.items()}
            ours, theirs = batch["labels"][:, 1:], batch["teacher_labels"][:, 1:]
            hidden = models.hidden_states(student, input_ids=batch["input_ids"])[:, :-1]
            teachers = models.hidden_states(teacher, input_ids=batch["teacher_ids"])[:, :-1]
            part = table.iloc[start : start + size]
            position = np.concatenate([np.arange(n) for n in part["n_tokens"]])
            each = part.loc[part.index.repeat(part["n_tokens"]), ["trajectory", "row", "right"]]
            at = position == np.repeat(part["wrong"].to_numpy(), part["n_tokens"])
            rights = torch.tensor(np.where(at, each["right"], -1), device=student.device)
            found = token_signals(
                hidden[ours != -100], heads[0], teachers[theirs != -100], heads[1],
                ours[ours != -100], onsets=onsets, rights=rights,
            )  # fmt: skip
            step = found.pop("gradient")
            cosine = torch.cosine_similarity(step[1:], step[:-1])
            found["cosine"] = torch.cat([cosine.new_full((1,), torch.nan), cosine])
            found = pd.DataFrame({name: tensor.cpu().numpy() for name, tensor in found.items()})
            found.loc[position == 0, "cosine"] = np.nan
            labels = each.drop(columns="right").assign(seed=seed, position=position)
            parts.append(pd.concat([labels.reset_index(drop=True), found], axis=1))
    return pd.concat(parts)


def scores(run: config.Run, responses: pd.DataFrame) -> pd.DataFrame:
    """One row per response token: trajectory, row, seed, position, and the signals on it.

    Those of `token_signals`; own_mass (the teacher's probability of the token that is there);
    right_mass only at the first wrong token; pivot_mass (right_mass there, onset_mass elsewhere);
    cosine (of the gradients of this position and the one before it) instead of gradient.
    """
    groups = responses.groupby(["trajectory", "seed"], sort=True)
    jobs = [(run, int(seed), table) for (_, seed), table in groups]
    models.preload(run)
    parts = parallel.run_jobs(_score, jobs, workers=run.settings.workers, label="score")
    tokens = pd.concat(parts).sort_values(["trajectory", "row", "position"], ignore_index=True)
    tokens["own_mass"] = np.exp(tokens["teacher_logp"])
    tokens["pivot_mass"] = tokens["right_mass"].fillna(tokens["onset_mass"])
    return tokens


# --------------------------------------------------------------------------- means with intervals


@functools.lru_cache(maxsize=4)
def _drawn(problems: int, resamples: int) -> np.ndarray:
    """How often each problem is drawn: (problems, resamples). As in evaluate.bootstrap."""
    share = np.full(problems, 1 / problems)
    return np.random.default_rng(0).multinomial(problems, share, size=resamples).T.astype(float)


def estimates(
    run: config.Run, table: pd.DataFrame, quantities: list[str], by: list[str], over: str = ""
) -> pd.DataFrame:
    """Mean of each quantity in each cell (source and `by`), with an interval over problems.

    table: one row per token or response, with id and source; NaN is left out. over: a column to
    divide the sum by, instead of the number of rows. One resampling of a source's problems serves
    all its cells, so cells are comparable. -> source, *by, quantity, value, low, high, problems.
    """
    how, found = run.settings.evaluation, []
    tail = (1 - how.confidence) / 2
    for source, mine in table.groupby("source", sort=True):
        ids = np.sort(mine["id"].unique())
        for quantity in quantities:
            cells = mine.dropna(subset=[quantity]).groupby([*by, "id"], sort=True)
            if not cells.ngroups:
                continue
            sums, counts = (
                s.unstack("id", fill_value=0).reindex(columns=ids, fill_value=0)
                for s in (cells[quantity].sum(), cells[over].sum() if over else cells.size())
            )
            drawn = _drawn(len(ids), how.resamples)
            with np.errstate(invalid="ignore", divide="ignore"):
                means = (sums.to_numpy(float) @ drawn) / (counts.to_numpy(float) @ drawn)
                value = sums.sum(axis=1) / counts.sum(axis=1)
            low, high = np.nanquantile(means, [tail, 1 - tail], axis=1)
            one = pd.DataFrame({"value": value, "low": low, "high": high}).reset_index()
            one["problems"] = (counts > 0).sum(axis=1).to_numpy()
            found.append(one.assign(source=source, quantity=quantity))
    order = ["source", *by, "quantity", "value", "low", "high", "problems"]
    return pd.concat(found, ignore_index=True)[order] if found else pd.DataFrame(columns=order)


def _located(responses: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """The tokens with what is known of their response, and x: tokens after the first mistake."""
    known = ["trajectory", "row", "id", "source", "verdict", "start", "n_tokens"]
    table = tokens.merge(responses[known], on=["trajectory", "row"])
    return table.assign(x=table["position"] - table["start"])


def curves(run: config.Run, responses: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """The signals along the response: axis "relative" (0 to 1), and "after" the first mistake.

    Cells with less than a tenth of the problems of their curve are left out.
    -> axis, source, trajectory, verdict, x, quantity, value, low, high, problems.
    """
    table, by = _located(responses, tokens), ["trajectory", "verdict", "x"]
    bins = np.floor((table["position"] + 0.5) / table["n_tokens"] * BINS)
    axes = {"relative": table.assign(x=(bins + 0.5) / BINS)}
    axes["after"] = table[table["x"].between(-BEFORE, AFTER)]
    found = [estimates(run, part, _CURVES, by).assign(axis=axis) for axis, part in axes.items()]
    found = pd.concat([part for part in found if len(part)], ignore_index=True)
    curve = found.groupby(["axis", "source", "trajectory", "verdict", "quantity"])
    return found[found["problems"] >= 0.1 * curve["problems"].transform("max")]


def perplexities(responses: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """The responses with student_nll and teacher_nll (mean of a token, in nats), and ppl_gap.

    ppl_gap, the student's minus the teacher's, is the log of the ratio of their perplexities.
    """
    nll = tokens.groupby(["trajectory", "row"])[["student_logp", "teacher_logp"]].mean().mul(-1)
    nll = nll.set_axis(["student_nll", "teacher_nll"], axis=1)
    nll["ppl_gap"] = nll["student_nll"] - nll["teacher_nll"]
    return responses.merge(nll.reset_index(), on=["trajectory", "row"])


def summary(run: config.Run, responses: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """The numbers: one row per (source, trajectory, verdict, quantity), with their intervals.

    verdict: of the attempt, "failed", "passed" or "all". Quantities, per response: correct,
    fail_to_pass and pass_to_fail (shares of all attempts), unfinished, n_tokens, kept,
    prompt_truncated, departed (it has a wrong token), and those of `perplexities`. Per token:
    forward_kl, reverse_kl, teacher_entropy, onset_mass, cosine; onset_share (of the forward KL,
    due to onset words) and own_share (of the reverse KL, due to the token that is there). Where
    the first mistake is known: kl_before, kl_at, kl_after and tokens_before ... (shares of the
    forward KL and of the tokens, over the attempts with a mistake; y_r is cut at the same token),
    own_at and right_at (the teacher's mass on the wrong token and on the right one), own_after and
    onset_after (its mean mass on the token that is there and on onset words, after the mistake).
    """
    rows = perplexities(responses, tokens)
    failed, rewrite = rows["verdict"] == "failed", rows["trajectory"] == "y_r"
    rows = rows.assign(
        unfinished=~rows["finished"],
        departed=rows["wrong"].notna() if rows["start"].notna().any() else np.nan,
        fail_to_pass=(failed & rows["correct"]).where(rewrite),
        pass_to_fail=(~failed & ~rows["correct"]).where(rewrite),
    )
    per_row = ["correct", "fail_to_pass", "pass_to_fail", "unfinished", "n_tokens", "kept"]
    per_row += ["prompt_truncated", "departed", "student_nll", "teacher_nll", "ppl_gap"]
    located = _located(responses, tokens)
    x, places = located["x"], ("before", "at", "after")
    for place, here in zip(places, (x < 0, x == 0, x > 0), strict=True):
        located[f"kl_{place}"], located[f"tokens_{place}"] = located["forward_kl"] * here, here
    located["own_at"] = located["own_mass"].where(x == 0)
    located["right_at"] = located["right_mass"].where((x == 0) & (located["trajectory"] == "y_o"))
    located["own_after"] = located["own_mass"].where(x > 0)
    located["onset_after"] = located["onset_mass"].where(x > 0)
    per_token = ["forward_kl", "reverse_kl", "teacher_entropy", "onset_mass", "cosine"]
    per_token += ["own_at", "right_at", "own_after", "onset_after"]
    located = located.assign(onset_share=located["onset_kl"], own_share=located["own_kl"])
    departed = located[located["start"].notna()]
    plan = [(rows, per_row, ""), (located, per_token, "")]
    plan += [(located, ["onset_share"], "forward_kl"), (located, ["own_share"], "reverse_kl")]
    plan += [(departed, [f"kl_{place}" for place in places], "forward_kl")]
    plan += [(departed, [f"tokens_{place}" for place in places], "")]
    found = []
    for table, names, over in plan:
        table = table.assign(**{n: table[n].astype(float) for n in names})
        table = pd.concat([table.assign(verdict="all"), table])
        found.append(estimates(run, table, names, ["trajectory", "verdict"], over))
    return pd.concat([part for part in found if len(part)], ignore_index=True)


# ------------------------------------------------------------- gradients against the reference's


def _cosines(run: config.Run, seed: int, responses: pd.DataFrame) -> list[tuple]:
    """(source, trajectory, objective, cosine with the reference's gradient) of one base seed."""
    distiller, found, limit = distill.build(run, seed), [], run.settings.lengths.reference
    distiller.train(run.settings.training.gradient_checkpointing)  # which needs it
    for module in distiller.modules():
        if isinstance(module, torch.nn.Dropout):  # a gradient at step 0 has no noise
            module.eval()
    tokenizer = models.load_tokenizer(run.model_path("student", seed))
    problems = data.problems(run.data, "train").set_index("id")["solution"]
    for source, mine in responses.groupby("source", sort=True):
        mine = mine[
            mine["id"].isin(mine["id"].unique()[: run.settings.diagnosis.gradient_problems])
        ]
        y_o, y_r = (mine[mine["trajectory"] == name] for name in ("y_o", "y_r"))
        attempts, ends = pairs(run, seed, y_o), y_o["start"].fillna(np.inf)
        cut = [
            p._replace(response_ids=[t for i, t in enumerate(p.response_ids) if i <= end])
            for p, end in zip(attempts, ends, strict=True)
        ]
        solutions = tokenizer(problems[y_o["id"]].tolist(), add_special_tokens=False)["input_ids"]
        references = [
            p._replace(teacher_ids=[], response_ids=[*ids, tokenizer.eos_token_id][:limit])
            for p, ids in zip(attempts, solutions, strict=True)
        ]
        size = run.settings.training.micro_batch_size
        target = _gradient(distiller, references, "y_star", "cross_entropy", size)
        for name, rows, trajectory, kind in (
            ("forward_kl", attempts, "y_o", "forward_kl"),
            ("reverse_kl", attempts, "y_o", "reverse_kl"),
            ("forward_kl_cut", cut, "y_o", "forward_kl"),
            ("forward_kl", pairs(run, seed, y_r), "y_r", "forward_kl"),
        ):
            if name == "forward_kl_cut" and y_o["start"].isna().all():
                continue
            own = _gradient(distiller, rows, trajectory, kind, size)
            found.append((source, trajectory, name, float(torch.cosine_similarity(own, target, 0))))
    return found


def _gradient(
    distiller, rows: list[distill.Pair], trajectory: str, kind: str, size: int
) -> torch.Tensor:
    """Of the summed loss, with respect to the fresh adapter (of which B alone has a gradient).

    size: rows at a time.
    """
    distiller.recipe = config.Method(trajectory=trajectory, divergence=kind)
    distiller.zero_grad()
    with parallel.model_compute():
        for start in range(0, len(rows), size):
            batch = distill.collate(rows[start : start + size])
            batch = {name: tensor.to(distiller.device) for name, tensor in batch.items()}
            distiller.token_losses(**batch).sum().backward()
    return torch.cat(
        [p.grad.flatten().float() for p in distiller.parameters() if p.grad is not None]
    )


def reference_cosines(run: config.Run, responses: pd.DataFrame) -> pd.DataFrame:
    """Does a method's first gradient point where the reference solutions point?

    Cosine of its summed gradient with that of the cross-entropy of the reference solutions, with
    respect to the LoRA weights at step 0: mean of the base seeds; low and high are the lowest and
    the highest of them. forward_kl_cut: on y_o up to its first wrong token, where the task knows
    it. The first diagnosis.gradient_problems of each source. In the form of `summary`, quantity
    "gradient_<objective>".
    """
    models.preload(run, training=True)
    jobs = [(run, int(seed), table) for seed, table in responses.groupby("seed", sort=True)]
    found = parallel.run_jobs(_cosines, jobs, workers=run.settings.workers, label="gradients")
    by = ["source", "trajectory", "quantity"]
    table = pd.DataFrame([row for rows in found for row in rows], columns=[*by, "cosine"])
    table["quantity"] = "gradient_" + table["quantity"]
    table = table.groupby(by)["cosine"].agg(value="mean", low="min", high="max").reset_index()
    counts = (
        responses.groupby("source")["id"]
        .nunique()
        .clip(upper=run.settings.diagnosis.gradient_problems)
    )
    return table.assign(verdict="all", problems=table["source"].map(counts))


# --------------------------------------------------------------------------------------- writing


def as_json(numbers: pd.DataFrame) -> dict:
    """The summary as plain JSON: source -> trajectory -> verdict -> quantity -> value and ends."""
    result: dict = {}
    for row in numbers.to_dict("records"):
        place = result
        for key in ("source", "trajectory", "verdict"):
            place = place.setdefault(row[key], {})
        ends = {k: None if pd.isna(row[k]) else float(row[k]) for k in ("value", "low", "high")}
        place[row["quantity"]] = {**ends, "problems": int(row["problems"])}
    return result


def markdown(run: config.Run, responses: pd.DataFrame, numbers: pd.DataFrame) -> str:
    """The numbers as Markdown: a table per source, a column per trajectory and verdict."""
    how = run.settings.evaluation
    cells = numbers.assign(
        text=[
            f"{v:.3g} [{a:.3g}, {b:.3g}]" for v, a, b in numbers[["value", "low", "high"]].values
        ],
        column=[
            t if v == "all" else f"{t} {v}" if t == "y_o" else f"{t} of {v}"
            for t, v in zip(numbers["trajectory"], numbers["verdict"], strict=True)
        ],
    )
    parts = [
        f"# Prefix-failure signals: {run.mode.upper()}, {run.task}, scale {run.scale}",
        f"Step 0, {len(run.settings.seeds)} base seeds, [{how.confidence:.0%} interval from "
        "resampling problems; for gradient_*, the range of the base seeds]. What each quantity is: "
        "`summary` in trdlib/diagnose.py. Onset words, a list of ours (the paper's is unknown): "
        f"{', '.join(run.settings.onsets)}.",
        "## Attempts by the verdicts on y_o and y_r",
        transitions(responses).reset_index().to_markdown(index=False),
    ]
    for source, mine in cells.groupby("source", sort=True):
        grid = mine.pivot(index="quantity", columns="column", values="text")
        grid = grid.loc[mine["quantity"].unique(), mine["column"].unique()].fillna("-")
        parts += [f"## {source}", grid.rename_axis(columns=None).to_markdown()]
    return "\n\n".join(parts) + "\n"


def write(
    run: config.Run, responses: pd.DataFrame, numbers: pd.DataFrame, lines: pd.DataFrame, figure
) -> list[Path]:
    """Numbers and curves as one tidy csv, the numbers as md, the figure as png."""
    name, results = f"diagnose_{run.mode}_{run.task}_{run.scale}", run.results
    table = pd.concat([numbers.assign(axis="none"), lines], ignore_index=True)
    order = ["axis", "source", "trajectory", "verdict", "quantity", "x"]
    order += ["value", "low", "high", "problems"]
    text = table[order].to_csv(index=False, lineterminator="\n", float_format="%.5g")
    return [
        data.write_text(results / "tables" / f"{name}.csv", text),
        data.write_text(results / "tables" / f"{name}.md", markdown(run, responses, numbers)),
        data.write_whole(
            results / "figures" / f"{name}.png", lambda p: figure.savefig(p, dpi=130, format="png")
        ),
    ]
