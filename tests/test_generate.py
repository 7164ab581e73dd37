"""The decode loop against transformers' own generate; files that are whole or absent."""

import random
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from trdlib import generate, store
from trdlib.tasks import chain


def prompts(tokenizer, lengths):
    rng = random.Random(0)
    return [
        tokenizer.encode(chain.random_problem(rng, n), add_special_tokens=False) for n in lengths
    ]


def test_greedy_equals_transformers_generate(small_model, tokenizer):
    """Padded and not, with rows that finish at different times, and another attention."""
    stop = tokenizer.convert_tokens_to_ids("=")
    for lengths in ([3] * 6, [1, 4, 2, 7, 4, 1]):
        asked = prompts(tokenizer, lengths)
        small_model.set_attn_implementation("sdpa")
        ours = generate.decode(
            small_model, asked, max_new_tokens=25, stop_ids=[stop], temperature=0
        )
        assert small_model.config._attn_implementation == "trd"
        small_model.set_attn_implementation("eager")
        for prompt, completion in zip(asked, ours, strict=True):
            theirs = small_model.generate(
                torch.tensor([prompt]), max_new_tokens=25, do_sample=False, eos_token_id=stop,
                pad_token_id=tokenizer.pad_token_id,
            )[0, len(prompt) :].tolist()  # fmt: skip
            assert completion.token_ids == theirs
            assert completion.finished == (theirs[-1] == stop)


def test_samples_of_one_prompt_share_its_prefill(small_model, tokenizer):
    """Repeated prompts, mixed with others: each row decodes as if alone (greedy shows it)."""
    one, two = prompts(tokenizer, [2, 5])
    alone = [
        generate.decode(small_model, [p], max_new_tokens=15, stop_ids=[], temperature=0)[0]
        for p in (one, two)
    ]
    mixed = generate.decode(
        small_model, [one, two, one, two, two], max_new_tokens=15, stop_ids=[], temperature=0
    )
    assert mixed == [alone[0], alone[1], alone[0], alone[1], alone[1]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, lambda z: z.softmax(-1)),
        ({"temperature": 0.5}, lambda z: (z / 0.5).softmax(-1)),
        (
            {"temperature": 1.0, "top_k": 3},
            lambda z: z.masked_fill(z < z.topk(3).values[-1], -torch.inf).softmax(-1),
        ),
    ],
)
def test_samples_follow_the_models_distribution(small_model, tokenizer, options, expected):
    prompt = prompts(tokenizer, [3])[0]
    with torch.no_grad():
        p = expected(small_model(torch.tensor([prompt])).logits[0, -1])
    n = 20_000
    done = generate.decode(small_model, [prompt] * n, max_new_tokens=1, stop_ids=[], **options)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in done]), minlength=len(p))
    assert (counts[p == 0] == 0).all()
    # five standard deviations of a binomial share, for every token
    assert ((counts / n - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_top_p_keeps_the_nucleus(small_model, tokenizer):
    prompt = prompts(tokenizer, [3])[0]
    with torch.no_grad():
        p = small_model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]
    nucleus = set(order[before < 0.5].tolist())
    done = generate.decode(small_model, [prompt] * 3000, max_new_tokens=1, stop_ids=[], top_p=0.5)
    assert {c.token_ids[0] for c in done} == nucleus


def test_a_response_depends_on_its_seed_and_not_on_its_company(small_model, tokenizer):
    asked = prompts(tokenizer, [3, 5, 5, 2, 7])
    how = {"max_new_tokens": 12, "stop_ids": [tokenizer.eos_token_id]}
    seeds = [4, 1, 1, 2, 3]
    together = generate.decode(small_model, asked, seeds=seeds, **how)
    for prompt, seed, found in zip(asked, seeds, together, strict=True):
        assert generate.decode(small_model, [prompt], seeds=[seed], **how) == [found]
    assert generate.decode(small_model, asked, seeds=[s + 9 for s in seeds], **how) != together


def test_batches_hold_every_prompt_once_and_like_lengths_together(tokenizer):
    asked = prompts(tokenizer, [5] * 30 + [2] * 40 + [7])
    found = generate.batches(asked, 16)
    assert sorted(i for b in found for i in b) == list(range(71))
    assert max(len(b) for b in found) == 15  # five of at most 16
    lengths = [len(asked[i]) for b in found for i in b]
    assert lengths == sorted(lengths)
    assert generate.batches([], 16) == []


def test_a_position_bias_or_another_mask_is_left_to_transformers():
    """Against its own function, at one new token, two query heads for each of keys and values."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    module = SimpleNamespace(num_key_value_groups=2)
    draw = torch.Generator().manual_seed(0)
    q, k, v, bias = (
        torch.randn(3, heads, length, size, generator=draw)
        for heads, length, size in [(4, 1, 8), (2, 5, 8), (2, 5, 8), (4, 1, 5)]
    )
    seen = torch.rand(3, 1, 1, 5, generator=draw) < 0.7
    seen[..., -1] = True
    added = torch.zeros(3, 1, 1, 5).masked_fill(~seen, -1e9)
    for mask in (None, seen, added):
        for how in ({"scaling": 0.3}, {}, {"scaling": 0.3, "position_bias": bias}):
            ours, _ = generate._attention(module, q, k, v, mask, **how)
            theirs, _ = sdpa_attention_forward(module, q, k, v, mask, **how)
            torch.testing.assert_close(ours, theirs)


def test_half_written_files_are_never_seen(tmp_path):
    path = tmp_path / "table.json"

    def breaks(temporary):
        temporary.write_text("[1, 2")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write_whole(path, breaks)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(path, float("nan"))
    assert not path.exists()


def test_generate_decodes_in_the_same_way(small_model, tokenizer, monkeypatch):
    """The way of a model with Unsloth's forward; its folder's settings of sampling do not count."""
    usual = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=9.0, max_length=3)
    monkeypatch.setattr(small_model, "generation_config", usual)
    asked = prompts(tokenizer, [1, 4, 2, 7, 4, 1])
    how = {"max_new_tokens": 25}
    said = generate.decode(small_model, asked, temperature=0, stop_ids=[], **how)[0].token_ids
    how["stop_ids"] = [said[5], tokenizer.eos_token_id]  # some stop and some do not
    ours = generate.decode(small_model, asked, temperature=0, **how)
    monkeypatch.setattr(generate, "_loop", generate._generate)
    theirs = generate.decode(small_model, asked, temperature=0, **how)
    assert theirs == ours and {one.finished for one in ours} == {True, False}
    before = torch.get_rng_state()
    drawn = [generate.decode(small_model, asked, seeds=[seed], **how) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before) and small_model.generation_config is usual
