"""Load a policy through one of two backends, and tell its parts apart.

`unsloth` (FastLanguageModel, one GPU or a CPU) or plain `transformers` + `peft`: the same classes
come back, so the rest does not know which it was. Weights come from safetensors only, remote code
is never trusted. The self-teacher of OPSD costs no second model: with the adapter off, the student
is its own step-0 weights (paper section 1).
"""

import contextlib
import functools
import gc
import importlib.util
import math
import os
import warnings
from pathlib import Path

import torch

from trdlib import store
from trdlib.divergence import Head, logits_in_chunks
from trdlib.settings import Lora, Models, SettingsError, root


def device(settings: Models) -> str:
    """Where models run: "cuda" or "cpu"."""
    return "cuda" if settings.device == "auto" and torch.cuda.is_available() else "cpu"


def source(name: str) -> tuple[str, str | None]:
    """Where `from_pretrained` finds the model: (a folder of the project, None) if there is one of
    that name, else the hub's (repo, commit behind the @: `Qwen/Qwen3-8B@b968...`)."""
    if (local := root() / name).is_dir():
        return str(local), None
    repo, _, commit = name.partition("@")
    if not commit:
        raise SettingsError(
            f"the model {name} is not there: make it with `python -m trdlib models --scale SCALE`, "
            "or put a folder with safetensors in its place"
        )
    return repo, commit


def identity(name: str) -> str:
    """What the model is: the hash of its weights if it lies in a folder, else repo and commit."""
    folder, commit = source(name)
    return name if commit else store.weights_hash(folder)


def prepare_process(settings: Models) -> None:
    """Threads as the settings say, and no progress bars for models that load in milliseconds."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)


@functools.lru_cache(maxsize=32)
def _tokenizer(folder: str, commit: str | None):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, revision=commit, trust_remote_code=False)


def load_tokenizer(name: str):
    """The tokenizer alone; decoding and collators pad by themselves."""
    return _tokenizer(*source(name))


def free_gpu() -> None:
    """Give back what models that are gone have left of the GPU's memory."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def load(name: str, settings: Models, context_length: int):
    """-> (model, tokenizer), on the GPU if there is one, in evaluation mode, weights frozen.

    SettingsError if `hidden_states` and `head` do not make the logits that the model itself makes.
    """
    (folder, commit), four = source(name), settings.load_in_4bit
    bits = importlib.util.find_spec("bitsandbytes")
    if four and not (bits and torch.cuda.is_available()):
        needs = "bitsandbytes: pip install -e '.[gpu]'" if torch.cuda.is_available() else "a GPU"
        raise SettingsError(f"models.load_in_4bit needs {needs}, or leave it out")
    free_gpu()
    how = {"revision": commit, "dtype": getattr(torch, settings.dtype), "trust_remote_code": False}
    if settings.backend == "unsloth":
        if settings.device == "cpu" and torch.cuda.is_available():
            raise SettingsError(
                "the backend unsloth takes the GPU: set models.device to auto, or another backend"
            )
        with warnings.catch_warnings(action="ignore"):  # on a CPU it would rather have a GPU
            import unsloth  # before transformers: it patches it

        prepare_process(settings)
        # Its decode step as a graph: else hundreds of launches a token, for which the GPU waits.
        os.environ.setdefault("UNSLOTH_DECODE_CUDA_GRAPHS", "1")
        # use_exact_model_name: else a copy of its own, and not at our commit
        how |= {"max_seq_length": context_length, "use_exact_model_name": True}
        model, _ = unsloth.FastLanguageModel.from_pretrained(folder, load_in_4bit=four, **how)
    else:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        prepare_process(settings)
        if four:  # such a model cannot be moved: it loads where it stays
            bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": how["dtype"]}
            bits = BitsAndBytesConfig(load_in_4bit=True, **bits)
            how |= {"quantization_config": bits, "device_map": {"": 0}}
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **how)
        model = model if four else model.to(device(settings))
    model.requires_grad_(False).eval()
    _check_logits(name, model)
    return model, load_tokenizer(name)


@torch.no_grad()
def _check_logits(name: str, model) -> None:
    """SettingsError unless the losses see the logits that the model samples from: on four tokens,
    to 0.01 % of the largest (5 % in 16 bits: they are rounded elsewhere)."""
    whole = head(model, None)
    ids = torch.arange(1, 5, device=model.device)[None] * (len(whole.weight) // 5)
    _, ours = next(logits_in_chunks(hidden_states(model, input_ids=ids)[0], whole))
    theirs = model(input_ids=ids, use_cache=False).logits
    if not isinstance(theirs, torch.Tensor) or not theirs.numel():
        return  # unsloth forms none where it has been told to save them: nothing to compare with
    theirs = theirs[0].to(ours)
    apart, most = (ours[:, : theirs.shape[-1]] - theirs).abs().max(), theirs.abs().max()
    if not apart <= most * (1e-4 if model.dtype.itemsize > 2 else 0.05):
        raise SettingsError(
            f"the logits of {name} ({type(model).__name__}) are up to {apart:.3g} away from those "
            f"of its decoder and output head, of up to {most:.3g}: it does something after its "
            "head that the losses here do not know, choose a model of another family"
        )


def add_lora(model, settings: Lora, *, backend: str, seed: int, checkpointing: bool = False):
    """A fresh LoRA adapter on the model; its initialisation depends on the seed alone.

    SettingsError unless each target is a projection of the decoder: the losses read the head
    itself, without an adapter, and merging one into tied embeddings would change the head.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    matrices = {n: m for n, m in model.named_modules() if getattr(m, "weight", None) is not None}
    layers = {n for n, m in matrices.items() if m.weight.ndim == 2 and m not in ends}
    for target in settings.targets:
        found = {n for n in matrices if f".{n}".endswith(f".{target}")}
        if not found or found - layers:
            among = ", ".join(sorted({n.rpartition(".")[2] for n in layers}))
            raise SettingsError(
                f"lora.targets: {target} is no projection of {type(model).__name__}'s decoder, "
                f"where the loss sees an adapter: choose among {among}"
            )
    torch.manual_seed(seed)
    how = {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    how["target_modules"] = list(settings.targets)
    if backend == "unsloth":
        import unsloth

        how["use_gradient_checkpointing"] = "unsloth" if checkpointing else False
        return unsloth.FastLanguageModel.get_peft_model(model, random_state=seed, **how)
    import peft

    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **how))


def with_adapter(model, folder: str | Path, *, merge: bool = True):
    """The model with a trained adapter, merged into its weights or beside them."""
    import peft

    model = peft.PeftModel.from_pretrained(model, str(folder))
    return model.merge_and_unload() if merge else model


@contextlib.contextmanager
def step0(model):
    """The student as its own step-0 teacher: adapter off, dropout off."""
    training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield model
    finally:
        model.train(training)


def hidden_states(model, **inputs) -> torch.Tensor:
    """Last hidden states (B, T, H): what the output head reads. No logits are formed."""
    return model.get_decoder()(**inputs, use_cache=False).last_hidden_state


def head(model, vocabulary: int | torch.Tensor | None) -> Head:
    """The output head over so many tokens, without its padded rows (None: with them), or over these
    tokens alone. SettingsError if there is none, it is quantised, or it carries an adapter."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is None or weight.dtype.itemsize < 2 or hasattr(layer, "base_layer"):
        why = "is missing, quantised, or has an adapter: the losses cannot read it"
        raise SettingsError(f"the output head of {type(model).__name__} {why}")

    def given(*names: str) -> list[float]:
        return [v for n in names if isinstance(v := getattr(config, n, None), int | float)]

    # What the families call it; whoever does more, or means something else, fails _check_logits.
    divided = given("logits_scaling", "logits_mup_width_multiplier")
    scale = math.prod(given("logit_scale", "output_multiplier", "lm_head_multiplier"))
    cap = given("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    kept = vocabulary if isinstance(vocabulary, torch.Tensor) else slice(vocabulary)
    bias = bias if bias is None else bias[kept]
    return Head(weight[kept], bias, scale / math.prod(divided), cap[0] if cap else None)


def onset_ids(tokenizer, words) -> list[int]:
    """First tokens of the onset words, with and without a leading space, in ascending order, but
    for single letters, which say nothing. ValueError for a word of which nothing is left."""
    found: set[int] = set()
    for word in words:
        first = {tokenizer.encode(s + word, add_special_tokens=False)[0] for s in ("", " ")}
        texts = {token: tokenizer.decode([token]).strip() for token in first}
        own = {token for token, text in texts.items() if len(text) > 1 and word.startswith(text)}
        if not own:
            raise ValueError(f"the tokenizer has no first token for the onset {word!r}: drop it")
        found |= own
    return sorted(found)


def generation_config(name: str):
    """The generation settings that come with a model; its weights are not loaded."""
    from transformers import AutoConfig, GenerationConfig

    at, commit = source(name)
    try:
        return GenerationConfig.from_pretrained(at, revision=commit)
    except OSError:  # it has none: they follow from the model's own settings, as when it is loaded
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(at, revision=commit))


def stop_ids(generation_config, tokenizer) -> list[int]:
    """The tokens that end a turn: the tokenizer's own, and those of the generation settings."""
    ends = generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})


def check_same_vocabulary(student_tokenizer, teacher_tokenizer) -> None:
    """ValueError unless both map the same tokens to the same ids (equal sizes do not suffice)."""
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if differ := sorted({token for token, _ in ours.items() ^ theirs.items()}):
        raise ValueError(
            f"student and teacher disagree on {len(differ)} tokens, {differ[0]!r} among them: "
            "token-level distillation needs one vocabulary, choose a teacher of the same family"
        )


# What shapes training here: its fingerprints name this code.
CODE = (load, add_lora, step0, hidden_states, head, onset_ids)
