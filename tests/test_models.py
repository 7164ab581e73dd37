"""Two backends, one interface; the student as its own step-0 teacher."""

import subprocess
import sys

import pytest
import torch

from trdlib import divergence, models, settings
from trdlib.analysis.signals import token_signals
from trdlib.run import get_run
from trdlib.tasks import modular

IDS = torch.tensor([[31, 20, 77, 40, 9, 12]])
LORA = settings.Lora(r=4, alpha=8)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def fresh_student():
    run = get_run("smoke")
    return models.load("models/tiny/0/student", run.settings.models, run.context_length)


def shake(model):
    """Give the adapter weights that change the outputs."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)


def test_adapter_off_is_the_base_model_and_does_not_move(project):
    base, _ = fresh_student()
    student, tokenizer = fresh_student()
    student = models.add_lora(student, LORA, backend="transformers", seed=0)
    before = logits(base)
    torch.testing.assert_close(logits(student), before, rtol=0, atol=0)  # B starts at zero
    student.train()
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        models.hidden_states(student, input_ids=IDS).square().sum().backward()
        optimizer.step()
        with models.step0(student) as teacher:
            hidden = models.hidden_states(teacher, input_ids=IDS)
            found = hidden @ models.head(teacher, len(tokenizer)).weight.T
        assert torch.equal(found, before)
        assert student.training
    assert not torch.allclose(logits(student), before)


def test_a_merged_adapter_equals_the_unmerged_one(project, tmp_path):
    student, _ = fresh_student()
    student = models.add_lora(student, LORA, backend="transformers", seed=0)
    shake(student)
    expected = logits(student.eval())
    student.save_pretrained(tmp_path / "adapter")
    for merge in (True, False):
        fresh, _ = fresh_student()
        plain = logits(fresh)
        found = logits(models.with_adapter(fresh, tmp_path / "adapter", merge=merge))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, plain, atol=1e-2)


def test_lora_is_on_the_seven_projections_and_seeded(project):
    def fresh(seed):
        model, _ = fresh_student()
        model = models.add_lora(model, LORA, backend="transformers", seed=seed)
        return {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}

    one, same, other = fresh(0), fresh(0), fresh(1)
    targets = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in one}
    assert targets == set(settings.Lora.model_fields["targets"].default)
    assert all("lora_" in name for name in one)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_vocabularies_of_equal_size_can_differ(tokenizer):
    other = modular.build_tokenizer()
    models.check_same_vocabulary(tokenizer, other)
    state = other.backend_tokenizer.to_str().replace('"Wait":', '"Weit":')
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    changed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state))
    assert len(changed) == len(tokenizer)
    with pytest.raises(ValueError, match="disagree on 2 tokens, 'Wait' among them"):
        models.check_same_vocabulary(tokenizer, changed)


def test_padded_rows_are_not_vocabulary(small_model):
    assert models.head(small_model, 50).weight.shape == (50, 32)
    with torch.no_grad():
        hidden = models.hidden_states(small_model, input_ids=IDS)
        full = hidden @ models.head(small_model, small_model.config.vocab_size).weight.T
    torch.testing.assert_close(full, logits(small_model))


# ------------------------------------------------------------- what a family does after its decoder

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
OLD = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
FAMILIES = {
    "LlamaConfig": {},
    "Qwen3Config": {},
    "GraniteConfig": {"logits_scaling": 8.0},
    "CohereConfig": {"logit_scale": 0.0625},
    "Cohere2Config": {"logit_scale": 0.25, "tie_word_embeddings": True},
    "Gemma2Config": {"final_logit_softcapping": 3.0},
    "Gemma3TextConfig": {"final_logit_softcapping": 2.0},
    "OPTConfig": {"ffn_dim": 24, "word_embed_proj_dim": 8},
    "Olmo2Config": {},
    "GlmConfig": {},
    "GPTNeoXConfig": {},
    "GPT2Config": OLD,
    "PhiConfig": {},
    "GPTJConfig": OLD | {"rotary_dim": 4},
    "BloomConfig": {"n_layer": 1, "n_head": 2},
}


def random_model(family: str, seed: int):
    """Of random weights (biases too), float64; what lies between embeddings and head is trained."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, family)(**SIZES | FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    frozen = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in frozen:
        module.requires_grad_(False)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_models_own_logits(family):
    """Value and gradient, by autograd through all that the model does after its head."""
    student, teacher = random_model(family, 0), random_model(family, 1)
    models._check_logits(family, student)
    ids, kept = torch.tensor([[5, 9, 31, 44, 50, 7, 3]]), 57  # three padded rows
    with torch.no_grad():
        log_t = teacher(input_ids=ids).logits[0, :, :kept].log_softmax(-1)
        teachers = models.hidden_states(teacher, input_ids=ids)[0], models.head(teacher, kept)

    def gradients(loss):
        student.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    weights = torch.linspace(-1, 2, ids.shape[1])
    log_s = student(input_ids=ids).logits[0, :, :kept].log_softmax(-1)
    expected = (log_t.exp() * (log_t - log_s)).sum(-1)
    slopes = gradients((weights * expected).sum())
    students = models.hidden_states(student, input_ids=ids)[0], models.head(student, kept)
    found = divergence.token_divergence(*students, *teachers, kind="forward_kl")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.min() > 1e-3
    ours = gradients((weights * found).sum())
    assert ours.keys() == slopes.keys() and len(ours) > 3
    torch.testing.assert_close(ours, slopes, rtol=1e-4, atol=1e-6)

    # and for diagnosis: the same number
    none = torch.full((ids.shape[1],), -1)
    signals = token_signals(*students, *teachers, none + 6, onsets=[4, 5], rights=none)
    torch.testing.assert_close(signals["forward_kl"], expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", [lambda z: z.roll(1, -1), lambda z: 1.2 * z, lambda z: z * z])
def test_what_a_model_does_after_its_head_and_we_do_not_know_is_refused(
    project, monkeypatch, change
):
    from transformers import Qwen3ForCausalLM

    forward = Qwen3ForCausalLM.forward

    def changed(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", changed)
    with pytest.raises(settings.SettingsError, match=r"tiny/0/student \(Qwen3.* away from those"):
        fresh_student()
    change = lambda z: torch.empty(0)  # noqa: E731  as unsloth's, where it forms none
    fresh_student()


def test_a_head_that_cannot_be_read_is_refused(small_model):
    import copy

    model = copy.deepcopy(small_model)
    rows, width = model.lm_head.weight.shape
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(rows, width).byte(), requires_grad=False)
    with pytest.raises(settings.SettingsError, match=r"Qwen3ForCausalLM .* quantised"):
        models._check_logits("four", model)
    import peft

    adapted = peft.get_peft_model(
        copy.deepcopy(small_model), peft.LoraConfig(target_modules=["q_proj", "lm_head"])
    )
    with pytest.raises(settings.SettingsError, match="or has an adapter"):
        models.head(adapted, 50)


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "norm", "mlp", "q_prj", "proj"])
def test_a_target_of_lora_that_the_loss_would_not_see_is_refused(small_model, backend, target):
    lora = settings.Lora(r=2, alpha=2, targets=("q_proj", target))
    names = [name for name, _ in small_model.named_modules()]
    with pytest.raises(
        settings.SettingsError, match=f"lora.targets: {target} is no .*down_proj, g"
    ):
        models.add_lora(small_model, lora, backend=backend, seed=0)
    assert [name for name, _ in small_model.named_modules()] == names


def test_targets_may_be_written_with_the_module_around_them(small_model):
    import copy

    lora = settings.Lora(r=2, alpha=2, targets=("self_attn.q_proj",))
    model = models.add_lora(copy.deepcopy(small_model), lora, backend="transformers", seed=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("self_attn.q_proj" in name for name in trained)


UNSLOTH = """
import sys, torch
from trdlib import settings, models, generate, distill
from trdlib.run import get_run
def load(name, backend):
    run = get_run("smoke")
    how = run.settings.models.model_copy(update={"backend": backend})
    return models.load(name, how, run.context_length)
ids = torch.tensor([[31, 20, 77, 40, 9, 12]])
fast, tokenizer = load("models/tiny/0/student", "unsloth")
assert "unsloth" in sys.modules
plain, plain_tokenizer = load("models/tiny/0/student", "transformers")
models.check_same_vocabulary(tokenizer, plain_tokenizer)
hidden = [models.hidden_states(m, input_ids=ids) for m in (fast, plain)]
torch.testing.assert_close(*hidden)
greedy = [generate.decode(m, [[31, 20, 77], [40, 9]], max_new_tokens=8, stop_ids=[2],
                          temperature=0) for m in (fast, plain)]
assert greedy[0] == greedy[1]
student = models.add_lora(fast, settings.Lora(r=4, alpha=4), backend="unsloth", seed=0)
method = settings.Method(trajectory="y_o", divergence="forward_kl")
teacher, _ = load("models/tiny/0/teacher", "unsloth")
distiller = distill.Distiller(student, teacher, method, vocabulary=len(tokenizer))
rows = [distill.Pair([31, 20], [31, 20], [77, 40, 2]), distill.Pair([9], [9, 9], [12, 2])] * 4
training = settings.load().scales["smoke"].training.model_copy(update={"epochs": 4})
from pathlib import Path
log = distill.train(distiller, rows, training, learning_rate=0.01, seed=0, checkpoints=Path("ck"))
assert log[-1]["loss"] < log[0]["loss"]
with models.step0(student) as own:
    torch.testing.assert_close(models.hidden_states(own, input_ids=ids), hidden[1])
student.save_pretrained("adapter")
after = models.hidden_states(student.eval(), input_ids=ids)
merged = models.with_adapter(plain, "adapter")
torch.testing.assert_close(models.hidden_states(merged, input_ids=ids), after, rtol=1e-4, atol=1e-4)
print("unsloth agrees")
"""


def test_unsloth_is_the_same_model(project):
    """For real, on this machine; in a process of its own, because unsloth patches transformers."""
    done = subprocess.run(
        [sys.executable, "-c", UNSLOTH], capture_output=True, text=True, cwd=project
    )
    assert "unsloth agrees" in done.stdout, done.stdout[-2000:] + done.stderr[-3000:]


def test_a_hub_model_is_named_with_its_commit(project):
    commit = "b968826d9c46dd6066d109eabc6255188de91218"
    found = models.source(f"Qwen/Qwen3-8B@{commit}")
    assert found == ("Qwen/Qwen3-8B", commit)
    assert models.identity(f"Qwen/Qwen3-8B@{commit}").endswith(commit)
    assert models.source("models/tiny/0/student") == (f"{project}/models/tiny/0/student", None)
    known = settings.load()
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B@main"):
        changed = known.scales["qwen3-8b"].models.model_copy(update={"student": name})
        scale = known.scales["qwen3-8b"].model_copy(update={"models": changed})
        other = known.model_copy(update={"scales": {"qwen3-8b": scale}})
        with pytest.raises(settings.SettingsError, match="40 hex digits of the commit"):
            get_run("qwen3-8b", "opsd", settings=other)
    get_run("qwen3-8b", "opsd", settings=known)


def test_a_model_that_is_not_there_is_said_in_one_sentence(project):
    with pytest.raises(settings.SettingsError, match="models/smol/student is not there: make it"):
        models.load_tokenizer("models/smol/student")
