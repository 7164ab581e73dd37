"""Who samples: three engines behind one `complete`, chosen by `models.engine`.

- `transformers`: the decode loop of generate.py on a model in this process. The default.
- `vllm`: vLLM's offline `LLM`, adapters swapped in per request.
- `openai`: vLLM's server (`vllm serve`); no weights are loaded here.

All return the sampled token ids, which are trained on. Every row has a random seed of its own; vLLM
is not batch-invariant: in another batch a row may differ. Of a server it is checked that it serves
a model of the wanted name, that prompts, stop tokens and budgets come back as asked for, and that
an adapter changes what is said; which weights stand behind a name cannot be checked.
"""

import atexit
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from trdlib import generate, models, store
from trdlib.generate import Completion
from trdlib.run import Run
from trdlib.settings import ENGINE_INSTALL, ENGINES, Models, Scale, SettingsError, root

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be built for
# Shorter than a block of vLLM's prefix cache: asked twice, it is computed in the same way.
PROBE, GREEDY = "1+1=", {"temperature": 0, "max_tokens": 16, "logprobs": 0, "ignore_eos": True}


def identity(settings: Models) -> list:
    """What of an engine shapes samples, for fingerprints: no address, no key, no other engine."""
    kind = settings.engine
    weights = [settings.backend, settings.dtype, settings.load_in_4bit]
    if kind == "transformers":
        return [kind, *weights, store.code_hash(*generate.CODE)]
    check(settings)
    ours = (generate.batches, generate.sample, row_seeds, completion, _Swaps, _ENGINES[kind])
    version = None if kind == "openai" else importlib.metadata.version("vllm")
    return [kind, *weights, store.code_hash(*ours), version]


def check(settings: Models) -> None:
    """SettingsError if the engine cannot run here; nothing is loaded or imported."""
    kind = settings.engine
    missing = [name for name in ENGINES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the engine {kind} needs the package {missing[0]}: {ENGINE_INSTALL[kind]}, or set "
            "models.engine to transformers"
        )
    if kind == "vllm" and not torch.cuda.is_available():
        raise SettingsError(
            "the engine vllm needs a GPU and there is none: set models.engine to transformers, or "
            "to openai and serve the model elsewhere"
        )
    if kind != "openai":  # a server's weights are not loaded here
        models.check_4bit(settings)


def row_seeds(seed: int, rows: int) -> list[int]:
    """A seed for each row of a batch, of 31 bits: every engine takes those."""
    return [random.Random(f"{seed}/{row}").getrandbits(31) for row in range(rows)]


def completion(ids, budget: int, stop_ids: list[int], who: str) -> Completion:
    """The response, if it is one: it ends with its first stop token, or fills the budget."""
    ids = list(ids)
    ends = [token in stop_ids for token in ids]
    if not ids or any(ends[:-1]) or not (ends[-1] or len(ids) == budget):
        raise RuntimeError(
            f"{who} returned {len(ids)} tokens that neither end with their first stop token nor "
            f"fill the budget of {budget}: raise its context length (max_model_len), and let it "
            "return stop tokens"
        )
    return Completion(ids, ends[-1])


class Transformers:
    """The decode loop of generate.py. An adapter is merged, but not into 4 bits: that rounds."""

    swaps = False

    def __init__(self, settings: Scale, context_length: int, name: str):
        self.model, self.tokenizer = models.load(name, settings.models, context_length)
        self.stop_ids = models.stop_ids(self.model.generation_config, self.tokenizer)
        self.merge = not settings.models.load_in_4bit

    def use(self, adapter: Path | None) -> None:
        if adapter:
            self.model = models.with_adapter(self.model, adapter, merge=self.merge)

    def complete(self, prompts: list[list[int]], **how) -> list[Completion]:
        return generate.decode(self.model, prompts, stop_ids=self.stop_ids, **how)

    def close(self) -> None:
        del self.model
        models.free_gpu()


class _Swaps:
    """What both ways to vLLM share: adapters that are swapped, requests in vLLM's words.

    Each adds `start`, `load` (-> what `lora` is to be), `ask` (-> an answer with token_ids for each
    prompt, sampled as SamplingParams would say) and `logprobs` (of the answer to PROBE).
    """

    swaps, lora, who = True, None, "vLLM"

    def __init__(self, settings: Scale, context_length: int, name: str):
        self.tokenizer = models.load_tokenizer(name)
        self.stop_ids = models.stop_ids(models.generation_config(name), self.tokenizer)
        self.probe = [self.tokenizer.encode(PROBE, add_special_tokens=False)]
        self.start(settings, context_length, name)

    def use(self, adapter: Path | None) -> None:
        """Sample with this adapter from now on, known by its weights, not by its folder.

        RuntimeError if it changes nothing in the log-probabilities of a greedy answer.
        """
        self.lora = None
        if adapter is None:
            return
        without = self.logprobs()
        self.lora = self.load(adapter, store.weights_hash(adapter))
        if without == self.logprobs():
            raise RuntimeError(f"adapter {adapter} changes nothing: not applied, or not trained")

    def complete(self, prompts, *, max_new_tokens: int, seed: int, **how) -> list[Completion]:
        how |= {"max_tokens": max_new_tokens, "stop_token_ids": self.stop_ids}
        how["ignore_eos"] = True  # it is among ours, which count
        answers = self.ask(prompts, row_seeds(seed, len(prompts)), how)
        return [completion(a.token_ids, max_new_tokens, self.stop_ids, self.who) for a in answers]


class Vllm(_Swaps):
    """vLLM in this process (written for 0.31)."""

    def start(self, settings: Scale, context_length: int, name: str) -> None:
        from vllm import LLM

        rank = next((rank for rank in LORA_RANKS if rank >= settings.lora.r), None)
        if rank is None:
            raise SettingsError(f"vLLM takes adapters up to lora.r = {LORA_RANKS[-1]}: lower it")
        where, how, self.numbers = models.source(name), settings.models, {}
        folder, commit = where["pretrained_model_name_or_path"], where.get("revision")
        weights = {"model": folder, "revision": commit, "tokenizer_revision": commit}
        weights |= {"dtype": how.dtype, "trust_remote_code": False}
        bits = "bitsandbytes" if how.load_in_4bit else None
        weights |= {"quantization": bits, "load_format": bits or "safetensors"}
        room = {"max_model_len": context_length, "gpu_memory_utilization": how.gpu_share}
        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        # generation_config: no sampling defaults from the model's folder
        self.llm = LLM(**weights, **room, **lora, generation_config="vllm")

    def load(self, adapter: Path, known: str):
        from vllm.lora.request import LoRARequest

        number = self.numbers.setdefault(known, len(self.numbers) + 1)
        return LoRARequest(lora_name=known, lora_int_id=number, lora_path=str(adapter.absolute()))

    def ask(self, prompts: list[list[int]], seeds, sampling: dict) -> list:
        from vllm import SamplingParams

        how = [SamplingParams(seed=seed, detokenize=False, **sampling) for seed in seeds]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        done = self.llm.generate(asked, how, use_tqdm=False, lora_request=self.lora)
        return [request.outputs[0] for request in done]

    def logprobs(self) -> list[float]:
        (answer,) = self.ask(self.probe, [None], GREEDY)
        steps = zip(answer.token_ids, answer.logprobs, strict=True)
        return [logprobs[token].logprob for token, logprobs in steps]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        models.free_gpu()


class OpenAI(_Swaps):
    """vLLM's server, asked for token ids."""

    def start(self, settings: Scale, context_length: int, name: str) -> None:
        """Find the model on the server; SettingsError unless it is there."""
        import openai

        self.server, self.loaded = settings.models.server, []
        student = any(name == settings.models.student.format(seed=seed) for seed in settings.seeds)
        self.url = (not student and self.server.teacher_url) or self.server.url
        self.who = f"the server {self.url}"
        key = os.environ.get(self.server.key) or "none"
        how = {"max_retries": self.server.retries, "timeout": self.server.timeout}
        self.client = openai.OpenAI(base_url=self.url, api_key=key, **how)
        cards = {card.id: card for card in self._call(self.client.models.list)}
        repo, _, commit = name.partition("@")
        names = (name, repo, str(root() / name))
        self.served = next((name for name in names if name in cards), None)
        if self.served is None:
            revision = f" --revision {commit}" if commit else ""
            raise SettingsError(
                f"{self.who} does not serve {name} (it names {', '.join(cards) or 'none'}): "
                f"start it with `vllm serve {repo}{revision}`"
            )
        self.context = getattr(cards[self.served], "max_model_len", None)
        self.ask(self.probe, [None], {"temperature": 0, "max_tokens": 1})

    def _call(self, function, **request):
        """The server's answer; RuntimeError with its words. The client tries again by itself."""
        import openai

        try:
            return function(**request)
        except openai.APIStatusError as error:
            raise RuntimeError(f"{self.who} refused: {error.message}") from error
        except openai.APIConnectionError as error:
            raise RuntimeError(
                f"no answer from {self.url} in {self.server.retries + 1} tries "
                f"({error.__cause__ or error}): start the server, or set models.server"
            ) from error

    def load(self, adapter: Path, known: str) -> str:
        name = f"trd-{known}"
        if any(card.id == name for card in self._call(self.client.models.list)):
            return name
        body = {"lora_name": name, "lora_path": str(adapter.absolute())}
        try:
            self._call(self.client.post, path="/load_lora_adapter", cast_to=str, body=body)
        except RuntimeError as error:
            rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
            raise RuntimeError(
                f"{self.who} cannot load the adapter {adapter}: start it with "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank {rank} "
                f"where it can read that folder, or with --lora-modules {name}=FOLDER ({error})"
            ) from error
        self.loaded.append(name)
        return name

    def ask(self, prompts: list[list[int]], seeds, sampling: dict) -> list:
        """Many at a time; SettingsError where there is no room for so many tokens."""
        need = max(map(len, prompts)) + sampling["max_tokens"]
        if self.context is not None and need > self.context:
            raise SettingsError(
                f"{self.who} has room for {self.context} tokens and {need} are needed: "
                f"start it with --max-model-len {need}"
            )
        pool = ThreadPoolExecutor(self.server.concurrency)
        try:
            return list(pool.map(lambda *one: self._ask(*one, sampling), prompts, seeds))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, prompt: list[int], seed: int | None, sampling: dict):
        # What is left out, the server takes from the model's folder.
        how = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "min_p": 0}
        asked = {"model": self.lora or self.served, "prompt": prompt}
        asked["extra_body"] = how | sampling | {"seed": seed, "return_token_ids": True}
        choice = self._call(self.client.completions.create, **asked).choices[0]
        if getattr(choice, "token_ids", None) is None:
            raise SettingsError(
                f"{self.who} returns text without token ids, and responses are trained on as they "
                "were sampled: use `vllm serve`"
            )
        if (seen := choice.prompt_token_ids) != prompt:
            raise RuntimeError(
                f"{self.who} saw other prompt tokens ({len(seen)}) than were sent ({len(prompt)}): "
                "it cut them, or added to them"
            )
        return choice

    def logprobs(self) -> list[float]:
        return self.ask(self.probe, [None], GREEDY)[0].logprobs.token_logprobs

    def close(self) -> None:
        once = self.client.with_options(max_retries=0)
        for name in self.loaded:
            how = {"path": "/unload_lora_adapter", "cast_to": str, "body": {"lora_name": name}}
            with contextlib.suppress(RuntimeError):  # a server that has gone has none of it
                self._call(once.post, **how)
        self.client.close()


_ENGINES = {"transformers": Transformers, "vllm": Vllm, "openai": OpenAI}
_open: dict[tuple, Transformers | Vllm | OpenAI] = {}  # one at most


@atexit.register
def close() -> None:
    """Close the engine that was left open: training wants the GPU empty."""
    while _open:
        _open.popitem()[1].close()


@contextlib.contextmanager
def opened(run: Run, name: str, adapter: Path | None = None):
    """The run's engine with these weights and this adapter: complete(), tokenizer.

    One that can swap adapters stays open for the next use of the same weights, until `close`.
    """
    key = (name, run.settings.models, run.context_length)
    if key not in _open:
        close()
        check(run.settings.models)
        kind = _ENGINES[run.settings.models.engine]
        _open[key] = kind(run.settings, run.context_length, name)
    try:
        _open[key].use(adapter)
        yield _open[key]
    except BaseException:
        close()
        raise
    if not _open[key].swaps:
        close()
